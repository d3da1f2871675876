//! Histories of one task: what goes wrong without any race, because one implementation of guest_memfd decided wrongly.
//!
//! Each story runs over one inode under the policy of the generation that has the mistake, without its other mistakes.
//! The [`Defect`] of the story puts the mistake back. They are programs like the races, so the same commands list, run
//! and repeat them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use emu_core::defect::{Defect, Defects};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};
use gmem::{
    ConvertError, CreateInfo, FolioPolicy, Generation, GmemFlags, GmemPolicy, GuestMemfd, Host, HostConfig, HostMemory,
    HugeSize, PageIndex, PageRange, Quirks, Shareability,
};
use interleave::{Body, Program, Progress};

use super::Scenario;

/// The stories.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "refused-conversion",
        what: "a conversion to private is refused because of one page",
        shows: &[Defect::RollbackSharesAll],
        start: refused_conversion,
    },
    Scenario {
        name: "conversion-without-memory",
        what: "the bookkeeping of a conversion runs out of memory",
        shows: &[Defect::SilentPartial],
        start: conversion_without_memory,
    },
    Scenario {
        name: "small-hole",
        what: "one page is punched out of a huge page",
        shows: &[Defect::HoleClearsHugePage],
        start: small_hole,
    },
    Scenario {
        name: "upper-hole",
        what: "the upper half of a huge page is punched out",
        shows: &[Defect::HoleClearsFromHead],
        start: upper_hole,
    },
    Scenario {
        name: "small-allocation",
        what: "a few pages of a huge page are populated",
        shows: &[Defect::AllocationRoundsDown],
        start: small_allocation,
    },
    Scenario {
        name: "fresh-huge-page",
        what: "a fresh huge page is read beyond its first 4 KiB",
        shows: &[Defect::ClearFirst4K],
        start: fresh_huge_page,
    },
    Scenario {
        name: "page-by-page",
        what: "a huge page is made private page by page",
        shows: &[Defect::MergeInsideRangeOnly],
        start: page_by_page,
    },
];

const M2: u64 = PageSize::Size2M.frames();
const POOL: FolioPolicy = FolioPolicy::Pool { size: HugeSize::Size2M };
const PRIVATE: Shareability = Shareability::PRIVATE;
const SHARED: Shareability = Shareability::SHARED;
const WRITTEN: u8 = 0xa5;

/// What a story comes to: the invariant that broke and how, or nothing.
pub(super) type Outcome = Result<(), String>;

/// An inode of two huge pages on a host that has twice as many.
struct Inode {
    memory: Arc<SystemMemory>,
    host: Host,
    inode: GuestMemfd,
}

pub(super) fn range(first: u64, nr_pages: u64) -> PageRange {
    PageRange { first: PageIndex(first), nr_pages }
}

pub(super) fn broken(invariant: &str, found: impl core::fmt::Display) -> Outcome {
    Err(format!("{invariant}: {found}"))
}

pub(super) fn told(error: impl core::fmt::Display) -> String {
    format!("the story cannot be told: {error}")
}

/// Converts a range of an inode that nobody maps.
pub(super) fn convert(
    host: &Host,
    inode: &GuestMemfd,
    range: PageRange,
    to: Shareability,
    task: &Task<'_>,
) -> Result<(), ConvertError> {
    let exclusive = inode.exclusive(task);
    for step in exclusive.steps(range) {
        if let Some(conversion) = exclusive.plan_conversion(host, step, to, task)? {
            exclusive.convert(host, &conversion, task)?;
        }
    }
    Ok(())
}

impl Inode {
    fn new(policy: GmemPolicy, flags: GmemFlags, task: &Task<'_>) -> Result<Inode, String> {
        let nr_frames = 8 * M2;
        let memory = SystemMemory::flat(nr_frames * PageSize::Size4K.bytes()).map_err(told)?;
        let config = HostConfig { first: Sfn::new(16), nr_frames: nr_frames - 16, pools: vec![(HugeSize::Size2M, 4)] };
        let host = Host::new(HostMemory::new(Arc::clone(&memory), &config).map_err(told)?);
        let size_bytes = 2 * PageSize::Size2M.bytes();
        let info = CreateInfo { size_bytes, flags: flags.bits(), policy: POOL, gmem: policy };
        let inode = GuestMemfd::create(&host, info, task).map_err(told)?;
        Ok(Inode { memory, host, inode })
    }

    fn convert(&self, range: PageRange, to: Shareability, task: &Task<'_>) -> Result<(), ConvertError> {
        convert(&self.host, &self.inode, range, to, task)
    }

    fn punch(&self, range: PageRange, task: &Task<'_>) -> Outcome {
        let exclusive = self.inode.exclusive(task);
        exclusive.check_hole(&self.host, range, task).map_err(told)?;
        exclusive.remove(&self.host, range, task);
        Ok(())
    }

    fn frame(&self, page: u64, task: &Task<'_>) -> Result<Sfn, String> {
        Ok(self.inode.shared(task).get_folio(&self.host, PageIndex(page), task).map_err(told)?.sfn)
    }

    fn write(&self, page: u64, task: &Task<'_>) -> Outcome {
        self.memory.store(self.frame(page, task)?.base(), WRITTEN).map_err(told)
    }

    fn read(&self, page: u64, task: &Task<'_>) -> Result<u8, String> {
        self.memory.load(self.frame(page, task)?.base()).map_err(told)
    }

    fn is_private(&self, page: u64, task: &Task<'_>) -> bool {
        self.inode.attribute(PageIndex(page), task).is_private()
    }
}

/// One story.
struct Story {
    defect: Defect,
    quirk: Quirks,
    generation: Generation,
    flags: GmemFlags,
    tell: fn(&Inode, &Task<'_>) -> Outcome,
}

impl Story {
    fn program(self, defects: Defects) -> Program {
        let outcome = Rc::new(RefCell::new(Ok(())));
        let result = Rc::clone(&outcome);
        let body: Body = Box::new(move |schedule| {
            let task = Task::QUIET.under(schedule).with(defects);
            let quirks = if defects.contains(self.defect) { self.quirk } else { Quirks::empty() };
            let policy = GmemPolicy { quirks, ..self.generation.policy() };
            let told = Inode::new(policy, self.flags, &task).and_then(|inode| (self.tell)(&inode, &task));
            *result.borrow_mut() = told;
        });
        let check = Box::new(move |progress| match progress {
            Progress::Running => Ok(()),
            Progress::Finished => outcome.borrow().clone(),
        });
        Program { threads: vec![("vmm", body)], check }
    }
}

/// A conversion to private of pages of which one is held and one is private already.
fn refused_conversion(defects: Defects) -> Program {
    let tell = |inode: &Inode, task: &Task<'_>| {
        inode.convert(range(3, 1), PRIVATE, task).map_err(told)?;
        inode.inode.shared(task).pin_page(&inode.host, PageIndex(1), task).map_err(told)?;
        if inode.convert(range(0, 4), PRIVATE, task).is_ok() {
            return broken("C5", "page 1 is pinned and becomes private all the same");
        }
        match inode.inode.shared(task).get_page(&inode.host, PageIndex(3), task) {
            Ok(_) => broken("C3", "page 3 was private, a conversion failed, and now the host can use it"),
            Err(_) => Ok(()),
        }
    };
    let (defect, quirk) = (Defect::RollbackSharesAll, Quirks::ROLLBACK_SHARES_ALL);
    Story { defect, quirk, generation: Generation::V1, flags: GmemFlags::INIT_SHARED, tell }.program(defects)
}

/// A conversion whose bookkeeping runs out of memory.
fn conversion_without_memory(defects: Defects) -> Program {
    let tell = |inode: &Inode, task: &Task<'_>| {
        inode.convert(range(2, 1), PRIVATE, task).map_err(told)?;
        inode.host.lock(task).occupy(u64::MAX);
        let done = inode.convert(range(0, 5), PRIVATE, task);
        match (done.is_ok(), inode.is_private(0, task), inode.is_private(4, task)) {
            (true, _, false) => broken("C6", "the conversion says that it succeeded, and page 4 is shared"),
            (false, true, _) => broken("C6", "the conversion failed, and page 0 is private"),
            _ => Ok(()),
        }
    };
    let (defect, quirk) = (Defect::SilentPartial, Quirks::SILENT_PARTIAL);
    Story { defect, quirk, generation: Generation::V2, flags: GmemFlags::INIT_SHARED, tell }.program(defects)
}

/// A hole of one page inside a huge page.
fn small_hole(defects: Defects) -> Program {
    let tell = |inode: &Inode, task: &Task<'_>| {
        [0, 1, 2].into_iter().try_for_each(|page| inode.write(page, task))?;
        inode.punch(range(1, 1), task)?;
        match (inode.read(0, task)?, inode.read(1, task)?) {
            (WRITTEN, 0) => Ok(()),
            (_, 0) => broken("B12", "page 0 lies beside the hole and lost its bytes"),
            _ => broken("B12", "page 1 lies in the hole and kept its bytes"),
        }
    };
    let (defect, quirk) = (Defect::HoleClearsHugePage, Quirks::HOLE_CLEARS_HUGE_PAGE);
    Story { defect, quirk, generation: Generation::V1, flags: GmemFlags::empty(), tell }.program(defects)
}

/// A hole over the upper half of a huge page.
fn upper_hole(defects: Defects) -> Program {
    let tell = |inode: &Inode, task: &Task<'_>| {
        [0, M2 / 2].into_iter().try_for_each(|page| inode.write(page, task))?;
        inode.punch(range(M2 / 2, M2 / 2), task)?;
        match (inode.read(0, task)?, inode.read(M2 / 2, task)?) {
            (WRITTEN, 0) => Ok(()),
            (_, 0) => broken("B12", "page 0 lies below the hole and lost its bytes"),
            _ => broken("B12", "the hole kept its bytes"),
        }
    };
    let (defect, quirk) = (Defect::HoleClearsFromHead, Quirks::HOLE_CLEARS_FROM_HEAD);
    Story { defect, quirk, generation: Generation::V2, flags: GmemFlags::empty(), tell }.program(defects)
}

/// A few pages of a huge page are populated.
fn small_allocation(defects: Defects) -> Program {
    let tell = |inode: &Inode, task: &Task<'_>| {
        inode.inode.shared(task).allocate(&inode.host, range(3, 4), task).map_err(told)?;
        match inode.inode.peek(PageIndex(3), task) {
            Some(_) => Ok(()),
            None => broken("B16", "pages 3 to 7 were populated, and page 3 has no folio"),
        }
    };
    let (defect, quirk) = (Defect::AllocationRoundsDown, Quirks::ALLOCATION_ROUNDS_DOWN);
    Story { defect, quirk, generation: Generation::V2, flags: GmemFlags::empty(), tell }.program(defects)
}

/// A fresh huge page is read beyond its first 4 KiB.
fn fresh_huge_page(defects: Defects) -> Program {
    let tell = |inode: &Inode, task: &Task<'_>| match (inode.read(0, task)?, inode.read(2, task)?) {
        (0, 0) => Ok(()),
        (first, third) => {
            broken("B9", format_args!("a fresh huge page reads {first:#x} in page 0, {third:#x} in page 2"))
        }
    };
    let (defect, quirk) = (Defect::ClearFirst4K, Quirks::CLEAR_FIRST_4K);
    Story { defect, quirk, generation: Generation::Wip, flags: GmemFlags::empty(), tell }.program(defects)
}

/// A huge page is made shared at once and private again page by page.
fn page_by_page(defects: Defects) -> Program {
    let tell = |inode: &Inode, task: &Task<'_>| {
        inode.write(5, task)?;
        inode.convert(range(0, M2), SHARED, task).map_err(told)?;
        (0..M2).try_for_each(|page| inode.convert(range(page, 1), PRIVATE, task)).map_err(told)?;
        match (inode.inode.folios(task), inode.read(5, task)?) {
            ([0, 1, 0], WRITTEN) => Ok(()),
            (folios, WRITTEN) => {
                broken("F13", format_args!("all of it is private, and there are {} small folios", folios[0]))
            }
            _ => broken("C11", "page 5 lost its bytes"),
        }
    };
    let (defect, quirk) = (Defect::MergeInsideRangeOnly, Quirks::MERGE_INSIDE_RANGE_ONLY);
    Story { defect, quirk, generation: Generation::V1, flags: GmemFlags::empty(), tell }.program(defects)
}
