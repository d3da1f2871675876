//! PAE paging: a table of four PDPTEs, then page directories and page tables of 8-byte entries.
//!
//! Intel SDM vol. 3, "PAE Paging"; APM vol. 2, "PAE Paging". A PDPTE carries no rights and no A bit. Intel processors
//! keep the four in registers, loaded with CR3; AMD processors under nested paging read them from memory when used
//! (APM vol. 2, "Legacy PAE Mode").

use emu_core::sev::CBit;

use super::{Entry, Format, Grants, LeafAttributes, bits, pat_index, span};
use crate::level::Level;
use crate::paging::PagingFeatures;

/// Reserved bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pae {
    /// In a PDE or PTE: bits from MAXPHYADDR to 62, and NX while EFER.NXE is clear.
    common: u64,
    /// In a PDPTE.
    pdpte: u64,
    /// The C-bit of an encrypted guest's entries, else 0.
    c_bit: u64,
}

impl Pae {
    pub(crate) const fn new(features: &PagingFeatures, nxe: bool) -> Pae {
        let high = features.reserved_address_bits() | span(52, 62);
        let nx = if nxe { 0 } else { bits::NX };
        Pae { common: high | nx, pdpte: high | bits::NX | span(1, 2) | span(5, 8), c_bit: 0 }
    }

    /// The format of an encrypted guest whose C-bit has this mask: neither reserved nor part of an address.
    pub(crate) const fn with_c_bit(self, c_bit: u64) -> Pae {
        Pae { common: self.common & !c_bit, pdpte: self.pdpte & !c_bit, c_bit }
    }
}

impl Format for Pae {
    #[inline(always)]
    fn classify(&self, raw: u64, level: Level) -> Entry {
        if raw & bits::P == 0 {
            return Entry::NotPresent;
        }
        let (reserved, kind) = match level {
            Level::PT => (self.common, Entry::Leaf),
            Level::PD if raw & bits::PS != 0 => (self.common | span(13, 20), Entry::Leaf),
            Level::PD => (self.common, Entry::Table),
            _ => (self.pdpte, Entry::Table),
        };
        if raw & reserved != 0 { Entry::Reserved } else { kind }
    }

    #[inline(always)]
    fn grants(&self, raw: u64, level: Level) -> Grants {
        if level == Level::PDPT {
            return Grants::all();
        }
        let mut grants = Grants::READ;
        grants.set(Grants::WRITE, raw & bits::RW != 0);
        grants.set(Grants::USER, raw & bits::US != 0);
        grants.set(Grants::EXECUTE, raw & bits::NX == 0);
        grants
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
        LeafAttributes { global: raw & bits::G != 0, pat_index: pat_index(raw, level), protection_key: 0 }
    }

    #[inline(always)]
    fn accessed(&self, level: Level) -> u64 {
        if level == Level::PDPT { 0 } else { bits::A }
    }
    #[inline(always)]
    fn dirty(&self) -> u64 {
        bits::D
    }
}
