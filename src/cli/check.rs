//! `bifold check`: what a file is, and whether it would load.

use emu_core::Gpa;

use super::args::CheckArguments;
use super::exit::ExitCode;
use super::{CliError, files};
use crate::loader::{Entry, GuestMemory, Image, LoadError, LoadOptions, MemoryMap, MemoryRefused, load, probe};

/// Where RAM below 4 GiB ends: the rest belongs to PCI.
pub(super) const LOW_RAM_END: Gpa = Gpa::new(3 << 30);

/// Takes every write: whether an image loads does not depend on what memory holds.
struct Anything;

impl GuestMemory for Anything {
    fn write(&mut self, _: Gpa, _: &[u8]) -> Result<(), MemoryRefused> {
        Ok(())
    }
    fn zero(&mut self, _: Gpa, _: u64) -> Result<(), MemoryRefused> {
        Ok(())
    }
}

/// Prints the verdict on standard output, which no guest has here.
pub(super) fn check(arguments: &CheckArguments) -> Result<ExitCode, CliError> {
    let memory = arguments.memory()?;
    let bytes = files::read(&arguments.file)?;
    let name = files::name(&arguments.file);
    let failed = |cause| CliError::Load { image: name.clone(), cause };
    let kind = probe(&bytes).ok_or(failed(LoadError::Empty))?;
    println!("{name}: {kind}, {} bytes", bytes.len());
    let map = MemoryMap::pc(memory.bytes(), LOW_RAM_END)?;
    let entry = load(&Image { name: &name, bytes: &bytes }, &LoadOptions::new(&map), &mut Anything).map_err(failed)?;
    println!("{name}: loads into {memory}, starts {}", describe(&entry));
    Ok(ExitCode::Done)
}

fn describe(entry: &Entry) -> String {
    match *entry {
        Entry::Linux64 { rip, boot_params, .. } => {
            format!("in 64-bit mode at {:#x} with boot_params at {:#x}", rip.raw(), boot_params.raw())
        }
        Entry::Pvh32 { eip, start_info } | Entry::Elf32 { eip, start_info } => {
            format!("in 32-bit mode at {eip:#x} with start_info at {:#x}", start_info.raw())
        }
        Entry::Multiboot32 { eip, info } => {
            format!("in 32-bit mode at {eip:#x} with multiboot information at {:#x}", info.raw())
        }
        Entry::Elf64 { rip, start_info, .. } => {
            format!("in 64-bit mode at {:#x} with start_info at {:#x}", rip.raw(), start_info.raw())
        }
        Entry::FlatReal { ip } => format!("in real mode at {ip:#x}"),
        Entry::Flat32 { eip } => format!("in 32-bit mode at {eip:#x}"),
        Entry::Flat64 { rip, .. } => format!("in 64-bit mode at {:#x}", rip.raw()),
    }
}
