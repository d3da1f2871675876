//! `KVM_SET_USER_MEMORY_REGION2` and faults on user memory, through a whole VM.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Errno, Gfn, Gpa, Hva, Order, PageSize, Sfn};
use gmem::mm::{Advice, MapRequest, Prot, Sharing, ThpChoice, UserAccess, What};
use gmem::policy::Generation;
use gmem::{FolioPolicy, GmemFlags, HostConfig, PageIndex, Shareability, SlotId};
use hypervisor::*;

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = 0x1000;
const HVA: u64 = 0x7000_0000_0000;
const MIB: u64 = 1 << 20;

fn vm_with(change: impl FnOnce(&mut VmConfig)) -> Vm {
    let memory = SystemMemory::flat(64 * MIB).unwrap();
    let host = HostConfig { first: Sfn::new(512), nr_frames: 15 * 1024, pools: vec![] };
    let pages = PagePolicy { folios: FolioPolicy::Buddy { largest: PageSize::Size2M }, max_level: PageSize::Size1G };
    let mut config = VmConfig { maxphyaddr: 36, ..VmConfig::new(pages, host) };
    change(&mut config);
    Vm::new(memory, &config).unwrap()
}

fn vm() -> Vm {
    vm_with(|_| {})
}

fn region(slot: u32, gpa: u64, pages: u64, hva: u64) -> UserMemoryRegion2 {
    UserMemoryRegion2 {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: pages * PAGE,
        userspace_addr: hva,
        guest_memfd_offset: 0,
        guest_memfd: MemFd::NotOpen,
    }
}

fn on_gmem(slot: u32, gpa: u64, pages: u64, gmem: GmemId) -> UserMemoryRegion2 {
    let flags = SlotFlags::GUEST_MEMFD.bits();
    UserMemoryRegion2 { flags, guest_memfd: MemFd::Gmem(gmem), ..region(slot, gpa, pages, 0) }
}

fn map(vm: &Vm, at: u64, len_bytes: u64, what: What) {
    let request = MapRequest { at: Hva::new(at), len_bytes, prot: Prot::READ_WRITE, sharing: Sharing::Shared, what };
    vm.mm().map(request, QUIET).unwrap();
}

const SMALL: What = What::Anonymous { thp: ThpChoice::Never };

fn fault(vm: &Vm, gpa: u64, kind: AccessKind) -> Result<Action, VmError> {
    vm.handle_fault(VcpuId(0), FaultInput::new(Gpa::new(gpa), kind), QUIET)
}

fn fixed(size: PageSize) -> Result<Action, VmError> {
    Ok(Action::Resume(Resumed::Fixed { size }))
}

fn errno(result: Result<SlotChange, VmError>) -> Result<SlotChange, Errno> {
    result.map_err(|error| match error {
        VmError::Memslot(error) => error.errno(),
        other => panic!("{other:?} is not a memslot's error"),
    })
}

#[test]
fn every_row_of_the_errno_table_holds_and_a_refused_call_leaves_no_trace() {
    let vm = vm();
    let gmem = vm.create_guest_memfd(16 * PAGE, GmemFlags::MMAP.bits(), QUIET).unwrap();
    let small = vm.create_guest_memfd(4 * PAGE, 0, QUIET).unwrap();
    errno(vm.set_user_memory_region2(&region(0, 0x10_0000, 16, HVA), QUIET)).unwrap();
    errno(vm.set_user_memory_region2(&on_gmem(1, 0x20_0000, 8, gmem), QUIET)).unwrap();
    let user = |slot| region(slot, 0x40_0000, 4, HVA);
    let file = |slot| on_gmem(slot, 0x40_0000, 4, small);
    let with =
        |bits: SlotFlags, region: UserMemoryRegion2| UserMemoryRegion2 { flags: region.flags | bits.bits(), ..region };
    let flags = |flags, region: UserMemoryRegion2| UserMemoryRegion2 { flags, ..region };
    let (inval, exist, badf) = (Errno::Inval, Errno::Exist, Errno::BadF);
    let rows = [
        ("an unknown flag", flags(1 << 3, user(2)), inval),
        ("guest_memfd that is logged", with(SlotFlags::LOG_DIRTY_PAGES, file(2)), inval),
        ("guest_memfd that is read-only", with(SlotFlags::READONLY, file(2)), inval),
        ("an offset that is no page", UserMemoryRegion2 { guest_memfd_offset: 1, ..file(2) }, inval),
        ("an offset that wraps", UserMemoryRegion2 { guest_memfd_offset: !0xfff, ..file(2) }, inval),
        ("no file", UserMemoryRegion2 { guest_memfd: MemFd::NotOpen, ..file(2) }, badf),
        ("a file that is closed", UserMemoryRegion2 { guest_memfd: MemFd::Gmem(GmemId(9)), ..file(2) }, badf),
        ("another file", UserMemoryRegion2 { guest_memfd: MemFd::Other, ..file(2) }, inval),
        ("beyond the end of the inode", UserMemoryRegion2 { memory_size: 5 * PAGE, ..file(2) }, inval),
        ("an offset beyond the end", UserMemoryRegion2 { guest_memfd_offset: 4 * PAGE, ..file(2) }, inval),
        ("overlap in the inode", UserMemoryRegion2 { guest_memfd: MemFd::Gmem(gmem), ..file(2) }, exist),
        ("overlap in guest frames", region(2, 0x10_f000, 2, HVA), exist),
        ("a slot on guest_memfd again, the same", on_gmem(1, 0x20_0000, 8, gmem), inval),
        ("a slot on guest_memfd moved", on_gmem(1, 0x80_0000, 8, gmem), inval),
        ("guest_memfd taken from a slot", region(1, 0x20_0000, 8, 0), inval),
        (
            "guest_memfd given to a slot",
            UserMemoryRegion2 { userspace_addr: HVA, ..on_gmem(0, 0x10_0000, 16, small) },
            inval,
        ),
        ("a slot made read-only", with(SlotFlags::READONLY, region(0, 0x10_0000, 16, HVA)), inval),
        ("another user address", region(0, 0x10_0000, 16, HVA + PAGE), inval),
        ("another size", region(0, 0x10_0000, 15, HVA), inval),
        ("moved over another", region(0, 0x20_7000, 16, HVA), exist),
        ("moved too high", region(0, (1 << 36) - PAGE, 16, HVA), inval),
        ("a user address that is no page", region(2, 0x40_0000, 4, HVA + 1), inval),
        ("a user address of the kernel", region(2, 0x40_0000, 4, 1 << 47), inval),
        ("a guest address that is no page", region(2, 0x40_0001, 4, HVA), inval),
        ("a size that is no page", UserMemoryRegion2 { memory_size: 1, ..user(2) }, inval),
        ("delete of nothing", UserMemoryRegion2 { memory_size: 0, ..user(2) }, inval),
        ("too many pages", region(2, 0, 1 << 31, HVA), inval),
        ("a slot number too large", user(32764), inval),
        ("an address space too many", user(2 << 16), inval),
        ("above the last guest frame", region(2, (1 << 36) - PAGE, 2, HVA), inval),
        ("a guest address that wraps", region(2, !0xfff, 2, HVA), inval),
    ];
    let state = |vm: &Vm| {
        let slots = vm.memslots(QUIET);
        (slots.generation(), slots.iter().copied().collect::<Vec<_>>())
    };
    let before = state(&vm);
    for (what, region, wanted) in rows {
        assert_eq!(errno(vm.set_user_memory_region2(&region, QUIET)), Err(wanted), "{what}");
        assert_eq!(state(&vm), before, "{what}");
    }
    assert_eq!(errno(vm.set_user_memory_region(&file(2), QUIET)), Err(inval), "by the old call");
    vm.close_guest_memfd(small, QUIET).expect("no refused call holds the file");
}

#[test]
fn a_slot_comes_changes_its_flags_moves_and_goes() {
    let vm = vm();
    let base = region(0, 0x10_0000, 16, HVA);
    let logged = UserMemoryRegion2 { flags: SlotFlags::LOG_DIRTY_PAGES.bits(), ..base };
    let moved = UserMemoryRegion2 { guest_phys_addr: 0x20_0000, ..logged };
    let gone = UserMemoryRegion2 { memory_size: 0, ..moved };
    let smm = UserMemoryRegion2 { slot: 1 << 16, ..moved };
    let steps = [
        (base, SlotChange::Create),
        (base, SlotChange::Nothing),
        (logged, SlotChange::FlagsOnly),
        (moved, SlotChange::Move),
        (smm, SlotChange::Create),
        (gone, SlotChange::Delete),
    ];
    for (region, change) in steps {
        assert_eq!(errno(vm.set_user_memory_region2(&region, QUIET)), Ok(change));
        let slots = vm.memslots(QUIET);
        let logged = |slot: &Slot| (slot.log().is_some(), slot.info().flags.contains(SlotFlags::LOG_DIRTY_PAGES));
        assert!(slots.slots().map(logged).all(|(log, flag)| log == flag), "who says it is logged is");
    }
    assert!(vm.memslots(QUIET).lookup(Gfn::new(0x200)).is_none());
    let left: Vec<_> = vm.memslots(QUIET).iter().map(|slot| slot.space).collect();
    assert_eq!(left, [memslot::AddressSpaceId::Smm]);
    let protected = vm_with(|config| config.kind = VmKind::SwProtected);
    assert_eq!(errno(protected.set_user_memory_region2(&smm, QUIET)), Err(Errno::Inval), "one address space");
}

#[test]
fn a_guest_sees_user_memory_until_the_vmm_takes_it() {
    let vm = vm();
    map(&vm, HVA, 16 * PAGE, SMALL);
    errno(vm.set_user_memory_region2(&region(0, 0x10_0000, 16, HVA), QUIET)).unwrap();
    vm.mm().write(Hva::new(HVA + 5 * PAGE), &[7], vm.kernel(QUIET)).unwrap();
    assert_eq!(fault(&vm, 0x10_5000, AccessKind::Read), fixed(PageSize::Size4K));
    let leaf = vm.tables(QUIET).leaves().unwrap()[0];
    assert!(leaf.rights.contains(hypervisor::tdp::Rights::WRITE), "what the VMM wrote it may write");
    assert_eq!(vm.memory().load::<u8>(leaf.sfn.base()), Ok(7));
    let mut byte = [0];
    vm.guest_read(Gpa::new(0x10_5000), &mut byte, QUIET).unwrap();
    assert_eq!(byte, [7]);

    let before = vm.invalidation().seq();
    vm.mm().munmap(Hva::new(HVA + 20 * PAGE), PAGE, vm.kernel(QUIET)).unwrap();
    assert_eq!(vm.invalidation().seq(), before, "what no slot shows is nobody's business");
    let advised = vm.mm().madvise(Hva::new(HVA + 5 * PAGE), PAGE, Advice::DontNeed, vm.kernel(QUIET));
    assert!(advised.is_ok());
    assert!(vm.tables(QUIET).leaves().unwrap().is_empty());
    assert!(vm.invalidation().seq() > before && vm.take_flush(VcpuId(0), QUIET).is_some());
    assert_eq!(fault(&vm, 0x10_5000, AccessKind::Write), fixed(PageSize::Size4K));
    vm.guest_read(Gpa::new(0x10_5000), &mut byte, QUIET).unwrap();
    assert_eq!(byte, [0]);
    vm.mm().munmap(Hva::new(HVA), 16 * PAGE, vm.kernel(QUIET)).unwrap();
    assert!(matches!(fault(&vm, 0x10_5000, AccessKind::Read), Err(VmError::Follow(PfnError::Fault { .. }))));
    let used = |folio: &gmem::folio::Folio| folio.meta.kind == gmem::folio::FolioKind::Anonymous;
    assert_eq!(vm.host().lock(QUIET).folios().iter().filter(used).count(), 0, "no fault kept a page");
}

#[test]
fn what_the_host_protects_the_guest_cannot_write() {
    let vm = vm();
    map(&vm, HVA, 4 * PAGE, SMALL);
    errno(vm.set_user_memory_region2(&region(0, 0, 4, HVA), QUIET)).unwrap();
    assert_eq!(fault(&vm, 0, AccessKind::Write), fixed(PageSize::Size4K));
    vm.mm().mprotect(Hva::new(HVA), PAGE, Prot::READ, vm.kernel(QUIET)).unwrap();
    assert!(vm.tables(QUIET).leaves().unwrap().is_empty());
    assert_eq!(fault(&vm, 0, AccessKind::Read), fixed(PageSize::Size4K));
    assert!(!vm.tables(QUIET).leaves().unwrap()[0].rights.contains(tdp::Rights::WRITE));
    assert!(fault(&vm, 0, AccessKind::Write).is_err(), "EFAULT, as the VMM's own write would be");

    let rom = UserMemoryRegion2 { flags: SlotFlags::READONLY.bits(), ..region(1, 0x1_0000, 1, HVA + PAGE) };
    errno(vm.set_user_memory_region2(&rom, QUIET)).unwrap();
    let gpa = Gpa::new(0x1_0000);
    assert_eq!(fault(&vm, 0x1_0000, AccessKind::Write), Ok(Action::RomWrite { gpa }));
    assert_eq!(fault(&vm, 0x1_0000, AccessKind::Read), fixed(PageSize::Size4K));
    assert!(matches!(vm.guest_write(gpa, &[1], QUIET), Err(GuestAccessError::ReadOnly { .. })));
}

#[test]
fn a_leaf_is_as_large_as_the_hosts_own_entry() {
    let vm = vm();
    map(&vm, HVA, 8 * MIB, What::Anonymous { thp: ThpChoice::Huge });
    errno(vm.set_user_memory_region2(&region(0, 4 * MIB, 1024, HVA), QUIET)).unwrap();
    errno(vm.set_user_memory_region2(&region(1, 16 * MIB + PAGE, 512, HVA + 4 * MIB), QUIET)).unwrap();
    assert_eq!(fault(&vm, 4 * MIB + 0x3000, AccessKind::Write), fixed(PageSize::Size2M));
    assert_eq!(fault(&vm, 16 * MIB + PAGE, AccessKind::Write), fixed(PageSize::Size4K), "incongruent");
    vm.mm().munmap(Hva::new(HVA + PAGE), PAGE, vm.kernel(QUIET)).unwrap();
    assert_eq!(vm.tables(QUIET).leaves().unwrap().len(), 1, "the huge leaf is gone with the page");
    assert_eq!(fault(&vm, 4 * MIB, AccessKind::Write), fixed(PageSize::Size4K), "the host's entry was cut");
}

#[test]
fn memory_of_a_device_is_mapped_and_never_held_and_not_for_long() {
    let vm = vm();
    let block = vm.host().lock(QUIET).alloc_device(Order::new(3).unwrap()).unwrap();
    map(&vm, HVA, 8 * PAGE, block.what());
    errno(vm.set_user_memory_region2(&region(0, 0, 8, HVA), QUIET)).unwrap();
    assert_eq!(fault(&vm, 0x3000, AccessKind::Write), fixed(PageSize::Size4K));
    assert_eq!(vm.tables(QUIET).leaves().unwrap()[0].sfn, Sfn::new(block.first().raw() + 3));
    assert_eq!(vm.host().lock(QUIET).check_device(&block), Ok(()));
    let refused = vm.map_guest_page(Gfn::new(3), UserAccess::Write, QUIET).unwrap_err();
    assert!(matches!(refused, GuestAccessError::Follow(error) if error.errno() == Errno::Inval));
    assert_eq!(vm.unsafe_mappings(), 0);

    let risky = vm_with(|config| config.follow.unsafe_mappings = UnsafeMappings::Allowed);
    let block = risky.host().lock(QUIET).alloc_device(Order::new(3).unwrap()).unwrap();
    let elsewhere = risky.host().lock(QUIET).alloc_device(Order::new(3).unwrap()).unwrap();
    map(&risky, HVA, 8 * PAGE, block.what());
    errno(risky.set_user_memory_region2(&region(0, 0, 8, HVA), QUIET)).unwrap();
    let kept = risky.map_guest_page(Gfn::new(3), UserAccess::Write, QUIET).unwrap();
    assert_eq!(risky.unsafe_mappings(), 1, "it is tainted");
    risky.mm().move_device(Hva::new(HVA), 8 * PAGE, elsewhere.first(), risky.kernel(QUIET)).unwrap();
    assert_eq!(fault(&risky, 0x3000, AccessKind::Read), fixed(PageSize::Size4K));
    let now = risky.tables(QUIET).leaves().unwrap()[0].sfn;
    assert_ne!(kept.sfn(), now, "the mapping shows memory that the driver has taken back");
    risky.unmap_guest_page(kept, QUIET);
    assert_eq!(risky.host().lock(QUIET).check_device(&block), Ok(()));
}

#[test]
fn a_mapping_that_lasts_holds_its_page() {
    let vm = vm();
    map(&vm, HVA, 4 * PAGE, SMALL);
    errno(vm.set_user_memory_region2(&region(0, 0, 4, HVA), QUIET)).unwrap();
    let gmem = vm.create_guest_memfd(4 * PAGE, GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
    errno(vm.set_user_memory_region2(&on_gmem(1, 0x10_0000, 4, gmem), QUIET)).unwrap();
    let user = vm.map_guest_page(Gfn::new(1), UserAccess::Write, QUIET).unwrap();
    let file = vm.map_guest_page(Gfn::new(0x101), UserAccess::Read, QUIET).unwrap();
    vm.write_mapped(&user, 8, &[3]).unwrap();
    let folio = vm.host().lock(QUIET).folios().get(user.sfn()).unwrap();
    assert!(folio.maybe_pinned());
    let busy = vm.convert(gmem, 0, 4 * PAGE, Shareability::PRIVATE, QUIET);
    assert!(matches!(busy, Err(VmError::Convert(gmem::ConvertError::Busy { index: PageIndex(1) }))));
    vm.unmap_guest_page(file, QUIET);
    vm.convert(gmem, 0, 4 * PAGE, Shareability::PRIVATE, QUIET).unwrap();
    vm.unmap_guest_page(user, QUIET);
    let mut byte = [0];
    vm.guest_read(Gpa::new(PAGE + 8), &mut byte, QUIET).unwrap();
    assert_eq!(byte, [3]);
}

#[test]
fn private_pages_come_from_guest_memfd_and_shared_ones_from_user_memory_in_7_3() {
    let vm = vm_with(|config| {
        config.gmem = Generation::V7_3.policy();
        config.kind = VmKind::SwProtected;
    });
    map(&vm, HVA, 4 * PAGE, SMALL);
    let gmem = vm.create_guest_memfd(4 * PAGE, 0, QUIET).unwrap();
    let both = UserMemoryRegion2 { userspace_addr: HVA, ..on_gmem(0, 0, 4, gmem) };
    errno(vm.set_user_memory_region2(&both, QUIET)).unwrap();
    assert_eq!(fault(&vm, 0, AccessKind::Write), fixed(PageSize::Size4K));
    let shown = vm.mm().table().leaf(Hva::new(HVA).frame(), QUIET).unwrap().sfn;
    assert_eq!(vm.tables(QUIET).leaves().unwrap()[0].sfn, shown);
    assert_eq!(vm.gmem(gmem, QUIET).unwrap().folios(QUIET), [0; 3]);
    let private = FaultInput { privacy: Shareability::PRIVATE, ..FaultInput::new(Gpa::new(0), AccessKind::Read) };
    let default = vm_with(|config| config.gmem = Generation::V7_3.policy());
    map(&default, HVA, 4 * PAGE, SMALL);
    errno(default.set_user_memory_region2(&region(0, 0, 4, HVA), QUIET)).unwrap();
    let exit = default.handle_fault(VcpuId(0), private, QUIET).unwrap();
    assert!(matches!(exit, Action::MemoryFault(MemoryFault { reason: MemoryFaultReason::PrivacyMismatch, .. })));
}

#[test]
fn emulated_accesses_see_what_the_guest_sees_unless_kvms_way_is_asked_for() {
    let coherent = vm();
    let split = vm_with(|config| config.follow.own_access = OwnAccess::UserMemory);
    for vm in [&coherent, &split] {
        let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
        let gmem = vm.create_guest_memfd(4 * PAGE, flags.bits(), QUIET).unwrap();
        map(vm, HVA, PAGE, SMALL);
        let inode = vm.gmem(gmem, QUIET).unwrap();
        map(vm, HVA + PAGE, PAGE, What::Gmem { inode, first: PageIndex(1) });
        let slot = UserMemoryRegion2 { userspace_addr: HVA, ..on_gmem(0, 0, 4, gmem) };
        errno(vm.set_user_memory_region2(&slot, QUIET)).unwrap();
        for page in 0..2 {
            assert!(matches!(fault(vm, page * PAGE, AccessKind::Write), Ok(Action::Resume(_))));
            let sfn = vm.tables(QUIET).leaves().unwrap()[page as usize].sfn;
            vm.memory().store(sfn.base(), 9_u8).unwrap();
        }
        assert_eq!([0, 1, 2].map(|page| vm.is_split_view(Gpa::new(page * PAGE), QUIET)), [true, false, false]);
    }
    let read = |vm: &Vm, page: u64| {
        let mut byte = [0];
        vm.guest_read(Gpa::new(page * PAGE), &mut byte, QUIET).map(|()| byte[0]).ok()
    };
    assert_eq!([0, 1, 2].map(|page| read(&coherent, page)), [Some(9), Some(9), Some(0)]);
    assert_eq!([0, 1, 2].map(|page| read(&split, page)), [Some(0), Some(9), None]);
}

#[test]
fn the_second_posting_refuses_a_user_address_that_shows_something_else() {
    let vm = vm_with(|config| config.gmem = Generation::V2.policy());
    let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
    let gmem = vm.create_guest_memfd(2 * MIB, flags.bits(), QUIET).unwrap();
    let inode = vm.gmem(gmem, QUIET).unwrap();
    map(&vm, HVA, 2 * MIB, What::Gmem { inode, first: PageIndex(0) });
    let at = |hva| UserMemoryRegion2 { userspace_addr: hva, ..on_gmem(0, 0, 256, gmem) };
    assert_eq!(errno(vm.set_user_memory_region2(&at(HVA + PAGE), QUIET)), Err(Errno::Inval));
    assert_eq!(errno(vm.set_user_memory_region2(&at(HVA), QUIET)), Ok(SlotChange::Create));
}

#[test]
fn failed_memory_is_a_signal_to_the_vmm_and_the_fault_comes_again() {
    let vm = vm();
    map(&vm, HVA, PAGE, SMALL);
    errno(vm.set_user_memory_region2(&region(0, 0, 1, HVA), QUIET)).unwrap();
    vm.mm().write(Hva::new(HVA), &[1], vm.kernel(QUIET)).unwrap();
    let sfn = vm.mm().table().leaf(Hva::new(HVA).frame(), QUIET).unwrap().sfn;
    vm.host().lock(QUIET).poison(sfn).unwrap();
    assert_eq!(fault(&vm, 0x10, AccessKind::Read), Ok(Action::Resume(Resumed::Retry)));
    assert_eq!(vm.take_signals(QUIET), [UserSignal::HwPoison { hva: Hva::new(HVA) }]);
    assert!(vm.tables(QUIET).leaves().unwrap().is_empty());
}

#[test]
fn aging_asks_and_forgets_by_user_address() {
    use gmem::MmuNotifier;
    use gmem::mm::HvaRange;
    let vm = vm();
    map(&vm, HVA, 4 * PAGE, SMALL);
    errno(vm.set_user_memory_region2(&region(0, 0, 4, HVA), QUIET)).unwrap();
    fault(&vm, PAGE, AccessKind::Write).unwrap();
    let (mm, page) = (vm.mm().id(), |n| HvaRange { first: Hva::new(HVA + n * PAGE).frame(), nr_pages: 1 });
    assert!(!vm.test_young(mm, page(0), QUIET));
    assert!(vm.test_young(mm, page(1), QUIET) && vm.test_young(mm, page(1), QUIET));
    assert!(vm.clear_young(mm, page(1), QUIET));
    assert!(!vm.clear_young(mm, page(1), QUIET));
}

#[test]
fn thousands_of_slots_are_found_by_every_key() {
    let vm = vm();
    for n in 0..2000_u64 {
        let slot = region(n as u32, n * 2 * PAGE, 1, HVA + (2000 - n) * PAGE);
        errno(vm.set_user_memory_region2(&slot, QUIET)).unwrap();
    }
    let slots = vm.memslots(QUIET);
    assert_eq!(slots.lookup(Gfn::new(2 * 1234)).map(|slot| slot.info().id), Some(SlotId(1234)));
    assert!(slots.lookup(Gfn::new(2 * 1234 + 1)).is_none());
    let range = gmem::mm::HvaRange { first: Hva::new(HVA + 10 * PAGE).frame(), nr_pages: 2 };
    let mut shown: Vec<u16> = slots.in_hva(range).map(|slot| slot.info().id.0).collect();
    shown.sort_unstable();
    assert_eq!(shown, [1989, 1990]);
}

#[test]
fn a_vm_is_shared_by_threads() {
    fn is_sync<T: Send + Sync>(_: &T) {}
    is_sync(&Arc::new(vm()));
}
