//! The kernels in a guest: Linux boots in this process with the program as its `/init`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use bifold::loader::Image;
use bifold::machine::{BuildError, Builder, Limits, Outcome, RunError};
use rustix::time::{ClockId, clock_gettime};

use super::markers::{Marker, Markers};
use super::newc;

/// What came of one kernel.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its checksum.
    pub checksum: String,
    /// Host processor time of the best repeat.
    pub time: Duration,
    /// Instructions of the guest, kernel included, during that repeat.
    pub instructions: u64,
}

/// What came of a guest.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Host processor time and guest instructions from building the machine to the first word of `/init`.
    pub boot: Option<(Duration, u64)>,
    /// By name.
    pub kernels: BTreeMap<String, Guest>,
}

impl Run {
    /// Takes from `other` what it did faster, or alone.
    pub fn keep_best_of(&mut self, other: Run) {
        self.boot = [self.boot, other.boot].into_iter().flatten().min();
        for (name, kernel) in other.kernels {
            match self.kernels.entry(name) {
                Entry::Vacant(place) => _ = place.insert(kernel),
                Entry::Occupied(mut place) if kernel.time < place.get().time => _ = place.insert(kernel),
                Entry::Occupied(_) => {}
            }
        }
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The machine could not be built.
    #[error("cannot build the machine: {0}")]
    Build(#[from] BuildError),
    /// The host could not go on.
    #[error("cannot run the machine: {0}")]
    Run(#[from] RunError),
    /// The guest ended early.
    #[error("the guest ended before it was done: {outcome:?}; its last words:\n{words}")]
    Ended {
        /// How.
        outcome: Outcome,
        /// The end of its console output.
        words: String,
    },
}

/// How much the guest may execute before it is given up.
const PATIENCE: Limits = Limits { max_instructions: Some(100_000_000_000) };

/// Processor time of this thread: what a shared host does elsewhere is not the machine's fault.
fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Boots `kernel` on what `builder` makes, with `program` as `/init` and measures between its markers; the best of `repeats` counts.
///
/// Markers are seen at the end of a turn, which makes each figure uncertain by a few hundred microseconds.
pub fn run(
    builder: Builder,
    kernel: &Image<'_>,
    program: &[u8],
    scale: u64,
    repeats: u64,
    names: &[&str],
) -> Result<Run, GuestError> {
    let started = now();
    let mut machine = builder
        .memory(512 << 20)
        .append(&format!("console=ttyS0 rdinit=/init -- {scale} {repeats} {}", names.join(" ")))
        .initrd(newc::with_init(program))
        .build(kernel)?;
    let mut watch =
        Watch { started, begun: (started, 0), run: Run::default(), done: false, markers: Markers::default() };
    let mut words = Vec::new();
    let outcome = loop {
        // Short legs: a turn's length is how exactly a marker is placed in time.
        let leg = Limits { max_instructions: Some(machine.instructions() + 200_000) };
        let outcome = machine.run(leg, |_| true)?;
        let bytes = machine.take_serial();
        watch.see(&bytes, machine.instructions());
        words.extend(bytes);
        let seen = words.len().saturating_sub(4000);
        words.drain(..seen);
        let patient = Some(machine.instructions()) < PATIENCE.max_instructions;
        if watch.done || outcome != Outcome::LimitReached || !patient {
            break outcome;
        }
    };
    if watch.done {
        Ok(watch.run)
    } else {
        Err(GuestError::Ended { outcome, words: String::from_utf8_lossy(&words).into_owned() })
    }
}

struct Watch {
    started: Duration,
    begun: (Duration, u64),
    run: Run,
    done: bool,
    markers: Markers,
}

impl Watch {
    fn see(&mut self, bytes: &[u8], instructions: u64) {
        let time = now();
        for marker in self.markers.feed(bytes) {
            match marker {
                Marker::Begin(_) => {
                    self.run.boot.get_or_insert((time - self.started, instructions));
                    self.begun = (time, instructions);
                }
                Marker::End { name, checksum, .. } => {
                    let spent = time - self.begun.0;
                    let guest = Guest { checksum, time: spent, instructions: instructions - self.begun.1 };
                    let best = self.run.kernels.entry(name).or_insert_with(|| guest.clone());
                    if guest.time < best.time {
                        *best = guest;
                    }
                }
                Marker::Done => self.done = true,
            }
        }
    }
}
