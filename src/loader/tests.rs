//! Images of every kind, whole and damaged, and what the guest would find in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use emu_core::Gpa;
use emu_core::rng::{Consumer, Seed};

use super::bytes::{u8_at, u32_at, u64_at};
use super::samples::{self, HLT};
use super::*;

const LOW_END: Gpa = Gpa::new(3 << 30);

/// Memory as a map from address to byte; what was never written reads as `0xcc`.
#[derive(Default)]
struct Bytes(BTreeMap<u64, u8>);

impl GuestMemory for Bytes {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryRefused> {
        self.0.extend((gpa.raw()..).zip(bytes.iter().copied()));
        Ok(())
    }
    fn zero(&mut self, gpa: Gpa, len_bytes: u64) -> Result<(), MemoryRefused> {
        self.0.extend((gpa.raw()..gpa.raw() + len_bytes).map(|at| (at, 0)));
        Ok(())
    }
}

impl Bytes {
    fn at(&self, gpa: u64, len: usize) -> Vec<u8> {
        (gpa..).take(len).map(|at| self.0.get(&at).copied().unwrap_or(0xcc)).collect()
    }
    fn u32(&self, gpa: u64) -> u32 {
        u32_at(&self.at(gpa, 4), 0).unwrap()
    }
    fn u64(&self, gpa: u64) -> u64 {
        u64_at(&self.at(gpa, 8), 0).unwrap()
    }
    fn text(&self, gpa: u64) -> String {
        (gpa..).map_while(|at| self.0.get(&at).filter(|&&byte| byte != 0)).map(|&byte| char::from(byte)).collect()
    }
}

fn load_into(bytes: &[u8], ram: u64, adjust: impl FnOnce(&mut LoadOptions<'_>)) -> (Result<Entry, LoadError>, Bytes) {
    let map = MemoryMap::pc(ram, LOW_END).unwrap();
    let mut options = LoadOptions::new(&map);
    adjust(&mut options);
    let mut memory = Bytes::default();
    (load(&Image { name: "kernel.elf", bytes }, &options, &mut memory), memory)
}

fn refusal(bytes: &[u8], ram: u64, adjust: impl FnOnce(&mut LoadOptions<'_>)) -> LoadError {
    load_into(bytes, ram, adjust).0.unwrap_err()
}

fn patched(mut bytes: Vec<u8>, at: usize, patch: &[u8]) -> Vec<u8> {
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

const MIB64: u64 = 64 << 20;

#[test]
fn every_kind_is_told_apart() {
    let kind = |bytes: Vec<u8>| probe(&bytes);
    assert_eq!(kind(samples::bzimage()), Some(ImageKind::BzImage));
    assert_eq!(kind(patched(samples::bzimage(), 0, b"MZ")), Some(ImageKind::BzImage));
    assert_eq!(kind(samples::pvh()), Some(ImageKind::Pvh));
    assert_eq!(kind(samples::multiboot_elf()), Some(ImageKind::Multiboot1));
    assert_eq!(kind(samples::multiboot_flat()), Some(ImageKind::Multiboot1));
    assert_eq!(kind(samples::elf32(0, &[])), Some(ImageKind::Elf32));
    assert_eq!(kind(samples::elf64(0, &[])), Some(ImageKind::Elf64));
    assert_eq!(kind(samples::igvm()), Some(ImageKind::Igvm));
    assert_eq!(kind(samples::boot_sector()), Some(ImageKind::Flat));
    assert_eq!(kind(Vec::new()), None);
    let bad_checksum = patched(samples::multiboot_flat(), 24, &[0; 4]);
    assert_eq!(kind(bad_checksum), Some(ImageKind::Flat));
}

#[test]
fn linux_finds_its_zero_page() {
    let initrd = vec![7; 0x1234];
    let (entry, memory) = load_into(&samples::bzimage(), MIB64, |o| {
        o.cmdline = "console=ttyS0";
        o.acpi_rsdp = Some(Gpa::new(0xf_0000));
        let leaked: &'static [u8] = Vec::leak(initrd.clone());
        o.initrd = Some(leaked);
    });
    let Entry::Linux64 { rip, boot_params, long_mode } = entry.unwrap() else { panic!("not the Linux entry") };
    assert_eq!(rip.raw(), 0x100_0200);
    assert_eq!(memory.at(rip.raw(), 0x200), [HLT; 0x200]);
    let page = boot_params.raw();
    assert_eq!(memory.u32(page + 0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(memory.at(page + 0x210, 1), [0xff]);
    assert_eq!(memory.text(memory.u32(page + 0x228).into()), "console=ttyS0");
    let (ramdisk, size) = (memory.u32(page + 0x218), memory.u32(page + 0x21c));
    assert_eq!((ramdisk, size), (0x400_0000 - 0x2000, 0x1234));
    assert_eq!(memory.at(ramdisk.into(), 0x1234), initrd);
    assert_eq!(memory.u64(page + 0x70), 0xf_0000);
    assert_eq!(memory.at(page + 0x1e8, 1), [5]);
    let last = page + 0x2d0 + 3 * 20;
    assert_eq!((memory.u64(last), memory.u64(last + 8), memory.u32(last + 16)), (0x10_0000, MIB64 - 0x10_0000, 1));
    assert_eq!(memory.u64(long_mode.gdt.raw() + 0x10), LongMode::CODE_DESCRIPTOR);
    assert_eq!(memory.u64(long_mode.cr3.raw()) & !0xfff, long_mode.cr3.raw() + 0x1000);
}

#[test]
fn a_kernel_without_a_64_bit_entry_starts_at_its_32_bit_one() {
    let image = patched(samples::bzimage(), 0x236, &[0]);
    let (entry, memory) = load_into(&image, MIB64, |o| o.cmdline = "quiet");
    let Entry::Linux32 { eip, boot_params, segments } = entry.unwrap() else { panic!("not the 32-bit entry") };
    assert_eq!(eip, 0x100_0000);
    assert_eq!(memory.text(memory.u32(boot_params.raw() + 0x228).into()), "quiet");
    assert_eq!(segments.gdt_limit, 31);
    assert_eq!(memory.u64(segments.gdt.raw() + 0x10), BootSegments::CODE_DESCRIPTOR);
    assert_eq!(memory.u64(segments.gdt.raw() + 0x18), BootSegments::DATA_DESCRIPTOR);
}

#[test]
fn linux_goes_lower_when_its_place_is_not_ram() {
    let (entry, _) = load_into(&samples::bzimage(), 8 << 20, |_| ());
    assert!(matches!(entry, Ok(Entry::Linux64 { rip, .. }) if rip.raw() == 0x20_0200));
    let fixed = patched(samples::bzimage(), 0x234, &[0]);
    assert!(matches!(refusal(&fixed, 8 << 20, |_| ()), LoadError::OutsideRam { part: Part::Kernel, .. }));
    let far = patched(fixed, 0x258, &(1_u64 << 40).to_le_bytes());
    assert!(matches!(refusal(&far, 1 << 42, |_| ()), LoadError::EntryUnmapped { .. }));
}

#[test]
fn an_initrd_may_lie_high_only_when_the_kernel_says_so() {
    let low_limit = patched(samples::bzimage(), 0x22c, &0xf_ffff_u32.to_le_bytes());
    static INITRD: [u8; 0x10_0000] = [1; 0x10_0000];
    let (entry, memory) = load_into(&low_limit, 6 << 30, |o| o.initrd = Some(&INITRD));
    let Ok(Entry::Linux64 { boot_params, .. }) = entry else { panic!("{entry:?}") };
    assert_eq!(memory.u32(boot_params.raw() + 0xc0), 1, "ext_ramdisk_image");
    let only_low = patched(low_limit, 0x236, &[1]);
    assert_eq!(
        refusal(&only_low, 6 << 30, |o| o.initrd = Some(&INITRD)),
        LoadError::NoRoom { part: Part::Initrd, len_bytes: 0x10_0000, below: Gpa::new(0x10_0000) }
    );
}

#[test]
fn linux_headers_that_cannot_work() {
    let with = |at, patch: &[u8]| refusal(&patched(samples::bzimage(), at, patch), MIB64, |_| ());
    assert_eq!(with(0x206, &[0x0b, 2]), LoadError::ProtocolTooOld { version: 0x20b });
    assert_eq!(with(0x211, &[0]), LoadError::LoadedLow { loadflags: 0 });
    assert_eq!(with(0x230, &[3]), LoadError::KernelAlignment { alignment: 0x20_0003 });
    assert!(matches!(with(0x1f4, &[0xff; 4]), LoadError::TruncatedKernel { needs: 0x10_0000_03e1, has: 0x800 }));
    assert!(matches!(with(0x1f1, &[0]), LoadError::TruncatedKernel { .. }));
    assert!(matches!(with(0x260, &[0xff; 4]), LoadError::NoRoom { part: Part::Kernel, .. }));
    assert!(matches!(
        refusal(&samples::bzimage()[..0x240], MIB64, |_| ()),
        LoadError::TruncatedHeader { kind: ImageKind::BzImage, needs: 0x264, has: 0x240, .. }
    ));
    let long = "x".repeat(2048);
    assert_eq!(
        refusal(&samples::bzimage(), MIB64, |o| o.cmdline = long.clone().leak()),
        LoadError::CommandLineTooLong { len_bytes: 2048, limit: 2047 }
    );
    assert_eq!(refusal(&samples::bzimage(), MIB64, |o| o.cmdline = "a\0b"), LoadError::CommandLineNul { at: 1 });
}

#[test]
fn pvh_finds_its_start_info() {
    let (entry, memory) = load_into(&samples::pvh(), MIB64, |o| {
        o.cmdline = "hello";
        o.initrd = Some(b"initrd");
        o.modules = &[Module { bytes: b"second", cmdline: "two" }];
        o.acpi_rsdp = Some(Gpa::new(0xf_0000));
    });
    let Entry::Pvh32 { eip: 0x10_0000, start_info } = entry.unwrap() else { panic!("not the PVH entry") };
    let info = start_info.raw();
    assert_eq!((memory.u32(info), memory.u32(info + 4)), (0x336e_c578, 1));
    assert_eq!(memory.text(memory.u64(info + 24)), "hello");
    assert_eq!(memory.u64(info + 32), 0xf_0000);
    assert_eq!(memory.u32(info + 12), 2);
    let modules = memory.u64(info + 16);
    assert_eq!(memory.at(memory.u64(modules), memory.u64(modules + 8) as usize), b"initrd");
    assert_eq!(memory.at(memory.u64(modules + 32), memory.u64(modules + 40) as usize), b"second");
    assert_eq!(memory.text(memory.u64(modules + 48)), "two");
    assert_eq!(memory.u32(info + 48), 5);
    let map = memory.u64(info + 40);
    assert_eq!((memory.u64(map), memory.u64(map + 8), memory.u32(map + 16)), (0, 0x9_fc00, 1));
    assert_eq!(memory.at(0x10_0000, 17), [&[HLT; 16][..], &[0]].concat(), "contents, then zeroed bss");
}

#[test]
fn pvh_notes_that_cannot_work() {
    let note = |desc: &[u8]| {
        let code = samples::Part::load(0x10_0000, &[HLT], 1);
        refusal(&samples::elf64(0x10_0000, &[code, samples::Part::pvh_note(desc)]), MIB64, |_| ())
    };
    assert_eq!(note(&[1, 2]), LoadError::PvhNote { len_bytes: 2 });
    assert_eq!(note(&(1_u64 << 32).to_le_bytes()), LoadError::EntryTooHigh { entry: 1 << 32 });
    assert_eq!(note(&0x10_0001_u32.to_le_bytes()), LoadError::EntryOutside { entry: 0x10_0001 });
}

#[test]
fn multiboot_finds_its_information() {
    for (image, eip) in [(samples::multiboot_elf(), 0x10_000c), (samples::multiboot_flat(), 0x10_0030)] {
        let (entry, memory) = load_into(&image, MIB64, |o| {
            o.cmdline = "smap pku";
            o.initrd = Some(b"environment");
        });
        let Entry::Multiboot32 { eip: at, info } = entry.unwrap() else { panic!("not the multiboot entry") };
        assert_eq!(at, eip);
        assert_eq!(memory.at(eip.into(), 1), [HLT]);
        let info = info.raw();
        assert_eq!(memory.u32(info), 0x24d);
        assert_eq!((memory.u32(info + 4), memory.u32(info + 8)), (639, 63 << 10));
        assert_eq!(memory.text(memory.u32(info + 16).into()), "kernel.elf smap pku");
        assert_eq!(memory.u32(info + 20), 1);
        let module = u64::from(memory.u32(info + 24));
        let (start, end) = (memory.u32(module), memory.u32(module + 4));
        assert!(start >= 0x10_0000);
        assert_eq!(memory.at(start.into(), (end - start) as usize), b"environment");
        assert_eq!(memory.u32(info + 44), 5 * 24);
        let map = u64::from(memory.u32(info + 48));
        assert_eq!((memory.u32(map), memory.u64(map + 12), memory.u32(map + 20)), (20, 0x9_fc00, 1));
        assert_eq!(memory.text(memory.u32(info + 64).into()), "bifold");
    }
}

#[test]
fn multiboot_headers_that_cannot_work() {
    let header = |flags, fields: &[u32]| refusal(&samples::multiboot_header(flags, fields), MIB64, |_| ());
    assert_eq!(header(1 << 9, &[]), LoadError::MultibootFeature { flags: 1 << 9 });
    assert_eq!(header(0, &[]), LoadError::MultibootNoAddresses);
    assert!(matches!(header(1 << 16, &[1, 2]), LoadError::TruncatedHeader { kind: ImageKind::Multiboot1, .. }));
    let base = 0x10_0000;
    for fields in [
        [base - 1, base, 0, 0, base],
        [base + 1, base, 0, 0, base],
        [base, base, base - 1, 0, base],
        [base, base, base + 33, 0, base],
        [base, base, 0, base + 1, base],
    ] {
        assert!(matches!(header(1 << 16, &fields), LoadError::MultibootAddresses { .. }), "{fields:x?}");
    }
    assert_eq!(header(1 << 16, &[base, base, 0, 0, base + 32]), LoadError::EntryOutside { entry: 0x10_0020 });
    let bss = header(1 << 16, &[base, base, 0, u32::MAX, base]);
    assert!(matches!(bss, LoadError::OutsideRam { part: Part::Image, .. }));
}

#[test]
fn plain_elf_starts_where_its_entry_lies() {
    let code = samples::Part::load(0x10_0000, &[HLT; 16], 0x2000);
    let (entry, _) = load_into(&samples::elf32(0x10_0004, std::slice::from_ref(&code)), MIB64, |_| ());
    assert!(matches!(entry, Ok(Entry::Elf32 { eip: 0x10_0004, .. })));
    let upper = samples::Part { vaddr: 0xffff_ffff_8000_0000, ..code };
    let (entry, _) = load_into(&samples::elf64(0xffff_ffff_8000_0008, &[upper]), MIB64, |_| ());
    assert!(matches!(entry, Ok(Entry::Elf64 { rip, .. }) if rip.raw() == 0x10_0008));
}

#[test]
fn elf_files_that_cannot_work() {
    let part = |paddr, len: usize, memory_bytes| samples::Part::load(paddr, &vec![HLT; len], memory_bytes);
    let good = || samples::elf64(0x10_0000, &[part(0x10_0000, 16, 16)]);
    let with = |at, patch: &[u8]| refusal(&patched(good(), at, patch), MIB64, |_| ());
    let field = |error| match error {
        LoadError::ElfField { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(with(4, &[3])), "EI_CLASS");
    assert_eq!(field(with(5, &[2])), "EI_DATA");
    assert_eq!(field(with(16, &[3])), "e_type");
    assert_eq!(field(with(18, &[40])), "e_machine");
    assert_eq!(field(with(54, &[1])), "e_phentsize");
    assert_eq!(field(with(56, &[0xff, 0xff])), "e_phnum");
    assert!(matches!(with(56, &[9, 0]), LoadError::TruncatedHeader { what: "program header table", .. }));
    assert!(matches!(with(32, &[0xff; 8]), LoadError::TruncatedHeader { .. }));
    assert!(matches!(refusal(&good()[..63], MIB64, |_| ()), LoadError::TruncatedHeader { what: "ELF header", .. }));
    assert_eq!(with(56, &[0, 0]), LoadError::NoSegments);
    assert_eq!(with(24, &[1, 1, 1]), LoadError::EntryOutside { entry: 0x1_0101 });

    let parts = |entry, parts: &[samples::Part]| refusal(&samples::elf64(entry, parts), MIB64, |_| ());
    let shrinks = LoadError::SegmentShrinks { index: 0, file_bytes: 16, memory_bytes: 8 };
    assert_eq!(parts(0x10_0000, &[part(0x10_0000, 16, 8)]), shrinks);
    assert!(matches!(with(64 + 8, &[0xff; 8]), LoadError::TruncatedSegment { index: 0, offset: u64::MAX, .. }));
    let huge = parts(0x10_0000, &[part(0x10_0000, 16, u64::MAX)]);
    assert!(matches!(huge, LoadError::OutsideRam { part: Part::Segment { index: 0 }, len_bytes: u64::MAX, .. }));
    assert!(matches!(parts(0, &[part(0xfee0_0000, 16, 16)]), LoadError::OutsideRam { .. }));
    let overlap = parts(0x10_0000, &[part(0x10_0000, 16, 0x1000), part(0x10_0fff, 1, 1)]);
    assert!(matches!(overlap, LoadError::Overlap { part: Part::Segment { index: 1 }, .. }));
    let high = samples::elf64(5 << 30, &[part(5 << 30, 16, 16)]);
    assert!(matches!(refusal(&high, 8 << 30, |_| ()), LoadError::EntryUnmapped { .. }));
}

#[test]
fn flat_images_go_where_they_are_told() {
    let (entry, memory) = load_into(&samples::boot_sector(), MIB64, |_| ());
    assert_eq!(entry, Ok(Entry::FlatReal { ip: 0x7c00 }));
    assert_eq!(memory.at(0x7c00 + 510, 2), [0x55, 0xaa]);
    let (entry, _) = load_into(&[HLT], MIB64, |_| ());
    assert!(matches!(entry, Ok(Entry::Flat64 { rip, .. }) if rip.raw() == 0x10_0000));
    let at = |address, mode| {
        let address = Gpa::new(address);
        load_into(&[HLT; 32], 8 << 30, |o| o.flat = FlatPlacement::At { address, mode }).0
    };
    assert_eq!(at(0x20_0000, FlatMode::Protected32), Ok(Entry::Flat32 { eip: 0x20_0000 }));
    assert_eq!(at(5 << 30, FlatMode::Protected32), Err(LoadError::EntryTooHigh { entry: 5 << 30 }));
    assert!(matches!(at(5 << 30, FlatMode::Long64), Err(LoadError::EntryUnmapped { .. })));
    assert!(matches!(at(0x1_0000, FlatMode::Real), Err(LoadError::RealModeRange { .. })));
    assert!(matches!(at(1 << 60, FlatMode::Long64), Err(LoadError::OutsideRam { .. })));
    let error = refusal(&[HLT], MIB64, |o| o.cmdline = "x");
    assert_eq!(error, LoadError::CannotPass { kind: ImageKind::Flat, what: "a command line" });
}

#[test]
fn files_that_cannot_be_passed_are_refused() {
    assert_eq!(refusal(&[], MIB64, |_| ()), LoadError::Empty);
    assert_eq!(refusal(&samples::igvm(), MIB64, |_| ()), LoadError::IgvmNeedsSnp);
    const MANY: [Module<'static>; 33] = [Module { bytes: b"", cmdline: "" }; 33];
    let many = refusal(&samples::pvh(), MIB64, |o| o.modules = &MANY);
    assert_eq!(many, LoadError::TooManyModules { count: 33, limit: MAX_MODULES });
    static BIG: [u8; 2 << 20] = [0; 2 << 20];
    for image in [samples::bzimage(), samples::pvh(), samples::multiboot_elf()] {
        let error = refusal(&image, 3 << 20, |o| o.initrd = Some(&BIG));
        assert!(matches!(error, LoadError::NoRoom { len_bytes: 0x20_0000, .. }), "{error}");
    }
}

/// Where the fuzz targets keep their seeds. The files are [`samples::corpus`], written anew with `BLESS_CORPUS=1`.
fn corpus_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/loader")
}

#[test]
fn the_committed_corpus_is_the_samples() {
    let bless = std::env::var_os("BLESS_CORPUS").is_some();
    for (name, bytes) in samples::corpus() {
        let path = corpus_directory().join(name);
        if bless {
            std::fs::create_dir_all(corpus_directory()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).is_ok_and(|file| file == bytes), "{} is stale", path.display());
    }
}

#[test]
fn corpus_files_load_as_what_they_are() {
    for (name, bytes) in samples::corpus() {
        let outcome = fuzz_one(&bytes);
        let loaded = outcome.is_ok() || matches!(outcome, Err(LoadError::IgvmNeedsSnp));
        assert!(loaded, "{name}: {outcome:?}");
    }
}

#[test]
fn mutated_corpus_keeps_the_promises() {
    const ROUNDS: u64 = 3000;
    const NUMBERS: [u64; 12] =
        [0, 1, 2, 0x7f, 0xff, 0x1000, 0xf_ffff, 0x10_0000, 0x7fff_ffff, 0xffff_ffff, 1 << 32, u64::MAX];
    let mut kinds_refused = 0;
    let mut files: Vec<_> = std::fs::read_dir(corpus_directory()).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for (number, path) in (0..).zip(&files) {
        let original = std::fs::read(path).unwrap();
        let mut draw = Seed(0x10ad).numbered_stream(Consumer::Injection, number);
        for _ in 0..ROUNDS {
            let mut bytes = original.clone();
            for _ in 0..=draw.below(4) {
                // Headers are at the front; half of the changes go there.
                let reach = if draw.below(2) == 0 { bytes.len().min(160) } else { bytes.len() };
                let at = draw.below(reach as u64) as usize;
                match draw.below(4) {
                    0 => bytes[at] = draw.next_u64() as u8,
                    1 => bytes[at] ^= 1 << draw.below(8),
                    2 => {
                        let number = NUMBERS[draw.below(12) as usize].to_le_bytes();
                        let width = (1_usize << draw.below(4)).min(bytes.len() - at);
                        bytes[at..at + width].copy_from_slice(&number[..width]);
                    }
                    _ => bytes.truncate(at.max(1)),
                }
            }
            kinds_refused += u64::from(fuzz_one(&bytes).is_err());
        }
    }
    let all = ROUNDS * files.len() as u64;
    assert!(kinds_refused > all / 10 && kinds_refused < all, "{kinds_refused} of {all}: the mutations are no test");
}

#[test]
fn every_refusal_says_what_to_do() {
    let error = refusal(&samples::bzimage(), 2 << 20, |_| ());
    assert_eq!(error.help(), "give more memory with --memory");
    assert!(error.to_string().contains("0x100000 bytes of RAM below Gpa(0x100000000)"), "{error}");
    assert_eq!(u8_at(&[1], 1), None);
}

#[test]
fn the_builtin_guests_load_by_pvh() {
    let map = MemoryMap::pc(MIB64, LOW_END).unwrap();
    for guest in BUILTINS {
        let entry = load(&guest.image, &LoadOptions::new(&map), &mut Bytes::default()).unwrap();
        assert!(matches!(entry, Entry::Pvh32 { eip: 0x10_0000..0x11_0000, .. }), "{}: {entry:x?}", guest.name);
    }
}
