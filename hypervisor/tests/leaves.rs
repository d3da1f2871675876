//! What becomes of leaves after they are made: aging, the fast path, the NX workaround, entries for devices, mapping ahead.

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use hypervisor::dirty::DirtyLogging;
use hypervisor::tdp::{AdType, Entry, Level, MMIO_GENERATION_BITS, Rights, Spte};
use hypervisor::*;
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const CPU: VcpuId = VcpuId(0);
const SLOT: SlotId = SlotId(0);
const M2: u64 = 2 << 20;
const MEMORY: u64 = 16 << 20;
const FORMATS: [TdpFormat; 2] = [TdpFormat::Npt, TdpFormat::Ept];

fn vm(format: TdpFormat, page: PageSize, params: MmuParams) -> (Vm, GmemId) {
    let layout = RamLayout::pc(MEMORY, page).unwrap();
    let pages = PagePolicy::of(page);
    let plan = SystemMemoryPlan::for_guest(2 * layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
    let config = VmConfig { format, maxphyaddr: 40, ..VmConfig::new(pages, plan.host) };
    let vm = Vm::with_params(memory, &config, params).unwrap();
    let gmem = vm.add_ram(&layout, SLOT, QUIET).unwrap();
    (vm, gmem)
}

fn fault(vm: &Vm, gpa: u64, kind: AccessKind, entry: EntryState) -> Action {
    vm.handle_fault(CPU, FaultInput { entry, ..FaultInput::new(Gpa::new(gpa), kind) }, QUIET).unwrap()
}

const fn fixed(size: PageSize) -> Action {
    Action::Resume(Resumed::Fixed { size })
}

/// The entry at which the walk for `gpa` ends.
fn entry(vm: &Vm, gpa: u64) -> (Level, Spte) {
    let gfn = Gpa::new(gpa).frame();
    let (mut table, mut level) = (vm.root(), Level::ROOT);
    loop {
        let spte = Spte::from_raw(vm.memory().load(table.wrapping_add(8 * level.slot(gfn))).unwrap());
        match (vm.format().read(spte, level), level.below()) {
            (Entry::Table(next), Some(below)) => (table, level) = (next, below),
            _ => return (level, spte),
        }
    }
}

#[test]
fn aging_finds_what_was_used_with_and_without_accessed_flags() {
    for (format, ad) in [
        (TdpFormat::Npt, AdType::Enabled),
        (TdpFormat::Ept, AdType::Enabled),
        (TdpFormat::Ept, AdType::Disabled),
        (TdpFormat::Ept, AdType::WriteProtectOnly),
    ] {
        let (vm, _) = vm(format, PageSize::Size4K, MmuParams { ad, ..MmuParams::default() });
        let young = |aging| vm.age_range(Gfn::new(0), 16, aging, QUIET).unwrap();
        assert!(!young(Aging::Clear), "nothing is mapped");
        assert_eq!(fault(&vm, 0x3000, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size4K));
        assert!(young(Aging::Test) && young(Aging::Test) && young(Aging::Clear) && !young(Aging::Clear));
        assert_eq!(vm.take_flush(CPU, QUIET), None, "aging flushes nothing");
        assert_eq!(vm.stats().tables.mapped, [1, 0, 0], "an aged leaf stays");
        let (level, aged) = entry(&vm, 0x3000);
        if ad == AdType::Disabled {
            assert_eq!(aged.raw() & 7, 0, "the processor sees nothing there");
            assert_eq!(fault(&vm, 0x3000, AccessKind::Read, EntryState::NotPresent), fixed(PageSize::Size4K));
            assert!(young(Aging::Test));
            let (_, read) = entry(&vm, 0x3000);
            assert!(format.allows(read, level, AccessKind::Execute) && !format.allows(read, level, AccessKind::Write));
            assert_eq!(fault(&vm, 0x3000, AccessKind::Write, EntryState::Denied), fixed(PageSize::Size4K));
            assert!(format.allows(entry(&vm, 0x3000).1, level, AccessKind::Write));
            assert_eq!(vm.stats().faults.fast, 2, "both without a lock");
        } else {
            assert!(format.allows(aged, level, AccessKind::Write) && !format.is_accessed(aged));
        }
    }
}

#[test]
fn a_logged_write_to_a_mapped_page_takes_the_fast_path_and_a_huge_leaf_does_not() {
    for format in FORMATS {
        let params = MmuParams { eager_page_split: EagerPageSplit::Off, ..MmuParams::default() };
        let (vm, _) = vm(format, PageSize::Size2M, params);
        assert_eq!(fault(&vm, 0, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size2M));
        vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
        assert_eq!(fault(&vm, 0x5000, AccessKind::Write, EntryState::Denied), fixed(PageSize::Size4K));
        assert_eq!(vm.stats().faults.fast, 0, "the huge leaf is split first");
        assert_eq!(fault(&vm, 0x6000, AccessKind::Write, EntryState::Denied), fixed(PageSize::Size4K));
        assert_eq!(fault(&vm, 0x6000, AccessKind::Write, EntryState::Denied), Action::Resume(Resumed::Spurious));
        assert_eq!(vm.stats().faults.fast, 1);
        let mut words = Vec::new();
        vm.get_dirty_log(SLOT, &mut |word, bits| words.push((word, bits)), QUIET).unwrap();
        assert_eq!(words, [(0, 1 << 5 | 1 << 6)]);
    }
}

#[test]
fn a_fetch_from_a_huge_leaf_maps_small_ones_until_the_worker_gives_them_up() {
    for format in FORMATS {
        let params = MmuParams { nx_huge_pages: NxHugePages::On, ..MmuParams::default() };
        let (vm, _) = vm(format, PageSize::Size2M, params);
        let no_huge_code = || {
            let leaves = vm.tables(QUIET).leaves().unwrap();
            assert!(leaves.iter().all(|l| l.size == PageSize::Size4K || !l.rights.contains(Rights::EXECUTE)));
        };
        assert_eq!(fault(&vm, 0x1000, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size2M));
        no_huge_code();
        assert_eq!(fault(&vm, 0x2000, AccessKind::Execute, EntryState::Denied), Action::Resume(Resumed::Spurious));
        assert_eq!(vm.stats().tables.mapped, [512, 0, 0], "split, every part may be executed");
        assert_eq!(fault(&vm, M2, AccessKind::Execute, EntryState::NotPresent), fixed(PageSize::Size4K));
        assert_eq!(fault(&vm, M2 + 0x1000, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size4K));
        no_huge_code();
        assert_eq!(vm.tables(QUIET).nx_tables(QUIET), [(Gfn::new(0), 512), (Gfn::new(512), 512)]);
        assert_eq!(vm.recover_nx_huge_pages(60, QUIET), Ok(1), "one in sixty, rounded up");
        assert_eq!(vm.take_flush(CPU, QUIET), Some(FlushRequest::Range { first: Gfn::new(0), nr_pages: 512 }));
        assert_eq!(fault(&vm, 0x1000, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size2M));
        vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
        assert_eq!(vm.recover_nx_huge_pages(1, QUIET), Ok(0), "not in a logged slot");
        vm.set_dirty_logging(SLOT, DirtyLogging::Off, QUIET).unwrap();
        no_huge_code();
        vm.set_nx_huge_pages(NxHugePages::Off, QUIET).unwrap();
        assert_eq!(vm.stats().tables.mapped, [0; 3]);
        assert_eq!(vm.tables(QUIET).nx_tables(QUIET), []);
        assert_eq!(fault(&vm, 0x2000, AccessKind::Execute, EntryState::NotPresent), fixed(PageSize::Size2M));
    }
}

#[test]
fn a_device_is_known_from_its_entry_until_memslots_change() {
    for format in FORMATS {
        let (vm, _) = vm(format, PageSize::Size4K, MmuParams::default());
        let device = 0xfee0_0020;
        let mmio = Action::Mmio { gpa: Gpa::new(device) };
        assert_eq!(fault(&vm, device, AccessKind::Write, EntryState::NotPresent), mmio);
        let (level, spte) = entry(&vm, device);
        let Entry::Mmio(found) = format.read(spte, level) else { panic!("{spte:x?}") };
        assert_eq!(found.gfn, Gpa::new(device).frame());
        assert_eq!(fault(&vm, device, AccessKind::Read, EntryState::Reserved), mmio);
        assert_eq!(vm.stats().faults.mmio_cached, 0, "the processor's own cache was first");
        let other = 0xfec0_0000;
        assert_eq!(fault(&vm, other, AccessKind::Read, EntryState::NotPresent), Action::Mmio { gpa: Gpa::new(other) });
        assert_eq!(fault(&vm, device, AccessKind::Read, EntryState::Reserved), mmio);
        assert_eq!(vm.stats().faults.mmio_cached, 1);
        let gmem = vm.create_guest_memfd(0x1000, GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
        let spec = MemSlotSpec {
            id: SlotId(7),
            gpa: Gpa::new(device & !0xfff),
            len_bytes: 0x1000,
            flags: SlotFlags::empty(),
            gmem,
            offset_bytes: 0,
        };
        vm.add_memslot(&spec, QUIET).unwrap();
        assert_eq!(fault(&vm, device, AccessKind::Write, EntryState::Reserved), fixed(PageSize::Size4K));
        vm.remove_memslot(SlotId(7), QUIET).unwrap();
        assert_eq!(fault(&vm, other, AccessKind::Read, EntryState::Reserved), Action::Mmio { gpa: Gpa::new(other) });
        assert_eq!(vm.stats().faults.mmio_cached, 1, "made before the slots changed: looked up again");
        assert_eq!(fault(&vm, device, AccessKind::Write, EntryState::NotPresent), mmio);
    }
}

#[test]
fn a_generation_that_starts_over_revives_no_old_entry() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size4K, MmuParams::default());
    let device = 0xfee0_0000;
    assert_eq!(fault(&vm, device, AccessKind::Read, EntryState::NotPresent), Action::Mmio { gpa: Gpa::new(device) });
    let generation = || vm.memslots(QUIET).generation();
    let (start, bits) = (generation(), MMIO_GENERATION_BITS);
    while generation() < start + (1 << bits) {
        vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
        vm.set_dirty_logging(SLOT, DirtyLogging::Off, QUIET).unwrap();
    }
    assert_eq!(generation() % (1 << bits), start % (1 << bits), "the bits that an entry keeps are the same");
    assert_eq!(fault(&vm, device, AccessKind::Read, EntryState::Reserved), Action::Mmio { gpa: Gpa::new(device) });
    assert_eq!(vm.stats().faults.mmio_cached, 0);
}

#[test]
fn a_guest_that_probes_everywhere_does_not_use_up_the_tables() {
    let (vm, _) = vm(TdpFormat::Ept, PageSize::Size4K, MmuParams::default());
    for n in 0..4 * hypervisor::mmio::MOST_TABLES {
        let gpa = (1 << 36) + n * M2;
        assert_eq!(fault(&vm, gpa, AccessKind::Read, EntryState::NotPresent), Action::Mmio { gpa: Gpa::new(gpa) });
    }
    let tables: u64 = vm.stats().tables.tables.iter().sum();
    assert!(tables < hypervisor::mmio::MOST_TABLES + 8, "{tables}");
    assert_eq!(fault(&vm, 0, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size4K));
}

#[test]
fn leaves_over_the_ends_of_a_range_are_split_and_no_others() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size2M, MmuParams::default());
    (0..4).for_each(|n| {
        assert_eq!(fault(&vm, n * M2, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size2M))
    });
    vm.split_at_ends(Gfn::new(512), 1024 + 7, QUIET).unwrap();
    assert_eq!(vm.stats().tables.mapped, [512, 3, 0]);
    assert_eq!(vm.take_flush(CPU, QUIET), None, "it translates the same");
    let sizes: Vec<_> = (0..4).map(|n| entry(&vm, n * M2).0.leaf_size()).collect();
    let huge = Some(PageSize::Size2M);
    assert_eq!(sizes, [huge, huge, huge, Some(PageSize::Size4K)]);
}

#[test]
fn mapping_ahead_marks_nothing_accessed_and_refuses_by_name() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size4K, MmuParams::default());
    let go = |gpa, len_bytes, flags| {
        let mut range = PreFault { gpa: Gpa::new(gpa), len_bytes, flags };
        (vm.pre_fault_memory(CPU, &mut range, &mut || true, QUIET), range)
    };
    for (gpa, len_bytes, flags) in [(1, 4096, 0), (0, 0, 0), (0, 1, 0), (0, 4096, 1), (!0xfff, 8192, 0)] {
        let (refused, left) = go(gpa, len_bytes, flags);
        let gpa = Gpa::new(gpa);
        assert_eq!(refused, Err(PreFaultError::Invalid { gpa, len_bytes, flags }));
        assert_eq!((left.gpa, left.len_bytes), (gpa, len_bytes));
    }
    assert_eq!(go(MEMORY, 4096, 0).0, Err(PreFaultError::NoSlot { gpa: Gpa::new(MEMORY) }));
    let (done, left) = go(MEMORY - 0x2000, 0x5000, 0);
    assert_eq!((done, left.gpa, left.len_bytes), (Ok(()), Gpa::new(MEMORY), 0x3000), "as far as there is memory");
    assert!(!vm.age_range(Gfn::new(0), 1 << 20, Aging::Test, QUIET).unwrap());
    assert_eq!(vm.stats().tables.mapped, [2, 0, 0]);
    assert_eq!(vm.stats().faults.mmio, 0);
    let mut range = PreFault { gpa: Gpa::new(0), len_bytes: 0x4000, flags: 0 };
    let mut calls = 0;
    let mut twice = || (calls += 1, calls < 3).1;
    assert_eq!(vm.pre_fault_memory(CPU, &mut range, &mut twice, QUIET), Ok(()));
    assert_eq!((range.gpa, range.len_bytes), (Gpa::new(0x2000), 0x2000));
    assert_eq!(vm.pre_fault_memory(CPU, &mut range, &mut || false, QUIET), Err(PreFaultError::Interrupted));
}

#[test]
fn one_fault_that_comes_again_and_again_is_counted() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size4K, MmuParams::default());
    fault(&vm, 0, AccessKind::Read, EntryState::NotPresent);
    (0..10).for_each(|_| {
        assert_eq!(fault(&vm, 0, AccessKind::Read, EntryState::NotPresent), Action::Resume(Resumed::Spurious))
    });
    assert_eq!(vm.stats().faults.most_repeats, 9);
    fault(&vm, 0x1000, AccessKind::Read, EntryState::NotPresent);
    fault(&vm, 0, AccessKind::Read, EntryState::NotPresent);
    assert_eq!(vm.stats().faults.most_repeats, 9);
}

proptest! {
    #[test]
    fn what_is_left_to_map_ahead_shrinks_exactly_when_the_call_succeeds(
        huge in any::<bool>(), first in 0_u64..5000, nr_pages in 1_u64..5000, punch in prop::option::of(0_u64..4000),
    ) {
        let page = if huge { PageSize::Size2M } else { PageSize::Size4K };
        let (vm, gmem) = vm(TdpFormat::Ept, page, MmuParams::default());
        if let Some(index) = punch {
            vm.convert(gmem, index << 12, 0x1000, Shareability::PRIVATE, QUIET).unwrap();
        }
        let before = PreFault { gpa: Gpa::new(first << 12), len_bytes: nr_pages << 12, flags: 0 };
        let mut left = before;
        let done = vm.pre_fault_memory(CPU, &mut left, &mut || true, QUIET);
        prop_assert_eq!(done.is_ok(), left.len_bytes < before.len_bytes);
        prop_assert_eq!(left.gpa.raw() + left.len_bytes, before.gpa.raw() + before.len_bytes, "the end stays");
        prop_assert!(done.is_ok() || left == before);
        let mapped_to = left.gpa.frame().raw();
        prop_assert_eq!(mapped_to, (first + nr_pages).min((MEMORY >> 12).max(first)), "up to the end of memory");
        for gfn in (first..mapped_to).step_by(37) {
            let (level, spte) = entry(&vm, gfn << 12);
            prop_assert!(vm.format().allows(spte, level, AccessKind::Read));
        }
    }
}

#[test]
fn zapping_fast_gives_the_root_up_and_every_processor_loads_another() {
    for format in FORMATS {
        let (vm, gmem) = vm(format, PageSize::Size4K, MmuParams::default());
        for gpa in (0..MEMORY).step_by(0x1000) {
            assert_eq!(fault(&vm, gpa, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size4K));
        }
        let (root, free) = (vm.root(), vm.stats().host.free_frames);
        assert_eq!(vm.take_root(CPU), Ok(None));
        vm.zap_all_fast(QUIET).unwrap();
        assert_ne!(vm.root(), root);
        assert_eq!((vm.stats().tables.mapped, vm.stats().tables.tables), ([0; 3], [0, 0, 0, 1]));
        assert_eq!(vm.tables(QUIET).nr_invalid_roots(QUIET), 0);
        assert!(vm.stats().host.free_frames > free, "the tables went back");
        assert_eq!(fault(&vm, 0, AccessKind::Write, EntryState::NotPresent), Action::Resume(Resumed::Retry));
        assert_eq!(vm.take_root(CPU), Ok(Some(vm.root_register())));
        assert_eq!((vm.take_root(CPU), vm.take_flush(CPU, QUIET)), (Ok(None), Some(FlushRequest::All)));
        assert_eq!(fault(&vm, 0, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size4K));
        vm.punch_hole(gmem, 0, 0x1000, QUIET).unwrap();
        assert_eq!(vm.stats().tables.mapped, [0; 3]);
    }
}

#[test]
fn deleting_a_slot_zaps_everything_where_the_quirk_says_so() {
    for (slot_zap, left) in [(SlotZap::Leaves, 1), (SlotZap::All, 0)] {
        let (vm, _) = vm(TdpFormat::Npt, PageSize::Size4K, MmuParams { slot_zap, ..MmuParams::default() });
        let gmem = vm.create_guest_memfd(0x1000, GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
        let gpa = Gpa::new(1 << 32);
        let flags = SlotFlags::empty();
        let spec = MemSlotSpec { id: SlotId(7), gpa, len_bytes: 0x1000, flags, gmem, offset_bytes: 0 };
        vm.add_memslot(&spec, QUIET).unwrap();
        assert_eq!(fault(&vm, 0, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size4K));
        assert_eq!(fault(&vm, 1 << 32, AccessKind::Write, EntryState::NotPresent), fixed(PageSize::Size4K));
        vm.remove_memslot(SlotId(7), QUIET).unwrap();
        assert_eq!(vm.stats().tables.mapped, [left, 0, 0]);
        assert_eq!(vm.take_root(CPU).unwrap().is_some(), slot_zap == SlotZap::All);
    }
}
