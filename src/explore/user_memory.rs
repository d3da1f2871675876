//! The VMM's address space beside the guest: user faults, MMU notifiers, and what `userspace_addr` shows.

use emu_core::defect::{Defect, Defects};
use emu_core::sync::Task;
use emu_core::{Gfn, Hva};
use gmem::mm::{Advice, MapRequest, MmId, Prot, Sharing, UserAccess, UserFault, What};
use gmem::{Generation, GmemFlags, GmemPolicy, PageIndex, Quirks, Shareability};
use hypervisor::{MemFd, SlotFlags, SlotId, UserMemoryRegion2, VmConfig, VmError};
use interleave::Program;

use super::Scenario;
use super::world::{PAGE, Setup, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "user-fault-punch",
        what: "a process touches a huge page while it is punched out",
        shows: &[Defect::MapAfterUnlock],
        start: user_fault_and_punch,
    },
    Scenario {
        name: "unmap-behind-slot",
        what: "the VMM unmaps the user address of a slot that guest_memfd serves, while a processor touches it",
        shows: &[],
        start: unmap_behind_a_slot,
    },
    Scenario {
        name: "unmap-unslot",
        what: "the VMM unmaps user memory while the slot that shows it is deleted",
        shows: &[Defect::ExchangeDuringNotification],
        start: unmap_and_delete,
    },
    Scenario {
        name: "convert-mapped",
        what: "a page is made private that the VMM forgot to unmap, where unmapping is the VMM's to do",
        shows: &[Defect::ConvertMappedPages],
        start: conversion_of_mapped_pages,
    },
    Scenario {
        name: "two-processes-punch",
        what: "a page that two processes map is punched out",
        shows: &[Defect::UnmapOneProcess],
        start: two_processes_and_punch,
    },
    Scenario {
        name: "emulated-access",
        what: "the hypervisor reads for the guest what the guest wrote, and the user address shows other memory",
        shows: &[Defect::OwnAccessToUserMemory],
        start: emulated_access,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;
/// Where the VMM maps what a scenario needs.
pub(super) const HVA: u64 = 0x7000_0000_0000;
/// The guest frame from which user memory is shown, and the number of its slot.
pub(super) const USER_GFN: u64 = 2048;
/// Pages of user memory.
const USER_PAGES: u64 = 4;
const USER_SLOT: u32 = 2;

/// Small shared pages that the host may map.
pub(super) fn mappable(defects: Defects) -> Setup {
    Setup { flags: GmemFlags::MMAP, ..Setup::of(defects) }
}

/// The VMM maps inode `n` as a whole.
pub(super) fn map_gmem(world: &World, n: usize, at: u64, task: &Task<'_>) {
    let inode = world.vm.gmem(world.gmems[n], task).expect("it is open");
    let len_bytes = inode.nr_pages() * PAGE;
    map(world, at, len_bytes, Sharing::Shared, What::Gmem { inode, first: PageIndex(0) }, task);
}

/// The VMM maps something.
pub(super) fn map(world: &World, at: u64, len_bytes: u64, sharing: Sharing, what: What, task: &Task<'_>) {
    let request = MapRequest { at: Hva::new(at), len_bytes, prot: Prot::READ_WRITE, sharing, what };
    world.vm.mm().map(request, task).expect("the place is free");
}

/// The VMM maps anonymous memory and shows it to the guest from [`USER_GFN`] on.
pub(super) fn show_anonymous(world: &World, task: &Task<'_>) {
    let what = What::Anonymous { thp: gmem::mm::ThpChoice::Never };
    map(world, HVA, USER_PAGES * PAGE, Sharing::Private, what, task);
    show_user(world, USER_PAGES, task);
}

/// A slot that shows what is at [`HVA`] from [`USER_GFN`] on.
pub(super) fn show_user(world: &World, nr_pages: u64, task: &Task<'_>) {
    let region = UserMemoryRegion2 {
        slot: USER_SLOT,
        flags: 0,
        guest_phys_addr: USER_GFN * PAGE,
        memory_size: nr_pages * PAGE,
        userspace_addr: HVA,
        guest_memfd_offset: 0,
        guest_memfd: MemFd::NotOpen,
    };
    world.vm.set_user_memory_region2(&region, task).expect("the slot fits");
}

/// A slot over the second inode that also names a user address, in place of the world's own.
fn show_gmem_with_address(world: &World, task: &Task<'_>) {
    world.vm.remove_memslot(SlotId(1), task).expect("it is there");
    let pages = world.vm.gmem(world.gmems[1], task).expect("it is open").nr_pages();
    let region = UserMemoryRegion2 {
        slot: 1,
        flags: SlotFlags::GUEST_MEMFD.bits(),
        guest_phys_addr: USER_GFN * PAGE,
        memory_size: pages * PAGE,
        userspace_addr: HVA,
        guest_memfd_offset: 0,
        guest_memfd: MemFd::Gmem(world.gmems[1]),
    };
    world.vm.set_user_memory_region2(&region, task).expect("the slot fits");
}

/// The VMM touches a byte of its memory.
pub(super) fn touch(world: &World, at: u64, access: UserAccess, task: &Task<'_>) -> Result<(), UserFault> {
    world.vm.mm().with_page(Hva::new(at), access, world.vm.kernel(task), &mut |_| Ok(()))
}

/// A process touches a huge page while it is punched out.
fn user_fault_and_punch(defects: Defects) -> Program {
    let world = Setup { flags: GmemFlags::MMAP, ..Setup::huge(defects) }.build();
    map_gmem(&world, 0, HVA, &Task::QUIET);
    let user = |world: &World, task: &Task<'_>| {
        if let Err(fault) = touch(world, HVA + 3 * PAGE, UserAccess::Write, task) {
            world.broken("C9", format_args!("page 3 is shared, and a process that touches it finds: {fault}"));
        }
    };
    let punch = |world: &World, task: &Task<'_>| {
        world.vm.punch_hole(world.gmems[0], 0, 512 * PAGE, task).expect("the range lies in the inode");
    };
    let threads = vec![("user", world.host(user)), ("puncher", world.host(punch))];
    world.program(threads)
}

/// The VMM unmaps the user address of a slot that guest_memfd serves: what the guest reads stays.
fn unmap_behind_a_slot(defects: Defects) -> Program {
    let world = mappable(defects).build();
    map_gmem(&world, 1, HVA, &Task::QUIET);
    show_gmem_with_address(&world, &Task::QUIET);
    let gpa = emu_core::Gpa::new((USER_GFN + 3) * PAGE);
    world.vm.guest_write(gpa, &[0x5a], &Task::QUIET).expect("it is memory");
    let unmap = |world: &World, task: &Task<'_>| {
        let pages = USER_PAGES * PAGE;
        world.vm.mm().munmap(Hva::new(HVA), pages, world.vm.kernel(task)).expect("whole pages");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[USER_GFN + 3])), ("vmm", world.host(unmap))];
    world.program_that_ends(threads, move |world| {
        let mut byte = [0];
        world.vm.guest_read(gpa, &mut byte, &Task::QUIET).expect("it is memory");
        if byte != [0x5a] {
            world.broken("A9", format_args!("the guest wrote 0x5a, and reads {:#x}", byte[0]));
        }
    })
}

/// The VMM unmaps user memory while the slot that shows it is deleted.
fn unmap_and_delete(defects: Defects) -> Program {
    let world = Setup::of(defects).build();
    show_anonymous(&world, &Task::QUIET);
    let unmap = |world: &World, task: &Task<'_>| {
        world.vm.mm().munmap(Hva::new(HVA), PAGE, world.vm.kernel(task)).expect("whole pages");
    };
    let delete = |world: &World, task: &Task<'_>| {
        world.vm.remove_memslot(SlotId(USER_SLOT as u16), task).expect("it is there");
    };
    let threads = vec![("unmapper", world.host(unmap)), ("slots", world.host(delete))];
    world.program(threads)
}

/// Where users must have unmapped pages themselves, one was forgotten.
fn conversion_of_mapped_pages(defects: Defects) -> Program {
    let adjust = |config: &mut VmConfig| {
        config.gmem = GmemPolicy { quirks: Quirks::empty(), ..Generation::V1.policy() };
    };
    let world = Setup { adjust, ..mappable(defects) }.build();
    map_gmem(&world, 0, HVA, &Task::QUIET);
    let user = |world: &World, task: &Task<'_>| {
        for page in [3, 4] {
            // Once it is private this is SIGBUS.
            let _ = touch(world, HVA + page * PAGE, UserAccess::Write, task);
        }
        let (at, kernel) = (Hva::new(HVA + 4 * PAGE), world.vm.kernel(task));
        world.vm.mm().madvise(at, PAGE, Advice::DontNeed, kernel).map(drop).expect("it is mapped");
    };
    let convert = |world: &World, task: &Task<'_>| {
        for page in [4, 3] {
            match world.vm.convert(world.gmems[0], page * PAGE, PAGE, PRIVATE, task) {
                Ok(()) | Err(VmError::Convert(gmem::ConvertError::Mapped { .. })) => {}
                Err(other) => world.broken("C5", format_args!("page {page} cannot become private: {other}")),
            }
        }
    };
    let threads = vec![("user", world.host(user)), ("converter", world.host(convert))];
    world.program(threads)
}

/// Two processes map a page that is punched out.
fn two_processes_and_punch(defects: Defects) -> Program {
    let (world, quiet) = (mappable(defects).build(), &Task::QUIET);
    map_gmem(&world, 0, HVA, quiet);
    touch(&world, HVA + 3 * PAGE, UserAccess::Write, quiet).expect("it is shared");
    let child = world.vm.mm().fork(MmId(1), world.vm.kernel(quiet)).expect("memory is enough");
    let punch = |world: &World, task: &Task<'_>| {
        world.vm.punch_hole(world.gmems[0], 3 * PAGE, PAGE, task).expect("the range lies in the inode");
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[3])), ("puncher", world.host(punch))];
    world.program_that_ends(threads, move |world| {
        let inode = world.vm.gmem(world.gmems[0], quiet).expect("it is open");
        let there = inode.peek(PageIndex(3), quiet).map(|backed| backed.sfn);
        let page = Hva::new(HVA + 3 * PAGE).frame();
        for (who, mm) in [("the VMM", &**world.vm.mm()), ("its child", &child)] {
            let shown = mm.table().leaf(page, quiet).map(|leaf| leaf.sfn);
            if shown.is_some() && shown != there {
                world.broken("B13", format_args!("{who} still maps {shown:?}, which was punched out of page 3"));
            }
        }
    })
}

/// The hypervisor reads for the guest what the guest wrote itself.
fn emulated_access(defects: Defects) -> Program {
    let (world, quiet) = (mappable(defects).build(), &Task::QUIET);
    let what = What::Anonymous { thp: gmem::mm::ThpChoice::Never };
    map(&world, HVA, 16 * PAGE, Sharing::Private, what, quiet);
    show_gmem_with_address(&world, quiet);
    let emulate = |world: &World, task: &Task<'_>| {
        let gfn = Gfn::new(USER_GFN + 3);
        let inode = world.vm.gmem(world.gmems[1], task).expect("it is open");
        let native = inode.shared(task).get_folio(world.vm.host(), PageIndex(3), task).expect("memory is enough");
        world.vm.memory().store(native.sfn.base(), 0x5a_u8).expect("it is memory");
        let mut byte = [0];
        world.vm.guest_read(gfn.base(), &mut byte, task).expect("it is memory");
        if byte != [0x5a] {
            world.broken("K5", format_args!("the guest wrote 0x5a, and its emulator reads {:#x} there", byte[0]));
        }
    };
    let threads = vec![("vcpu", world.vcpu(0, SHARED, &[USER_GFN + 3])), ("emulator", world.host(emulate))];
    world.program(threads)
}
