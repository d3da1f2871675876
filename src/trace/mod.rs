//! The events of a run: stamped, chosen, digested, and given to whoever writes or counts them.
//!
//! [`Recorder`] is one run's. A [`Lens`] is the view of one thread of the machine: it knows the time, the processor and
//! the instruction at which it looks, and gives the [`Task`] with which the pipeline then reports. Every event becomes a
//! [`Record`], goes into the digest, and to each [`Consumer`]: a [`writer::Writer`] of text, JSON lines or Perfetto's
//! format, or the report's model.
//!
//! Always true: the digest is a function of the records, host time left out, so that two runs of the same image,
//! configuration and seed have the same; a record is written and forgotten, so that memory does not grow with the run;
//! a consumer that fails is told of at the end and does not stop the run.
//!
//! Left out: a consumer of its own for each processor under `--parallel`; there all meet at one lock.

pub mod choice;
pub mod jsonl;
mod perfetto;
#[cfg(test)]
pub(crate) mod shared;
mod text;
pub mod timeline;
pub mod writer;

use std::cell::Cell;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use emu_core::Gva;
use emu_core::event::{Event, EventSink, Field, Value};
use emu_core::sync::Task;
use emu_core::time::Instant;
use xxhash_rust::xxh3::Xxh3;

pub use choice::{Choice, Format};

/// When, on which processor and at which instruction something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Virtual time: retired units.
    pub time: Instant,
    /// The processor on whose behalf; `None` is the VMM or a device.
    pub vcpu: Option<u16>,
    /// The guest's instruction pointer, where it is known.
    pub rip: Option<Gva>,
}

/// An event with its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When and where.
    pub stamp: Stamp,
    /// Nanoseconds of the host's clock since the run began, if anybody asked for them.
    pub host_ns: Option<u64>,
    /// What.
    pub event: Event,
}

/// What the beginning and the end of a trace say: names and values that are the run's own, like `seed` and `outcome`.
pub type Facts = [(&'static str, String)];

/// Takes the records of a run.
pub trait Consumer: Send {
    /// The run begins.
    fn begin(&mut self, facts: &Facts);
    /// One record.
    fn take(&mut self, record: &Record);
    /// The run is over.
    ///
    /// # Errors
    /// The first failure to write since the beginning.
    fn finish(&mut self, facts: &Facts) -> io::Result<()>;
}

/// A clock of the host: nanoseconds since some moment.
pub type HostClock = Box<dyn Fn() -> u64 + Send>;

/// How many records there were, and their digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Recorded {
    /// Records.
    pub events: u64,
    /// XXH3 of all of them, in their order.
    pub digest: u64,
}

struct Inner {
    digest: Xxh3,
    events: u64,
    clock: Option<HostClock>,
    consumers: Vec<Box<dyn Consumer>>,
}

/// See the module.
pub struct Recorder {
    choice: Choice,
    inner: Mutex<Inner>,
}

impl core::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Recorder").field("choice", &self.choice).finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder of the events of `choice`.
    pub fn new(choice: Choice, clock: Option<HostClock>, consumers: Vec<Box<dyn Consumer>>) -> Recorder {
        let inner = Inner { digest: Xxh3::new(), events: 0, clock, consumers };
        Recorder { choice, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all consumers what run this is.
    pub fn begin(&self, facts: &Facts) {
        self.inner().consumers.iter_mut().for_each(|consumer| consumer.begin(facts));
    }

    fn record(&self, stamp: Stamp, event: Event) {
        if !self.choice.wants(event.kind()) {
            return;
        }
        let Inner { digest, events, clock, consumers } = &mut *self.inner();
        *events += 1;
        add(digest, stamp, event);
        let record = Record { stamp, host_ns: clock.as_ref().map(|now| now()), event };
        consumers.iter_mut().for_each(|consumer| consumer.take(&record));
    }

    /// What was recorded so far.
    pub fn recorded(&self) -> Recorded {
        let inner = self.inner();
        Recorded { events: inner.events, digest: inner.digest.digest() }
    }

    /// Tells all consumers that the run is over and how.
    ///
    /// # Errors
    /// The first failure of the first consumer that failed.
    pub fn finish(&self, facts: &Facts) -> io::Result<()> {
        self.inner().consumers.iter_mut().map(|consumer| consumer.finish(facts)).fold(Ok(()), Result::and)
    }
}

/// Adds a record to a digest. Every part that may be absent says whether it is.
fn add(digest: &mut Xxh3, stamp: Stamp, event: Event) {
    let optional = |value: Option<u64>| value.map_or(u64::MAX, |value| value);
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&stamp.time.units().to_le_bytes());
    bytes[8..16].copy_from_slice(&optional(stamp.vcpu.map(u64::from)).to_le_bytes());
    bytes[16..].copy_from_slice(&optional(stamp.rip.map(Gva::raw)).to_le_bytes());
    digest.update(&bytes);
    digest.update(event.kind().name().as_bytes());
    event.visit(&mut |_, value| match value {
        Value::Hex(n) | Value::Dec(n) => digest.update(&n.to_le_bytes()),
        Value::Int(n) => digest.update(&n.to_le_bytes()),
        Value::Word(word) => digest.update(word.as_bytes()),
    });
}

/// The view of one thread of the machine on what it does.
#[derive(Default)]
pub struct Lens {
    recorder: Option<Arc<Recorder>>,
    stamp: Cell<Stamp>,
}

impl Lens {
    /// A view whose events go to `recorder`.
    pub fn new(recorder: Arc<Recorder>) -> Lens {
        Lens { recorder: Some(recorder), stamp: Cell::default() }
    }

    /// A view of the same recorder for another thread.
    pub fn another(&self) -> Lens {
        Lens { recorder: self.recorder.clone(), stamp: self.stamp.clone() }
    }

    /// Whether anybody records.
    pub fn is_recording(&self) -> bool {
        self.recorder.is_some()
    }

    /// From now on events happen as `stamp` says, which is asked for only when somebody records.
    #[inline]
    pub fn point_at(&self, stamp: impl FnOnce() -> Stamp) {
        if self.is_recording() {
            self.stamp.set(stamp());
        }
    }

    /// The task to do things with.
    #[inline]
    pub fn task(&self) -> Task<'_> {
        match &self.recorder {
            None => Task::QUIET,
            Some(_) => Task::reporting(self),
        }
    }

    /// What was recorded so far, if anything is.
    pub fn recorded(&self) -> Option<Recorded> {
        self.recorder.as_ref().map(|recorder| recorder.recorded())
    }
}

impl EventSink for Lens {
    fn report(&self, event: Event) {
        if let Some(recorder) = &self.recorder {
            recorder.record(self.stamp.get(), event);
        }
    }
}

/// The fields of the stamp as formats write them, before the event's own.
fn stamp_fields(record: &Record, each: &mut dyn FnMut(&'static str, Value<'static>)) {
    each("t", Value::Dec(record.stamp.time.units()));
    if let Some(ns) = record.host_ns {
        each("ns", Value::Dec(ns));
    }
    if let Some(vcpu) = record.stamp.vcpu {
        each("vcpu", vcpu.put());
    }
    if let Some(rip) = record.stamp.rip {
        each("rip", rip.put());
    }
}

#[cfg(test)]
mod tests;
