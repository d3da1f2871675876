//! An inode as a check looks at it: what it is, who looks at it, what its pages are and where they stand, all at one
//! moment and without waiting for anybody.
//!
//! [`GuestMemfd::view`] is the door. A part whose lock somebody holds is left out, since it may be half changed. Cost
//! follows what the inode holds.

use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};

use super::tree::Run;
use super::{Bound, GmemFlags, GuestMemfd, PageIndex};
use crate::shareability::Shareability;

/// Folios of one size that follow one another, in indices as in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioRun {
    /// First index.
    pub first: PageIndex,
    /// Pages.
    pub nr_pages: u64,
    /// First frame.
    pub sfn: Sfn,
    /// Size of each folio.
    pub size: PageSize,
}

impl FolioRun {
    /// The frame of one of its pages; meaningless for others.
    pub const fn frame_of(&self, index: PageIndex) -> Sfn {
        Sfn::new(self.sfn.raw().wrapping_add(index.0.wrapping_sub(self.first.0)))
    }

    /// First index and first frame of each folio.
    pub fn folios(self) -> impl Iterator<Item = (PageIndex, Sfn)> {
        let each = (0..self.nr_pages).step_by(self.size.frames() as usize);
        each.map(move |n| (PageIndex(self.first.0 + n), Sfn::new(self.sfn.raw() + n)))
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeView {
    /// Size in 4K pages.
    pub nr_pages: u64,
    /// Flags of creation.
    pub flags: GmemFlags,
    /// The first index of each binding and what looks at it, ascending; `None` while they may change.
    pub bindings: Option<Vec<(PageIndex, Bound)>>,
    /// The first index of each run of pages in one state, ascending; `None` while they change.
    pub attributes: Option<Vec<(u64, Shareability)>>,
    /// The page cache, ascending; `None` while it changes.
    pub folios: Option<Vec<FolioRun>>,
}

impl InodeView {
    /// The folios around `index`.
    pub fn folios_at(&self, index: PageIndex) -> Option<&FolioRun> {
        let runs = self.folios.as_deref()?;
        let above = runs.partition_point(|run| run.first <= index);
        runs.get(above.checked_sub(1)?).filter(|run| index.0 - run.first.0 < run.nr_pages)
    }

    /// Who may use `index`.
    pub fn attribute(&self, index: PageIndex) -> Option<Shareability> {
        let runs = self.attributes.as_deref()?;
        let above = runs.partition_point(|run| run.0 <= index.0);
        runs.get(above.checked_sub(1)?).map(|run| run.1)
    }

    /// Whether `nr_pages` from `first` are in one state; `None` when nobody can tell now.
    pub fn is_uniform(&self, first: PageIndex, nr_pages: u64) -> Option<bool> {
        let runs = self.attributes.as_deref()?;
        let above = runs.partition_point(|run| run.0 <= first.0);
        Some(runs.get(above).is_none_or(|run| run.0 >= first.0.saturating_add(nr_pages)))
    }
}

impl GuestMemfd {
    /// What it is at this moment; never waits.
    pub fn view(&self, task: &Task<'_>) -> InodeView {
        let folios = self.cache.try_read(task).map(|cache| {
            let mut found = Vec::new();
            cache.each_run(0, self.nr_pages, |Run { first, nr_pages, sfn, size }| {
                found.push(FolioRun { first: PageIndex(first), nr_pages, sfn, size });
            });
            found
        });
        InodeView {
            nr_pages: self.nr_pages,
            flags: self.flags,
            bindings: self.bindings.try_read(task).map(|bindings| bindings.iter().collect()),
            attributes: self
                .attributes
                .try_read(task)
                .map(|attributes| attributes.runs().map(|(first, _, state)| (first, state)).collect()),
            folios,
        }
    }
}
