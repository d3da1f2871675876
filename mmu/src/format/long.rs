//! 4-level and 5-level paging, and NPT of a host in long mode.
//!
//! Intel SDM vol. 3, "4-Level Paging and 5-Level Paging"; APM vol. 2, "Long-Mode Page Translation", "Nested Paging".

use emu_core::MemoryType;
use emu_core::sev::CBit;

use super::{Entry, Format, Grants, LeafAttributes, NestedFormat, bits, pat_index, span};
use crate::fault::Stage2Rights;
use crate::level::Level;
use crate::paging::{PagingCapabilities, PagingFeatures, Vendor};

/// Reserved bits, by what the entry is. Bits 62:52 are ignored in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Long {
    /// In every entry: bits from MAXPHYADDR to 51, and NX while EFER.NXE is clear.
    common: u64,
    /// In a PML4E or PML5E besides.
    top: u64,
    /// In a PDPTE besides, whatever it is.
    pdpte: u64,
    /// The C-bit of an encrypted guest's entries, else 0.
    c_bit: u64,
}

impl Long {
    pub(crate) const fn new(features: &PagingFeatures, nxe: bool) -> Long {
        let nx = if nxe { 0 } else { bits::NX };
        let bit8 = match features.vendor {
            Vendor::Amd => bits::G,
            Vendor::Intel => 0,
        };
        let page_1g = features.capabilities.contains(PagingCapabilities::PAGE_1G);
        Long {
            common: features.reserved_address_bits() | nx,
            top: bits::PS | bit8,
            pdpte: if page_1g { 0 } else { bits::PS },
            c_bit: 0,
        }
    }

    /// The format of an encrypted guest whose C-bit has this mask: neither reserved nor part of an address.
    pub(crate) const fn with_c_bit(self, c_bit: u64) -> Long {
        Long { common: self.common & !c_bit, c_bit, ..self }
    }
}

impl Format for Long {
    #[inline(always)]
    fn classify(&self, raw: u64, level: Level) -> Entry {
        if raw & bits::P == 0 {
            return Entry::NotPresent;
        }
        let large = raw & bits::PS != 0;
        let (reserved, kind) = match level {
            Level::PT => (0, Entry::Leaf),
            Level::PD if large => (span(13, 20), Entry::Leaf),
            Level::PD => (0, Entry::Table),
            Level::PDPT if large => (self.pdpte | span(13, 29), Entry::Leaf),
            Level::PDPT => (self.pdpte, Entry::Table),
            _ => (self.top, Entry::Table),
        };
        if raw & (self.common | reserved) != 0 { Entry::Reserved } else { kind }
    }

    #[inline(always)]
    fn grants(&self, raw: u64, _level: Level) -> Grants {
        // R/W and U/S are bits 1 and 2 of the entry, WRITE and USER bits 1 and 3 of the grants.
        let nx = if raw & bits::NX == 0 { Grants::EXECUTE.bits() } else { 0 };
        Grants::from_bits_retain(
            (raw & bits::RW) as u8
                | ((raw & bits::US) << 1) as u8
                | nx
                | Grants::READ.bits()
                | Grants::EXECUTE_USER.bits(),
        )
    }

    #[inline(always)]
    fn address(&self) -> u64 {
        bits::ADDRESS & !self.c_bit
    }
    #[inline(always)]
    fn c_bit(&self, raw: u64) -> CBit {
        if raw & self.c_bit != 0 { CBit::Set } else { CBit::Clear }
    }

    #[inline(always)]
    fn leaf_attributes(&self, raw: u64, level: Level) -> LeafAttributes {
        LeafAttributes {
            global: raw & bits::G != 0,
            pat_index: pat_index(raw, level),
            protection_key: (raw >> 59 & 0xf) as u8,
        }
    }

    #[inline(always)]
    fn accessed(&self, _level: Level) -> u64 {
        bits::A
    }
    #[inline(always)]
    fn dirty(&self) -> u64 {
        bits::D
    }
}

impl NestedFormat for Long {
    const LOGS_MODIFICATIONS: bool = false;

    /// Every nested access is a user access, so that U/S clear on the way refuses all of them.
    #[inline(always)]
    fn rights(&self, grants: Grants) -> Stage2Rights {
        if !grants.contains(Grants::USER) {
            return Stage2Rights::empty();
        }
        Stage2Rights::from_bits_truncate(grants.bits() & 0b111)
    }
    /// So that A and D of the guest can be set without another nested walk (APM vol. 2, 15.25.5).
    #[inline(always)]
    fn table_reads_are_writes(&self) -> bool {
        true
    }
    #[inline(always)]
    fn mode_based_execute(&self) -> bool {
        false
    }
    #[inline(always)]
    fn reserved_is_misconfigured(&self) -> bool {
        false
    }
    #[inline(always)]
    fn memory_type(&self, _raw: u64) -> MemoryType {
        MemoryType::WriteBack
    }
}
