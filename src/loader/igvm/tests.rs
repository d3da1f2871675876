use emu_core::Gpa;
use emu_core::rng::{Consumer, Seed};
use emu_core::sev::Vmpl;
use hypervisor::snp::launch::PageType;
use igvm_defs::{IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType};

use super::fuzz::put_checksum;
use super::samples::*;
use super::*;
use crate::loader::Module;

const MACHINE: IgvmMachine = IgvmMachine { cpus: 2, vmpl: Vmpl::Vmpl0 };

fn map() -> MemoryMap {
    MemoryMap::pc(64 << 20, Gpa::new(3 << 30)).unwrap()
}

fn read(bytes: &[u8], machine: IgvmMachine) -> Result<Igvm, LoadError> {
    let map = map();
    load(bytes, &LoadOptions { cmdline: "one two", ..LoadOptions::new(&map) }, machine)
}

/// Why a file of the guest's directives and `more` is refused.
fn refused(more: Vec<IgvmDirectiveHeader>) -> LoadError {
    let bytes = file(Vec::new(), [directives(), more].concat());
    let error = read(&bytes, MACHINE).expect_err("the file is wrong");
    assert!(!error.help().is_empty());
    error
}

#[test]
fn steps_are_in_the_order_of_the_file() {
    let igvm = read(&guest(), MACHINE).unwrap();
    assert_eq!(igvm.policy, Some(0x3_0000));
    let steps = igvm.steps.iter().map(|step| match step {
        Step::Memory { gfn, page_type, bytes } => (gfn.base().raw(), *page_type, bytes.is_some()),
        Step::Vmsa { index, .. } => (u64::from(*index), PageType::Vmsa, true),
    });
    let expected = [
        (CODE, PageType::Normal, true),
        (TABLES, PageType::Normal, true),
        (TABLES + 0x1000, PageType::Normal, true),
        (TABLES + 0x2000, PageType::Normal, true),
        (0x1_5000, PageType::Secrets, false),
        (0x1_6000, PageType::Cpuid, false),
        (0x1_7000, PageType::Unmeasured, true),
        (0x1_3000, PageType::Normal, false),
        (PARAMETERS, PageType::Unmeasured, true),
        (0, PageType::Vmsa, true),
    ];
    assert_eq!(steps.collect::<Vec<_>>(), expected);
}

#[test]
fn parameters_say_what_the_machine_is() {
    let igvm = read(&guest(), MACHINE).unwrap();
    let parameters = igvm.steps.iter().find_map(|step| match step {
        Step::Memory { gfn, bytes: Some(bytes), .. } if gfn.base().raw() == PARAMETERS => Some(bytes),
        _ => None,
    });
    let page = parameters.expect("the area was inserted");
    let word = |at: usize| u64::from_le_bytes(*page[at..].first_chunk().unwrap());
    assert_eq!(word(0), 2, "processors, and private memory");
    assert_eq!((word(8), word(16), word(24)), (0, 0x9f, 0), "RAM below 640 KiB, whole pages");
    assert_eq!((word(32), word(40), word(48)), (0x100, 0x3f00, 0));
    assert_eq!((word(56), word(64), word(72)), (0, 0, 0), "the end");
    assert_eq!(&page[0x800..0x808], b"one two\0");
}

#[test]
fn bad_files_are_refused_with_what_is_wrong() {
    use IgvmError as E;
    let flags = IgvmPageDataFlags::new();
    let odd = |flags, kind| vec![page_of(0x3_0000, flags, kind, &[1])];
    let normal = IgvmPageDataType::NORMAL;
    let unsupported = |what| LoadError::Igvm(E::Unsupported { what });
    let (high, twice) = (Gpa::new(64 << 20), Gpa::new(CODE));
    let outside = |gpa, len_bytes| LoadError::Igvm(E::OutsideRam { gpa, len_bytes });
    let processor = |what, index| LoadError::Igvm(E::Processor { what, index, cpus: 2 });
    let range = |gpa, number_of_bytes| {
        let (compatibility_mask, vtl2_protectable) = (MASK, false);
        vec![IgvmDirectiveHeader::RequiredMemory { gpa, compatibility_mask, number_of_bytes, vtl2_protectable }]
    };
    let errors = IgvmDirectiveHeader::ErrorRange { gpa: 0, compatibility_mask: MASK, size_bytes: 0x1000 };
    let mut featured = vmsa();
    featured.sev_features = 3_u64.into();
    let mut low = vmsa();
    low.vmpl = 2;
    let too_small = E::AreaTooSmall { what: "the command line", needs: 0x1007, has: 0x1000 };
    let field = |field, value, needed| LoadError::Igvm(E::SaveArea { index: 1, field, value, needed });
    let table = [
        (vec![page(64 << 20, &[1])], outside(high, 0x1000)),
        (vec![page(u64::MAX << 12, &[1])], outside(Gpa::new(u64::MAX << 12), 0x1000)),
        (vec![page(0xa_0000, &[1])], outside(Gpa::new(0xa_0000), 0x1000)),
        (range(0, 64 << 20), outside(Gpa::new(0), 64 << 20)),
        (vec![page(CODE, &[1])], LoadError::Igvm(E::Twice { gpa: twice })),
        (vec![area(4, 0x2000), insert(4, CODE - 0x1000)], LoadError::Igvm(E::Twice { gpa: Gpa::new(CODE - 0x1000) })),
        (vec![area(4, 0x2000), insert(4, (64 << 20) - 0x1000)], outside(Gpa::new((64 << 20) - 0x1000), 0x2000)),
        (vec![area(4, 0x1000), IgvmDirectiveHeader::CommandLine(place(4, 0xfff))], LoadError::Igvm(too_small)),
        (
            vec![area(4, 0x1000), IgvmDirectiveHeader::VpCount(place(4, u32::MAX))],
            LoadError::Igvm(E::AreaTooSmall {
                what: "the number of processors",
                needs: u64::from(u32::MAX) + 4,
                has: 0x1000,
            }),
        ),
        (
            vec![area(4, 0x1000), IgvmDirectiveHeader::Srat(place(4, 0)), insert(4, 0x3_0000)],
            unsupported("the parameter SRAT"),
        ),
        (vec![area(4, u64::MAX << 12)], LoadError::Igvm(E::LargeAreas { limit: 16 << 20 })),
        (odd(flags.with_is_2mb_page(true), normal), unsupported("a page of 2 MiB")),
        (odd(flags.with_shared(true), normal), unsupported("a shared page")),
        (odd(flags, IgvmPageDataType::CPUID_XF), unsupported("a second page of CPUID")),
        (vec![errors], unsupported("a shared range for errors")),
        (vec![context(0, vmsa())], processor("there is a second context", 0)),
        (vec![context(2, vmsa())], processor("there is a context", 2)),
        (
            vec![context_at(Gpa::new(0x3_0000), 1, vmsa())],
            LoadError::Igvm(E::SaveAreaPlace { gpa: Gpa::new(0x3_0000), only: VMSA_GPA }),
        ),
        (vec![context(1, featured)], field("SEV_FEATURES", 3, 1)),
        (vec![context(1, low)], field("VMPL", 2, 0)),
    ];
    for (more, expected) in table {
        assert_eq!(refused(more), expected);
    }
}

#[test]
fn files_for_another_platform_or_without_a_first_processor_are_refused() {
    let file_for = |kind| {
        let file = igvm::IgvmFile::new(igvm::IgvmRevision::V1, vec![platform(kind)], vec![], vec![page(0, &[1])]);
        let mut bytes = Vec::new();
        file.unwrap().serialize(&mut bytes).unwrap();
        bytes
    };
    let other = read(&file_for(IgvmPlatformType::TDX), MACHINE).unwrap_err();
    assert_eq!(other, LoadError::Igvm(IgvmError::NoSnpPlatform));
    let none = read(&file_for(IgvmPlatformType::SEV_SNP), MACHINE).unwrap_err();
    let what = "there is no context";
    assert_eq!(none, LoadError::Igvm(IgvmError::Processor { what, index: 0, cpus: 2 }));
}

#[test]
fn what_a_file_has_no_place_for_is_not_dropped() {
    let map = map();
    let options = LoadOptions::new(&map);
    let cannot = |options: &LoadOptions<'_>, bytes: &[u8]| match load(bytes, options, MACHINE) {
        Err(LoadError::CannotPass { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(cannot(&LoadOptions { initrd: Some(b"x"), ..options }, &guest()), "a ramdisk or modules");
    let modules = [Module { bytes: b"x", cmdline: "" }];
    assert_eq!(cannot(&LoadOptions { modules: &modules, ..options }, &guest()), "a ramdisk or modules");
    let silent = file(Vec::new(), vec![code(), context(0, vmsa())]);
    let what = cannot(&LoadOptions { cmdline: "x", ..options }, &silent);
    assert_eq!(what, "a command line, which this file does not ask for");
    assert!(load(&silent, &options, MACHINE).is_ok());
}

#[test]
fn damaged_files_are_refused() {
    let whole = guest();
    for len in (0..whole.len()).step_by(7) {
        assert!(fuzz_igvm(&whole[..len], IgvmFuzz::Checksummed).is_err(), "{len} bytes of {}", whole.len());
    }
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    let error = fuzz_igvm(&flipped, IgvmFuzz::AsGiven).unwrap_err();
    assert!(matches!(error, LoadError::Igvm(_)), "{error}");
    let mut summed = whole.clone();
    put_checksum(&mut summed);
    assert_eq!(summed, whole, "the checksum is the format's");
}

/// Numbers at the edges, in headers whose checksum is right.
#[test]
fn mutated_headers_break_no_promise() {
    const ROUNDS: u64 = 4000;
    const NUMBERS: [u64; 10] = [0, 1, 0x101, 0x103, 0x301, 0x30b, 0x1000, 0xffff_ffff, 1 << 63, u64::MAX];
    let whole = guest();
    let headers = u64::from(u32::from_le_bytes(*whole[12..].first_chunk().unwrap())) + 24;
    let mut draw = Seed(0x1697).numbered_stream(Consumer::Injection, 0);
    let mut taken = 0;
    for _ in 0..ROUNDS {
        let mut bytes = whole.clone();
        for _ in 0..=draw.below(3) {
            let at = draw.below(headers / 4) as usize * 4;
            match draw.below(3) {
                0 => bytes[at] = draw.next_u64() as u8,
                1 => bytes[at + 1] ^= 1 << draw.below(8),
                _ => {
                    let width = 4 << draw.below(2);
                    bytes[at..at + width].copy_from_slice(&NUMBERS[draw.below(10) as usize].to_le_bytes()[..width]);
                }
            }
        }
        taken += u64::from(fuzz_igvm(&bytes, IgvmFuzz::Checksummed).is_ok());
    }
    assert!(taken > 0 && taken < ROUNDS, "{taken} of {ROUNDS}: the mutations are no test");
}
