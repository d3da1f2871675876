use super::*;

fn image(apic_ids: Vec<u32>) -> AcpiImage {
    AcpiImage::build(&AcpiConfig { apic_ids, ..AcpiConfig::new(0) }).expect("valid configuration")
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | *byte as u64)
}

/// The table at `address`, whose checksum holds.
fn table<'a>(image: &'a AcpiImage, address: u64, signature: &[u8; 4]) -> &'a [u8] {
    let at = (address - image.base.raw()) as usize;
    let length = number(&image.bytes, at + 4, 4) as usize;
    let table = &image.bytes[at..at + length];
    assert_eq!(&table[..4], signature);
    if signature != b"FACS" {
        assert_eq!(sum(table), 0, "checksum");
    }
    table
}

struct Found<'a> {
    fadt: &'a [u8],
    madt: &'a [u8],
    dsdt: &'a [u8],
}

/// Follows every pointer from the RSDP.
fn walk(image: &AcpiImage) -> Found<'_> {
    let rsdp = &image.bytes[(image.rsdp.raw() - image.base.raw()) as usize..][..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let xsdt = table(image, number(rsdp, 24, 8), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(image, number(xsdt, 36, 8), b"FACP");
    let madt = table(image, number(xsdt, 44, 8), b"APIC");
    let facs = number(fadt, 36, 4);
    assert!(facs.is_multiple_of(64));
    table(image, facs, b"FACS");
    assert_eq!(number(fadt, 40, 4), number(fadt, 140, 8));
    let dsdt = table(image, number(fadt, 40, 4), b"DSDT");
    Found { fadt, madt, dsdt }
}

/// The MADT's structures.
fn entries(madt: &[u8]) -> Vec<&[u8]> {
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (entry, tail) = rest.split_at(rest[1] as usize);
        entries.push(entry);
        rest = tail;
    }
    entries
}

#[test]
fn all_pointers_and_checksums_hold_for_every_size() {
    for cpus in [1, 2, 17, 64] {
        let image = image((0..cpus).collect());
        let found = walk(&image);
        let lapics = entries(found.madt).into_iter().filter(|entry| entry[0] == 0).count();
        assert_eq!(lapics, cpus as usize);
        assert!(image.bytes.len() < 0x2_0000, "fits below 1 MiB from the default base");
    }
}

#[test]
fn the_fadt_points_at_the_fixed_hardware() {
    let image = image(vec![0]);
    let fadt = walk(&image).fadt;
    assert_eq!(number(fadt, 46, 2), pm::SCI as u64);
    assert_eq!(number(fadt, 48, 4), 0, "no SMI command port");
    assert_eq!(number(fadt, 56, 4), pm::PM1A_EVT.0 as u64);
    assert_eq!(number(fadt, 64, 4), pm::PM1A_CNT.0 as u64);
    assert_eq!(number(fadt, 76, 4), pm::PM_TMR.0 as u64);
    assert_eq!(number(fadt, 80, 4), pm::GPE0.0 as u64);
    assert_eq!(&fadt[88..93], [4, 2, 0, 4, 4]);
    let flags = number(fadt, 112, 4);
    assert_ne!(flags & 1 << 10, 0, "reset register");
    assert_ne!(flags & 1 << 8, 0, "32-bit timer");
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    assert_eq!(&fadt[116..120], [1, 8, 0, 1]);
    assert_eq!(number(fadt, 120, 8), 0xcf9);
    assert_eq!(fadt[128], 6);
}

#[test]
fn the_madt_lists_the_ioapic_the_overrides_and_the_nmi() {
    let image = image(vec![0, 1]);
    let madt = walk(&image).madt;
    assert_eq!(number(madt, 36, 4), 0xfee0_0000);
    let entries = entries(madt);
    let of = |kind: u8| entries.iter().filter(|entry| entry[0] == kind).copied().collect::<Vec<_>>();
    assert_eq!(of(1), [&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0][..]]);
    assert_eq!(of(2), [&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0][..], &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0][..]]);
    assert_eq!(of(4), [&[4, 6, 0xff, 5, 0, 1][..]]);
    assert!(of(9).is_empty() && of(10).is_empty());
}

#[test]
fn ids_from_255_on_are_x2apics() {
    let image = image(vec![0, 254, 255, 300]);
    let entries = entries(walk(&image).madt);
    let ids: Vec<u64> = entries
        .iter()
        .filter_map(|entry| match entry[0] {
            0 => Some(entry[3] as u64),
            9 => Some(number(entry, 4, 4)),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [0, 254, 255, 300]);
    assert_eq!(entries.iter().filter(|entry| entry[0] == 9).count(), 2);
    assert_eq!(entries.iter().filter(|entry| entry[0] == 10).count(), 1);
}

#[test]
fn the_dsdt_names_what_kernels_look_for() {
    let image = image((0..64).collect());
    let dsdt = walk(&image).dsdt;
    let has = |name: &[u8]| dsdt.windows(name.len()).any(|window| window == name);
    for name in ["_S5_", "_SB_", "PCI0", "_CRS", "_PRT", "COM1", "C000", "C03F", "ACPI0007"] {
        assert!(has(name.as_bytes()), "{name}");
    }
    // EISA IDs of the host bridge and of the 16550A.
    assert!(has(&[0x0c, 0x41, 0xd0, 0x0a, 0x03]) && has(&[0x0c, 0x41, 0xd0, 0x05, 0x01]));
}

#[test]
fn bad_configurations_are_named() {
    let build = |change: fn(&mut AcpiConfig)| {
        let mut config = AcpiConfig::new(1);
        change(&mut config);
        AcpiImage::build(&config).map(|_| ())
    };
    assert_eq!(build(|_| ()), Ok(()));
    let odd = Gpa::new(0xe_0010);
    assert_eq!(build(|c| c.base = Gpa::new(0xe_0010)), Err(AcpiError::Unaligned(odd)));
    let high = Gpa::new(1 << 32);
    assert_eq!(build(|c| c.base = Gpa::new(1 << 32)), Err(AcpiError::TooHigh(high)));
    assert_eq!(build(|c| c.pci_window = (2, 1)), Err(AcpiError::EmptyWindow(2, 1)));
}
