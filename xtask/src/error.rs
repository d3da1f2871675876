//! Why a task did not succeed.

use std::path::PathBuf;

use thiserror::Error;

/// What stopped a task, or what it found.
#[derive(Debug, Error)]
pub enum Error {
    /// The words mean no task.
    #[error("no such task")]
    Usage,
    /// A file or directory.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A program that could not be started.
    #[error("cannot run {program}: {cause}")]
    Start {
        /// Which.
        program: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A program that failed.
    #[error("failed ({status}): {command}")]
    Failed {
        /// Its command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A program that printed what it should not have.
    #[error("{program} printed something unexpected: {what}")]
    Output {
        /// Which.
        program: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A file that was fetched and is not what its name says.
    #[error("{}: not {expected}", path.display())]
    NotWhatItSays {
        /// Which.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// A package whose archive does not hold what is looked for.
    #[error("{package} holds no file whose name begins with {wanted}")]
    NotInPackage {
        /// The package.
        package: String,
        /// The beginning of the name.
        wanted: &'static str,
    },
    /// A number of violations, which were printed.
    #[error("{count} violations of {of}")]
    Violations {
        /// How many.
        count: usize,
        /// Of what.
        of: &'static str,
    },
    /// Things that could not be fetched, which were printed.
    #[error("could not fetch everything: {0}")]
    NotFetched(String),
    /// Steps of CI that failed, which were printed.
    #[error("failed: {0}")]
    Steps(String),
}

impl Error {
    /// For `map_err` after something done with a file.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |cause| Error::File { path, cause }
    }
}
