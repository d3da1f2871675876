//! The VM that scenarios run on, and what must hold between any two steps.
//!
//! Two inodes of a few 4K pages, or of one huge page, each shown by a memslot; [processors](super::processor) of whose
//! TLBs it can be seen what they would still translate. What must hold is `hypervisor::check`'s to say; the world is its
//! witness.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use emu_core::defect::Defects;
use emu_core::event::{Event, EventSink};
use emu_core::memory::SystemMemory;
use emu_core::sync::{Schedule, Task};
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};
use gmem::GetError;
use hypervisor::check::{Cached, CheckHistory, Moment, Witness};
use hypervisor::shadow::ShadowConfig;
use hypervisor::tdp::{Rights, TdpFormat};
use hypervisor::{
    Action, FaultInput, GmemFlags, GmemId, HostConfig, HugeSize, MemSlotSpec, MmuParams, PML_ENTRIES, PagePolicy, Pml,
    Resumed, Shareability, SlotFlags, SlotId, SlotState, SystemMemoryPlan, VcpuId, Vm, VmConfig, VmError,
};
use interleave::{Body, Program, Progress};
use mmu::GuestRights;

use super::migration::Migration;
use super::processor::{Access, Attempt, Processor, Translation};
use super::snp::SnpSetup;
use super::snp::processor::SnpProcessor;
use crate::machine::BuildError;

pub(super) const QUIET: &Task<'static> = &Task::QUIET;
/// Bytes of a page.
pub(super) const PAGE: u64 = PageSize::Size4K.bytes();
/// Pages of each inode that scenarios touch.
pub(super) const TOUCHED: u64 = 16;
/// Guest frames from here show the second inode.
pub(super) const SECOND: u64 = 1024;

/// What every task of a program shares.
pub(super) struct World {
    pub(super) vm: Vm,
    /// Two inodes, each shown by the slot of its number.
    pub(super) gmems: [GmemId; 2],
    pub(super) defects: Defects,
    pub(super) cpus: [Processor; 2],
    /// For each guest frame mapped now, what the guest meant when it was.
    mapped_as: RefCell<BTreeMap<u64, Shareability>>,
    history: RefCell<CheckHistory>,
    pub(super) migration: Migration,
    /// Over shadow tables: what each processor has cached, by linear page.
    pub(super) linear: [RefCell<BTreeMap<u64, (Sfn, GuestRights)>>; 2],
    /// Of an SNP guest: what its processors have beside.
    pub(super) guests: Option<[SnpProcessor; 2]>,
    /// What a task has seen that may not be.
    seen: RefCell<Option<String>>,
}

impl Witness for World {
    fn translations(&self, vcpu: VcpuId, each: &mut dyn FnMut(Cached)) {
        if let Some(guests) = &self.guests {
            return guests[usize::from(vcpu.0)].translations(each);
        }
        for (&gfn, &Translation { sfn, .. }) in self.cpus[usize::from(vcpu.0)].tlb.borrow().iter() {
            each(Cached { gfn: Gfn::new(gfn), sfn, size: PageSize::Size4K });
        }
    }

    fn stores(&self, vcpu: VcpuId, each: &mut dyn FnMut(Gfn)) {
        let tlb = self.cpus[usize::from(vcpu.0)].tlb.borrow();
        tlb.iter()
            .filter(|(_, cached)| cached.rights.contains(Rights::WRITE))
            .for_each(|(&gfn, _)| each(Gfn::new(gfn)));
    }

    fn writable_frames(&self, vcpu: VcpuId, each: &mut dyn FnMut(Sfn)) {
        let tlb = self.linear[usize::from(vcpu.0)].borrow();
        tlb.values().filter(|(_, rights)| rights.contains(GuestRights::WRITE)).for_each(|(sfn, _)| each(*sfn));
    }

    fn save_area(&self, vcpu: VcpuId) -> Option<Sfn> {
        self.guests.as_ref()?[usize::from(vcpu.0)].runs_from.get()
    }

    fn in_guest(&self, vcpu: VcpuId) -> bool {
        self.cpus[usize::from(vcpu.0)].in_guest.get()
    }

    fn meant(&self, gfn: Gfn) -> Option<Shareability> {
        self.mapped_as.borrow().range(..=gfn.raw()).next_back().map(|(_, &meant)| meant)
    }
}

/// The event sink of one task.
pub(super) struct Watch<'w> {
    world: &'w World,
    pub(super) meant: Cell<Shareability>,
}

impl<'w> Watch<'w> {
    /// Nothing is meant to be private yet.
    pub(super) const fn new(world: &'w World) -> Watch<'w> {
        Watch { world, meant: Cell::new(Shareability::SHARED) }
    }
}

impl EventSink for Watch<'_> {
    fn report(&self, event: Event) {
        let mut mapped_as = self.world.mapped_as.borrow_mut();
        match event {
            Event::Mapped { gfn, .. } => drop(mapped_as.insert(gfn.raw(), self.meant.get())),
            Event::Zapped { gfn, .. } => drop(mapped_as.remove(&gfn.raw())),
            _ => {}
        }
    }
}

/// What a world is made of. Scenarios change what they are about and leave the rest.
pub(super) struct Setup {
    pub(super) defects: Defects,
    /// What every page of the inodes is at first.
    pub(super) initial: Shareability,
    /// Size of the folios.
    pub(super) page: PageSize,
    /// Pages of each inode.
    pub(super) inode_pages: u64,
    /// Flags of the inodes, beside that they start shared.
    pub(super) flags: GmemFlags,
    /// Changes to the configuration of the VM.
    pub(super) adjust: fn(&mut VmConfig),
    /// How its MMU works.
    pub(super) params: MmuParams,
    /// Whether the guest's tables are shadowed.
    pub(super) shadow: Option<ShadowConfig>,
    /// Whether it is an SNP guest, and by which policies.
    pub(super) snp: Option<SnpSetup>,
}

impl Setup {
    /// Shared small pages.
    pub(super) fn of(defects: Defects) -> Setup {
        let (initial, page) = (Shareability::SHARED, PageSize::Size4K);
        let flags = GmemFlags::empty();
        let params = MmuParams::default();
        Setup { defects, initial, page, inode_pages: TOUCHED, flags, adjust: |_| {}, params, shadow: None, snp: None }
    }

    /// A shared 2M page for each inode, reserved in a pool.
    pub(super) fn huge(defects: Defects) -> Setup {
        let page = PageSize::Size2M;
        Setup { page, inode_pages: page.frames(), ..Setup::of(defects) }
    }

    /// The world.
    pub(super) fn build(self) -> Rc<World> {
        self.try_build().expect("a VM of this size can be had")
    }

    fn try_build(self) -> Result<Rc<World>, BuildError> {
        let Setup { defects, initial, page, inode_pages, flags, adjust, params, shadow, snp } = self;
        let pages = PagePolicy::of(page);
        let nr_frames = 64 + 4 * page.frames();
        let pools = if page == PageSize::Size2M { vec![(HugeSize::Size2M, 2)] } else { Vec::new() };
        let host = HostConfig { first: Sfn::new(1), nr_frames: nr_frames - 1, pools };
        let plan = SystemMemoryPlan { arena_bytes: nr_frames * PAGE, host };
        let (plan, place) = match snp {
            Some(_) => {
                let (plan, place) = plan.with_rmp();
                (plan, Some(place))
            }
            None => (plan, None),
        };
        let memory = SystemMemory::flat(plan.arena_bytes)?;
        let mut config = VmConfig { maxphyaddr: 36, nr_vcpus: 2, ..VmConfig::new(pages, plan.host) };
        if let (Some(snp), Some(place)) = (&snp, place) {
            snp.configure(&mut config, &memory, place)?;
        }
        adjust(&mut config);
        let mut vm = Vm::with_params(memory, &config, params)?;
        if let Some(shadow) = &shadow {
            vm = vm.shadowing(shadow)?;
        }
        let flags = if initial.is_private() { flags } else { flags | GmemFlags::INIT_SHARED };
        let show = |id: u16, first: u64| -> Result<GmemId, VmError> {
            let gmem = vm.create_guest_memfd(inode_pages * PAGE, flags.bits(), QUIET)?;
            let (gpa, len_bytes) = (Gpa::new(first * PAGE), inode_pages * PAGE);
            let flags = SlotFlags::empty();
            vm.add_memslot(&MemSlotSpec { id: SlotId(id), gpa, len_bytes, flags, gmem, offset_bytes: 0 }, QUIET)?;
            Ok(gmem)
        };
        let gmems = [show(0, 0)?, show(1, SECOND)?];
        let guests = snp.map(|snp| snp.finish(&vm)).transpose()?;
        let cpus: [Processor; 2] = Default::default();
        if params.pml == Pml::On && vm.format() == TdpFormat::Ept {
            for cpu in &cpus {
                let buffer = vm.host().lock(QUIET).alloc_table().map_err(VmError::from)?;
                cpu.pml.set(Some((buffer, PML_ENTRIES - 1)));
            }
        }
        Ok(Rc::new(World {
            vm,
            gmems,
            defects,
            cpus,
            mapped_as: RefCell::default(),
            history: RefCell::default(),
            migration: Migration::default(),
            linear: Default::default(),
            guests,
            seen: RefCell::default(),
        }))
    }
}

impl World {
    /// A fresh VM over small pages that are all `initial`.
    pub(super) fn new(defects: Defects, initial: Shareability) -> Rc<World> {
        Setup { initial, ..Setup::of(defects) }.build()
    }

    /// The same over inodes of one 2M page each, reserved in a pool, all shared.
    pub(super) fn huge(defects: Defects) -> Rc<World> {
        Setup::huge(defects).build()
    }

    /// Huge pages again, of which the first slot shows the first but for its first page, from an aligned guest frame on.
    pub(super) fn misaligned(defects: Defects) -> Rc<World> {
        let world = World::huge(defects);
        let show_askew = || -> Result<(), VmError> {
            world.vm.remove_memslot(SlotId(0), QUIET)?;
            let (gpa, len_bytes) = (Gpa::new(512 * PAGE), 511 * PAGE);
            let (id, flags, gmem) = (SlotId(0), SlotFlags::empty(), world.gmems[0]);
            world.vm.add_memslot(&MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes: PAGE }, QUIET)
        };
        show_askew().expect("the slot fits");
        world
    }

    /// What the guest meant when the leaf that starts at `gfn` was installed, if one is there.
    pub(super) fn meant_at(&self, gfn: Gfn) -> Option<Shareability> {
        self.mapped_as.borrow().get(&gfn.raw()).copied()
    }

    /// A task has seen what may not be: the next check says so.
    pub(super) fn report(&self, what: String) {
        self.seen.borrow_mut().get_or_insert(what);
    }

    /// The invariants that hold between any two steps, or when all have finished.
    fn check(&self, progress: Progress) -> Result<(), String> {
        if let Some(what) = self.seen.borrow().clone() {
            return Err(what);
        }
        let moment = match progress {
            Progress::Running => Moment::BetweenSteps,
            Progress::Finished => Moment::Quiescent,
        };
        let verdict = self.vm.check(moment, &mut self.history.borrow_mut(), self, QUIET);
        verdict.map_err(|violation| violation.to_string())?;
        if progress == Progress::Finished { self.copy_is_complete() } else { Ok(()) }
    }

    /// A task saw `invariant` broken.
    pub(super) fn broken(&self, invariant: &str, found: impl core::fmt::Display) {
        self.report(format!("{invariant}: {found}"));
    }

    /// A processor that reads each of `frames`, until it has read it or the fault leaves to the VMM.
    pub(super) fn vcpu(self: &Rc<World>, n: u16, meaning: Shareability, frames: &[u64]) -> Body {
        let reads = frames.iter().map(|&gfn| Access { kind: AccessKind::Read, gfn, meaning });
        self.guest(n, reads.collect())
    }

    /// A processor that makes each of `accesses`, until it is made or the fault leaves to the VMM.
    pub(super) fn guest(self: &Rc<World>, n: u16, accesses: Vec<Access>) -> Body {
        let world = Rc::clone(self);
        Box::new(move |schedule| {
            let watch = Watch::new(&world);
            let task = Task::reporting(&watch).under(schedule).with(world.defects).on_lane(n as u8);
            for &access in &accesses {
                watch.meant.set(access.meaning);
                world.execute(VcpuId(n), access, &task);
            }
        })
    }

    /// The same before any task runs.
    pub(super) fn before(&self, n: u16, accesses: &[Access]) {
        let watch = Watch::new(self);
        for &access in accesses {
            watch.meant.set(access.meaning);
            self.execute(VcpuId(n), access, &Task::reporting(&watch).on_lane(n as u8));
        }
    }

    fn execute(&self, id: VcpuId, access: Access, task: &Task<'_>) {
        let Access { kind, gfn, meaning } = access;
        loop {
            if self.vm.is_dirty_ring_full(id, task).expect("the vCPU exists") {
                self.pass(task);
            }
            let entry = match self.cpus[usize::from(id.0)].attempt(self, id, access, task) {
                Attempt::Done => return,
                Attempt::Kicked => continue,
                Attempt::Faulted(entry) => entry,
            };
            let before = self.memory_at(gfn, task);
            let input = FaultInput { privacy: meaning, entry, ..FaultInput::new(Gpa::new(gfn * PAGE), kind) };
            let answer = self.vm.handle_fault(id, input, task);
            if let Err(VmError::Backing(GetError::Poisoned { .. })) = answer {
                return;
            }
            match answer.expect("memory is enough") {
                // What was there already does not answer it for ever.
                Action::Resume(Resumed::Retry | Resumed::Spurious) => task.give_way(),
                Action::Resume(Resumed::Fixed { .. }) => {}
                Action::Mmio { .. } if before.is_some() && before == self.memory_at(gfn, task) => {
                    self.report(format!("I5: guest frame {gfn:#x} is memory and was taken for a device"));
                    return;
                }
                Action::MemoryFault(_) | Action::Mmio { .. } => return,
                Action::RomWrite { .. } => panic!("there is no ROM"),
            }
        }
    }

    /// The generation of the memslots, if one of them shows `gfn`.
    fn memory_at(&self, gfn: u64, task: &Task<'_>) -> Option<u64> {
        let slots = self.vm.memslots(task);
        let slot = slots.lookup(Gfn::new(gfn)).filter(|slot| slot.state() == SlotState::Active);
        slot.map(|_| slots.generation())
    }

    /// A task of the host.
    pub(super) fn host(self: &Rc<World>, act: impl Fn(&World, &Task<'_>) + 'static) -> Body {
        let world = Rc::clone(self);
        Box::new(move |schedule: &dyn Schedule| {
            let watch = Watch::new(&world);
            act(&world, &Task::reporting(&watch).under(schedule).with(world.defects).on_lane(7));
        })
    }

    /// These tasks, with the invariants between their steps.
    pub(super) fn program(self: Rc<World>, threads: Vec<(&'static str, Body)>) -> Program {
        self.program_that_ends(threads, |_| {})
    }

    /// The same, and when all have finished `last` looks whether anything is [broken](World::broken).
    pub(super) fn program_that_ends(
        self: Rc<World>,
        threads: Vec<(&'static str, Body)>,
        last: impl Fn(&World) + 'static,
    ) -> Program {
        let check = move |progress| {
            if progress == Progress::Finished {
                last(&self);
            }
            self.check(progress)
        };
        Program { threads, check: Box::new(check) }
    }
}
