//! A virtual processor of an explored SNP guest: an [`Mmu`] with its TLBs, the reverse map, and a save area.
//!
//! Walks, verdicts and what is cached are the machine's own. What is done in one step is what one processor does without
//! another one in between: a walk with the look at the RMP and the filling of the TLB; a load or store; PVALIDATE and
//! RMPADJUST. Between a walk and its load or store others may run: what they took away by the RMP the processor learns of
//! before it accesses, as on silicon, and what they took away by the nested tables makes it leave the guest.

use std::cell::{Cell, RefCell, RefMut};

use emu_core::sev::{CBit, Vmpl};
use emu_core::sync::{Point, Task};
use emu_core::{Access, AccessKind, Gva, Privilege, Sfn};
use hypervisor::check::Cached;
use hypervisor::{Action, FlushRequest, InGuest, MemoryFaultReason, Reloaded, Resumed, VcpuId, VmError};
use interleave::Body;
use mmu::rmp::{Changed, InUse, RmpAdjust, RmpError, RmpPageSize, Validated, VmplPermissions, Vmsa};
use mmu::{Mmu, MmuFault};

use super::super::world::{PAGE, QUIET, Watch, World};
use super::{ASID, SHARED_HALF, over};
use crate::machine::fault_input;
use std::rc::Rc;

/// See the module.
pub(in crate::explore) struct SnpProcessor {
    mmu: RefCell<Mmu>,
    /// What that has cached, if it was asked since it was used.
    cached: RefCell<Option<Vec<Cached>>>,
    /// What the VMCB points at; nothing for a processor of which that is not explored.
    pub(super) area: Cell<Option<Sfn>>,
    /// The same while it is in the guest.
    pub(in crate::explore) runs_from: Cell<Option<Sfn>>,
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Loads 8 bytes.
    Load,
    /// Stores these.
    Store(u64),
    /// PVALIDATE.
    Pvalidate(RmpPageSize, Validated),
    /// RMPADJUST that makes a save area of the page.
    MakeVmsa,
}

/// Where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) act: Act,
    pub(super) gfn: u64,
    pub(super) c_bit: CBit,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With these bytes.
    Loaded(u64),
    /// The bytes are there.
    Stored,
    /// PVALIDATE said so.
    Pvalidated(Result<Changed, RmpError>),
    /// RMPADJUST said so.
    Adjusted(Result<(), RmpError>),
    /// #VC: the page was not accepted.
    NotValidated,
    /// An exit to the VMM.
    Left(MemoryFaultReason),
    /// The hypervisor gave up.
    Failed(VmError),
    /// The processor has no save area by now.
    NoSaveArea,
}

/// How an attempt ended.
enum Attempt {
    Ended(Ended),
    /// The processor was kicked out before.
    Kicked,
    Faulted(mmu::NestedPageFault),
}

/// A private step.
pub(super) const fn private(gfn: u64, act: Act) -> Step {
    Step { act, gfn, c_bit: CBit::Set }
}

/// PVALIDATE that accepts a page.
pub(super) const fn accept(gfn: u64, size: RmpPageSize) -> Step {
    private(gfn, Act::Pvalidate(size, Validated::Yes))
}

impl Step {
    fn gva(&self) -> Gva {
        Gva::new(self.gfn * PAGE + if self.c_bit.is_set() { 0 } else { SHARED_HALF })
    }
}

impl SnpProcessor {
    /// A processor over `mmu`.
    pub(super) fn new(mmu: Mmu) -> SnpProcessor {
        let (mmu, cached) = (RefCell::new(mmu), RefCell::default());
        SnpProcessor { mmu, cached, area: Cell::new(None), runs_from: Cell::new(None) }
    }

    fn mmu(&self) -> RefMut<'_, Mmu> {
        self.cached.take();
        self.mmu.borrow_mut()
    }

    /// What is cached of guest memory.
    pub(in crate::explore) fn translations(&self, each: &mut dyn FnMut(Cached)) {
        let mut cached = self.cached.borrow_mut();
        let cached = cached.get_or_insert_with(|| {
            let mmu = self.mmu.borrow();
            let pages = mmu.cached_guest_pages();
            pages.map(|page| Cached { gfn: page.gpa.frame(), sfn: page.spa.frame(), size: page.size }).collect()
        });
        cached.iter().for_each(|&page| each(page));
    }

    /// Enters the guest, tries once and leaves.
    fn attempt(&self, world: &World, id: VcpuId, step: Step, task: &Task<'_>) -> Attempt {
        while world.vm.must_reload(id) {
            match world.vm.snp_reload_save_area(id, task).expect("the vCPU exists") {
                Reloaded::At(sfn) => self.area.set(Some(sfn)),
                Reloaded::Gone => return Attempt::Ended(Ended::NoSaveArea),
                Reloaded::Retry => task.give_way(),
            }
        }
        let (inside, flush) = world.vm.enter_guest(id, task).expect("the vCPU exists");
        if world.vm.must_reload(id) {
            return Attempt::Kicked;
        }
        self.serve(flush);
        if let Some(register) = world.vm.take_root(id).expect("the vCPU exists") {
            self.mmu().set_stage2(over(register));
        }
        let (rmp, _) = world.vm.rmp().expect("it is an SNP guest");
        if let Some(area) = self.area.get() {
            if rmp.use_vmsa(area.base(), ASID).is_err() {
                return Attempt::Ended(Ended::NoSaveArea);
            }
            self.runs_from.set(Some(area));
        }
        let in_guest = &world.cpus[usize::from(id.0)].in_guest;
        in_guest.set(true);
        let attempt = self.execute(world, step, &inside, task);
        task.at(Point::T1);
        in_guest.set(false);
        if let Some(area) = self.runs_from.take() {
            rmp.set_in_use(area, InUse::No);
        }
        attempt
    }

    fn serve(&self, flush: Option<FlushRequest>) {
        match flush {
            None => {}
            Some(FlushRequest::All) => self.mmu().flush_all(),
            Some(FlushRequest::Range { first, nr_pages }) => {
                self.mmu().flush_gpa_range(first, nr_pages);
            }
        }
    }

    fn execute(&self, world: &World, step: Step, inside: &InGuest<'_>, task: &Task<'_>) -> Attempt {
        task.at(Point::T1);
        if inside.is_kicked() {
            return Attempt::Kicked;
        }
        let (gva, kernel) = (step.gva(), Privilege::Supervisor);
        let kind = match step.act {
            Act::Load => AccessKind::Read,
            Act::Store(_) => AccessKind::Write,
            Act::Pvalidate(size, validated) => {
                let done = self.mmu().pvalidate(gva, kernel, size, validated);
                return ended(done.map(Ended::Pvalidated));
            }
            Act::MakeVmsa => {
                let permissions = VmplPermissions::empty();
                let adjust = RmpAdjust { target: Vmpl::Vmpl1, permissions, vmsa: Vmsa::Yes };
                let done = self.mmu().rmpadjust(gva, kernel, RmpPageSize::Size4K, adjust);
                return ended(done.map(Ended::Adjusted));
            }
        };
        let found = self.mmu().translate(gva, Access::new(kind, kernel));
        let spa = match found {
            Ok(translation) => translation.spa,
            Err(fault) => return ended(Err(fault)),
        };
        task.at(Point::T1);
        if inside.is_kicked() || self.mmu.borrow().is_behind_rmp() {
            return Attempt::Kicked;
        }
        let memory = world.vm.memory();
        Attempt::Ended(match step.act {
            Act::Store(value) => {
                memory.store(spa, value).expect("it was translated");
                Ended::Stored
            }
            _ => Ended::Loaded(memory.load(spa).expect("it was translated")),
        })
    }
}

fn ended(done: Result<Ended, MmuFault>) -> Attempt {
    match done {
        Ok(done) => Attempt::Ended(done),
        Err(MmuFault::NotValidated { .. }) => Attempt::Ended(Ended::NotValidated),
        Err(MmuFault::Nested(fault)) => Attempt::Faulted(fault),
        Err(fault) => panic!("the guest's own tables map everything: {fault:?}"),
    }
}

impl World {
    /// A processor that takes each step to its end; `saw` is told how.
    pub(super) fn snp_guest(
        self: &Rc<World>,
        n: u16,
        steps: Vec<Step>,
        saw: impl Fn(&World, Step, Ended) + 'static,
    ) -> Body {
        let world = Rc::clone(self);
        Box::new(move |schedule| {
            let watch = Watch::new(&world);
            let task = Task::reporting(&watch).under(schedule).with(world.defects).on_lane(n as u8);
            for &step in &steps {
                let ended = world.take(VcpuId(n), step, &watch, &task);
                saw(&world, step, ended);
            }
        })
    }

    /// The same before any task runs, or when all have finished. How the last ended.
    pub(super) fn snp_takes(&self, n: u16, steps: &[Step]) -> Ended {
        let watch = Watch::new(self);
        let mut last = Ended::Stored;
        for &step in steps {
            last = self.take(VcpuId(n), step, &watch, &Task::reporting(&watch).on_lane(n as u8));
        }
        last
    }

    /// The frame behind a guest frame of the first inode.
    pub(super) fn frame(&self, gfn: u64) -> Sfn {
        let inode = self.vm.gmem(self.gmems[0], QUIET).expect("it is open");
        inode.peek(gmem::PageIndex(gfn), QUIET).expect("the page has memory").sfn
    }

    fn take(&self, id: VcpuId, step: Step, watch: &Watch<'_>, task: &Task<'_>) -> Ended {
        let guests = self.guests.as_ref().expect("it is an SNP guest");
        loop {
            let fault = match guests[usize::from(id.0)].attempt(self, id, step, task) {
                Attempt::Ended(ended) => return ended,
                Attempt::Kicked => continue,
                Attempt::Faulted(fault) => fault,
            };
            // What is wrong may be with the guest's own tables, which are private.
            let input = fault_input(&fault);
            watch.meant.set(input.privacy);
            match self.vm.handle_fault(id, input, task) {
                Ok(Action::Resume(Resumed::Fixed { .. })) => {}
                Ok(Action::Resume(Resumed::Retry | Resumed::Spurious)) => task.give_way(),
                Ok(Action::MemoryFault(fault)) => return Ended::Left(fault.reason),
                Ok(action @ (Action::Mmio { .. } | Action::RomWrite { .. })) => panic!("all is memory: {action:?}"),
                Err(error) => return Ended::Failed(error),
            }
        }
    }
}

/// Who wants a page that was accepted to be so: otherwise `invariant` is broken. The bytes of a load are these.
pub(super) fn keeps(invariant: &'static str, bytes: u64) -> impl Fn(&World, Step, Ended) {
    move |world, step, ended| match ended {
        Ended::NotValidated => {
            world.broken(invariant, format_args!("guest frame {:#x} was accepted, and is not", step.gfn));
        }
        Ended::Loaded(found) if found != bytes => {
            world.broken(invariant, format_args!("guest frame {:#x} holds {found:#x}, not {bytes:#x}", step.gfn));
        }
        Ended::Failed(error) => world.broken(invariant, format_args!("guest frame {:#x}: {error}", step.gfn)),
        _ => {}
    }
}

/// Who wants nothing.
pub(super) fn whatever(_: &World, _: Step, _: Ended) {}
