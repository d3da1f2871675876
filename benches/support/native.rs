//! The kernels on this machine's own processor.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;

use super::markers::{Marker, Markers};

/// What came of one kernel.
#[derive(Clone, Debug)]
pub struct Native {
    /// Its checksum.
    pub checksum: String,
    /// Processor time of the best repeat.
    pub nanoseconds: u64,
}

/// Runs `names` and keeps the best of `repeats`.
pub fn run(program: &Path, scale: u64, repeats: u64, names: &[&str]) -> io::Result<BTreeMap<String, Native>> {
    let output = Command::new(program).args([scale.to_string(), repeats.to_string()]).args(names).output()?;
    let mut best: BTreeMap<String, Native> = BTreeMap::new();
    for marker in Markers::default().feed(&output.stdout) {
        let Marker::End { name, checksum, nanoseconds } = marker else { continue };
        let known = best.entry(name).or_insert(Native { checksum, nanoseconds });
        known.nanoseconds = known.nanoseconds.min(nanoseconds);
    }
    Ok(best)
}
