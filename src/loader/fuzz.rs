//! The property that fuzzing checks: whatever the bytes, the loader keeps its promises (see the module above).

use emu_core::Gpa;

use super::memory::{GuestMemory, MemoryMap, MemoryRefused};
use super::{Entry, FlatMode, FlatPlacement, Image, LoadError, LoadOptions, Module, load, probe};

/// Bytes of an input that choose options; the rest is the image.
const CHOICES: usize = 4;

/// Remembers what was written and insists that it was RAM, and nowhere twice.
struct Ledger<'m> {
    map: &'m MemoryMap,
    written: Vec<(u64, u64)>,
}

impl Ledger<'_> {
    fn note(&mut self, gpa: Gpa, len_bytes: u64) {
        let base = gpa.raw();
        assert!(self.map.holds(gpa, len_bytes), "{len_bytes:#x} bytes at {gpa} are not RAM");
        let end = base + len_bytes;
        assert!(!self.written.iter().any(|&(b, e)| base < e && b < end), "{len_bytes:#x} bytes at {gpa} written twice");
        self.written.push((base, end));
    }

    fn wrote(&self, gpa: u64) -> bool {
        self.written.iter().any(|&(base, end)| base <= gpa && gpa < end)
    }
}

impl GuestMemory for Ledger<'_> {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryRefused> {
        self.note(gpa, bytes.len() as u64);
        Ok(())
    }
    fn zero(&mut self, gpa: Gpa, len_bytes: u64) -> Result<(), MemoryRefused> {
        self.note(gpa, len_bytes);
        Ok(())
    }
}

/// Loads an image as the first four bytes of `input` choose (memory size, command line, files, flat placement; missing
/// bytes read as zero) and returns what the loader said.
///
/// # Panics
///
/// When the loader wrote outside RAM, wrote a byte twice, or returned an entry that points to nothing it wrote: a
/// mistake of the loader, which is what this function is for.
pub fn fuzz_one(input: &[u8]) -> Result<Entry, LoadError> {
    let (choices, bytes) = input.split_at(input.len().min(CHOICES));
    let choice = |n: usize| choices.get(n).copied().unwrap_or(0);
    let ram_bytes = 1_u64 << (20 + choice(0) % 25);
    let map = MemoryMap::pc(ram_bytes, Gpa::new(3 << 30)).expect("a PC of 1 MiB to 16 TiB has a map");
    let cmdline = "x".repeat(usize::from(choice(1) & 0x7f) * 33);
    let extra = vec![0; usize::from(choice(2)) << 8];
    let module = [Module { bytes: &extra, cmdline: "module" }];
    let mut options = LoadOptions::new(&map);
    options.cmdline = &cmdline;
    options.initrd = (!extra.is_empty()).then_some(&extra);
    options.modules = if choice(1) & 0x80 != 0 { &module } else { &[] };
    options.acpi_rsdp = (choice(3) & 0x80 != 0).then_some(Gpa::new(0xe_0000));
    let address = Gpa::new(1 << (12 + choice(3) % 32));
    options.flat = match choice(3) >> 5 & 3 {
        0 => FlatPlacement::Customary,
        1 => FlatPlacement::At { address, mode: FlatMode::Real },
        2 => FlatPlacement::At { address, mode: FlatMode::Protected32 },
        _ => FlatPlacement::At { address, mode: FlatMode::Long64 },
    };

    let mut ledger = Ledger { map: &map, written: Vec::new() };
    let entry = load(&Image { name: "image", bytes }, &options, &mut ledger)?;
    assert!(probe(bytes).is_some(), "what was loaded has a kind");
    for address in entry_addresses(&entry) {
        assert!(ledger.wrote(address), "{entry:x?} points to {address:#x}, which was never written");
    }
    Ok(entry)
}

/// Every address that the first instruction or its tables depend on.
fn entry_addresses(entry: &Entry) -> Vec<u64> {
    match *entry {
        Entry::Linux64 { rip, boot_params, long_mode } => {
            vec![rip.raw(), boot_params.raw(), long_mode.cr3.raw(), long_mode.gdt.raw()]
        }
        Entry::Linux32 { eip, boot_params, segments } => vec![eip.into(), boot_params.raw(), segments.gdt.raw()],
        Entry::Pvh32 { eip, start_info } | Entry::Elf32 { eip, start_info } => vec![eip.into(), start_info.raw()],
        Entry::Multiboot32 { eip, info } => vec![eip.into(), info.raw()],
        Entry::Elf64 { rip, start_info, long_mode } => {
            vec![rip.raw(), start_info.raw(), long_mode.cr3.raw(), long_mode.gdt.raw()]
        }
        Entry::FlatReal { ip } => vec![ip.into()],
        Entry::Flat32 { eip } => vec![eip.into()],
        Entry::Flat64 { rip, long_mode } => vec![rip.raw(), long_mode.cr3.raw(), long_mode.gdt.raw()],
    }
}
