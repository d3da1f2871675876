//! Races of the pipeline, found by machine: each known mistake, put back in, must break an invariant in some interleaving,
//! and without it none may in any.

mod reader;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use emu_core::defect::{Defect, Defects};
use emu_core::event::{Event, EventSink};
use emu_core::memory::SystemMemory;
use emu_core::rng::Seed;
use emu_core::sync::{Point, Schedule, Task};
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};
use gmem::PageIndex;
use hypervisor::*;
use interleave::{
    Body, Exhaustive, Pct, Program, Progress, Random, Stopped, Strategy, explore, replay, shrink, timeline,
};

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = 4096;
const INODE_PAGES: u64 = 16;
/// Guest frames from here show the second inode.
const SECOND: u64 = 32;

/// A virtual processor's TLB, and whether it executes the guest.
#[derive(Default)]
struct Cpu {
    tlb: RefCell<BTreeMap<u64, Sfn>>,
    in_guest: Cell<bool>,
}

/// What every task of a program shares.
struct World {
    vm: Vm,
    /// Two inodes, each shown by the slot of its number.
    gmems: [GmemId; 2],
    defects: Defects,
    cpus: [Cpu; 2],
    /// For each guest frame mapped now, what the guest meant when it was.
    mapped_as: RefCell<BTreeMap<u64, Shareability>>,
}

/// The event sink of one task.
struct Watch<'w> {
    world: &'w World,
    meant: Cell<Shareability>,
}

impl EventSink for Watch<'_> {
    fn report(&self, event: Event) {
        let mut mapped_as = self.world.mapped_as.borrow_mut();
        match event {
            Event::Mapped { gfn, .. } => drop(mapped_as.insert(gfn.raw(), self.meant.get())),
            Event::Zapped { gfn, .. } => drop(mapped_as.remove(&gfn.raw())),
            _ => {}
        }
    }
}

impl World {
    fn new(defects: Defects, initial: Shareability) -> Rc<World> {
        let pages = PagePolicy::of(PageSize::Size4K);
        let memory = SystemMemory::flat(64 * PAGE).unwrap();
        let host = HostConfig { first: Sfn::new(1), nr_frames: 63, pools: vec![] };
        let config = VmConfig { format: TdpFormat::Npt, pages, maxphyaddr: 36, nr_vcpus: 2, host };
        let vm = Vm::new(memory, &config).unwrap();
        let flags = if initial.is_private() { GmemFlags::empty() } else { GmemFlags::INIT_SHARED };
        let gmems = [(0, 0), (1, SECOND)].map(|(id, first)| {
            let gmem = vm.create_guest_memfd(INODE_PAGES * PAGE, flags.bits(), QUIET).unwrap();
            let (gpa, len_bytes) = (Gpa::new(first * PAGE), INODE_PAGES * PAGE);
            let flags = SlotFlags::empty();
            let spec = MemSlotSpec { id: SlotId(id), gpa, len_bytes, flags, gmem, offset_bytes: 0 };
            vm.add_memslot(&spec, QUIET).unwrap();
            gmem
        });
        Rc::new(World { vm, gmems, defects, cpus: Default::default(), mapped_as: RefCell::default() })
    }

    /// What hardware finds in the tables, without any lock.
    fn walk(&self, gfn: u64) -> Option<Sfn> {
        let found = reader::walk(self.vm.memory(), self.vm.format(), self.vm.root_register(), Gfn::new(gfn).base());
        found.map(|leaf| leaf.spa.frame())
    }

    fn page(&self, gfn: u64) -> (std::sync::Arc<gmem::GuestMemfd>, PageIndex) {
        let inode = self.vm.gmem(self.gmems[usize::from(gfn >= SECOND)], QUIET).expect("the inode stays");
        (inode, PageIndex(gfn % SECOND))
    }

    fn backing(&self, gfn: u64) -> Option<Sfn> {
        let (inode, index) = self.page(gfn);
        inode.peek(index, QUIET).map(|backed| backed.sfn)
    }

    /// The invariants that hold between any two steps.
    fn check(&self, progress: Progress) -> Result<(), String> {
        for (n, cpu) in self.cpus.iter().enumerate().filter(|(_, cpu)| cpu.in_guest.get()) {
            for (&gfn, &sfn) in cpu.tlb.borrow().iter() {
                if self.backing(gfn) != Some(sfn) {
                    return Err(format!("E6: vCPU {n} executes with frame {gfn:#x} at {sfn:?}, which is not its page"));
                }
            }
        }
        let Some(tables) = self.vm.try_tables(QUIET) else { return Ok(()) };
        let covered = |gfn| self.vm.invalidation().range().is_some_and(|(from, to)| from <= gfn && gfn < to);
        for leaf in tables.leaves().map_err(|error| error.to_string())? {
            if covered(leaf.gfn) {
                continue;
            }
            let gfn = leaf.gfn.raw();
            if self.backing(gfn) != Some(leaf.sfn) {
                return Err(format!("B4: guest frame {gfn:#x} is mapped to {:?}, which is not its page", leaf.sfn));
            }
            let meant = self.mapped_as.borrow().get(&gfn).copied();
            let (inode, index) = self.page(gfn);
            let is = inode.attribute(index, QUIET);
            if meant != Some(is) {
                return Err(format!("C8: guest frame {gfn:#x} is mapped as {meant:?} and is {is:?}"));
            }
        }
        if progress == Progress::Finished && self.vm.invalidation().in_progress() != 0 {
            return Err("E1: an invalidation was begun and never ended".to_owned());
        }
        Ok(())
    }

    /// A processor that reads each of `frames`, until it has read it or the fault leaves to the VMM.
    fn vcpu(self: &Rc<World>, n: u16, meaning: Shareability, frames: &'static [u64]) -> Body {
        let world = Rc::clone(self);
        Box::new(move |schedule| {
            let watch = Watch { world: &world, meant: Cell::new(meaning) };
            let task = Task::reporting(&watch).under(schedule).with(world.defects).on_lane(n as u8);
            for &gfn in frames {
                while !world.read_in_guest(n, gfn, &task) {
                    let input =
                        FaultInput { privacy: meaning, ..FaultInput::new(Gpa::new(gfn * PAGE), AccessKind::Read) };
                    match world.vm.handle_fault(VcpuId(n), input, &task).expect("memory is enough") {
                        Action::Resume(Resumed::Retry) => task.give_way(),
                        Action::Resume(_) => {}
                        Action::MemoryFault(_) | Action::Mmio { .. } => break,
                        Action::RomWrite { .. } => panic!("a read is no write to ROM"),
                    }
                }
            }
        })
    }

    fn read_in_guest(&self, n: u16, gfn: u64, task: &Task<'_>) -> bool {
        let cpu = &self.cpus[usize::from(n)];
        let (inside, flush) = self.vm.enter_guest(VcpuId(n), task).expect("the vCPU exists");
        match flush {
            None => {}
            Some(FlushRequest::All) => cpu.tlb.borrow_mut().clear(),
            Some(FlushRequest::Range { first, nr_pages }) => {
                cpu.tlb.borrow_mut().retain(|&gfn, _| gfn.wrapping_sub(first.raw()) >= nr_pages);
            }
        }
        cpu.in_guest.set(true);
        let found = cpu.tlb.borrow().get(&gfn).copied().or_else(|| self.walk(gfn));
        task.at(Point::T1);
        // The walk may be old by now; the processor fills its TLB from it all the same.
        let found = found.filter(|_| !inside.is_kicked());
        if let Some(sfn) = found {
            cpu.tlb.borrow_mut().insert(gfn, sfn);
            task.at(Point::T1);
        }
        cpu.in_guest.set(false);
        found.is_some()
    }

    fn host(self: &Rc<World>, act: impl Fn(&World, &Task<'_>) + 'static) -> Body {
        let world = Rc::clone(self);
        Box::new(move |schedule: &dyn Schedule| {
            let watch = Watch { world: &world, meant: Cell::new(Shareability::SHARED) };
            act(&world, &Task::reporting(&watch).under(schedule).with(world.defects).on_lane(7));
        })
    }

    fn program(self: Rc<World>, threads: Vec<(&'static str, Body)>) -> Program {
        Program { threads, check: Box::new(move |progress| self.check(progress)) }
    }
}

fn punch(inode: usize, first: u64, nr_pages: u64) -> impl Fn(&World, &Task<'_>) {
    move |world, task| world.vm.punch_hole(world.gmems[inode], first * PAGE, nr_pages * PAGE, task).unwrap()
}

fn convert(first: u64, nr_pages: u64, to: Shareability) -> impl Fn(&World, &Task<'_>) {
    move |world, task| world.vm.convert(world.gmems[0], first * PAGE, nr_pages * PAGE, to, task).unwrap()
}

/// Makes a fresh program for a pipeline with these defects.
type Start = fn(Defects) -> Program;

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;

/// A processor touches a page while it is punched out.
fn fault_and_punch(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3])), ("puncher", world.host(punch(0, 2, 4)))];
    world.program(threads)
}

/// A processor reads a page again and again while it is punched out: translations must go with it.
fn tlb_and_punch(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3, 3, 3])), ("puncher", world.host(punch(0, 3, 1)))];
    world.program(threads)
}

/// Holes in two inodes at once, and a processor in the first.
fn fault_and_two_punches(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let threads = vec![
        ("vcpu", world.vcpu(0, SHARED, &[1])),
        ("puncher 1", world.host(punch(0, 0, 4))),
        ("puncher 2", world.host(punch(1, 10, 2))),
    ];
    world.program(threads)
}

/// The host makes shared what a processor touches as private.
fn private_fault_and_conversion(defects: Defects) -> Program {
    let world = World::new(defects, PRIVATE);
    let threads = vec![("vcpu", world.vcpu(0, PRIVATE, &[5])), ("converter", world.host(convert(4, 4, SHARED)))];
    world.program(threads)
}

/// A slot goes while pages it shows are punched out, and a processor touches them.
fn unbind_and_punch(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let threads = vec![
        ("vcpu", world.vcpu(0, SHARED, &[3])),
        ("puncher", world.host(punch(0, 2, 4))),
        ("unbinder", world.host(|world, task| world.vm.remove_memslot(SlotId(0), task).unwrap())),
    ];
    world.program(threads)
}

/// Two processors touch one page.
fn two_faults(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let threads = vec![
        ("vcpu 0", world.vcpu(0, SHARED, &[7, 8])),
        ("vcpu 1", world.vcpu(1, SHARED, &[7, 8])),
        ("puncher", world.host(punch(0, 7, 2))),
    ];
    world.program(threads)
}

const SCENARIOS: [(&str, Start); 6] = [
    ("a fault and a punch", fault_and_punch),
    ("a TLB and a punch", tlb_and_punch),
    ("a fault and two punches", fault_and_two_punches),
    ("a private fault and a conversion", private_fault_and_conversion),
    ("an unbinding and a punch", unbind_and_punch),
    ("two faults and a punch", two_faults),
];

/// The scenario that shows each defect.
const SHOWN_BY: [(Defect, Start); 7] = [
    (Defect::SkipStaleCheck, fault_and_punch),
    (Defect::SampleAfterLookup, fault_and_punch),
    (Defect::IgnoreRangeInProgress, fault_and_punch),
    (Defect::ResetRangeOnBegin, fault_and_two_punches),
    (Defect::SkipFlush, tlb_and_punch),
    (Defect::StoreAttributeAfterEnd, private_fault_and_conversion),
    (Defect::UnlockDuringInvalidation, unbind_and_punch),
];

fn picture(start: Start, defects: Defects, finding: &interleave::Finding) -> String {
    let names: Vec<&str> = start(defects).threads.iter().map(|thread| thread.0).collect();
    timeline::render(finding, &names, &|pause| format!("{pause:?}"))
}

/// Nothing broke, or the picture says how.
fn sound(name: &str, start: Start, stopped: Stopped) {
    if let Stopped::Broke { finding, schedules } = stopped {
        let short = shrink(&move || start(Defects::NONE), finding);
        panic!("{name}, schedule {schedules}:\n{}", picture(start, Defects::NONE, &short));
    }
}

#[test]
fn every_defect_is_found_shrunk_and_replayed() {
    for defect in Defect::ALL {
        let (_, start) = SHOWN_BY.into_iter().find(|row| row.0 == defect).expect("every defect has its scenario");
        let scenario = move || start(Defects::only(defect));
        let strategies: [Box<dyn Strategy>; 3] =
            [Box::new(Random::new(Seed(7))), Box::new(Pct::new(Seed(7), 3)), Box::new(Exhaustive::new(3))];
        for mut strategy in strategies {
            let stopped = explore(&scenario, &mut *strategy, &mut |n| n < 100_000);
            let Stopped::Broke { finding, schedules } = stopped else { panic!("{defect:?} was not found") };
            let short = shrink(&scenario, finding.clone());
            assert!(short.preemptions() <= finding.preemptions());
            assert_eq!(replay(&scenario, short.choices()), Err(short.clone()), "it replays");
            assert!(replay(&move || start(Defects::NONE), short.choices()).is_ok(), "the defect is what broke it");
            println!("{defect:?}, schedule {schedules}:\n{}", picture(start, Defects::only(defect), &short));
        }
    }
}

#[test]
fn without_a_defect_nothing_breaks() {
    for (name, start) in SCENARIOS {
        let scenario = move || start(Defects::NONE);
        let stopped = explore(&scenario, &mut Exhaustive::new(2), &mut |n| n < 10_000);
        sound(name, start, stopped);
        for seed in 0..4 {
            let stopped = explore(&scenario, &mut Random::new(Seed(seed)), &mut |n| n < 2_000);
            sound(name, start, stopped);
            let stopped = explore(&scenario, &mut Pct::new(Seed(seed), 3), &mut |n| n < 2_000);
            sound(name, start, stopped);
        }
    }
}
