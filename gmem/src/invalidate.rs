//! How a fault notices that what it read has changed since (`mmu_invalidate_seq` and its companions in `struct kvm`).
//!
//! [`Invalidation`] is the state of one VM. A change of backing runs: [`begin`](Invalidation::begin), then for each
//! affected range [`add_range`](Invalidation::add_range) and zap, flush, change, [`end`](Invalidation::end). A fault
//! takes a [`SeqSample`] before it reads anything, and asks [`must_retry`](Invalidation::must_retry) before it writes a
//! table entry. Always true: the sequence grows by one per end and never otherwise; the range in progress covers every
//! range added since nothing was in progress, and never shrinks meanwhile. So there may be needless retries but no
//! missed ones.
//!
//! Changes are made with `mmu_lock` held for writing, and what `must_retry` says with it held for reading is exact.
//! Without the lock it is a hint that may err both ways: good for giving up early, never for going on.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use emu_core::Gfn;
use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::sync::Task;

/// The sequence number a fault saw before it read any state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqSample(u64);

/// See the module.
#[derive(Debug, Default)]
pub struct Invalidation {
    seq: AtomicU64,
    in_progress: AtomicU32,
    begun: AtomicU64,
    /// The range in progress; empty when no range was added.
    from: AtomicU64,
    to: AtomicU64,
}

impl Invalidation {
    /// What a fault keeps from its start to its end. What it reads afterwards is no older.
    #[inline]
    pub fn sample(&self) -> SeqSample {
        SeqSample(self.seq.load(Ordering::Acquire))
    }

    /// Ends so far.
    pub fn seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    /// Changes between their begin and their end.
    pub fn in_progress(&self) -> u32 {
        self.in_progress.load(Ordering::Acquire)
    }

    /// Begins so far: the ends and what is in progress.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// The guest frames from and up to which faults retry, while a change is in progress.
    pub fn range(&self) -> Option<(Gfn, Gfn)> {
        let (from, to) = (self.from.load(Ordering::Acquire), self.to.load(Ordering::Acquire));
        (self.in_progress() > 0 && from < to).then(|| (Gfn::new(from), Gfn::new(to)))
    }

    fn set_range(&self, from: u64, to: u64) {
        self.from.store(from, Ordering::Release);
        self.to.store(to, Ordering::Release);
    }

    /// A change starts.
    pub fn begin(&self, task: &Task<'_>) {
        if self.in_progress() == 0 || task.has(Defect::ResetRangeOnBegin) {
            self.set_range(0, 0);
        }
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.in_progress.fetch_add(1, Ordering::AcqRel);
    }

    /// The change covers `nr_pages` from `first`.
    ///
    /// # Panics
    /// Outside a change.
    pub fn add_range(&self, first: Gfn, nr_pages: u64, task: &Task<'_>) {
        assert!(self.in_progress() > 0, "a range is added between begin and end");
        task.report(Event::InvalidateBegin { first, nr_pages });
        let (first, end) = (first.raw(), first.raw().saturating_add(nr_pages));
        match self.range() {
            None => self.set_range(first, end),
            Some((from, to)) => self.set_range(from.raw().min(first), to.raw().max(end)),
        }
    }

    /// The change is complete and visible.
    ///
    /// # Panics
    /// Without a begin.
    pub fn end(&self, task: &Task<'_>) {
        assert!(self.in_progress() > 0, "an end without a begin");
        // The sequence first: whoever sees nothing in progress sees the new sequence.
        let seq = self.seq.fetch_add(1, Ordering::AcqRel) + 1;
        self.in_progress.fetch_sub(1, Ordering::AcqRel);
        task.report(Event::InvalidateEnd { seq });
    }

    /// Whether a fault on `gfn` that started at `sample` must start over.
    #[inline]
    pub fn must_retry(&self, sample: SeqSample, gfn: Gfn, task: &Task<'_>) -> bool {
        let covers = || self.range().is_some_and(|(from, to)| from <= gfn && gfn < to);
        self.in_progress() != 0 && covers() && !task.has(Defect::IgnoreRangeInProgress) || self.seq() != sample.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_retries_inside_and_after_but_not_beside_an_invalidation() {
        let state = Invalidation::default();
        let before = state.sample();
        state.begin(&Task::QUIET);
        state.add_range(Gfn::new(10), 2, &Task::QUIET);
        assert!(state.must_retry(before, Gfn::new(11), &Task::QUIET));
        assert!(!state.must_retry(before, Gfn::new(12), &Task::QUIET));
        state.begin(&Task::QUIET);
        state.add_range(Gfn::new(20), 1, &Task::QUIET);
        state.end(&Task::QUIET);
        let between = state.sample();
        assert!(state.must_retry(before, Gfn::new(12), &Task::QUIET), "an end happened since");
        assert!(
            state.must_retry(between, Gfn::new(15), &Task::QUIET),
            "the hull does not shrink while one is in progress"
        );
        state.end(&Task::QUIET);
        let after = state.sample();
        assert!(!state.must_retry(after, Gfn::new(11), &Task::QUIET));
        assert_eq!((state.seq(), state.in_progress()), (2, 0));
        state.begin(&Task::QUIET);
        assert!(!state.must_retry(state.sample(), Gfn::new(11), &Task::QUIET), "a new one starts with no range");
    }

    #[test]
    #[should_panic(expected = "without a begin")]
    fn ends_balance() {
        Invalidation::default().end(&Task::QUIET);
    }
}
