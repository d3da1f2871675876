//! What is cached behind the fast TLB, and the switches for it.

use bitflags::bitflags;
use emu_core::{Gpa, PageSize, Spa};

use crate::context::CacheRefs;
use crate::tlb::{Space, SpaceSet, Tlb, TlbShape};
use crate::walk_cache::WalkCache;

bitflags! {
    /// What is cached. Outcomes differ only for software that omits an invalidation it owes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Caches: u8 {
        /// The fast TLB is filled.
        const FAST = 1 << 0;
        /// Finished linear translations.
        const TLB = 1 << 1;
        /// The guest's paging-structure cache.
        const GUEST_TABLES = 1 << 2;
        /// Finished translations of guest physical addresses.
        const NESTED_TLB = 1 << 3;
        /// The paging-structure cache of the nested tables.
        const NESTED_TABLES = 1 << 4;
    }
}

/// A piece of guest physical memory whose place a processor remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPage {
    /// First guest physical address.
    pub gpa: Gpa,
    /// First system physical address.
    pub spa: Spa,
    /// How much of it.
    pub size: PageSize,
}

/// The caches of one virtual processor.
pub(crate) struct CacheStore {
    pub(crate) enabled: Caches,
    pub(crate) linear: Tlb,
    pub(crate) guest_tables: WalkCache<Gpa>,
    pub(crate) nested: Tlb,
    pub(crate) nested_tables: WalkCache<Spa>,
}

impl CacheStore {
    pub(crate) fn new() -> CacheStore {
        CacheStore {
            enabled: Caches::all(),
            linear: Tlb::new(TlbShape::LINEAR),
            guest_tables: WalkCache::new(),
            nested: Tlb::new(TlbShape::NESTED),
            nested_tables: WalkCache::new(),
        }
    }

    /// What a walk may use.
    #[inline]
    pub(crate) fn refs(&mut self) -> CacheRefs<'_> {
        let enabled = self.enabled;
        CacheRefs {
            walk: enabled.contains(Caches::GUEST_TABLES).then_some(&mut self.guest_tables),
            nested_tlb: enabled.contains(Caches::NESTED_TLB).then_some(&mut self.nested),
            nested_walk: enabled.contains(Caches::NESTED_TABLES).then_some(&mut self.nested_tables),
        }
    }

    /// What is remembered of guest physical memory under the second stages of `nested`, by linear translations and by those
    /// of guest physical addresses.
    pub(crate) fn guest_pages(&self, nested: SpaceSet) -> impl Iterator<Item = CachedPage> {
        let both = self.linear.entries().chain(self.nested.entries());
        both.filter(move |entry| entry.space.is_in(nested)).map(|entry| CachedPage {
            gpa: Gpa::new(entry.gpa),
            spa: Spa::new(entry.spa),
            size: entry.size,
        })
    }

    /// Everything of every space.
    pub(crate) fn drop_all(&mut self) {
        self.linear.drop_where(|_| true);
        self.guest_tables.flush();
        self.drop_nested(SpaceSet::ALL);
    }

    /// Linear translations of the tags for which `gone` holds, and the guest's table pointers.
    pub(crate) fn drop_linear(&mut self, mut gone: impl FnMut(Space) -> bool) {
        self.linear.drop_where(|entry| gone(entry.space));
        self.guest_tables.flush();
    }

    /// What nested tables gave under `set`.
    pub(crate) fn drop_nested(&mut self, set: SpaceSet) {
        self.nested.drop_where(|entry| entry.space.is_in(set));
        self.nested_tables.flush();
    }
}
