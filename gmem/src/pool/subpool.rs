//! An inode's share of a pool (`struct hugepage_subpool`), with limits from both sides.
//!
//! The pool owns its subpools, because one lives on until its last page has come back, when the inode may be long gone
//! (`unlock_or_release_subpool`): [`HugePool::put_subpool`] drops the handle, and the minimum is given up only when
//! nothing of the subpool is out.

use thiserror::Error;

use super::{Grant, HugePool, PoolExhausted, Promise, Surplus, TakeError};
use crate::numa::NodeOrder;
use crate::vmemmap::SystemFrames;
use emu_core::{PageSize, Sfn};

/// A subpool of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubpoolId(u32);

/// The subpool's limit is reached (`ENOMEM`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the subpool has handed out {used} {size} pages, which is all it may")]
pub struct SubpoolFull {
    /// The pool's size.
    pub size: PageSize,
    /// Pages handed out.
    pub used: u64,
}

/// The limits of a subpool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubpoolLimits {
    /// `max_hpages`: the most pages it hands out.
    pub max: Option<u64>,
    /// `min_hpages`: pages promised to it from the start.
    pub min: Option<u64>,
    /// Whether the promise may lean on surplus pages.
    pub surplus: Surplus,
}

impl SubpoolLimits {
    /// What guest_memfd asks for: exactly `nr_pages`, none of them surplus.
    pub const fn exactly(nr_pages: u64) -> SubpoolLimits {
        SubpoolLimits { max: Some(nr_pages), min: Some(nr_pages), surplus: Surplus::Refused }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subpool {
    limits: SubpoolLimits,
    /// `used_hpages`; counted only against a maximum, as in Linux.
    used: u64,
    /// `rsv_hpages`.
    rsv: u64,
    /// Pages handed out by [`HugePool::take`] and not come back.
    out: u64,
    handles: u32,
}

impl Subpool {
    /// Its limits; a lost page lowers both.
    pub const fn limits(&self) -> SubpoolLimits {
        self.limits
    }

    /// `used_hpages`: pages charged against the maximum.
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// `rsv_hpages`: pages still promised and not handed out.
    pub const fn rsv(&self) -> u64 {
        self.rsv
    }

    /// Pages handed out and not come back.
    pub const fn out(&self) -> u64 {
        self.out
    }

    /// `hugepage_subpool_get_pages`: of `delta`, how many the pool must still promise.
    fn get_pages(&mut self, delta: u64) -> Option<u64> {
        if let Some(max) = self.limits.max {
            let used = self.used.checked_add(delta).filter(|&used| used <= max)?;
            self.used = used;
        }
        let from_rsv = self.rsv.min(delta);
        self.rsv -= from_rsv;
        Some(delta - from_rsv)
    }

    /// Undoes [`Subpool::get_pages`] of one page that answered `unpromised`. Putting the page back is not the same: a
    /// page that came from no promise would leave one behind.
    fn undo_get(&mut self, unpromised: u64) {
        if self.limits.max.is_some() {
            self.used -= 1;
        }
        self.rsv += 1 - unpromised;
    }

    /// `hugepage_subpool_put_pages`: of `delta`, how many promises the pool is to drop.
    fn put_pages(&mut self, delta: u64) -> u64 {
        if self.limits.max.is_some() {
            assert!(delta <= self.used, "{delta} pages come back, {} are out", self.used);
            self.used -= delta;
        }
        match self.limits.min {
            Some(min) if self.used < min => {
                let excess = (self.rsv + delta).saturating_sub(min);
                self.rsv = (self.rsv + delta).min(min);
                excess
            }
            _ => delta,
        }
    }

    /// `subpool_is_free`.
    fn is_free(&self) -> bool {
        self.handles == 0 && self.out == 0
    }
}

/// The subpools of a pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Subpool>>,
}

impl Table {
    fn insert(&mut self, subpool: Subpool) -> SubpoolId {
        let at = match self.slots.iter().position(Option::is_none) {
            Some(at) => at,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[at] = Some(subpool);
        SubpoolId(at as u32)
    }

    fn get(&self, id: SubpoolId) -> Option<&Subpool> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    fn get_mut(&mut self, id: SubpoolId) -> &mut Subpool {
        match self.slots.get_mut(id.0 as usize) {
            Some(Some(subpool)) => subpool,
            _ => panic!("{id:?} is not a subpool of the pool"),
        }
    }
}

impl HugePool {
    /// A new subpool with its minimum promised (`hugepage_new_subpool`), or nothing changed.
    pub fn new_subpool(
        &mut self,
        frames: &mut SystemFrames,
        limits: SubpoolLimits,
    ) -> Result<SubpoolId, PoolExhausted> {
        let min = limits.min.unwrap_or(0);
        self.reserve(frames, min, limits.surplus)?;
        Ok(self.subpools.insert(Subpool { limits, used: 0, rsv: min, out: 0, handles: 1 }))
    }

    /// A subpool; `None` once it is gone.
    pub fn subpool(&self, id: SubpoolId) -> Option<&Subpool> {
        self.subpools.get(id)
    }

    /// The subpools there are.
    pub fn subpools(&self) -> impl Iterator<Item = &Subpool> {
        self.subpools.slots.iter().flatten()
    }

    /// One page of the subpool for good, from the first of `nodes` that has one. What the subpool has no promise left
    /// for is promised first, and refused where the subpool takes no surplus.
    pub fn take(&mut self, frames: &mut SystemFrames, id: SubpoolId, nodes: NodeOrder) -> Result<Sfn, TakeError> {
        let size = self.page_size();
        let subpool = self.subpools.get_mut(id);
        let full = SubpoolFull { size, used: subpool.out };
        let surplus = subpool.limits.surplus;
        let unpromised = subpool.get_pages(1).ok_or(full)?;
        if unpromised > 0 && (surplus == Surplus::Refused || self.reserve(frames, unpromised, surplus).is_err()) {
            self.subpools.get_mut(id).undo_get(unpromised);
            return Err(full.into());
        }
        match self.alloc(frames, nodes, Grant::Reserved) {
            Ok(sfn) => {
                self.subpools.get_mut(id).out += 1;
                Ok(sfn)
            }
            Err(_) => {
                self.subpools.get_mut(id).undo_get(unpromised);
                self.unreserve(frames, unpromised);
                Err(TakeError::Nodes { size })
            }
        }
    }

    /// Takes a page of the subpool back, whose promise it restores.
    ///
    /// # Panics
    /// When the subpool handed out nothing that could come back.
    pub fn give(&mut self, frames: &mut SystemFrames, id: SubpoolId, sfn: Sfn) {
        let promise = self.come_back(id);
        self.free(frames, sfn, promise);
        self.release_if_free(frames, id);
    }

    /// Undoes [`HugePool::take`] of a page that leaned on the subpool's promise and that nobody used.
    ///
    /// # Panics
    /// When the subpool handed out nothing.
    pub(crate) fn untake(&mut self, frames: &SystemFrames, id: SubpoolId, sfn: Sfn) {
        let subpool = self.subpools.get_mut(id);
        assert!(subpool.out > 0, "{id:?} handed out nothing that could be undone");
        subpool.out -= 1;
        subpool.undo_get(0);
        self.undo_alloc(frames, sfn);
    }

    fn come_back(&mut self, id: SubpoolId) -> Promise {
        let subpool = self.subpools.get_mut(id);
        assert!(subpool.out > 0, "{id:?} handed out nothing that could come back");
        subpool.out -= 1;
        if subpool.put_pages(1) == 0 { Promise::Restored } else { Promise::Dropped }
    }

    /// A page of the subpool will not come back. Its promise moves to another page if one is free and promised to
    /// nobody; otherwise the subpool's limits shrink by one.
    pub(crate) fn lose(&mut self, frames: &mut SystemFrames, id: SubpoolId) {
        let replaced = self.available() > 0;
        match self.come_back(id) {
            Promise::Restored if replaced => self.resv += 1,
            Promise::Restored => self.subpools.get_mut(id).shrink(),
            Promise::Dropped => {}
        }
        self.release_if_free(frames, id);
    }

    /// Drops the handle (`hugepage_put_subpool`). What is promised and not handed out goes back with the last page, at
    /// once when none is out.
    pub fn put_subpool(&mut self, frames: &mut SystemFrames, id: SubpoolId) {
        let subpool = self.subpools.get_mut(id);
        assert!(subpool.handles > 0, "{id:?} has no handle left");
        subpool.handles -= 1;
        self.release_if_free(frames, id);
    }

    /// A subpool goes although pages of it are out: for [`Defect::EndSubpoolWithInode`] alone.
    ///
    /// [`Defect::EndSubpoolWithInode`]: emu_core::defect::Defect::EndSubpoolWithInode
    pub(crate) fn forget_subpool(&mut self, id: SubpoolId) {
        if let Some(slot) = self.subpools.slots.get_mut(id.0 as usize) {
            *slot = None;
        }
    }

    fn release_if_free(&mut self, frames: &mut SystemFrames, id: SubpoolId) {
        if let Some(slot) = self.subpools.slots.get_mut(id.0 as usize)
            && let Some(subpool) = slot.take_if(|subpool| subpool.is_free())
        {
            self.unreserve(frames, subpool.rsv);
        }
    }
}

impl Subpool {
    fn shrink(&mut self) {
        self.rsv -= 1;
        self.limits.min = self.limits.min.map(|min| min - 1);
        self.limits.max = self.limits.max.map(|max| max - 1);
    }
}
