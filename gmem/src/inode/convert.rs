//! Conversion in place: who may use a range changes, its folios stay, split or merged as the policy wants it.
//!
//! The order is that of the in-place conversion series for guest_memfd, with the folios of the huge page series between:
//! under the exclusive lock ask whether anything changes and whether it may ([`Exclusive::plan_conversion`], no
//! effects), then between the begin and the end of an invalidation of [`Conversion::zap`] split, store the attributes and
//! merge ([`Exclusive::convert`]). All or nothing: what was split for a conversion that fails is merged again.
//! What the posted series do otherwise is in [`super::generations`].

use core::ops::ControlFlow;

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::sync::{Point, Task};
use emu_core::{Errno, PageSize, Sfn};
use thiserror::Error;

use super::lock::Exclusive;
use super::reshape::{Books, CutFailed, Outlook};
use super::tree::{PageCache, Place, Run, Unit};
use super::{PageIndex, PageRange};
use crate::Host;
use crate::directmap::Refused;
use crate::host::HostMemory;
use crate::owner::Leaving;
use crate::policy::{BusyPages, Content, Generation, HostMapping, Quirks, SplitPolicy};
use crate::provider::SplitError;
use crate::shareability::{Holders, Shareability, transition};

/// Why a conversion was refused; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// `EINVAL`.
    #[error("pages {:#x} to {:#x} are not pages of a guest_memfd of {nr_pages:#x} pages", range.first.0, range.end().0)]
    OutOfBounds {
        /// The range.
        range: PageRange,
        /// The inode's size.
        nr_pages: u64,
    },
    /// `ENOTTY`: attributes are the VM's.
    #[error("guest_memfd of Linux {} has no attributes of its own", generation.name())]
    NotSupported {
        /// The generation.
        generation: Generation,
    },
    /// `EAGAIN`, with the page as `error_offset`: the host holds a reference that a private page must not have.
    #[error("page {} is held by the host and cannot become private", index.0)]
    Busy {
        /// First page of the range in the folio that is held.
        index: PageIndex,
    },
    /// The same in the first posted series, which says `EINVAL` and no offset.
    #[error("page {} is mapped or pinned by the host and cannot become private", index.0)]
    Mapped {
        /// First page of the range in the folio that is held.
        index: PageIndex,
    },
    /// `ENOMEM`: no memory to keep track of what changes.
    #[error("no memory to keep track of a conversion at page {}", index.0)]
    NoMemory {
        /// The first page that could not be noted.
        index: PageIndex,
    },
    /// `EBUSY`: the guest's hardware does not let go of the page, as while a processor runs with its state in it. Pages
    /// before it in the range were taken back and are to be accepted by the guest anew.
    #[error("page {} cannot be taken back from its guest", index.0)]
    Owned {
        /// The first page that stays the guest's.
        index: PageIndex,
    },
    /// `EOPNOTSUPP`: the host's direct map is not split for this.
    #[error(transparent)]
    DirectMap(#[from] Refused),
    /// `ENOMEM` as a rule, with the page as `error_offset`: a folio cannot be split.
    #[error("the folio at page {} cannot be split: {cause}", index.0)]
    Split {
        /// First page of the range in the folio.
        index: PageIndex,
        /// What the provider said.
        cause: SplitError,
    },
}

impl ConvertError {
    /// What the ioctl returns.
    pub const fn errno(&self) -> Errno {
        match self {
            ConvertError::OutOfBounds { .. } | ConvertError::Mapped { .. } => Errno::Inval,
            ConvertError::NotSupported { .. } => Errno::NoTty,
            ConvertError::DirectMap(_) => Errno::OpNotSupp,
            ConvertError::Owned { .. } => Errno::Busy,
            ConvertError::Busy { .. } | ConvertError::Split { cause: SplitError::Busy { .. }, .. } => Errno::Again,
            ConvertError::Split { .. } | ConvertError::NoMemory { .. } => Errno::NoMem,
        }
    }

    /// The page that `error_offset` names, for errors that have one.
    pub const fn error_index(&self) -> Option<PageIndex> {
        match self {
            ConvertError::Busy { index }
            | ConvertError::NoMemory { index }
            | ConvertError::Owned { index }
            | ConvertError::Split { index, .. } => Some(*index),
            ConvertError::OutOfBounds { .. }
            | ConvertError::NotSupported { .. }
            | ConvertError::Mapped { .. }
            | ConvertError::DirectMap(_) => None,
        }
    }
}

/// How often a split looks again whether a transient reference is gone (`folio_ref_freeze` spins without a bound).
const FREEZE_TRIES: u32 = 1000;

/// A conversion that changes something and may proceed.
#[derive(Debug)]
#[must_use = "nothing is converted yet"]
pub struct Conversion {
    range: PageRange,
    to: Shareability,
    zap: PageRange,
}

impl Conversion {
    /// What is to change.
    pub const fn range(&self) -> PageRange {
        self.range
    }

    /// What must not be mapped while it changes: the range, and folios around it of which nothing is to stay whole.
    pub const fn zap(&self) -> PageRange {
        self.zap
    }
}

/// The first index of `[first, end)` in a folio that somebody beside the page cache holds.
pub(super) fn first_held(cache: &PageCache, host: &HostMemory, first: u64, end: u64) -> Option<u64> {
    let found =
        cache.runs(first, end, |Run { first: at, nr_pages, sfn, .. }| match host.folios().first_held(sfn, nr_pages) {
            Some(head) => ControlFlow::Break((at + (head.raw() - sfn.raw())).max(first)),
            None => ControlFlow::Continue(()),
        });
    found.break_value()
}

/// The same of folios that have more references than the page cache and the mappings of processes account for.
fn first_referenced(cache: &PageCache, host: &HostMemory, first: u64, end: u64) -> Option<u64> {
    let found = cache.runs(first, end, |Run { first: at, nr_pages, sfn, size }| {
        for n in (0..nr_pages).step_by(size.frames() as usize) {
            let folio = host.folios().get(Sfn::new(sfn.raw() + n));
            if folio.is_some_and(|folio| folio.meta.refs > folio.cache_refs() + folio.meta.maps || folio.pins > 0) {
                return ControlFlow::Break((at + n).max(first));
            }
        }
        ControlFlow::Continue(())
    });
    found.break_value()
}

impl Books<'_> {
    /// Whether a unit is one folio.
    pub(super) fn is_whole(&self, unit: Unit) -> bool {
        matches!(self.cache.at(unit.base), Place::Folio(backed) if backed.size == unit.size)
    }
}

impl Exclusive<'_> {
    /// Whether `range` can become `to`; `None` when it is that already. No effects but time, where the policy waits for
    /// pages that are held.
    pub fn plan_conversion(
        &self,
        host: &Host,
        range: PageRange,
        to: Shareability,
        task: &Task<'_>,
    ) -> Result<Option<Conversion>, ConvertError> {
        if !self.changes(range, to, task)? {
            return Ok(None);
        }
        if to.is_private()
            && let Err(error) = self.check_unused(host, range, task)
        {
            let index = error.error_index().unwrap_or(range.first).0;
            task.report(Event::ConvertRefused { ino: self.inode.ino, index, errno: error.errno().value() });
            self.roll_back(range, task);
            return Err(error);
        }
        let range = self.listed(host, range, to, task)?;
        self.inode.host_map_takes(host, (range.first.0, range.end().0), task)?;
        Ok(Some(Conversion { range, to, zap: self.reach(host, range, task) }))
    }

    /// Whether making `range` `to` is something that can be asked for, and changes anything.
    pub fn changes(&self, range: PageRange, to: Shareability, task: &Task<'_>) -> Result<bool, ConvertError> {
        let inode = self.inode;
        let generation = inode.policy.generation;
        if !generation.has_inode_attributes() {
            return Err(ConvertError::NotSupported { generation });
        }
        if range.nr_pages == 0 && generation == Generation::V2 {
            return Ok(false);
        }
        if range.nr_pages == 0 || !range.lies_in(inode.nr_pages) {
            return Err(ConvertError::OutOfBounds { range, nr_pages: inode.nr_pages });
        }
        let attributes = inode.attributes(task);
        Ok(!attributes.is_uniform(range.first.0, range.nr_pages) || attributes.get(range.first.0) != to)
    }

    /// `range` and all of the folios that reach into it: what users must not map when those are to be split.
    pub fn with_folios(&self, range: PageRange, task: &Task<'_>) -> PageRange {
        let cache = self.inode.cache.read(task);
        let size = |index: u64| match cache.at(index) {
            Place::Folio(backed) => backed.size,
            Place::Gone(_) | Place::Vacant(_) => PageSize::Size4K,
        };
        let (first, end) = (range.first.0, range.end().0);
        let from = first & !(size(first).frames() - 1);
        let to = end.next_multiple_of(size(end.saturating_sub(1)).frames());
        PageRange { first: PageIndex(from), nr_pages: to - from }
    }

    /// Whether no shared page of `range` is held by the host.
    fn check_unused(&self, host: &Host, range: PageRange, task: &Task<'_>) -> Result<(), ConvertError> {
        let mut tries = match self.inode.policy.busy {
            BusyPages::Refuse => 0,
            BusyPages::Wait { tries } => tries,
        };
        let mut drained = task.has(Defect::CountBatches);
        loop {
            if self.inode.policy.generation == Generation::V1 {
                return match self.first_mapped(host, range, task) {
                    Some(index) => Err(ConvertError::Mapped { index }),
                    None => Ok(()),
                };
            }
            let Some(index) = self.first_busy(host, range, task) else { return Ok(()) };
            if !drained && self.inode.batches.drain(host, task) {
                drained = true;
                continue;
            }
            if tries == 0 && !task.has(Defect::WaitForPins) {
                return Err(ConvertError::Busy { index });
            }
            tries = tries.saturating_sub(1);
            task.give_way();
        }
    }

    /// The first page of `range` in a folio that cannot become private.
    fn first_busy(&self, host: &Host, range: PageRange, task: &Task<'_>) -> Option<PageIndex> {
        let attributes = self.inode.attributes(task);
        let (cache, host) = (self.inode.cache.read(task), host.lock(task));
        let (first, end) = (range.first.0, range.end().0);
        let shared = attributes.runs_in(first, end).filter(|run| run.2.host_may_use());
        for (at, nr_pages, state) in shared {
            let held = match task.has(Defect::CountBeforeUnmap) {
                true => first_referenced(&cache, &host, at, at + nr_pages),
                false => first_held(&cache, &host, at, at + nr_pages),
            };
            if let Some(index) = held
                && transition::to_private(state, Holders::Others).is_err()
            {
                return Some(PageIndex(index));
            }
        }
        None
    }

    /// The range, and all of the folios at its ends if they are to be split to the smallest size throughout.
    fn reach(&self, host: &Host, range: PageRange, task: &Task<'_>) -> PageRange {
        if self.inode.policy.split != SplitPolicy::Eager4K {
            return range;
        }
        let books = self.inode.books(host, task);
        let around = |index: u64| books.cache.unit_at(index).map(|unit| (unit.base, unit.end()));
        let (first, end) = (range.first.0, range.end().0);
        let first = around(first).map_or(first, |unit| unit.0);
        let end = around(end - 1).map_or(end, |unit| unit.1.max(end));
        PageRange { first: PageIndex(first), nr_pages: end - first }
    }

    /// Does what was planned. The caller zapped and flushed [`Conversion::zap`] since, and has not ended the
    /// invalidation.
    pub fn convert(&self, host: &Host, conversion: &Conversion, task: &Task<'_>) -> Result<(), ConvertError> {
        self.split_for(host, conversion, task)?;
        self.take_back(host, conversion, task)?;
        self.store(host, conversion, task);
        self.merge_after(host, conversion, task);
        Ok(())
    }

    /// Splits what the new attributes do not let be one folio; a part of [`Exclusive::convert`].
    pub fn split_for(
        &self,
        host: &Host,
        &Conversion { range, to, .. }: &Conversion,
        task: &Task<'_>,
    ) -> Result<(), ConvertError> {
        let granule = self.inode.granule();
        if !granule.is_eager() || self.inode.unit == PageSize::Size4K {
            return Ok(());
        }
        let span = (range.first.0, range.end().0);
        let attributes = self.inode.attributes(task);
        let outlook = Outlook::after(&attributes, span.0, span.1, to);
        let needs = |base, size| granule.needs_split(&outlook, base, size);
        let mut cuts = Vec::new();
        let mut tries = if task.has(Defect::FreezeGivesUp) { 0 } else { FREEZE_TRIES };
        loop {
            let mut books = self.inode.books(host, task);
            let Err(CutFailed { index, cause }) = books.split(span, granule, &needs, &mut cuts) else { break };
            if let (SplitError::Busy { .. }, 1..) = (cause, tries) {
                // References were asked for before, or there can be none: this one is of somebody who looks at every
                // page and will find that it is none of his. What was split stays so meanwhile.
                tries -= 1;
                drop(books);
                task.give_way();
                continue;
            }
            if !task.has(Defect::LeaveSplitOnError) {
                books.undo(&cuts);
            }
            return Err(ConvertError::Split { index: index.max(range.first), cause });
        }
        if !cuts.is_empty() {
            task.at(Point::A5);
        }
        Ok(())
    }

    /// Pages that become shared are the host's again (`kvm_arch_gmem_make_shared`), before anybody can use them as such; a
    /// part of [`Exclusive::convert`].
    pub fn take_back(
        &self,
        host: &Host,
        &Conversion { range, to, .. }: &Conversion,
        task: &Task<'_>,
    ) -> Result<(), ConvertError> {
        if to.is_private() || !host.has_frame_owner() {
            return Ok(());
        }
        let mut books = self.inode.books(host, task);
        let Books { cache, host, .. } = &mut books;
        let (first, end) = (range.first.0, range.end().0);
        let kept = cache.runs(first, end, |Run { first: at, nr_pages, sfn, .. }| {
            let (from, to) = (at.max(first), (at + nr_pages).min(end));
            let start = Sfn::new(sfn.raw() + (from - at));
            match host.reclaim(start, to - from, Leaving::Shared, task) {
                Some(kept) => ControlFlow::Break(from + (kept.raw() - start.raw())),
                None => ControlFlow::Continue(()),
            }
        });
        match kept.break_value() {
            Some(index) => Err(ConvertError::Owned { index: PageIndex(index) }),
            None => Ok(()),
        }
    }

    /// Stores the attributes, and clears what is to be cleared of the pages that change.
    pub(super) fn store(&self, host: &Host, &Conversion { range, to, .. }: &Conversion, task: &Task<'_>) {
        let content = if to.is_private() { self.inode.policy.to_private } else { self.inode.policy.to_shared };
        if content == Content::Zero {
            let attributes = self.inode.attributes(task);
            let books = self.inode.books(host, task);
            for (at, nr_pages, _) in attributes.runs_in(range.first.0, range.end().0).filter(|run| run.2 != to) {
                let end = at + nr_pages;
                books.cache.each_run(at, end, |run| {
                    let (from, to) = (run.first.max(at), (run.first + run.nr_pages).min(end));
                    books.host.clear(Sfn::new(run.sfn.raw() + (from - run.first)), to - from);
                });
            }
        }
        if self.inode.policy.host_mapping != HostMapping::Untouched {
            let mut books = self.inode.books(host, task);
            self.inode.host_map_changes(&mut books, (range.first.0, range.end().0), to);
        }
        self.inode.set_attributes(range, to, task);
        let (ino, index) = (self.inode.ino, range.first.0);
        task.report(Event::Converted { ino, index, nr_pages: range.nr_pages, to: to.into() });
    }

    /// Merges what the new attributes let be one folio. What somebody holds stays split.
    pub(super) fn merge_after(&self, host: &Host, &Conversion { range, .. }: &Conversion, task: &Task<'_>) {
        let inode = self.inode;
        if inode.unit == PageSize::Size4K {
            return;
        }
        let granule = inode.granule();
        let (first, end) = (range.first.0, range.end().0);
        let attributes = inode.attributes(task);
        let outlook = Outlook::now(&attributes);
        let mut books = inode.books(host, task);
        let mut at = first;
        let mut merged = 0;
        while let Some(unit) = books.cache.unit_from(at).filter(|unit| unit.base < end) {
            at = unit.end();
            let inside = first <= unit.base && unit.end() <= end;
            if inode.policy.has(Quirks::MERGE_INSIDE_RANGE_ONLY) && !inside {
                continue;
            }
            merged += books.merge(unit, (first, end), granule, &|base, size| granule.needs_split(&outlook, base, size));
        }
        drop(books);
        if merged > 0 {
            task.at(Point::A5);
        }
    }
}
