//! Holes: removing folios, and parts of them (`kvm_gmem_punch_hole`).
//!
//! Whole units go back to their provider, made one again first if they are split. Of a unit that reaches out of the hole
//! the policy says what happens: see [`PunchPolicy`]. Attributes are not touched. Always true without quirks: every byte
//! of the hole reads as zero afterwards, every byte beside it as before; who holds a reference on a page that was
//! removed as a whole keeps its bytes.

use core::sync::atomic::Ordering;

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::sync::Task;
use emu_core::{Errno, PageSize, Sfn};
use thiserror::Error;

use super::convert::first_held;
use super::lock::Exclusive;
use super::reshape::Books;
use super::tree::{Run, Unit};
use super::{GuestMemfd, PageIndex, PageRange};
use crate::Host;
use crate::owner::Leaving;
use crate::policy::{Generation, PunchPolicy, Quirks};

/// Units that are removed before others may look at the page cache and the host's memory.
const PORTION: u32 = 512;

/// Why there is no hole; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HoleError {
    /// `EINVAL`.
    #[error("a hole from page {:#x} to {:#x} is not made of pages of {page}", range.first.0, range.end().0)]
    Misaligned {
        /// The hole.
        range: PageRange,
        /// The inode's page size.
        page: PageSize,
    },
    /// `EAGAIN`: a piece of a huge page to be removed is held.
    #[error("page {} is held, so its huge page cannot be removed", index.0)]
    Busy {
        /// First index of the piece.
        index: PageIndex,
    },
}

impl HoleError {
    /// What `fallocate` returns.
    pub const fn errno(&self) -> Errno {
        match self {
            HoleError::Misaligned { .. } => Errno::Inval,
            HoleError::Busy { .. } => Errno::Again,
        }
    }
}

impl Exclusive<'_> {
    /// Whether the policy has the hole. What is behind the end of the inode does not matter.
    pub fn check_hole(&self, host: &Host, range: PageRange, task: &Task<'_>) -> Result<(), HoleError> {
        let inode = self.inode;
        let page = inode.unit;
        let multiple = |index: u64| index.is_multiple_of(page.frames()) || index >= inode.nr_pages;
        if inode.policy.punch == PunchPolicy::Refuse && !(multiple(range.first.0) && multiple(range.end().0)) {
            return Err(HoleError::Misaligned { range, page });
        }
        if matches!(inode.policy.generation, Generation::V2 | Generation::Wip) {
            // Those merge before they remove, and cannot while a piece is held.
            let range = range.clipped(inode.nr_pages);
            let books = inode.books(host, task);
            let mut at = range.first.0;
            while let Some(unit) = books.cache.unit_from(at).filter(|unit| unit.base < range.end().0) {
                at = unit.end();
                if range.first.0 <= unit.base
                    && unit.end() <= range.end().0
                    && let Some(index) =
                        first_held(&books.cache, &books.host, unit.base, unit.end()).filter(|_| !books.is_whole(unit))
                {
                    return Err(HoleError::Busy { index: PageIndex(index) });
                }
            }
        }
        Ok(())
    }

    /// Removes the folios of `range`, clipped to the inode, as far as they lie inside it, and what the policy says of the
    /// rest. The caller [asked](Exclusive::check_hole), and zapped and flushed what [`Exclusive::bound`] told.
    pub fn remove(&self, host: &Host, range: PageRange, task: &Task<'_>) {
        let inode = self.inode;
        task.report(Event::Punched { ino: inode.ino, index: range.first.0, nr_pages: range.nr_pages });
        inode.remove_range(host, range.clipped(inode.nr_pages), task);
    }
}

impl GuestMemfd {
    pub(super) fn remove_range(&self, host: &Host, range: PageRange, task: &Task<'_>) {
        let (first, end) = (range.first.0, range.end().0);
        let mut at = first;
        let mut runs = Vec::new();
        while at < end {
            let mut books = self.books(host, task);
            // In portions, so that others get at the books too.
            let mut left = PORTION;
            loop {
                let Some(unit) = books.cache.unit_from(at).filter(|unit| unit.base < end) else {
                    at = end;
                    break;
                };
                at = unit.end();
                if first <= unit.base && unit.end() <= end {
                    books.take_unit(unit, &mut runs);
                } else {
                    let part = (first.max(unit.base), end.min(unit.end()));
                    self.remove_part(&mut books, unit, part, task);
                }
                left -= 1;
                if left == 0 {
                    break;
                }
            }
            runs.drain(..).for_each(|run| books.put_run(run));
        }
    }

    fn remove_part(&self, books: &mut Books<'_>, unit: Unit, (first, end): (u64, u64), task: &Task<'_>) {
        if self.policy.punch == PunchPolicy::SplitAndFree {
            let granule = self.granule();
            let inside = |base: u64, size: PageSize| base < end && first < base + size.frames();
            let mut cuts = Vec::new();
            if books.split((first, end), granule, &inside, &mut cuts).is_ok() {
                let mut runs = Vec::new();
                books.cache.each_run(first, end, |run| runs.push(run));
                for run in runs {
                    books.cache.remove_pieces(run.first, run.first + run.nr_pages);
                    books.put_run(run);
                }
                return;
            }
            books.undo(&cuts);
        }
        let strictly_inside = unit.base < first && end < unit.end();
        let (first, end) = if self.policy.has(Quirks::HOLE_CLEARS_HUGE_PAGE) && strictly_inside {
            (unit.base, unit.end())
        } else if self.policy.has(Quirks::HOLE_CLEARS_FROM_HEAD) && books.is_whole(unit) {
            (unit.base, end)
        } else {
            (first, end)
        };
        let Books { cache, host, .. } = books;
        cache.each_run(first, end, |Run { first: at, nr_pages, sfn, .. }| {
            let (from, to) = (at.max(first), (at + nr_pages).min(end));
            let sfn = Sfn::new(sfn.raw() + (from - at));
            if !task.has(Defect::ClearAssigned) && host.reclaim(sfn, to - from, Leaving::Freed, task).is_some() {
                // The page is gone for good: its next use finds it lost.
                self.nr_poisoned.fetch_add(1, Ordering::AcqRel);
            }
            host.clear(sfn, to - from);
            task.report(Event::FolioZeroed { sfn, nr_pages: to - from });
        });
    }
}
