//! The inode's `invalidate_lock`, and what may be done under it.
//!
//! [`Shared`] and [`Exclusive`] are the two ways to hold it; each operation is a method of the guard it needs. While it
//! is held shared no folio leaves the page cache and no binding changes; while it is held exclusively nobody looks up a
//! folio either. So bindings are frozen between the begin and the end of an invalidation because the guard that lists
//! them is alive.

use emu_core::Gfn;
use emu_core::sync::{ReadGuard, Task, WriteGuard};

use super::bindings::Bindings;
use super::{BindError, Bound, GuestMemfd, PageIndex, PageRange, SlotId};

/// Folios may be looked up and populated.
pub struct Shared<'a> {
    pub(super) inode: &'a GuestMemfd,
    bindings: ReadGuard<'a, Bindings>,
}

/// Folios may be removed, bindings and attributes changed.
pub struct Exclusive<'a> {
    pub(crate) inode: &'a GuestMemfd,
    bindings: WriteGuard<'a, Bindings>,
}

impl GuestMemfd {
    /// Takes the lock for lookups.
    #[inline]
    pub fn shared<'a>(&'a self, task: &Task<'a>) -> Shared<'a> {
        Shared { inode: self, bindings: self.bindings.read(task) }
    }

    /// Takes the lock for changes.
    pub fn exclusive<'a>(&'a self, task: &Task<'a>) -> Exclusive<'a> {
        Exclusive { inode: self, bindings: self.bindings.write(task) }
    }
}

impl Shared<'_> {
    /// The memslot bound at `index`.
    #[inline]
    pub fn slot_at(&self, index: PageIndex) -> Option<SlotId> {
        self.bindings.slot_at(index)
    }

    /// Whether that is `slot`, whose view starts at `first`.
    #[inline]
    pub fn is_bound_to(&self, slot: SlotId, first: PageIndex, index: PageIndex) -> bool {
        self.bindings.holds(slot, first, index)
    }
}

impl Exclusive<'_> {
    /// Makes `slot`, from guest frame `first` on, a view of `range` (`kvm_gmem_bind`).
    pub fn bind(&mut self, slot: SlotId, range: PageRange, first: Gfn) -> Result<(), BindError> {
        self.bindings.check(range, self.inode.nr_pages)?;
        let page = self.inode.unit;
        if !self.inode.policy.order.binds(range, self.inode.nr_pages, page) {
            return Err(BindError::Misaligned { range, page });
        }
        self.bindings.insert(slot, range, first);
        Ok(())
    }

    /// Ends the view that starts at `first`, if there is one.
    pub fn unbind(&mut self, first: PageIndex) {
        self.bindings.remove(first);
    }

    /// Ends every view.
    pub(super) fn clear_bindings(&mut self) {
        self.bindings.clear();
    }

    /// Whether any memslot looks at the inode.
    pub fn is_bound(&self) -> bool {
        !self.bindings.is_empty()
    }

    /// Whether any memslot shows a page of `range`.
    pub fn shows(&self, range: PageRange) -> bool {
        self.bindings.reach_into(range.clipped(self.inode.nr_pages)).next().is_some()
    }

    /// What the hypervisor must zap before pages of `range` change, ascending.
    pub fn bound(&self, range: PageRange) -> Vec<Bound> {
        self.bindings.reach_into(range.clipped(self.inode.nr_pages)).collect()
    }
}
