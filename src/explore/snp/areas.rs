//! Save areas: the pages that processors run from.

use std::rc::Rc;

use emu_core::Gfn;
use emu_core::defect::{Defect, Defects};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use hypervisor::VcpuId;
use interleave::Program;
use mmu::rmp::RmpPageSize;

use super::super::Scenario;
use super::super::world::{PAGE, QUIET, Setup, World};
use super::processor::{Act, Ended, accept, private, whatever};

/// The races.
pub(in crate::explore) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "save-area-punch",
        what: "the page that a processor runs from is punched out",
        shows: &[Defect::ForgetSaveArea],
        start: save_area_and_punch,
    },
    Scenario {
        name: "save-area-unslot",
        what: "the memslot of the page that a processor runs from is deleted",
        shows: &[],
        start: save_area_and_deletion,
    },
    Scenario {
        name: "launch-run",
        what: "a launch takes the state of processors, one of which is asked to run",
        shows: &[Defect::LaunchBesideProcessors],
        start: launch_and_run,
    },
];

/// The guest frame of the save area of processor 1.
const AREA: u64 = 5;

/// Processor 0 has made a save area for processor 1.
fn started(defects: Defects) -> Rc<World> {
    let world = Setup::snp(defects).build();
    let made = world.snp_takes(0, &[accept(AREA, RmpPageSize::Size4K), private(AREA, Act::MakeVmsa)]);
    assert_eq!(made, Ended::Adjusted(Ok(())));
    let area = world.vm.snp_use_save_area(VcpuId(1), Gfn::new(AREA), QUIET).expect("the vCPU exists");
    assert!(area.is_some(), "the page is private");
    if let Some(guests) = &world.guests {
        guests[1].area.set(area);
    }
    world
}

fn save_area_and_punch(defects: Defects) -> Program {
    let world = started(defects);
    let punch = |world: &World, task: &Task<'_>| {
        world.vm.punch_hole(world.gmems[0], AREA * PAGE, PAGE, task).expect("the range lies in the inode");
    };
    let threads = vec![
        ("vcpu 0", world.snp_guest(0, vec![accept(AREA + 1, RmpPageSize::Size4K)], whatever)),
        ("vcpu 1", world.snp_guest(1, vec![private(AREA, Act::Load); 2], whatever)),
        ("puncher", world.host(punch)),
    ];
    world.program(threads)
}

fn save_area_and_deletion(defects: Defects) -> Program {
    let world = started(defects);
    let delete = |world: &World, task: &Task<'_>| {
        world.vm.remove_memslot(hypervisor::SlotId(0), task).expect("it is there");
    };
    let threads = vec![
        ("vcpu 1", world.snp_guest(1, vec![private(AREA, Act::Load); 2], whatever)),
        ("slots", world.host(delete)),
    ];
    world.program(threads)
}

fn launch_and_run(defects: Defects) -> Program {
    let world = Setup::snp(defects).build();
    let launch = |world: &World, task: &Task<'_>| {
        let areas = world.vm.snp_launch_processors(&mut |_| Some(Box::new([0; PAGE_SIZE])), &mut |_| {}, task);
        let areas = areas.expect("memory is enough");
        for (guest, area) in world.guests.iter().flatten().zip(areas) {
            guest.area.set(area.map(|area| area.frame()));
        }
    };
    let threads =
        vec![("vcpu 1", world.snp_guest(1, vec![private(3, Act::Load); 2], whatever)), ("launch", world.host(launch))];
    world.program(threads)
}
