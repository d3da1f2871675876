//! Files that a command names.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use super::CliError;

/// A file shorter than this is read before anybody could wonder.
const WORTH_SHOWING: u64 = 16 << 20;

/// The whole of a file. A long one shows its progress on standard error when that is a terminal.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    read_to_end(path).map_err(|cause| CliError::Read { path: path.to_owned(), cause })
}

fn read_to_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut bytes = Vec::new();
    if len < WORTH_SHOWING || !io::stderr().is_terminal() {
        file.read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let bar = ProgressBar::new(len).with_message(name(path)).with_style(style());
    let outcome = bar.wrap_read(file).read_to_end(&mut bytes);
    bar.finish_and_clear();
    outcome.map(|_| bytes)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("reading {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The last part of a path, as a guest may see it.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Both.
pub(super) fn read_named(path: &Path) -> Result<(String, Vec<u8>), CliError> {
    Ok((name(path), read(path)?))
}
