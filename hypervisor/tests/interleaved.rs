//! Random tasks at the same time, in random orders of their steps: faults, holes, conversions, slot changes, zaps and the
//! host's own accesses overlap in every way the locks allow, over small and huge folios. After each step whatever is not
//! being changed must be consistent, and at the end everything.

mod reader;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use emu_core::memory::SystemMemory;
use emu_core::rng::Seed;
use emu_core::sync::{Point, Task};
use emu_core::{AccessKind, Gfn, PageSize, Sfn};
use gmem::folio::FolioKind;
use hypervisor::check::{Cached, CheckHistory, Moment, Witness};
use hypervisor::*;
use interleave::{Body, Pct, Program, Progress, Random, Stopped, Strategy as Chooser, explore, shrink, timeline};
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const M2: u64 = PageSize::Size2M.frames();
const INODE_PAGES: u64 = 3 * M2;
const CPUS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Act {
    /// A processor accesses a frame until it can, or until the access leaves to the VMM.
    Access {
        gfn: u64,
        write: bool,
        private: bool,
    },
    Punch {
        first: u64,
        nr_pages: u64,
    },
    Convert {
        first: u64,
        nr_pages: u64,
        private: bool,
    },
    Zap {
        first: u64,
        nr_pages: u64,
    },
    ZapAll,
    Delete {
        slot: u16,
    },
    Create {
        slot: u16,
        first: u64,
    },
    HostWrite {
        gfn: u64,
    },
    HostRead {
        gfn: u64,
    },
}

/// One processor's translations: first guest frame, first system frame, size.
#[derive(Default)]
struct Cpu {
    tlb: RefCell<BTreeMap<u64, (Sfn, PageSize)>>,
    in_guest: Cell<bool>,
}

struct World {
    vm: Vm,
    gmem: GmemId,
    cpus: [Cpu; CPUS],
    history: RefCell<CheckHistory>,
    /// Whether the checks look while nobody is at work.
    at_rest: Cell<bool>,
}

/// The two slots: each shows half of the inode, at frames congruent with it.
fn slot(id: u16, first: u64, gmem: GmemId) -> MemSlotSpec {
    let (offset, nr_pages) = if id == 0 { (0, M2 + M2 / 2) } else { (M2 + M2 / 2, M2 + M2 / 2) };
    MemSlotSpec {
        id: SlotId(id),
        gpa: Gfn::new(first + offset).base(),
        len_bytes: nr_pages << 12,
        flags: SlotFlags::empty(),
        gmem,
        offset_bytes: offset << 12,
    }
}

impl World {
    fn new(format: TdpFormat, pages: PagePolicy) -> Rc<World> {
        let plan = SystemMemoryPlan::for_guest(INODE_PAGES << 12, pages);
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let config = VmConfig { format, maxphyaddr: 40, nr_vcpus: CPUS as u16, ..VmConfig::new(pages, plan.host) };
        let vm = Vm::new(memory, &config).unwrap();
        let gmem = vm.create_guest_memfd(INODE_PAGES << 12, GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
        for id in 0..2 {
            vm.add_memslot(&slot(id, 0, gmem), QUIET).unwrap();
        }
        Rc::new(World { vm, gmem, cpus: Default::default(), history: RefCell::default(), at_rest: Cell::new(false) })
    }

    fn walk(&self, gfn: u64) -> Option<reader::Translation> {
        reader::walk(self.vm.memory(), self.vm.format(), self.vm.root_register(), Gfn::new(gfn).base())
    }

    fn act(&self, n: usize, act: Act, task: &Task<'_>) {
        let vm = &self.vm;
        match act {
            Act::Access { gfn, write, private } => self.access(n, gfn, write, private, task),
            Act::Punch { first, nr_pages } => vm.punch_hole(self.gmem, first << 12, nr_pages << 12, task).unwrap(),
            Act::Convert { first, nr_pages, private } => {
                let to = if private { Shareability::PRIVATE } else { Shareability::SHARED };
                let inside = nr_pages.min(INODE_PAGES - first);
                vm.convert(self.gmem, first << 12, inside << 12, to, task).unwrap();
            }
            Act::Zap { first, nr_pages } => vm.zap_range(Gfn::new(first), nr_pages, task).unwrap(),
            Act::ZapAll => vm.zap_all(task).unwrap(),
            Act::Delete { slot } => {
                let gone = vm.remove_memslot(SlotId(slot), task);
                assert!(gone.is_ok() || gone == Err(MemslotError::NotFound { id: SlotId(slot) }.into()), "{gone:?}");
            }
            Act::Create { slot: id, first } => {
                let made = vm.add_memslot(&slot(id, first, self.gmem), task);
                assert!(made.is_ok() || matches!(made, Err(VmError::Memslot(_))), "{made:?}");
            }
            Act::HostWrite { gfn } => match vm.guest_write(Gfn::new(gfn).base(), &[1], task) {
                Ok(()) | Err(GuestAccessError::NoSlot { .. } | GuestAccessError::Backing(_)) => {}
                Err(error) => panic!("{error}"),
            },
            Act::HostRead { gfn } => match vm.guest_read(Gfn::new(gfn).base(), &mut [0], task) {
                Ok(()) | Err(GuestAccessError::NoSlot { .. } | GuestAccessError::Backing(_)) => {}
                Err(error) => panic!("{error}"),
            },
        }
    }

    fn access(&self, n: usize, gfn: u64, write: bool, private: bool, task: &Task<'_>) {
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        let privacy = if private { Shareability::PRIVATE } else { Shareability::SHARED };
        while !self.in_guest(n, gfn, task) {
            let input = FaultInput { privacy, ..FaultInput::new(Gfn::new(gfn).base(), kind) };
            match self.vm.handle_fault(VcpuId(n as u16), input, task).unwrap() {
                Action::Resume(Resumed::Retry) => task.give_way(),
                Action::Resume(_) => {}
                Action::Mmio { .. } | Action::MemoryFault(_) => return,
                Action::RomWrite { .. } => panic!("there is no ROM"),
            }
        }
    }

    fn in_guest(&self, n: usize, gfn: u64, task: &Task<'_>) -> bool {
        let cpu = &self.cpus[n];
        let (inside, flush) = self.vm.enter_guest(VcpuId(n as u16), task).unwrap();
        match flush {
            None => {}
            Some(FlushRequest::All) => cpu.tlb.borrow_mut().clear(),
            Some(FlushRequest::Range { first, nr_pages }) => {
                let (from, to) = (first.raw(), first.raw().saturating_add(nr_pages));
                cpu.tlb.borrow_mut().retain(|&gfn, (_, size)| gfn + size.frames() <= from || to <= gfn);
            }
        }
        cpu.in_guest.set(true);
        let hit = cpu.tlb.borrow().range(..=gfn).next_back().is_some_and(|(&at, (_, size))| gfn - at < size.frames());
        let done = hit || {
            let leaf = self.walk(gfn);
            task.at(Point::T1);
            leaf.filter(|_| !inside.is_kicked()).is_some_and(|leaf| {
                let at = Gfn::new(gfn).align_down(leaf.size).raw();
                // A larger or smaller translation of the same frames may be there; the processor may use either.
                cpu.tlb.borrow_mut().insert(at, (leaf.spa.frame().align_down(leaf.size), leaf.size));
                true
            })
        };
        task.at(Point::T1);
        cpu.in_guest.set(false);
        done
    }

    fn check(&self, progress: Progress) -> Result<(), String> {
        let moment = match progress {
            Progress::Running => Moment::BetweenSteps,
            Progress::Finished => Moment::Quiescent,
        };
        self.at_rest.set(moment == Moment::Quiescent);
        let verdict = self.vm.check(moment, &mut self.history.borrow_mut(), self, QUIET);
        verdict.map_err(|violation| violation.to_string())?;
        if progress == Progress::Finished { self.check_books() } else { Ok(()) }
    }

    /// What holds when nobody is at work and no invariant speaks of.
    fn check_books(&self) -> Result<(), String> {
        let reachable = reader::tables(self.vm.memory(), self.vm.format(), self.vm.root_register());
        let stats = self.vm.stats();
        let host = self.vm.host().lock(QUIET);
        let used = host.folios().iter().filter(|folio| folio.meta.kind == FolioKind::PageTable).count();
        // Each vCPU keeps three at hand.
        if used > reachable.len() + 3 * CPUS {
            return Err(format!("{used} tables are in use, {} can be walked", reachable.len()));
        }
        let cached: u64 = stats.folios.iter().sum();
        let in_use = host.folios().iter().filter(|folio| folio.meta.kind == FolioKind::Gmem).count() as u64;
        if cached != in_use {
            return Err(format!("{cached} folios in the cache, {in_use} in use"));
        }
        Ok(())
    }
}

impl Witness for World {
    fn translations(&self, vcpu: VcpuId, each: &mut dyn FnMut(Cached)) {
        for (&gfn, &(sfn, size)) in self.cpus[usize::from(vcpu.0)].tlb.borrow().iter() {
            each(Cached { gfn: Gfn::new(gfn), sfn, size });
        }
    }

    fn in_guest(&self, vcpu: VcpuId) -> bool {
        self.cpus[usize::from(vcpu.0)].in_guest.get()
    }

    /// The host's own accesses hold a page only while they last.
    fn extra_references(&self, _: Sfn) -> Option<u32> {
        self.at_rest.get().then_some(0)
    }
}

fn program(format: TdpFormat, pages: PagePolicy, tasks: &[Vec<Act>]) -> Program {
    let world = World::new(format, pages);
    let threads = tasks.iter().enumerate().map(|(n, acts)| {
        let (world, acts) = (Rc::clone(&world), acts.clone());
        let body: Body = Box::new(move |schedule| {
            let task = Task::QUIET.under(schedule).on_lane(n as u8);
            acts.iter().for_each(|&act| world.act(n.min(CPUS - 1), act, &task));
        });
        (["a", "b", "c", "d"][n], body)
    });
    Program { threads: threads.collect(), check: Box::new(move |progress| world.check(progress)) }
}

fn frame() -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0_u64), Just(1), Just(M2 / 2), Just(M2 - 1)];
    (0..INODE_PAGES / M2, near).prop_map(|(block, near)| block * M2 + near)
}

fn guest_frame() -> impl Strategy<Value = u64> {
    (prop::bool::weighted(0.2), frame()).prop_map(|(moved, gfn)| if moved { 4 * M2 + gfn } else { gfn })
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1_u64), Just(M2 / 2), Just(M2), Just(2 * M2)]
}

fn access() -> impl Strategy<Value = Act> {
    (guest_frame(), any::<bool>(), prop::bool::weighted(0.3)).prop_map(|(gfn, write, private)| Act::Access {
        gfn,
        write,
        private,
    })
}

fn host_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (frame(), length()).prop_map(|(first, nr_pages)| Act::Punch { first, nr_pages }),
        4 => (frame(), length(), any::<bool>())
            .prop_map(|(first, nr_pages, private)| Act::Convert { first, nr_pages, private }),
        1 => (guest_frame(), length()).prop_map(|(first, nr_pages)| Act::Zap { first, nr_pages }),
        1 => Just(Act::ZapAll),
        2 => (0_u16..2).prop_map(|slot| Act::Delete { slot }),
        2 => (0_u16..2, any::<bool>())
            .prop_map(|(slot, moved)| Act::Create { slot, first: if moved { 4 * M2 } else { 0 } }),
        1 => guest_frame().prop_map(|gfn| Act::HostWrite { gfn }),
        1 => guest_frame().prop_map(|gfn| Act::HostRead { gfn }),
    ]
}

/// Two processors and up to two tasks of the host.
fn tasks() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let cpu = || prop::collection::vec(access(), 1..4);
    let host = || prop::collection::vec(host_act(), 1..4);
    (cpu(), cpu(), prop::collection::vec(host(), 1..3)).prop_map(|(a, b, hosts)| [vec![a, b], hosts].concat())
}

fn policies() -> impl Strategy<Value = PagePolicy> {
    prop_oneof![
        Just(PagePolicy::of(PageSize::Size4K)),
        Just(PagePolicy::of(PageSize::Size2M)),
        Just(PagePolicy { folios: FolioPolicy::Buddy { largest: PageSize::Size2M }, max_level: PageSize::Size2M }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn tasks_that_overlap_keep_the_invariants(
        ept in any::<bool>(),
        pages in policies(),
        tasks in tasks(),
        seed in any::<u64>(),
    ) {
        let format = if ept { TdpFormat::Ept } else { TdpFormat::Npt };
        let start = || program(format, pages, &tasks);
        let choosers: [Box<dyn Chooser>; 2] = [Box::new(Random::new(Seed(seed))), Box::new(Pct::new(Seed(seed), 4))];
        for mut chooser in choosers {
            if let Stopped::Broke { finding, .. } = explore(&start, &mut *chooser, &mut |n| n < 24) {
                let short = shrink(&start, finding);
                let picture = timeline::render(&short, &["a", "b", "c", "d"][..tasks.len()], &|pause| format!("{pause:?}"));
                prop_assert!(false, "{}", picture);
            }
        }
    }
}
