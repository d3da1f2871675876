//! All of RAM made valid, in the largest pages that the host has assigned, but for what the launch made valid already:
//! validating that again would look like a host that shows a page twice.

use crate::parameters::{Parameters, Range, Reason};
use crate::snp::{Size, Validation, validate};

const SMALL: u64 = 0x1000;
const LARGE: u64 = 0x20_0000;
/// Where the first mebibyte ends, all of which a kernel may look at.
const MIB: u64 = 0x10_0000;
/// RAM, as E820h numbers it.
const RAM: u64 = 1;

impl Range {
    /// First address behind it.
    const fn end(&self) -> u64 {
        self.base + self.len_bytes
    }
}

/// Makes valid what the map calls RAM, and the whole of the first mebibyte.
pub fn all(parameters: &Parameters) -> Result<(), Reason> {
    outside(parameters, Range { base: 0, len_bytes: MIB })?;
    let map = parameters.map.get(..parameters.nr_map as usize).ok_or(Reason::Parameters)?;
    for entry in map.iter().filter(|entry| entry.kind == RAM) {
        let base = entry.range.base.max(MIB);
        if entry.range.end() > base {
            outside(parameters, Range { base, len_bytes: entry.range.end() - base })?;
        }
    }
    Ok(())
}

/// The parts of `range` that were not launched.
fn outside(parameters: &Parameters, range: Range) -> Result<(), Reason> {
    let launched = parameters.launched.get(..parameters.nr_launched as usize).ok_or(Reason::Parameters)?;
    let mut at = range.base;
    for known in launched.iter().filter(|known| known.end() > range.base && known.base < range.end()) {
        if known.base > at {
            pages(at, known.base)?;
        }
        at = at.max(known.end());
    }
    pages(at, range.end())
}

fn pages(mut at: u64, end: u64) -> Result<(), Reason> {
    while at < end {
        if at.is_multiple_of(LARGE) && end - at >= LARGE {
            match validate(at, Size::Large) {
                Validation::Done => {}
                Validation::SizeMismatch => small(at, at + LARGE)?,
                Validation::Unchanged => return Err(Reason::ValidatedTwice),
                Validation::Failed => return Err(Reason::Validate),
            }
            at += LARGE;
        } else {
            small(at, at + SMALL)?;
            at += SMALL;
        }
    }
    Ok(())
}

fn small(from: u64, end: u64) -> Result<(), Reason> {
    for at in (from..end).step_by(SMALL as usize) {
        match validate(at, Size::Small) {
            Validation::Done => {}
            Validation::Unchanged => return Err(Reason::ValidatedTwice),
            Validation::SizeMismatch | Validation::Failed => return Err(Reason::Validate),
        }
    }
    Ok(())
}
