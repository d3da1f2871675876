//! Runs of Debian's kernels: a row of the table of what is booted, and how it must end.

use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use super::debian::{fetched, on_the_host};
use super::{Ended, guest};

/// Far beyond what any of them takes; a guest that hangs is to fail, not to stop the tests.
const LIMIT: Duration = Duration::from_secs(1200);

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub kernel: &'static str,
    pub cpus: u32,
    pub mmu: &'static str,
    pub pages: &'static str,
    pub seed: u32,
}

/// A row with seed 0.
pub const fn row(kernel: &'static str, cpus: u32, mmu: &'static str, pages: &'static str) -> Row {
    Row { kernel, cpus, mmu, pages, seed: 0 }
}

/// Boots the row's kernel with a ramdisk; `None` when something was not fetched.
pub fn boot(row: Row, ramdisk: &str) -> Option<Ended> {
    boot_with(row, ramdisk, &[])
}

/// [`boot`] with further flags.
pub fn boot_with(row: Row, ramdisk: &str, more: &[&str]) -> Option<Ended> {
    let kernel = fetched(&format!("vmlinuz-{}", row.kernel))?;
    let initrd = fetched(ramdisk)?;
    let Row { cpus, seed, .. } = row;
    let (cpus, seed) = (cpus.to_string(), seed.to_string());
    let options = ["--mmu", row.mmu, "--pages", row.pages, "--cpus", &cpus, "--seed", &seed, "--memory", "1G"];
    // A panic becomes a reset at once, which ends the run with another outcome than a power-off.
    let append = ["--no-reboot", "--append", "console=ttyS0 panic=-1"];
    let mut words = vec![kernel.into_os_string(), "--initrd".into(), initrd.into_os_string()];
    words.extend(options.into_iter().chain(append).chain(more.iter().copied()).map(Into::into));
    Some(guest(words, LIMIT))
}

/// What the ramdisk's script printed.
pub fn script_output(row: Row, ended: &Ended) -> String {
    let text = ended.text();
    let begin = "guest: script begins\n";
    let (_, rest) =
        text.split_once(begin).unwrap_or_else(|| panic!("{row:?} did not come to /init:\n{}", ended.tail()));
    let (output, _) = rest.split_once("guest: script ends with 0\n").unwrap_or_else(|| {
        panic!("{row:?}: the script did not end well:\n{}\n{}", ended.tail(), ended.stderr);
    });
    output.to_owned()
}

/// The run ended as it should: the guest saw its processors, its script printed what it prints on the host, and it
/// switched off.
pub fn check(row: Row, ended: &Ended, script: &str) {
    let output = script_output(row, ended);
    let expected = on_the_host(script);
    for (guest, host) in output.lines().zip(expected.lines()) {
        assert_eq!(guest, host, "{row:?}: the guest's line against the host's");
    }
    assert_eq!(output, expected, "{row:?}");
    let text = ended.text();
    let identity = text.lines().find(|line| line.starts_with("guest: kernel ")).unwrap_or_default();
    assert!(identity.contains(&format!("kernel {}.", row.kernel)), "{row:?}: {identity}");
    assert!(identity.contains(&format!("CPUs {},", row.cpus)), "{row:?}: {identity}");
    for complaint in ["BUG:", "WARNING:", "Oops", "Call Trace", "soft lockup", "rcu_sched self-detected", "unstable"] {
        assert!(!text.contains(complaint), "{row:?}: the kernel complains: {complaint}\n{text}");
    }
    let json = ended.json();
    assert_eq!((ended.code, &json["outcome"]), (Some(0), &Value::from("power-off")), "{row:?}: {json}");
}

/// Whether every combination is to run.
pub fn all() -> bool {
    std::env::var("BIFOLD_GUESTS").as_deref() == Ok("all")
}

/// Whether every row is to run; otherwise it is said that `what` does not.
pub fn every_row(what: &dyn core::fmt::Debug) -> bool {
    let every = all() || std::env::var_os("CI").is_some();
    if !every {
        say(&format!("{what:?} is not run: that is for CI, or BIFOLD_GUESTS=all\n"));
    }
    every
}

/// Not by a macro: libtest would swallow what a passing test prints.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}
