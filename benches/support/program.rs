//! The C program that holds the kernels: built once with the host's compiler, run natively and inside the guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use super::generate;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No compiler.
    #[error("cannot run {compiler:?} (set CC to a C compiler for x86-64 Linux): {cause}")]
    NoCompiler {
        /// What was tried.
        compiler: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The compiler was not content.
    #[error("{compiler:?} failed on {source_file}")]
    Refused {
        /// The compiler.
        compiler: String,
        /// The source file, or "linking".
        source_file: String,
    },
    /// Files.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// What all sources are built with. Nothing that depends on the host's processor model.
const COMMON: &[&str] = &[
    "-O2",
    "-std=gnu11",
    "-Wall",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-tree-loop-distribute-patterns",
];
const INTEGER: &[&str] = &["-mgeneral-regs-only"];
const SSE2: &[&str] = &["-march=x86-64", "-mfpmath=sse"];

/// Builds the program under `into` and returns its path.
pub fn build(sources: &Path, into: &Path) -> Result<PathBuf, BuildError> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let file_error = |path: &Path| {
        let path = path.to_owned();
        move |cause| BuildError::File { path, cause }
    };
    fs::create_dir_all(into).map_err(file_error(into))?;
    let generated = into.join("big.c");
    fs::write(&generated, generate::big()).map_err(file_error(&generated))?;
    let mut objects = Vec::new();
    for (name, flags) in [
        ("main", INTEGER),
        ("integer", INTEGER),
        ("programs", INTEGER),
        ("system", INTEGER),
        ("sse2", SSE2),
        ("big", INTEGER),
    ] {
        let source = if name == "big" { generated.clone() } else { sources.join(format!("{name}.c")) };
        let object = into.join(format!("{name}.o"));
        let mut command = Command::new(&compiler);
        command.args(COMMON).args(flags).arg("-I").arg(sources).arg("-c").arg(&source).arg("-o").arg(&object);
        run(&compiler, command, &source.display().to_string())?;
        objects.push(object);
    }
    let program = into.join("kernels");
    let mut command = Command::new(&compiler);
    command.args(["-static", "-no-pie", "-nostdlib", "-Wl,--build-id=none"]).args(&objects).arg("-o").arg(&program);
    run(&compiler, command, "linking")?;
    Ok(program)
}

fn run(compiler: &str, mut command: Command, what: &str) -> Result<(), BuildError> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|cause| BuildError::NoCompiler { compiler: compiler.to_owned(), cause })?;
    if status.success() {
        Ok(())
    } else {
        Err(BuildError::Refused { compiler: compiler.to_owned(), source_file: what.to_owned() })
    }
}
