//! A host that reads and writes by its own map of memory, beside pages of the guest and in them.

use std::rc::Rc;

use emu_core::Gfn;
use emu_core::defect::{Defect, Defects};
use emu_core::sev::CBit;
use emu_core::sync::{Point, Task};
use gmem::directmap::{HostAccess, HostOp};
use gmem::{ConvertError, DirectMapPolicy, PageIndex};
use hypervisor::{LieError, Shareability, VmError};
use interleave::Program;
use mmu::rmp::RmpPageSize;

use super::super::Scenario;
use super::super::world::{PAGE, QUIET, Setup, World};
use super::SnpSetup;
use super::processor::{Act, Ended, Step, accept, keeps, private, whatever};

/// The races.
pub(in crate::explore) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "host-write-beside",
        what: "the host writes to a shared page while a processor accepts a private one in the same 2M",
        shows: &[Defect::SplitDirectMapLate],
        start: host_write_beside,
    },
    Scenario {
        name: "host-write",
        what: "the host writes to a private page while a processor reads it",
        shows: &[Defect::TakeBackOnHostFault],
        start: host_write,
    },
    Scenario {
        name: "scanner-write",
        what: "a scanner of the host reads a shared page and writes it back while it becomes private",
        shows: &[Defect::ScanWithoutReference],
        start: scanner_write,
    },
    Scenario {
        name: "scanner-read",
        what: "a scanner of the host reads a private page while a processor reads and writes it",
        shows: &[Defect::ScanBehindTranslations],
        start: scanner_read,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;
const BYTES: u64 = 0x5ec2e7;

/// A world whose host has a direct map that Linux splits. Of the first 2M page 3 is shared and has memory.
fn mapped(defects: Defects) -> Rc<World> {
    let policy = SnpSetup { direct_map: Some(DirectMapPolicy::Linux), ..SnpSetup::USUAL };
    let world = Setup { snp: Some(policy), ..Setup::huge_snp(defects) }.build();
    world.vm.convert(world.gmems[0], 3 * PAGE, PAGE, SHARED, QUIET).expect("nothing is allocated");
    let shared = Step { c_bit: CBit::Clear, ..private(3, Act::Load) };
    assert_eq!(world.snp_takes(0, &[shared]), Ended::Loaded(0));
    world
}

fn host_write_beside(defects: Defects) -> Program {
    let world = mapped(defects);
    let write = |world: &World, task: &Task<'_>| {
        let sfn = world.frame(3);
        for _ in 0..3 {
            let access = world.vm.host_access(sfn, HostOp::Write, task);
            if access != HostAccess::Bytes {
                world.broken("H9", format_args!("page 3 is shared, and a write of the host ends in {access:?}"));
            }
            task.at(Point::T1);
        }
    };
    let threads =
        vec![("vcpu", world.snp_guest(0, vec![accept(4, RmpPageSize::Size4K)], whatever)), ("host", world.host(write))];
    world.program(threads)
}

fn host_write(defects: Defects) -> Program {
    let world = mapped(defects);
    let stored = world.snp_takes(0, &[accept(4, RmpPageSize::Size4K), private(4, Act::Store(BYTES))]);
    assert_eq!(stored, Ended::Stored);
    let write = |world: &World, task: &Task<'_>| {
        let access = world.vm.host_access(world.frame(4), HostOp::Write, task);
        if !matches!(access, HostAccess::RmpFault { .. }) {
            world.broken("H9", format_args!("page 4 is private, and a write of the host ends in {access:?}"));
        }
    };
    let loads = vec![private(4, Act::Load); 2];
    let threads = vec![("vcpu", world.snp_guest(0, loads, keeps("H7", BYTES))), ("host", world.host(write))];
    world.program(threads)
}

/// Who holds a page keeps it from becoming private.
fn scanner_write(defects: Defects) -> Program {
    let world = Setup { initial: SHARED, ..Setup::snp(defects) }.build();
    let scan = |world: &World, task: &Task<'_>| {
        let inode = world.vm.gmem(world.gmems[0], task).expect("it is open");
        let Ok(sfn) = inode.shared(task).get_page(world.vm.host(), PageIndex(3), task) else { return };
        let late = task.has(Defect::ScanWithoutReference);
        if late {
            inode.put_page(world.vm.host(), sfn, task);
        }
        task.at(Point::T1);
        let access = world.vm.host_access(sfn, HostOp::Write, task);
        if access != HostAccess::Bytes {
            world.broken("H9", format_args!("the scanner found {sfn:?} shared, and its write ends in {access:?}"));
        }
        if !late {
            inode.put_page(world.vm.host(), sfn, task);
        }
    };
    let take = |world: &World, task: &Task<'_>| match world.vm.convert(world.gmems[0], 3 * PAGE, PAGE, PRIVATE, task) {
        Ok(()) | Err(VmError::Convert(ConvertError::Busy { .. })) => {}
        Err(error) => panic!("the page is there: {error}"),
    };
    let threads = vec![
        ("vcpu", world.snp_guest(0, vec![accept(3, RmpPageSize::Size4K)], whatever)),
        ("scanner", world.host(scan)),
        ("vmm", world.host(take)),
    ];
    world.program(threads)
}

fn scanner_read(defects: Defects) -> Program {
    let world = Setup::snp(defects).build();
    let stored = world.snp_takes(0, &[accept(3, RmpPageSize::Size4K), private(3, Act::Store(BYTES))]);
    assert_eq!(stored, Ended::Stored);
    let scan = |world: &World, task: &Task<'_>| match world.vm.snp_read_ciphertext(Gfn::new(3), task) {
        Ok(bytes) if bytes.starts_with(&BYTES.to_le_bytes()) => {
            world.broken("H9", "the host reads what the guest wrote")
        }
        Ok(_) | Err(LieError::NoPage { .. }) => {}
        Err(error) => panic!("reads are never refused: {error}"),
    };
    let (load, store) = (private(3, Act::Load), private(3, Act::Store(BYTES)));
    let threads =
        vec![("vcpu", world.snp_guest(0, vec![load, store, load], keeps("B9", BYTES))), ("scanner", world.host(scan))];
    world.program(threads)
}
