//! VM-wide memory attributes: errnos, who is asked, and the record of mixed huge pages against recomputation.

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Errno, Gfn, Gpa, Hva, PageSize, Sfn};
use gmem::mm::{MapRequest, Prot, Sharing, ThpChoice, What};
use gmem::policy::{Generation, GmemPolicy, OrderRule};
use gmem::{FolioPolicy, HostConfig, Shareability};
use hypervisor::attributes::Mixture;
use hypervisor::*;
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = 0x1000;
const M2: u64 = PageSize::Size2M.frames();
const HVA: u64 = 0x7000_0000_0000;
/// Where the slots are: two of them, neither aligned, with a hole between.
const SLOTS: [(u64, u64); 2] = [(0x100, 3 * M2), (0x100 + 3 * M2 + 8, 2 * M2)];
const FRAMES: u64 = 6 * M2 + 0x200;

fn vm(kind: VmKind, generation: Generation) -> Vm {
    let memory = SystemMemory::flat(64 << 20).unwrap();
    let host = HostConfig { first: Sfn::new(512), nr_frames: 15 * 1024, pools: vec![] };
    let pages = PagePolicy { folios: FolioPolicy::Buddy { largest: PageSize::Size2M }, max_level: PageSize::Size1G };
    let gmem = GmemPolicy { order: OrderRule::Contained, ..generation.policy() };
    let config = VmConfig { maxphyaddr: 36, kind, gmem, ..VmConfig::new(pages, host) };
    let vm = Vm::new(memory, &config).unwrap();
    let at = Hva::new(HVA);
    let what = What::Anonymous { thp: ThpChoice::Huge };
    let request =
        MapRequest { at, len_bytes: 2 * FRAMES * PAGE, prot: Prot::READ_WRITE, sharing: Sharing::Private, what };
    vm.mm().map(request, QUIET).unwrap();
    vm
}

fn add(vm: &Vm, n: usize) {
    let (first, nr_pages) = SLOTS[n];
    let gmem = vm.create_guest_memfd((first + nr_pages) * PAGE, 0, QUIET).unwrap();
    let region = UserMemoryRegion2 {
        slot: n as u32,
        flags: SlotFlags::GUEST_MEMFD.bits(),
        guest_phys_addr: first * PAGE,
        memory_size: nr_pages * PAGE,
        userspace_addr: HVA + first * PAGE,
        guest_memfd_offset: first * PAGE,
        guest_memfd: MemFd::Gmem(gmem),
    };
    vm.set_user_memory_region2(&region, QUIET).unwrap();
}

fn set(vm: &Vm, first: u64, nr_pages: u64, to: Shareability) -> Result<(), AttributeError> {
    let attributes = if to.is_private() { MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
    let wanted = MemoryAttributes { address: first * PAGE, size: nr_pages * PAGE, attributes, flags: 0 };
    vm.set_memory_attributes(&wanted, QUIET)
}

#[test]
fn every_row_of_the_errno_table_holds() {
    let protected = vm(VmKind::SwProtected, Generation::V7_3);
    let base = MemoryAttributes { address: 0, size: PAGE, attributes: MEMORY_ATTRIBUTE_PRIVATE, flags: 0 };
    let rows = [
        ("flags", MemoryAttributes { flags: 1, ..base }),
        ("an attribute that is kept for later", MemoryAttributes { attributes: 1, ..base }),
        ("no size", MemoryAttributes { size: 0, ..base }),
        ("a size that is no page", MemoryAttributes { size: 1, ..base }),
        ("an address that is no page", MemoryAttributes { address: 1, ..base }),
        ("a range that wraps", MemoryAttributes { address: !0xfff, size: 2 * PAGE, ..base }),
    ];
    for (what, wanted) in rows {
        assert_eq!(protected.set_memory_attributes(&wanted, QUIET).unwrap_err().errno(), Errno::Inval, "{what}");
    }
    assert_eq!(protected.set_memory_attributes(&base, QUIET), Ok(()));
    let errno = |vm: Vm| vm.set_memory_attributes(&base, QUIET).map_err(|error| error.errno());
    assert_eq!(errno(vm(VmKind::Default, Generation::V7_3)), Err(Errno::Inval), "no private memory");
    assert_eq!(errno(vm(VmKind::SwProtected, Generation::Next)), Err(Errno::NoTty), "inodes say so themselves");
    assert_eq!(vm(VmKind::SwProtected, Generation::Next).supported_memory_attributes(), 0);
}

#[test]
fn setting_what_is_so_already_and_what_no_slot_shows_disturbs_nobody() {
    let vm = vm(VmKind::SwProtected, Generation::V7_3);
    add(&vm, 0);
    let seq = || vm.invalidation().seq();
    set(&vm, 0x5000, 16, Shareability::PRIVATE).unwrap();
    set(&vm, 0x100, 16, Shareability::SHARED).unwrap();
    assert_eq!(seq(), 0);
    set(&vm, 0x100, 16, Shareability::PRIVATE).unwrap();
    set(&vm, 0x100, 16, Shareability::PRIVATE).unwrap();
    assert_eq!((seq(), vm.invalidation().in_progress()), (1, 0));
}

#[test]
fn a_huge_leaf_goes_with_its_first_page_that_changes_and_comes_back_with_the_last() {
    let vm = vm(VmKind::SwProtected, Generation::V7_3);
    add(&vm, 0);
    let fault = || vm.handle_fault(VcpuId(0), FaultInput::new(Gpa::new((M2 + 9) * PAGE), AccessKind::Write), QUIET);
    let fixed = |size| Ok(Action::Resume(Resumed::Fixed { size }));
    assert_eq!(fault(), fixed(PageSize::Size2M));
    set(&vm, M2 + 7, 1, Shareability::PRIVATE).unwrap();
    assert!(vm.tables(QUIET).leaves().unwrap().is_empty());
    assert_eq!(fault(), fixed(PageSize::Size4K));
    set(&vm, M2 + 7, 1, Shareability::SHARED).unwrap();
    vm.zap_all(QUIET).unwrap();
    assert_eq!(fault(), fixed(PageSize::Size2M));
    set(&vm, M2, M2, Shareability::PRIVATE).unwrap();
    assert_eq!(fault(), fixed(PageSize::Size2M), "all of it, from the inode this time");
    assert_eq!(vm.stats().folios, [0, 1, 0]);
}

#[derive(Clone, Debug)]
enum Op {
    Set { first: u64, nr_pages: u64, private: bool },
    Toggle { slot: usize },
    Fault { gfn: u64 },
    Track { gfn: u64 },
    Untrack,
}

fn op() -> impl Strategy<Value = Op> {
    let edge = prop_oneof![(0..FRAMES), (0..12_u64).prop_map(|n| n * M2 / 2), Just(0x100), Just(0x100 + 3 * M2)];
    let len = prop_oneof![1_u64..20, Just(M2), Just(2 * M2), 1..FRAMES];
    prop_oneof![
        5 => (edge, len, any::<bool>()).prop_map(|(first, nr_pages, private)| Op::Set { first, nr_pages, private }),
        1 => (0..2_usize).prop_map(|slot| Op::Toggle { slot }),
        5 => (0..FRAMES).prop_map(|gfn| Op::Fault { gfn }),
        1 => (0..FRAMES).prop_map(|gfn| Op::Track { gfn }),
        1 => Just(Op::Untrack),
    ]
}

/// D1, D7 and D8 recomputed from one attribute for each guest frame and a list of tracked frames.
fn check(vm: &Vm, private: &[bool], tracked: &[(u16, u64)]) {
    for (gfn, &private) in private.iter().enumerate().step_by(61) {
        assert_eq!(vm.memory_attribute(Gfn::new(gfn as u64), QUIET).is_private(), private, "frame {gfn:#x}");
    }
    let slots = vm.memslots(QUIET);
    for slot in slots.slots() {
        let info = slot.info();
        for size in [PageSize::Size2M, PageSize::Size1G] {
            for base in (0..FRAMES).step_by(size.frames() as usize) {
                let gfn = Gfn::new(base);
                let inside = base >= info.first.raw() && base + size.frames() <= info.end().raw();
                let differ =
                    inside && private[base as usize..][..size.frames() as usize].windows(2).any(|w| w[0] != w[1]);
                if base >= info.end().raw() || base + size.frames() <= info.first.raw() {
                    continue;
                }
                let mixture = if differ { Mixture::Mixed } else { Mixture::Uniform };
                assert_eq!(slot.lpage().mixture(gfn, size, QUIET), mixture, "{size} at {base:#x}");
                let of_page = |&&(id, at): &&(u16, u64)| id == info.id.0 && at / size.frames() * size.frames() == base;
                let reasons = if inside { tracked.iter().filter(of_page).count() as u32 } else { 1 };
                assert_eq!(slot.lpage().reasons(gfn, size, QUIET), reasons, "{size} at {base:#x}");
            }
        }
        let stored = slot.lpage().list(QUIET);
        assert!(stored.iter().all(|&(.., reasons, mixture)| reasons > 0 || mixture == Mixture::Mixed));
    }
    for leaf in vm.tables(QUIET).leaves().unwrap() {
        let covered = &private[leaf.gfn.raw() as usize..][..leaf.size.frames() as usize];
        assert!(covered.windows(2).all(|w| w[0] == w[1]), "{leaf:?} covers private and shared frames");
    }
}

proptest! {
    #[test]
    fn the_record_of_mixed_pages_is_what_the_attributes_say(ops in prop::collection::vec(op(), 0..30)) {
        let vm = vm(VmKind::SwProtected, Generation::V7_3);
        let mut private = vec![false; (FRAMES + M2) as usize];
        let mut tracked: Vec<(u16, u64)> = Vec::new();
        let mut present = [false; 2];
        for op in ops {
            match op {
                Op::Set { first, nr_pages, private: to } => {
                    let nr_pages = nr_pages.min(FRAMES - first);
                    if nr_pages > 0 {
                        set(&vm, first, nr_pages, Shareability::ALL[usize::from(!to)]).unwrap();
                        private[first as usize..(first + nr_pages) as usize].fill(to);
                    }
                }
                Op::Toggle { slot } => {
                    match present[slot] {
                        true => vm.remove_memslot(SlotId(slot as u16), QUIET).unwrap(),
                        false => add(&vm, slot),
                    }
                    present[slot] = !present[slot];
                    tracked.retain(|&(id, _)| id != slot as u16);
                }
                Op::Fault { gfn } => {
                    let input = FaultInput::new(Gpa::new(gfn * PAGE), AccessKind::Write);
                    // Memory may run out: inodes outlive their slots here.
                    let _ = vm.handle_fault(VcpuId(0), input, QUIET);
                }
                Op::Track { gfn } => {
                    if let Some(slot) = vm.memslots(QUIET).lookup(Gfn::new(gfn)) {
                        slot.lpage().disallow(Gfn::new(gfn), QUIET);
                        tracked.push((slot.info().id.0, gfn));
                    }
                }
                Op::Untrack => {
                    if let Some((id, gfn)) = tracked.pop() {
                        vm.memslots(QUIET).by_id(SlotId(id)).unwrap().lpage().allow(Gfn::new(gfn), QUIET);
                    }
                }
            }
            check(&vm, &private, &tracked);
        }
    }
}
