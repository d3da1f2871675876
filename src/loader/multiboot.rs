//! Multiboot 1: the header that marks an image, and the information its kernel receives.
//!
//! Modelled: Multiboot Specification 0.6.96, "OS image format" and "Boot information format". Passed are the memory
//! sizes and map, command line, modules and our name; a wish for a video mode is noted by no answer.

use emu_core::Gpa;

use super::bytes::{Record, range, u32_at};
use super::elf::{self, Elf};
use super::error::{LoadError, Part};
use super::long_mode::FOUR_GIB;
use super::memory::{GuestMemory, MemoryMap};
use super::placement::Placement;
use super::pvh::all_modules;
use super::{Entry, Image, ImageKind, LoadOptions};

/// EAX at the entry of a multiboot kernel.
pub const BOOTLOADER_MAGIC: u32 = 0x2bad_b002;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header lies in this many bytes from the start of the file.
const SEARCHED: usize = 8192;
/// Requirements we meet (page alignment, memory information) or can leave unanswered (video mode).
const KNOWN_REQUIREMENTS: u32 = 0b111;
const REQUIREMENTS: u32 = 0xffff;
const HAS_ADDRESSES: u32 = 1 << 16;
const CMDLINE_LIMIT: u64 = 0xffff;
const ONE_MIB: u64 = 0x10_0000;

const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

/// Where in the file the header is, and its flags.
#[derive(Clone, Copy)]
pub(super) struct Header {
    at: u64,
    flags: u32,
}

/// The first 4-aligned header with a good checksum.
pub(super) fn find_header(bytes: &[u8]) -> Option<Header> {
    let searched = &bytes[..bytes.len().min(SEARCHED)];
    (0..searched.len() as u64).step_by(4).find_map(|at| {
        if u32_at(searched, at) != Some(HEADER_MAGIC) {
            return None;
        }
        let (flags, checksum) = (u32_at(searched, at + 4)?, u32_at(searched, at + 8)?);
        (HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0).then_some(Header { at, flags })
    })
}

pub(super) fn load(
    image: &Image<'_>,
    options: &LoadOptions<'_>,
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<Entry, LoadError> {
    let header = find_header(image.bytes).ok_or(LoadError::MultibootNoAddresses)?;
    let unknown = header.flags & REQUIREMENTS & !KNOWN_REQUIREMENTS;
    if unknown != 0 {
        return Err(LoadError::MultibootFeature { flags: unknown });
    }
    let eip = if header.flags & HAS_ADDRESSES != 0 {
        load_by_addresses(image.bytes, header, placement, memory)?
    } else if elf::class_by_magic(image.bytes).is_some() {
        let elf = Elf::parse(image.bytes)?;
        elf.place(placement, memory)?;
        elf.entry_32()?
    } else {
        return Err(LoadError::MultibootNoAddresses);
    };
    Ok(Entry::Multiboot32 { eip, info: information(image.name, options, placement, memory)? })
}

/// Loads by the header's own address fields and returns the entry point.
fn load_by_addresses(
    bytes: &[u8],
    header: Header,
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<u32, LoadError> {
    let has = bytes.len() as u64;
    let field = |n: u64| {
        u32_at(bytes, header.at + 12 + 4 * n).ok_or(LoadError::TruncatedHeader {
            kind: ImageKind::Multiboot1,
            what: "address fields",
            needs: header.at + 32,
            has,
        })
    };
    let (header_addr, load, load_end, bss_end, entry) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let wrong = || LoadError::MultibootAddresses { header: header_addr, load, load_end, bss_end };

    // The header's own address says which byte of the file goes to load_addr.
    let before = u64::from(header_addr.checked_sub(load).ok_or_else(wrong)?);
    let offset = header.at.checked_sub(before).ok_or_else(wrong)?;
    let file_bytes = match load_end {
        0 => has - offset,
        end => u64::from(end.checked_sub(load).ok_or_else(wrong)?),
    };
    let contents = range(bytes, offset, file_bytes).ok_or_else(wrong)?;
    let memory_bytes = match bss_end {
        0 => file_bytes,
        end => u64::from(end.checked_sub(load).ok_or_else(wrong)?),
    };
    let bss_bytes = memory_bytes.checked_sub(file_bytes).ok_or_else(wrong)?;
    let gpa = Gpa::new(load.into());
    placement.claim(Part::Image, gpa, memory_bytes)?;
    memory.write(gpa, contents)?;
    if bss_bytes > 0 {
        memory.zero(gpa.wrapping_add(file_bytes), bss_bytes)?;
    }
    match entry.checked_sub(load) {
        Some(offset) if u64::from(offset) < memory_bytes => Ok(entry),
        _ => Err(LoadError::EntryOutside { entry: entry.into() }),
    }
}

/// Writes the information structure and what it points to, and says where it is.
fn information(
    name: &str,
    options: &LoadOptions<'_>,
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<Gpa, LoadError> {
    // As GRUB and QEMU do, the first word is the image itself.
    let cmdline = [name.as_bytes(), b" ", options.checked_cmdline()?].concat();
    let cmdline = cmdline.strip_suffix(b" ").unwrap_or(&cmdline);
    let cmdline_at = put_text(placement, memory, cmdline)?;
    let loader_at = put_text(placement, memory, b"bifold")?;

    let mut modules: Vec<u8> = Vec::new();
    let all = all_modules(options);
    for (index, module) in all.iter().enumerate() {
        let part = Part::Module { index };
        let len = module.bytes.len() as u64;
        // Above the image, where GRUB puts them: small kernels map little more than their own surroundings.
        let start = placement.lowest_from(ONE_MIB, part, len, 0x1000, FOUR_GIB)?;
        memory.write(start, module.bytes)?;
        let text = put_text(placement, memory, module.cmdline.as_bytes())?;
        for word in [low32(start), low32(start.wrapping_add(len)), low32(text), 0] {
            modules.extend_from_slice(&word.to_le_bytes());
        }
    }
    let modules_at = match all.as_slice() {
        [] => Gpa::new(0),
        _ => placement.put_lowest(memory, Part::BootInfo, &modules, FOUR_GIB)?,
    };
    let map: Vec<u8> = placement
        .map()
        .regions()
        .iter()
        .flat_map(|region| {
            // The size field comes first and does not count itself.
            let mut entry = Record::<24>::zeroed();
            entry.put_u32(0, 20);
            entry.put_u64(4, region.base.raw());
            entry.put_u64(12, region.len_bytes);
            entry.put_u32(20, region.kind as u32);
            entry.as_bytes().to_vec()
        })
        .collect();
    let map_at = placement.put_lowest(memory, Part::BootInfo, &map, FOUR_GIB)?;

    let (lower_kib, upper_kib) = sizes_kib(placement.map());
    let mut info = Record::<120>::zeroed();
    info.put_u32(0, INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME);
    info.put_u32(4, lower_kib);
    info.put_u32(8, upper_kib);
    info.put_u32(16, low32(cmdline_at));
    info.put_u32(20, all.len() as u32);
    info.put_u32(24, low32(modules_at));
    info.put_u32(44, map.len() as u32);
    info.put_u32(48, low32(map_at));
    info.put_u32(64, low32(loader_at));
    placement.put_lowest(memory, Part::BootInfo, info.as_bytes(), FOUR_GIB)
}

/// `mem_lower` (at most 640) and `mem_upper` (from 1 MiB to the first hole), in KiB.
fn sizes_kib(map: &MemoryMap) -> (u32, u32) {
    let run = |base: u64, most: u64| {
        let region = map.ram().find(|r| map.holds(Gpa::new(base), 1) && r.base.raw() <= base && base < r.end());
        region.map_or(0, |r| ((r.end() - base) / 1024).min(most)) as u32
    };
    (run(0, 640), run(ONE_MIB, u32::MAX.into()))
}

/// An address that was placed below 4 GiB; the end of a range may be 4 GiB itself, which reads as 0.
fn low32(gpa: Gpa) -> u32 {
    gpa.raw() as u32
}

fn put_text(placement: &mut Placement<'_>, memory: &mut dyn GuestMemory, text: &[u8]) -> Result<Gpa, LoadError> {
    if text.len() as u64 > CMDLINE_LIMIT {
        return Err(LoadError::CommandLineTooLong { len_bytes: text.len(), limit: CMDLINE_LIMIT });
    }
    placement.put_lowest(memory, Part::CommandLine, &[text, &[0]].concat(), FOUR_GIB)
}
