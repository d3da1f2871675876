//! The life of pages, step by step. What holds for all states is in the tests of the crate, against a second model.

use emu_core::memory::SystemMemory;
use emu_core::sev::CBit;
use emu_core::{Access, Gpa, Gva, Privilege};

use super::*;

const GUEST: Asid = Asid(5);
const LARGE: u64 = 0x20_0000;

/// Covers 8 MiB; the table lies at 12 MiB.
fn rmp() -> Rmp {
    let memory = SystemMemory::flat(0x100_0000).unwrap();
    let base = Spa::new(0xc0_0000);
    let last = Spa::new(base.raw() + Rmp::bytes_for(0x80_0000) - 1);
    Rmp::new(memory, RmpPlace::Contiguous { base, last }).unwrap()
}

fn read(spa: u64, gpa: u64, mapped: PageSize) -> GuestAccess {
    GuestAccess {
        spa: Spa::new(spa),
        gpa: Gpa::new(gpa),
        mapped,
        asid: GUEST,
        vmpl: Vmpl::Vmpl0,
        c_bit: CBit::Set,
        access: Access::new(AccessKind::Read, Privilege::Supervisor),
    }
}

fn page(spa: u64, gpa: u64, mapped: PageSize) -> GuestPage {
    let (spa, gpa) = (Spa::new(spa), Gpa::new(gpa));
    GuestPage { gva: Gva::new(gpa.raw()), gpa, spa, mapped, asid: GUEST, vmpl: Vmpl::Vmpl0 }
}

fn validate(size: RmpPageSize) -> Pvalidate {
    Pvalidate { size, validated: Validated::Yes }
}

#[test]
fn a_page_is_assigned_validated_used_and_taken_back() {
    let rmp = rmp();
    let (spa, gpa) = (Spa::new(0x5000), Gpa::new(0x1_0000));
    let read = read(0x5123, 0x1_0123, PageSize::Size4K);
    let page = page(0x5000, 0x1_0000, PageSize::Size4K);
    assert_eq!(rmp.check_guest(&read), Err(RmpCause::Ownership.into()));
    assert_eq!(rmp.check_host_write(spa, PageSize::Size4K), Ok(()));

    rmp.rmpupdate(spa, RmpUpdate::guest(GUEST, gpa, RmpPageSize::Size4K)).unwrap();
    assert_eq!(rmp.entry(spa.frame()).unwrap().state(), PageState::GuestInvalid);
    assert_eq!(rmp.pages_of(GUEST), 1);
    assert_eq!(rmp.check_guest(&read), Err(RmpRefusal::NotValidated));
    assert_eq!(rmp.check_host_write(spa, PageSize::Size4K), Err(RmpCause::Ownership));
    assert_eq!(rmp.check_host_write(Spa::new(0), PageSize::Size2M), Err(RmpCause::Ownership), "1 of 512");
    assert_eq!(rmp.check_host_write(Spa::new(0x6000), PageSize::Size4K), Ok(()));

    assert_eq!(rmp.pvalidate(&page, &validate(RmpPageSize::Size4K)), Ok(Ok(Changed::Yes)));
    assert_eq!(rmp.pvalidate(&page, &validate(RmpPageSize::Size4K)), Ok(Ok(Changed::No)));
    assert_eq!(rmp.check_guest(&read), Ok(PageSize::Size4K));
    let elsewhere = GuestAccess { gpa: Gpa::new(0x2_0000), ..read };
    assert_eq!(rmp.check_guest(&elsewhere), Err(RmpCause::Ownership.into()));
    let another = GuestAccess { asid: Asid(6), ..read };
    assert_eq!(rmp.check_guest(&another), Err(RmpCause::Ownership.into()));
    let large = GuestAccess { mapped: PageSize::Size1G, ..read };
    assert_eq!(rmp.check_guest(&large), Err(RmpCause::PageSize.into()));
    let below = GuestAccess { vmpl: Vmpl::Vmpl1, ..read };
    assert_eq!(rmp.check_guest(&below), Err(RmpCause::Vmpl.into()));

    rmp.rmpupdate(spa, RmpUpdate::hypervisor(RmpPageSize::Size4K)).unwrap();
    assert_eq!(rmp.entry(spa.frame()).unwrap().words(), [0, 0]);
    assert_eq!(rmp.pages_of(GUEST), 0);
    assert_eq!(rmp.check_host_write(Spa::new(0), PageSize::Size2M), Ok(()));
}

#[test]
fn a_large_page_is_smashed_and_made_whole_again() {
    let rmp = rmp();
    let (spa, gpa) = (Spa::new(LARGE), Gpa::new(4 * LARGE));
    rmp.rmpupdate(spa, RmpUpdate::guest(GUEST, gpa, RmpPageSize::Size2M)).unwrap();
    let whole = page(LARGE, 4 * LARGE, PageSize::Size2M);
    let piece = page(LARGE + 0x3000, 4 * LARGE + 0x3000, PageSize::Size4K);
    assert_eq!(rmp.pvalidate(&piece, &validate(RmpPageSize::Size4K)), Err(RmpCause::SizeMismatch.into()));
    assert_eq!(rmp.pvalidate(&whole, &validate(RmpPageSize::Size2M)), Ok(Ok(Changed::Yes)));
    assert_eq!(rmp.check_guest(&read(LARGE + 0x3000, 4 * LARGE + 0x3000, PageSize::Size1G)), Ok(PageSize::Size2M));
    assert_eq!(rmp.pages_of(GUEST), 512);

    rmp.psmash(spa).unwrap();
    let entry = rmp.entry(Spa::new(LARGE + 0x3000).frame()).unwrap();
    assert_eq!((entry.gpa(), entry.page_size()), (Gpa::new(4 * LARGE + 0x3000), RmpPageSize::Size4K));
    assert!(entry.validated());
    assert_eq!(rmp.psmash(spa), Err(RmpError::FailInput));
    assert_eq!(rmp.pages_of(GUEST), 512);
    let whole = GuestPage { mapped: PageSize::Size4K, ..whole };
    assert_eq!(rmp.pvalidate(&whole, &validate(RmpPageSize::Size2M)), Ok(Err(RmpError::FailSizeMismatch)));
    assert_eq!(rmp.rmpread(spa).unwrap().to_bytes()[8..11], [1, 0b10, 0]);

    rmp.firmware(spa, FirmwareCommand::Unsmash).unwrap();
    assert_eq!(rmp.entry(spa.frame()).unwrap().page_size(), RmpPageSize::Size2M);
    let pre_guest = RmpUpdate::pre_guest(GUEST, gpa, RmpPageSize::Size4K);
    assert_eq!(rmp.rmpupdate(spa, pre_guest), Err(RmpError::FailOverlap));
    rmp.rmpupdate(spa, RmpUpdate::hypervisor(RmpPageSize::Size2M)).unwrap();
    assert_eq!(rmp.pages_of(GUEST), 0);
    assert_eq!(rmp.check_host_write(spa, PageSize::Size1G), Ok(()));
}

#[test]
fn a_vmsa_is_launched_run_and_not_taken_while_it_runs() {
    let rmp = rmp();
    let (spa, gpa) = (Spa::new(0x7000), Gpa::new(0xffff_ffff_f000));
    let launch =
        |asid, size| FirmwareCommand::LaunchPage { asid, size, vmsa: Vmsa::Yes, permissions: Default::default() };
    let small = RmpPageSize::Size4K;
    assert_eq!(rmp.firmware(spa, launch(GUEST, small)), Err(FirmwareRefused::InvalidPageState));
    rmp.rmpupdate(spa, RmpUpdate::pre_guest(GUEST, gpa, small)).unwrap();
    assert_eq!(rmp.rmpupdate(spa, RmpUpdate::hypervisor(small)), Err(RmpError::FailPermission));
    assert_eq!(rmp.firmware(spa, launch(GUEST, RmpPageSize::Size2M)), Err(FirmwareRefused::InvalidAddress));
    assert_eq!(rmp.firmware(spa, launch(Asid(9), small)), Err(FirmwareRefused::InvalidPageOwner));
    assert_eq!(rmp.check_vmsa(spa, GUEST), Err(RmpCause::Ownership));
    rmp.firmware(spa, launch(GUEST, small)).unwrap();
    assert_eq!(rmp.entry(spa.frame()).unwrap().state(), PageState::GuestValid);
    assert_eq!(rmp.check_vmsa(spa, GUEST), Ok(()));

    rmp.set_in_use(spa.frame(), InUse::Yes);
    assert_eq!(rmp.rmpupdate(spa, RmpUpdate::hypervisor(small)), Err(RmpError::FailInUse));
    rmp.set_in_use(spa.frame(), InUse::No);
    assert_eq!(rmp.rmpupdate(spa, RmpUpdate::hypervisor(small)), Ok(()));
}

#[test]
fn what_takes_a_right_away_is_logged_and_what_gives_one_is_not() {
    let rmp = rmp();
    let spa = Spa::new(LARGE);
    let mut cursor = rmp.changes().now();
    let mut missed = || match rmp.changes().catch_up(&mut cursor) {
        RmpBacklog::Changes(changes) => changes.iter().map(|c| (c.first.raw(), c.frames)).collect::<Vec<_>>(),
        RmpBacklog::Lost => panic!("a short history"),
    };
    let update = RmpUpdate::guest(GUEST, Gpa::new(0), RmpPageSize::Size2M);
    rmp.rmpupdate(spa, update).unwrap();
    assert_eq!(missed(), [(512, 512)]);
    rmp.rmpupdate(spa, update).unwrap();
    assert_eq!(missed(), [], "the same again");
    let whole = page(LARGE, 0, PageSize::Size2M);
    rmp.pvalidate(&whole, &validate(RmpPageSize::Size2M)).unwrap().unwrap();
    let adjust = |permissions| RmpAdjust { target: Vmpl::Vmpl1, permissions, vmsa: Vmsa::No };
    rmp.rmpadjust(&whole, RmpPageSize::Size2M, &adjust(VmplPermissions::READ)).unwrap().unwrap();
    assert_eq!(missed(), [], "the guest may do more");
    rmp.rmpadjust(&whole, RmpPageSize::Size2M, &adjust(VmplPermissions::WRITE)).unwrap().unwrap();
    assert_eq!(missed(), [(512, 512)]);
    rmp.psmash(spa).unwrap();
    assert_eq!(missed(), [(512, 512)]);
    let piece = page(LARGE + 0x1000, 0x1000, PageSize::Size4K);
    let undo = Pvalidate { size: RmpPageSize::Size4K, validated: Validated::No };
    rmp.pvalidate(&piece, &undo).unwrap().unwrap();
    assert_eq!(missed(), [(513, 1)]);
}

#[test]
fn the_pages_of_the_table_stay_the_firmwares() {
    let memory = SystemMemory::flat(0x100_0000).unwrap();
    let place = RmpPlace::Contiguous { base: Spa::new(0), last: Spa::new(Rmp::bytes_for(0x40_0000) - 1) };
    let rmp = Rmp::new(memory, place).unwrap();
    rmp.protect_own_pages();
    assert_eq!(rmp.entry(Sfn::new(0)).unwrap().words(), [0x8000_0000_0000_0005, 0]);
    assert_eq!(rmp.check_host_write(Spa::new(0x7000), PageSize::Size4K), Err(RmpCause::Ownership));
    assert_eq!(rmp.check_host_write(Spa::new(0x8000), PageSize::Size4K), Ok(()));
    let reclaim = FirmwareCommand::Reclaim { size: RmpPageSize::Size4K };
    assert_eq!(rmp.firmware(Spa::new(0), reclaim), Err(FirmwareRefused::InvalidPageState));
    assert_eq!(rmp.rmpupdate(Spa::new(0), RmpUpdate::hypervisor(RmpPageSize::Size4K)), Err(RmpError::FailPermission));
}

#[test]
fn operands_are_read_as_software_writes_them() {
    let update = RmpUpdate::pre_guest(Asid(0x1_0203), Gpa::new(0x1234_5000), RmpPageSize::Size2M);
    let bytes = [0x00, 0x50, 0x34, 0x12, 0, 0, 0, 0, 1, 1, 1, 0, 3, 2, 1, 0];
    assert_eq!(update.to_bytes(), bytes);
    assert_eq!(RmpUpdate::from_bytes(&bytes), Ok(update));
    for (byte, value) in [(8, 2), (9, 2), (10, 0x80), (11, 1)] {
        let mut bytes = bytes;
        bytes[byte] = value;
        assert_eq!(RmpUpdate::from_bytes(&bytes), Err(RmpError::FailInput), "byte {byte}");
    }
    assert_eq!(
        RmpAdjust::decode(0x1_0001),
        Ok(RmpAdjust { target: Vmpl::Vmpl1, permissions: VmplPermissions::empty(), vmsa: Vmsa::Yes })
    );
    for rdx in [4, 0x2001, 0x2_0001, 1 << 63 | 1] {
        assert_eq!(RmpAdjust::decode(rdx), Err(RmpError::FailInput), "{rdx:#x}");
    }
    assert_eq!(Pvalidate::decode(2, 0), Err(RmpError::FailInput));
    assert_eq!(Pvalidate::decode(1, 0xff), Ok(validate(RmpPageSize::Size2M)));
    assert_eq!(RmpAdjust::decode_size(1 << 32), Err(RmpError::FailInput));
}
