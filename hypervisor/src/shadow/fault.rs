//! A page fault of a processor that walks shadow tables, from its exit to its answer (`paging64_page_fault` and its
//! kin): the guest's own walk first, then the stages of [`crate::fault`] for the guest frame, then the shadow leaf.

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event, NpfCode};
use emu_core::regs::Cr4;
use emu_core::sync::{Point, Task};
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, PageFaultCode, PageSize, Sfn, Spa};
use gmem::Shareability;
use gmem::mm::UserAccess;
use mmu::{GuestPaging, GuestRights, GuestTables, GuestWalk, GuestWalkError, Level, WalkNote};

use super::Role;
use super::fetch::{Fetched, Means, Neighbour, Plan};
use super::pages::{Standing, Target};
use super::role::RoleControls;
use super::spte::HostWrite;
use super::sync::{Wanted, wanted};
use super::vcpus::VcpuShadow;
use crate::config::VmError;
use crate::fault::{Action, EntryState, FaultInput, Resumed, Stop, Unresolved, admit, back, level, resolve};
use crate::flush::Owed;
use crate::memslot::{MemSlots, SlotFlags, SlotState};
use crate::tdp::{Logged, Rights};
use crate::vcpu::{VcpuId, VcpuMmu};
use crate::vm::Vm;

const RETRY: Stop = Stop::Answer(Action::Resume(Resumed::Retry));
/// Frames for shadow pages that one fault can need, and one more than five levels.
const TABLES: usize = 6;
/// Marks that one fault can need: its page, and a guest table at each of five levels.
const MARKS: usize = 6;
/// PTEs looked at around a faulting one (`PTE_PREFETCH_NUM`).
const WINDOW: u64 = 8;

/// A page fault as it left the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowFault {
    /// Where (CR2).
    pub gva: Gva,
    /// What for, and on whose authority.
    pub access: Access,
    /// The error code by the shadow tables.
    pub code: PageFaultCode,
}

/// What the machine does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowAnswer {
    /// The guest is owed the fault: #PF with this error code, CR2 as it is.
    Reflect(PageFaultCode),
    /// The instruction writes a guest table: the hypervisor makes the write for it.
    EmulateWrite {
        /// Where.
        gpa: Gpa,
    },
    /// As for a nested fault.
    Host(Action),
}

/// Finds guest tables through the memslots.
struct Finder<'v> {
    vm: &'v Vm,
    slots: &'v MemSlots,
    /// Guest tables in which A or D was set.
    written: [Option<Gfn>; MARKS],
    task: &'v Task<'v>,
}

impl GuestTables for Finder<'_> {
    fn locate(&mut self, slot: Gpa) -> Option<Spa> {
        let sfn = self.vm.table_frame(self.slots, slot.frame(), self.task)?;
        Some(sfn.base().wrapping_add(slot.page_offset() as u64))
    }
    fn is_writable(&mut self, slot: Gpa) -> bool {
        self.slots.lookup(slot.frame()).is_some_and(|slot| !slot.info().flags.contains(SlotFlags::READONLY))
    }
    fn note(&mut self, what: WalkNote) {
        match what {
            WalkNote::Entry { level, raw } => {
                self.task.report(Event::PagingElement { pte: Bits(raw), level: level.number() });
            }
            WalkNote::Accessed { slot } => {
                self.wrote(slot.frame());
                self.task.report(Event::SetAccessedBit { gpa: slot });
            }
            WalkNote::Dirtied { slot } => {
                self.wrote(slot.frame());
                self.task.report(Event::SetDirtyBit { gpa: slot });
            }
        }
    }
}

impl Finder<'_> {
    fn wrote(&mut self, table: Gfn) {
        if !self.written.contains(&Some(table))
            && let Some(place) = self.written.iter_mut().find(|place| place.is_none())
        {
            *place = Some(table);
        }
    }
}

impl Vm {
    /// Where the host reads guest frame `gfn` as a table; `None` where it cannot: no memory, or the guest's alone.
    pub(super) fn table_frame(&self, slots: &MemSlots, gfn: Gfn, task: &Task<'_>) -> Option<Sfn> {
        let slot = slots.lookup(gfn).filter(|slot| slot.state() == SlotState::Active)?;
        if !self.slot_attribute(slot, gfn, task).host_may_use() {
            return None;
        }
        if let Some((found, _)) = back::present(self, slot, gfn, task) {
            return Some(found.sfn);
        }
        let Some((inode, index)) = self.own_access_through_gmem(slot, gfn, task) else {
            let mut found = None;
            let mut note = |sfn| {
                found = Some(sfn);
                Ok(())
            };
            let hva = slot.info().hva_of(gfn);
            self.mm.with_page(hva, UserAccess::Write, self.kernel(task), &mut note).ok()?;
            return found;
        };
        inode.shared(task).get_folio(&self.host, index, task).ok().map(|backed| backed.sfn)
    }

    /// Answers a page fault of `vcpu`.
    pub fn handle_page_fault(
        &self,
        vcpu: VcpuId,
        fault: ShadowFault,
        task: &Task<'_>,
    ) -> Result<ShadowAnswer, VmError> {
        let shadow = self.shadow()?;
        let mut own = self.vcpu(vcpu)?.mmu.lock(task);
        let mut state = shadow.vcpu(vcpu)?.lock(task);
        own.stats.taken += 1;
        own.stats.denied += u64::from(fault.code.contains(PageFaultCode::P));
        if own.ring.as_ref().is_some_and(|ring| ring.room() < MARKS) {
            return Err(VmError::DirtyRingFull);
        }
        let answer = match self.shadow_fault(&mut own, &mut state, fault, task) {
            Ok(answer) => answer,
            Err(Stop::Answer(action)) => ShadowAnswer::Host(action),
            Err(Stop::Failed(error)) => return Err(error),
        };
        if let ShadowAnswer::Host(action) = &answer {
            own.stats.count(action);
        }
        Ok(answer)
    }

    fn shadow_fault(
        &self,
        own: &mut VcpuMmu,
        state: &mut VcpuShadow,
        fault: ShadowFault,
        task: &Task<'_>,
    ) -> Result<ShadowAnswer, Stop> {
        let ShadowFault { gva, access, .. } = fault;
        let slots = self.slots.read(task);
        task.at(Point::F0);
        // Before the guest's tables are read: what they say is as old as this.
        let before = self.invalidation.sample();
        let walk = {
            task.report_with(|| Event::PagetableWalk {
                addr: Bits(gva.raw()),
                error_code: NpfCode::from_bits_retain(fault.code.bits().into()),
            });
            let mut finder = Finder { vm: self, slots: &slots, written: [None; MARKS], task };
            let walked = state.paging.walk(self.memory(), &mut finder, gva, access);
            for table in finder.written.into_iter().flatten() {
                if let Some(slot) = slots.lookup(table) {
                    self.mark_dirty(slot, table, own.ring.as_mut(), task);
                }
            }
            match walked {
                Ok(walk) => walk,
                Err(GuestWalkError::Fault(code)) => {
                    task.report_with(|| Event::WalkerError {
                        error_code: NpfCode::from_bits_retain(code.bits().into()),
                    });
                    return Ok(self.reflect(code, task));
                }
                Err(GuestWalkError::NoTable { .. } | GuestWalkError::NonCanonical) => {
                    return Ok(self.reflect(access_code(&state.paging, access), task));
                }
            }
        };
        let entry = if fault.code.contains(PageFaultCode::P) { EntryState::Denied } else { EntryState::NotPresent };
        let input = FaultInput { entry, ..FaultInput::new(walk.gpa, access.kind) };
        task.report_with(|| Event::PageFault { gpa: input.gpa, access: input.kind, error_code: input.error_code() });
        let unresolved = Unresolved::new(input, &self.invalidation);
        task.at(Point::F1);
        let in_slot = resolve::resolve(slots.lookup(unresolved.gfn()), unresolved)?;
        let attribute = self.slot_attribute(in_slot.slot(), unresolved.gfn(), task);
        task.at(Point::F2);
        let admitted = admit::admit(attribute, in_slot)?;
        if unresolved.is_stale(&self.invalidation, task) {
            return Err(RETRY);
        }
        if task.has(Defect::FastPathOnShadow)
            && fault.code.contains(PageFaultCode::P | PageFaultCode::W)
            && self.fast_shadow_fault(state.root, linear(&state.paging, gva), task)
        {
            self.mark_dirty(in_slot.slot(), walk.gpa.frame(), own.ring.as_mut(), task);
            return Ok(ShadowAnswer::Host(Action::Resume(Resumed::Fixed { size: PageSize::Size4K })));
        }
        top_up(self, &mut state.tables, task)?;
        task.at(Point::F3);
        let backed = back::fault_in(admitted, self, task)?;
        let mut neighbours = [None; WINDOW as usize];
        self.look_around(&state.paging, &slots, &walk, &mut neighbours, task);
        let neighbours: Vec<Neighbour> = neighbours.into_iter().flatten().collect();
        task.at(Point::F4);
        let target = Target { gfn: walk.gpa.frame(), access: leaf_access(&state.paging, &walk, access) };
        let gfns_stale = |gfn: Gfn| self.invalidation.must_retry(before, gfn, task);
        let is_stale =
            || unresolved.is_stale(&self.invalidation, task) || walk.steps().any(|step| gfns_stale(step.slot.frame()));
        if is_stale() {
            return Err(RETRY);
        }
        task.at(Point::F5);
        let mut owed = Owed::default();
        let tables = self.mmu.write(task);
        let mut guard = tables.shadow.lock(task);
        if is_stale() {
            return Err(RETRY);
        }
        let logged = if in_slot.slot().log().is_some() { Logged::Yes } else { Logged::No };
        let sized = level::choose(&backed, self, task);
        let sized = if logged == Logged::Yes { sized.capped(PageSize::Size4K) } else { sized };
        let (sfn, size) = (sized.sfn(), sized.size());
        let host = match sized.rights().contains(Rights::WRITE) {
            true => HostWrite::Allowed,
            false => HostWrite::Refused,
        };
        // The leaf holds no reference; what takes the frame away comes through the lock that is held.
        drop(backed);
        let Some(pages) = guard.as_deref_mut() else { return Err(VmError::NotShadowing.into()) };
        if state.root.pages().any(|page| pages.page(page).standing == Standing::Invalid) {
            return Err(RETRY);
        }
        task.at(Point::F6);
        pages.make_room(TABLES, &mut owed, task);
        let plan = Plan {
            gva: linear(&state.paging, gva),
            walk: &walk,
            target,
            sfn,
            size,
            host,
            logged,
            write: access.kind == AccessKind::Write,
            neighbours: &neighbours,
        };
        let flush = |owed: &Owed| self.flush(owed, task);
        let mut mark = |gfn: Gfn| {
            if let Some(slot) = slots.lookup(gfn) {
                self.mark_dirty(slot, gfn, own.ring.as_mut(), task);
            }
        };
        let fetched = pages.fetch(
            state.root,
            &plan,
            &mut Means {
                paging: &state.paging,
                tables: &mut state.tables,
                flush: &flush,
                is_stale: &gfns_stale,
                mark: &mut mark,
                owed: &mut owed,
                task,
            },
        );
        self.flush(&owed, task);
        task.at(Point::F7);
        pages.bury(&self.host, task);
        drop(guard);
        drop(tables);
        drop(slots);
        task.at(Point::F8);
        Ok(match fetched {
            Fetched::Fixed(size) => ShadowAnswer::Host(Action::Resume(Resumed::Fixed { size })),
            Fetched::Spurious => ShadowAnswer::Host(Action::Resume(Resumed::Spurious)),
            Fetched::Retry => return Err(RETRY),
            Fetched::WriteProtected => ShadowAnswer::EmulateWrite { gpa: walk.gpa },
        })
    }

    fn reflect(&self, code: PageFaultCode, task: &Task<'_>) -> ShadowAnswer {
        if let Some(pages) = self.mmu.write(task).shadow.lock(task).as_deref_mut() {
            pages.stats.reflected += 1;
        }
        ShadowAnswer::Reflect(code)
    }

    /// Finds the PTEs around the faulting one whose pages are backed already; nothing is populated for them.
    fn look_around(
        &self,
        paging: &GuestPaging,
        slots: &MemSlots,
        walk: &GuestWalk,
        found: &mut [Option<Neighbour>; WINDOW as usize],
        task: &Task<'_>,
    ) {
        let Some(leaf) = walk.steps().last().filter(|_| walk.level == Level::PT) else { return };
        let role = Role {
            level: 1,
            format: super::TableFormat::of(paging.state().mode()),
            quadrant: 0,
            origin: super::Origin::Guest,
            access: GuestRights::all(),
            controls: RoleControls::of(paging.state()),
        };
        let bytes = role.format.entry_bytes();
        let first = leaf.spa.raw() & !(WINDOW * bytes - 1);
        for (n, place) in (0..WINDOW).zip(found) {
            let at = Spa::new(first + n * bytes);
            let raw = match bytes {
                4 => self.memory().load::<u32>(at).map(u64::from),
                _ => self.memory().load::<u64>(at),
            };
            let (Ok(raw), false) = (raw, at == leaf.spa) else { continue };
            let Wanted::Leaf(Target { gfn, .. }) = wanted(paging, role, raw) else { continue };
            let Some(slot) = slots.lookup(gfn).filter(|slot| slot.state() == SlotState::Active) else { continue };
            if self.slot_attribute(slot, gfn, task) != Shareability::SHARED {
                continue;
            }
            let Some((backed, origin)) = back::present(self, slot, gfn, task) else { continue };
            // What the VMM lets be written of its memory is asked when the guest writes.
            // So it is where writes are logged: the mark comes with the right.
            let asked = origin == back::Origin::UserMemory || slot.log().is_some();
            let host = if asked || slot.info().flags.contains(SlotFlags::READONLY) {
                HostWrite::Refused
            } else {
                HostWrite::Allowed
            };
            *place = Some(Neighbour { at, raw, sfn: backed.sfn, host });
        }
    }
}

/// Takes frames for shadow pages before any lock is held.
pub(super) fn top_up(vm: &Vm, tables: &mut Vec<Spa>, task: &Task<'_>) -> Result<(), VmError> {
    if tables.len() < TABLES {
        let mut host = vm.host.lock(task);
        while tables.len() < TABLES {
            tables.push(host.alloc_table()?);
        }
    }
    Ok(())
}

/// The linear address as the guest's mode sees it.
fn linear(paging: &GuestPaging, gva: Gva) -> Gva {
    match super::TableFormat::of(paging.state().mode()) {
        super::TableFormat::Long => gva,
        _ => Gva::new(gva.raw() & 0xffff_ffff),
    }
}

/// The error code of a fault on a table that does not exist.
fn access_code(paging: &GuestPaging, access: Access) -> PageFaultCode {
    let state = paging.state();
    let mut code = PageFaultCode::empty();
    code.set(PageFaultCode::U, access.privilege.is_user());
    code.set(PageFaultCode::W, access.kind == AccessKind::Write);
    let reported = RoleControls::of(state).contains(RoleControls::NX) || state.cr4.contains(Cr4::SMEP);
    code.set(PageFaultCode::I, access.kind == AccessKind::Execute && reported);
    code
}

/// What the leaf may allow: what the guest's entries do, without writing while D is clear. A supervisor that writes a
/// read-only page without CR0.WP gets a page that only supervisors can use; under SMEP they cannot execute it, as they
/// could not execute the user's.
fn leaf_access(paging: &GuestPaging, walk: &GuestWalk, access: Access) -> GuestRights {
    let mut rights = walk.rights;
    let controls = RoleControls::of(paging.state());
    if !walk.dirty {
        rights.remove(GuestRights::WRITE);
    }
    let overrides = access.kind == AccessKind::Write
        && !walk.rights.contains(GuestRights::WRITE)
        && !access.privilege.is_user()
        && !controls.contains(RoleControls::WP);
    if overrides {
        rights.insert(GuestRights::WRITE);
        rights.remove(GuestRights::USER);
        if controls.contains(RoleControls::SMEP_ANDNOT_WP) {
            rights.remove(GuestRights::EXECUTE);
        }
    }
    rights
}
