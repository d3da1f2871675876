//! Which memslots look at which ranges of an inode (`struct gmem_file`'s `bindings`).

use std::collections::BTreeMap;

use emu_core::{Errno, Gfn, PageSize};
use thiserror::Error;

use super::{PageIndex, PageRange, SlotId};

/// Why a memslot could not be bound; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BindError {
    /// `EINVAL`.
    #[error("pages {:#x} to {:#x} do not lie inside a guest_memfd of {nr_pages:#x} pages", range.first.0, range.end().0)]
    OutOfBounds {
        /// The range.
        range: PageRange,
        /// The inode's size.
        nr_pages: u64,
    },
    /// `EINVAL`: the order rule wants memslots and inodes made of the largest pages.
    #[error("pages {:#x} to {:#x} do not start and end at pages of {page}", range.first.0, range.end().0)]
    Misaligned {
        /// The range.
        range: PageRange,
        /// The inode's largest page.
        page: PageSize,
    },
    /// `EEXIST`.
    #[error("page {} is bound to memslot {} already", at.0, slot.0)]
    Overlap {
        /// First page bound twice.
        at: PageIndex,
        /// To whom.
        slot: SlotId,
    },
}

impl BindError {
    /// What the system call returns.
    pub const fn errno(&self) -> Errno {
        match self {
            BindError::OutOfBounds { .. } | BindError::Misaligned { .. } => Errno::Inval,
            BindError::Overlap { .. } => Errno::Exist,
        }
    }
}

/// A memslot's view of a part of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Whose.
    pub slot: SlotId,
    /// The guest frame that shows the first page of the part.
    pub first: Gfn,
    /// Pages of the part.
    pub nr_pages: u64,
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    end: u64,
    slot: SlotId,
    gfn: Gfn,
}

/// Disjoint ranges by their first index.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    by_first: BTreeMap<u64, Binding>,
}

impl Bindings {
    pub(super) fn is_empty(&self) -> bool {
        self.by_first.is_empty()
    }

    /// Whether `range` of an inode of `nr_pages` could be bound.
    pub(super) fn check(&self, range: PageRange, nr_pages: u64) -> Result<(), BindError> {
        if range.nr_pages == 0 || !range.lies_in(nr_pages) {
            return Err(BindError::OutOfBounds { range, nr_pages });
        }
        let below = self.by_first.range(..range.end().0).next_back();
        match below {
            Some((&at, binding)) if binding.end > range.first.0 => {
                Err(BindError::Overlap { at: PageIndex(at.max(range.first.0)), slot: binding.slot })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn insert(&mut self, slot: SlotId, range: PageRange, gfn: Gfn) {
        self.by_first.insert(range.first.0, Binding { end: range.end().0, slot, gfn });
    }

    pub(super) fn remove(&mut self, first: PageIndex) {
        self.by_first.remove(&first.0);
    }

    pub(super) fn clear(&mut self) {
        self.by_first.clear();
    }

    pub(super) fn slot_at(&self, index: PageIndex) -> Option<SlotId> {
        let (_, binding) = self.by_first.range(..=index.0).next_back()?;
        (index.0 < binding.end).then_some(binding.slot)
    }

    /// Whether `index` is bound to `slot` by the binding that starts at `first`.
    #[inline]
    pub(super) fn holds(&self, slot: SlotId, first: PageIndex, index: PageIndex) -> bool {
        let bound = self.by_first.get(&first.0);
        bound.is_some_and(|bound| bound.slot == slot && first <= index && index.0 < bound.end)
    }

    /// All, ascending: the first index of each and what looks at it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PageIndex, Bound)> + '_ {
        self.by_first.iter().map(|(&at, b)| (PageIndex(at), Bound { slot: b.slot, first: b.gfn, nr_pages: b.end - at }))
    }

    /// The parts of memslots that show pages of `range`, ascending. Bindings are disjoint, so all but the first that
    /// starts before the end of the range start in it.
    pub(super) fn reach_into(&self, range: PageRange) -> impl Iterator<Item = Bound> + '_ {
        let (first, end) = (range.first.0, range.end().0);
        let before = self.by_first.range(..first).next_back();
        before.into_iter().chain(self.by_first.range(first..end)).filter_map(move |(&at, b)| {
            let from = at.max(first);
            let nr_pages = b.end.min(end).checked_sub(from).filter(|&nr| nr > 0)?;
            Some(Bound { slot: b.slot, first: Gfn::new(b.gfn.raw() + (from - at)), nr_pages })
        })
    }
}
