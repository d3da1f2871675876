//! `bifold report`, and the page that `bifold run --report` writes.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;

use super::CliError;
use super::exit::ExitCode;
use crate::report::{Model, html, read};

/// The flags of `bifold report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// A trace in JSON lines, as `bifold run --trace RUN.jsonl` writes it.
    #[arg(value_name = "RUN.jsonl")]
    pub trace: PathBuf,
    /// Where the page goes.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
}

/// Makes a page of a trace.
pub(super) fn report(arguments: &ReportArguments) -> Result<ExitCode, CliError> {
    let path = &arguments.trace;
    let file = File::open(path).map_err(|cause| CliError::Read { path: path.clone(), cause })?;
    let model = read(&mut BufReader::with_capacity(1 << 16, file))
        .map_err(|cause| CliError::Trace { path: path.clone(), cause })?;
    write(&model, &arguments.output)?;
    eprintln!("bifold: {} events, {}", model.events(), arguments.output.display());
    Ok(ExitCode::Done)
}

/// Writes the page of a run.
pub(super) fn write(model: &Model, path: &Path) -> Result<(), CliError> {
    std::fs::write(path, html(model)).map_err(|cause| CliError::Write { path: path.to_owned(), cause })
}
