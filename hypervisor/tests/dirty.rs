//! Dirty logging through the crate's door: random writes and harvests under every way of finding writes, judged by a list
//! of what was written; splits and recoveries.

mod reader;

use std::collections::BTreeSet;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Spa};
use hypervisor::dirty::{DirtyLogError, DirtyLogging, RingSize, RingWithBitmap};
use hypervisor::tdp::AdType;
use hypervisor::*;
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const CPU: VcpuId = VcpuId(0);
const SLOT: SlotId = SlotId(0);
const M2: u64 = PageSize::Size2M.frames();
const PAGES: u64 = 4 * M2;

/// A processor with a TLB, which sets accessed and dirty flags, and logs where it is told to.
struct Processor {
    /// First guest frame, frames, first system frame, writable with the dirty flag set.
    tlb: Vec<(u64, u64, Spa, bool)>,
    /// Where it logs, and the index.
    pml: Option<(Spa, u16)>,
}

struct World {
    vm: Vm,
    cpu: Processor,
    flags: AdType,
    rings: bool,
}

impl World {
    fn new(format: TdpFormat, page: PageSize, params: MmuParams) -> World {
        let layout = RamLayout::pc(PAGES << 12, page).unwrap();
        let pages = PagePolicy::of(page);
        let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let config = VmConfig { format, maxphyaddr: 40, ..VmConfig::new(pages, plan.host) };
        let vm = Vm::with_params(memory, &config, params).unwrap();
        vm.add_ram(&layout, SLOT, QUIET).unwrap();
        let logs = format == TdpFormat::Ept && params.pml == Pml::On;
        let pml = logs.then(|| (vm.host().lock(QUIET).alloc_table().unwrap(), PML_ENTRIES - 1));
        let flags = if format == TdpFormat::Npt { AdType::Enabled } else { params.ad };
        let rings = params.dirty_ring.is_some();
        World { vm, cpu: Processor { tlb: Vec::new(), pml }, flags, rings }
    }

    fn walk(&self, gfn: u64) -> Option<reader::Translation> {
        reader::walk(self.vm.memory(), self.vm.format(), self.vm.root_register(), Gfn::new(gfn).base())
    }

    /// Leaves the guest and enters it again.
    fn exit(&mut self) {
        if let Some((page, index)) = &mut self.cpu.pml {
            self.vm.flush_pml_buffer(CPU, *page, *index, QUIET).unwrap();
            *index = PML_ENTRIES - 1;
        }
        match self.vm.take_flush(CPU, QUIET) {
            None => {}
            Some(FlushRequest::All) => self.cpu.tlb.clear(),
            Some(FlushRequest::Range { first, nr_pages }) => {
                let (from, to) = (first.raw(), first.raw().saturating_add(nr_pages));
                self.cpu.tlb.retain(|(base, frames, ..)| base + frames <= from || to <= *base);
            }
        }
    }

    /// One access of the guest, as often as it faults.
    fn access(&mut self, gfn: u64, kind: AccessKind) {
        let write = kind == AccessKind::Write;
        for _ in 0..8 {
            let cached = self.cpu.tlb.iter().find(|(base, frames, ..)| *base <= gfn && gfn < base + frames);
            if let Some((base, _, spa, dirty)) = cached.copied()
                && (dirty || !write)
            {
                if write {
                    self.vm.memory().store(spa.wrapping_add((gfn - base) << 12), 1_u8).unwrap();
                }
                return;
            }
            self.cpu.tlb.retain(|(base, frames, ..)| gfn < *base || base + frames <= gfn);
            let leaf = self.walk(gfn).filter(|leaf| leaf.writable || !write);
            let Some(leaf) = leaf else {
                let entry = if self.walk(gfn).is_some() { EntryState::Denied } else { EntryState::NotPresent };
                let input = FaultInput { entry, ..FaultInput::new(Gfn::new(gfn).base(), kind) };
                self.exit();
                let action = self.vm.handle_fault(CPU, input, QUIET).unwrap();
                assert!(matches!(action, Action::Resume(_)), "{action:?}");
                self.exit();
                continue;
            };
            if write
                && !leaf.dirty
                && let Some((page, index)) = self.cpu.pml
            {
                if index >= PML_ENTRIES {
                    self.exit();
                    continue;
                }
                self.vm.memory().store(page.wrapping_add(8 * u64::from(index)), gfn << 12).unwrap();
                self.cpu.pml = Some((page, index.wrapping_sub(1)));
            }
            if self.flags != AdType::Disabled {
                let (accessed, dirty) = match self.vm.format() {
                    TdpFormat::Npt => (1 << 5, 1 << 6),
                    TdpFormat::Ept => (1 << 8, 1 << 9),
                };
                let entry: u64 = self.vm.memory().load(leaf.entry).unwrap();
                let marked = entry | accessed | if write { dirty } else { 0 };
                self.vm.memory().compare_exchange_u64(leaf.entry, entry, marked).unwrap().unwrap();
            }
            let base = Gfn::new(gfn).align_down(leaf.size).raw();
            let head = leaf.spa.align_down(leaf.size);
            let dirty = write || leaf.dirty && leaf.writable || self.flags == AdType::Disabled && leaf.writable;
            self.cpu.tlb.push((base, leaf.size.frames(), head, dirty));
        }
        panic!("frame {gfn:#x} faults for ever");
    }

    /// What is written since, as the VMM learns it.
    fn harvest(&mut self) -> BTreeSet<u64> {
        self.exit();
        let mut found = BTreeSet::new();
        let mut words = Vec::new();
        let note = &mut |word: u64, bits: u64| {
            words.push((word, bits));
            found.extend((0..64).filter(|n| bits >> n & 1 == 1).map(|n| word * 64 + n));
        };
        if self.rings {
            let mut pages = Vec::new();
            self.vm.collect_dirty_ring(CPU, usize::MAX, &mut pages, QUIET).unwrap();
            found.extend(pages.iter().map(|page| page.page));
            assert_eq!(self.vm.reset_dirty_rings(QUIET), Ok(pages.len() as u64));
        } else {
            self.vm.get_dirty_log(SLOT, note, QUIET).unwrap();
            for (word, bits) in words {
                match self.vm.clear_dirty_log(SLOT, word * 64, 64, &[bits], QUIET) {
                    Ok(()) | Err(DirtyLogError::NotManual) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        self.exit();
        found
    }

    fn largest(&self) -> BTreeSet<PageSize> {
        self.vm.tables(QUIET).leaves().unwrap().iter().map(|leaf| leaf.size).collect()
    }
}

fn params() -> impl Strategy<Value = (TdpFormat, PageSize, MmuParams)> {
    let format = prop_oneof![Just(TdpFormat::Npt), Just(TdpFormat::Ept)];
    let page = prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M)];
    let ad = prop_oneof![Just(AdType::Enabled), Just(AdType::Disabled), Just(AdType::WriteProtectOnly)];
    let split = prop_oneof![Just(EagerPageSplit::On), Just(EagerPageSplit::Off)];
    let manual = prop_oneof![Just(ManualProtect::Off), Just(ManualProtect::On), Just(ManualProtect::InitiallySet)];
    (format, page, ad, split, manual, any::<bool>(), prop::bool::weighted(0.25)).prop_map(
        |(format, page, ad, eager_page_split, manual_protect, pml, ring)| {
            let pml = if pml && ad == AdType::Enabled { Pml::On } else { Pml::Off };
            let size = RingSize::of_bytes(1 << 16).unwrap();
            let dirty_ring = ring.then_some(DirtyRingConfig { size, bitmap: RingWithBitmap::No });
            let params = MmuParams { ad, eager_page_split, pml, manual_protect, dirty_ring, ..MmuParams::default() };
            (format, page, params)
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Access { gfn: u64, kind: AccessKind },
    HostWrite { gfn: u64 },
    Harvest,
    Exit,
    Zap { first: u64, nr_pages: u64 },
    Age,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let gfn = || (0_u64..4, 0_u64..6).prop_map(|(block, n)| block * M2 + n * 97);
    let kind = prop_oneof![3 => Just(AccessKind::Write), 2 => Just(AccessKind::Read), 1 => Just(AccessKind::Execute)];
    prop_oneof![
        12 => (gfn(), kind).prop_map(|(gfn, kind)| Step::Access { gfn, kind }),
        2 => gfn().prop_map(|gfn| Step::HostWrite { gfn }),
        3 => Just(Step::Harvest),
        2 => Just(Step::Exit),
        1 => (gfn(), 1_u64..M2).prop_map(|(first, nr_pages)| Step::Zap { first, nr_pages }),
        1 => Just(Step::Age),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn no_write_to_a_logged_page_is_lost(
        (format, page, params) in params(),
        warm in any::<bool>(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(format, page, params);
        if warm {
            (0..PAGES).step_by(97).for_each(|gfn| world.access(gfn, AccessKind::Write));
        }
        world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
        world.exit();
        let host_is_logged = params.dirty_ring.is_none();
        let (mut written, mut touched) = (BTreeSet::new(), BTreeSet::new());
        if params.manual_protect == ManualProtect::InitiallySet && host_is_logged {
            touched.extend(0..PAGES);
        }
        for step in steps {
            match step {
                Step::Access { gfn, kind } => {
                    world.access(gfn, kind);
                    // A read of an unmapped page maps it writable, which counts as written.
                    touched.insert(gfn);
                    if kind == AccessKind::Write {
                        written.insert(gfn);
                    }
                }
                Step::HostWrite { gfn } => {
                    world.vm.guest_write(Gfn::new(gfn).base(), &[7], QUIET).unwrap();
                    if host_is_logged {
                        written.insert(gfn);
                        touched.insert(gfn);
                    }
                }
                Step::Harvest => {
                    let found = world.harvest();
                    prop_assert!(written.is_subset(&found), "written {written:x?}, found {found:x?}");
                    prop_assert!(found.is_subset(&touched), "touched {touched:x?}, found {found:x?}");
                    written.clear();
 touched.clear();
                }
                Step::Exit => world.exit(),
                Step::Zap { first, nr_pages } => {
                    world.vm.zap_range(Gfn::new(first), nr_pages, QUIET).unwrap();
                    world.exit();
                }
                Step::Age => {
                    world.vm.age_range(Gfn::new(0), PAGES, Aging::Clear, QUIET).unwrap();
                }
                Step::Restart => {
                    // What the processor logged and nobody fetched is lost when logging stops, as in KVM.
                    world.exit();
                    world.vm.set_dirty_logging(SLOT, DirtyLogging::Off, QUIET).unwrap();
                    world.exit();
                    world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
                    world.exit();
                    if host_is_logged {
                        // A new bitmap; entries of a ring stay.
                        written.clear();
                        touched.clear();
                    }
                    if !host_is_logged || params.manual_protect == ManualProtect::InitiallySet {
                        touched.extend(0..PAGES);
                    }
                }
            }
            if params.manual_protect != ManualProtect::InitiallySet || !host_is_logged {
                let writable_huge = world.vm.tables(QUIET).leaves().unwrap().into_iter().find(|leaf| {
                    leaf.size > PageSize::Size4K && leaf.rights.contains(hypervisor::tdp::Rights::WRITE)
                });
                prop_assert_eq!(writable_huge, None, "no writable leaf above 4K is in a logged slot");
            }
        }
        world.exit();
        let found = world.harvest();
        prop_assert!(written.is_subset(&found));
    }
}

#[test]
fn logging_splits_huge_leaves_and_stopping_puts_them_together_again() {
    for format in [TdpFormat::Npt, TdpFormat::Ept] {
        for eager_page_split in [EagerPageSplit::On, EagerPageSplit::Off] {
            let mut world =
                World::new(format, PageSize::Size2M, MmuParams { eager_page_split, ..MmuParams::default() });
            (0..4).for_each(|n| world.access(n * M2, AccessKind::Write));
            let before = world.vm.tables(QUIET).leaves().unwrap();
            let frames: Vec<Spa> = (0..PAGES).map(|gfn| world.walk(gfn).unwrap().spa).collect();
            assert_eq!(world.largest(), [PageSize::Size2M].into());
            world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
            world.exit();
            if eager_page_split == EagerPageSplit::On {
                assert_eq!(world.largest(), [PageSize::Size4K].into());
                assert_eq!(world.vm.stats().tables.mapped, [PAGES, 0, 0], "counters agree with the tables");
            } else {
                assert_eq!(world.largest(), [PageSize::Size2M].into(), "the first write to each splits it");
            }
            (0..4).for_each(|n| world.access(n * M2 + 5, AccessKind::Write));
            assert_eq!(world.largest(), [PageSize::Size4K].into());
            let split: Vec<Spa> = (0..PAGES).map(|gfn| world.walk(gfn).unwrap().spa).collect();
            assert_eq!(split, frames, "a split translates the same");
            assert_eq!(world.harvest(), (0..4).map(|n| n * M2 + 5).collect());
            world.vm.set_dirty_logging(SLOT, DirtyLogging::Off, QUIET).unwrap();
            world.exit();
            assert_eq!(world.vm.tables(QUIET).leaves().unwrap().len(), before.len());
            assert_eq!(world.largest(), [PageSize::Size2M].into());
            assert_eq!(world.vm.stats().tables.mapped, [0, 4, 0]);
            (0..PAGES).step_by(101).for_each(|gfn| world.access(gfn, AccessKind::Write));
            assert_eq!(world.vm.tables(QUIET).leaves().unwrap(), before, "rights and frames are as they were");
        }
    }
}

#[test]
fn an_eager_split_makes_leaves_of_a_gigabyte_small() {
    let layout = RamLayout::pc(1 << 30, PageSize::Size1G).unwrap();
    let pages = PagePolicy::of(PageSize::Size1G);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
    let config = VmConfig::new(pages, plan.host);
    let vm = Vm::new(memory, &config).unwrap();
    vm.add_ram(&layout, SLOT, QUIET).unwrap();
    vm.handle_fault(CPU, FaultInput::new(Gpa::new(0), AccessKind::Write), QUIET).unwrap();
    let used = vm.stats().host.free_frames;
    vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
    assert_eq!(vm.stats().tables.mapped, [512 * 512, 0, 0]);
    vm.set_dirty_logging(SLOT, DirtyLogging::Off, QUIET).unwrap();
    assert_eq!(vm.stats().tables.mapped, [0, 0, 1]);
    assert_eq!(vm.stats().host.free_frames, used, "every table went back");
}

#[test]
fn every_refusal_names_what_it_refused() {
    let slot = SlotId(7);
    let world = World::new(TdpFormat::Npt, PageSize::Size4K, MmuParams::default());
    let get = |vm: &Vm, id| vm.get_dirty_log(id, &mut |_, _| {}, QUIET);
    assert_eq!(get(&world.vm, slot), Err(DirtyLogError::NotLogged { slot }));
    assert_eq!(get(&world.vm, SLOT), Err(DirtyLogError::NotLogged { slot: SLOT }));
    assert_eq!(world.vm.set_dirty_logging(slot, DirtyLogging::On, QUIET), Err(DirtyLogError::NotLogged { slot }));
    assert_eq!(world.vm.clear_dirty_log(SLOT, 0, 64, &[1], QUIET), Err(DirtyLogError::NotManual));
    let manual = MmuParams { manual_protect: ManualProtect::On, ..MmuParams::default() };
    let world = World::new(TdpFormat::Npt, PageSize::Size4K, manual);
    world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
    for (first_page, nr_pages, words) in [(1, 64, 1), (0, 65, 2), (0, PAGES + 64, 33), (u64::MAX, 64, 1), (0, 64, 2)] {
        let refused = world.vm.clear_dirty_log(SLOT, first_page, nr_pages, &vec![0; words], QUIET);
        assert_eq!(refused, Err(DirtyLogError::BadRange { slot: SLOT, first_page, nr_pages }));
    }
    assert_eq!(world.vm.clear_dirty_log(SLOT, PAGES - 64, 64, &[u64::MAX], QUIET), Ok(()));
}

#[test]
fn a_processor_with_a_full_ring_is_held_back_until_entries_are_reset() {
    let size = RingSize::of_bytes(16384).unwrap();
    let dirty_ring = Some(DirtyRingConfig { size, bitmap: RingWithBitmap::No });
    let mut world = World::new(TdpFormat::Npt, PageSize::Size4K, MmuParams { dirty_ring, ..MmuParams::default() });
    world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
    let mut gfn = 0;
    while !world.vm.is_dirty_ring_full(CPU, QUIET).unwrap() {
        world.access(gfn, AccessKind::Write);
        gfn += 1;
    }
    assert_eq!(gfn, u64::from(size.soft_limit()));
    let mut ahead = PreFault { gpa: Gpa::new(gfn << 12), len_bytes: 0x1000, flags: 0 };
    assert_eq!(world.vm.pre_fault_memory(CPU, &mut ahead, &mut || true, QUIET), Err(PreFaultError::Interrupted));
    (gfn..u64::from(size.entries())).for_each(|gfn| world.access(gfn, AccessKind::Write));
    let one_more = FaultInput::new(Gpa::new(u64::from(size.entries()) << 12), AccessKind::Write);
    assert_eq!(
        world.vm.handle_fault(CPU, one_more, QUIET),
        Err(VmError::DirtyRingFull),
        "not even the reserve is left"
    );
    let mut pages = Vec::new();
    world.vm.collect_dirty_ring(CPU, 600, &mut pages, QUIET).unwrap();
    assert_eq!(world.vm.reset_dirty_rings(QUIET), Ok(600));
    pages.clear();
    world.vm.collect_dirty_ring(CPU, 10, &mut pages, QUIET).unwrap();
    assert_eq!(pages.iter().map(|page| page.page).collect::<Vec<_>>(), (600..610).collect::<Vec<_>>());
    assert_eq!(world.vm.reset_dirty_rings(QUIET), Ok(10));
    world.exit();
    assert!(!world.vm.is_dirty_ring_full(CPU, QUIET).unwrap());
    world.access(5, AccessKind::Write);
    world.access(700, AccessKind::Write);
    pages.clear();
    world.vm.collect_dirty_ring(CPU, usize::MAX, &mut pages, QUIET).unwrap();
    assert_eq!(pages.last().map(|page| page.page), Some(5), "what was reset is reported again, what was not is not");
    world.vm.guest_write(Gpa::new(0), &[1], QUIET).unwrap();
    assert_eq!(world.vm.unlogged_writes(), 1, "a write of nobody's processor has no ring to go to");
}
