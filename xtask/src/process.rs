//! Running other programs.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::Error;

/// A command with its arguments, run in `dir`.
pub fn command<S: AsRef<OsStr>>(dir: &Path, program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command
}

/// The cargo that runs us.
pub fn cargo<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    command(dir, &cargo, args)
}

/// Runs it with its output visible.
pub fn run(mut command: Command) -> Result<(), Error> {
    let status = command.status().map_err(|cause| start(&command, cause))?;
    if status.success() { Ok(()) } else { Err(Error::Failed { command: shown(&command), status }) }
}

/// Runs it and returns what it wrote to standard output.
pub fn output(mut command: Command) -> Result<Vec<u8>, Error> {
    let output = command.stderr(Stdio::inherit()).output().map_err(|cause| start(&command, cause))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::Failed { command: shown(&command), status: output.status })
    }
}

/// [`output`] as text.
pub fn text(command: Command) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

fn start(command: &Command, cause: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), cause }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
