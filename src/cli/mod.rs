//! The `bifold` command: flags, exit codes, the terminal.
//!
//! Standard output belongs to the guest's console; everything of ours goes to standard error. Every failure is one
//! line that says what, with which value, and a `help:` line that says what would have been right.
//!
//! [`main`] is the whole program; [`args::RunConfig`] is what a run was asked for; [`exit::ExitCode`] how it ended.
//! [`escape`] and [`terminal`] are the console's keyboard.

pub mod args;
mod check;
pub mod escape;
pub mod exit;
mod files;
mod run;
pub mod terminal;

use clap::Parser;
use thiserror::Error;

use crate::config::ConfigError;
use crate::loader::{LoadError, MemoryMapError};
use args::{Arguments, Command};
use exit::ExitCode;

pub use run::run;

/// Why a command ended before, or instead of, a guest.
#[derive(Debug, Error)]
pub enum CliError {
    /// A flag's value.
    #[error("{flag}: {cause}")]
    Flag {
        /// The flag as it is written.
        flag: &'static str,
        /// What was wrong.
        cause: ConfigError,
    },
    /// Two flags that say the same thing differently.
    #[error("--memory says pages={memory}, --pages says {pages}")]
    Pages {
        /// In `--memory`.
        memory: emu_core::PageSize,
        /// In `--pages`.
        pages: emu_core::PageSize,
    },
    /// A file that could not be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// What the host said.
        cause: std::io::Error,
    },
    /// An image that could not be loaded.
    #[error("{image}: {cause}")]
    Load {
        /// The image's name.
        image: String,
        /// What was wrong with it.
        cause: LoadError,
    },
    /// A memory size that gives no memory map.
    #[error(transparent)]
    MemoryMap(#[from] MemoryMapError),
    /// The host gives no memory.
    #[error(transparent)]
    HostMemory(#[from] emu_core::memory::LayoutError),
    /// There is no machine to run what was loaded.
    #[error("the image is loaded, but this build has no machine to run it")]
    NoMachine,
}

impl CliError {
    /// What the user can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            CliError::Flag { cause, .. } => cause.help(),
            CliError::Pages { .. } => "say it once",
            CliError::Read { .. } => "give a file that exists and may be read",
            CliError::Load { cause, .. } => cause.help(),
            CliError::MemoryMap(_) | CliError::HostMemory(_) => "give less with --memory",
            CliError::NoMachine => "`bifold check` tells what an image is and whether it loads",
        }
    }

    /// How the process ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CliError::Read { .. } | CliError::HostMemory(_) => ExitCode::HostRefused,
            CliError::Flag { .. }
            | CliError::Pages { .. }
            | CliError::Load { .. }
            | CliError::MemoryMap(_)
            | CliError::NoMachine => ExitCode::Usage,
        }
    }
}

/// Runs the command line of this process. Usage errors and `--help` end the process here, as clap does it (with 2 and 0).
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(arguments) => arguments.resolve().and_then(|config| run(&config)),
        Command::Check(arguments) => check::check(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}\nhelp: {}", error.help());
        error.exit_code()
    })
}
