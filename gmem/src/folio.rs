//! What every frame in use is used for: the model's `struct page` and `struct folio`.
//!
//! [`FolioTable`] is the door: one small entry per block in use, whatever its size. A frame without an entry is free.

use bitflags::bitflags;
use emu_core::{PageSize, Sfn};

use crate::pagemap::{Hit, PageMap};

bitflags! {
    /// State of a folio.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct FolioFlags: u8 {
        /// Every byte is zero, and nobody has been given a way to change that yet. Ours: Linux clears folios instead.
        const KNOWN_ZERO = 1 << 0;
        /// `PG_uptodate`: contents are defined, the folio may be mapped.
        const UPTODATE = 1 << 1;
    }
}

/// Who uses a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolioKind {
    /// A page of an inode's page cache.
    Gmem,
    /// A page table that the hypervisor built.
    PageTable,
}

/// The entry of a block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioMeta {
    /// Who uses it.
    pub kind: FolioKind,
    /// State.
    pub flags: FolioFlags,
    /// References as Linux counts them: the page cache holds one for each 4K page.
    pub refs: u32,
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
}

impl From<Hit<FolioMeta>> for Folio {
    fn from(hit: Hit<FolioMeta>) -> Folio {
        Folio { head: Sfn::new(hit.base), size: hit.size, meta: hit.value }
    }
}

/// See the module.
#[derive(Default)]
pub struct FolioTable {
    map: PageMap<FolioMeta>,
}

impl FolioTable {
    /// The folio that `sfn` belongs to; `None` for a free frame.
    pub fn get(&self, sfn: Sfn) -> Option<Folio> {
        self.map.get(sfn.raw()).map(Folio::from)
    }

    /// Blocks of `size` in use.
    pub fn count(&self, size: PageSize) -> u64 {
        self.map.count(size)
    }

    /// Every folio in use, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Folio> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let hit = self.map.next_from(at)?;
            at = hit.end();
            Some(Folio::from(hit))
        })
    }

    /// # Panics
    /// When a frame of the block is in use already: an allocator gave it out twice.
    pub(crate) fn insert(&mut self, head: Sfn, size: PageSize, meta: FolioMeta) {
        let inserted = self.map.insert(head.raw(), size, meta);
        assert!(inserted.is_ok(), "{head:?} of {size} was given out twice");
    }

    /// # Panics
    /// When `head` is not the head of a folio in use.
    pub(crate) fn remove(&mut self, head: Sfn) -> Folio {
        match self.map.remove(head.raw()).map(Folio::from) {
            Some(folio) if folio.head == head => folio,
            other => panic!("{head:?} is not the head of a folio in use: {other:?}"),
        }
    }

    /// # Panics
    /// When `sfn` is free.
    pub(crate) fn meta_mut(&mut self, sfn: Sfn) -> &mut FolioMeta {
        match self.map.get_mut(sfn.raw()) {
            Some(meta) => meta,
            None => panic!("{sfn:?} is free"),
        }
    }
}
