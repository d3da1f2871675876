//! What `cargo xtask fetch` left in `guests/cache`: Debian's kernels and programs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::scratch;

fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/cache")
}

/// A file of the cache. `None`, after a message that cannot be overlooked, when it was not fetched; in CI that is a
/// failure.
pub fn fetched(name: &str) -> Option<PathBuf> {
    let path = cache().join(name);
    if path.exists() {
        return Some(path);
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let message = format!("\nSKIPPED: {test}: guests/cache/{name} is missing; `cargo xtask fetch` downloads it\n");
    assert!(std::env::var_os("CI").is_none(), "{message}");
    // Not by a macro: libtest would swallow what a passing test prints.
    let _ = std::io::stderr().write_all(message.as_bytes());
    None
}

/// The guests' own busybox, which runs on this host too. It is there when a ramdisk is.
pub fn busybox() -> PathBuf {
    cache().join("root").join("bin").join("busybox")
}

/// What the script of a ramdisk prints on this host, run by the same busybox and the same programs.
pub fn on_the_host(script: &str) -> String {
    let dir = scratch();
    let busybox = busybox();
    let (applets, work) = (dir.join("bin"), dir.join("work"));
    for dir in [&applets, &work] {
        fs::create_dir(dir).expect("a directory in the scratch directory");
    }
    let installed = Command::new(&busybox).args(["--install", "-s"]).arg(&applets).status().expect("busybox runs");
    assert!(installed.success(), "busybox installs its applets");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/initramfs");
    let output = Command::new(&busybox)
        .arg("sh")
        .arg(scripts.join(script))
        .arg(&work)
        .env_clear()
        .env("PATH", &applets)
        .env("BUSYBOX", &busybox)
        .env("ROOT", cache().join("root"))
        .env("INPUT", scripts.join("input.c"))
        .stdin(Stdio::null())
        .output()
        .expect("busybox runs");
    fs::remove_dir_all(&dir).expect("the scratch directory can be removed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{script} fails on the host: {errors}");
    String::from_utf8(output.stdout).expect("the script prints text")
}
