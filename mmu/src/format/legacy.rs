//! 32-bit paging: two levels of 4-byte entries, 4 MiB pages with CR4.PSE, 40-bit addresses in them with PSE-36.
//!
//! Intel SDM vol. 3, "32-Bit Paging"; APM vol. 2, "Normal (Non-PAE) Paging". A 4-byte entry is handled zero-extended.
//! There is no NX.

use super::{Entry, Format, Grants, LeafAttributes, bits, pat_index, span};
use crate::level::Level;
use crate::paging::{PagingCapabilities, PagingFeatures};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Legacy {
    /// PS while CR4.PSE is set: the bit of a PDE that makes it a leaf.
    large: u64,
    /// Reserved bits of a 4 MiB PDE: bit 21, and the part of 20:13 above MAXPHYADDR.
    large_reserved: u64,
}

impl Legacy {
    pub(crate) const fn new(features: &PagingFeatures, pse: bool) -> Legacy {
        let physical = if !features.capabilities.contains(PagingCapabilities::PSE36) || features.physical_bits < 32 {
            32
        } else if features.physical_bits > 40 {
            40
        } else {
            features.physical_bits as u32
        };
        // Bits 20:13 hold address bits 39:32.
        Legacy { large: if pse { bits::PS } else { 0 }, large_reserved: span(physical - 32 + 13, 21) }
    }
}

impl Format for Legacy {
    const ENTRY_BYTES: u64 = 4;
    const INDEX_BITS: u32 = 10;

    #[inline(always)]
    fn classify(&self, raw: u64, level: Level) -> Entry {
        if raw & bits::P == 0 {
            return Entry::NotPresent;
        }
        match level {
            Level::PT => Entry::Leaf,
            _ if raw & self.large == 0 => Entry::Table,
            _ if raw & self.large_reserved != 0 => Entry::Reserved,
            _ => Entry::Leaf,
        }
    }

    #[inline(always)]
    fn grants(&self, raw: u64, _level: Level) -> Grants {
        let mut grants = Grants::READ | Grants::EXECUTE;
        grants.set(Grants::WRITE, raw & bits::RW != 0);
        grants.set(Grants::USER, raw & bits::US != 0);
        grants
    }

    #[inline(always)]
    fn page(&self, raw: u64, level: Level) -> u64 {
        match level {
            Level::PT => raw & span(12, 31),
            _ => raw & span(22, 31) | (raw & span(13, 20)) << (32 - 13),
        }
    }

    #[inline(always)]
    fn leaf_attributes(&self, raw: u64, level: Level) -> LeafAttributes {
        LeafAttributes { global: raw & bits::G != 0, pat_index: pat_index(raw, level), protection_key: 0 }
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
