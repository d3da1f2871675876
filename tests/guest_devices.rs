//! Debian's kernels with devices: they make file systems, write and read them, take a lease, talk to an echo service, and
//! what they say of their disks is what the host finds on them. As ordinary guests, and as SNP guests, whose devices reach
//! nothing but what the guests share.
//!
//! What they need is fetched by `cargo xtask fetch`. One boot of each kernel runs each time; interrupts by wire and a
//! repeated run are for CI, or BIFOLD_GUESTS=all.
#![forbid(unsafe_code)]

mod guests;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use guests::debian::{busybox, fetched};
use guests::{Ended, guest, scratch};
use serde_json::Value;

/// Far beyond what any of them takes; a guest that hangs is to fail, not to stop the tests.
const LIMIT: Duration = Duration::from_secs(1200);

/// A kernel and how it is booted.
#[derive(Clone, Copy, Debug)]
struct Row {
    kernel: &'static str,
    /// Further words of the kernel's command line.
    append: &'static str,
    options: &'static [&'static str],
}

/// A run, and what it left on the host: disks by the name that the guest has for them, and the console.
struct Run {
    ended: Ended,
    disks: Vec<(&'static str, Vec<u8>)>,
    console: String,
}

/// What the read-only disk holds: not whole sectors.
fn image() -> Vec<u8> {
    (0..100_000_u64).map(|n| (n * n % 251) as u8).collect()
}

/// Boots the row's kernel with every device there is; `None` when something was not fetched.
fn boot(row: Row) -> Option<Run> {
    let kernel = fetched(&format!("vmlinuz-{}", row.kernel))?;
    let initrd = fetched("devices.cpio")?;
    let dir = scratch();
    let at = |name: &str| dir.join(name).display().to_string();
    fs::write(dir.join("image"), image()).expect("a file in the scratch directory");
    let append = format!("console=ttyS0 panic=-1 {}", row.append);
    let disks = [
        format!("size=16M,bus=virtio,out={}", at("vda")),
        format!("{},readonly", at("image")),
        format!("size=24M,bus=nvme,out={}", at("nvme0n1")),
    ];
    let mut words = vec![kernel.into_os_string(), "--initrd".into(), initrd.into_os_string(), "--append".into()];
    words.extend([append.as_str(), "--no-reboot", "--memory", "512M", "--net", "user", "--rng"].map(Into::into));
    words.extend(disks.iter().flat_map(|disk| ["--disk".into(), disk.into()]));
    words.push(format!("--virtio-console={}", at("console")).into());
    words.extend(row.options.iter().map(Into::into));
    let ended = guest(words, LIMIT);
    let read = |name: &str| fs::read(dir.join(name)).unwrap_or_default();
    let mut vdb = image();
    vdb.resize(vdb.len().next_multiple_of(512), 0);
    let disks = vec![("vda", read("vda")), ("vdb", vdb), ("nvme0n1", read("nvme0n1"))];
    let console = String::from_utf8_lossy(&read("console")).replace('\r', "");
    fs::remove_dir_all(&dir).expect("the scratch directory can be removed");
    Some(Run { ended, disks, console })
}

/// What sha256sum of the guest's own busybox says of `bytes`.
fn sha256(bytes: &[u8]) -> String {
    let dir = scratch();
    let file: PathBuf = dir.join("bytes");
    fs::write(&file, bytes).expect("a file in the scratch directory");
    let output = Command::new(busybox()).arg("sha256sum").arg(&file).output().expect("busybox runs");
    fs::remove_dir_all(&dir).expect("the scratch directory can be removed");
    let text = String::from_utf8(output.stdout).expect("a checksum is text");
    text.split_whitespace().next().expect("a checksum").to_owned()
}

/// Boots the row's kernel and compares what it says with what the host has.
fn check(row: Row) -> Option<Run> {
    let run = boot(row)?;
    let text = run.ended.text();
    let says = |line: &str| {
        assert!(
            text.lines().any(|said| said.trim_end() == line),
            "{row:?} does not say {line:?}:\n{}",
            run.ended.tail()
        );
    };
    for (name, bytes) in &run.disks {
        let read_only = u8::from(*name == "vdb");
        says(&format!("disk {name} sectors {} read-only {read_only}", bytes.len() / 512));
        says(&format!("disk {name} whole {}  -", sha256(bytes)));
        if read_only == 0 {
            says(&format!("disk {name} files read back"));
            assert_eq!(bytes[1080..1082], [0x53, 0xef], "{name} has the magic number of ext2");
        }
    }
    let numbers: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    says("net lease 10.0.2.15");
    says("net 3 packets transmitted, 3 packets received, 0% packet loss");
    says(&format!("net echo {}  -", sha256(numbers.as_bytes())));
    assert!(text.contains("\nrng "), "{row:?}: no random bytes:\n{}", run.ended.tail());
    says("console written");
    assert_eq!(run.console, "hello from the virtio console\n", "{row:?}");
    if row.options.windows(2).any(|words| words == ["--cpus", "2"]) {
        says("processors, one switched off: 1");
        says("processors, all switched on: 2");
        says("the second one counts to 9999");
    }
    says("guest: script ends with 0");
    for complaint in ["BUG:", "WARNING:", "Oops", "Call Trace", "I/O error", "timeout", "soft lockup"] {
        assert!(!text.contains(complaint), "{row:?}: the kernel complains: {complaint}\n{text}");
    }
    let json = run.ended.json();
    assert_eq!((run.ended.code, &json["outcome"]), (Some(0), &Value::from("power-off")), "{row:?}: {json}");
    let dma = json["dma"].as_array().expect("what devices did");
    assert_eq!(dma.len(), 6, "{row:?}: {json}");
    for device in dma {
        let bytes = |name: &str| device[name].as_u64().expect("a counter");
        assert!(bytes("read_bytes") > 0 && bytes("written_bytes") > 0, "{row:?}: {device}");
        assert_eq!(bytes("refused"), 0, "{row:?}: {device}");
    }
    Some(run)
}

/// Whether what takes long is to run.
fn everything() -> bool {
    std::env::var("BIFOLD_GUESTS").as_deref() == Ok("all") || std::env::var_os("CI").is_some()
}

#[test]
fn linux_6_1_with_every_device() {
    check(Row { kernel: "6.1", append: "", options: &["--cpus", "2", "--mmu", "npt", "--pages", "2m"] });
}

#[test]
fn linux_6_12_with_every_device() {
    check(Row { kernel: "6.12", append: "", options: &["--mmu", "ept"] });
}

/// Without message-signalled interrupts, over the I/O APIC's lines.
#[test]
fn linux_6_1_with_interrupts_by_wire() {
    if everything() {
        check(Row { kernel: "6.1", append: "pci=nomsi", options: &["--pages", "2m"] });
    }
}

/// The same command twice: the same console, the same counters, the same disks.
#[test]
fn linux_6_1_with_every_device_twice() {
    if !everything() {
        return;
    }
    let row = Row { kernel: "6.1", append: "", options: &["--pages", "2m", "--seed", "5"] };
    let (Some(first), Some(second)) = (check(row), boot(row)) else { return };
    assert_eq!(first.ended.text(), second.ended.text(), "the console of two runs of one command");
    assert_eq!(first.ended.stdout, second.ended.stdout, "the summary of two runs of one command");
    assert!(first.disks == second.disks, "the disks of two runs of one command");
}

/// The row's kernel as an SNP guest: its memory is private, so what devices moved went through bounce buffers that it
/// shares. A single access to anything else would have been refused and counted.
fn as_an_snp_guest(row: Row) {
    let Some(run) = check(row) else { return };
    let text = run.ended.text();
    for line in [
        "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP",
        "Memory encryption is active and system is using DMA bounce buffers",
    ] {
        assert!(text.contains(line), "{row:?} does not say {line:?}\n{text}");
    }
}

#[test]
fn linux_6_1_as_an_snp_guest_with_every_device() {
    as_an_snp_guest(Row { kernel: "6.1", append: "", options: &["--vm", "snp", "--cpus", "2"] });
}

#[test]
fn linux_6_12_as_an_snp_guest_with_every_device() {
    if everything() {
        as_an_snp_guest(Row { kernel: "6.12", append: "", options: &["--vm", "snp,boot=stage0", "--pages", "2m"] });
    }
}
