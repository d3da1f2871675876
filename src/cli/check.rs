//! `bifold check`: what a file is, and whether it would load.

use emu_core::Gpa;
use emu_core::sev::Vmpl;
use serde_json::json;

use super::args::CheckArguments;
use super::exit::ExitCode;
use super::{CliError, files, out};
use crate::loader::igvm::{self, IgvmMachine, Step};
use crate::loader::{
    Entry, GuestMemory, Image, ImageKind, LoadError, LoadOptions, MemoryMap, MemoryRefused, load, probe,
};
use crate::machine::MAX_CPUS;

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
    if !arguments.json {
        out::line(format_args!("{name}: {kind}, {} bytes", bytes.len()))?;
    }
    let map = MemoryMap::pc(memory.bytes(), LOW_RAM_END)?;
    if kind == ImageKind::Igvm {
        let machine = IgvmMachine { cpus: MAX_CPUS, vmpl: Vmpl::Vmpl0 };
        let launch = igvm::load(&bytes, &LoadOptions::new(&map), machine).map_err(failed)?;
        let areas = launch.steps.iter().filter(|step| matches!(step, Step::Vmsa { .. })).count();
        let pages = launch.steps.len() - areas;
        if arguments.json {
            out::line(format_args!(
                "{}",
                json!({
                    "schema": 1,
                    "file": name,
                    "kind": kind.to_string(),
                    "bytes": bytes.len(),
                    "memory_bytes": memory.bytes(),
                    "launch": { "pages": pages, "save_areas": areas, "policy": launch.policy },
                })
            ))?;
        } else {
            let what = format_args!("launches {pages} pages and {areas} save areas with --vm snp");
            out::line(format_args!("{name}: loads into {memory}, {what}"))?;
        }
        return Ok(ExitCode::Done);
    }
    let entry = load(&Image { name: &name, bytes: &bytes }, &LoadOptions::new(&map), &mut Anything).map_err(failed)?;
    if arguments.json {
        let (mode, start, handed_over) = facts(&entry);
        out::line(format_args!(
            "{}",
            json!({
                "schema": 1,
                "file": name,
                "kind": kind.to_string(),
                "bytes": bytes.len(),
                "memory_bytes": memory.bytes(),
                "entry": { "mode": mode, "address": start, "information": handed_over },
            })
        ))?;
    } else {
        out::line(format_args!("{name}: loads into {memory}, starts {}", describe(&entry)))?;
    }
    Ok(ExitCode::Done)
}

/// Mode, first instruction, and the address of what the protocol hands over, if anything.
fn facts(entry: &Entry) -> (&'static str, u64, Option<u64>) {
    match *entry {
        Entry::Linux64 { rip, boot_params, .. } => ("64-bit", rip.raw(), Some(boot_params.raw())),
        Entry::Linux32 { eip, boot_params, .. } => ("32-bit", u64::from(eip), Some(boot_params.raw())),
        Entry::Elf64 { rip, start_info, .. } => ("64-bit", rip.raw(), Some(start_info.raw())),
        Entry::Flat64 { rip, .. } => ("64-bit", rip.raw(), None),
        Entry::Pvh32 { eip, start_info } | Entry::Elf32 { eip, start_info } => {
            ("32-bit", u64::from(eip), Some(start_info.raw()))
        }
        Entry::Multiboot32 { eip, info } => ("32-bit", u64::from(eip), Some(info.raw())),
        Entry::Flat32 { eip } => ("32-bit", u64::from(eip), None),
        Entry::FlatReal { ip } => ("real", u64::from(ip), None),
    }
}

fn describe(entry: &Entry) -> String {
    match *entry {
        Entry::Linux64 { rip, boot_params, .. } => {
            format!("in 64-bit mode at {:#x} with boot_params at {:#x}", rip.raw(), boot_params.raw())
        }
        Entry::Linux32 { eip, boot_params, .. } => {
            format!("in 32-bit mode at {eip:#x} with boot_params at {:#x}", boot_params.raw())
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
