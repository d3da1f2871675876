//! The `bifold` command: flags, exit codes, the terminal.
//!
//! Standard output belongs to the guest's console; everything of ours goes to standard error. Every failure is one
//! line that says what, with which value, and a `help:` line that says what would have been right.
//!
//! [`main`] is the whole program; [`args::RunConfig`] is what a run was asked for; [`exit::ExitCode`] how it ended.
//! [`escape`] and [`terminal`] are the console's keyboard.

pub mod args;
mod check;
mod console;
mod devices;
pub mod escape;
pub mod exit;
mod explore;
mod files;
mod out;
mod page;
mod report;
mod run;
pub mod terminal;
mod trace;

use clap::Parser;
use thiserror::Error;

use crate::config::ConfigError;
use crate::loader::{LoadError, MemoryMapError};
use crate::machine::{BuildError, RunError};
use args::{Arguments, Command};
use exit::ExitCode;

pub use explore::ExploreError;
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
    /// A script that is none.
    #[error("{}: {cause}", path.display())]
    Script {
        /// Its file.
        path: std::path::PathBuf,
        /// Where and what.
        cause: crate::vmm::script::ScriptError,
    },
    /// A trace that is none.
    #[error("{}: {cause}", path.display())]
    Trace {
        /// Its file.
        path: std::path::PathBuf,
        /// Where and what.
        cause: crate::report::ReadError,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {cause}", path.display())]
    Write {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
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
    /// The machine cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The run could not go on.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Nothing to explore.
    #[error(transparent)]
    Explore(#[from] ExploreError),
    /// Standard output, where it is ours.
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    /// The console's file or terminal.
    #[error("the console failed: {0}")]
    Console(std::io::Error),
}

impl CliError {
    /// What the user can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            CliError::Flag { cause, .. } => cause.help(),
            CliError::Pages { .. } => "say it once",
            CliError::Read { .. } => "give a file that exists and may be read",
            CliError::Script { .. } => "docs/vmm-script.md is the manual of scripts",
            CliError::Trace { .. } => "give a trace that `bifold run --trace RUN.jsonl` wrote",
            CliError::Write { .. } => "give a file that may be written, on a disk with room",
            CliError::Load { cause, .. } => cause.help(),
            CliError::MemoryMap(_) | CliError::HostMemory(_) => "give less with --memory",
            CliError::Build(cause) => cause.help(),
            CliError::Run(_) => "give the guest less --memory, or another --pages",
            CliError::Explore(cause) => cause.help(),
            CliError::Output(_) => "give standard output a place with room",
            CliError::Console(_) => "give a --serial file that can be written",
        }
    }

    /// How the process ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CliError::Build(BuildError::Memory(_)) | CliError::Run(_) | CliError::Console(_) | CliError::Output(_) => {
                ExitCode::HostRefused
            }
            CliError::Read { .. } | CliError::Write { .. } | CliError::HostMemory(_) => ExitCode::HostRefused,
            CliError::Flag { .. }
            | CliError::Trace { .. }
            | CliError::Pages { .. }
            | CliError::Load { .. }
            | CliError::Script { .. }
            | CliError::MemoryMap(_)
            | CliError::Explore(_)
            | CliError::Build(_) => ExitCode::Usage,
        }
    }
}

/// Runs the command line of this process. Usage errors and `--help` end the process here, as clap does it (with 2 and 0).
pub fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // A panic is a broken invariant of ours, and says so by its exit code; its message has been printed by then.
    let outcome = std::panic::catch_unwind(move || match command {
        Command::Run(arguments) if arguments.list_guests => run::list_guests(),
        Command::Run(arguments) => arguments.resolve().and_then(|config| run(&config)),
        Command::Check(arguments) => check::check(&arguments),
        Command::Report(arguments) => page::report(&arguments),
        Command::Explore(arguments) => explore::explore(&arguments),
    });
    let Ok(outcome) = outcome else {
        let words: Vec<String> = std::env::args().collect();
        eprintln!("error: an invariant of the emulator broke\nhelp: the same command repeats it: {}", words.join(" "));
        return ExitCode::Invariant;
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}\nhelp: {}", error.help());
        error.exit_code()
    })
}
