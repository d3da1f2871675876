//! Memory of an SNP guest through the crate's door: who owns which page, at which size, and when that changes.

mod reader;
mod snp_processor;

use std::sync::Arc;

use emu_core::memory::{Key, SystemMemory};
use emu_core::sev::CBit;
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use gmem::DirectMapPolicy;
use gmem::directmap::{HostAccess, HostOp};
use hypervisor::check::CheckHistory;
use hypervisor::*;
use mmu::Asid;
use mmu::RmpCause;
use mmu::rmp::{Changed, InUse, PageState, Rmp, RmpPageSize, RmpUpdate, Validated};
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

#[test]
fn a_frame_that_a_processor_runs_with_is_leaked_and_never_used_again() {
    for (page, sizes) in [(PageSize::Size4K, RmpSizes::UpTo2M), (PageSize::Size2M, RmpSizes::Only4K)] {
        let machine = machine(page, sizes);
        let before = machine.vm.host().lock(QUIET).stats();
        machine.accept(5, RmpPageSize::Size4K);
        machine.write(5, b"running");
        let sfn = machine.sfn(5).unwrap();
        machine.rmp.set_in_use(sfn, InUse::Yes);
        let refused = machine.try_change(5, 1, Shareability::SHARED).unwrap_err();
        assert_eq!(refused.errno(), emu_core::Errno::Busy);
        assert_eq!(machine.private(5), Seen::Done(PageSize::Size4K), "a refused change changes nothing");
        machine.vm.close_descriptor(machine.gmem, QUIET).unwrap();
        assert_eq!(machine.assigned(), 1);
        assert_eq!(&machine.raw(sfn)[..7], b"running", "its bytes are not touched");
        let mut host = machine.vm.host().lock(QUIET);
        let after = host.stats();
        assert_eq!((after.leaked_frames, after.retired_frames), (1, 1));
        assert!(host.is_leaked(sfn));
        // Whoever takes all there is does not get it.
        let mut all = std::iter::from_fn(|| host.alloc_table().ok());
        assert!(all.all(|table| table.frame() != sfn));
        assert!(before.leaked_frames == 0);
    }
}

#[test]
fn a_hole_in_a_huge_page_takes_its_part_back_and_leaves_the_rest() {
    let machine = machine(PageSize::Size2M, RmpSizes::UpTo2M);
    machine.accept(M2, RmpPageSize::Size2M);
    machine.private(M2 + 8);
    machine.write(M2 + 8, b"kept");
    machine.write(M2 + 9, b"lost");
    machine.vm.punch_hole(machine.gmem, (M2 + 9) * PAGE, PAGE, QUIET).unwrap();
    assert_eq!(machine.assigned(), M2 - 1);
    assert_eq!(machine.vm.check_quiescent(&mut CheckHistory::new()), Ok(()));
    assert_eq!(machine.private(M2 + 8), Seen::Done(PageSize::Size4K));
    assert_eq!(&machine.read(M2 + 8)[..4], b"kept");
    assert_eq!(machine.private(M2 + 9), Seen::NotValidated);
    machine.accept(M2 + 9, RmpPageSize::Size4K);
    assert_ne!(&machine.read(M2 + 9)[..4], b"lost");
}

#[test]
fn a_memslot_that_moves_has_its_pages_accepted_anew() {
    for sizes in [RmpSizes::Only4K, RmpSizes::UpTo2M] {
        let machine = machine(PageSize::Size2M, sizes);
        machine.launch(M2, LaunchContent::Zero { nr_pages: M2 }, SnpPageType::Zero).unwrap();
        assert!(matches!(machine.private(M2 + 3), Seen::Done(_)));
        let moved = 0x10_0000;
        machine.vm.move_memslot(SlotId(0), Gpa::new(moved * PAGE), QUIET).unwrap();
        assert_eq!(machine.private(moved + M2 + 3), Seen::NotValidated, "it is another place to the guest");
        machine.accept(moved + M2 + 3, RmpPageSize::Size4K);
        assert_eq!(machine.private(moved + M2 + 3), Seen::Done(PageSize::Size4K));
        assert_eq!(machine.vm.check_quiescent(&mut CheckHistory::new()), Ok(()));
    }
}

#[test]
fn what_was_split_is_one_entry_again_where_the_policy_merges() {
    let machine = machine(PageSize::Size2M, RmpSizes::MergeBack);
    machine.accept(M2, RmpPageSize::Size2M);
    machine.vm.size_hint(Gfn::new(M2 + 5), SizeHint::Psmash, QUIET).unwrap();
    assert_eq!(machine.private(M2 + 5), Seen::Done(PageSize::Size4K));
    machine.write(M2 + 5, b"stays");
    machine.vm.size_hint(Gfn::new(M2 + 5), SizeHint::Unsmash, QUIET).unwrap();
    assert_eq!(machine.private(M2 + 5), Seen::Done(PageSize::Size2M), "accepted, and in one piece");
    assert_eq!(&machine.read(M2 + 5)[..5], b"stays");
    let stats = machine.vm.stats().snp;
    assert_eq!((stats.smashed, stats.unsmashed), (1, 1));
    // A page that is not like the others keeps them apart.
    machine.change(M2 + 7, 1, Shareability::SHARED);
    machine.change(M2 + 7, 1, Shareability::PRIVATE);
    assert_eq!(machine.private(M2 + 7), Seen::NotValidated);
    machine.vm.size_hint(Gfn::new(M2), SizeHint::Unsmash, QUIET).unwrap();
    assert_eq!(machine.vm.stats().snp.unsmashed, 1);
    machine.accept(M2 + 7, RmpPageSize::Size4K);
    machine.change(M2, M2, Shareability::PRIVATE);
    assert_eq!(machine.vm.stats().snp.unsmashed, 2, "asked to be private as a whole, as it is");
}

#[test]
fn a_write_of_the_host_faults_exactly_over_what_is_assigned() {
    let machine = machine(PageSize::Size2M, RmpSizes::Only4K);
    machine.vm.host().lock(QUIET).model_direct_map(DirectMapPolicy::Linux);
    let write = |sfn| machine.vm.host_access(sfn, HostOp::Write, QUIET);
    machine.change(M2, M2, Shareability::SHARED);
    machine.shared(M2);
    let shared = machine.sfn(M2).unwrap();
    assert_eq!(write(shared), HostAccess::Bytes);
    machine.change(M2 + 1, 1, Shareability::PRIVATE);
    machine.accept(M2 + 1, RmpPageSize::Size4K);
    let private = machine.sfn(M2 + 1).unwrap();
    assert_eq!(private.raw(), shared.raw() + 1);
    assert_eq!(write(private), HostAccess::RmpFault { assigned: private, mapping: PageSize::Size4K });
    assert_eq!(machine.vm.host_access(private, HostOp::Read, QUIET), HostAccess::Ciphertext);
    assert_eq!(write(shared), HostAccess::Bytes, "the direct map was split around the page");
    assert_eq!(machine.rmp.check_host_write(shared.base(), PageSize::Size2M), Err(RmpCause::Ownership));
}

#[test]
fn attributes_of_the_vm_and_holes_change_page_states_where_inodes_say_nothing() {
    let policy = gmem::Generation::V7_3.policy();
    let machine = SnpMachine::with(PageSize::Size4K, 8 * MIB, Assign::Lazy, RmpSizes::Only4K, policy);
    assert_eq!(machine.private(3), Seen::Exit(MemoryFaultReason::PrivacyMismatch), "all of it starts shared");
    machine.change(0, 16, Shareability::PRIVATE);
    machine.accept(3, RmpPageSize::Size4K);
    machine.change(3, 1, Shareability::SHARED);
    assert_eq!(machine.assigned(), 0, "the private page was punched out");
    assert_eq!(machine.shared(3), Seen::Done(PageSize::Size4K));
    assert_eq!(machine.vm.check_quiescent(&mut CheckHistory::new()), Ok(()));
}

#[test]
fn a_page_state_change_of_what_is_no_memory_is_an_error_and_changes_nothing() {
    let machine = machine(PageSize::Size4K, RmpSizes::UpTo2M);
    let pages = 32 * MIB / PAGE;
    for (first, nr_pages, errno) in [
        (pages - 1, 2, emu_core::Errno::NoEnt),
        (1 << 36, 1, emu_core::Errno::NoEnt),
        (0, 0, emu_core::Errno::Inval),
        (u64::MAX, 2, emu_core::Errno::Inval),
    ] {
        assert_eq!(machine.try_change(first, nr_pages, Shareability::SHARED).unwrap_err().errno(), errno);
    }
    assert_eq!(machine.private(pages - 1), Seen::NotValidated, "it is private still");
    let plain = {
        let pages = PagePolicy::of(PageSize::Size4K);
        let plan = SystemMemoryPlan::for_guest(4 * MIB, pages);
        Vm::new(SystemMemory::flat(plan.arena_bytes).unwrap(), &VmConfig::new(pages, plan.host)).unwrap()
    };
    let change = PageStateChange { first: Gfn::new(0), nr_pages: 1, to: Shareability::PRIVATE, size: PageSize::Size4K };
    assert_eq!(plain.page_state_change(change, QUIET), Err(PageStateError::NotSnp));
}

#[test]
fn what_the_reverse_map_cannot_hold_is_no_guest() {
    let pages = PagePolicy::of(PageSize::Size4K);
    let (plan, place) = SystemMemoryPlan::for_guest(4 * MIB, pages).with_rmp();
    let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
    let rmp = Arc::new(Rmp::new(Arc::clone(&memory), place).unwrap());
    let with = |asid, kind, host: HostConfig| {
        let snp = Some(SnpConfig { rmp: Arc::clone(&rmp), asid, assign: Assign::Lazy, sizes: RmpSizes::Only4K });
        let config = VmConfig { kind, snp, ..VmConfig::new(pages, host) };
        Vm::new(Arc::clone(&memory), &config).err()
    };
    let setup = |error| Some(VmError::Snp(error));
    assert_eq!(with(Asid(0), VmKind::Snp, plan.host.clone()), setup(SnpSetupError::BadAsid { asid: Asid(0) }));
    assert_eq!(
        with(Asid(1 << 10), VmKind::Snp, plan.host.clone()),
        setup(SnpSetupError::BadAsid { asid: Asid(1 << 10) })
    );
    let ept = VmConfig {
        kind: VmKind::Snp,
        snp: Some(SnpConfig { rmp: Arc::clone(&rmp), asid: ASID, assign: Assign::Lazy, sizes: RmpSizes::Only4K }),
        format: TdpFormat::Ept,
        ..VmConfig::new(pages, plan.host.clone())
    };
    assert_eq!(Vm::new(Arc::clone(&memory), &ept).err(), setup(SnpSetupError::NeedsNpt));
    assert_eq!(with(ASID, VmKind::Default, plan.host.clone()), setup(SnpSetupError::KindDisagrees));
    let own = RmpUpdate::guest(ASID, Gpa::new(0), RmpPageSize::Size4K);
    rmp.rmpupdate(plan.host.first.base(), own).unwrap();
    assert_eq!(with(ASID, VmKind::Snp, plan.host.clone()), setup(SnpSetupError::AsidInUse { asid: ASID, nr_pages: 1 }));
    assert_eq!(with(Asid(8), VmKind::Snp, plan.host), None);
}

#[test]
fn processors_that_accept_pages_of_one_2m_side_by_side_lose_none() {
    for sizes in [RmpSizes::Only4K, RmpSizes::UpTo2M, RmpSizes::MergeBack] {
        let machine = machine(PageSize::Size2M, sizes);
        std::thread::scope(|scope| {
            for n in 0..4 {
                let machine = &machine;
                scope.spawn(move || {
                    for gfn in (M2 + n..3 * M2).step_by(4) {
                        machine.accept(gfn, RmpPageSize::Size4K);
                        assert!(matches!(machine.private(gfn), Seen::Done(_)), "guest frame {gfn:#x}");
                    }
                });
            }
            // Meanwhile a neighbour changes sides, and the guest speaks of sizes.
            scope.spawn(|| {
                for n in 0..64 {
                    machine.change(4 * M2 + n % 7, 3, Shareability::SHARED);
                    machine.change(4 * M2 + n % 7, 3, Shareability::PRIVATE);
                    let hint = if n % 2 == 0 { SizeHint::Psmash } else { SizeHint::Unsmash };
                    machine.vm.size_hint(Gfn::new(M2 + n * 13), hint, QUIET).unwrap();
                }
            });
        });
        for gfn in M2..3 * M2 {
            assert!(matches!(machine.private(gfn), Seen::Done(_)), "guest frame {gfn:#x} is accepted still");
        }
        assert_eq!(machine.vm.check_quiescent(&mut CheckHistory::new()), Ok(()));
    }
}

#[test]
fn a_guest_of_4g_is_launched_by_one_entry_for_each_2m() {
    let machine = SnpMachine::new(PageSize::Size2M, 4096 * MIB, Assign::Lazy, RmpSizes::UpTo2M);
    let low = 3 << 18;
    machine.launch(0, LaunchContent::Zero { nr_pages: low }, SnpPageType::Zero).unwrap();
    machine.launch(1 << 20, LaunchContent::Zero { nr_pages: 1 << 18 }, SnpPageType::Zero).unwrap();
    let stats = machine.vm.stats().snp;
    assert_eq!((stats.assigned, stats.launched_pages), ([0, 2048], 1 << 20));
    assert_eq!(machine.private(0), Seen::Done(PageSize::Size2M));
}

#[test]
fn an_image_is_not_copied_over_what_was_launched() {
    let machine = machine(PageSize::Size4K, RmpSizes::Only4K);
    machine.launch(2, LaunchContent::Zero { nr_pages: 1 }, SnpPageType::Zero).unwrap();
    let image = |gfn| Populate { first: Gfn::new(gfn), source: None, nr_pages: 1, source_use: SourceUse::Read };
    let refused = machine.vm.populate(&image(2), &mut || true, QUIET).unwrap_err();
    assert_eq!(refused.errno(), emu_core::Errno::Exist);
    assert_eq!(machine.vm.populate(&image(3), &mut || true, QUIET), Ok(1));
}
