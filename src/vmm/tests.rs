//! Exits to the VMM, over a whole machine with the built-in guest.

use emu_core::sync::Task;
use emu_core::{Gpa, PageSize};
use gmem::SlotId;
use hypervisor::{GmemId, MemoryFaultReason, Shareability, VmKind};

use super::*;
use crate::loader::BUILTIN;
use crate::machine::{Limits, Machine, Outcome};

const PAGE: u64 = PageSize::Size4K.bytes();
/// In the guest's image, which it executes soon.
const AT: Gpa = Gpa::new(0x10_1000);

fn machine(kind: VmKind, on_memory_fault: OnMemoryFault) -> Machine {
    let builder = Machine::builder().memory(64 << 20).kind(kind, InitialRam::Shared).on_memory_fault(on_memory_fault);
    builder.build(&BUILTIN).expect("the built-in guest has room")
}

/// A default VM's guest cannot mean private memory, so a page that is private is a page it means otherwise.
fn with_a_private_page(on_memory_fault: OnMemoryFault) -> Machine {
    let machine = machine(VmKind::Default, on_memory_fault);
    let privately = machine.vm().convert(GmemId(0), AT.raw(), PAGE, Shareability::PRIVATE, &Task::QUIET);
    privately.expect("nobody holds the page");
    machine
}

fn run(machine: &mut Machine) -> Outcome {
    machine.run(Limits { max_instructions: Some(30_000_000) }, |_| true).expect("the host has memory")
}

#[test]
fn an_unresolved_memory_fault_ends_the_run_and_comes_again_until_it_is_resolved() {
    let mut machine = with_a_private_page(OnMemoryFault::Stop);
    for times in 1..=3 {
        let Outcome::MemoryFault { cpu: 0, fault, .. } = run(&mut machine) else { panic!("the guest uses its image") };
        assert_eq!((fault.gpa, fault.len_bytes), (AT, PAGE));
        assert_eq!((fault.privacy, fault.reason), (Shareability::SHARED, MemoryFaultReason::PrivacyMismatch));
        assert_eq!(machine.vmm().counters().memory_faults, times);
    }
    let shared = machine.vm().convert(GmemId(0), AT.raw(), PAGE, Shareability::SHARED, &Task::QUIET);
    shared.expect("a page can always be shared");
    assert!(matches!(run(&mut machine), Outcome::PowerOff | Outcome::LimitReached));
    assert_eq!(machine.vmm().counters().memory_faults, 3);
}

#[test]
fn a_converting_vmm_resolves_it_and_the_guest_sees_its_bytes() {
    let mut machine = with_a_private_page(OnMemoryFault::Convert);
    assert!(matches!(run(&mut machine), Outcome::PowerOff | Outcome::LimitReached));
    assert_eq!(machine.vmm().counters().memory_faults, 1);
    let inode = machine.vm().gmem(GmemId(0), &Task::QUIET).expect("RAM");
    assert_eq!(inode.attribute(gmem::PageIndex(AT.raw() / PAGE), &Task::QUIET), Shareability::SHARED);
}

/// What cannot be resolved is handed on and not tried for ever.
#[test]
fn a_memory_fault_without_memory_cannot_be_resolved() {
    let machine = machine(VmKind::SwProtected, OnMemoryFault::Convert);
    let mut vmm = Vmm::default();
    let fault = MemoryFault {
        gpa: Gpa::new(1 << 40),
        len_bytes: PAGE,
        privacy: Shareability::PRIVATE,
        reason: MemoryFaultReason::PrivateWithoutSlot,
    };
    assert_eq!(vmm.memory_fault(machine.vm(), &fault, &Task::QUIET), AfterFault::Stop);
}

#[test]
fn conversions_reach_over_memslots_and_stop_where_memory_ends() {
    let machine = machine(VmKind::SwProtected, OnMemoryFault::Stop);
    let (vm, task) = (machine.vm(), &Task::QUIET);
    let state = |page: u64| vm.gmem(GmemId(0), task).expect("RAM").attribute(gmem::PageIndex(page), task);
    let range = |gpa: u64, len_bytes| GpaRange::new(Gpa::new(gpa), len_bytes).expect("whole pages");
    memory::convert(vm, range(8 * PAGE, 2 * PAGE), Shareability::PRIVATE, task).expect("RAM can become private");
    assert_eq!([7, 8, 9, 10].map(|page| state(page).is_private()), [false, true, true, false]);
    // The last page of RAM and the first one behind it: refused as a whole.
    let last = (64 << 20) - PAGE;
    let refused = memory::convert(vm, range(last, 2 * PAGE), Shareability::PRIVATE, task);
    assert_eq!(refused, Err(memory::MemoryError::NoSlot { gpa: Gpa::new(64 << 20) }));
    assert!(!state(last / PAGE).is_private());
    // A second view of other pages: a range over both is two parts.
    vm.remove_memslot(SlotId(0), task).expect("there is one");
    for (id, gpa, offset_bytes) in [(0, 0, 16 * PAGE), (7, 4 * PAGE, 4 * PAGE)] {
        let spec = hypervisor::MemSlotSpec {
            id: SlotId(id),
            gpa: Gpa::new(gpa),
            len_bytes: 4 * PAGE,
            flags: hypervisor::SlotFlags::empty(),
            gmem: GmemId(0),
            offset_bytes,
        };
        vm.add_memslot(&spec, task).expect("the parts are disjoint");
    }
    memory::convert(vm, range(2 * PAGE, 4 * PAGE), Shareability::PRIVATE, task).expect("both parts are RAM");
    assert_eq!([17, 18, 19, 20].map(|page| state(page).is_private()), [false, true, true, false]);
    assert_eq!([3, 4, 5, 6].map(|page| state(page).is_private()), [false, true, true, false]);
}

#[test]
fn only_a_protected_vm_converts_by_hypercall() {
    for kind in [VmKind::Default, VmKind::SwProtected] {
        let machine = machine(kind, OnMemoryFault::Stop);
        let mut vmm = Vmm::default();
        let range = GpaRange::new(Gpa::new(PAGE), PAGE).expect("a page");
        let asked = Ok(Hypercall::MapGpaRange { range, to: Shareability::PRIVATE });
        let answer = vmm.hypercall(machine.vm(), asked, &Task::QUIET) as i64;
        let protected = kind == VmKind::SwProtected;
        assert_eq!(answer, if protected { 0 } else { -1000 });
        let counters = VmmCounters { hypercalls: 1, ..VmmCounters::default() };
        let (refused, conversions) = if protected { (0, 1) } else { (1, 0) };
        assert_eq!(vmm.counters(), VmmCounters { refused, conversions, ..counters });
    }
}
