//! What a Linux kernel that boots as an encrypted guest finds beside the usual: where the secrets and the table of CPUID
//! lie, told by a node of setup data.
//!
//! Modelled: Linux `struct cc_blob_sev_info` (arch/x86/include/asm/sev-common.h, `find_cc_blob_setup_data`) and "The
//! Linux/x86 Boot Protocol", "setup_data" with the type SETUP_CC_BLOB. The places follow from what the kernel does with
//! them: secrets and CPUID table in reserved memory, because the kernel never sets them aside by itself and would put
//! itself there; the node in RAM, which the kernel reads encrypted at all times; ACPI tables in reclaimable memory, because
//! it maps whatever is merely reserved as shared.

use emu_core::Gpa;

use super::bytes::Record;
use super::error::{LoadError, Part};
use super::long_mode::FOUR_GIB;
use super::memory::{GuestMemory, MemoryMap, MemoryMapError, MemoryRegion, RegionKind};
use super::placement::Placement;

/// An encrypted guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confidential {
    /// The number of the C-bit in a page-table entry.
    pub c_bit: u8,
}

/// `CC_BLOB_SEV_HDR_MAGIC`: "AMDE".
const CC_BLOB_MAGIC: u32 = u32::from_le_bytes(*b"AMDE");
/// `SETUP_CC_BLOB`.
const SETUP_CC_BLOB: u32 = 7;
/// `struct setup_data` before its data.
const SETUP_DATA_HEADER: usize = 16;
const PAGE: u64 = 0x1000;

impl Confidential {
    /// The page that the firmware fills with the guest's secrets.
    pub const SECRETS: Gpa = Gpa::new(0x9_0000);
    /// The page with the table of CPUID.
    pub const CPUID: Gpa = Gpa::new(0x9_1000);
    /// `struct cc_blob_sev_info`.
    pub const CC_BLOB: Gpa = Gpa::new(0x9_2000);

    /// Writes what tells the kernel where it finds the two pages. Returns the node for the list of setup data.
    pub(super) fn build(placement: &mut Placement<'_>, memory: &mut dyn GuestMemory) -> Result<Gpa, LoadError> {
        let mut blob = Record::<40>::zeroed();
        blob.put_u32(0, CC_BLOB_MAGIC);
        blob.put_u64(8, Self::SECRETS.raw());
        blob.put_u32(16, PAGE as u32);
        blob.put_u64(24, Self::CPUID.raw());
        blob.put_u32(32, PAGE as u32);
        memory.write(Self::CC_BLOB, blob.as_bytes())?;

        let mut node = Record::<{ SETUP_DATA_HEADER + 4 }>::zeroed();
        node.put_u32(8, SETUP_CC_BLOB);
        node.put_u32(12, 4);
        node.put_u32(SETUP_DATA_HEADER, Self::CC_BLOB.raw() as u32);
        placement.put_lowest(memory, Part::SetupData, node.as_bytes(), FOUR_GIB)
    }
}

impl MemoryMap {
    /// The map of an encrypted PC: as [`MemoryMap::pc`], but that RAM ends where [`Confidential::SECRETS`] lies, that ACPI
    /// tables from `acpi` to 0xf0000 may be reclaimed, and that nothing below 1 MiB is left unsaid: the kernel looks for
    /// firmware there, and all of it is the guest's private memory.
    pub fn confidential(ram_bytes: u64, low_ram_end: Gpa, acpi: Gpa) -> Result<MemoryMap, MemoryMapError> {
        const BIOS: u64 = 0xf_0000;
        const MIB: u64 = 0x10_0000;
        let region = |base: u64, end: u64, kind| MemoryRegion { base: Gpa::new(base), len_bytes: end - base, kind };
        let secrets = Confidential::SECRETS.raw();
        if acpi.raw() <= secrets || acpi.raw() >= BIOS {
            return Err(MemoryMapError::Overlap { at: acpi });
        }
        let pc = MemoryMap::pc(ram_bytes, low_ram_end)?;
        let above = pc.regions().iter().copied().filter(|region| region.base.raw() >= MIB);
        let below = [
            region(0, secrets, RegionKind::Ram),
            region(secrets, acpi.raw(), RegionKind::Reserved),
            region(acpi.raw(), BIOS, RegionKind::AcpiReclaim),
            region(BIOS, MIB, RegionKind::Reserved),
        ];
        MemoryMap::new(below.into_iter().chain(above).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{u32_at, u64_at};
    use super::super::memory::MemoryRefused;
    use super::*;

    /// The first mebibyte.
    struct Low(Vec<u8>);

    impl GuestMemory for Low {
        fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryRefused> {
            let at = gpa.raw() as usize;
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
        fn zero(&mut self, _gpa: Gpa, _len_bytes: u64) -> Result<(), MemoryRefused> {
            Ok(())
        }
    }

    fn map() -> MemoryMap {
        MemoryMap::confidential(64 << 20, Gpa::new(3 << 30), Gpa::new(0xe_0000)).expect("a possible map")
    }

    #[test]
    fn setup_data_leads_to_both_pages() {
        let (map, mut memory) = (map(), Low(vec![0; 1 << 20]));
        let node = Confidential::build(&mut Placement::new(&map), &mut memory).expect("there is room").raw();
        assert_eq!((u64_at(&memory.0, node), u32_at(&memory.0, node + 8)), (Some(0), Some(7)));
        let blob = u32_at(&memory.0, node + 16).map(u64::from).expect("inside the node");
        assert_eq!(&memory.0[blob as usize..][..4], b"AMDE");
        assert_eq!((u64_at(&memory.0, blob + 8), u32_at(&memory.0, blob + 16)), (Some(0x9_0000), Some(0x1000)));
        assert_eq!((u64_at(&memory.0, blob + 24), u32_at(&memory.0, blob + 32)), (Some(0x9_1000), Some(0x1000)));
        assert!(map.holds(Gpa::new(node), 20), "the node is in RAM");
        for page in [Confidential::SECRETS, Confidential::CPUID, Confidential::CC_BLOB] {
            assert!(!map.holds(page, 1), "{page} is not RAM");
        }
    }

    #[test]
    fn the_first_mebibyte_has_no_gap() {
        let map = map();
        let mut end = 0;
        for region in map.regions().iter().take_while(|region| region.base.raw() <= 0x10_0000) {
            assert_eq!(region.base.raw(), end);
            end = region.base.raw() + region.len_bytes;
        }
        assert_eq!(end, 64 << 20);
        let kind = |gpa| map.regions().iter().find(|r| r.base.raw() <= gpa && gpa < r.base.raw() + r.len_bytes);
        assert_eq!(kind(0xe_0000).map(|region| region.kind), Some(RegionKind::AcpiReclaim));
        assert!(MemoryMap::confidential(64 << 20, Gpa::new(3 << 30), Gpa::new(0xf_0000)).is_err());
    }
}
