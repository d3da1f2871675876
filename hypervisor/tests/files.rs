//! Files of guest_memfd: who keeps them open, and what becomes of memslots when nobody does. References that are nobody's,
//! and attributes that there is no memory for.

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Errno, Gfn, Gpa, Hva, PageSize, Sfn};
use gmem::mm::{MapRequest, Prot, Sharing, UserAccess, What};
use gmem::policy::{Generation, GmemPolicy, LruBatches};
use gmem::{GmemFlags, HostConfig, HugeSize, PageIndex, Shareability};
use hypervisor::check::CheckHistory;
use hypervisor::*;

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = 0x1000;
const M2: u64 = PageSize::Size2M.frames();
const HVA: u64 = 0x7000_0000_0000;

fn vm(change: impl FnOnce(&mut VmConfig)) -> Vm {
    let nr_frames = 8 * M2;
    let memory = SystemMemory::flat(nr_frames * PAGE).unwrap();
    let host = HostConfig { first: Sfn::new(1), nr_frames: nr_frames - 1, pools: vec![(HugeSize::Size2M, 2)] };
    let mut config = VmConfig { maxphyaddr: 36, ..VmConfig::new(PagePolicy::of(PageSize::Size2M), host) };
    change(&mut config);
    Vm::new(memory, &config).unwrap()
}

fn add(vm: &Vm, id: u16, gpa: u64) -> Result<GmemId, VmError> {
    let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
    let gmem = vm.create_guest_memfd(M2 * PAGE, flags.bits(), QUIET)?;
    show(vm, id, gpa, gmem)?;
    Ok(gmem)
}

fn show(vm: &Vm, id: u16, gpa: u64, gmem: GmemId) -> Result<(), VmError> {
    let (id, gpa, flags) = (SlotId(id), Gpa::new(gpa), SlotFlags::empty());
    vm.add_memslot(&MemSlotSpec { id, gpa, len_bytes: M2 * PAGE, flags, gmem, offset_bytes: 0 }, QUIET)
}

fn fault(vm: &Vm, gpa: u64) -> Result<Action, VmError> {
    vm.handle_fault(VcpuId(0), FaultInput::new(Gpa::new(gpa), AccessKind::Read), QUIET)
}

/// The file keeps the VM: what is done to it still takes pages from memslots. The last reference ends both.
#[test]
fn a_vm_that_is_closed_first_lives_as_long_as_its_files() {
    let vm = vm(|_| {});
    let fresh = vm.stats().host.pools;
    let gmem = add(&vm, 0, 0).unwrap();
    fault(&vm, 3 * PAGE).unwrap();
    vm.close_vm_descriptor(QUIET).unwrap();
    assert_eq!(vm.close_vm_descriptor(QUIET), Err(VmError::Closed));
    assert_eq!(add(&vm, 1, 1 << 30), Err(VmError::Closed));
    assert_eq!(show(&vm, 1, 1 << 30, gmem), Err(VmError::Closed));
    assert!(!vm.is_destroyed() && vm.tables(QUIET).leaves().unwrap().len() == 1);
    vm.punch_hole(gmem, 0, M2 * PAGE, QUIET).unwrap();
    assert!(vm.tables(QUIET).leaves().unwrap().is_empty());
    vm.check_quiescent(&mut CheckHistory::new()).unwrap();
    vm.close_descriptor(gmem, QUIET).unwrap();
    assert!(vm.is_destroyed() && vm.memslots(QUIET).iter().next().is_none());
    assert_eq!(vm.stats().host.pools, fresh);
    vm.check_quiescent(&mut CheckHistory::new()).unwrap();
}

#[test]
fn a_vm_without_files_ends_with_its_descriptor() {
    let vm = vm(|_| {});
    let gmem = add(&vm, 0, 0).unwrap();
    vm.remove_memslot(SlotId(0), QUIET).unwrap();
    vm.close_guest_memfd(gmem, QUIET).unwrap();
    assert!(!vm.is_destroyed());
    vm.close_vm_descriptor(QUIET).unwrap();
    assert!(vm.is_destroyed());
}

#[test]
fn a_file_closed_under_its_slot_gives_everything_back_and_the_slot_stays() {
    let vm = vm(|_| {});
    let fresh = vm.stats().host.pools;
    let gmem = add(&vm, 0, 0).unwrap();
    assert!(matches!(fault(&vm, 3 * PAGE), Ok(Action::Resume(Resumed::Fixed { .. }))));
    let seq = vm.invalidation().seq();
    vm.close_descriptor(gmem, QUIET).unwrap();
    assert_eq!((vm.stats().host.pools, vm.invalidation().seq()), (fresh, seq + 1));
    assert!(vm.tables(QUIET).leaves().unwrap().is_empty());
    assert_eq!(vm.close_descriptor(gmem, QUIET), Err(VmError::NoSuchGmem { id: gmem }));
    let exit = fault(&vm, 3 * PAGE).unwrap();
    let Action::MemoryFault(exit) = exit else { panic!("{exit:?}") };
    assert_eq!((exit.gpa, exit.reason), (Gpa::new(3 * PAGE), MemoryFaultReason::FileClosed));
    let read = vm.guest_read(Gpa::new(0), &mut [0], QUIET);
    assert!(matches!(read, Err(GuestAccessError::Backing(gmem::GetError::Closed { .. }))), "{read:?}");
    let moved = vm.move_memslot(SlotId(0), Gpa::new(1 << 30), QUIET);
    assert_eq!(moved, Err(MemslotError::NoSuchGmem { id: gmem }.into()));
    assert_eq!(fault(&vm, 3 * PAGE), Ok(Action::MemoryFault(exit)), "it is where it was");
    vm.check_quiescent(&mut CheckHistory::new()).unwrap();
    vm.remove_memslot(SlotId(0), QUIET).unwrap();
    assert_eq!(fault(&vm, 3 * PAGE), Ok(Action::Mmio { gpa: Gpa::new(3 * PAGE) }));
    add(&vm, 0, 0).unwrap();
    vm.check_quiescent(&mut CheckHistory::new()).unwrap();
}

#[test]
fn a_refused_slot_keeps_no_file_open_and_a_closed_file_is_not_bound() {
    let vm = vm(|_| {});
    let gmem = add(&vm, 0, 0).unwrap();
    assert!(matches!(show(&vm, 1, 1 << 30, gmem), Err(VmError::Memslot(MemslotError::Bind(_)))));
    vm.close_descriptor(gmem, QUIET).unwrap();
    assert!(vm.gmem(gmem, QUIET).is_none());
    assert!(matches!(show(&vm, 1, 1 << 30, gmem), Err(VmError::Memslot(MemslotError::NoSuchGmem { .. }))));
}

#[test]
fn a_process_that_maps_a_file_keeps_it_open() {
    let vm = vm(|_| {});
    let gmem = add(&vm, 0, 0).unwrap();
    let inode = vm.gmem(gmem, QUIET).unwrap();
    let (at, what) = (Hva::new(HVA), What::Gmem { inode, first: PageIndex(0) });
    let (prot, sharing) = (Prot::READ_WRITE, Sharing::Shared);
    vm.mm().map(MapRequest { at, len_bytes: PAGE, prot, sharing, what }, QUIET).unwrap();
    assert_eq!(vm.close_descriptor(gmem, QUIET), Err(VmError::GmemInUse { id: gmem }));
    vm.mm().munmap(at, PAGE, vm.kernel(QUIET)).unwrap();
    assert_eq!(vm.close_descriptor(gmem, QUIET), Ok(()));
}

#[test]
fn a_batch_holds_what_the_host_touched_until_it_is_full_or_in_the_way() {
    let small = PagePolicy::of(PageSize::Size4K);
    let gmem = GmemPolicy { batches: LruBatches::On, ..GmemPolicy::DEFAULT };
    let vm = vm(|config| (config.pages, config.gmem) = (small, gmem));
    let id = add(&vm, 0, 0).unwrap();
    let inode = vm.gmem(id, QUIET).unwrap();
    let (at, what) = (Hva::new(HVA), What::Gmem { inode: inode.clone(), first: PageIndex(0) });
    let (len_bytes, prot, sharing) = (M2 * PAGE, Prot::READ_WRITE, Sharing::Shared);
    vm.mm().map(MapRequest { at, len_bytes, prot, sharing, what }, QUIET).unwrap();
    let touch = |page: u64| {
        vm.mm().with_page(Hva::new(HVA + page * PAGE), UserAccess::Write, vm.kernel(QUIET), &mut |_| Ok(())).unwrap();
    };
    let refs = |page: u64| {
        let sfn = inode.peek(PageIndex(page), QUIET).unwrap().sfn;
        vm.host().lock(QUIET).folios().get(sfn).unwrap().meta.refs
    };
    touch(0);
    assert_eq!(refs(0), 3, "the page cache, the page table and the batch");
    (1..31).for_each(touch);
    assert_eq!((refs(0), refs(30)), (2, 2), "the batch was full");
    touch(31);
    assert_eq!(refs(31), 3);
    vm.convert(id, 31 * PAGE, PAGE, Shareability::PRIVATE, QUIET).unwrap();
    assert_eq!(refs(31), 1);
}

#[test]
fn attributes_that_there_is_no_memory_for_are_as_they_were() {
    let gmem = Generation::V7_3.policy();
    let vm = vm(|config| (config.kind, config.gmem) = (VmKind::SwProtected, gmem));
    let set = |first: u64, nr_pages: u64, attributes: u64| {
        let wanted = MemoryAttributes { address: first * PAGE, size: nr_pages * PAGE, attributes, flags: 0 };
        vm.set_memory_attributes(&wanted, QUIET)
    };
    set(3, 1, MEMORY_ATTRIBUTE_PRIVATE).unwrap();
    vm.host().lock(QUIET).occupy(u64::MAX);
    let refused = set(8, 128, MEMORY_ATTRIBUTE_PRIVATE).unwrap_err();
    assert_eq!((refused, refused.errno()), (AttributeError::NoMemory { gfn: Gfn::new(64) }, Errno::NoMem));
    let private = (0..512).filter(|&gfn| vm.memory_attribute(Gfn::new(gfn), QUIET).is_private());
    assert_eq!(private.collect::<Vec<_>>(), [3]);
    assert_eq!(set(8, 56, MEMORY_ATTRIBUTE_PRIVATE), Ok(()), "there is a node for these");
    assert_eq!(set(0, 64, 0), Ok(()), "nothing is reserved for no attributes");
    vm.host().lock(QUIET).vacate(u64::MAX);
    assert_eq!(set(8, 128, MEMORY_ATTRIBUTE_PRIVATE), Ok(()));
}
