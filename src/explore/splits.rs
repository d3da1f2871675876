//! Huge folios that are split while others look at them, and what a split may lose.

use std::rc::Rc;
use std::sync::Arc;

use emu_core::defect::{Defect, Defects};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};
use gmem::mm::UserAccess;
use gmem::{
    CreateInfo, FolioPolicy, FrameRange, GetError, GmemFlags, GmemPolicy, GuestMemfd, Host, HostLayout, HostMemory,
    HugeSize, MemPolicy, NodeId, NodeMask, PageIndex, Shareability, VmemmapMode,
};
use interleave::{Body, Program, Progress};

use super::Scenario;
use super::directed::{Outcome, broken, convert, range, told};
use super::user_memory::{HVA, map_gmem, touch};
use super::world::{PAGE, Setup, World};

/// The races and stories.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "huge-fault-share",
        what: "a processor touches a private huge page while another page of it is made shared",
        shows: &[Defect::SplitBeforeZap],
        start: huge_fault_and_sharing,
    },
    Scenario {
        name: "fresh-split",
        what: "a processor allocates a huge page that is shared in part while a process touches that part",
        shows: &[Defect::PublishBeforeSplit],
        start: fresh_folio_and_user_fault,
    },
    Scenario {
        name: "conversion-without-descriptions",
        what: "of two huge pages to be split memory suffices for the descriptions of one",
        shows: &[Defect::LeaveSplitOnError],
        start: conversion_without_descriptions,
    },
    Scenario {
        name: "failure-in-huge-page",
        what: "the memory of one page of a huge page fails",
        shows: &[Defect::ForgetPoisonInSplit],
        start: failure_in_a_huge_page,
    },
    Scenario {
        name: "reservation-on-another-node",
        what: "a huge page is reserved, and bound to a node that has none",
        shows: &[Defect::ReservationOverridesPolicy],
        start: reservation_on_another_node,
    },
];

const SHARED: Shareability = Shareability::SHARED;
const PRIVATE: Shareability = Shareability::PRIVATE;
const M2: u64 = PageSize::Size2M.frames();

fn private(defects: Defects) -> Setup {
    Setup { initial: PRIVATE, flags: GmemFlags::MMAP, ..Setup::huge(defects) }
}

/// A processor touches a private huge page while another page of it is made shared.
fn huge_fault_and_sharing(defects: Defects) -> Program {
    let world = private(defects).build();
    let share = |world: &World, task: &Task<'_>| {
        world.vm.convert(world.gmems[0], 3 * PAGE, PAGE, SHARED, task).expect("nobody holds a page");
    };
    let threads = vec![("vcpu", world.vcpu(0, PRIVATE, &[0])), ("converter", world.host(share))];
    world.program(threads)
}

/// A processor allocates a huge page that must be split while a process of the host touches it.
fn fresh_folio_and_user_fault(defects: Defects) -> Program {
    let world = private(defects).build();
    let quiet = &Task::QUIET;
    world.vm.convert(world.gmems[0], 3 * PAGE, PAGE, SHARED, quiet).expect("nothing is allocated");
    map_gmem(&world, 0, HVA, quiet);
    let user = |world: &World, task: &Task<'_>| {
        if let Err(fault) = touch(world, HVA + 3 * PAGE, UserAccess::Read, task) {
            world.broken("C9", format_args!("page 3 is shared, and a process that touches it finds: {fault}"));
        }
    };
    let threads = vec![("vcpu", world.vcpu(0, PRIVATE, &[0])), ("user", world.host(user))];
    world.program(threads)
}

/// An inode of two huge pages on a host of its own.
struct Inode {
    host: Host,
    inode: GuestMemfd,
}

impl Inode {
    /// A host of two nodes with `pages` huge pages in a pool, all of them the inode's.
    fn new(vmemmap: VmemmapMode, pages: u64, task: &Task<'_>) -> Result<Inode, String> {
        let node = |first: u64| FrameRange { first: Sfn::new(first), nr_frames: 4 * M2 };
        let memory = SystemMemory::flat(9 * M2 * PAGE).map_err(told)?;
        let nodes = vec![node(M2), node(5 * M2)];
        let pools = vec![(HugeSize::Size2M, pages)];
        let layout = HostLayout { nodes, cma: Vec::new(), pools, vmemmap };
        let host = Host::new(HostMemory::with_layout(Arc::clone(&memory), &layout).map_err(told)?);
        let policy = FolioPolicy::Pool { size: HugeSize::Size2M };
        let (size_bytes, flags) = (pages * M2 * PAGE, GmemFlags::empty().bits());
        let info = CreateInfo { size_bytes, flags, policy, gmem: GmemPolicy::DEFAULT };
        let inode = GuestMemfd::create(&host, info, task).map_err(told)?;
        Ok(Inode { host, inode })
    }

    fn populate(&self, page: u64, task: &Task<'_>) -> Result<gmem::Backed, GetError> {
        self.inode.shared(task).get_folio(&self.host, PageIndex(page), task)
    }
}

/// A story of one task about such an inode.
fn story(defects: Defects, vmemmap: VmemmapMode, pages: u64, tell: fn(&Inode, &Task<'_>) -> Outcome) -> Program {
    let outcome = Rc::new(std::cell::RefCell::new(Ok(())));
    let result = Rc::clone(&outcome);
    let body: Body = Box::new(move |schedule| {
        let task = Task::QUIET.under(schedule).with(defects);
        *result.borrow_mut() = Inode::new(vmemmap, pages, &task).and_then(|inode| tell(&inode, &task));
    });
    let check = Box::new(move |progress| match progress {
        Progress::Running => Ok(()),
        Progress::Finished => outcome.borrow().clone(),
    });
    Program { threads: vec![("vmm", body)], check }
}

/// A conversion that reaches into two huge pages can split the first and has no memory for the second.
fn conversion_without_descriptions(defects: Defects) -> Program {
    story(defects, VmemmapMode::Optimise, 2, |Inode { host, inode }, task| {
        for page in [0, M2] {
            inode.shared(task).get_folio(host, PageIndex(page), task).map_err(told)?;
        }
        // Seven frames describe the pages of one huge page.
        let mut memory = host.lock(task);
        memory.occupy(u64::MAX);
        memory.vacate(10);
        drop(memory);
        let before = inode.folios(task);
        let done = convert(host, inode, range(M2 - 1, 2), SHARED, task);
        match (done.is_ok(), inode.folios(task)) {
            (true, _) => Err(told("memory was enough for both")),
            (false, after) if after != before => {
                broken("F12", format_args!("the conversion failed, and of {before:?} folios there are {after:?}"))
            }
            _ => Ok(()),
        }
    })
}

/// A page of a private huge page fails, and the huge page is split around it.
fn failure_in_a_huge_page(defects: Defects) -> Program {
    story(defects, VmemmapMode::Off, 1, |world, task| {
        let sfn = world.populate(5, task).map_err(told)?.sfn;
        world.inode.exclusive(task).error(&world.host, PageIndex(5), task).map_err(told)?;
        match (world.populate(5, task), world.populate(6, task)) {
            (Err(GetError::Poisoned { .. }), Ok(_)) => Ok(()),
            (Ok(_), _) => broken("B18", format_args!("{sfn:?} failed, and page 5 is handed out as if it were sound")),
            (Err(_), other) => broken("B18", format_args!("page 5 failed, and page 6 is {other:?}")),
        }
    })
}

/// An inode has one page reserved and is bound to the node that has none in its pool.
fn reservation_on_another_node(defects: Defects) -> Program {
    story(defects, VmemmapMode::Off, 1, |world, task| {
        let empty = world.host.lock(task).pool(HugeSize::Size2M).node_stats().position(|node| node.free == 0);
        let node = empty.and_then(|node| NodeId::new(node as u8)).ok_or(told("the pool has a page on every node"))?;
        world.inode.set_mem_policy(range(0, M2), MemPolicy::Bind(NodeMask::only(node)), task);
        match world.populate(0, task) {
            Ok(backed) => {
                broken("F18", format_args!("{:?} does not lie on {node}, which the policy wants", backed.sfn))
            }
            Err(GetError::NoFolio { .. }) => Ok(()),
            Err(other) => Err(told(other)),
        }
    })
}
