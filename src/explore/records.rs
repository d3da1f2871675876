//! Attributes that belong to the VM, and what memslots remember of huge pages.
//!
//! Under the released guest_memfd (7.3) the VM says which guest frames are private, and each slot records which huge pages
//! are mixed. Here that is explored over huge folios, which such an inode could have.

use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use emu_core::{Gpa, PageSize};
use gmem::{Generation, GmemFlags, GmemPolicy, OrderRule, Shareability};
use hypervisor::dirty::DirtyLogging;
use hypervisor::{
    AttributeError, MEMORY_ATTRIBUTE_PRIVATE, MemSlotSpec, MemoryAttributes, SlotFlags, SlotId, VmConfig, VmKind,
};
use interleave::Program;

use super::Scenario;
use super::world::{PAGE, Setup, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "huge-fault-attributes",
        what: "a processor touches a huge page while the VM's attributes make another page of it private",
        shows: &[Defect::RecordMixedAfterEnd, Defect::NarrowConversion],
        start: huge_fault_and_attributes,
    },
    Scenario {
        name: "logging-recovery",
        what: "logging of a slot that starts inside 1 GiB starts and stops while a processor touches it",
        shows: &[Defect::RecoverAroundSlot],
        start: logging_and_recovery,
    },
    Scenario {
        name: "attributes-without-memory",
        what: "memory for the VM's attributes runs out in the middle of a range, and what was there is taken back",
        shows: &[Defect::CountReservedEntries],
        start: attributes_without_memory,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;
const M2: u64 = PageSize::Size2M.frames();

/// A world whose VM has the attributes, over huge folios.
fn by_vm(defects: Defects) -> Setup {
    let adjust = |config: &mut VmConfig| {
        config.kind = VmKind::SwProtected;
        config.gmem = GmemPolicy { order: OrderRule::Contained, ..Generation::V7_3.policy() };
    };
    Setup { adjust, flags: GmemFlags::MMAP, ..Setup::huge(defects) }
}

fn set(world: &World, first: u64, nr_pages: u64, to: Shareability, task: &Task<'_>) -> Result<(), AttributeError> {
    let attributes = if to.is_private() { MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
    let wanted = MemoryAttributes { address: first * PAGE, size: nr_pages * PAGE, attributes, flags: 0 };
    world.vm.set_memory_attributes(&wanted, task)
}

/// A processor touches a huge page while another page of it is made private.
fn huge_fault_and_attributes(defects: Defects) -> Program {
    let world = by_vm(defects).build();
    let convert = |world: &World, task: &Task<'_>| set(world, 1, 1, PRIVATE, task).expect("memory is enough");
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[7])), ("vmm", world.host(convert))];
    world.program(threads)
}

/// Huge leaves are put together again in a slot that shares its 1 GiB with what is no memory.
fn logging_and_recovery(defects: Defects) -> Program {
    let adjust = |config: &mut VmConfig| config.pages.max_level = PageSize::Size1G;
    let world = Setup { adjust, ..Setup::huge(defects) }.build();
    let quiet = &Task::QUIET;
    let (gpa, len_bytes) = (Gpa::new(M2 * PAGE), M2 * PAGE);
    let (id, flags, gmem) = (SlotId(0), SlotFlags::empty(), world.gmems[0]);
    world.vm.remove_memslot(id, quiet).expect("it is there");
    world
        .vm
        .add_memslot(&MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes: 0 }, quiet)
        .expect("the slot fits");
    let log = |world: &World, task: &Task<'_>| {
        for logging in [DirtyLogging::On, DirtyLogging::Off] {
            world.vm.set_dirty_logging(SlotId(0), logging, task).expect("the slot is there");
        }
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[M2 + 3])), ("vmm", world.host(log))];
    world.program(threads)
}

/// Attributes are set, cannot be set for want of memory, and are taken back.
fn attributes_without_memory(defects: Defects) -> Program {
    let world = by_vm(defects).build();
    let vmm = |world: &World, task: &Task<'_>| {
        set(world, 3, 1, PRIVATE, task).expect("memory is enough");
        world.vm.host().lock(task).occupy(u64::MAX);
        let refused = set(world, 8, 128, PRIVATE, task);
        assert!(matches!(refused, Err(AttributeError::NoMemory { .. })), "there is no memory: {refused:?}");
        world.vm.host().lock(task).vacate(u64::MAX);
        set(world, 3, 1, SHARED, task).expect("memory is enough");
    };
    let threads = vec![("vmm", world.host(vmm))];
    world.program(threads)
}
