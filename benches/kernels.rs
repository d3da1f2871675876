//! The speed report: the kernels of `guests/kernels`, natively and inside Linux on a whole machine, in one run.
//!
//! `cargo bench --bench kernels [-- [--scale N] [NAME...]]`. Needs a C compiler and, for the guest's half, the kernel that
//! `cargo xtask fetch` puts into `guests/cache` (or another one named by `BIFOLD_BENCH_KERNEL`). What is missing is said
//! and left out. Fails when a kernel computes something else in the guest than on the host.
//!
//! With `--snp` the same kernels run in an SNP guest and in a plain one of the same processor model, by turns, and what is
//! printed is how much longer they take there.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bifold::config::{NestedPaging, SnpChoice};
use bifold::loader::Image;
use bifold::machine::Machine;
use emu_core::CpuModel;
use support::{guest, native, program, report};

const NATIVE_REPEATS: u64 = 3;
const GUEST_REPEATS: u64 = 2;
/// Boots of each guest of a comparison.
const SNP_ROUNDS: usize = 2;

fn main() -> ExitCode {
    let mut scale = 1;
    let mut names: Vec<String> = Vec::new();
    let mut bench = false;
    let mut snp = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => bench = true,
            "--snp" => snp = true,
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
    if snp {
        return under_snp(&kernel_path(root), &program, scale, &names);
    }
    let native = native::run(&program, scale, NATIVE_REPEATS, &names).unwrap_or_else(|error| {
        eprintln!("kernels: NO NATIVE FIGURES: {}: {error}", program.display());
        BTreeMap::new()
    });
    let mut failed = false;
    let kernel = kernel_path(root);
    let run = match (std::fs::read(&kernel), std::fs::read(&program)) {
        (Ok(bytes), Ok(program)) => {
            let name = kernel.display().to_string();
            let image = Image { name: &name, bytes: &bytes };
            guest::run(Machine::builder(), &image, &program, scale, GUEST_REPEATS, &names).unwrap_or_else(|error| {
                eprintln!("kernels: NO GUEST FIGURES: {error}");
                failed = true;
                guest::Run::default()
            })
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

/// Boots the plain guest and the SNP guest [`SNP_ROUNDS`] times by turns, so that a busy minute of the host hits both.
fn under_snp(kernel: &Path, program: &Path, scale: u64, names: &[&str]) -> ExitCode {
    let (bytes, program) = match (std::fs::read(kernel), std::fs::read(program)) {
        (Ok(bytes), Ok(program)) => (bytes, program),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("kernels: SKIPPED: {}: {error} (run `cargo xtask fetch`)", kernel.display());
            return ExitCode::SUCCESS;
        }
    };
    let name = kernel.display().to_string();
    let image = Image { name: &name, bytes: &bytes };
    let (mut plain, mut snp) = (guest::Run::default(), guest::Run::default());
    for _ in 0..SNP_ROUNDS {
        let outside = Machine::builder().mmu(NestedPaging::Npt).model(CpuModel::amd_snp());
        let inside = Machine::builder().mmu(NestedPaging::Npt).snp(SnpChoice::default());
        for (builder, best) in [(outside, &mut plain), (inside, &mut snp)] {
            match guest::run(builder, &image, &program, scale, GUEST_REPEATS, names) {
                Ok(run) => best.keep_best_of(run),
                Err(error) => {
                    eprintln!("kernels: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    let differ = report::print_snp(&plain, &snp);
    for name in &differ {
        eprintln!("kernels: {name} computes something else in the SNP guest");
    }
    if differ.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("kernels: {why}");
    ExitCode::from(2)
}

fn kernel_path(root: &Path) -> PathBuf {
    std::env::var_os("BIFOLD_BENCH_KERNEL").map_or_else(|| root.join("guests/cache/vmlinuz-6.1"), PathBuf::from)
}
