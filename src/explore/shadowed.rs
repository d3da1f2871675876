//! Shadow paging: guests that change their own tables while other processors, the hypervisor and the host are at work.
//!
//! The guest has one page of PTEs at guest frame [`TABLE`] which it can write through itself: page `n` of its linear
//! addresses is guest frame `n` at first. Its processors walk the shadow tables. Beside the invariants of the shadow MMU
//! (group J) one thing is seen here (J3): after a processor has flushed a page it translates it as the guest's table says.
//!
//! Two of the mistakes are missing memory barriers in Linux: another processor sees two stores, or a store and a later
//! load, the other way round. Schedules are sequentially consistent, so the defect is that order itself: what the barrier
//! keeps from happening late happens late.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use emu_core::defect::{Defect, Defects};
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::sync::{Point, Task};
use emu_core::{AccessKind, Gpa, Gva, PageFaultCode, PageSize, Privilege, Sfn, Spa};
use gmem::PageIndex;
use hypervisor::shadow::{ShadowAnswer, ShadowConfig, ShadowEntry, ShadowFault, ShadowPte};
use hypervisor::{Action, FlushRequest, Resumed, VcpuId};
use interleave::{Body, Program};
use mmu::{GuestRights, PagingChange, PagingFeatures, PagingState};

use super::Scenario;
use super::migration::Log;
use super::world::{PAGE, QUIET, Setup, TOUCHED, World};

/// The races.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "shadow-prefetch-punch",
        what: "a fault maps the neighbours of its page too while one of them is punched out",
        shows: &[Defect::PrefetchStale],
        start: prefetch_and_punch,
    },
    Scenario {
        name: "shadow-unsync-flush",
        what: "one processor makes a guest table writable; another writes it, flushes and uses what it wrote",
        shows: &[Defect::UnsyncAfterWritable],
        start: unsync_and_flush,
    },
    Scenario {
        name: "shadow-protect-harvest",
        what: "a page is taken for a guest table while a harvest has withheld writing to it and has not flushed",
        shows: &[Defect::FlushByHardwareWrite],
        start: protect_and_harvest,
    },
    Scenario {
        name: "shadow-emulated-write",
        what: "the hypervisor writes a guest table for the guest while the table is shadowed for the first time",
        shows: &[Defect::CountBeforeWrite],
        start: emulated_write_and_first_shadow,
    },
];

/// The guest frame of the guest's page of PTEs; those of the tables above it come before.
pub(super) const TABLE: u64 = 3;

/// A page of the guest that is a table too: for linear pages from 512 on.
const LATER: u64 = 8;

/// A present entry of the guest's, writable, accessed and dirty.
pub(super) const fn entry(gfn: u64) -> u64 {
    gfn * PAGE | 0x67
}

/// A processor over shadow tables.
#[derive(Default)]
struct Cpu {
    root: Cell<Spa>,
    /// Linear pages that were flushed, and where the guest's table led then.
    flushed: RefCell<BTreeMap<u64, u64>>,
}

/// A step of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// It enters the guest for the first time.
    Start,
    /// It reads a page.
    Read(u64),
    /// It writes an entry of a table that is no table yet, at the page of its guest frame.
    Put(u64),
    /// It makes a page lead to a guest frame.
    Map(u64, u64),
    /// INVLPG.
    Flush(u64),
}

/// How one attempt at an access ended.
enum Attempt {
    Done,
    Again,
    Faulted(PageFaultCode),
}

/// A guest over shadow tables.
pub(super) struct Guest {
    pub(super) world: Rc<World>,
    cpus: [Cpu; 2],
}

impl Guest {
    pub(super) fn new(defects: Defects) -> Rc<Guest> {
        let shadow = ShadowConfig { features: PagingFeatures::AMD, max_pages: ShadowConfig::LEAST_PAGES };
        let world = Setup { shadow: Some(shadow), ..Setup::of(defects) }.build();
        let put = |gfn: u64, index: u64, value: u64| {
            let at = Gpa::new(gfn * PAGE + 8 * index);
            world.vm.guest_write(at, &value.to_le_bytes(), QUIET).expect("the page is shared");
        };
        (0..TABLE).for_each(|table| put(table, 0, entry(table + 1)));
        (TABLE..TOUCHED).for_each(|page| put(TABLE, page, entry(page)));
        // Pages that the guest uses are there; one of them is a table when somebody takes it for one.
        (TABLE + 1..TOUCHED).for_each(|page| put(page, 0, entry(page)));
        put(TABLE - 1, 1, entry(LATER));
        Rc::new(Guest { world, cpus: Default::default() })
    }

    /// The processor's task.
    pub(super) fn vcpu(self: &Rc<Guest>, n: u16, steps: &'static [Step]) -> Body {
        let guest = Rc::clone(self);
        self.world.host(move |_, task| guest.run(n, steps, task))
    }

    /// A processor takes these steps.
    pub(super) fn run(&self, n: u16, steps: &[Step], task: &Task<'_>) {
        let cpu = &self.cpus[usize::from(n)];
        let id = VcpuId(n);
        for &step in steps {
            match step {
                Step::Start => {
                    let state = PagingState {
                        cr0: Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET,
                        cr3: 0,
                        cr4: Cr4::PAE,
                        efer: Efer::LME | Efer::LMA | Efer::NXE,
                        ..PagingState::default()
                    };
                    let state = self.world.vm.set_guest_paging(id, &state, PagingChange::Reset, task);
                    self.load(cpu, id, &state.expect("memory is enough"));
                }
                Step::Read(page) => self.access(cpu, id, page, None, task),
                Step::Put(page) => self.access(cpu, id, page, Some((0, entry(6))), task),
                Step::Map(page, gfn) => self.access(cpu, id, TABLE, Some((8 * page, entry(gfn))), task),
                Step::Flush(page) => {
                    self.world.vm.shadow_invlpg(id, Gva::new(page * PAGE), task).expect("the vCPU exists");
                    self.tlb(id).borrow_mut().remove(&page);
                    cpu.flushed.borrow_mut().insert(page, self.gfn_of(page));
                }
            }
        }
    }

    /// The frame behind a page of the guest.
    fn frame(&self, gfn: u64) -> Option<Sfn> {
        let inode = self.world.vm.gmem(self.world.gmems[0], QUIET)?;
        inode.peek(PageIndex(gfn), QUIET).map(|backed| backed.sfn)
    }

    /// Where the guest's table leads for a linear page.
    fn gfn_of(&self, page: u64) -> u64 {
        let table = self.frame(TABLE).expect("the table is there");
        let raw: u64 = self.world.vm.memory().load(table.base().wrapping_add(8 * page)).expect("tables lie in memory");
        raw / PAGE
    }

    /// What a processor has cached.
    fn tlb(&self, id: VcpuId) -> &RefCell<BTreeMap<u64, (Sfn, GuestRights)>> {
        &self.world.linear[usize::from(id.0)]
    }

    /// MOV to CR3.
    fn load(&self, cpu: &Cpu, id: VcpuId, state: &PagingState) {
        cpu.root.set(Spa::new(state.cr3).align_down(PageSize::Size4K));
        self.tlb(id).borrow_mut().clear();
    }

    /// Reads `page`, or writes a value at an offset of it, until that is done.
    fn access(&self, cpu: &Cpu, id: VcpuId, page: u64, store: Option<(u64, u64)>, task: &Task<'_>) {
        let vm = &self.world.vm;
        let kind = if store.is_some() { AccessKind::Write } else { AccessKind::Read };
        loop {
            if let Some(state) = vm.reload_guest_paging(id, task).expect("memory is enough") {
                self.load(cpu, id, &state);
            }
            let code = match self.attempt(cpu, id, page, store, task) {
                Attempt::Done => return,
                Attempt::Again => continue,
                Attempt::Faulted(code) => code,
            };
            let access = emu_core::Access::new(kind, Privilege::Supervisor);
            let fault = ShadowFault { gva: Gva::new(page * PAGE), access, code };
            match vm.handle_page_fault(id, fault, task).expect("memory is enough") {
                ShadowAnswer::Host(Action::Resume(Resumed::Retry)) => task.give_way(),
                ShadowAnswer::Host(Action::Resume(_)) => {}
                ShadowAnswer::EmulateWrite { gpa } => {
                    let (offset, value) = store.expect("a read is not emulated");
                    let at = Gpa::new(gpa.raw() & !(PAGE - 1) | offset);
                    vm.emulate_write(id, at, &value.to_le_bytes(), task).expect("the page is shared");
                    return;
                }
                // The guest's own fault, or its page is gone.
                ShadowAnswer::Reflect(_) | ShadowAnswer::Host(_) => return,
            }
        }
    }

    fn attempt(&self, cpu: &Cpu, id: VcpuId, page: u64, store: Option<(u64, u64)>, task: &Task<'_>) -> Attempt {
        let (inside, flush) = self.world.vm.enter_guest(id, task).expect("the vCPU exists");
        let in_guest = &self.world.cpus[usize::from(id.0)].in_guest;
        match flush {
            None => {}
            Some(FlushRequest::All) => self.tlb(id).borrow_mut().clear(),
            // Over shadow tables a range is one of system frames.
            Some(FlushRequest::Range { first, nr_pages }) => {
                self.tlb(id).borrow_mut().retain(|_, (sfn, _)| sfn.raw().wrapping_sub(first.raw()) >= nr_pages);
            }
        }
        if self.world.vm.must_reload(id) {
            return Attempt::Again;
        }
        let cached = self.tlb(id).borrow().get(&page).copied();
        let enough = |rights: GuestRights| store.is_none() || rights.contains(GuestRights::WRITE);
        let found = match cached.filter(|(_, rights)| enough(*rights)) {
            Some(cached) => Ok(cached),
            None => self.walk(cpu, page, store.is_some()),
        };
        in_guest.set(true);
        task.at(Point::T1);
        let attempt = match found {
            Err(code) => Attempt::Faulted(code),
            Ok(_) if inside.is_kicked() => Attempt::Again,
            Ok((sfn, rights)) => {
                self.tlb(id).borrow_mut().insert(page, (sfn, rights));
                if let Some((offset, value)) = store {
                    self.world.vm.memory().store(sfn.base().wrapping_add(offset), value).expect("pages are memory");
                }
                self.must_be_current(cpu, id, page, sfn);
                task.at(Point::T1);
                Attempt::Done
            }
        };
        in_guest.set(false);
        attempt
    }

    /// J3.
    fn must_be_current(&self, cpu: &Cpu, id: VcpuId, page: u64, sfn: Sfn) {
        if let Some(&gfn) = cpu.flushed.borrow().get(&page)
            && self.frame(gfn) != Some(sfn)
        {
            self.world.report(format!("J3: vCPU {} has flushed page {page:#x} and still uses {sfn:?} for it", id.0));
        }
    }

    /// Walks the shadow tables without any lock, and sets accessed and dirty flags.
    fn walk(&self, cpu: &Cpu, page: u64, write: bool) -> Result<(Sfn, GuestRights), PageFaultCode> {
        let mut code = PageFaultCode::empty();
        code.set(PageFaultCode::W, write);
        let memory = self.world.vm.memory();
        let mut table = cpu.root.get();
        for level in (1..=4_u8).rev() {
            let at = table.wrapping_add(8 * (page >> (9 * (u32::from(level) - 1)) & 511));
            let raw = memory.load(at).expect("tables lie in memory");
            match ShadowPte::from_raw(raw).read(level) {
                ShadowEntry::Absent => return Err(code),
                ShadowEntry::Table(next) => table = next,
                ShadowEntry::Leaf { rights, .. } if write && !rights.contains(GuestRights::WRITE) => {
                    return Err(code | PageFaultCode::P);
                }
                ShadowEntry::Leaf { sfn, rights } => {
                    let flags = if write { 0x60 } else { 0x20 };
                    memory.store(at, raw | flags).expect("tables lie in memory");
                    return Ok((sfn, rights));
                }
            }
        }
        unreachable!("the lowest level has no tables below")
    }
}

/// Neighbours of a fault's PTE are present in the guest and backed.
fn prefetch_and_punch(defects: Defects) -> Program {
    let guest = Guest::new(defects);
    guest.run(0, &[Step::Start], QUIET);
    let punch = |world: &World, task: &Task<'_>| {
        world.vm.punch_hole(world.gmems[0], 6 * PAGE, PAGE, task).expect("the range lies in the inode");
    };
    let threads = vec![("vcpu", guest.vcpu(0, &[Step::Read(5), Step::Read(6)])), ("puncher", guest.world.host(punch))];
    Rc::clone(&guest.world).program(threads)
}

/// The table is shadowed and write-protected; both processors write it.
fn unsync_and_flush(defects: Defects) -> Program {
    let guest = Guest::new(defects);
    guest.run(0, &[Step::Start, Step::Read(5), Step::Read(TABLE)], QUIET);
    guest.run(1, &[Step::Start, Step::Read(5)], QUIET);
    let threads = vec![
        ("vcpu 0", guest.vcpu(0, &[Step::Map(6, 6)])),
        ("vcpu 1", guest.vcpu(1, &[Step::Map(5, 8), Step::Flush(5), Step::Read(5)])),
    ];
    Rc::clone(&guest.world).program(threads)
}

/// A processor has just written what another takes for a table.
fn protect_and_harvest(defects: Defects) -> Program {
    let guest = Guest::new(defects);
    guest.world.migrate(Log::Bitmap);
    guest.run(0, &[Step::Start, Step::Put(LATER)], QUIET);
    guest.run(1, &[Step::Start], QUIET);
    let pass = |world: &World, task: &Task<'_>| world.pass(task);
    let threads = vec![
        ("vcpu 0", guest.vcpu(0, &[Step::Put(LATER)])),
        ("vcpu 1", guest.vcpu(1, &[Step::Read(512)])),
        ("vmm", guest.world.host(pass)),
    ];
    Rc::clone(&guest.world).program(threads)
}

/// Nothing is shadowed yet.
fn emulated_write_and_first_shadow(defects: Defects) -> Program {
    let guest = Guest::new(defects);
    let emulate = |world: &World, task: &Task<'_>| {
        let at = Gpa::new(TABLE * PAGE + 8 * 5);
        world.vm.emulate_write(VcpuId(1), at, &entry(8).to_le_bytes(), task).expect("the page is shared");
    };
    let threads =
        vec![("vcpu", guest.vcpu(0, &[Step::Start, Step::Read(5)])), ("emulation", guest.world.host(emulate))];
    Rc::clone(&guest.world).program(threads)
}
