//! Builds the built-in guest (`guests/builtin`) with the compiler that builds us, for its embedding by
//! `src/loader/builtin.rs`. It is a freestanding program: no crate, no target specification, no build tool of its own.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let guest = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("guests/builtin");
    println!("cargo::rerun-if-changed={}", guest.display());
    let image = PathBuf::from(variable("OUT_DIR")).join("builtin.elf");
    let script = guest.join("linker.ld");
    let link_args = [
        "-nostdlib".to_owned(),
        "-nostartfiles".to_owned(),
        "-static".to_owned(),
        "-Wl,--build-id=none".to_owned(),
        "-Wl,-z,max-page-size=4096".to_owned(),
        format!("-Wl,-T,{}", script.display()),
    ];
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=builtin", "--crate-type=bin", "--target=x86_64-unknown-linux-gnu"]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Crelocation-model=static", "-Ccodegen-units=1", "-Cstrip=symbols"]);
    // Little SSE: the guest should run long before every vector instruction does.
    rustc.args(["-Cno-vectorize-loops", "-Cno-vectorize-slp"]);
    rustc.args(link_args.iter().map(|arg| format!("-Clink-arg={arg}")));
    rustc.arg("-o").arg(&image).arg(guest.join("main.rs"));
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the built-in guest does not build ({status}): {rustc:?}"),
        Err(error) => panic!("cannot run {rustc:?}: {error}"),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}
