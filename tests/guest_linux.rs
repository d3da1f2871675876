//! Debian's kernels, unmodified: they boot, run a workload whose results the host confirms, and switch off.
//!
//! What they need is fetched by `cargo xtask fetch`. Four boots run each time: each kernel, each kind of paging, turns and
//! host threads, a quiet and a busy VMM are in one of them at least. CI runs every row; every combination of the options is for
//! `cargo xtask guests --all`. What does not run says so.
#![forbid(unsafe_code)]

mod guests;

use guests::debian::fetched;
use guests::rows::{Row, all, boot, boot_with, check, every_row, row, say};

/// The workload of busybox under one row of the table.
fn workload(row: Row) {
    if let Some(ended) = boot(row, "workload.cpio") {
        check(row, &ended, "workload.sh");
    }
}

/// [`workload`] for a row of the whole table.
fn workload_of_all(row: Row) {
    if every_row(&row) {
        workload(row);
    }
}

#[test]
fn linux_6_1_one_cpu_npt_4k() {
    workload_of_all(row("6.1", 1, "npt", "4k"));
}

#[test]
fn linux_6_1_one_cpu_ept_2m() {
    workload_of_all(row("6.1", 1, "ept", "2m"));
}

#[test]
fn linux_6_1_two_cpus_ept_4k() {
    workload_of_all(row("6.1", 2, "ept", "4k"));
}

#[test]
fn linux_6_1_two_cpus_by_another_seed() {
    workload_of_all(Row { seed: 12345, ..row("6.1", 2, "npt", "2m") });
}

#[test]
fn linux_6_1_four_cpus_npt_1g() {
    workload_of_all(row("6.1", 4, "npt", "1g"));
}

#[test]
fn linux_6_1_one_cpu_shadow_2m() {
    workload_of_all(row("6.1", 1, "shadow", "2m"));
}

#[test]
fn linux_6_12_two_cpus_shadow_4k() {
    workload_of_all(row("6.12", 2, "shadow", "4k"));
}

#[test]
fn linux_6_12_one_cpu_npt_2m() {
    workload_of_all(row("6.12", 1, "npt", "2m"));
}

#[test]
fn linux_6_12_two_cpus_ept_1g() {
    workload_of_all(row("6.12", 2, "ept", "1g"));
}

/// Processors on host threads of their own: locked instructions, flushes and clocks hold beside one another.
#[test]
fn linux_6_12_two_cpus_at_the_same_time() {
    let row = row("6.12", 2, "npt", "4k");
    if let Some(ended) = boot_with(row, "workload.cpio", &["--parallel"]) {
        check(row, &ended, "workload.sh");
    }
}

/// The same command twice: the same bytes on the console, the same counters to the last one.
#[test]
fn linux_6_1_two_cpus_twice() {
    let row = row("6.1", 2, "npt", "2m");
    if !every_row(&row) {
        return;
    }
    let Some(first) = boot(row, "workload.cpio") else { return };
    check(row, &first, "workload.sh");
    let second = boot(row, "workload.cpio").expect("it was there a moment ago");
    assert_eq!(first.text(), second.text(), "the console of two runs of one command");
    assert_eq!(first.console, second.console);
    assert_eq!(first.stdout, second.stdout, "the summary of two runs of one command");
}

/// A correct host may balloon, replug, zap and convert while the kernel runs: the workload prints what it prints.
fn workload_beside_a_busy_vmm(row: Row, more: &[&str]) {
    let Some(ended) = boot_with(row, "workload.cpio", more) else { return };
    check(row, &ended, "workload.sh");
    let json = ended.json();
    let kinds = json["vmm"]["random"].as_object().expect("random actions are tallied by kind");
    let sum = |key: &str| -> u64 { kinds.values().filter_map(|tally| tally[key].as_u64()).sum() };
    assert!(json["checks"].as_u64() > Some(100), "{row:?}: {}", json["checks"]);
    if all() {
        let (checks, done, refused) = (&json["checks"], sum("done"), sum("refused"));
        say(&format!("{row:?} {more:?}: {done} actions, {refused} refused, {checks} checks\n"));
    }
    assert!(sum("done") > 500 && sum("refused") == 0, "{row:?}: {}", json["vmm"]);
}

#[test]
fn linux_6_1_beside_a_busy_vmm() {
    workload_beside_a_busy_vmm(row("6.1", 1, "npt", "4k"), &["--vmm-random", "11", "--check-invariants"]);
}

#[test]
fn linux_6_1_in_private_memory_beside_a_busy_vmm() {
    let more = ["--vm", "sw-protected,ram=private", "--vmm-random", "12", "--check-invariants"];
    workload_beside_a_busy_vmm(row("6.1", 2, "ept,pml=on", "2m"), &more);
}

#[test]
fn linux_6_1_shadowed_beside_a_busy_vmm() {
    workload_beside_a_busy_vmm(row("6.1", 1, "shadow", "2m"), &["--vmm-random", "13", "--check-invariants"]);
}

/// A busy VMM beside processors in turns, under every kind of paging and page size, by a few seeds each.
#[test]
fn every_kind_of_paging_beside_a_busy_vmm() {
    if !all() {
        return;
    }
    let kinds = ["npt,slot-zap=all", "ept,pml=on,eager-page-split=off", "ept,ad=off,nx-huge-pages=on", "shadow"];
    for (n, mmu) in (0..).zip(kinds) {
        for (m, pages) in (0..).zip(["4k", "2m", "1g"]) {
            let seed = (100 + 10 * n + m).to_string();
            let row = row("6.1", 1 + m, mmu, pages);
            workload_beside_a_busy_vmm(row, &["--vmm-random", &seed, "--check-invariants"]);
        }
    }
}

/// perl, zstd, xz, openssl, lua, python and the C compiler do in the guest what they do on the host.
#[test]
fn programs_of_seven_packages() {
    let row = row("6.1", 1, "npt", "2m");
    if !every_row(&row) {
        return;
    }
    if fetched("root/usr/bin/perl").is_none() {
        return;
    }
    if let Some(ended) = boot(row, "programs.cpio") {
        check(row, &ended, "programs.sh");
    }
}

/// Every kernel with 1, 2 and 4 processors under every kind of nested paging and page size.
#[test]
fn every_combination() {
    if !all() {
        return;
    }
    for kernel in ["6.1", "6.12"] {
        for cpus in [1, 2, 4] {
            for mmu in ["npt", "ept", "shadow"] {
                for pages in ["4k", "2m", "1g"] {
                    workload(row(kernel, cpus, mmu, pages));
                }
            }
        }
    }
}
