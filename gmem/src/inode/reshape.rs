//! Splitting and merging the folios of an inode: which there should be, by policy and attributes, and how to get there.
//!
//! [`Granule`] says whether a block may be one folio. [`Books`] holds what a change of shape touches, the provider, the
//! page cache and the host's memory, so that nobody sees one without the other. A split may run out of memory, at any
//! of many folios; [`Books::undo`] then merges those split so far. A merge that fails leaves the pieces: what is in the
//! way is somebody's reference or a bad frame, and a later conversion tries again.
//!
//! The caller has zapped what maps the folios to be split, and splits before the attribute becomes visible that needs it;
//! merging is the reverse.

use emu_core::defect::Defect;
use emu_core::event::{Event, Ino};
use emu_core::sync::{MutexGuard, Point, Task, WriteGuard};
use emu_core::{PageSize, Sfn};

use super::tree::{PageCache, Place, Run, Unit};
use super::{GmemFlags, GuestMemfd, PageIndex};
use crate::Host;
use crate::host::HostMemory;
use crate::owner::Leaving;
use crate::policy::{GmemPolicy, SharedFolios, SplitPolicy};
use crate::provider::{FolioProvider, SplitError};
use crate::shareability::{Shareability, ShareabilityMap};

/// The attributes of an inode as they are, or as they will be once a range is converted.
pub(super) struct Outlook<'m> {
    states: States<'m>,
    change: Option<(u64, u64, Shareability)>,
}

enum States<'m> {
    Map(&'m ShareabilityMap),
    /// Of every index.
    All(Shareability),
}

impl States<'_> {
    fn contains(&self, first: u64, nr_pages: u64, state: Shareability) -> bool {
        match self {
            States::Map(map) => map.contains(first, nr_pages, state),
            States::All(all) => *all == state,
        }
    }
}

impl<'m> Outlook<'m> {
    pub(super) const fn now(map: &'m ShareabilityMap) -> Outlook<'m> {
        Outlook { states: States::Map(map), change: None }
    }

    /// Every index has the same attribute.
    pub(super) const fn throughout(state: Shareability) -> Outlook<'m> {
        Outlook { states: States::All(state), change: None }
    }

    pub(super) const fn after(map: &'m ShareabilityMap, first: u64, end: u64, to: Shareability) -> Outlook<'m> {
        Outlook { states: States::Map(map), change: Some((first, end, to)) }
    }

    fn contains(&self, first: u64, end: u64, state: Shareability) -> bool {
        let Some((from, to, changed)) = self.change else { return self.states.contains(first, end - first, state) };
        let outside = |a: u64, b: u64| a < b && self.states.contains(a, b - a, state);
        (changed == state && first.max(from) < end.min(to))
            || outside(first, end.min(from))
            || outside(first.max(to), end)
    }
}

/// Which blocks may be one folio.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granule {
    split: SplitPolicy,
    shared_may_be_whole: bool,
}

impl Granule {
    pub(super) fn of(policy: &GmemPolicy, flags: GmemFlags) -> Granule {
        let shared_may_be_whole = match policy.shared {
            SharedFolios::Split => false,
            SharedFolios::Whole => true,
            SharedFolios::WholeIfInitShared => flags.contains(GmemFlags::INIT_SHARED),
        };
        Granule { split: policy.split, shared_may_be_whole }
    }

    /// Whether the pages of the block of `size` at `base` must be in more than one folio.
    pub(super) fn needs_split(self, outlook: &Outlook<'_>, base: u64, size: PageSize) -> bool {
        if size == PageSize::Size4K {
            return false;
        }
        let end = base + size.frames();
        self.split == SplitPolicy::Always4K
            || outlook.contains(base, end, Shareability::SHARED)
                && (!self.shared_may_be_whole || outlook.contains(base, end, Shareability::PRIVATE))
    }

    /// The size of pieces of a folio that is split.
    const fn target(self, size: PageSize) -> PageSize {
        match (self.split, size) {
            (SplitPolicy::EagerIntermediate | SplitPolicy::Lazy, PageSize::Size1G) => PageSize::Size2M,
            _ => PageSize::Size4K,
        }
    }

    /// Whether a conversion splits what it must.
    pub(super) fn is_eager(self) -> bool {
        self.split != SplitPolicy::Lazy
    }

    /// Whether a split folio may become one again.
    fn merges(self) -> bool {
        self.split != SplitPolicy::Always4K
    }
}

/// A folio that was split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    base: u64,
    head: Sfn,
    size: PageSize,
}

/// A split that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct CutFailed {
    /// First index of the folio.
    pub(super) index: PageIndex,
    /// Why.
    pub(super) cause: SplitError,
}

/// See the module.
pub(super) struct Books<'a> {
    pub(super) provider: MutexGuard<'a, Box<dyn FolioProvider>>,
    pub(super) cache: WriteGuard<'a, PageCache>,
    pub(super) host: MutexGuard<'a, HostMemory>,
    ino: Ino,
    task: Task<'a>,
}

impl GuestMemfd {
    pub(super) fn books<'a>(&'a self, host: &'a Host, task: &Task<'a>) -> Books<'a> {
        Books {
            provider: self.provider.lock(task),
            cache: self.cache.write(task),
            host: host.lock(task),
            ino: self.ino,
            task: *task,
        }
    }
}

impl Books<'_> {
    /// Splits the folios that reach into `[first, end)` as far as `needs` says of them, noting each in `cuts`.
    pub(super) fn split(
        &mut self,
        (first, end): (u64, u64),
        granule: Granule,
        needs: &dyn Fn(u64, PageSize) -> bool,
        cuts: &mut Vec<Cut>,
    ) -> Result<(), CutFailed> {
        let mut at = first;
        while at < end {
            let Place::Folio(backed) = self.cache.at(at) else {
                match self.cache.unit_from(at) {
                    Some(unit) if unit.base > at => at = unit.base,
                    // A gone piece: its block is split to 4K.
                    Some(_) => at = next_block(at),
                    None => break,
                }
                continue;
            };
            let (base, size) = (at & !(backed.size.frames() - 1), backed.size);
            if size == PageSize::Size4K {
                // Where one piece of a unit's 2M block is 4K, all are; single pages have no unit around them.
                let unit = self.cache.unit_at(at).map_or(size, |unit| unit.size);
                at = if unit == PageSize::Size4K { at + 1 } else { next_block(at) };
                continue;
            }
            if !needs(base, size) {
                at = base + size.frames();
                continue;
            }
            let head = backed.sfn.align_down(size);
            let target = granule.target(size);
            self.provider
                .split(&mut self.host, head, target)
                .map_err(|cause| CutFailed { index: PageIndex(base), cause })?;
            self.cache.split(base, target);
            if self.task.has(Defect::ForgetPoisonInSplit) {
                // The list of lost frames goes with the folio, and no piece is marked.
                let pieces = head.raw()..head.raw() + size.frames();
                self.host.poisoned.retain(|frame| !pieces.contains(frame));
            }
            self.task.report(Event::FolioSplit { ino: self.ino, index: base, sfn: head, from: size, to: target });
            cuts.push(Cut { base, head, size });
        }
        Ok(())
    }

    /// Takes splits back, the last first. What cannot be merged because somebody took a reference meanwhile stays split.
    pub(super) fn undo(&mut self, cuts: &[Cut]) {
        for cut in cuts.iter().rev() {
            if self.provider.reconstruct(&mut self.host, cut.head, cut.size).is_ok() {
                self.merged(cut.base, cut.head, cut.size);
            }
        }
    }

    /// Merges the pieces of `unit` around `[first, end)` as far as `needs` lets them be one folio, each to the largest;
    /// folios that came of it.
    pub(super) fn merge(
        &mut self,
        unit: Unit,
        (first, end): (u64, u64),
        granule: Granule,
        needs: &dyn Fn(u64, PageSize) -> bool,
    ) -> u64 {
        if !granule.merges() || unit.size == PageSize::Size4K || self.is_folio(unit.base, unit.size) {
            return 0;
        }
        if !needs(unit.base, unit.size) && self.merge_block(unit, unit.base, unit.size) {
            return 1;
        }
        let m2 = PageSize::Size2M;
        if unit.size <= m2 || granule.target(unit.size) != m2 {
            return 0;
        }
        let from = first.max(unit.base) & !(m2.frames() - 1);
        let mut merged = 0;
        for base in (from..end.min(unit.end())).step_by(m2.frames() as usize) {
            if !self.is_folio(base, m2) && !needs(base, m2) && self.merge_block(unit, base, m2) {
                merged += 1;
            }
        }
        merged
    }

    fn is_folio(&self, base: u64, size: PageSize) -> bool {
        matches!(self.cache.at(base), Place::Folio(backed) if backed.size == size)
    }

    fn merge_block(&mut self, unit: Unit, base: u64, size: PageSize) -> bool {
        let head = Sfn::new(unit.head.raw() + (base - unit.base));
        let merged =
            self.cache.is_complete(base, size) && self.provider.reconstruct(&mut self.host, head, size).is_ok();
        if merged {
            self.merged(base, head, size);
        }
        merged
    }

    fn merged(&mut self, base: u64, head: Sfn, size: PageSize) {
        self.cache.merge(base, size);
        self.task.report(Event::FolioMerged { ino: self.ino, index: base, sfn: head, size });
    }

    /// Takes a unit out of the page cache. What is split is made whole first if nobody holds a piece, so that it goes
    /// back as one; otherwise its pieces go one by one and the unit when the last is back.
    pub(super) fn remove_unit(&mut self, unit: Unit) {
        let mut runs = Vec::new();
        self.take_unit(unit, &mut runs);
        runs.into_iter().for_each(|run| self.put_run(run));
    }

    /// The same, but the references remain: they are to be dropped on `runs`, to which the folios are added.
    pub(super) fn take_unit(&mut self, unit: Unit, runs: &mut Vec<Run>) {
        let whole = self.is_folio(unit.base, unit.size) || self.merge_block(unit, unit.base, unit.size);
        if whole {
            let run = Run { first: unit.base, nr_pages: unit.size.frames(), sfn: unit.head, size: unit.size };
            match runs.last_mut() {
                Some(last) if last.is_followed_by(&run) => last.nr_pages += run.nr_pages,
                _ => runs.push(run),
            }
        } else {
            self.cache.each_run(unit.base, unit.end(), |run| runs.push(run));
        }
        self.cache.remove_unit(unit);
    }

    /// Drops the page cache's references on folios that it no longer has.
    pub(super) fn put_run(&mut self, run: Run) {
        if !self.task.has(Defect::FreeAssigned) {
            self.host.reclaim(run.sfn, run.nr_pages, Leaving::Freed, &self.task);
        }
        self.host.put_run(run.sfn, run.nr_pages, run.size);
        if self.task.is_reporting() {
            for n in (0..run.nr_pages).step_by(run.size.frames() as usize) {
                let (index, sfn) = (run.first + n, Sfn::new(run.sfn.raw() + n));
                self.task.report(Event::FolioRemoved { ino: self.ino, index, sfn, size: run.size });
            }
        }
        self.host.report_pool(run.size, &self.task);
    }
}

const fn next_block(index: u64) -> u64 {
    (index | (PageSize::Size2M.frames() - 1)) + 1
}

impl GuestMemfd {
    pub(super) fn granule(&self) -> Granule {
        Granule::of(&self.policy, self.flags)
    }

    /// Splits the folio around `index` as far as the attributes want it, if a conversion left that to its next user.
    pub(super) fn split_late(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<(), CutFailed> {
        let granule = self.granule();
        if granule.is_eager() {
            return Ok(());
        }
        let attributes = self.attributes(task);
        let outlook = Outlook::now(&attributes);
        let mut books = self.books(host, task);
        let Some(unit) = books.cache.unit_at(index.0).filter(|unit| unit.size > PageSize::Size4K) else {
            return Ok(());
        };
        let needs = |base, size| granule.needs_split(&outlook, base, size);
        let mut cuts = Vec::new();
        let cut = books.split((index.0, index.0 + 1), granule, &needs, &mut cuts);
        if cut.is_err() {
            books.undo(&cuts);
        }
        debug_assert!(unit.base <= index.0 && index.0 < unit.end());
        drop(books);
        task.at(Point::A5);
        cut
    }
}
