//! What was taken away: the log by which every processor learns that translations it caches may not be used any more.
//!
//! A TLB caches what the RMP allowed. A processor makes the others drop that itself, on silicon as here: software owes no
//! invalidation for a change of an entry. Each [`crate::Mmu`] keeps a [`RmpCursor`] and compares it when it looks anything
//! up; it reads the log when it is behind. What only gives rights is not in the log, since refusals are not cached.
//!
//! The log is short. A reader that fell too far behind is told [`RmpBacklog::Lost`] and drops all.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::VecDeque;

use emu_core::Sfn;
use emu_core::sync::{Mutex, Task};

/// What was taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Taken {
    /// Somebody may now do less with the pages, or they are smaller than they were.
    Rights,
    /// Their bytes: they are under another key.
    Bytes,
}

/// Pages of which something was taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpChange {
    /// What.
    pub what: Taken,
    /// The first.
    pub first: Sfn,
    /// How many.
    pub frames: u64,
}

/// A reader's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RmpCursor(u64);

/// What a reader has missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RmpBacklog {
    /// These, in order.
    Changes(Vec<RmpChange>),
    /// Too much: drop everything that came through the RMP.
    Lost,
}

const KEPT: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct RmpChanges {
    /// Number of changes ever logged; readers compare it with their cursor without taking the lock.
    head: AtomicU64,
    log: Mutex<VecDeque<RmpChange>>,
}

impl RmpChanges {
    /// Called after the entries are stored: whoever sees the new head sees the new entries.
    pub(super) fn push(&self, change: RmpChange) {
        let mut log = self.log.lock(&Task::QUIET);
        if log.len() == KEPT {
            log.pop_front();
        }
        log.push_back(change);
        self.head.fetch_add(1, Ordering::Release);
    }

    /// Whether anything was logged since `cursor`.
    #[inline]
    pub fn is_behind(&self, cursor: RmpCursor) -> bool {
        self.head.load(Ordering::Acquire) != cursor.0
    }

    /// A cursor to which everything so far is known.
    pub fn now(&self) -> RmpCursor {
        RmpCursor(self.head.load(Ordering::Acquire))
    }

    /// What was logged since `cursor`, which moves to the end.
    pub fn catch_up(&self, cursor: &mut RmpCursor) -> RmpBacklog {
        let log = self.log.lock(&Task::QUIET);
        let head = self.head.load(Ordering::Acquire);
        let missed = head.wrapping_sub(cursor.0);
        *cursor = RmpCursor(head);
        match usize::try_from(missed) {
            Ok(missed) if missed <= log.len() => {
                RmpBacklog::Changes(log.iter().skip(log.len() - missed).copied().collect())
            }
            _ => RmpBacklog::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_gets_what_it_missed_and_a_slow_one_is_told_so() {
        let changes = RmpChanges::default();
        let of = |n| RmpChange { what: Taken::Rights, first: Sfn::new(n), frames: 1 };
        changes.push(of(1));
        let (mut early, mut late) = (RmpCursor::default(), changes.now());
        assert!(changes.is_behind(early) && !changes.is_behind(late));
        changes.push(of(2));
        assert_eq!(changes.catch_up(&mut late), RmpBacklog::Changes(vec![of(2)]));
        assert_eq!(changes.catch_up(&mut early), RmpBacklog::Changes(vec![of(1), of(2)]));
        for n in 0..=KEPT as u64 {
            changes.push(of(n));
        }
        assert_eq!(changes.catch_up(&mut late), RmpBacklog::Lost);
        assert_eq!(changes.catch_up(&mut late), RmpBacklog::Changes(vec![]));
    }
}
