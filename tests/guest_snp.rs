//! Debian's kernels, unmodified, as SNP guests: they say that SEV-SNP is active, run the workload that they run as ordinary
//! guests with the same output, and switch off. With everything launched, and with stage0 that validates RAM from inside.
#![forbid(unsafe_code)]

mod guests;

use guests::Ended;
use guests::rows::{Row, all, boot_with, check, every_row, row};

/// What the kernel prints when all three layers are in force.
const ACTIVE: &str = "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP";

fn boot(row: Row, vm: &str, more: &[&str]) -> Option<Ended> {
    let words: Vec<&str> = ["--vm", vm].iter().chain(more).copied().collect();
    boot_with(row, "workload.cpio", &words)
}

/// The workload under SNP, with every invariant looked at on the way.
fn workload(row: Row, vm: &str) {
    let Some(ended) = boot(row, vm, &["--check-invariants"]) else { return };
    check(row, &ended, "workload.sh");
    let text = ended.text();
    assert!(text.contains(ACTIVE), "{row:?} {vm}: SNP is not active\n{text}");
    let snp = &ended.json()["snp"];
    let count = |name: &str| snp[name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {snp}"));
    assert!(count("page_state_changes") > 10 && count("vmgexits") > 1000, "{row:?} {vm}: {snp}");
    let assigned: u64 = snp["assigned"].as_object().expect("by size").values().filter_map(|n| n.as_u64()).sum();
    assert!(assigned > 100, "{row:?} {vm}: {snp}");
}

#[test]
fn linux_6_1_launched_whole() {
    workload(row("6.1", 1, "npt", "4k"), "snp");
}

#[test]
fn linux_6_1_two_cpus_behind_stage0() {
    let row = row("6.1", 2, "npt", "2m");
    if every_row(&row) {
        workload(row, "snp,boot=stage0");
    }
}

#[test]
fn linux_6_12_four_cpus_launched_whole() {
    let row = row("6.12", 4, "npt", "1g");
    if every_row(&row) {
        workload(row, "snp,rmp=merge");
    }
}

#[test]
fn linux_6_12_behind_stage0() {
    workload(row("6.12", 1, "npt", "2m"), "snp,boot=stage0,assign=eager");
}

/// Processors on host threads of their own.
#[test]
fn linux_6_12_two_cpus_at_the_same_time() {
    let row = row("6.12", 2, "npt", "4k");
    if !every_row(&row) {
        return;
    }
    if let Some(ended) = boot(row, "snp", &["--parallel"]) {
        check(row, &ended, "workload.sh");
        assert!(ended.text().contains(ACTIVE), "{row:?}");
    }
}

/// The same command twice: the same bytes on the console, the same counters to the last one, the same digest of events.
#[test]
fn linux_6_1_twice() {
    let row = row("6.1", 2, "npt", "4k");
    if !every_row(&row) {
        return;
    }
    let again = || boot(row, "snp", &["--trace", "digest"]);
    let Some(first) = again() else { return };
    check(row, &first, "workload.sh");
    let second = again().expect("it was there a moment ago");
    assert_eq!(first.text(), second.text(), "the console of two runs of one command");
    assert_eq!(first.stdout, second.stdout, "the summary of two runs of one command");
}

/// Every kernel with 1, 2 and 4 processors over every page size, launched in both ways.
#[test]
fn every_combination() {
    if !all() {
        return;
    }
    for kernel in ["6.1", "6.12"] {
        for cpus in [1, 2, 4] {
            for pages in ["4k", "2m", "1g"] {
                for vm in ["snp", "snp,boot=stage0"] {
                    workload(row(kernel, cpus, "npt", pages), vm);
                }
            }
        }
    }
}
