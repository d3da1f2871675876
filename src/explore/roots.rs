//! Entries and roots that go another way: zaps that let others in between, roots that are given up, tables that make room
//! for a huge leaf, entries for devices, and pages mapped ahead.

use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa};
use hypervisor::{
    GmemFlags, MemSlotSpec, MmuParams, NxHugePages, PreFault, PreFaultError, Shareability, SlotFlags, SlotId, VcpuId,
    VmError,
};
use interleave::Program;

use super::Scenario;
use super::processor::Access;
use super::world::{PAGE, Setup, TOUCHED, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "zap-punch",
        what: "mappings are dropped in several pieces while one of the pages is punched out",
        shows: &[Defect::YieldWithoutFlush],
        start: zap_and_punch,
    },
    Scenario {
        name: "fast-zap-punch",
        what: "the root is given up, and before it is empty a page that it maps is punched out",
        shows: &[Defect::ForgetInvalidRoots],
        start: fast_zap_and_punch,
    },
    Scenario {
        name: "nx-recovery",
        what: "a table that stands for a huge leaf is given up while a fault puts the leaf in its place",
        shows: &[Defect::RecoverBlindly],
        start: recover_and_fault,
    },
    Scenario {
        name: "device-becomes-memory",
        what: "a memslot comes where a processor found no memory before",
        shows: &[Defect::IgnoreMmioGeneration],
        start: device_becomes_memory,
    },
    Scenario {
        name: "prefault-unbind",
        what: "a memslot is deleted while its pages are mapped ahead",
        shows: &[Defect::PrefaultWaitsForSlot],
        start: prefault_and_unbind,
    },
];

const SHARED: Shareability = Shareability::SHARED;

fn reads(frames: &[u64]) -> Vec<Access> {
    frames.iter().map(|&gfn| Access { kind: AccessKind::Read, gfn, meaning: SHARED }).collect()
}

fn punch(world: &World, task: &Task<'_>) {
    world.vm.punch_hole(world.gmems[0], 3 * PAGE, PAGE, task).expect("the range lies in the inode");
}

/// Two pages are mapped, and both mappings are dropped.
fn zap_and_punch(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    world.before(0, &reads(&[3, 8]));
    let zap = |world: &World, task: &Task<'_>| {
        world.vm.zap_range(Gfn::new(0), TOUCHED, task).expect("tables lie in memory");
    };
    let threads =
        vec![("vcpu", world.guest(0, reads(&[3]))), ("zapper", world.host(zap)), ("puncher", world.host(punch))];
    world.program(threads)
}

/// A page is mapped under the root that is given up.
fn fast_zap_and_punch(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    world.before(0, &reads(&[3]));
    let zap = |world: &World, task: &Task<'_>| world.vm.zap_all_fast(task).expect("memory for a root");
    let threads =
        vec![("vcpu", world.guest(0, reads(&[3]))), ("zapper", world.host(zap)), ("puncher", world.host(punch))];
    world.program(threads)
}

/// Code in a huge page was executed once; now data beside it is read.
fn recover_and_fault(defects: Defects) -> Program {
    let params = MmuParams { nx_huge_pages: NxHugePages::On, ..MmuParams::default() };
    let world = Setup { params, ..Setup::huge(defects) }.build();
    world.before(0, &[Access { kind: AccessKind::Execute, gfn: 3, meaning: SHARED }]);
    let recover = |world: &World, task: &Task<'_>| {
        world.vm.recover_nx_huge_pages(1, task).expect("tables lie in memory");
    };
    let threads = vec![("vcpu", world.guest(0, reads(&[5]))), ("recovery", world.host(recover))];
    world.program(threads)
}

/// A processor polls a device register whose page becomes memory.
fn device_becomes_memory(defects: Defects) -> Program {
    const PLACE: u64 = 2000;
    let world = Setup::of(defects).build();
    let add = |world: &World, task: &Task<'_>| {
        let add = || -> Result<(), VmError> {
            let len_bytes = TOUCHED * PAGE;
            let gmem = world.vm.create_guest_memfd(len_bytes, GmemFlags::INIT_SHARED.bits(), task)?;
            let (id, gpa, flags) = (SlotId(2), Gpa::new(PLACE * PAGE), SlotFlags::empty());
            world.vm.add_memslot(&MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes: 0 }, task)
        };
        add().expect("the place is free");
    };
    let threads = vec![("vcpu", world.guest(0, reads(&[PLACE, PLACE, PLACE]))), ("vmm", world.host(add))];
    world.program(threads)
}

/// Two pages are mapped ahead.
fn prefault_and_unbind(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let ahead = |world: &World, task: &Task<'_>| {
        let mut range = PreFault { gpa: Gpa::new(3 * PAGE), len_bytes: 2 * PAGE, flags: 0 };
        let done = world.vm.pre_fault_memory(VcpuId(0), &mut range, &mut || true, task);
        let gone = matches!(done, Err(PreFaultError::SlotChanging { .. } | PreFaultError::NoSlot { .. }));
        assert!(done.is_ok() || gone, "{done:?}");
    };
    let unbind = |world: &World, task: &Task<'_>| world.vm.remove_memslot(SlotId(0), task).expect("it is there");
    let threads = vec![("prefault", world.host(ahead)), ("unbinder", world.host(unbind))];
    world.program(threads)
}
