//! What a processor does to its share.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::memory::{load, store};

const PAGE: u64 = 0x1000;

/// Where the last share ends, and how many there are.
static END: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(1);

/// Sets both, before other processors start.
pub fn share(end: u64, count: u64) {
    END.store(end, Relaxed);
    COUNT.store(count, Relaxed);
}

/// The last word of a share is not what was written.
#[derive(Clone, Copy)]
pub struct Failure(u64);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the page at {:#x} lost its word", self.0)
    }
}

/// A share of memory.
pub struct Area {
    base: u64,
    end: u64,
}

impl Area {
    /// The share of processor `n`, of memory from `base` on.
    pub fn of(n: u64, base: u64) -> Area {
        let bytes = (END.load(Relaxed) - base) / COUNT.load(Relaxed) & !(PAGE - 1);
        Area { base: base + n * bytes, end: base + (n + 1) * bytes }
    }
}

/// Writes every page; how many there were.
pub fn all(area: Area, _private: bool) -> Result<u64, Failure> {
    let mut at = area.base;
    while at < area.end {
        store(at, at);
        at += PAGE;
    }
    let last = area.end - PAGE;
    if load::<u64>(last) == last { Ok((area.end - area.base) / PAGE) } else { Err(Failure(last)) }
}
