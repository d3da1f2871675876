//! What every frame in use is used for: the model's `struct page` and `struct folio`.
//!
//! [`FolioTable`] is the door: one small entry per block in use, whatever its size. A frame without an entry is free,
//! or a returned piece that waits for the rest of its unit. References are counted as Linux counts them: the page cache
//! holds one for each 4K page, each user PTE one (and a map count), a pin 1024 on a 4K folio and one (and a pin count) on
//! a larger one.
//!
//! Always true: no two entries overlap; an entry's head is a multiple of its size; `refs` covers what `maps` and pins
//! contribute. The table's cost is in step with what is in use and deviates: a folio of any size is one entry, the 512
//! equal pieces of a split 2M block are one entry too, and become 512 small ones when the first of them changes.
//!
//! Left out: compound-page tails, the folio lock (the owner of the table has one lock), LRU state.

mod nodes;
mod restructure;
#[cfg(test)]
mod tests;

use bitflags::bitflags;
use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::cma::ClaimId;
use crate::pool::{HugeSize, SubpoolId};
use nodes::{Chunk, EntryMut};

pub(crate) use nodes::Large;
pub(crate) use restructure::Obstacle;

bitflags! {
    /// State of a folio.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct FolioFlags: u16 {
        /// Every byte is zero, and nobody has been given a way to change that yet. Ours: Linux clears folios instead.
        const KNOWN_ZERO = 1 << 0;
        /// `PG_uptodate`: contents are defined, the folio may be mapped.
        const UPTODATE = 1 << 1;
        /// `PG_hwpoison` of a 4K folio: its memory failed, nobody may map it.
        const HWPOISON = 1 << 2;
        /// `PG_has_hwpoisoned` of a larger folio: memory failed in some of its frames.
        const HAS_HWPOISONED = 1 << 3;
        /// `PGTY_hugetlb`: a page, or a 2M piece of a page, of a huge-page pool.
        const HUGETLB = 1 << 4;
        /// `HPageVmemmapOptimized`: most of its `struct page`s are given away, so nothing may be kept per frame.
        const VMEMMAP_OPTIMISED = 1 << 5;
        /// `PG_dirty`: somebody who had the page may have written it.
        const DIRTY = 1 << 8;
        /// `PG_referenced`: somebody used it.
        const REFERENCED = 1 << 9;
    }
}

/// Who uses a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolioKind {
    /// A page of an inode's page cache.
    Gmem,
    /// A page table that the hypervisor built.
    PageTable,
    /// Anonymous memory of processes; every entry that maps it holds one reference.
    Anonymous,
    /// A page of a driver: of a block that is no compound page the head has the driver's reference, and the tails have
    /// none. Nobody else may count references on them.
    Device,
}

/// Where a block goes when its last reference is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The page allocator.
    Pages,
    /// A subpool of a huge-page pool.
    Pool {
        /// The pool.
        size: HugeSize,
        /// Whose promise it was handed out under.
        subpool: SubpoolId,
    },
    /// A claim on a contiguous-memory area.
    Cma {
        /// Number of the area.
        area: u8,
        /// The claim.
        claim: ClaimId,
    },
}

/// The entry of a block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioMeta {
    /// Who uses it.
    pub kind: FolioKind,
    /// State.
    pub flags: FolioFlags,
    /// References (`_refcount`).
    pub refs: u32,
    /// User PTEs (`_mapcount`), each of which is a reference too.
    pub maps: u32,
}

/// A folio: a block in use, by its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folio {
    /// First frame, a multiple of the size.
    pub head: Sfn,
    /// 4K, 2M or 1G.
    pub size: PageSize,
    /// Its entry.
    pub meta: FolioMeta,
    /// `_pincount` of a large folio; 0 for a 4K one, whose pins are in its references.
    pub pins: u32,
    /// Where a whole unit goes back to; a 4K folio's is known to its unit alone.
    pub source: Source,
}

/// References that a pin takes on a 4K folio (`GUP_PIN_COUNTING_BIAS`).
pub const GUP_PIN_COUNTING_BIAS: u32 = 1024;

impl Folio {
    /// `folio_maybe_dma_pinned`: may say yes of a 4K folio with very many references.
    pub const fn maybe_pinned(&self) -> bool {
        match self.size {
            PageSize::Size4K => self.meta.refs >= GUP_PIN_COUNTING_BIAS,
            _ => self.pins > 0,
        }
    }

    /// References that the page cache holds.
    pub const fn cache_refs(&self) -> u32 {
        self.size.frames() as u32
    }

    /// Whether nobody but the page cache has a reference: what a split or a merge freezes.
    pub const fn is_cache_only(&self) -> bool {
        self.meta.refs == self.cache_refs() && self.meta.maps == 0 && self.pins == 0
    }

    /// The first frame behind it.
    pub const fn end(&self) -> Sfn {
        Sfn::new(self.head.raw() + self.size.frames())
    }
}

/// A reference could not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RefError {
    /// Nobody uses the frame.
    #[error("{sfn:?} is free")]
    Free {
        /// The frame.
        sfn: Sfn,
    },
    /// The count is as high as it gets (`try_get_folio`, `ENOMEM`).
    #[error("the folio at {sfn:?} has as many references as can be counted")]
    Saturated {
        /// The frame.
        sfn: Sfn,
    },
}

/// See the module.
#[derive(Default)]
pub struct FolioTable {
    /// Entries by 512 GiB.
    chunks: Vec<Option<Box<Chunk>>>,
    by_size: [u64; 3],
    nodes: nodes::Count,
}

impl FolioTable {
    /// The folio that `sfn` belongs to; `None` for a free frame.
    pub fn get(&self, sfn: Sfn) -> Option<Folio> {
        nodes::find(&self.chunks, sfn.raw())
    }

    /// Blocks of `size` in use.
    pub fn count(&self, size: PageSize) -> u64 {
        self.by_size[size.index()]
    }

    /// Every folio in use, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Folio> + '_ {
        let mut at = 0;
        let found = std::iter::from_fn(move || {
            let folio = nodes::next_from(&self.chunks, at)?;
            at = folio.end().raw();
            Some(folio)
        });
        // The last one known is not followed by a search for another through all that is empty.
        found.take(self.by_size.iter().sum::<u64>() as usize)
    }

    /// Bytes of real memory that the table takes.
    pub fn metadata_bytes(&self) -> usize {
        self.nodes.bytes() + self.chunks.len() * size_of::<Option<Box<Chunk>>>()
    }

    /// `folio_try_get` with `nr` references on the folio around `sfn`.
    pub fn try_get(&mut self, sfn: Sfn, nr: u32) -> Result<(), RefError> {
        self.add(sfn, |meta, _| {
            meta.refs = meta.refs.checked_add(nr)?;
            Some(())
        })
    }

    /// Drops `nr` references on the folio around `sfn`; how many are left. At none the caller frees it.
    ///
    /// # Panics
    /// When there are fewer.
    pub(crate) fn put(&mut self, sfn: Sfn, nr: u32) -> u32 {
        let meta = self.meta_mut(sfn);
        assert!(meta.refs >= nr, "{sfn:?} has {} references, {nr} are dropped", meta.refs);
        meta.refs -= nr;
        meta.refs
    }

    /// A user PTE comes to point at the folio (`folio_add_file_rmap_pte`, with the reference it holds).
    pub fn map(&mut self, sfn: Sfn) -> Result<(), RefError> {
        self.add(sfn, |meta, _| {
            let (refs, maps) = (meta.refs.checked_add(1)?, meta.maps.checked_add(1)?);
            (meta.refs, meta.maps) = (refs, maps);
            Some(())
        })
    }

    /// Takes back one [`map`](FolioTable::map); references left.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn unmap(&mut self, sfn: Sfn) -> u32 {
        let meta = self.meta_mut(sfn);
        assert!(meta.maps > 0, "{sfn:?} is not mapped");
        meta.maps -= 1;
        meta.refs -= 1;
        meta.refs
    }

    /// A device may access the folio until [unpinned](FolioTable::unpin) (`try_grab_folio` with `FOLL_PIN`).
    pub fn pin(&mut self, sfn: Sfn) -> Result<(), RefError> {
        self.add(sfn, |meta, pins| {
            match pins {
                None => meta.refs = meta.refs.checked_add(GUP_PIN_COUNTING_BIAS)?,
                Some(pins) => {
                    let (refs, more) = (meta.refs.checked_add(1)?, pins.checked_add(1)?);
                    (meta.refs, *pins) = (refs, more);
                }
            }
            Some(())
        })
    }

    /// Takes back one [`pin`](FolioTable::pin) (`gup_put_folio`); references left.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn unpin(&mut self, sfn: Sfn) -> u32 {
        match self.entry_mut(sfn) {
            Some(EntryMut::Small(meta)) => {
                assert!(meta.refs >= GUP_PIN_COUNTING_BIAS, "{sfn:?} is not pinned");
                meta.refs -= GUP_PIN_COUNTING_BIAS;
                meta.refs
            }
            Some(EntryMut::Large(large)) => {
                assert!(large.pins > 0, "{sfn:?} is not pinned");
                large.pins -= 1;
                large.meta.refs -= 1;
                large.meta.refs
            }
            None => panic!("{sfn:?} is free"),
        }
    }

    fn add(
        &mut self,
        sfn: Sfn,
        change: impl FnOnce(&mut FolioMeta, Option<&mut u32>) -> Option<()>,
    ) -> Result<(), RefError> {
        let changed = match self.entry_mut(sfn) {
            Some(EntryMut::Small(meta)) => change(meta, None),
            Some(EntryMut::Large(large)) => change(&mut large.meta, Some(&mut large.pins)),
            None => return Err(RefError::Free { sfn }),
        };
        changed.ok_or(RefError::Saturated { sfn })
    }

    fn entry_mut(&mut self, sfn: Sfn) -> Option<EntryMut<'_>> {
        nodes::find_mut(&mut self.chunks, &mut self.nodes, sfn.raw())
    }

    /// # Panics
    /// When a frame of the block is in use already: an allocator gave it out twice.
    pub(crate) fn insert(&mut self, head: Sfn, size: PageSize, meta: FolioMeta, source: Source) {
        let entry = Large { meta, pins: 0, source };
        let inserted = nodes::insert(&mut self.chunks, &mut self.nodes, head.raw(), size, entry);
        assert!(inserted, "{head:?} of {size} was given out twice");
        self.by_size[size.index()] += 1;
    }

    /// Enters `nr` pages of 4K of the page allocator from `first` on.
    ///
    /// # Panics
    /// As [`FolioTable::insert`].
    pub(crate) fn insert_pages(&mut self, first: Sfn, nr: u64, meta: FolioMeta) {
        let inserted = nodes::insert_pages(&mut self.chunks, &mut self.nodes, first.raw(), nr, meta);
        assert!(inserted, "a page of {nr} from {first:?} was given out twice");
        self.by_size[PageSize::Size4K.index()] += nr;
    }

    /// # Panics
    /// When `head` is not the head of a folio in use.
    pub(crate) fn remove(&mut self, head: Sfn) -> Folio {
        match self.get(head) {
            Some(folio) if folio.head == head => {
                nodes::remove(&mut self.chunks, &mut self.nodes, head.raw());
                self.by_size[folio.size.index()] -= 1;
                folio
            }
            other => panic!("{head:?} is not the head of a folio in use: {other:?}"),
        }
    }

    /// # Panics
    /// When `sfn` is free.
    pub(crate) fn meta_mut(&mut self, sfn: Sfn) -> &mut FolioMeta {
        match self.entry_mut(sfn) {
            Some(EntryMut::Small(meta)) => meta,
            Some(EntryMut::Large(large)) => &mut large.meta,
            None => panic!("{sfn:?} is free"),
        }
    }
}
