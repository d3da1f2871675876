//! Known bugs of the pipeline that can be put back in.
//!
//! Each [`Defect`] is a mistake that a real kernel had, or could have: a check that is left out, a step in the wrong
//! place. With its switch on, exploration must find the invariant that breaks; with it off, nothing. The code asks
//! [`crate::sync::Task::has`] at the one place that the defect changes.

/// One mistake. The number is that of its race in the project's catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Defect {
    /// a fault installs its entry without asking whether it is stale.
    SkipStaleCheck,
    /// the sequence is sampled after the page was looked up.
    SampleAfterLookup,
    /// the stale check looks at the sequence alone and not at the range in progress.
    IgnoreRangeInProgress,
    /// every begin forgets the ranges of invalidations that are still in progress.
    ResetRangeOnBegin,
    /// entries are zapped and the flush is forgotten.
    SkipFlush,
    /// a conversion ends its invalidation before it stores the attribute.
    StoreAttributeAfterEnd,
    /// a binding may change between the begin and the end of an invalidation.
    UnlockDuringInvalidation,
    /// a conversion lets faults on neighbours through that may put a huge leaf over what it changes.
    NarrowConversion,
    /// two faults on one huge page both allocate it.
    AllocateTwice,
    /// a slot is deleted and its binding stays.
    KeepBinding,
    /// a leaf is as large as its folio, wherever the slot lies.
    OrderWithoutCongruence,
    /// a conversion to private that fails makes all of its range usable by the host.
    RollbackSharesAll,
    /// a conversion that runs out of memory in its bookkeeping says that it succeeded.
    SilentPartial,
    /// a hole inside a huge page clears all of it.
    HoleClearsHugePage,
    /// a hole in the upper part of a huge page clears it from its first byte.
    HoleClearsFromHead,
    /// both ends of a range to be populated are rounded down to huge pages.
    AllocationRoundsDown,
    /// only the first 4K of a fresh huge page is cleared.
    ClearFirst4K,
    /// only huge pages that lie in the converted range as a whole are merged.
    MergeInsideRangeOnly,
    /// a memory failure neither zaps nor invalidates.
    FailureTellsNobody,
}

impl Defect {
    /// Every one.
    pub const ALL: [Defect; 19] = [
        Defect::SkipStaleCheck,
        Defect::SampleAfterLookup,
        Defect::IgnoreRangeInProgress,
        Defect::ResetRangeOnBegin,
        Defect::SkipFlush,
        Defect::StoreAttributeAfterEnd,
        Defect::UnlockDuringInvalidation,
        Defect::NarrowConversion,
        Defect::AllocateTwice,
        Defect::KeepBinding,
        Defect::OrderWithoutCongruence,
        Defect::RollbackSharesAll,
        Defect::SilentPartial,
        Defect::HoleClearsHugePage,
        Defect::HoleClearsFromHead,
        Defect::AllocationRoundsDown,
        Defect::ClearFirst4K,
        Defect::MergeInsideRangeOnly,
        Defect::FailureTellsNobody,
    ];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Defect::SkipStaleCheck => "skip-stale-check",
            Defect::SampleAfterLookup => "sample-after-lookup",
            Defect::IgnoreRangeInProgress => "ignore-range-in-progress",
            Defect::ResetRangeOnBegin => "reset-range-on-begin",
            Defect::SkipFlush => "skip-flush",
            Defect::StoreAttributeAfterEnd => "store-attribute-after-end",
            Defect::UnlockDuringInvalidation => "unlock-during-invalidation",
            Defect::NarrowConversion => "narrow-conversion",
            Defect::AllocateTwice => "allocate-twice",
            Defect::KeepBinding => "keep-binding",
            Defect::OrderWithoutCongruence => "order-without-congruence",
            Defect::RollbackSharesAll => "rollback-shares-all",
            Defect::SilentPartial => "silent-partial",
            Defect::HoleClearsHugePage => "hole-clears-huge-page",
            Defect::HoleClearsFromHead => "hole-clears-from-head",
            Defect::AllocationRoundsDown => "allocation-rounds-down",
            Defect::ClearFirst4K => "clear-first-4k",
            Defect::MergeInsideRangeOnly => "merge-inside-range-only",
            Defect::FailureTellsNobody => "failure-tells-nobody",
        }
    }

    /// What is wrong with a pipeline that has it.
    pub const fn what(self) -> &'static str {
        match self {
            Defect::SkipStaleCheck => "a fault installs its entry without asking whether it is stale",
            Defect::SampleAfterLookup => "a fault samples the sequence after it looked its page up",
            Defect::IgnoreRangeInProgress => "a fault asks for the sequence alone, not for the range in progress",
            Defect::ResetRangeOnBegin => "every begin forgets the ranges of invalidations still in progress",
            Defect::SkipFlush => "entries are zapped and the flush is forgotten",
            Defect::StoreAttributeAfterEnd => "a conversion ends its invalidation before it stores the attribute",
            Defect::UnlockDuringInvalidation => "bindings may change between the begin and the end of an invalidation",
            Defect::NarrowConversion => "a conversion lets a neighbour's fault put a huge leaf over what it changes",
            Defect::AllocateTwice => "two faults on one huge page both allocate it, one more than was reserved",
            Defect::KeepBinding => "a slot is deleted and its binding stays",
            Defect::OrderWithoutCongruence => "a leaf is as large as its folio, wherever the slot lies",
            Defect::RollbackSharesAll => "a conversion to private that fails makes all of its range usable by the host",
            Defect::SilentPartial => "a conversion that runs out of memory in its bookkeeping says that it succeeded",
            Defect::HoleClearsHugePage => "a hole inside a huge page clears all of it",
            Defect::HoleClearsFromHead => "a hole in the upper part of a huge page clears it from its first byte",
            Defect::AllocationRoundsDown => "both ends of a range to be populated are rounded down to huge pages",
            Defect::ClearFirst4K => "only the first 4K of a fresh huge page is cleared",
            Defect::MergeInsideRangeOnly => "only huge pages that lie in the converted range as a whole are merged",
            Defect::FailureTellsNobody => "a memory failure neither zaps nor invalidates",
        }
    }

    /// The defect of this name.
    pub fn named(name: &str) -> Option<Defect> {
        Defect::ALL.into_iter().find(|defect| defect.name() == name)
    }

    const fn bit(self) -> u128 {
        1 << self as u8
    }
}

/// A set of defects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Defects(u128);

impl Defects {
    /// A correct pipeline.
    pub const NONE: Defects = Defects(0);

    /// This one alone.
    pub const fn only(defect: Defect) -> Defects {
        Defects(defect.bit())
    }

    /// These and another.
    #[must_use]
    pub const fn and(self, defect: Defect) -> Defects {
        Defects(self.0 | defect.bit())
    }

    /// Whether `defect` is among them.
    #[inline]
    pub const fn contains(self, defect: Defect) -> bool {
        self.0 & defect.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_defect_is_its_own() {
        for one in Defect::ALL {
            assert_eq!(Defect::named(one.name()), Some(one));
            for other in Defect::ALL {
                assert_eq!(Defects::only(one).contains(other), one == other);
                assert!(Defects::only(one).and(other).contains(other));
            }
            assert!(!Defects::NONE.contains(one));
        }
    }
}
