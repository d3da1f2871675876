//! Extended page tables (Intel SDM vol. 3, "The Extended Page Table Mechanism (EPT)").
//!
//! An entry is present if it allows anything. What other formats call a reserved bit is an EPT misconfiguration here,
//! and so are writable entries that cannot be read, and reserved memory types.

use emu_core::MemoryType;

use super::{Entry, Format, Grants, LeafAttributes, NestedFormat, bits, span};
use crate::fault::Stage2Rights;
use crate::level::Level;
use crate::paging::{PagingCapabilities, PagingFeatures};
use crate::stage2::{Ept, EptAccessedDirty, EptExecute};

const R: u64 = 1 << 0;
const W: u64 = 1 << 1;
const X: u64 = 1 << 2;
/// Execute for user-mode linear addresses, with mode-based execute control.
const XU: u64 = 1 << 10;
const A: u64 = 1 << 8;
const D: u64 = 1 << 9;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EptFormat {
    /// The bits that allow fetches.
    execute: u64,
    /// Bits from MAXPHYADDR to 51.
    common: u64,
    /// Reserved in a PDPTE besides: PS without 1 GiB pages.
    pdpte: u64,
    execute_only: bool,
    accessed_dirty: bool,
}

impl EptFormat {
    pub(crate) const fn new(features: &PagingFeatures, ept: &Ept) -> EptFormat {
        EptFormat {
            execute: match ept.execute {
                EptExecute::Single => X,
                EptExecute::ModeBased => X | XU,
            },
            common: features.reserved_address_bits(),
            pdpte: if features.capabilities.contains(PagingCapabilities::PAGE_1G) { 0 } else { bits::PS },
            execute_only: features.capabilities.contains(PagingCapabilities::EPT_EXECUTE_ONLY),
            accessed_dirty: matches!(ept.eptp.accessed_dirty(), EptAccessedDirty::Enabled),
        }
    }
}

impl Format for EptFormat {
    #[inline(always)]
    fn classify(&self, raw: u64, level: Level) -> Entry {
        if raw & (R | W | self.execute) == 0 {
            return Entry::NotPresent;
        }
        if raw & R == 0 && (raw & W != 0 || !self.execute_only) {
            return Entry::Reserved;
        }
        let large = raw & bits::PS != 0;
        let (reserved, kind) = match level {
            Level::PT => (0, Entry::Leaf),
            Level::PD if large => (span(12, 20), Entry::Leaf),
            Level::PD => (span(3, 6), Entry::Table),
            Level::PDPT if large => (self.pdpte | span(12, 29), Entry::Leaf),
            Level::PDPT => (span(3, 6), Entry::Table),
            _ => (span(3, 7), Entry::Table),
        };
        if raw & (self.common | reserved) != 0 {
            return Entry::Reserved;
        }
        if kind == Entry::Leaf && MemoryType::from_encoding(memory_type_field(raw)).is_none_or(is_pat_only) {
            return Entry::Reserved;
        }
        kind
    }

    #[inline(always)]
    fn grants(&self, raw: u64, _level: Level) -> Grants {
        let mut grants = Grants::from_bits_retain((raw & (R | W | X)) as u8) | Grants::USER;
        grants.set(Grants::EXECUTE_USER, raw & self.execute & XU != 0);
        grants
    }

    #[inline(always)]
    fn leaf_attributes(&self, _raw: u64, _level: Level) -> LeafAttributes {
        LeafAttributes { global: false, pat_index: 0, protection_key: 0 }
    }

    #[inline(always)]
    fn accessed(&self, _level: Level) -> u64 {
        if self.accessed_dirty { A } else { 0 }
    }
    #[inline(always)]
    fn dirty(&self) -> u64 {
        if self.accessed_dirty { D } else { 0 }
    }
}

#[inline(always)]
const fn memory_type_field(raw: u64) -> u8 {
    (raw >> 3 & 7) as u8
}

/// UC- exists in the PAT alone; its encoding is reserved in an EPT leaf.
#[inline(always)]
const fn is_pat_only(memory_type: MemoryType) -> bool {
    matches!(memory_type, MemoryType::UncacheableMinus)
}

impl NestedFormat for EptFormat {
    const LOGS_MODIFICATIONS: bool = true;

    #[inline(always)]
    fn rights(&self, grants: Grants) -> Stage2Rights {
        let mut rights = Stage2Rights::from_bits_truncate(grants.bits() & 0b111);
        rights.set(Stage2Rights::EXECUTE_USER, grants.contains(Grants::EXECUTE_USER));
        rights
    }
    #[inline(always)]
    fn table_reads_are_writes(&self) -> bool {
        self.accessed_dirty
    }
    #[inline(always)]
    fn mode_based_execute(&self) -> bool {
        self.execute & XU != 0
    }
    #[inline(always)]
    fn reserved_is_misconfigured(&self) -> bool {
        true
    }
    #[inline(always)]
    fn memory_type(&self, raw: u64) -> MemoryType {
        MemoryType::from_encoding(memory_type_field(raw)).unwrap_or(MemoryType::Uncacheable)
    }
}
