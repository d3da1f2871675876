//! Faults on user memory against everything that takes it away: the VMM's unmapping, protecting, paging out and
//! converting, slots that come and go, device memory that moves, and long mappings, in random orders of their steps. After
//! each step what is mapped for the guest and not being changed is what stands behind it; at the end nothing is held.

use std::rc::Rc;

use emu_core::defect::{Defect, Defects};
use emu_core::memory::SystemMemory;
use emu_core::rng::Seed;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Hva, PageSize, Sfn};
use gmem::folio::FolioKind;
use gmem::mm::{Advice, MapRequest, Prot, Sharing, ThpChoice, UserAccess, What};
use gmem::policy::Generation;
use gmem::{FolioPolicy, GmemFlags, HostConfig, PageIndex, Shareability, SlotId};
use hypervisor::dirty::DirtyLogging;
use hypervisor::tdp::Rights;
use hypervisor::*;
use interleave::{Body, Pct, Program, Progress, Random, Stopped, Strategy as Chooser, explore, shrink, timeline};
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = 0x1000;
const HVA: u64 = 0x7000_0000_0000;
/// Pages of user memory, which slot 0 shows from frame 0 on and slot 1, in its second half, from [`SECOND`].
const PAGES: u64 = 8;
const SECOND: u64 = 0x100;

#[derive(Clone, Copy, Debug)]
enum Act {
    Access { gfn: u64, write: bool },
    UserWrite { page: u64 },
    DontNeed { page: u64, nr_pages: u64 },
    PageOut { page: u64, nr_pages: u64 },
    Remap { page: u64, nr_pages: u64 },
    Protect { page: u64, nr_pages: u64, write: bool },
    Convert { gfn: u64, nr_pages: u64, private: bool },
    Delete,
    Create,
    Map { gfn: u64 },
}

struct World {
    vm: Vm,
    gmem: GmemId,
    generation: Generation,
}

impl World {
    /// Of 7.3 slot 0 has both kinds of memory; of what comes after it the VMM maps the guest_memfd itself.
    fn new(generation: Generation) -> Rc<World> {
        let memory = SystemMemory::flat(1024 * PAGE).unwrap();
        let host = HostConfig { first: Sfn::new(1), nr_frames: 1023, pools: vec![] };
        let pages =
            PagePolicy { folios: FolioPolicy::Buddy { largest: PageSize::Size4K }, max_level: PageSize::Size1G };
        let (kind, gmem) = (VmKind::SwProtected, generation.policy());
        let config = VmConfig { maxphyaddr: 36, nr_vcpus: 2, kind, gmem, ..VmConfig::new(pages, host) };
        let vm = Vm::new(memory, &config).unwrap();
        let by_vm = generation == Generation::V7_3;
        let flags = if by_vm { GmemFlags::empty() } else { GmemFlags::MMAP | GmemFlags::INIT_SHARED };
        let gmem = vm.create_guest_memfd(PAGES * PAGE, flags.bits(), QUIET).unwrap();
        let world = World { vm, gmem, generation };
        world.map(0, PAGES, QUIET);
        let region = UserMemoryRegion2 {
            slot: 0,
            flags: SlotFlags::GUEST_MEMFD.bits(),
            guest_phys_addr: 0,
            memory_size: PAGES * PAGE,
            userspace_addr: HVA,
            guest_memfd_offset: 0,
            guest_memfd: MemFd::Gmem(gmem),
        };
        world.vm.set_user_memory_region2(&region, QUIET).unwrap();
        world.create(QUIET);
        Rc::new(world)
    }

    fn create(&self, task: &Task<'_>) {
        let region = UserMemoryRegion2 {
            slot: 1,
            flags: 0,
            guest_phys_addr: SECOND * PAGE,
            memory_size: PAGES / 2 * PAGE,
            userspace_addr: HVA + PAGES / 2 * PAGE,
            guest_memfd_offset: 0,
            guest_memfd: MemFd::NotOpen,
        };
        // It may be there already.
        self.vm.set_user_memory_region2(&region, task).unwrap();
    }

    fn map(&self, page: u64, nr_pages: u64, task: &Task<'_>) {
        let what = match self.generation {
            Generation::V7_3 => What::Anonymous { thp: ThpChoice::Never },
            _ => What::Gmem { inode: self.vm.gmem(self.gmem, task).unwrap(), first: PageIndex(page) },
        };
        let (at, len_bytes) = (Hva::new(HVA + page * PAGE), nr_pages * PAGE);
        let request = MapRequest { at, len_bytes, prot: Prot::READ_WRITE, sharing: Sharing::Shared, what };
        // Another task may have mapped a part of it first.
        let _ = self.vm.mm().map(request, task);
    }

    fn act(&self, n: usize, act: Act, task: &Task<'_>) {
        let (vm, kernel) = (&self.vm, self.vm.kernel(task));
        let at = |page: u64| Hva::new(HVA + page * PAGE);
        match act {
            Act::Access { gfn, write } => self.access(n, gfn, write, task),
            Act::UserWrite { page } => drop(vm.mm().write(at(page), &[1], kernel)),
            Act::DontNeed { page, nr_pages } => {
                drop(vm.mm().madvise(at(page), nr_pages * PAGE, Advice::DontNeed, kernel));
            }
            Act::PageOut { page, nr_pages } => {
                drop(vm.mm().madvise(at(page), nr_pages * PAGE, Advice::PageOut, kernel));
            }
            Act::Remap { page, nr_pages } => {
                vm.mm().munmap(at(page), nr_pages * PAGE, kernel).unwrap();
                self.map(page, nr_pages, task);
            }
            Act::Protect { page, nr_pages, write } => {
                let prot = if write { Prot::READ_WRITE } else { Prot::READ };
                let _ = vm.mm().mprotect(at(page), nr_pages * PAGE, prot, kernel);
            }
            Act::Convert { gfn, nr_pages, private } => {
                let nr_pages = nr_pages.min(PAGES - gfn);
                let to = Shareability::ALL[usize::from(!private)];
                if self.generation == Generation::V7_3 {
                    let attributes = if private { MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
                    let (address, size) = (gfn * PAGE, nr_pages * PAGE);
                    let wanted = MemoryAttributes { address, size, attributes, flags: 0 };
                    vm.set_memory_attributes(&wanted, task).unwrap();
                } else {
                    let done = vm.convert(self.gmem, gfn * PAGE, nr_pages * PAGE, to, task);
                    assert!(matches!(done, Ok(()) | Err(VmError::Convert(gmem::ConvertError::Busy { .. }))));
                }
            }
            Act::Delete => drop(vm.remove_memslot(SlotId(1), task)),
            Act::Create => self.create(task),
            Act::Map { gfn } => {
                if let Ok(map) = vm.map_guest_page(Gfn::new(gfn), UserAccess::Write, task) {
                    task.give_way();
                    vm.unmap_guest_page(map, task);
                }
            }
        }
    }

    fn access(&self, n: usize, gfn: u64, write: bool, task: &Task<'_>) {
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        while let Ok(Action::Resume(Resumed::Retry)) =
            self.vm.handle_fault(VcpuId(n as u16), FaultInput::new(Gfn::new(gfn).base(), kind), task)
        {
            task.give_way();
        }
    }

    /// What stands behind a guest frame now.
    fn behind(&self, slot: &Slot, gfn: Gfn) -> Option<(Sfn, bool)> {
        let private = self.vm.memory_attribute(gfn, QUIET).is_private();
        match slot.gmem_page(gfn) {
            Some((inode, index)) if private || slot.info().is_gmem_only() => {
                inode.peek(index, QUIET).map(|backed| (backed.sfn, true))
            }
            _ => {
                let leaf = self.vm.mm().table().leaf(slot.info().hva_of(gfn).frame(), QUIET)?;
                Some((leaf.sfn, leaf.allows(UserAccess::Write)))
            }
        }
    }

    fn check(&self, progress: Progress) -> Result<(), String> {
        let vm = &self.vm;
        if let Some(tables) = vm.try_tables(QUIET) {
            let slots = vm.memslots(QUIET);
            for leaf in tables.leaves().unwrap() {
                if vm.invalidation().range().is_some_and(|(from, to)| from <= leaf.gfn && leaf.gfn < to) {
                    continue;
                }
                let slot = slots.lookup(leaf.gfn).ok_or(format!("{leaf:?} is in no slot"))?;
                // A slot that is going may still have its leaves.
                if slot.state() == SlotState::Invalid {
                    continue;
                }
                let (sfn, writable) = self.behind(slot, leaf.gfn).ok_or(format!("nothing is behind {leaf:?}"))?;
                if sfn != leaf.sfn || leaf.rights.contains(Rights::WRITE) && !writable {
                    return Err(format!("{leaf:?} shows what is not there: {sfn:?}, writable: {writable}"));
                }
            }
        }
        if progress == Progress::Finished {
            if vm.invalidation().in_progress() != 0 {
                return Err("an invalidation has no end".to_owned());
            }
            let held = |folio: &gmem::folio::Folio| match folio.meta.kind {
                FolioKind::Anonymous => folio.meta.refs != folio.meta.maps,
                FolioKind::Gmem => folio.meta.refs != folio.meta.maps + folio.cache_refs(),
                FolioKind::PageTable | FolioKind::Device => false,
            };
            if let Some(folio) = vm.host().lock(QUIET).folios().iter().find(held) {
                return Err(format!("somebody still holds {folio:?}"));
            }
            let inode = vm.gmem(self.gmem, QUIET).unwrap();
            for (page, _, pte) in vm.mm().table().list(QUIET) {
                let vma = vm.mm().vma(page, QUIET).ok_or(format!("{page:?} has an entry and no mapping"))?;
                if let Some((_, index)) = vma.index_of(page)
                    && (inode.attribute(index, QUIET).is_private()
                        || inode.peek(index, QUIET).map(|b| b.sfn) != Some(pte.sfn))
                {
                    return Err(format!("{page:?} shows {pte:?}, which is not page {} of the inode", index.0));
                }
            }
        }
        Ok(())
    }
}

fn program(generation: Generation, tasks: &[Vec<Act>], defects: Defects) -> Program {
    let world = World::new(generation);
    let threads = tasks.iter().enumerate().map(|(n, acts)| {
        let (world, acts) = (Rc::clone(&world), acts.clone());
        let body: Body = Box::new(move |schedule| {
            let task = Task::QUIET.under(schedule).on_lane(n as u8).with(defects);
            acts.iter().for_each(|&act| world.act(n.min(1), act, &task));
        });
        (["a", "b", "c", "d"][n], body)
    });
    Program { threads: threads.collect(), check: Box::new(move |progress| world.check(progress)) }
}

fn guest_act() -> impl Strategy<Value = Act> {
    let gfn = prop_oneof![0..PAGES, SECOND..SECOND + PAGES / 2];
    prop_oneof![
        5 => (gfn.clone(), any::<bool>()).prop_map(|(gfn, write)| Act::Access { gfn, write }),
        1 => gfn.prop_map(|gfn| Act::Map { gfn }),
    ]
}

fn host_act() -> impl Strategy<Value = Act> {
    let part = (0..PAGES).prop_flat_map(|page| (Just(page), 1..=PAGES - page));
    prop_oneof![
        2 => (0..PAGES).prop_map(|page| Act::UserWrite { page }),
        2 => part.clone().prop_map(|(page, nr_pages)| Act::DontNeed { page, nr_pages }),
        1 => part.clone().prop_map(|(page, nr_pages)| Act::PageOut { page, nr_pages }),
        2 => part.clone().prop_map(|(page, nr_pages)| Act::Remap { page, nr_pages }),
        2 => (part.clone(), any::<bool>())
            .prop_map(|((page, nr_pages), write)| Act::Protect { page, nr_pages, write }),
        3 => (part, any::<bool>()).prop_map(|((gfn, nr_pages), private)| Act::Convert { gfn, nr_pages, private }),
        1 => Just(Act::Delete),
        1 => Just(Act::Create),
    ]
}

fn tasks() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let cpu = || prop::collection::vec(guest_act(), 1..4);
    let host = || prop::collection::vec(host_act(), 1..4);
    (cpu(), cpu(), prop::collection::vec(host(), 1..3)).prop_map(|(a, b, hosts)| [vec![a, b], hosts].concat())
}

/// Whether any of a thousand orders of the steps breaks something.
fn breaks(generation: Generation, tasks: &[Vec<Act>], defects: Defects) -> bool {
    let start = || program(generation, tasks, defects);
    matches!(explore(&start, &mut Random::new(Seed(3)), &mut |n| n < 1000), Stopped::Broke { .. })
}

#[test]
fn without_the_stale_check_a_fault_maps_what_the_vmm_took_away() {
    let write = || vec![Act::Access { gfn: SECOND + 1, write: true }];
    let page = PAGES / 2 + 1;
    let takers = [
        Act::DontNeed { page, nr_pages: 1 },
        Act::Remap { page, nr_pages: 1 },
        Act::Protect { page, nr_pages: 1, write: false },
    ];
    for taker in takers {
        for generation in [Generation::V7_3, Generation::Next] {
            let tasks = [write(), vec![Act::UserWrite { page }, taker]];
            assert!(breaks(generation, &tasks, Defects::only(Defect::SkipStaleCheck)), "{taker:?}");
            assert!(!breaks(generation, &tasks, Defects::NONE), "{taker:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn tasks_that_overlap_see_user_memory_as_it_is(by_vm in any::<bool>(), tasks in tasks(), seed in any::<u64>()) {
        let generation = if by_vm { Generation::V7_3 } else { Generation::Next };
        let start = || program(generation, &tasks, Defects::NONE);
        let choosers: [Box<dyn Chooser>; 2] = [Box::new(Random::new(Seed(seed))), Box::new(Pct::new(Seed(seed), 4))];
        for mut chooser in choosers {
            if let Stopped::Broke { finding, .. } = explore(&start, &mut *chooser, &mut |n| n < 24) {
                let short = shrink(&start, finding);
                let names = &["a", "b", "c", "d"][..tasks.len()];
                let picture = timeline::render(&short, names, &|pause| format!("{pause:?}"));
                prop_assert!(false, "{}", picture);
            }
        }
    }
}

/// Both ways in which the hypervisor writes on the guest's behalf: copying, and through a long mapping.
#[test]
fn what_the_hypervisor_writes_to_user_memory_is_logged() {
    let world = World::new(Generation::Next);
    let vm = &world.vm;
    vm.set_dirty_logging(SlotId(1), DirtyLogging::On, QUIET).unwrap();
    let harvest = || {
        let mut words = Vec::new();
        vm.get_dirty_log(SlotId(1), &mut |word, bits| words.push((word, bits)), QUIET).unwrap();
        words
    };
    vm.guest_write(Gfn::new(SECOND + 1).base(), &[7], QUIET).unwrap();
    assert_eq!(harvest(), [(0, 1 << 1)]);
    let map = vm.map_guest_page(Gfn::new(SECOND + 2), UserAccess::Write, QUIET).unwrap();
    vm.write_mapped(&map, 0, &[7]).unwrap();
    vm.unmap_guest_page(map, QUIET);
    let read = vm.map_guest_page(Gfn::new(SECOND + 3), UserAccess::Read, QUIET).unwrap();
    vm.unmap_guest_page(read, QUIET);
    assert_eq!(harvest(), [(0, 1 << 2)]);
}
