//! The speed report: the kernels of `guests/kernels`, natively and inside Linux on a whole machine, in one run.
//!
//! `cargo bench --bench kernels [-- [--scale N] [NAME...]]`. Needs a C compiler and, for the guest's half, the kernel that
//! `cargo xtask fetch` puts into `guests/cache` (or another one named by `BIFOLD_BENCH_KERNEL`). What is missing is said
//! and left out. Fails when a kernel computes something else in the guest than on the host.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bifold::loader::Image;
use support::{guest, native, program, report};

const NATIVE_REPEATS: u64 = 3;
const GUEST_REPEATS: u64 = 2;

fn main() -> ExitCode {
    let mut scale = 1;
    let mut names: Vec<String> = Vec::new();
    let mut bench = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => bench = true,
            "--scale" => match words.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0) {
                Some(n) => scale = n,
                None => return refuse("--scale takes a positive number"),
            },
            name if report::names().contains(&name) => names.push(name.to_owned()),
            other => return refuse(&format!("no kernel {other:?}; there are: {}", report::names().join(" "))),
        }
    }
    if !bench {
        println!("kernels: nothing to test; figures come from `cargo bench --bench kernels`");
        return ExitCode::SUCCESS;
    }
    let all = report::names();
    let names: Vec<&str> =
        all.into_iter().filter(|name| names.is_empty() || names.iter().any(|wanted| wanted == name)).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = program::build(&root.join("guests/kernels"), &Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels"));
    let program = match built {
        Ok(program) => program,
        Err(error) => {
            eprintln!("kernels: SKIPPED, no program to measure with: {error}");
            return ExitCode::SUCCESS;
        }
    };
    let native = native::run(&program, scale, NATIVE_REPEATS, &names).unwrap_or_else(|error| {
        eprintln!("kernels: NO NATIVE FIGURES: {}: {error}", program.display());
        BTreeMap::new()
    });
    let mut failed = false;
    let kernel = kernel_path(root);
    let run = match (std::fs::read(&kernel), std::fs::read(&program)) {
        (Ok(bytes), Ok(program)) => {
            let name = kernel.display().to_string();
            guest::run(&Image { name: &name, bytes: &bytes }, &program, scale, GUEST_REPEATS, &names).unwrap_or_else(
                |error| {
                    eprintln!("kernels: NO GUEST FIGURES: {error}");
                    failed = true;
                    guest::Run::default()
                },
            )
        }
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("kernels: NO GUEST FIGURES: {}: {error} (run `cargo xtask fetch`)", kernel.display());
            guest::Run::default()
        }
    };
    for name in report::print(&native, &run, scale) {
        eprintln!("kernels: {name} computes something else in the guest");
        failed = true;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("kernels: {why}");
    ExitCode::from(2)
}

fn kernel_path(root: &Path) -> PathBuf {
    std::env::var_os("BIFOLD_BENCH_KERNEL").map_or_else(|| root.join("guests/cache/vmlinuz-6.1"), PathBuf::from)
}
