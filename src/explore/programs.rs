//! The tasks of each scenario.

use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use gmem::PageIndex;
use hypervisor::{Shareability, SlotId};
use interleave::Program;

use super::Scenario;
use super::world::{PAGE, World};

fn punch(inode: usize, first: u64, nr_pages: u64) -> impl Fn(&World, &Task<'_>) {
    move |world, task| {
        world
            .vm
            .punch_hole(world.gmems[inode], first * PAGE, nr_pages * PAGE, task)
            .expect("the range lies in the inode")
    }
}

fn convert(first: u64, nr_pages: u64, to: Shareability) -> impl Fn(&World, &Task<'_>) {
    move |world, task| {
        world.vm.convert(world.gmems[0], first * PAGE, nr_pages * PAGE, to, task).expect("nobody holds a page")
    }
}

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "fault-punch",
        what: "a processor touches a page while it is punched out",
        shows: &[Defect::SkipStaleCheck, Defect::SampleAfterLookup, Defect::IgnoreRangeInProgress],
        start: fault_and_punch,
    },
    Scenario {
        name: "tlb-punch",
        what: "a processor reads a page again and again while it is punched out: translations must go with it",
        shows: &[Defect::SkipFlush],
        start: tlb_and_punch,
    },
    Scenario {
        name: "fault-two-punches",
        what: "two inodes are punched at once, and a processor touches the first",
        shows: &[Defect::ResetRangeOnBegin],
        start: fault_and_two_punches,
    },
    Scenario {
        name: "fault-convert",
        what: "the host makes shared what a processor touches as private",
        shows: &[Defect::StoreAttributeAfterEnd],
        start: private_fault_and_conversion,
    },
    Scenario {
        name: "unbind-punch",
        what: "a memslot is deleted while pages it shows are punched out, and a processor touches them",
        shows: &[Defect::UnlockDuringInvalidation],
        start: unbind_and_punch,
    },
    Scenario {
        name: "two-faults-punch",
        what: "two processors touch the same pages while they are punched out",
        shows: &[],
        start: two_faults,
    },
    Scenario {
        name: "two-huge-faults",
        what: "two processors touch one huge page that is reserved once",
        shows: &[Defect::AllocateTwice],
        start: two_huge_faults,
    },
    Scenario {
        name: "huge-fault-convert",
        what: "a processor touches a huge page while another page of it is made private",
        shows: &[Defect::NarrowConversion],
        start: huge_fault_and_conversion,
    },
    Scenario {
        name: "fault-unbind",
        what: "a memslot is deleted while a processor touches it",
        shows: &[Defect::KeepBinding],
        start: fault_and_unbind,
    },
    Scenario {
        name: "misaligned-slot",
        what: "processors touch huge pages through a slot that shows them one page out of step",
        shows: &[Defect::OrderWithoutCongruence],
        start: misaligned_slot,
    },
    Scenario {
        name: "faults-convert-empty",
        what: "pages that were never populated are made private while processors touch them",
        shows: &[],
        start: faults_and_conversion_of_nothing,
    },
    Scenario {
        name: "fault-failure",
        what: "the memory of a page fails while a processor touches it",
        shows: &[Defect::FailureTellsNobody],
        start: fault_and_failure,
    },
];

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
        ("unbinder", world.host(|world, task| world.vm.remove_memslot(SlotId(0), task).expect("it is there"))),
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

/// Two processors touch one huge page that is reserved once.
fn two_huge_faults(defects: Defects) -> Program {
    let world = World::huge(defects);
    let threads = vec![("vcpu 0", world.vcpu(0, SHARED, &[3])), ("vcpu 1", world.vcpu(1, SHARED, &[8]))];
    world.program(threads)
}

/// A processor touches a huge page while another page of it is made private.
fn huge_fault_and_conversion(defects: Defects) -> Program {
    let world = World::huge(defects);
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[0])), ("converter", world.host(convert(3, 1, PRIVATE)))];
    world.program(threads)
}

/// A slot is deleted while a processor touches it.
fn fault_and_unbind(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let threads = vec![
        ("vcpu", world.vcpu(0, SHARED, &[3])),
        ("unbinder", world.host(|world, task| world.vm.remove_memslot(SlotId(0), task).expect("it is there"))),
    ];
    world.program(threads)
}

/// Processors touch huge pages through a slot that shows them one page out of step.
fn misaligned_slot(defects: Defects) -> Program {
    let world = World::misaligned(defects);
    let threads = vec![("vcpu 0", world.vcpu(0, SHARED, &[517])), ("vcpu 1", world.vcpu(1, SHARED, &[600]))];
    world.program(threads)
}

/// Two processors touch pages that have never been populated while a host thread makes them private.
fn faults_and_conversion_of_nothing(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let threads = vec![
        ("vcpu 0", world.vcpu(0, SHARED, &[4, 6])),
        ("vcpu 1", world.vcpu(1, PRIVATE, &[5, 6])),
        ("converter", world.host(convert(4, 4, PRIVATE))),
    ];
    world.program(threads)
}

/// The memory of a page fails while a processor touches it.
fn fault_and_failure(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let fail = |world: &World, task: &Task<'_>| {
        world.vm.memory_failure(world.gmems[0], PageIndex(3), task).expect("the page is there or not");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3])), ("failure", world.host(fail))];
    world.program(threads)
}
