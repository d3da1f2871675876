//! Standard output of ours, where no guest has it.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use super::CliError;

/// Writes a line. Nobody reading any more, as behind `head`, is no failure.
pub(super) fn line(text: impl Display) -> Result<(), CliError> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(cause) if cause.kind() != ErrorKind::BrokenPipe => Err(CliError::Output(cause)),
        _ => Ok(()),
    }
}
