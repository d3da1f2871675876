//! Memory of an SNP guest through the crate's door: who owns which page, at which size, and when that changes.

mod reader;
mod snp_processor;

use emu_core::memory::Key;
use emu_core::sev::CBit;
use emu_core::{AccessKind, Gpa, PageSize};
use hypervisor::*;
use mmu::RmpCause;
use mmu::rmp::{Changed, PageState, RmpPageSize, Validated};
use snp_processor::{ASID, CPU, M2, PAGE, QUIET, Seen, SnpMachine};

const MIB: u64 = 1 << 20;
const POLICIES: [(PageSize, RmpSizes); 4] = [
    (PageSize::Size4K, RmpSizes::UpTo2M),
    (PageSize::Size2M, RmpSizes::Only4K),
    (PageSize::Size2M, RmpSizes::UpTo2M),
    (PageSize::Size1G, RmpSizes::MergeBack),
];

fn machine(page: PageSize, sizes: RmpSizes) -> SnpMachine {
    SnpMachine::new(page, if page == PageSize::Size1G { 1024 * MIB } else { 32 * MIB }, Assign::Lazy, sizes)
}

#[test]
fn a_private_page_is_assigned_at_its_first_use_and_must_be_accepted() {
    for (page, sizes) in POLICIES {
        let machine = machine(page, sizes);
        let entry =
            if page == PageSize::Size4K || sizes == RmpSizes::Only4K { PageSize::Size4K } else { PageSize::Size2M };
        assert_eq!(machine.assigned(), 0);
        assert_eq!(machine.private(5), Seen::NotValidated);
        assert_eq!(machine.assigned(), entry.frames());
        let seen = machine.entry(5);
        assert_eq!((seen.state(), seen.asid(), seen.gpa()), (PageState::GuestInvalid, ASID, Gpa::new(5 * PAGE)));
        assert_eq!(machine.walk(5).unwrap().size, entry, "the leaf is no larger than the entry");
        match entry {
            PageSize::Size4K => machine.accept(5, RmpPageSize::Size4K),
            _ => machine.accept(0, RmpPageSize::Size2M),
        }
        assert_eq!(machine.private(5), Seen::Done(entry));
        assert_eq!(machine.entry(5).state(), PageState::GuestValid);
    }
}

#[test]
fn pvalidate_of_4k_in_a_2m_entry_splits_it_and_the_rest_stays_as_it_was() {
    let machine = machine(PageSize::Size2M, RmpSizes::UpTo2M);
    machine.accept(M2, RmpPageSize::Size2M);
    assert_eq!(machine.private(M2 + 9), Seen::Done(PageSize::Size2M));
    let (done, causes) = machine.pvalidate(M2 + 9, RmpPageSize::Size4K, Validated::No);
    assert_eq!((done, causes), (Ok(Changed::Yes), vec![RmpCause::SizeMismatch]));
    assert_eq!(machine.private(M2 + 9), Seen::NotValidated);
    for gfn in [M2, M2 + 8, M2 + 10, 2 * M2 - 1] {
        assert_eq!(machine.private(gfn), Seen::Done(PageSize::Size4K), "PSMASH takes no acceptance away");
    }
    let stats = machine.vm.stats().snp;
    assert_eq!((stats.smashed, stats.rmp_faults, stats.assigned), (1, 1, [0, 1]));
}

#[test]
fn a_shared_page_is_the_hosts_and_comes_back_to_be_accepted_anew() {
    for (page, sizes) in POLICIES {
        for assign in [Assign::Lazy, Assign::Eager] {
            let machine =
                SnpMachine::new(page, if page == PageSize::Size1G { 1024 * MIB } else { 32 * MIB }, assign, sizes);
            let (first, shared) = (2 * M2, 2 * M2 + 3);
            for gfn in first..first + M2 {
                machine.accept(gfn, RmpPageSize::Size4K);
            }
            let before = machine.assigned();
            let sfn = machine.sfn(shared).unwrap();
            machine.write(shared, b"secret");
            machine.change(shared, 1, Shareability::SHARED);
            assert_eq!(machine.assigned(), before - 1, "its neighbours stay the guest's");
            assert!(!machine.rmp.entry(sfn).unwrap().assigned());
            assert_eq!(machine.private(shared), Seen::Exit(MemoryFaultReason::PrivacyMismatch));
            assert_eq!(machine.shared(shared), Seen::Done(PageSize::Size4K));
            assert_eq!(machine.sfn(shared), Some(sfn), "the conversion is in place");
            let mut seen = [0; 6];
            machine.vm.guest_read(Gpa::new(shared * PAGE), &mut seen, QUIET).unwrap();
            assert_ne!(&seen, b"secret", "the host reads ciphertext of what was private");
            machine.vm.guest_write(Gpa::new(shared * PAGE), b"host", QUIET).unwrap();
            assert!(machine.vm.guest_write(Gpa::new((shared + 1) * PAGE), b"host", QUIET).is_err());
            for gfn in [shared - 1, shared + 1] {
                assert_eq!(machine.private(gfn), Seen::Done(PageSize::Size4K));
            }
            machine.change(shared, 1, Shareability::PRIVATE);
            assert_eq!(machine.assigned(), if assign == Assign::Eager { before } else { before - 1 });
            assert_eq!(machine.private(shared), Seen::NotValidated);
            machine.accept(shared, RmpPageSize::Size4K);
            assert_eq!(machine.private(shared), Seen::Done(PageSize::Size4K));
            assert_ne!(&machine.read(shared)[..4], b"host", "the guest's key makes noise of the host's bytes");
            assert_eq!(machine.assigned(), before);
        }
    }
}

#[test]
fn a_whole_2m_goes_and_comes_back_as_one_entry() {
    let machine = machine(PageSize::Size2M, RmpSizes::UpTo2M);
    machine.accept(M2, RmpPageSize::Size2M);
    machine.change(M2, M2, Shareability::SHARED);
    assert_eq!(machine.assigned(), 0);
    machine.change(M2, M2, Shareability::PRIVATE);
    machine.accept(M2, RmpPageSize::Size2M);
    assert_eq!(machine.private(M2 + 1), Seen::Done(PageSize::Size2M));
    let stats = machine.vm.stats().snp;
    assert_eq!((stats.smashed, stats.assigned, stats.returned), (0, [0, 2], [0, 1]));
}

#[test]
fn a_hole_and_the_end_of_an_inode_give_frames_back() {
    for (page, sizes) in POLICIES {
        let machine = machine(page, sizes);
        for gfn in [0, 1, M2, M2 + 7, 3 * M2] {
            assert_eq!(machine.private(gfn), Seen::NotValidated);
        }
        let before = machine.assigned();
        let sfn = machine.sfn(M2 + 7).unwrap();
        machine.vm.punch_hole(machine.gmem, (M2 + 7) * PAGE, PAGE, QUIET).unwrap();
        assert_eq!(machine.assigned(), before - 1);
        assert!(!machine.rmp.entry(sfn).unwrap().assigned());
        assert_eq!(machine.private(M2 + 7), Seen::NotValidated, "it is a new page to the guest");
        machine.vm.close_descriptor(machine.gmem, QUIET).unwrap();
        assert_eq!(machine.assigned(), 0);
        let host = machine.vm.host().lock(QUIET).stats();
        assert_eq!(host.leaked_frames, 0);
    }
}

#[test]
fn what_is_launched_is_accepted_and_is_launched_once() {
    for (page, sizes) in POLICIES {
        let machine = machine(page, sizes);
        let bytes: Vec<u8> = (0..3 * PAGE).map(|n| (n / PAGE) as u8 + 1).collect();
        let measured = machine.launch(7, LaunchContent::Bytes(&bytes), SnpPageType::Normal).unwrap();
        assert_eq!(measured, [7, 8, 9].map(|gfn| (Gpa::new(gfn * PAGE), true)));
        let measured = machine.launch(M2, LaunchContent::Zero { nr_pages: M2 + 2 }, SnpPageType::Zero).unwrap();
        assert_eq!(measured.len() as u64, M2 + 2);
        assert!(measured.iter().zip(M2..).all(|(page, gfn)| *page == (Gpa::new(gfn * PAGE), false)));
        for (gfn, byte) in [(7, 1), (8, 2), (9, 3), (M2, 0), (2 * M2 - 1, 0), (2 * M2, 0), (2 * M2 + 1, 0)] {
            assert!(matches!(machine.private(gfn), Seen::Done(_)), "guest frame {gfn:#x}");
            assert_eq!(machine.entry(gfn).state(), PageState::GuestValid);
            assert_eq!(machine.read(gfn), [byte; 16], "the image is plain to the guest");
            let sfn = machine.sfn(gfn).unwrap();
            machine.vm.memory().rekey(sfn, Key::HOST);
            assert_ne!(machine.raw(sfn), [byte; 16], "and noise to the host");
        }
        let again = machine.launch(8, LaunchContent::Zero { nr_pages: 1 }, SnpPageType::Zero);
        assert_eq!(again.unwrap_err().errno(), emu_core::Errno::Exist);
        assert_eq!(machine.private(3), Seen::NotValidated, "what was not launched is not accepted");
    }
}

#[test]
fn what_cannot_be_launched_is_refused_and_changes_nothing() {
    let machine = machine(PageSize::Size2M, RmpSizes::UpTo2M);
    let short = LaunchContent::Bytes(&[0; 100]);
    for (gfn, content, page_type, errno) in [
        (0, short, SnpPageType::Normal, emu_core::Errno::Inval),
        (0, LaunchContent::Zero { nr_pages: 0 }, SnpPageType::Zero, emu_core::Errno::Inval),
        (0, LaunchContent::Zero { nr_pages: 1 }, SnpPageType::Cpuid, emu_core::Errno::Inval),
        (0, LaunchContent::Bytes(&[0; 4096]), SnpPageType::Vmsa, emu_core::Errno::Inval),
        (1 << 36, LaunchContent::Zero { nr_pages: 1 }, SnpPageType::Zero, emu_core::Errno::Inval),
    ] {
        assert_eq!(machine.launch(gfn, content, page_type).unwrap_err().errno(), errno);
    }
    machine.change(4, 1, Shareability::SHARED);
    let shared = machine.launch(4, LaunchContent::Zero { nr_pages: 1 }, SnpPageType::Zero);
    assert!(matches!(shared, Err(LaunchError::Shared { .. })));
    assert_eq!(machine.assigned(), 0);
}

#[test]
fn a_save_area_is_the_guests_and_nobody_writes_it() {
    let machine = machine(PageSize::Size4K, RmpSizes::UpTo2M);
    let mut measured = 0;
    let spa = machine.vm.snp_launch_vmsa(&[0x5a; 4096], &mut |_| measured += 1, QUIET).unwrap();
    assert_eq!(measured, 1);
    assert!(!spa.is_aligned(PageSize::Size2M));
    assert_eq!(machine.rmp.check_vmsa(spa, ASID), Ok(()));
    assert!(machine.rmp.check_host_write(spa, PageSize::Size4K).is_err());
}

#[test]
fn a_private_access_to_a_device_ends_the_vm_and_a_shared_one_is_emulated() {
    let machine = machine(PageSize::Size4K, RmpSizes::UpTo2M);
    let device = 0xfee00;
    assert_eq!(machine.access(device, AccessKind::Read, CBit::Set), Seen::Exit(MemoryFaultReason::PrivateWithoutSlot));
    assert_eq!(machine.access(device, AccessKind::Read, CBit::Clear), Seen::Device);
    let reserved = FaultInput {
        entry: EntryState::Reserved,
        privacy: Shareability::PRIVATE,
        ..FaultInput::new(Gpa::new(device * PAGE), AccessKind::Read)
    };
    let ended = machine.vm.handle_fault(CPU, reserved, QUIET);
    assert_eq!(ended, Err(VmError::PrivateMmio { gpa: Gpa::new(device * PAGE) }));
}
