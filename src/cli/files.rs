//! Files that a command names.

use std::fs;
use std::path::Path;

use super::CliError;

/// The whole of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(|cause| CliError::Read { path: path.to_owned(), cause })
}

/// The last part of a path, as a guest may see it.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Both.
pub(super) fn read_named(path: &Path) -> Result<(String, Vec<u8>), CliError> {
    Ok((name(path), read(path)?))
}
