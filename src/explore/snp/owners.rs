//! Pages that change hands between guest and host: shared and private, punched out, in memslots that come and go.

use std::rc::Rc;

use emu_core::Gfn;
use emu_core::Gpa;
use emu_core::PageSize;
use emu_core::defect::{Defect, Defects};
use emu_core::sev::CBit;
use emu_core::sync::Task;
use hypervisor::{Assign, MemSlotSpec, PageStateChange, Shareability, SlotFlags, SlotId};
use interleave::Program;
use mmu::rmp::{InUse, RmpPageSize};

use super::super::Scenario;
use super::super::world::{PAGE, QUIET, Setup, TOUCHED, World};
use super::SnpSetup;
use super::processor::{Act, Ended, Step, accept, keeps, private, whatever};

/// The races.
pub(in crate::explore) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "rebind-elsewhere",
        what: "a memslot is deleted and shows its private pages at other addresses while a processor touches both",
        shows: &[Defect::AssignAnywhere],
        start: rebind_elsewhere,
    },
    Scenario {
        name: "share-private",
        what: "a private page becomes shared while a processor reads it",
        shows: &[Defect::ReclaimBeforeZap],
        start: share_private,
    },
    Scenario {
        name: "take-shared",
        what: "a shared page becomes private, and is assigned at once, while a processor reads it",
        shows: &[Defect::AssignBeforeZap],
        start: take_shared,
    },
    Scenario {
        name: "private-hole",
        what: "a private page is punched out while a processor reads the one beside it",
        shows: &[Defect::FreeAssigned],
        start: private_hole,
    },
    Scenario {
        name: "kept-hole",
        what: "a private page is punched out while hardware uses its frame, and a processor uses fresh pages",
        shows: &[Defect::UseKeptFrames],
        start: kept_hole,
    },
    Scenario {
        name: "hole-in-entry",
        what: "a page of a 2M entry is punched out while a processor reads another page of it",
        shows: &[Defect::ClearAssigned],
        start: hole_in_entry,
    },
    Scenario {
        name: "hole-beside-fault",
        what: "a page of a 2M entry is punched out while a processor faults on another page of it",
        shows: &[Defect::NarrowHole],
        start: hole_beside_fault,
    },
    Scenario {
        name: "share-in-entry",
        what: "a page of a 2M entry becomes shared while a processor reads another page of it",
        shows: &[Defect::TakeBackWhole],
        start: share_in_entry,
    },
    Scenario {
        name: "unslot-beside-private",
        what: "a memslot is deleted while a processor reads a private page of another",
        shows: &[Defect::DeletionTakesAll],
        start: unslot_beside_private,
    },
    Scenario {
        name: "accept-against-changes",
        what: "two processors accept pages of one 2M while pages of it become shared and private and are punched out",
        shows: &[],
        start: accept_against_changes,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;
const BYTES: u64 = 0x5ec2e7;

fn change(first: u64, nr_pages: u64, to: Shareability) -> impl Fn(&World, &Task<'_>) {
    move |world, task| {
        let change = PageStateChange { first: Gfn::new(first), nr_pages, to, size: PageSize::Size4K };
        world.vm.page_state_change(change, task).expect("nobody holds a page");
    }
}

fn punch(first: u64) -> impl Fn(&World, &Task<'_>) {
    move |world, task| {
        world.vm.punch_hole(world.gmems[0], first * PAGE, PAGE, task).expect("the range lies in the inode");
    }
}

/// Both processors have seen the bytes of page `gfn`, which the guest accepted with an entry of `size`.
fn accepted(world: &World, gfn: u64, size: RmpPageSize) {
    let first = Gfn::new(gfn).align_down(size.page_size()).raw();
    assert_eq!(world.snp_takes(0, &[accept(first, size), private(gfn, Act::Store(BYTES))]), Ended::Stored);
    assert_eq!(world.snp_takes(1, &[private(gfn, Act::Load)]), Ended::Loaded(BYTES));
}

fn small(defects: Defects, gfn: u64) -> Rc<World> {
    let world = Setup::snp(defects).build();
    accepted(&world, gfn, RmpPageSize::Size4K);
    world
}

fn large(defects: Defects, gfn: u64) -> Rc<World> {
    let world = Setup::huge_snp(defects).build();
    accepted(&world, gfn, RmpPageSize::Size2M);
    world
}

fn loads(gfn: u64) -> Vec<Step> {
    vec![private(gfn, Act::Load); 2]
}

fn rebind_elsewhere(defects: Defects) -> Program {
    let world = small(defects, 3);
    let rebind = |world: &World, task: &Task<'_>| {
        let (id, gpa, len_bytes) = (SlotId(0), Gpa::new(64 * PAGE), TOUCHED * PAGE);
        let (flags, gmem) = (SlotFlags::empty(), world.gmems[0]);
        world.vm.remove_memslot(id, task).expect("it is there");
        let spec = MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes: 0 };
        world.vm.add_memslot(&spec, task).expect("the place is free");
    };
    let steps = vec![private(3, Act::Load), private(64 + 3, Act::Load), accept(64 + 3, RmpPageSize::Size4K)];
    let threads = vec![("vcpu", world.snp_guest(0, steps, whatever)), ("slots", world.host(rebind))];
    world.program(threads)
}

fn share_private(defects: Defects) -> Program {
    let world = small(defects, 3);
    let threads = vec![("vcpu", world.snp_guest(0, loads(3), whatever)), ("vmm", world.host(change(3, 1, SHARED)))];
    world.program(threads)
}

fn take_shared(defects: Defects) -> Program {
    let policy = SnpSetup { assign: Assign::Eager, ..SnpSetup::USUAL };
    let world = Setup { initial: SHARED, snp: Some(policy), ..Setup::snp(defects) }.build();
    let shared = Step { c_bit: CBit::Clear, ..private(3, Act::Load) };
    assert_eq!(world.snp_takes(0, &[shared]), Ended::Loaded(0));
    let steps = vec![shared, accept(3, RmpPageSize::Size4K)];
    let threads = vec![("vcpu", world.snp_guest(0, steps, whatever)), ("vmm", world.host(change(3, 1, PRIVATE)))];
    world.program(threads)
}

fn private_hole(defects: Defects) -> Program {
    let world = small(defects, 3);
    accepted(&world, 4, RmpPageSize::Size4K);
    let threads = vec![("vcpu", world.snp_guest(0, loads(4), keeps("H7", BYTES))), ("puncher", world.host(punch(3)))];
    world.program(threads)
}

fn kept_hole(defects: Defects) -> Program {
    let world = small(defects, 3);
    // As a processor of another VM whose AVIC backing page it is.
    let sfn = world.frame(3);
    let (rmp, _) = world.vm.rmp().expect("it is an SNP guest");
    rmp.set_in_use(sfn, InUse::Yes);
    let punch = move |world: &World, task: &Task<'_>| {
        punch(3)(world, task);
        let (rmp, _) = world.vm.rmp().expect("it is an SNP guest");
        rmp.set_in_use(sfn, InUse::No);
    };
    let steps = [3, 4, 6, 7, 8, 9].map(|gfn| accept(gfn, RmpPageSize::Size4K)).to_vec();
    let threads = vec![("puncher", world.host(punch)), ("vcpu", world.snp_guest(0, steps, whatever))];
    world.program(threads)
}

fn hole_in_entry(defects: Defects) -> Program {
    let world = large(defects, 9);
    let threads = vec![("vcpu", world.snp_guest(0, loads(9), keeps("H10", BYTES))), ("puncher", world.host(punch(3)))];
    world.program_that_ends(threads, |world| {
        let ended = world.snp_takes(1, &[private(3, Act::Load)]);
        if ended != Ended::NotValidated {
            world.broken("H7", format_args!("guest frame 0x3 was punched out, and the guest finds {ended:?}"));
        }
    })
}

fn hole_beside_fault(defects: Defects) -> Program {
    let world = large(defects, 9);
    world.vm.zap_range(Gfn::new(0), PageSize::Size2M.frames(), QUIET).expect("tables lie in memory");
    let load = vec![private(9, Act::Load)];
    let threads = vec![("vcpu", world.snp_guest(0, load, keeps("H10", BYTES))), ("puncher", world.host(punch(3)))];
    world.program(threads)
}

fn share_in_entry(defects: Defects) -> Program {
    let world = large(defects, 9);
    let keep = keeps("H10", BYTES);
    let threads = vec![("vcpu", world.snp_guest(0, loads(9), keep)), ("vmm", world.host(change(3, 1, SHARED)))];
    world.program_that_ends(threads, |world| {
        let (rmp, _) = world.vm.rmp().expect("it is an SNP guest");
        for gfn in [0, 2, 3, 4, 9, 511] {
            let validated = rmp.entry(world.frame(gfn)).is_some_and(|entry| entry.validated());
            if validated == (gfn == 3) {
                world.broken("H10", format_args!("guest frame {gfn:#x} is accepted: {validated}"));
            }
        }
    })
}

fn unslot_beside_private(defects: Defects) -> Program {
    let world = small(defects, 3);
    let delete = |world: &World, task: &Task<'_>| world.vm.remove_memslot(SlotId(1), task).expect("it is there");
    let threads = vec![("vcpu", world.snp_guest(0, loads(3), keeps("A9", BYTES))), ("slots", world.host(delete))];
    world.program(threads)
}

fn accept_against_changes(defects: Defects) -> Program {
    let world = Setup::huge_snp(defects).build();
    let take = |gfn| vec![accept(gfn, RmpPageSize::Size4K), private(gfn, Act::Store(BYTES)), private(gfn, Act::Load)];
    let there_and_back = |world: &World, task: &Task<'_>| {
        change(3, 1, SHARED)(world, task);
        change(3, 1, PRIVATE)(world, task);
    };
    let threads = vec![
        ("vcpu 0", world.snp_guest(0, take(9), keeps("H6", BYTES))),
        ("vcpu 1", world.snp_guest(1, take(3), whatever)),
        ("vmm", world.host(there_and_back)),
        ("puncher", world.host(punch(8))),
    ];
    world.program(threads)
}
