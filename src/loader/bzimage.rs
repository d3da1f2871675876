//! bzImage by the 64-bit entry, or by the 32-bit one of a kernel that has no other.
//!
//! Modelled: Linux, "The Linux/x86 Boot Protocol", sections "The Real-Mode Kernel Header", "32-bit Boot Protocol", "64-bit
//! Boot Protocol", and "Zero Page" (Documentation/arch/x86/zero-page.rst). The setup code of the image never runs: its header is
//! copied into the zero page, and the kernel starts at offset 0x200 of its protected-mode part, or at its start in 32-bit
//! mode.

use emu_core::Gpa;

use super::Confidential;
use super::boot_segments::BootSegments;
use super::bytes::{Record, range, u8_at, u16_at, u32_at, u64_at};
use super::error::{LoadError, Part};
use super::long_mode::{FOUR_GIB, LongMode};
use super::memory::GuestMemory;
use super::placement::Placement;
use super::{Entry, ImageKind, LoadOptions};

/// The first byte that counts as header, and where a header without the length byte's say ends.
const HEADER_START: u64 = 0x1f1;
/// End of the last field we read, `init_size`.
const HEADER_NEEDED: u64 = 0x264;
/// `edd_mbr_sig_buffer`: the header's place in the zero page ends here.
const HEADER_LIMIT: u64 = 0x290;
const MAGIC_AT: u64 = 0x202;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG: u16 = 0xaa55;

/// Boot protocol 2.12, the first with xloadflags.
const VERSION_NEEDED: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// "A loader without an assigned number".
const TYPE_OF_LOADER_UNDEFINED: u8 = 0xff;
const VID_MODE_NORMAL: u16 = 0xffff;
/// Default setup_sects, for a field of 0.
const SETUP_SECTS_DEFAULT: u8 = 4;
/// Where startup_64 begins in the protected-mode part.
const ENTRY_64: u64 = 0x200;
const ONE_MIB: u64 = 0x10_0000;

/// Whether `bytes` carry the boot sector signature and "HdrS".
pub(super) fn has_magic(bytes: &[u8]) -> bool {
    u16_at(bytes, 0x1fe) == Some(BOOT_FLAG) && u32_at(bytes, MAGIC_AT) == Some(MAGIC)
}

/// The fields of `struct setup_header` that decide anything here.
pub(super) struct SetupHeader {
    setup_sects: u8,
    syssize: u32,
    version: u16,
    loadflags: u8,
    initrd_addr_max: u32,
    kernel_alignment: u32,
    relocatable_kernel: u8,
    xloadflags: u16,
    cmdline_size: u32,
    pref_address: u64,
    init_size: u32,
}

impl SetupHeader {
    fn read(bytes: &[u8]) -> Option<SetupHeader> {
        Some(SetupHeader {
            setup_sects: u8_at(bytes, 0x1f1)?,
            syssize: u32_at(bytes, 0x1f4)?,
            version: u16_at(bytes, 0x206)?,
            loadflags: u8_at(bytes, 0x211)?,
            initrd_addr_max: u32_at(bytes, 0x22c)?,
            kernel_alignment: u32_at(bytes, 0x230)?,
            relocatable_kernel: u8_at(bytes, 0x234)?,
            xloadflags: u16_at(bytes, 0x236)?,
            cmdline_size: u32_at(bytes, 0x238)?,
            pref_address: u64_at(bytes, 0x258)?,
            init_size: u32_at(bytes, 0x260)?,
        })
    }

    /// The header of a kernel that can be loaded.
    pub(super) fn checked(bytes: &[u8]) -> Result<SetupHeader, LoadError> {
        let header = SetupHeader::read(bytes).ok_or(LoadError::TruncatedHeader {
            kind: ImageKind::BzImage,
            what: "setup_header",
            needs: HEADER_NEEDED,
            has: bytes.len() as u64,
        })?;
        header.check()?;
        Ok(header)
    }

    /// The command line with its terminator, if this kernel takes one so long.
    pub(super) fn checked_cmdline(&self, options: &LoadOptions<'_>) -> Result<Vec<u8>, LoadError> {
        let cmdline = options.checked_cmdline()?;
        let limit = u64::from(self.cmdline_size);
        if cmdline.len() as u64 > limit {
            return Err(LoadError::CommandLineTooLong { len_bytes: cmdline.len(), limit });
        }
        Ok([cmdline, &[0]].concat())
    }

    fn check(&self) -> Result<(), LoadError> {
        if self.version < VERSION_NEEDED {
            return Err(LoadError::ProtocolTooOld { version: self.version });
        }
        if self.loadflags & LOADED_HIGH == 0 {
            return Err(LoadError::LoadedLow { loadflags: self.loadflags });
        }
        if self.relocatable_kernel != 0 && !self.kernel_alignment.is_power_of_two() {
            return Err(LoadError::KernelAlignment { alignment: self.kernel_alignment });
        }
        Ok(())
    }

    /// The protected-mode part of the file.
    pub(super) fn kernel<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], LoadError> {
        let sectors = if self.setup_sects == 0 { SETUP_SECTS_DEFAULT } else { self.setup_sects };
        let start = (u64::from(sectors) + 1) * 512;
        let has = bytes.len() as u64;
        // syssize counts paragraphs of 16 bytes, and the last one may be partial.
        let promised = u64::from(self.syssize) * 16;
        let needs = start + promised.saturating_sub(15).max(ENTRY_64 + 1);
        let len = has.saturating_sub(start).min(if promised == 0 { u64::MAX } else { promised.max(ENTRY_64 + 1) });
        if has < needs {
            return Err(LoadError::TruncatedKernel { needs, has });
        }
        range(bytes, start, len).ok_or(LoadError::TruncatedKernel { needs, has })
    }
}

pub(super) fn load(
    bytes: &[u8],
    options: &LoadOptions<'_>,
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<Entry, LoadError> {
    let header = SetupHeader::checked(bytes)?;
    if !options.modules.is_empty() {
        return Err(LoadError::CannotPass { kind: ImageKind::BzImage, what: "boot modules besides the initrd" });
    }

    let kernel = header.kernel(bytes)?;
    let load_address = place_kernel(&header, kernel.len() as u64, placement)?;
    memory.write(load_address, kernel)?;
    let mut zero_page = ZeroPage::new(bytes);
    let cmdline = header.checked_cmdline(options)?;
    let boot_params = placement.lowest(Part::BootInfo, 0x1000, 0x1000, FOUR_GIB)?;
    let cmdline_at = placement.put_lowest(memory, Part::CommandLine, &cmdline, FOUR_GIB)?;
    zero_page.set_cmdline(cmdline_at);
    let entry = if header.xloadflags & XLF_KERNEL_64 != 0 {
        let long_mode = LongMode::build(options.encryption_mask(), placement, memory)?;
        Entry::Linux64 { rip: load_address.wrapping_add(ENTRY_64), boot_params, long_mode }
    } else {
        let segments = BootSegments::build(placement, memory)?;
        // The kernel lies below 4 GiB.
        Entry::Linux32 { eip: load_address.raw() as u32, boot_params, segments }
    };

    if let Some(initrd) = options.initrd {
        zero_page.set_initrd(place_initrd(&header, initrd, placement, memory)?, initrd.len() as u64);
    }
    if options.confidential.is_some() {
        zero_page.0.put_u64(0x250, Confidential::build(placement, memory)?.raw());
    }
    zero_page.set_memory_map(placement);
    if let Some(rsdp) = options.acpi_rsdp {
        zero_page.0.put_u64(0x070, rsdp.raw());
    }
    memory.write(boot_params, zero_page.0.as_bytes())?;
    Ok(entry)
}

/// The preferred address when RAM allows, else the lowest aligned one from 1 MiB up. The kernel needs `init_size`
/// bytes from there until it has found its memory.
pub(super) fn place_kernel(
    header: &SetupHeader,
    len_bytes: u64,
    placement: &mut Placement<'_>,
) -> Result<Gpa, LoadError> {
    let needed = u64::from(header.init_size).max(len_bytes);
    let preferred = Gpa::new(header.pref_address);
    // The identity map ends at 4 GiB: a preference beyond it could not be entered.
    let claimed = match preferred.checked_add(needed) {
        Some(end) if end <= FOUR_GIB => placement.claim(Part::Kernel, preferred, needed),
        _ => Err(LoadError::EntryUnmapped { entry: preferred }),
    };
    match claimed {
        Ok(()) => Ok(preferred),
        Err(refused) if header.relocatable_kernel == 0 => Err(refused),
        Err(_) => {
            let align = u64::from(header.kernel_alignment.max(0x1000));
            placement.lowest_from(ONE_MIB, Part::Kernel, needed, align, FOUR_GIB)
        }
    }
}

pub(super) fn place_initrd(
    header: &SetupHeader,
    initrd: &[u8],
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<Gpa, LoadError> {
    let below = Gpa::new(u64::from(header.initrd_addr_max) + 1);
    match placement.put_highest(memory, Part::Initrd, initrd, below) {
        Err(LoadError::NoRoom { .. }) if header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 => {
            placement.put_highest(memory, Part::Initrd, initrd, Gpa::new(u64::MAX))
        }
        done => done,
    }
}

/// `struct boot_params`. Offsets are those of zero-page.rst; header fields keep their offsets of the file.
struct ZeroPage(Record<0x1000>);

impl ZeroPage {
    /// A page with the header of `bytes` and a loader's marks in it.
    fn new(bytes: &[u8]) -> ZeroPage {
        let mut page = Record::zeroed();
        // The second byte of the jump over the header tells where the header ends.
        let end = (MAGIC_AT + u64::from(u8_at(bytes, 0x201).unwrap_or(0))).clamp(HEADER_NEEDED, HEADER_LIMIT);
        let end = end.min(bytes.len() as u64);
        page.put(HEADER_START as usize, &bytes[HEADER_START as usize..end as usize]);
        page.put(0x1fa, &VID_MODE_NORMAL.to_le_bytes());
        page.put(0x210, &[TYPE_OF_LOADER_UNDEFINED]);
        // What follows is the loader's to say, not the file's.
        page.put_u32(0x218, 0);
        page.put_u32(0x21c, 0);
        page.put_u64(0x250, 0);
        ZeroPage(page)
    }

    fn set_cmdline(&mut self, at: Gpa) {
        self.put_split(0x228, 0x0c8, at.raw());
    }

    fn set_initrd(&mut self, at: Gpa, len_bytes: u64) {
        self.put_split(0x218, 0x0c0, at.raw());
        self.put_split(0x21c, 0x0c4, len_bytes);
    }

    /// A 64-bit value whose halves lie apart: the lower in the header, the upper in an `ext_` field.
    fn put_split(&mut self, low_at: usize, high_at: usize, value: u64) {
        self.0.put_u32(low_at, value as u32);
        self.0.put_u32(high_at, (value >> 32) as u32);
    }

    fn set_memory_map(&mut self, placement: &Placement<'_>) {
        let regions = placement.map().regions();
        self.0.put(0x1e8, &[regions.len() as u8]);
        for (n, region) in regions.iter().enumerate() {
            let at = 0x2d0 + 20 * n;
            self.0.put_u64(at, region.base.raw());
            self.0.put_u64(at + 8, region.len_bytes);
            self.0.put_u32(at + 16, region.kind as u32);
        }
    }
}
