//! Builds the built-in guests (`guests/`) with the compiler that builds us, for their embedding by
//! `src/loader/builtin.rs`. They are freestanding programs: no crate, no target specification, no build tool of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The guests, each a folder of `guests/` and the name of its image, with the layout of the image.
const GUESTS: [(&str, &str); 4] =
    [("builtin", KERNELS), ("conversions", KERNELS), ("touch", KERNELS), ("stage0", "stage0/linker.ld")];
const KERNELS: &str = "builtin/linker.ld";

fn main() {
    let guests = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("guests");
    for (name, layout) in GUESTS {
        println!("cargo::rerun-if-changed={}", guests.join(name).display());
        build(&guests, name, &guests.join(layout));
    }
}

fn build(guests: &Path, name: &str, script: &Path) {
    let image = PathBuf::from(variable("OUT_DIR")).join(format!("{name}.elf"));
    let link_args = [
        "-nostdlib".to_owned(),
        "-nostartfiles".to_owned(),
        "-static".to_owned(),
        "-Wl,--build-id=none".to_owned(),
        "-Wl,-z,max-page-size=4096".to_owned(),
        format!("-Wl,-T,{}", script.display()),
    ];
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name", name, "--crate-type=bin", "--target=x86_64-unknown-linux-gnu"]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Crelocation-model=static", "-Ccodegen-units=1", "-Cstrip=symbols"]);
    // Little SSE: the guest should run long before every vector instruction does.
    rustc.args(["-Cno-vectorize-loops", "-Cno-vectorize-slp"]);
    rustc.args(link_args.iter().map(|arg| format!("-Clink-arg={arg}")));
    rustc.arg("-o").arg(&image).arg(guests.join(name).join("main.rs"));
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the guest {name} does not build ({status}): {rustc:?}"),
        Err(error) => panic!("cannot run {rustc:?}: {error}"),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}
