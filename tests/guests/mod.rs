//! Running the real program over real images, and looking at how it ended.

// Each test program uses its own part of this.
#![allow(dead_code, reason = "shared by several test programs")]

pub mod debian;
pub mod images;
pub mod rows;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How often a running program's memory is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// A directory of its own for one run.
pub fn scratch() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("run-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&dir).expect("the scratch directory can be made");
    dir
}

/// How a run of `bifold` ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when it was killed.
    pub code: Option<i32>,
    /// What the guest wrote to its console.
    pub console: Vec<u8>,
    /// What the program wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// The most memory it was seen to occupy.
    pub peak_kib: u64,
}

impl Ended {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not one JSON object: {error}: {self:?}"))
    }

    /// The console as text without carriage returns.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).replace('\r', "")
    }

    /// The last lines of the console, for messages of failed tests.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// Runs `bifold` with `words`. A program that does not end within `limit` is killed, and the test fails.
pub fn bifold<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>, limit: Duration) -> Ended {
    let dir = scratch();
    let path = |name: &str| dir.join(name);
    let file = |name: &str| File::create(path(name)).expect("a file in the scratch directory");
    let mut child = Command::new(env!("CARGO_BIN_EXE_bifold"))
        .args(words)
        .stdin(Stdio::null())
        .stdout(file("stdout"))
        .stderr(file("stderr"))
        .spawn()
        .expect("bifold starts");
    let begin = Instant::now();
    let mut peak_kib = 0;
    let status = loop {
        peak_kib = peak_kib.max(resident_peak_kib(child.id()));
        if let Some(status) = child.try_wait().expect("the state of a child") {
            break status;
        }
        if begin.elapsed() > limit {
            child.kill().expect("a child can be killed");
            child.wait().expect("a killed child ends");
            let stderr = fs::read_to_string(path("stderr")).unwrap_or_default();
            panic!("bifold did not end within {limit:?}:\n{stderr}");
        }
        std::thread::sleep(GLANCE);
    };
    let read = |name: &str| String::from_utf8_lossy(&fs::read(path(name)).expect("an output file")).into_owned();
    let ended =
        Ended { code: status.code(), console: Vec::new(), stdout: read("stdout"), stderr: read("stderr"), peak_kib };
    fs::remove_dir_all(&dir).expect("the scratch directory can be removed");
    assert!(!ended.stderr.contains("panicked"), "bifold panicked: {ended:?}");
    ended
}

/// [`bifold`]`run` with `--json` and the console in a file.
pub fn guest<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>, limit: Duration) -> Ended {
    let dir = scratch();
    let serial = dir.join("console");
    let mut command: Vec<std::ffi::OsString> = vec!["run".into(), "--json".into(), "--serial".into()];
    command.push(serial.clone().into());
    command.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
    let ended = bifold(command, limit);
    let console = fs::read(&serial).unwrap_or_default();
    fs::remove_dir_all(&dir).expect("the scratch directory can be removed");
    Ended { console, ..ended }
}

/// The peak of resident memory as the kernel keeps it; 0 once the process has ended.
fn resident_peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
