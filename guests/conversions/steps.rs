//! What is done to one range after another, and verified.
//!
//! Each page of an area has three words that are looked at, at its ends and in its middle. A word's value follows from its
//! address and the step that wrote it, so that a page in the wrong place shows.

use core::fmt;

use crate::hypercall::{To, allocate, convert, punch};
use crate::memory::{load, store};

const PAGE: u64 = 0x1000;
const M2: u64 = 0x20_0000;
/// The words of a page that are written and read.
const WORDS: [u64; 3] = [0, 0x7f8, 0xff8];

/// What was not as it should be, and where.
#[derive(Clone, Copy)]
pub struct Failure {
    pub what: &'static str,
    pub at: u64,
    pub expected: u64,
    pub seen: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}: expected {:#x}, saw {:#x}", self.what, self.at, self.expected, self.seen)
    }
}

pub fn equal(what: &'static str, at: u64, expected: u64, seen: u64) -> Result<(), Failure> {
    if expected == seen { Ok(()) } else { Err(Failure { what, at, expected, seen }) }
}

/// A piece of memory to convert ranges of. `stride` is the distance of the pages that are looked at.
#[derive(Clone, Copy)]
pub struct Area {
    base: u64,
    bytes: u64,
    stride: u64,
    ranges: &'static [(u64, u64)],
}

/// Offsets and lengths: what the selftest converts, then every power of two at its own alignment and beside it, and ranges
/// that begin and end in the middle of large pages.
const SMALL: [(u64, u64); 17] = [
    (0, PAGE),
    (0, M2),
    (PAGE, PAGE),
    (PAGE, M2),
    (M2, PAGE),
    (M2, M2),
    (0, 2 * M2),
    (M2 - PAGE, PAGE),
    (M2 - PAGE, 2 * PAGE),
    (2 * PAGE, 2 * PAGE),
    (0x7000, 0x8000),
    (0x1_0000, 0x1_0000),
    (0x3_f000, 0x8_0000),
    (0x10_0000, 0x10_0000),
    (0x10_0000, M2),
    (M2 + PAGE, M2 - PAGE),
    (PAGE, 2 * M2 - 2 * PAGE),
];

const GIB: [(u64, u64); 5] =
    [(0, 1 << 30), (0, PAGE), (M2, M2), (PAGE, (1 << 30) - 2 * PAGE), (M2 - PAGE, (1 << 29) + 2 * PAGE)];

impl Area {
    /// Length of [`Area::small`].
    pub const BYTES: u64 = 2 * M2;

    /// An area of which every page is looked at.
    pub const fn small(base: u64) -> Area {
        Area { base, bytes: Area::BYTES, stride: PAGE, ranges: &SMALL }
    }

    /// The area of processor `n` when they begin at `base`.
    pub const fn of(n: u64, base: u64) -> Area {
        Area::small(base + n * Area::BYTES)
    }

    /// A GiB of which one page in 513 is looked at: another one in each large page.
    pub const fn gib(base: u64) -> Area {
        Area { base, bytes: 1 << 30, stride: M2 + PAGE, ranges: &GIB }
    }
}

/// The pages that are looked at, split by a range of whole pages in the area.
#[derive(Clone, Copy)]
struct Split {
    area: Area,
    first: u64,
    end: u64,
}

impl Split {
    fn new(area: Area, (offset, bytes): (u64, u64)) -> Split {
        Split { area, first: area.base + offset, end: area.base + offset + bytes }
    }
    fn all(self) -> impl Iterator<Item = u64> {
        (self.area.base..self.area.base + self.area.bytes).step_by(self.area.stride as usize)
    }
    fn inside(self) -> impl Iterator<Item = u64> {
        self.all().filter(move |page| (self.first..self.end).contains(page))
    }
    fn outside(self) -> impl Iterator<Item = u64> {
        self.all().filter(move |page| !(self.first..self.end).contains(page))
    }
    /// Every other page that is looked at inside, and those between them.
    fn odd(self) -> impl Iterator<Item = u64> {
        self.inside().filter(move |page| (page - self.area.base) / self.area.stride % 2 != 0)
    }
    fn even(self) -> impl Iterator<Item = u64> {
        self.inside().filter(move |page| (page - self.area.base) / self.area.stride % 2 == 0)
    }
}

fn value(address: u64, step: u64) -> u64 {
    (address ^ step << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn write(pages: impl Iterator<Item = u64>, step: u64) {
    pages.for_each(|page| WORDS.iter().for_each(|word| store(page + word, value(page + word, step))));
}

/// Counts what it verified.
struct Verifier(u64);

impl Verifier {
    fn hold(&mut self, what: &'static str, pages: impl Iterator<Item = u64>, step: u64) -> Result<(), Failure> {
        self.each(what, pages, |at| value(at, step))
    }
    fn zero(&mut self, what: &'static str, pages: impl Iterator<Item = u64>) -> Result<(), Failure> {
        self.each(what, pages, |_| 0)
    }
    fn each(
        &mut self,
        what: &'static str,
        mut pages: impl Iterator<Item = u64>,
        expected: impl Fn(u64) -> u64,
    ) -> Result<(), Failure> {
        pages.try_for_each(|page| {
            WORDS.iter().map(|word| page + word).try_for_each(|at| {
                self.0 += 1;
                equal(what, at, expected(at), load(at))
            })
        })
    }
}

/// Every step on every range; how many words were verified.
pub fn all(area: Area, private: bool) -> Result<u64, Failure> {
    let mut verifier = Verifier(0);
    for &range in area.ranges {
        let split = Split::new(area, range);
        if private {
            conversions(split, &mut verifier)?;
        }
        holes(split, private, &mut verifier)?;
    }
    Ok(verifier.0)
}

/// Shared, private, odd pages shared, all shared again: bytes stay through all of it.
fn conversions(split: Split, verifier: &mut Verifier) -> Result<(), Failure> {
    let (base, bytes) = (split.first, split.end - split.first);
    write(split.all(), 1);
    convert(base, bytes, To::Private)?;
    verifier.hold("shared bytes, now private", split.inside(), 1)?;
    write(split.inside(), 2);
    split.odd().try_for_each(|page| convert(page, PAGE, To::Shared))?;
    verifier.hold("private bytes, now shared", split.odd(), 2)?;
    verifier.hold("private bytes beside shared ones", split.even(), 2)?;
    write(split.odd(), 3);
    verifier.hold("private bytes beside shared writes", split.even(), 2)?;
    // Twice is once.
    split.odd().take(2).try_for_each(|page| convert(page, PAGE, To::Shared))?;
    convert(base, bytes, To::Shared)?;
    verifier.hold("odd pages, shared again", split.odd(), 3)?;
    verifier.hold("even pages, shared again", split.even(), 2)?;
    verifier.hold("bytes outside a conversion", split.outside(), 1)
}

/// A hole reads as zero and keeps who may use it; memory comes back by use or by allocation.
fn holes(split: Split, private: bool, verifier: &mut Verifier) -> Result<(), Failure> {
    let (base, bytes) = (split.first, split.end - split.first);
    write(split.all(), 4);
    punch(base, bytes)?;
    verifier.zero("a hole", split.inside())?;
    write(split.inside(), 5);
    verifier.hold("a hole that was filled", split.inside(), 5)?;
    if private {
        convert(base, bytes, To::Private)?;
        punch(base, bytes)?;
        verifier.zero("a private hole", split.inside())?;
        write(split.odd(), 6);
        convert(base, bytes, To::Shared)?;
        verifier.hold("a private hole that was filled and shared", split.odd(), 6)?;
        verifier.zero("what stayed empty of it", split.even())?;
    }
    punch(base, bytes)?;
    allocate(base, bytes)?;
    verifier.zero("what was allocated", split.inside())?;
    verifier.hold("bytes outside a hole", split.outside(), 4)
}
