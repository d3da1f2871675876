//! References that the host holds on pages: those that a conversion must see, those that are in its way for a moment, and
//! those that must not be taken at all.

use std::cell::RefCell;
use std::rc::Rc;

use emu_core::defect::{Defect, Defects};
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, Hva, Order};
use gmem::mm::{Advice, DeviceMemory, Hold, Sharing, UserAccess};
use gmem::{BusyPages, ConvertError, GmemPolicy, LruBatches, PageIndex, Shareability};
use hypervisor::{VmConfig, VmError};
use interleave::Program;

use super::Scenario;
use super::user_memory::{HVA, USER_GFN, map, map_gmem, mappable, show_anonymous, show_user, touch};
use super::world::{PAGE, Setup, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "pin-convert",
        what: "a device pins a page of the VMM's mapping while it is made private",
        shows: &[Defect::CountBeforeUnmap],
        start: pin_and_conversion,
    },
    Scenario {
        name: "batch-convert",
        what: "a page that the VMM touched a moment ago is made private",
        shows: &[Defect::CountBatches],
        start: batch_and_conversion,
    },
    Scenario {
        name: "speculation-split",
        what: "compaction looks at a private huge page while a part of it is made shared",
        shows: &[Defect::FreezeGivesUp],
        start: speculation_and_split,
    },
    Scenario {
        name: "pin-for-ever",
        what: "a page that a device never lets go of is made private",
        shows: &[Defect::WaitForPins],
        start: pin_for_ever,
    },
    Scenario {
        name: "device-fault",
        what: "a processor touches memory of a device that the VMM maps",
        shows: &[Defect::ReferenceDevicePages],
        start: device_fault,
    },
    Scenario {
        name: "fault-unmap",
        what: "a processor touches user memory that the VMM throws away",
        shows: &[Defect::MarkAfterRelease],
        start: fault_and_unmap,
    },
    Scenario {
        name: "long-map-move",
        what: "the hypervisor maps a page for itself that a driver moves elsewhere",
        shows: &[Defect::MapDeviceForLong],
        start: long_map_and_move,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;
/// The page that all this is about.
const INDEX: u64 = 3;

fn make_private(world: &World, task: &Task<'_>) -> Result<(), VmError> {
    world.vm.convert(world.gmems[0], INDEX * PAGE, PAGE, PRIVATE, task)
}

const BUSY: VmError = VmError::Convert(ConvertError::Busy { index: PageIndex(INDEX) });

/// A device pins a page that the VMM maps while it is made private.
fn pin_and_conversion(defects: Defects) -> Program {
    let world = mappable(defects).build();
    map_gmem(&world, 0, HVA, &Task::QUIET);
    touch(&world, HVA + INDEX * PAGE, UserAccess::Write, &Task::QUIET).expect("it is shared");
    let pin = |world: &World, task: &Task<'_>| {
        let at = Hva::new(HVA + INDEX * PAGE);
        // Kept for as long as the machine runs.
        let _ = world.vm.mm().gup_fast(at, UserAccess::Write, Hold::Pin, world.vm.host(), task);
    };
    let convert = |world: &World, task: &Task<'_>| match make_private(world, task) {
        Ok(()) | Err(BUSY) => {}
        Err(other) => world.broken("C5", other),
    };
    let threads = vec![("device", world.host(pin)), ("converter", world.host(convert))];
    world.program(threads)
}

/// The VMM touches a page and makes it private.
fn batch_and_conversion(defects: Defects) -> Program {
    let adjust = |config: &mut VmConfig| config.gmem = GmemPolicy { batches: LruBatches::On, ..GmemPolicy::DEFAULT };
    let world = Setup { adjust, ..mappable(defects) }.build();
    map_gmem(&world, 0, HVA, &Task::QUIET);
    let user = |world: &World, task: &Task<'_>| {
        // Once it is private this is SIGBUS.
        let _ = touch(world, HVA + INDEX * PAGE, UserAccess::Write, task);
    };
    let convert = |world: &World, task: &Task<'_>| {
        if let Err(refused) = make_private(world, task) {
            world.broken("C5", format_args!("nobody holds page {INDEX}: {refused}"));
        }
    };
    let threads = vec![("user", world.host(user)), ("converter", world.host(convert))];
    world.program(threads)
}

/// Compaction looks at a page of a huge page that must be split.
fn speculation_and_split(defects: Defects) -> Program {
    let world = Setup { initial: PRIVATE, ..Setup::huge(defects) }.build();
    let inode = world.vm.gmem(world.gmems[0], &Task::QUIET).expect("it is open");
    inode.shared(&Task::QUIET).get_folio(world.vm.host(), PageIndex(0), &Task::QUIET).expect("it is reserved");
    let look = |world: &World, task: &Task<'_>| {
        let inode = world.vm.gmem(world.gmems[0], task).expect("it is open");
        let found = inode.try_get_folio(world.vm.host(), PageIndex(INDEX), task);
        task.at(Point::F3b);
        if let Some(sfn) = found {
            inode.put_page(world.vm.host(), sfn, task);
        }
    };
    let share = |world: &World, task: &Task<'_>| {
        if let Err(refused) = world.vm.convert(world.gmems[0], INDEX * PAGE, PAGE, SHARED, task) {
            world.broken("C5", format_args!("nobody keeps page {INDEX}: {refused}"));
        }
    };
    let threads = vec![("compaction", world.host(look)), ("converter", world.host(share))];
    world.program(threads)
}

/// A device never lets go of a page; whoever wants it private gives up after a while.
fn pin_for_ever(defects: Defects) -> Program {
    let adjust = |config: &mut VmConfig| {
        config.gmem = GmemPolicy { busy: BusyPages::Wait { tries: 2 }, ..GmemPolicy::DEFAULT };
    };
    let world = Setup { adjust, ..mappable(defects) }.build();
    let pin = |world: &World, task: &Task<'_>| {
        let inode = world.vm.gmem(world.gmems[0], task).expect("it is open");
        // Once it is private there is nothing to pin.
        let _ = inode.shared(task).pin_page(world.vm.host(), PageIndex(INDEX), task);
    };
    let convert = |world: &World, task: &Task<'_>| {
        for _ in 0..3 {
            match make_private(world, task) {
                Ok(()) => return,
                Err(BUSY) => task.give_way(),
                Err(other) => world.broken("C5", other),
            }
        }
    };
    let threads = vec![("device", world.host(pin)), ("vmm", world.host(convert))];
    world.program(threads)
}

/// Blocks of a driver, each of two pages that are no compound page.
fn device_blocks(world: &World, n: usize) -> Vec<DeviceMemory> {
    let mut host = world.vm.host().lock(&Task::QUIET);
    let order = Order::new(1).expect("an order");
    (0..n).map(|_| host.alloc_device(order).expect("memory is enough")).collect()
}

/// A processor touches memory of a device.
fn device_fault(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let blocks = device_blocks(&world, 1);
    map(&world, HVA, 2 * PAGE, Sharing::Shared, blocks[0].what(), &Task::QUIET);
    show_user(&world, 2, &Task::QUIET);
    let user = |world: &World, task: &Task<'_>| {
        touch(world, HVA + PAGE, UserAccess::Write, task).expect("it is mapped");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[USER_GFN + 1])), ("vmm", world.host(user))];
    world.program_that_ends(threads, move |world| {
        if let Err(wrong) = world.vm.host().lock(&Task::QUIET).check_device(&blocks[0]) {
            world.broken("B8", wrong);
        }
    })
}

/// A processor touches user memory that the VMM throws away.
fn fault_and_unmap(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    show_anonymous(&world, &Task::QUIET);
    touch(&world, HVA, UserAccess::Write, &Task::QUIET).expect("memory is enough");
    let forget = |world: &World, task: &Task<'_>| {
        let (at, kernel) = (Hva::new(HVA), world.vm.kernel(task));
        world.vm.mm().madvise(at, PAGE, Advice::DontNeed, kernel).map(drop).expect("it is mapped");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[USER_GFN])), ("vmm", world.host(forget))];
    world.program(threads)
}

/// The hypervisor wants a page for long that a driver moves.
fn long_map_and_move(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let mut blocks = device_blocks(&world, 2);
    map(&world, HVA, 2 * PAGE, Sharing::Shared, blocks[0].what(), &Task::QUIET);
    show_user(&world, 2, &Task::QUIET);
    let hypervisor = |world: &World, task: &Task<'_>| {
        let Ok(map) = world.vm.map_guest_page(Gfn::new(USER_GFN), UserAccess::Read, task) else { return };
        task.at(Point::T1);
        if world.vm.host().lock(task).folios().get(map.sfn()).is_none() {
            world.broken("B8", format_args!("the hypervisor reads {:?}, which its driver has freed", map.sfn()));
        }
        world.vm.unmap_guest_page(map, task);
    };
    let new = blocks.pop().expect("there are two");
    let old = Rc::new(RefCell::new(blocks.pop()));
    let driver = move |world: &World, task: &Task<'_>| {
        let kernel = world.vm.kernel(task);
        world.vm.mm().move_device(Hva::new(HVA), 2 * PAGE, new.first(), kernel).expect("it is mapped");
        task.at(Point::I4);
        if let Some(old) = old.borrow_mut().take() {
            world.vm.host().lock(task).free_device(old).expect("nobody else has it");
        }
    };
    let threads = vec![("hypervisor", world.host(hypervisor)), ("driver", world.host(driver))];
    world.program(threads)
}
