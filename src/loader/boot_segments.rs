//! The segments that a 32-bit entry of Linux finds in place.
//!
//! Modelled: Linux "The Linux/x86 Boot Protocol", section "32-bit Boot Protocol": a GDT is loaded whose __BOOT_CS (0x10)
//! and __BOOT_DS (0x18) are flat 4 GiB segments; paging is off.

use emu_core::Gpa;

use super::error::{LoadError, Part};
use super::long_mode::FOUR_GIB;
use super::memory::GuestMemory;
use super::placement::Placement;

/// The GDT of a vCPU that starts in protected mode without paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSegments {
    /// Base for GDTR.
    pub gdt: Gpa,
    /// Limit for GDTR: bytes less one.
    pub gdt_limit: u16,
}

impl BootSegments {
    /// The descriptor of __BOOT_CS: 32-bit code, readable, accessed, present, DPL 0, limit 4 GiB.
    pub const CODE_DESCRIPTOR: u64 = 0x00cf_9b00_0000_ffff;
    /// The descriptor of __BOOT_DS: data, writable, accessed, present, DPL 0, limit 4 GiB.
    pub const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

    /// Builds the table in low memory.
    pub(super) fn build(
        placement: &mut Placement<'_>,
        memory: &mut dyn GuestMemory,
    ) -> Result<BootSegments, LoadError> {
        let gdt = [0, 0, Self::CODE_DESCRIPTOR, Self::DATA_DESCRIPTOR].map(u64::to_le_bytes).concat();
        let at = placement.put_lowest(memory, Part::Gdt, &gdt, FOUR_GIB)?;
        Ok(BootSegments { gdt: at, gdt_limit: gdt.len() as u16 - 1 })
    }
}
