//! The launch digest and the report against an independent reading of the same structures, that of the `sev` crate.

use std::path::PathBuf;
use std::sync::Arc;

use emu_core::page::PAGE_SIZE;
use emu_core::{Gpa, PageSize};
use hypervisor::snp::launch::{
    Chip, CpuidPage, GuestContext, LaunchFinish, LaunchStart, LaunchUpdate, LaunchedPage, Message, PageType, Policy,
    SecretsPage, VMSA_GPA, request,
};
use mmu::Asid;
use mmu::rmp::VmplPermissions;
use proptest::prelude::*;
use sev::firmware::guest::AttestationReport;
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType, VMSA};
use sev::parser::ByteParser;

/// Sections of a firmware image's metadata: what the VMM puts into the guest besides the image.
const SECTIONS: [(u32, u32, PageType); 4] = [
    (0x80_0000, 0x9000, PageType::Zero),
    (0x80_a000, 0x3000, PageType::Zero),
    (0x80_d000, 0x1000, PageType::Secrets),
    (0x80_e000, 0x1000, PageType::Cpuid),
];
const RESET_EIP: u32 = 0x80_b004;

fn guid(text: &str) -> [u8; 16] {
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'-').collect();
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    // The first three groups are little-endian numbers.
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// A firmware image of `pages` pages as measuring tools read it: metadata, and a table of entries before its last 32 bytes.
fn image(pages: usize, fill: u8) -> Vec<u8> {
    let mut image: Vec<u8> = (0..pages * PAGE_SIZE).map(|n| (n / 7) as u8 ^ fill).collect();
    let mut metadata = b"ASEV".to_vec();
    metadata.extend((16 + 12 * SECTIONS.len() as u32).to_le_bytes());
    metadata.extend(1u32.to_le_bytes());
    metadata.extend((SECTIONS.len() as u32).to_le_bytes());
    for (gpa, size, kind) in SECTIONS {
        let number = match kind {
            PageType::Zero => 1u32,
            PageType::Secrets => 2,
            _ => 3,
        };
        metadata.extend([gpa, size, number].into_iter().flat_map(u32::to_le_bytes));
    }
    const METADATA_FROM_END: usize = 0x400;
    let at = image.len() - METADATA_FROM_END;
    image[at..at + metadata.len()].copy_from_slice(&metadata);

    let entry = |data: u32, id| {
        let mut entry = data.to_le_bytes().to_vec();
        entry.extend(22u16.to_le_bytes());
        entry.extend(guid(id));
        entry
    };
    let mut table = entry(METADATA_FROM_END as u32, "dc886566-984a-4798-a75e-5585a7bf67cc");
    table.extend(entry(RESET_EIP, "00f771de-1a7e-4fcb-890e-68c77e2fb44e"));
    let len = table.len() as u16 + 18;
    table.extend(len.to_le_bytes());
    table.extend(guid("96b582de-1fb2-45f7-baea-a366c55a082d"));
    let end = image.len() - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    image
}

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn launching() -> GuestContext {
    let mut guest = GuestContext::create(Arc::new(Chip::new(1, 0x00a1_0f11)));
    guest.launch_start(&LaunchStart { policy: Policy::USUAL, gosvw: [0; 16], number: 0 }).unwrap();
    guest.activate(Asid(1)).unwrap();
    guest
}

fn put(guest: &mut GuestContext, kind: PageType, gpa: u64, contents: &[u8]) -> LaunchedPage {
    let permissions = [VmplPermissions::empty(); 3];
    let update = LaunchUpdate { kind, gpa: Gpa::new(gpa), size: PageSize::Size4K, contents, permissions };
    guest.launch_update(&update).unwrap()
}

/// What QEMU does: the image below 4 GiB, the sections, a VMSA for each processor.
fn launch_as_qemu(image: &[u8], vmsas: &[Vec<u8>]) -> GuestContext {
    let mut guest = launching();
    let base = (1 << 32) - image.len() as u64;
    for (n, page) in image.chunks(PAGE_SIZE).enumerate() {
        put(&mut guest, PageType::Normal, base + (n * PAGE_SIZE) as u64, page);
    }
    for (gpa, size, kind) in SECTIONS {
        for page in (0..size).step_by(PAGE_SIZE) {
            put(&mut guest, kind, u64::from(gpa + page), &[0; PAGE_SIZE]);
        }
    }
    for vmsa in vmsas {
        put(&mut guest, PageType::Vmsa, VMSA_GPA.raw(), vmsa);
    }
    guest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_digest_of_a_launch_is_what_an_owner_computes(pages in 1usize..12, fill: u8, vcpus in 1u32..5) {
        let image = image(pages, fill);
        let features = GuestFeatures(1);
        let vmsa = VMSA::new(RESET_EIP.into(), CpuType::EpycV4, VMMType::QEMU, Some(vcpus.into()), features);
        let guest = launch_as_qemu(&image, &vmsa.pages(vcpus as usize).unwrap());
        let expected = snp_calc_launch_digest(SnpMeasurementArgs {
            vcpus,
            vcpu_type: CpuType::EpycV4,
            ovmf_file: file("digest.fd", &image),
            guest_features: features,
            kernel_file: None,
            initrd_file: None,
            append: None,
            ovmf_hash_str: None,
            vmm_type: Some(VMMType::QEMU),
        });
        prop_assert_eq!(guest.digest().to_string(), expected.unwrap().get_hex_ld());
    }
}

#[test]
fn a_report_reads_as_it_was_meant() {
    let mut guest = launching();
    let LaunchedPage::Written(secrets) = put(&mut guest, PageType::Secrets, 0x1000, &[]) else { panic!() };
    let keys = SecretsPage::from_bytes(&secrets).vmpcks;
    guest.launch_finish(&LaunchFinish { host_data: [3; 32], ..LaunchFinish::default() }).unwrap();
    let mut payload = vec![0; 0x60];
    payload[..64].copy_from_slice(&[9; 64]);
    payload[0x40] = 2;
    let message = Message { sequence: 1, kind: request::kind::REPORT_REQUEST, version: 1, vmpck: 0, payload };
    let response = guest.guest_request(&message.seal(&keys[0]).unwrap()).unwrap();
    let response = Message::open(&response, &keys).unwrap();
    let report = AttestationReport::from_bytes(&response.payload[0x20..]).unwrap();
    assert_eq!((report.version, report.vmpl, report.sig_algo), (2, 2, 1));
    assert_eq!(u64::from(report.policy), Policy::USUAL.bits());
    assert_eq!((report.report_data, report.host_data), ([9; 64], [3; 32]));
    assert_eq!(report.measurement, *guest.digest().bytes());
    assert_eq!(report.report_id_ma, [0xff; 32]);
    assert_eq!(report.chip_id, *Chip::new(1, 0).id());
    let version = &report.current;
    assert_eq!((version.major, version.minor, version.build), (1, 55, 0));
    assert_eq!(report.current_tcb, report.launch_tcb);
    assert!(report.plat_info.smt_enabled());
}

#[test]
fn a_cpuid_page_without_lines_is_one() {
    assert!(CpuidPage::from_bytes(&[0; PAGE_SIZE]).unwrap().entries().is_empty());
}
