//! Units: what was allocated as one block and goes back as one, however it was split meanwhile.
//!
//! A unit that is whole needs no record: its folio's entry names its source. Splitting makes one in [`UnitTable`], which
//! is the host's, so that it outlives the inode; merging back to the whole unit ends it. A piece without references
//! leaves the folio table and waits in its unit; with the last one the unit goes to its source.
//!
//! Always true: the pieces in use, those waiting and nothing else make up a split unit; a split unit is on no free list;
//! a piece of a split unit is used by nobody but the unit's inode and who took references while it was shared, so pieces
//! in place are pieces of one original. The vmemmap of what is split to 4K is restored; 2M pieces of a pool's page are
//! optimised again when the host optimises at all.
//!
//! Left out: freezing by a spinning compare-and-exchange (the owner's lock freezes), deferred merging by a worker.

use std::collections::BTreeMap;

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::extent::ExtentSet;
use crate::folio::{Folio, FolioFlags, FolioKind, Obstacle, Source};
use crate::host::HostMemory;
use crate::pool::HugeSize;
use crate::vmemmap::{VmemmapExhausted, saved_pages};

/// What a split did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Folios there are now in place of one.
    pub pieces: u64,
    /// Frames taken from the page allocator to restore the unit's vmemmap.
    pub vmemmap_taken: u64,
    /// Frames given back because the pieces could be optimised again.
    pub vmemmap_given: u64,
}

/// Why a folio was not split; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SplitError {
    /// Nothing of an inode starts there.
    #[error("{head:?} is not the head of an inode's folio")]
    NotAFolio {
        /// The frame.
        head: Sfn,
    },
    /// It is no larger than the target.
    #[error("the folio at {head:?} of {size} cannot be split to {target}")]
    NotLarger {
        /// The folio.
        head: Sfn,
        /// Its size.
        size: PageSize,
        /// The size asked for.
        target: PageSize,
    },
    /// `EAGAIN`: somebody beside the page cache holds it, so it cannot be frozen.
    #[error("the folio at {head:?} has {refs} references where the page cache has {cache}")]
    Busy {
        /// The folio.
        head: Sfn,
        /// References.
        refs: u32,
        /// References of the page cache.
        cache: u32,
    },
    /// `ENOMEM`.
    #[error(transparent)]
    Vmemmap(#[from] VmemmapExhausted),
}

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconstructed {
    /// Folios that became one.
    pub pieces: u64,
    /// Frames cleared, because they had no defined contents and others had.
    pub cleared: u64,
    /// Frames given to the page allocator by optimising.
    pub vmemmap_given: u64,
    /// Whether the unit is whole again.
    pub whole: bool,
}

/// Why pieces were not merged; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReconstructError {
    /// The range is not a multiple of its size, or of no huge size.
    #[error("{head:?} does not start a folio of {size}")]
    NotABlock {
        /// Where the folio was to start.
        head: Sfn,
        /// Its size.
        size: PageSize,
    },
    /// No unit of at least that size is split there.
    #[error("no unit of {size} or more is split at {head:?}")]
    NotSplit {
        /// Where the folio was to start.
        head: Sfn,
        /// Its size.
        size: PageSize,
    },
    /// A piece is gone.
    #[error("{sfn:?} is not in use")]
    Hole {
        /// The first frame of the gap.
        sfn: Sfn,
    },
    /// A piece is used for something else.
    #[error("{sfn:?} is not a page of an inode")]
    Foreign {
        /// The frame.
        sfn: Sfn,
    },
    /// `EAGAIN`: a piece is held, mapped or pinned.
    #[error("the piece at {sfn:?} has {refs} references where the page cache has {cache}")]
    Busy {
        /// The piece.
        sfn: Sfn,
        /// References.
        refs: u32,
        /// References of the page cache.
        cache: u32,
    },
    /// `EHWPOISON`.
    #[error("the memory of the piece at {sfn:?} failed")]
    Poisoned {
        /// The piece.
        sfn: Sfn,
    },
}

impl From<Obstacle> for ReconstructError {
    fn from(obstacle: Obstacle) -> ReconstructError {
        match obstacle {
            Obstacle::Hole(sfn) => ReconstructError::Hole { sfn },
            Obstacle::Foreign(sfn) => ReconstructError::Foreign { sfn },
            Obstacle::Poisoned(sfn) => ReconstructError::Poisoned { sfn },
            Obstacle::Busy(folio) => {
                ReconstructError::Busy { sfn: folio.head, refs: folio.meta.refs, cache: folio.cache_refs() }
            }
        }
    }
}

/// Why a piece of a unit cannot be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReuseError {
    /// Somebody still holds what was removed.
    #[error("{sfn:?} is still held by whoever used it before")]
    Held {
        /// The piece.
        sfn: Sfn,
    },
    /// `EHWPOISON`.
    #[error("the memory of {sfn:?} failed")]
    Poisoned {
        /// The piece.
        sfn: Sfn,
    },
}

/// A unit that is split.
#[derive(Clone, Debug)]
struct SplitUnit {
    size: PageSize,
    source: Source,
    /// Frames that are back and wait for the others.
    back: ExtentSet,
    /// 2M pieces, in use or back, whose vmemmap is optimised.
    optimised: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct UnitTable {
    units: BTreeMap<u64, SplitUnit>,
}

impl UnitTable {
    fn around(&self, sfn: Sfn) -> Option<(Sfn, &SplitUnit)> {
        let (&head, unit) = self.units.range(..=sfn.raw()).next_back()?;
        (sfn.raw() - head < unit.size.frames()).then_some((Sfn::new(head), unit))
    }

    fn around_mut(&mut self, sfn: Sfn) -> Option<(Sfn, &mut SplitUnit)> {
        let (&head, unit) = self.units.range_mut(..=sfn.raw()).next_back()?;
        (sfn.raw() - head < unit.size.frames()).then_some((Sfn::new(head), unit))
    }

    /// Units that are split.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// The units that are split: head, size, where they go back to, and how many of their frames are back; ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Sfn, PageSize, Source, u64)> + '_ {
        self.units.iter().map(|(&head, unit)| (Sfn::new(head), unit.size, unit.source, unit.back.len()))
    }

    /// Whether no unit is split.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The split unit that `sfn` is a frame of: its head and size.
    pub fn unit_of(&self, sfn: Sfn) -> Option<(Sfn, PageSize)> {
        self.around(sfn).map(|(head, unit)| (head, unit.size))
    }

    /// Whether `sfn` is back and waits for the rest of its unit.
    pub fn is_waiting(&self, sfn: Sfn) -> bool {
        self.around(sfn).is_some_and(|(_, unit)| unit.back.contains(sfn.raw()))
    }

    /// Frames that are back and wait for the rest of their unit.
    pub fn waiting_frames(&self) -> u64 {
        self.units.values().map(|unit| unit.back.len()).sum()
    }
}

/// How the vmemmap of a unit stands when all of it is back.
#[derive(Clone, Copy)]
enum Hvo {
    /// As the source has its units.
    Whole,
    /// This many of its 2M pieces are optimised, the rest is restored.
    Pieces(u64),
}

impl HostMemory {
    /// Makes the folio at `head` folios of `target` (`__split_folio_to_order`). What memory that takes is taken first.
    pub fn split_folio(&mut self, head: Sfn, target: PageSize) -> Result<Split, SplitError> {
        let folio = self.folios.get(head).filter(|folio| folio.head == head && folio.meta.kind == FolioKind::Gmem);
        let folio = folio.ok_or(SplitError::NotAFolio { head })?;
        let Some(size) = HugeSize::of(folio.size).filter(|_| folio.size > target) else {
            return Err(SplitError::NotLarger { head, size: folio.size, target });
        };
        if !folio.is_cache_only() {
            return Err(SplitError::Busy { head, refs: folio.meta.refs, cache: folio.cache_refs() });
        }
        let optimised = folio.meta.flags.contains(FolioFlags::VMEMMAP_OPTIMISED);
        let mut split = Split { pieces: folio.size.frames() / target.frames(), vmemmap_taken: 0, vmemmap_given: 0 };
        if optimised {
            self.frames.restore(size, 1, head)?;
            split.vmemmap_taken = saved_pages(size);
        }
        // Nothing can fail from here on.
        let mut flags = folio.meta.flags & (FolioFlags::KNOWN_ZERO | FolioFlags::UPTODATE);
        let mut pieces_optimised = 0;
        if target == PageSize::Size2M && folio.meta.flags.contains(FolioFlags::HUGETLB) {
            flags |= FolioFlags::HUGETLB;
            if optimised && self.frames.optimise(HugeSize::Size2M, split.pieces) {
                flags |= FolioFlags::VMEMMAP_OPTIMISED;
                split.vmemmap_given = split.pieces * saved_pages(HugeSize::Size2M);
                pieces_optimised = split.pieces;
            }
        }
        match self.units.around_mut(head) {
            Some((_, unit)) => unit.optimised -= u64::from(optimised),
            None => {
                let (size, source, back) = (folio.size, folio.source, ExtentSet::default());
                self.units.units.insert(head.raw(), SplitUnit { size, source, back, optimised: pieces_optimised });
            }
        }
        self.folios.split(head, target, flags);
        self.mark_poison(head, folio.size);
        Ok(split)
    }

    /// Makes the pieces from `head` on one folio of `size`: they must be pieces of one split unit, all in use by the
    /// page cache and nobody else, and sound. That their indices, attributes and mappings allow it is the inode's to
    /// know.
    pub fn reconstruct_folio(&mut self, head: Sfn, size: PageSize) -> Result<Reconstructed, ReconstructError> {
        let huge = HugeSize::of(size).filter(|_| head.is_aligned(size));
        let huge = huge.ok_or(ReconstructError::NotABlock { head, size })?;
        let not_split = ReconstructError::NotSplit { head, size };
        let (unit_head, unit) = self.units.around(head).filter(|(_, unit)| unit.size >= size).ok_or(not_split)?;
        let (source, whole, parts) = (unit.source, unit.size == size, unit.optimised);
        if self.folios.get(head).is_some_and(|folio| folio.size >= size) {
            return Err(not_split);
        }
        let survey = self.folios.survey(head, size)?;
        let mut done = Reconstructed { pieces: survey.small + survey.large, cleared: 0, vmemmap_given: 0, whole };
        let mut flags = FolioFlags::empty();
        flags.set(FolioFlags::KNOWN_ZERO, survey.all_known_zero);
        if survey.any_uptodate {
            flags |= FolioFlags::UPTODATE;
            for &(first, nr) in &survey.stale {
                self.clear(first, nr);
                done.cleared += nr;
            }
        }
        if let Source::Pool { .. } = source {
            flags |= FolioFlags::HUGETLB;
            let before = self.frames.vmemmap.stats().held;
            let optimised = match huge {
                HugeSize::Size1G => self.frames.fold(parts),
                HugeSize::Size2M => self.frames.optimise(huge, 1),
            };
            flags.set(FolioFlags::VMEMMAP_OPTIMISED, optimised);
            done.vmemmap_given = before - self.frames.vmemmap.stats().held;
            if optimised
                && !whole
                && let Some((_, unit)) = self.units.around_mut(head)
            {
                unit.optimised += 1;
            }
        }
        if whole {
            self.units.units.remove(&unit_head.raw());
        }
        self.folios.merge(head, size, &survey, flags, source);
        if let Some(map) = &mut self.direct_map {
            map.settled(head, size);
        }
        Ok(done)
    }

    /// Takes a folio without references, or a piece of one, out of use. Its unit goes back to its source when this was
    /// the last of it.
    ///
    /// # Panics
    /// When it still has references.
    pub fn free_folio(&mut self, head: Sfn) {
        let folio = self.end_use(head);
        self.give_back(folio);
    }

    /// Gives a folio back that is out of use and whose bytes are zero, or will be before anybody gets it.
    pub(crate) fn give_back(&mut self, Folio { head, size, source, .. }: Folio) {
        let Some((unit_head, unit)) = self.units.around_mut(head) else {
            return self.return_unit(head, size, source, Hvo::Whole);
        };
        unit.back.insert(head.raw(), size.frames());
        if unit.back.len() == unit.size.frames()
            && let Some(unit) = self.units.units.remove(&unit_head.raw())
        {
            self.return_unit(unit_head, unit.size, unit.source, Hvo::Pieces(unit.optimised));
        }
    }

    /// Takes a 4K piece that waits for the rest of its unit back into use by the page cache. It reads as zero.
    pub fn reuse(&mut self, sfn: Sfn) -> Result<(), ReuseError> {
        if self.is_poisoned(sfn) {
            return Err(ReuseError::Poisoned { sfn });
        }
        let waiting = self.units.around_mut(sfn).is_some_and(|(_, unit)| unit.back.remove(sfn.raw()));
        if !waiting {
            return Err(ReuseError::Held { sfn });
        }
        self.begin_use(sfn, PageSize::Size4K, FolioKind::Gmem, FolioFlags::UPTODATE, Source::Pages);
        self.folios.meta_mut(sfn).flags.remove(FolioFlags::KNOWN_ZERO);
        Ok(())
    }

    fn return_unit(&mut self, head: Sfn, size: PageSize, source: Source, hvo: Hvo) {
        let sound = self.sound_runs(head, size);
        match (source, sound) {
            (Source::Pages, None) => self.frames.pages.free(head, size.order()),
            (Source::Pages, Some(sound)) => self.scatter(size, &sound),
            (Source::Cma { area, claim }, sound) => {
                let area = &mut self.cma[usize::from(area)];
                match sound {
                    None => area.give(claim, head),
                    Some(sound) => {
                        area.lose(claim, &sound);
                        self.retired += size.frames() - sound.iter().map(|run| run.1).sum::<u64>();
                    }
                }
            }
            (Source::Pool { size: huge, subpool }, sound) => {
                let restored = sound.is_some()
                    && match hvo {
                        Hvo::Whole => self.frames.restore(huge, 1, head).is_ok(),
                        Hvo::Pieces(parts) => self.frames.restore(HugeSize::Size2M, parts, head).is_ok(),
                    };
                if let (false, Hvo::Pieces(parts)) = (restored, hvo) {
                    match huge {
                        HugeSize::Size1G => self.frames.fold(parts),
                        HugeSize::Size2M => self.frames.optimise(huge, 1),
                    };
                }
                let (pool, frames) = self.pool_mut(huge);
                match sound {
                    None => pool.give(frames, subpool, head),
                    Some(sound) if restored => {
                        pool.strike_off(frames, head);
                        pool.lose(frames, subpool);
                        self.scatter(size, &sound);
                    }
                    Some(_) => {
                        pool.shelve(frames, head);
                        pool.lose(frames, subpool);
                    }
                }
            }
        }
    }

    /// What is sound of a block in which memory failed goes to the page allocator, the rest nowhere.
    pub(super) fn scatter(&mut self, size: PageSize, sound: &[(Sfn, u64)]) {
        let mut lost = size.frames();
        for &(first, nr) in sound {
            self.frames.pages.free_frames_from(first, nr);
            lost -= nr;
        }
        self.retired += lost;
    }
}
