//! How files of guest_memfd, their memslots and what they allocated end.

use emu_core::defect::{Defect, Defects};
use emu_core::sync::{Point, Task};
use emu_core::{Gpa, PageSize};
use gmem::{PageIndex, Shareability};
use hypervisor::{MemSlotSpec, MemslotError, SlotFlags, SlotId, VmError};
use interleave::Program;

use super::Scenario;
use super::world::{PAGE, Setup, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "fault-close",
        what: "the last descriptor of a guest_memfd is closed while a processor touches it",
        shows: &[Defect::ReviveFile],
        start: fault_and_close,
    },
    Scenario {
        name: "close-unslot",
        what: "the last descriptor of a guest_memfd is closed while the memslot that shows it is deleted",
        shows: &[Defect::SkipDyingFile],
        start: close_and_delete,
    },
    Scenario {
        name: "fault-move",
        what: "a memslot moves while a processor touches it",
        shows: &[Defect::MoveWithoutUnbind],
        start: fault_and_move,
    },
    Scenario {
        name: "refused-binding",
        what: "a second memslot is refused, and the guest_memfd is closed",
        shows: &[Defect::LeakFileOnError],
        start: refused_binding,
    },
    Scenario {
        name: "piece-outlives",
        what: "a piece of a huge page is held while its guest_memfd is closed",
        shows: &[Defect::EndSubpoolWithInode],
        start: piece_outlives_inode,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;

fn close(world: &World, task: &Task<'_>) {
    world.vm.close_descriptor(world.gmems[0], task).expect("it is open");
}

fn delete(world: &World, task: &Task<'_>) {
    world.vm.remove_memslot(SlotId(0), task).expect("it is there");
}

/// A file is closed while a processor touches its memory.
fn fault_and_close(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3, 4])), ("vmm", world.host(close))];
    world.program(threads)
}

/// A file is closed while its memslot is deleted.
fn close_and_delete(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let threads =
        vec![("vcpu", world.vcpu(0, SHARED, &[3])), ("closer", world.host(close)), ("slots", world.host(delete))];
    world.program(threads)
}

/// A memslot moves while a processor touches it.
fn fault_and_move(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let relocate = |world: &World, task: &Task<'_>| {
        world.vm.move_memslot(SlotId(0), Gpa::new(64 * PAGE), task).expect("the place is free");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3, 64 + 3])), ("slots", world.host(relocate))];
    world.program(threads)
}

/// A memslot over pages that are bound already is refused; then everything is closed.
fn refused_binding(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let vmm = |world: &World, task: &Task<'_>| {
        let (id, flags, gmem) = (SlotId(2), SlotFlags::empty(), world.gmems[0]);
        let (gpa, len_bytes, offset_bytes) = (Gpa::new(2048 * PAGE), PAGE, 0);
        let refused = world.vm.add_memslot(&MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes }, task);
        let bound_twice = matches!(refused, Err(VmError::Memslot(MemslotError::Bind(_))));
        assert!(bound_twice, "its first page is bound: {refused:?}");
        delete(world, task);
        close(world, task);
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3])), ("vmm", world.host(vmm))];
    world.program_that_ends(threads, |world| {
        if world.vm.gmem(world.gmems[0], &Task::QUIET).is_some() {
            world.broken("A7", "guest_memfd 0 has no descriptor and no memslot, and was never released");
        }
    })
}

/// A piece of a split huge page is held while its inode ends.
fn piece_outlives_inode(defects: Defects) -> Program {
    let world = Setup { initial: PRIVATE, ..Setup::huge(defects) }.build();
    let quiet = &Task::QUIET;
    world.vm.convert(world.gmems[0], 3 * PAGE, PAGE, SHARED, quiet).expect("nothing is allocated");
    let hold = |world: &World, task: &Task<'_>| {
        let Some(inode) = world.vm.gmem(world.gmems[0], task) else { return };
        let Ok(sfn) = inode.shared(task).get_page(world.vm.host(), PageIndex(3), task) else { return };
        task.at(Point::T1);
        inode.put_page(world.vm.host(), sfn, task);
    };
    let threads = vec![("holder", world.host(hold)), ("vmm", world.host(close))];
    world.program_that_ends(threads, |world| {
        let free = world.vm.host().lock(&Task::QUIET).pool(gmem::HugeSize::Size2M).stats().free;
        if free != 2 {
            world.broken("F7", format_args!("{free} of two {} pages are back", PageSize::Size2M));
        }
    })
}
