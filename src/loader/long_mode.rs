//! The tables that a 64-bit entry finds in place: an identity map and flat segments.
//!
//! Modelled: Linux "The Linux/x86 Boot Protocol", section "64-bit Boot Protocol" (paging on, __BOOT_CS 0x10 and
//! __BOOT_DS 0x18 flat, the loaded parts identity-mapped); table formats by APM vol. 2, "Long-Mode Page Translation"
//! and "Segment Descriptors". The low 4 GiB are mapped with 2 MiB pages, which every long-mode processor has.

use emu_core::Gpa;

use super::error::{LoadError, Part};
use super::memory::GuestMemory;
use super::placement::Placement;

/// Paging and segments of a vCPU that starts in 64-bit mode: CR0.PE and PG, CR4.PAE, EFER.LME and LMA set; interrupts
/// off; CS from [`LongMode::CODE_SELECTOR`] (64-bit, ring 0), the data segments from [`LongMode::DATA_SELECTOR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongMode {
    /// Root table. It maps the low 4 GiB one to one, writable and executable, supervisor only.
    pub cr3: Gpa,
    /// What CR3 holds beside the address: the C-bit of an encrypted guest, which every entry of the tables carries too.
    pub encryption_mask: u64,
    /// Base for GDTR.
    pub gdt: Gpa,
    /// Limit for GDTR: bytes less one.
    pub gdt_limit: u16,
}

impl LongMode {
    /// __BOOT_CS.
    pub const CODE_SELECTOR: u16 = 0x10;
    /// __BOOT_DS.
    pub const DATA_SELECTOR: u16 = 0x18;
    /// The descriptor of __BOOT_CS: 64-bit code, readable, accessed, present, DPL 0, limit 4 GiB.
    pub const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
    /// The descriptor of __BOOT_DS: data, writable, accessed, present, DPL 0, limit 4 GiB.
    pub const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

    /// Builds the tables in low memory.
    pub(super) fn build(
        encryption_mask: u64,
        placement: &mut Placement<'_>,
        memory: &mut dyn GuestMemory,
    ) -> Result<LongMode, LoadError> {
        let gdt = [0, 0, Self::CODE_DESCRIPTOR, Self::DATA_DESCRIPTOR];
        let gdt = gdt.map(u64::to_le_bytes).concat();
        let gdt_at = placement.put_lowest(memory, Part::Gdt, &gdt, FOUR_GIB)?;
        let cr3 = placement.lowest(Part::PageTables, TABLES * 0x1000, 0x1000, FOUR_GIB)?;
        memory.write(cr3, &identity_tables(cr3, encryption_mask))?;
        Ok(LongMode { cr3, encryption_mask, gdt: gdt_at, gdt_limit: gdt.len() as u16 - 1 })
    }
}

/// What 32-bit code and the identity map can reach.
pub(super) const FOUR_GIB: Gpa = Gpa::new(1 << 32);

/// A PML4, a PDPT, and a page directory for each of four GiB.
const TABLES: u64 = 6;
const PRESENT_WRITABLE: u64 = 3;
const PAGE_SIZE_BIT: u64 = 1 << 7;

fn identity_tables(root: Gpa, encryption_mask: u64) -> Vec<u8> {
    let flags = PRESENT_WRITABLE | encryption_mask;
    let table = |n: u64| root.raw() + n * 0x1000;
    let mut entries = vec![0_u64; TABLES as usize * 512];
    entries[0] = table(1) | flags;
    for gib in 0..4 {
        entries[512 + gib as usize] = table(2 + gib) | flags;
    }
    for (n, entry) in (0_u64..).zip(&mut entries[1024..]) {
        *entry = n << 21 | PAGE_SIZE_BIT | flags;
    }
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::super::bytes::u64_at;
    use super::*;

    #[test]
    fn every_low_address_maps_to_itself() {
        let root = Gpa::new(0x9000);
        let tables = identity_tables(root, 0);
        let entry = |table: u64, index: u64| u64_at(&tables, table - root.raw() + 8 * index).unwrap();
        for address in [0, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff_u64] {
            let pdpt = entry(root.raw(), address >> 39) & !0xfff;
            let pd = entry(pdpt, address >> 30 & 511) & !0xfff;
            let leaf = entry(pd, address >> 21 & 511);
            assert_eq!(leaf & 0xfff, 0x83);
            assert_eq!(leaf & !0xfff, address & !0x1f_ffff);
        }
        assert_eq!(entry(root.raw(), 1), 0);
        assert_eq!(entry(root.raw() + 0x1000, 4), 0);
    }

    #[test]
    fn every_entry_of_an_encrypted_guest_has_the_c_bit() {
        let (root, c_bit) = (Gpa::new(0x9000), 1 << 51);
        let tables = identity_tables(root, c_bit);
        let plain = identity_tables(root, 0);
        for (encrypted, plain) in tables.as_chunks().0.iter().zip(plain.as_chunks().0) {
            let (encrypted, plain) = (u64::from_le_bytes(*encrypted), u64::from_le_bytes(*plain));
            assert_eq!(encrypted, if plain == 0 { 0 } else { plain | c_bit });
        }
    }
}
