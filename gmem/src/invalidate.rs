//! How a fault notices that what it read has changed since (`mmu_invalidate_seq` and its companions in `struct kvm`).
//!
//! [`Invalidation`] is the state of one VM. A change of backing runs: [`begin`](Invalidation::begin), then for each
//! affected range [`add_range`](Invalidation::add_range) and zap, flush, change, [`end`](Invalidation::end). A fault
//! takes a [`SeqSample`] before it reads anything, and asks [`must_retry`](Invalidation::must_retry) before it writes a
//! table entry. Always true: the sequence grows by one per end and never otherwise; the range in progress covers every
//! range added since nothing was in progress, and never shrinks meanwhile. So there may be needless retries but no
//! missed ones.

use emu_core::Gfn;

/// The sequence number a fault saw before it read any state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqSample(u64);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Invalidation {
    seq: u64,
    in_progress: u32,
    hull: Option<(Gfn, Gfn)>,
}

impl Invalidation {
    /// What a fault keeps from its start to its end.
    pub fn sample(&self) -> SeqSample {
        SeqSample(self.seq)
    }

    /// Ends so far.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Changes between their begin and their end.
    pub fn in_progress(&self) -> u32 {
        self.in_progress
    }

    /// A change starts.
    pub fn begin(&mut self) {
        if self.in_progress == 0 {
            self.hull = None;
        }
        self.in_progress += 1;
    }

    /// The change covers `nr_pages` from `first`.
    ///
    /// # Panics
    /// Outside a change.
    pub fn add_range(&mut self, first: Gfn, nr_pages: u64) {
        assert!(self.in_progress > 0, "a range is added between begin and end");
        let end = Gfn::new(first.raw().saturating_add(nr_pages));
        self.hull = Some(match self.hull {
            None => (first, end),
            Some((from, to)) => (from.min(first), to.max(end)),
        });
    }

    /// The change is complete and visible.
    ///
    /// # Panics
    /// Without a begin.
    pub fn end(&mut self) {
        assert!(self.in_progress > 0, "an end without a begin");
        self.seq += 1;
        self.in_progress -= 1;
    }

    /// Whether a fault on `gfn` that started at `sample` must start over.
    pub fn must_retry(&self, sample: SeqSample, gfn: Gfn) -> bool {
        let covered = self.in_progress > 0 && self.hull.is_some_and(|(from, to)| from <= gfn && gfn < to);
        covered || self.seq != sample.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_retries_inside_and_after_but_not_beside_an_invalidation() {
        let mut state = Invalidation::default();
        let before = state.sample();
        state.begin();
        state.add_range(Gfn::new(10), 2);
        assert!(state.must_retry(before, Gfn::new(11)));
        assert!(!state.must_retry(before, Gfn::new(12)));
        state.begin();
        state.add_range(Gfn::new(20), 1);
        state.end();
        let between = state.sample();
        assert!(state.must_retry(before, Gfn::new(12)), "an end happened since");
        assert!(state.must_retry(between, Gfn::new(15)), "the hull does not shrink while one is in progress");
        state.end();
        let after = state.sample();
        assert!(!state.must_retry(after, Gfn::new(11)));
        assert_eq!((state.seq(), state.in_progress()), (2, 0));
        state.begin();
        assert!(!state.must_retry(state.sample(), Gfn::new(11)), "a new one starts with no range");
    }

    #[test]
    #[should_panic(expected = "without a begin")]
    fn ends_balance() {
        Invalidation::default().end();
    }
}
