//! Launch images: the VMM fills private memory while others use the same inode.

use std::sync::Arc;

use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use emu_core::{Gfn, Gpa, Hva};
use gmem::PageIndex;
use gmem::mm::{MapRequest, Prot, Sharing, ThpChoice, What};
use hypervisor::{
    GmemFlags, GmemId, LaunchPage, MemSlotSpec, Populate, Shareability, SlotFlags, SlotId, SourceUse, VmError,
};
use interleave::Program;

use super::Scenario;
use super::world::{PAGE, QUIET, Setup, TOUCHED, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "populate-user-fault",
        what: "a launch image lies in shared pages of the very file that it fills, and a thread of the VMM touches those",
        shows: &[Defect::PopulateUnderLock],
        start: populate_and_user_fault,
    },
    Scenario {
        name: "populate-punch",
        what: "a private page is punched out while a launch image is copied to it",
        shows: &[Defect::PopulateUnlocked],
        start: populate_and_punch,
    },
];

/// Where the VMM has the image.
const IMAGE: Hva = Hva::new(0x7000_0000_0000);
/// Guest frames of a memslot beside those of the world.
const PLACE: u64 = 2000;

fn image_at(first: u64) -> Populate {
    Populate { first: Gfn::new(first), source: Some(IMAGE), nr_pages: 1, source_use: SourceUse::Read }
}

fn map(world: &World, what: What, sharing: Sharing) {
    let request = MapRequest { at: IMAGE, len_bytes: PAGE, prot: Prot::READ | Prot::WRITE, sharing, what };
    world.vm.mm().map(request, QUIET).expect("the address is free");
}

/// A file whose lower half is private and whose upper half is shared, and mapped.
fn half_private(world: &World) -> Result<GmemId, VmError> {
    let len_bytes = TOUCHED * PAGE;
    let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
    let gmem = world.vm.create_guest_memfd(len_bytes, flags.bits(), QUIET)?;
    world.vm.convert(gmem, 0, len_bytes / 2, Shareability::PRIVATE, QUIET)?;
    let (id, gpa, flags) = (SlotId(2), Gpa::new(PLACE * PAGE), SlotFlags::empty());
    world.vm.add_memslot(&MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes: 0 }, QUIET)?;
    Ok(gmem)
}

/// A user fault takes `mmap_lock` and then the inode's lock. Readers of `mmap_lock` do not queue behind writers here, so
/// the other half of the circle is the fault that the source itself takes.
fn populate_and_user_fault(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    let gmem = half_private(&world).expect("memory is enough");
    let inode = world.vm.gmem(gmem, QUIET).expect("it was made just now");
    map(&world, What::Gmem { inode: Arc::clone(&inode), first: PageIndex(TOUCHED / 2) }, Sharing::Shared);
    let populate = |world: &World, task: &Task<'_>| {
        let done = world.vm.populate(&image_at(PLACE), &mut || true, task);
        assert_eq!(done, Ok(1), "page and image are there");
    };
    let touch = |world: &World, task: &Task<'_>| {
        let read = world.vm.mm().read(IMAGE, &mut [0], world.vm.kernel(task));
        assert!(read.is_ok(), "the page is shared: {read:?}");
    };
    let threads = vec![("launch", world.host(populate)), ("vmm", world.host(touch))];
    world.program(threads)
}

/// The image is in anonymous memory.
fn populate_and_punch(defects: Defects) -> Program {
    let world = Setup { initial: Shareability::PRIVATE, ..Setup::of(defects) }.build();
    map(&world, What::Anonymous { thp: ThpChoice::Never }, Sharing::Private);
    world.vm.mm().write(IMAGE, &[1; 8], world.vm.kernel(QUIET)).expect("the page is mapped");
    let populate = |world: &World, task: &Task<'_>| {
        let copy = &mut |page: &LaunchPage| {
            let inode = world.vm.gmem(world.gmems[0], QUIET);
            let now = inode.and_then(|inode| inode.peek(PageIndex(page.gfn.raw()), QUIET)).map(|backed| backed.sfn);
            if now != Some(page.page) {
                world
                    .report(format!("B8: {:?} was freed, and the image for {:?} is copied to it", page.page, page.gfn));
            }
            let source = page.source.expect("the image has a source");
            let value: u64 = world.vm.memory().load(source.base())?;
            Ok(world.vm.memory().store(page.page.base(), value)?)
        };
        let done = world.vm.populate_with(&image_at(3), copy, &mut || true, task);
        assert_eq!(done, Ok(1), "page and image are there");
    };
    let punch = |world: &World, task: &Task<'_>| {
        world.vm.punch_hole(world.gmems[0], 3 * PAGE, PAGE, task).expect("the range lies in the inode");
    };
    let threads = vec![("launch", world.host(populate)), ("puncher", world.host(punch))];
    world.program(threads)
}
