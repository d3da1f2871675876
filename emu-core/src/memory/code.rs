//! Which lines of which frames hold translated code, and a log of what happened to them.
//!
//! Every block cache (one a vCPU) marks the 64-byte lines it decoded. Writers look here: a store to a marked line is
//! recorded, and each cache reads the log before it executes again and drops what was overwritten. A frame with any
//! mark must have no fast write entry in a TLB, so that such stores are seen; [`CodeEvent::Watched`] tells TLBs when
//! a frame becomes one of those.
//!
//! The log is short. A reader that fell too far behind is told [`Backlog::Lost`] and drops everything it has.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{BTreeSet, VecDeque};

use super::arena::{Arena, HostError};
use crate::addr::Sfn;
use crate::page::PAGE_SIZE;
use parking_lot::Mutex;

/// A set of 64-byte lines of one 4 KiB frame; bit n is bytes 64n to 64n+63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LineMask(pub u64);

impl LineMask {
    /// The whole frame.
    pub const ALL: LineMask = LineMask(u64::MAX);

    /// The lines that `len` bytes from `offset` touch, as far as they lie in the frame.
    #[inline]
    pub const fn covering(offset: usize, len: usize) -> LineMask {
        if len == 0 || offset >= PAGE_SIZE {
            return LineMask(0);
        }
        let first = offset / 64;
        let end = offset.saturating_add(len);
        let last = (if end > PAGE_SIZE { PAGE_SIZE } else { end } - 1) / 64;
        LineMask(u64::MAX << first & u64::MAX >> (63 - last))
    }
    /// Whether the two sets share a line.
    #[inline]
    pub const fn intersects(self, other: LineMask) -> bool {
        self.0 & other.0 != 0
    }
}

/// What happened to code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeEvent {
    /// The frame holds translated code from now on: fast write entries for it must go.
    Watched(Sfn),
    /// Bytes of these lines, which held translated code, were overwritten.
    Written {
        /// The frame.
        sfn: Sfn,
        /// The lines.
        lines: LineMask,
    },
}

/// A reader's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cursor(u64);

/// What a reader has missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// These, in order.
    Events(Vec<CodeEvent>),
    /// Too much: drop every block and every write entry.
    Lost,
}

const KEPT: usize = 1024;

/// See the module.
pub struct CodeWatch {
    lines: Option<Arena>,
    /// Number of events ever logged; readers compare it with their cursor without taking the lock.
    head: AtomicU64,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    events: VecDeque<CodeEvent>,
    /// Every frame that was ever watched and not discarded since, so that discarding a large range costs what it holds.
    frames: BTreeSet<Sfn>,
}

impl CodeWatch {
    pub(super) fn reserve(frames: u64) -> Result<CodeWatch, HostError> {
        let lines = match frames {
            0 => None,
            n => Some(Arena::reserve((n * 8).next_multiple_of(PAGE_SIZE as u64))?),
        };
        Ok(CodeWatch { lines, head: AtomicU64::new(0), log: Mutex::new(Log::default()) })
    }

    #[inline]
    fn cell(&self, sfn: Sfn) -> Option<&AtomicU64> {
        self.lines.as_ref()?.cell(sfn.raw() as usize)
    }

    /// The lines of `sfn` that hold translated code. Non-empty: no fast write entry may exist for the frame.
    #[inline]
    pub fn lines(&self, sfn: Sfn) -> LineMask {
        LineMask(self.cell(sfn).map_or(0, |c| c.load(Ordering::Relaxed)))
    }

    /// Marks lines as holding translated code.
    pub fn watch(&self, sfn: Sfn, lines: LineMask) {
        if let Some(cell) = self.cell(sfn)
            && cell.fetch_or(lines.0, Ordering::Relaxed) == 0
            && lines.0 != 0
        {
            self.log.lock().frames.insert(sfn);
            self.push(CodeEvent::Watched(sfn));
        }
    }

    /// Reports a write to `lines` of `sfn`; whoever stores past [`super::SystemMemory`]'s accessors must call it.
    /// Returns whether translated code was hit.
    #[inline]
    pub fn note_write(&self, sfn: Sfn, lines: LineMask) -> bool {
        let Some(cell) = self.cell(sfn) else { return false };
        if cell.load(Ordering::Relaxed) & lines.0 == 0 {
            return false;
        }
        self.hit(cell, sfn, lines);
        true
    }

    #[cold]
    fn hit(&self, cell: &AtomicU64, sfn: Sfn, lines: LineMask) {
        let before = cell.fetch_and(!lines.0, Ordering::Relaxed);
        self.push(CodeEvent::Written { sfn, lines: LineMask(before & lines.0) });
    }

    pub(super) fn note_discard(&self, first: Sfn, frames: u64) {
        let end = Sfn::new(first.raw().saturating_add(frames));
        let watched: Vec<Sfn> = {
            let mut log = self.log.lock();
            let watched: Vec<Sfn> = log.frames.range(first..end).copied().collect();
            for sfn in &watched {
                log.frames.remove(sfn);
            }
            watched
        };
        for sfn in watched {
            self.note_write(sfn, LineMask::ALL);
        }
    }

    fn push(&self, event: CodeEvent) {
        let mut log = self.log.lock();
        if log.events.len() == KEPT {
            log.events.pop_front();
        }
        log.events.push_back(event);
        self.head.fetch_add(1, Ordering::Release);
    }

    /// Whether anything was logged since `cursor`.
    #[inline]
    pub fn is_behind(&self, cursor: Cursor) -> bool {
        self.head.load(Ordering::Acquire) != cursor.0
    }

    /// What was logged since `cursor`, which moves to the end.
    pub fn catch_up(&self, cursor: &mut Cursor) -> Backlog {
        let log = self.log.lock();
        let head = self.head.load(Ordering::Acquire);
        let missed = (head - cursor.0) as usize;
        *cursor = Cursor(head);
        if missed > log.events.len() {
            return Backlog::Lost;
        }
        Backlog::Events(log.events.iter().skip(log.events.len() - missed).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_masks_over_every_start_and_length() {
        for offset in 0..PAGE_SIZE {
            for len in [0, 1, 2, 63, 64, 65, 128, 4096] {
                let expected = (offset..(offset + len).min(PAGE_SIZE)).fold(0_u64, |m, b| m | 1 << (b / 64));
                assert_eq!(LineMask::covering(offset, len), LineMask(expected), "{offset} {len}");
            }
        }
        assert_eq!(LineMask::covering(PAGE_SIZE, 1), LineMask(0));
    }

    #[test]
    fn writes_to_code_are_logged_once_a_line() {
        let watch = CodeWatch::reserve(4).unwrap();
        let mut cursor = Cursor::default();
        let sfn = Sfn::new(2);
        assert!(!watch.note_write(sfn, LineMask::ALL));
        watch.watch(sfn, LineMask(0b11));
        watch.watch(sfn, LineMask(0b100));
        assert!(watch.is_behind(cursor));
        assert!(watch.note_write(sfn, LineMask(0b110)));
        assert!(!watch.note_write(sfn, LineMask(0b110)));
        assert_eq!(watch.lines(sfn), LineMask(1));
        assert_eq!(
            watch.catch_up(&mut cursor),
            Backlog::Events(vec![CodeEvent::Watched(sfn), CodeEvent::Written { sfn, lines: LineMask(0b110) }])
        );
        assert!(!watch.is_behind(cursor));
        assert!(!watch.note_write(Sfn::new(99), LineMask::ALL), "frames beyond memory hold no code");
    }

    #[test]
    fn discarding_a_range_reports_the_code_in_it() {
        let watch = CodeWatch::reserve(1 << 20).unwrap();
        let mut cursor = Cursor::default();
        watch.watch(Sfn::new(7), LineMask(1));
        watch.watch(Sfn::new(9), LineMask(2));
        watch.catch_up(&mut cursor);
        watch.note_discard(Sfn::new(8), 1 << 18);
        let written = CodeEvent::Written { sfn: Sfn::new(9), lines: LineMask(2) };
        assert_eq!(watch.catch_up(&mut cursor), Backlog::Events(vec![written]));
        assert_eq!(watch.lines(Sfn::new(7)), LineMask(1));
    }

    #[test]
    fn a_slow_reader_is_told_so() {
        let watch = CodeWatch::reserve(1).unwrap();
        let mut cursor = Cursor::default();
        for _ in 0..KEPT {
            watch.watch(Sfn::new(0), LineMask(1));
            watch.note_write(Sfn::new(0), LineMask(1));
        }
        assert_eq!(watch.catch_up(&mut cursor), Backlog::Lost);
        assert_eq!(watch.catch_up(&mut cursor), Backlog::Events(vec![]));
    }
}
