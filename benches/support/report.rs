//! The table.

use std::collections::BTreeMap;

use super::guest::Run;
use super::native::Native;

/// The integer kernels whose speed is given in instructions a second.
pub const INTEGER: [&str; 10] = ["alu", "crc", "sieve", "sort", "mat", "tree", "state", "fib", "big", "big2"];
/// The kernels whose slowdown against the host is given.
pub const RATIO: [&str; 10] =
    ["loop", "sieve", "crc", "dhry", "bytecode", "sse2", "chase", "string", "syscall", "fault"];
/// Code that changes itself, given as time for each change.
pub const PATCH: &str = "smc";
/// Patches in one run of [`PATCH`] at scale 1: rounds in the program's table times patches a round.
const PATCHES: u64 = 50_000;

/// Every kernel once, in the order of the table.
pub fn names() -> Vec<&'static str> {
    let mut names = INTEGER.to_vec();
    names.extend(RATIO.iter().filter(|name| !INTEGER.contains(name)));
    names.push(PATCH);
    names
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| (values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp())
}

/// Kernels that spend their time in the guest's kernel, and with it in faults, or on code of their own making.
const NOT_CPU_BOUND: [&str; 3] = ["syscall", "fault", PATCH];

/// Prints what both guests took and the ratio. Returns the kernels whose checksums differ.
pub fn print_snp(plain: &Run, snp: &Run) -> Vec<String> {
    let mut differ = Vec::new();
    let mut ratios = Vec::new();
    println!("| kernel | plain ms | SNP ms | ratio |");
    println!("|---|---:|---:|---:|");
    for name in names() {
        let (Some(outside), Some(inside)) = (plain.kernels.get(name), snp.kernels.get(name)) else { continue };
        if outside.checksum != inside.checksum {
            differ.push(name.to_owned());
        }
        let [outside, inside] = [outside, inside].map(|guest| guest.time.as_secs_f64() * 1e3);
        if !NOT_CPU_BOUND.contains(&name) {
            ratios.push(inside / outside);
        }
        println!("| {name} | {outside:.1} | {inside:.1} | {:.3} |", inside / outside);
    }
    println!();
    if let Some(mean) = geometric_mean(&ratios) {
        println!("CPU-bound work in an SNP guest against outside, geometric mean of {}: {mean:.3}", ratios.len());
    }
    for (name, run) in [("plain", plain), ("SNP", snp)] {
        if let Some((time, _)) = run.boot {
            println!("boot to /init, {name}: {:.2} s", time.as_secs_f64());
        }
    }
    differ
}

/// Prints everything that is known. Returns the kernels whose checksums differ.
pub fn print(native: &BTreeMap<String, Native>, guest: &Run, scale: u64) -> Vec<String> {
    let mut differ = Vec::new();
    let (mut speeds, mut ratios) = (Vec::new(), Vec::new());
    println!("| kernel | guest MIPS | native ms | guest ms | ratio |");
    println!("|---|---:|---:|---:|---:|");
    for name in names() {
        let n = native.get(name);
        let g = guest.kernels.get(name);
        let native_ms = n.map(|n| n.nanoseconds as f64 / 1e6);
        let guest_ms = g.map(|g| g.time.as_secs_f64() * 1e3);
        let mips = g.map(|g| g.instructions as f64 / g.time.as_secs_f64() / 1e6);
        let ratio = guest_ms.zip(native_ms).map(|(g, n)| g / n);
        if let Some((n, g)) = n.zip(g)
            && n.checksum != g.checksum
        {
            differ.push(name.to_owned());
        }
        if INTEGER.contains(&name) {
            speeds.extend(mips);
        }
        if RATIO.contains(&name) {
            ratios.extend(ratio);
        }
        let cell = |v: Option<f64>, digits: usize| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        println!(
            "| {name} | {} | {} | {} | {} |",
            cell(mips, 0),
            cell(native_ms, 2),
            cell(guest_ms, 1),
            cell(ratio, 1)
        );
    }
    println!();
    if let Some(mean) = geometric_mean(&speeds) {
        println!("guest speed, geometric mean of {}: {mean:.0} MIPS", speeds.len());
    }
    if let Some(mean) = geometric_mean(&ratios) {
        println!("slower than native, geometric mean of {}: {mean:.1} times", ratios.len());
    }
    if let Some(smc) = guest.kernels.get(PATCH) {
        println!("self-modifying code: {:.2} us a patch", smc.time.as_secs_f64() * 1e6 / (PATCHES * scale) as f64);
    }
    if let Some((time, instructions)) = guest.boot {
        println!(
            "boot to /init: {:.2} s, {:.0} million instructions ({:.0} MIPS)",
            time.as_secs_f64(),
            instructions as f64 / 1e6,
            instructions as f64 / time.as_secs_f64() / 1e6
        );
    }
    differ
}
