//! The TLB: finished translations, tagged by address-space identity, bounded, with deterministic replacement.
//!
//! Three set-associative banks, one for each reach. An entry's space is the identity of the second stage and the PCID;
//! a global page has the identity alone and matches under every PCID. Rights are stored unjudged, so that CR0.WP, SMAP
//! or a protection key can change without a flush. The same structure, keyed by guest physical address, caches finished
//! nested walks.
//!
//! Invariants: an address has at most one entry of each reach and space; nothing allocates after construction; `live`
//! names every valid slot, so that a flush costs what was filled and not what could have been.

use emu_core::{MemoryType, PageSize};

use crate::fault::Stage2Rights;
use crate::paging::Pcid;
use crate::translation::PageFlags;

const WAYS: usize = 4;

/// Position of a second stage in the list of those known; below [`SpaceId::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpaceId(u8);

impl SpaceId {
    pub(crate) const LIMIT: usize = 64;
    /// The host: no second stage.
    pub(crate) const HOST: SpaceId = SpaceId(0);

    pub(crate) fn new(index: usize) -> SpaceId {
        debug_assert!(index < Self::LIMIT);
        SpaceId(index as u8)
    }
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of [`SpaceId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpaceSet(u64);

impl SpaceSet {
    pub(crate) const NONE: SpaceSet = SpaceSet(0);
    pub(crate) const ALL: SpaceSet = SpaceSet(u64::MAX);

    pub(crate) const fn with(self, id: SpaceId) -> SpaceSet {
        SpaceSet(self.0 | 1 << id.0)
    }
    pub(crate) const fn holds(self, id: SpaceId) -> bool {
        self.0 >> id.0 & 1 != 0
    }
    /// Its members, ascending.
    pub(crate) fn iter(self) -> impl Iterator<Item = SpaceId> {
        (0..SpaceId::LIMIT).map(SpaceId::new).filter(move |&id| self.holds(id))
    }
}

/// What an entry is tagged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space(u32);

impl Space {
    const ANY_PCID: u32 = 0xffff;
    const INVALID: Space = Space(u32::MAX);

    pub(crate) const fn new(id: SpaceId, pcid: Pcid) -> Space {
        Space((id.0 as u32) << 16 | pcid.raw() as u32)
    }
    /// Of global pages.
    pub(crate) const fn global(id: SpaceId) -> Space {
        Space((id.0 as u32) << 16 | Self::ANY_PCID)
    }
    const fn id(self) -> SpaceId {
        SpaceId((self.0 >> 16) as u8)
    }
    const fn globalized(self) -> Space {
        Space(self.0 | Self::ANY_PCID)
    }
    pub(crate) const fn is_in(self, set: SpaceSet) -> bool {
        set.0 >> (self.id().0 & 63) & 1 != 0
    }
    pub(crate) const fn is_global(self) -> bool {
        self.0 & Self::ANY_PCID == Self::ANY_PCID
    }
    pub(crate) const fn has_pcid(self, pcid: Pcid) -> bool {
        self.0 & Self::ANY_PCID == pcid.raw() as u32
    }
}

/// One translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlbEntry {
    pub(crate) space: Space,
    /// First input address of the reach.
    pub(crate) base: u64,
    /// What it became: first guest physical address, first system physical address.
    pub(crate) gpa: u64,
    pub(crate) spa: u64,
    pub(crate) flags: PageFlags,
    /// log2 of the guest's page, which is larger than the reach where a large page was cached in pieces.
    pub(crate) page_shift: u8,
    pub(crate) pat_index: u8,
    pub(crate) protection_key: u8,
    pub(crate) memory_type: MemoryType,
    pub(crate) size: PageSize,
    /// In a cache of nested walks: what the nested entries allow.
    pub(crate) rights: Stage2Rights,
}

const EMPTY: TlbEntry = TlbEntry {
    space: Space::INVALID,
    base: 0,
    gpa: 0,
    spa: 0,
    flags: PageFlags::empty(),
    page_shift: 0,
    pat_index: 0,
    protection_key: 0,
    memory_type: MemoryType::WriteBack,
    size: PageSize::Size4K,
    rights: Stage2Rights::empty(),
};

#[derive(Clone, Copy, Debug)]
struct Bank {
    size: PageSize,
    /// First slot.
    first: usize,
    set_mask: usize,
    /// Valid entries, to skip a bank that has none.
    valid: u32,
}

/// log2 of the sets in the banks of 4K, 2M and 1G entries.
pub(crate) struct TlbShape(pub(crate) [u32; 3]);

impl TlbShape {
    /// 1024, 256 and 32 entries.
    pub(crate) const LINEAR: TlbShape = TlbShape([8, 6, 3]);
    /// 512, 256 and 32 entries.
    pub(crate) const NESTED: TlbShape = TlbShape([7, 6, 3]);
}

/// See the module.
pub(crate) struct Tlb {
    banks: [Bank; 3],
    entries: Box<[TlbEntry]>,
    /// Whether a slot is in `live`.
    listed: Box<[bool]>,
    live: Vec<u16>,
    /// The way to replace next, for each set.
    victim: Box<[u8]>,
    /// Covers every guest page that was cached in pieces since the last complete flush.
    split: Cover,
}

impl Tlb {
    pub(crate) fn new(shape: TlbShape) -> Tlb {
        let mut first = 0;
        let banks = PageSize::ALL.map(|size| {
            let sets = 1_usize << shape.0[size.index()];
            let bank = Bank { size, first, set_mask: sets - 1, valid: 0 };
            first += sets * WAYS;
            bank
        });
        Tlb {
            banks,
            entries: vec![EMPTY; first].into_boxed_slice(),
            listed: vec![false; first].into_boxed_slice(),
            live: Vec::with_capacity(first),
            victim: vec![0; first / WAYS].into_boxed_slice(),
            split: Cover::EMPTY,
        }
    }

    /// Every valid entry.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &TlbEntry> {
        self.entries.iter().filter(|entry| entry.space != Space::INVALID)
    }

    /// The set depends on the second stage, so that guests laid out alike do not meet in one; not on the PCID, which
    /// global pages lack.
    #[inline]
    fn set_of(bank: &Bank, input: u64, space: Space) -> usize {
        let index = (input >> bank.size.shift()) as usize ^ space.id().index().wrapping_mul(0x25);
        bank.first + (index & bank.set_mask) * WAYS
    }

    /// The entry for `input` under `space`, or a global one of the same second stage.
    #[inline]
    pub(crate) fn lookup(&self, input: u64, space: Space) -> Option<&TlbEntry> {
        let global = space.globalized();
        for bank in &self.banks {
            if bank.valid == 0 {
                continue;
            }
            let base = input & !(bank.size.bytes() - 1);
            let set = Self::set_of(bank, input, space);
            let hit = self.entries[set..set + WAYS]
                .iter()
                .find(|e| e.base == base && (e.space == space || e.space == global));
            if hit.is_some() {
                return hit;
            }
        }
        None
    }

    /// Enters a translation, in place of the one for the same address and space if there is one.
    pub(crate) fn fill(&mut self, entry: TlbEntry) {
        let bank = &mut self.banks[entry.size.index()];
        let set = Self::set_of(bank, entry.base, entry.space);
        let ways = &self.entries[set..set + WAYS];
        let same = ways.iter().position(|e| e.base == entry.base && e.space == entry.space);
        let way = same.or_else(|| ways.iter().position(|e| e.space == Space::INVALID)).unwrap_or_else(|| {
            let next = &mut self.victim[set / WAYS];
            let way = *next as usize % WAYS;
            *next = next.wrapping_add(1);
            way
        });
        let slot = set + way;
        if self.entries[slot].space == Space::INVALID {
            bank.valid += 1;
        }
        if u32::from(entry.page_shift) > entry.size.shift() {
            self.split.add(entry.base, entry.page_shift);
        }
        self.entries[slot] = entry;
        if !self.listed[slot] {
            self.listed[slot] = true;
            self.live.push(slot as u16);
        }
    }

    /// Drops the page of `input` under `space`, and every piece of it.
    pub(crate) fn drop_page(&mut self, input: u64, space: Space) {
        if self.split.holds(input) {
            self.drop_where(|e| e.space == space && e.base >> e.page_shift == input >> e.page_shift);
            return;
        }
        for bank in &mut self.banks {
            let base = input & !(bank.size.bytes() - 1);
            let set = Self::set_of(bank, input, space);
            for entry in &mut self.entries[set..set + WAYS] {
                if entry.space == space && entry.base == base {
                    *entry = EMPTY;
                    bank.valid -= 1;
                }
            }
        }
    }

    /// Drops the entries for which `gone` holds.
    pub(crate) fn drop_where(&mut self, mut gone: impl FnMut(&TlbEntry) -> bool) {
        let (entries, listed, banks) = (&mut self.entries, &mut self.listed, &mut self.banks);
        self.live.retain(|&slot| {
            let entry = &mut entries[slot as usize];
            if entry.space != Space::INVALID && gone(entry) {
                banks[entry.size.index()].valid -= 1;
                *entry = EMPTY;
            }
            listed[slot as usize] = entry.space != Space::INVALID;
            listed[slot as usize]
        });
        if self.live.is_empty() {
            self.split = Cover::EMPTY;
        }
    }
}

/// A range that covers every large page added to it: a quick "certainly not".
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cover {
    first: u64,
    last: u64,
    /// log2 of the largest page added.
    shift: u8,
}

impl Cover {
    pub(crate) const EMPTY: Cover = Cover { first: u64::MAX, last: 0, shift: 0 };

    pub(crate) fn add(&mut self, address: u64, shift: u8) {
        let mask = (1_u64 << shift) - 1;
        self.first = self.first.min(address & !mask);
        self.last = self.last.max(address | mask);
        self.shift = self.shift.max(shift);
    }
    pub(crate) const fn holds(&self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }
    /// log2 of the largest page added.
    pub(crate) const fn shift(&self) -> u8 {
        self.shift
    }
}
