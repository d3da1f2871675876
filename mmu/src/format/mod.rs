//! Table formats. A format says only what differs from the others: how long an entry is, what a raw entry means at a
//! level, which rights it grants, and where A and D are. Walking, nesting and judging are the same for all.
//!
//! Rights fold by intersection over the entries on the way ([`Grants`]), so that permission is judged once, after the
//! walk, by `rights`.

mod ept;
mod legacy;
mod long;
mod pae;

use bitflags::bitflags;
use emu_core::MemoryType;
use emu_core::sev::CBit;

use crate::fault::Stage2Rights;
use crate::level::Level;

pub(crate) use ept::EptFormat;
pub(crate) use legacy::Legacy;
pub(crate) use long::Long;
pub(crate) use pae::Pae;

/// Bits of the x86 entry formats that long mode, PAE, 32-bit paging and NPT share.
pub(crate) mod bits {
    pub(crate) const P: u64 = 1 << 0;
    pub(crate) const RW: u64 = 1 << 1;
    pub(crate) const US: u64 = 1 << 2;
    pub(crate) const A: u64 = 1 << 5;
    pub(crate) const D: u64 = 1 << 6;
    /// PS above the page table, where bit 7 of a PTE is PAT.
    pub(crate) const PS: u64 = 1 << 7;
    pub(crate) const G: u64 = 1 << 8;
    pub(crate) const NX: u64 = 1 << 63;
    /// Bits 51:12, the address field of an 8-byte entry.
    pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// The bits `low..=high`.
pub(crate) const fn span(low: u32, high: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// What a raw entry means at its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing is mapped here.
    NotPresent,
    /// A bit is set that must be clear; for EPT, a misconfiguration.
    Reserved,
    /// The entry points to a table of the level below. Never returned for the page table.
    Table,
    /// The entry maps a page.
    Leaf,
}

bitflags! {
    /// What entries allow. A walk starts with all of them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Grants: u8 {
        const READ = 1 << 0;
        const WRITE = 1 << 1;
        const EXECUTE = 1 << 2;
        /// U/S: user-mode access.
        const USER = 1 << 3;
        /// EPT bit 10: fetches from user-mode linear addresses.
        const EXECUTE_USER = 1 << 4;
    }
}

/// What a leaf says beside address and rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafAttributes {
    pub(crate) global: bool,
    pub(crate) pat_index: u8,
    pub(crate) protection_key: u8,
}

/// One table format.
pub(crate) trait Format {
    /// Bytes in an entry.
    const ENTRY_BYTES: u64 = 8;
    /// log2 of the entries of a table.
    const INDEX_BITS: u32 = 9;

    /// What `raw` means at `level`.
    fn classify(&self, raw: u64, level: Level) -> Entry;
    /// What a present entry allows.
    fn grants(&self, raw: u64, level: Level) -> Grants;
    /// The address field of an entry.
    #[inline(always)]
    fn address(&self) -> u64 {
        bits::ADDRESS
    }
    /// The table that a [`Entry::Table`] points to.
    fn table(&self, raw: u64) -> u64 {
        raw & self.address()
    }
    /// The first address of the page that a [`Entry::Leaf`] maps.
    fn page(&self, raw: u64, level: Level) -> u64 {
        raw & self.address() & (u64::MAX << Self::shift(level))
    }
    /// What a leaf of an encrypted guest says of its C-bit. Where the format has none, all that such a guest maps is private.
    #[inline(always)]
    fn c_bit(&self, _raw: u64) -> CBit {
        CBit::Set
    }
    /// What else the leaf says.
    fn leaf_attributes(&self, raw: u64, level: Level) -> LeafAttributes;
    /// The bit that records a use of an entry at `level`; 0 where none is kept.
    fn accessed(&self, level: Level) -> u64;
    /// The bit of a leaf that records a write; 0 where none is kept.
    fn dirty(&self) -> u64;

    /// log2 of the bytes that one entry of `level` maps.
    #[inline(always)]
    fn shift(level: Level) -> u32 {
        12 + Self::INDEX_BITS * (u32::from(level.number()) - 1)
    }
    /// Byte offset in its table of the entry for `input` at `level`.
    #[inline(always)]
    fn offset(input: u64, level: Level) -> u64 {
        (input >> Self::shift(level) & ((1 << Self::INDEX_BITS) - 1)) * Self::ENTRY_BYTES
    }
}

/// A format that serves as the second stage.
pub(crate) trait NestedFormat: Format {
    /// Whether page-modification logging exists for it.
    const LOGS_MODIFICATIONS: bool;

    /// How folded grants read as nested rights.
    fn rights(&self, grants: Grants) -> Stage2Rights;
    /// Whether reading a guest table entry counts as writing it.
    fn table_reads_are_writes(&self) -> bool;
    /// Whether user-mode fetches are judged by [`Stage2Rights::EXECUTE_USER`].
    fn mode_based_execute(&self) -> bool;
    /// Whether a reserved bit is a misconfiguration.
    fn reserved_is_misconfigured(&self) -> bool;
    /// The memory type of a leaf.
    fn memory_type(&self, raw: u64) -> MemoryType;
}

/// PAT, PCD and PWT of a leaf of the x86 formats, as the index of a PAT entry.
pub(crate) fn pat_index(raw: u64, level: Level) -> u8 {
    let pat = if level == Level::PT { raw >> 7 } else { raw >> 12 };
    ((pat & 1) << 2 | raw >> 3 & 3) as u8
}
