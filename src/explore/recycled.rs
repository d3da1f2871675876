//! What is used by its place after it was freed: entries and frames that come back for another page, memslots and files
//! that lie where others lay, a VM without users, nodes of trees, descriptors of the reverse map.
//!
//! Memory that is freed here is known to be: nodes and descriptors have a number that is never used again, so that who
//! holds on to one is found out when it is read.

use std::rc::Rc;

use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use emu_core::{Gfn, Gpa};
use hypervisor::{Aging, GmemFlags, MemSlotSpec, Shareability, SlotFlags, SlotId, VcpuId};
use interleave::Program;

use super::Scenario;
use super::migration::Log;
use super::shadowed::{Guest, Step, TABLE, entry};
use super::world::{PAGE, QUIET, Setup, TOUCHED, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "shadow-entry-returns",
        what: "a guest page is written while its frame and its shadow entry come back for another guest page",
        shows: &[Defect::FastPathOnShadow],
        start: entry_returns,
    },
    Scenario {
        name: "file-returns",
        what: "a processor touches a page while its memslot and its guest_memfd go and others come in their place",
        shows: &[Defect::TrustReusedFile],
        start: file_returns,
    },
    Scenario {
        name: "vm-closed-first",
        what: "the VM is closed, and then its guest_memfd is allocated, punched, converted and closed",
        shows: &[Defect::FileWithoutVm],
        start: vm_closed_first,
    },
    Scenario {
        name: "lookup-convert",
        what: "a processor's fault looks up who may use a page while pages beside it are made private",
        shows: &[Defect::ReadFreedNode],
        start: lookup_and_conversion,
    },
    Scenario {
        name: "shadow-age-punch",
        what: "the host asks which pages were used while one that is mapped twice over shadow tables is punched out",
        shows: &[Defect::AgeUnlocked],
        start: age_and_punch,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;

/// `FALLOC_FL_KEEP_SIZE`.
const KEEP_SIZE: u32 = 1;

fn punch(world: &World, page: u64, task: &Task<'_>) {
    world.vm.punch_hole(world.gmems[0], page * PAGE, PAGE, task).expect("the range lies in the inode");
}

/// Page 5 of the guest is mapped, and its writes are logged. Its frame is freed and goes to guest frame 8, which the guest
/// then maps at page 5.
fn entry_returns(defects: Defects) -> Program {
    let guest = Guest::new(defects);
    punch(&guest.world, 8, QUIET);
    guest.run(0, &[Step::Start, Step::Put(5)], QUIET);
    // The last faults need no tables: those that they took in hand are left for the faults to come.
    guest.run(1, &[Step::Start, Step::Read(9)], QUIET);
    guest.run(0, &[Step::Read(8)], QUIET);
    punch(&guest.world, 8, QUIET);
    guest.world.migrate(Log::Bitmap);
    // Then two frames are to be had: that of page 5, and above it that of page 6.
    guest.world.vm.host().lock(QUIET).occupy(u64::MAX);
    punch(&guest.world, 6, QUIET);
    let other = Rc::clone(&guest);
    let exchange = move |world: &World, task: &Task<'_>| {
        punch(world, 5, task);
        let at = Gpa::new(TABLE * PAGE + 8 * 5);
        world.vm.emulate_write(VcpuId(1), at, &entry(8).to_le_bytes(), task).expect("the page is shared");
        other.run(1, &[Step::Put(5)], task);
        world.pass(task);
    };
    let threads = vec![("vcpu 0", guest.vcpu(0, &[Step::Put(5)])), ("vcpu 1", guest.world.host(exchange))];
    Rc::clone(&guest.world).program(threads)
}

/// The first memslot and its file go; a new file and a new memslot with the same number take their places, at another
/// guest frame.
fn file_returns(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let replace = |world: &World, task: &Task<'_>| {
        world.vm.remove_memslot(SlotId(0), task).expect("it is there");
        world.vm.close_descriptor(world.gmems[0], task).expect("it is open");
        let (len_bytes, flags) = (TOUCHED * PAGE, SlotFlags::empty());
        let gmem = world.vm.create_guest_memfd(len_bytes, GmemFlags::INIT_SHARED.bits(), task);
        let gmem = gmem.expect("nothing is reserved");
        let (id, gpa, offset_bytes) = (SlotId(0), Gpa::new(64 * PAGE), 0);
        world
            .vm
            .add_memslot(&MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes }, task)
            .expect("the place is free");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3])), ("vmm", world.host(replace))];
    world.program(threads)
}

/// Pages of the first file are mapped when the VM is closed.
fn vm_closed_first(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    world.vm.close_descriptor(world.gmems[1], QUIET).expect("it is open");
    let close = |world: &World, task: &Task<'_>| {
        world.vm.close_vm_descriptor(task).expect("it is open");
    };
    let use_file = |world: &World, task: &Task<'_>| {
        let (vm, gmem) = (&world.vm, world.gmems[0]);
        vm.fallocate(gmem, KEEP_SIZE, 0, PAGE as i64, task).expect("memory is enough");
        punch(world, 3, task);
        vm.convert(gmem, 4 * PAGE, PAGE, PRIVATE, task).expect("nobody holds a page");
        vm.close_descriptor(gmem, task).expect("it is open");
    };
    world.before(0, &[super::processor::Access { kind: emu_core::AccessKind::Write, gfn: 3, meaning: SHARED }]);
    let threads = vec![("vmm", world.host(close)), ("file", world.host(use_file))];
    world.program_that_ends(threads, |world| {
        if !world.vm.is_destroyed() {
            world.broken("A7", "nobody refers to the VM, and it is still there");
        }
    })
}

/// A fault on a shared page while its neighbours become private.
fn lookup_and_conversion(defects: Defects) -> Program {
    let world = World::new(defects, SHARED);
    let convert = |world: &World, task: &Task<'_>| {
        world.vm.convert(world.gmems[0], 8 * PAGE, 4 * PAGE, PRIVATE, task).expect("nobody holds a page");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[5])), ("converter", world.host(convert))];
    world.program(threads)
}

/// Pages 5 and 6 of the guest are one guest frame.
fn age_and_punch(defects: Defects) -> Program {
    let guest = Guest::new(defects);
    let again = Gpa::new(TABLE * PAGE + 8 * 6);
    guest.world.vm.guest_write(again, &entry(5).to_le_bytes(), QUIET).expect("the page is shared");
    guest.run(0, &[Step::Start, Step::Read(5), Step::Read(6)], QUIET);
    let age = |world: &World, task: &Task<'_>| {
        let young = world.vm.age_range(Gfn::new(0), TOUCHED, Aging::Clear, task);
        assert!(young.is_ok(), "tables lie in memory: {young:?}");
    };
    let hole = |world: &World, task: &Task<'_>| punch(world, 5, task);
    let threads = vec![
        ("vcpu", guest.vcpu(0, &[Step::Read(6)])),
        ("aging", guest.world.host(age)),
        ("puncher", guest.world.host(hole)),
    ];
    Rc::clone(&guest.world).program(threads)
}
