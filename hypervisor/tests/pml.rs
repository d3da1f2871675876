//! Page-modification logging from the processor's walk to the VMM's bitmap: the translation unit of the `mmu` crate sets
//! flags and fills the log, the hypervisor drains it, and a list of what was written judges.

mod reader;

use std::collections::BTreeSet;
use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use hypervisor::dirty::{DirtyLogging, RingSize, RingWithBitmap};
use hypervisor::*;
use mmu::{Ept, EptExecute, Eptp, Mmu, MmuFault, ModificationLog, NestedFaultKind, PagingFeatures, Stage2, Vpid};
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const CPU: VcpuId = VcpuId(0);
const SLOT: SlotId = SlotId(0);
const PAGES: u64 = 4 * 512;

struct World {
    vm: Vm,
    mmu: Mmu,
    /// Exits because the log had no room.
    full: u64,
}

impl World {
    fn new(page: PageSize, dirty_ring: Option<DirtyRingConfig>) -> World {
        let layout = RamLayout::pc(PAGES << 12, page).unwrap();
        let pages = PagePolicy::of(page);
        let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let config = VmConfig { format: TdpFormat::Ept, maxphyaddr: 46, ..VmConfig::new(pages, plan.host) };
        let params = MmuParams { pml: Pml::On, dirty_ring, ..MmuParams::default() };
        let vm = Vm::with_params(memory, &config, params).unwrap();
        vm.add_ram(&layout, SLOT, QUIET).unwrap();
        let mut mmu = Mmu::new(Arc::clone(vm.memory()), PagingFeatures::INTEL);
        let page = vm.pml_buffer(CPU).unwrap().expect("processors log");
        mmu.set_modification_log(Some(ModificationLog::new(page)));
        let mut world = World { vm, mmu, full: 0 };
        world.load_root();
        world
    }

    fn load_root(&mut self) {
        let eptp = Eptp(self.vm.root_register());
        self.mmu.set_stage2(Stage2::Ept(Ept { eptp, execute: EptExecute::Single, vpid: Vpid(1) }));
    }

    /// The processor leaves the guest, and loads what it must before it enters again.
    fn exit(&mut self) {
        let log = self.mmu.modification_log().unwrap();
        self.vm.flush_pml_buffer(CPU, log.page, log.index, QUIET).unwrap();
        *log = ModificationLog::new(log.page);
        match self.vm.take_flush(CPU, QUIET) {
            None => {}
            Some(FlushRequest::All) => self.mmu.flush_all(),
            Some(FlushRequest::Range { first, nr_pages }) => self.mmu.flush_gpa_range(first, nr_pages),
        }
        if self.vm.take_root(CPU).unwrap().is_some() {
            self.load_root();
        }
    }

    fn access(&mut self, gfn: u64, kind: AccessKind) {
        let gpa = Gfn::new(gfn).base();
        for _ in 0..8 {
            let fault = match self.mmu.translate_gpa(gpa, kind) {
                Ok(found) => {
                    if kind == AccessKind::Write {
                        self.vm.memory().store(found.spa, gfn | 1 << 63).unwrap();
                    }
                    return;
                }
                Err(MmuFault::LogFull) => {
                    self.full += 1;
                    self.exit();
                    continue;
                }
                Err(MmuFault::Nested(fault)) => fault,
                Err(other) => panic!("{other:?}"),
            };
            let entry = match fault.kind {
                NestedFaultKind::NotPresent { .. } => EntryState::NotPresent,
                _ => EntryState::Denied,
            };
            self.exit();
            let input = FaultInput { entry, ..FaultInput::new(gpa, kind) };
            assert!(matches!(self.vm.handle_fault(CPU, input, QUIET), Ok(Action::Resume(_))));
            self.exit();
        }
        panic!("frame {gfn:#x} faults for ever");
    }

    fn harvest(&mut self, rings: bool) -> BTreeSet<u64> {
        self.exit();
        let mut found = BTreeSet::new();
        if rings {
            let mut pages = Vec::new();
            self.vm.collect_dirty_ring(CPU, usize::MAX, &mut pages, QUIET).unwrap();
            found.extend(pages.iter().map(|page| page.page));
            self.vm.reset_dirty_rings(QUIET).unwrap();
        } else {
            let note = &mut |word: u64, bits: u64| {
                found.extend((0..64).filter(|n| bits >> n & 1 == 1).map(|n| word * 64 + n));
            };
            self.vm.get_dirty_log(SLOT, note, QUIET).unwrap();
        }
        self.exit();
        found
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// One frame.
    Access {
        gfn: u64,
        kind: AccessKind,
    },
    /// As many frames in a row, more than a log holds.
    Sweep {
        first: u64,
        nr_pages: u64,
    },
    Harvest,
    Zap {
        first: u64,
        nr_pages: u64,
    },
    ZapAllFast,
}

fn step() -> impl Strategy<Value = Step> {
    let gfn = || 0..PAGES;
    let kind = prop_oneof![3 => Just(AccessKind::Write), 2 => Just(AccessKind::Read), 1 => Just(AccessKind::Execute)];
    prop_oneof![
        8 => (gfn(), kind).prop_map(|(gfn, kind)| Step::Access { gfn, kind }),
        3 => (gfn(), 1_u64..700).prop_map(|(first, nr_pages)| Step::Sweep { first, nr_pages }),
        3 => Just(Step::Harvest),
        1 => (gfn(), 1_u64..600).prop_map(|(first, nr_pages)| Step::Zap { first, nr_pages }),
        1 => Just(Step::ZapAllFast),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_write_between_two_harvests_is_in_the_second(
        huge in any::<bool>(),
        rings in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let size = RingSize::of_bytes(1 << 17).unwrap();
        let ring = rings.then_some(DirtyRingConfig { size, bitmap: RingWithBitmap::No });
        let mut world = World::new(if huge { PageSize::Size2M } else { PageSize::Size4K }, ring);
        (0..PAGES).for_each(|gfn| world.access(gfn, AccessKind::Write));
        world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
        world.exit();
        let (mut written, mut touched) = (BTreeSet::new(), BTreeSet::new());
        for step in steps.into_iter().chain([Step::Harvest]) {
            match step {
                Step::Access { gfn, kind } => {
                    world.access(gfn, kind);
                    touched.insert(gfn);
                    if kind == AccessKind::Write {
                        written.insert(gfn);
                    }
                }
                Step::Sweep { first, nr_pages } => {
                    for gfn in first..(first + nr_pages).min(PAGES) {
                        if rings && world.vm.is_dirty_ring_full(CPU, QUIET).unwrap() {
                            break;
                        }
                        world.access(gfn, AccessKind::Write);
                        written.insert(gfn);
                        touched.insert(gfn);
                    }
                }
                Step::Harvest => {
                    let found = world.harvest(rings);
                    prop_assert!(written.is_subset(&found), "lost: {:x?}", written.difference(&found));
                    prop_assert!(found.is_subset(&touched), "told and not touched: {:x?}", found.difference(&touched));
                    written.clear();
                    touched.clear();
                }
                Step::Zap { first, nr_pages } => {
                    world.vm.zap_range(Gfn::new(first), nr_pages, QUIET).unwrap();
                    world.exit();
                }
                Step::ZapAllFast => {
                    world.vm.zap_all_fast(QUIET).unwrap();
                    world.exit();
                }
            }
        }
    }
}

#[test]
fn a_log_that_runs_full_is_emptied_and_the_access_is_made() {
    let mut world = World::new(PageSize::Size4K, None);
    (0..PAGES).for_each(|gfn| world.access(gfn, AccessKind::Write));
    world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
    world.exit();
    (0..PAGES).for_each(|gfn| world.access(gfn, AccessKind::Write));
    // Each page is logged once, and the log holds 512.
    assert_eq!(world.full, PAGES / u64::from(PML_ENTRIES) - 1);
    assert_eq!(world.harvest(false).len() as u64, PAGES);
    assert_eq!(
        world.vm.memory().load::<u64>(
            reader::walk(world.vm.memory(), TdpFormat::Ept, world.vm.root_register(), Gpa::new(0x5000)).unwrap().spa
        ),
        Ok(5 | 1 << 63)
    );
}

#[test]
fn only_a_vm_whose_processors_log_has_buffers() {
    let layout = RamLayout::pc(1 << 21, PageSize::Size4K).unwrap();
    let pages = PagePolicy::of(PageSize::Size4K);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    for (format, pml, expected) in
        [(TdpFormat::Ept, Pml::On, 2), (TdpFormat::Ept, Pml::Off, 0), (TdpFormat::Npt, Pml::On, 0)]
    {
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let config = VmConfig { format, nr_vcpus: 2, ..VmConfig::new(pages, plan.host.clone()) };
        let vm = Vm::with_params(memory, &config, MmuParams { pml, ..MmuParams::default() }).unwrap();
        let buffers: BTreeSet<_> = (0..2).filter_map(|n| vm.pml_buffer(VcpuId(n)).unwrap()).collect();
        assert_eq!(buffers.len(), expected, "{format:?} {pml:?}: each processor has one of its own, or none has");
        assert!(vm.pml_buffer(VcpuId(2)).is_err());
    }
}
