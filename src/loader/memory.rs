//! What a loader needs to know of the guest's memory: its map, and how to write it.

use emu_core::Gpa;
use thiserror::Error;

/// The machine's memory as a loader writes it. The machine implements this over whatever backs the guest.
pub trait GuestMemory {
    /// Copies `bytes` to `gpa`. The loader stays inside RAM regions of the map it was given.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryRefused>;
    /// Makes `len_bytes` from `gpa` read as zero. The length may be as large as a RAM region: memory that is known
    /// to be fresh, or can be discarded, should not be written byte by byte.
    fn zero(&mut self, gpa: Gpa, len_bytes: u64) -> Result<(), MemoryRefused>;
}

/// Memory that the map calls RAM was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("guest memory refused {len_bytes:#x} bytes at {gpa}")]
pub struct MemoryRefused {
    /// First byte of the access.
    pub gpa: Gpa,
    /// Its length.
    pub len_bytes: u64,
}

/// What an address range is for; the numbers are those of the BIOS call E820h (ACPI, "System Address Map Interfaces").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RegionKind {
    /// Usable RAM.
    Ram = 1,
    /// Not for the operating system's allocator: firmware, devices.
    Reserved = 2,
    /// ACPI tables; RAM once the operating system has read them.
    AcpiReclaim = 3,
    /// ACPI non-volatile storage.
    AcpiNvs = 4,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First address.
    pub base: Gpa,
    /// Length in bytes.
    pub len_bytes: u64,
    /// What it is for.
    pub kind: RegionKind,
}

impl MemoryRegion {
    /// First address past the region. [`MemoryMap`] holds only regions for which this does not wrap.
    pub(super) fn end(&self) -> u64 {
        self.base.raw().saturating_add(self.len_bytes)
    }
}

/// A memory map that cannot be told to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MemoryMapError {
    /// A region is empty or wraps around the address space.
    #[error("memory region at {base} of {len_bytes:#x} bytes is empty or passes the end of the address space")]
    Shape {
        /// Where it was to start.
        base: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// Two regions claim the same address.
    #[error("memory regions overlap at {at}")]
    Overlap {
        /// First address claimed twice.
        at: Gpa,
    },
    /// More regions than boot_params holds.
    #[error("{count} memory regions; the zero page holds at most {}", MemoryMap::MAX_REGIONS)]
    TooMany {
        /// How many there were.
        count: usize,
    },
}

/// The guest's physical address map: sorted, without overlap, at most [`MemoryMap::MAX_REGIONS`] long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    regions: Vec<MemoryRegion>,
}

impl MemoryMap {
    /// Entries of `boot_params.e820_table`.
    pub const MAX_REGIONS: usize = 128;

    /// A map of these regions, in any order.
    pub fn new(mut regions: Vec<MemoryRegion>) -> Result<MemoryMap, MemoryMapError> {
        if regions.len() > Self::MAX_REGIONS {
            return Err(MemoryMapError::TooMany { count: regions.len() });
        }
        if let Some(bad) = regions.iter().find(|r| r.len_bytes == 0 || r.base.checked_add(r.len_bytes).is_none()) {
            return Err(MemoryMapError::Shape { base: bad.base, len_bytes: bad.len_bytes });
        }
        regions.sort_by_key(|r| r.base);
        if let Some(pair) = regions.windows(2).find(|w| w[0].end() > w[1].base.raw()) {
            return Err(MemoryMapError::Overlap { at: pair[1].base });
        }
        Ok(MemoryMap { regions })
    }

    /// The map of a PC with `ram_bytes` of RAM: conventional memory below 640 KiB, then RAM from 1 MiB up to
    /// `low_ram_end`, the rest from 4 GiB. The hole between belongs to PCI, its last 64 KiB to the firmware.
    pub fn pc(ram_bytes: u64, low_ram_end: Gpa) -> Result<MemoryMap, MemoryMapError> {
        const EBDA: u64 = 0x9_fc00;
        const VGA: u64 = 0xa_0000;
        const BIOS: u64 = 0xf_0000;
        const MIB: u64 = 0x10_0000;
        const FLASH: u64 = FOUR_GIB - 0x1_0000;
        const FOUR_GIB: u64 = 1 << 32;
        let mut regions = Vec::new();
        let mut add = |base: u64, end: u64, kind| {
            if base < end {
                regions.push(MemoryRegion { base: Gpa::new(base), len_bytes: end - base, kind });
            }
        };
        let low = low_ram_end.raw().min(FOUR_GIB);
        add(0, ram_bytes.min(EBDA), RegionKind::Ram);
        add(EBDA, VGA, RegionKind::Reserved);
        add(BIOS, MIB, RegionKind::Reserved);
        add(MIB, ram_bytes.min(low), RegionKind::Ram);
        add(FLASH, FOUR_GIB, RegionKind::Reserved);
        if let Some(high) = ram_bytes.checked_sub(low) {
            let end = FOUR_GIB.checked_add(high);
            let end = end.ok_or(MemoryMapError::Shape { base: Gpa::new(FOUR_GIB), len_bytes: high })?;
            add(FOUR_GIB, end, RegionKind::Ram);
        }
        MemoryMap::new(regions)
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// The RAM regions, ascending.
    pub fn ram(&self) -> impl DoubleEndedIterator<Item = &MemoryRegion> {
        self.regions.iter().filter(|r| r.kind == RegionKind::Ram)
    }

    /// Whether all of `len_bytes` from `gpa` lies in one RAM region.
    pub fn holds(&self, gpa: Gpa, len_bytes: u64) -> bool {
        self.ram().any(|r| {
            gpa.offset_from(r.base)
                .and_then(|offset| offset.checked_add(len_bytes))
                .is_some_and(|end| end <= r.len_bytes)
        })
    }

    /// Bytes of RAM in all.
    pub fn ram_bytes(&self) -> u64 {
        self.ram().map(|r| r.len_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pc_keeps_its_ram_around_the_hole() {
        let map = MemoryMap::pc(8 << 30, Gpa::new(3 << 30)).unwrap();
        let ram: Vec<_> = map.ram().map(|r| (r.base.raw(), r.end())).collect();
        assert_eq!(ram, [(0, 0x9_fc00), (0x10_0000, 3 << 30), (4 << 30, 9 << 30)]);
        assert!(map.holds(Gpa::new((9 << 30) - 1), 1));
        assert!(!map.holds(Gpa::new((9 << 30) - 1), 2));
        assert!(!map.holds(Gpa::new(0x9_fc00 - 1), 2));
        assert!(!map.holds(Gpa::new(0x10_0000), u64::MAX));
    }

    #[test]
    fn little_memory_has_no_high_part() {
        let map = MemoryMap::pc(64 << 20, Gpa::new(3 << 30)).unwrap();
        assert_eq!(map.ram_bytes(), (64 << 20) - 0x10_0000 + 0x9_fc00);
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        let region = |base, len_bytes| MemoryRegion { base: Gpa::new(base), len_bytes, kind: RegionKind::Ram };
        let refused = |regions| MemoryMap::new(regions).unwrap_err();
        assert_eq!(
            refused(vec![region(0x1000, 0x2000), region(0, 0x1001)]),
            MemoryMapError::Overlap { at: Gpa::new(0x1000) }
        );
        assert!(matches!(refused(vec![region(5, 0)]), MemoryMapError::Shape { .. }));
        assert!(matches!(refused(vec![region(5, u64::MAX)]), MemoryMapError::Shape { .. }));
        let many = (0..129).map(|n| region(n * 0x1000, 0x1000)).collect();
        assert_eq!(refused(many), MemoryMapError::TooMany { count: 129 });
        assert!(MemoryMap::pc(u64::MAX, Gpa::new(3 << 30)).is_err());
    }
}
