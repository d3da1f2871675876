//! What a PVH guest is told: `hvm_start_info`, its modules and its memory map.
//!
//! Modelled: Xen, "x86/HVM direct boot ABI" and `public/arch-x86/hvm/start_info.h`, version 1 of the structure.

use emu_core::Gpa;

use super::bytes::Record;
use super::error::{LoadError, Part};
use super::long_mode::FOUR_GIB;
use super::memory::GuestMemory;
use super::placement::Placement;
use super::{LoadOptions, Module};

/// Type of the note that holds the entry point.
pub(super) const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Owner of the note.
pub(super) const NOTE_NAME: &[u8] = b"Xen\0";

const START_MAGIC: u32 = 0x336e_c578;
/// With a memory map.
const VERSION: u32 = 1;
/// The ABI sets no limit; no kernel takes more.
const CMDLINE_LIMIT: u64 = 0xffff;

/// Writes the structure and everything it points to, and says where it is.
pub(super) fn start_info(
    options: &LoadOptions<'_>,
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<Gpa, LoadError> {
    let cmdline = put_text(placement, memory, options.checked_cmdline()?)?;
    let mut modules: Vec<u8> = Vec::new();
    let all = all_modules(options);
    for (index, module) in all.iter().enumerate() {
        let at = placement.put_highest(memory, Part::Module { index }, module.bytes, FOUR_GIB)?;
        let text = put_text(placement, memory, module.cmdline.as_bytes())?;
        let mut entry = Record::<32>::zeroed();
        entry.put_u64(0, at.raw());
        entry.put_u64(8, module.bytes.len() as u64);
        entry.put_u64(16, text.raw());
        modules.extend_from_slice(entry.as_bytes());
    }
    let map: Vec<u8> = placement
        .map()
        .regions()
        .iter()
        .flat_map(|region| {
            let mut entry = Record::<24>::zeroed();
            entry.put_u64(0, region.base.raw());
            entry.put_u64(8, region.len_bytes);
            entry.put_u32(16, region.kind as u32);
            entry.as_bytes().to_vec()
        })
        .collect();

    let mut info = Record::<56>::zeroed();
    info.put_u32(0, START_MAGIC);
    info.put_u32(4, VERSION);
    info.put_u32(12, all.len() as u32);
    if !all.is_empty() {
        info.put_u64(16, placement.put_lowest(memory, Part::BootInfo, &modules, FOUR_GIB)?.raw());
    }
    info.put_u64(24, cmdline.raw());
    info.put_u64(32, options.acpi_rsdp.map_or(0, Gpa::raw));
    info.put_u64(40, placement.put_lowest(memory, Part::BootInfo, &map, FOUR_GIB)?.raw());
    info.put_u32(48, placement.map().regions().len() as u32);
    placement.put_lowest(memory, Part::BootInfo, info.as_bytes(), FOUR_GIB)
}

/// The initrd and the modules, as the protocols without an initrd of their own number them.
pub(super) fn all_modules<'a>(options: &LoadOptions<'a>) -> Vec<Module<'a>> {
    let initrd = options.initrd.map(|bytes| Module { bytes, cmdline: "" });
    initrd.into_iter().chain(options.modules.iter().copied()).collect()
}

/// Writes a terminated string; address 0 stands for an empty one.
fn put_text(placement: &mut Placement<'_>, memory: &mut dyn GuestMemory, text: &[u8]) -> Result<Gpa, LoadError> {
    if text.is_empty() {
        return Ok(Gpa::new(0));
    }
    if text.len() as u64 > CMDLINE_LIMIT {
        return Err(LoadError::CommandLineTooLong { len_bytes: text.len(), limit: CMDLINE_LIMIT });
    }
    placement.put_lowest(memory, Part::CommandLine, &[text, &[0]].concat(), FOUR_GIB)
}
