//! A guest whose tables are shadowed: a processor walks the shadow, a reference processor walks a plain copy of the guest's
//! memory, and the guest and its hypervisor take steps.

// Each test program uses its own part of this.
#![allow(dead_code, reason = "shared by several test programs")]

use std::collections::BTreeSet;
use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::sync::Task;
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, PageFaultCode, PageSize, Privilege, Spa};
use gmem::PageIndex;
use hypervisor::shadow::{ShadowAnswer, ShadowConfig, ShadowFault, check};
use hypervisor::*;
use mmu::{
    Asid, Caches, Invpcid, Mmu, MmuFault, PagingChange, PagingFeatures, PagingMode, PagingState, Pcid, SpaceTag, Stage2,
};
use proptest::prelude::*;

pub const QUIET: &Task<'static> = &Task::QUIET;
pub const CPU: VcpuId = VcpuId(0);
pub const FEATURES: PagingFeatures = PagingFeatures::AMD;
pub const MEMORY: u64 = 16 << 20;
/// Where all guest memory is mapped, by large pages that no test changes.
pub const WINDOW: u64 = 0x8000_0000;
/// Guest tables: the root, then tables of the lower levels, a page each.
pub const TABLES: u64 = 0x10_0000;
/// Pages that tests map.
pub const DATA: u64 = 0x20_0000;

pub const P: u64 = 1;
pub const W: u64 = 1 << 1;
pub const U: u64 = 1 << 2;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const NX: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Legacy,
    Pae,
    Four,
    Five,
}

impl Form {
    pub const ALL: [Form; 4] = [Form::Legacy, Form::Pae, Form::Four, Form::Five];

    pub const fn entry_bytes(self) -> u64 {
        if matches!(self, Form::Legacy) { 4 } else { 8 }
    }
    pub const fn top(self) -> u8 {
        match self {
            Form::Legacy => 2,
            Form::Pae => 3,
            Form::Four => 4,
            Form::Five => 5,
        }
    }
    pub const fn shift(self, level: u8) -> u32 {
        let bits = if matches!(self, Form::Legacy) { 10 } else { 9 };
        12 + bits * (level as u32 - 1)
    }
    pub const fn large(self) -> u64 {
        1 << self.shift(2)
    }
    pub fn state(self) -> PagingState {
        let mut state = PagingState {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET,
            cr3: TABLES,
            cr4: Cr4::PSE | Cr4::PGE,
            ..PagingState::default()
        };
        if self != Form::Legacy {
            state.cr4 |= Cr4::PAE;
            state.efer |= Efer::NXE;
        }
        if matches!(self, Form::Four | Form::Five) {
            state.efer |= Efer::LME | Efer::LMA;
        }
        if self == Form::Five {
            state.cr4 |= Cr4::LA57;
        }
        state
    }
}

/// The guest, its hypervisor and the reference.
pub struct World {
    pub form: Form,
    pub vm: Vm,
    pub gmem: GmemId,
    /// Walks shadow tables.
    pub cpu: Mmu,
    /// A copy of the guest's memory, at its guest physical addresses.
    pub copy: Arc<SystemMemory>,
    /// Walks the copy; caches nothing.
    pub reference: Mmu,
    pub state: PagingState,
    /// Pages whose translation the guest has changed and not flushed.
    pub unflushed: BTreeSet<u64>,
}

pub fn table(n: u64) -> u64 {
    TABLES + n * 0x1000
}

impl World {
    pub fn new(form: Form, page: PageSize) -> World {
        World::with_params(form, page, MmuParams::default())
    }

    pub fn with_params(form: Form, page: PageSize, params: MmuParams) -> World {
        let layout = RamLayout::pc(MEMORY, page).unwrap();
        let pages = PagePolicy::of(page);
        let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let vm = Vm::with_params(Arc::clone(&memory), &VmConfig::new(pages, plan.host), params).unwrap();
        let vm = vm.shadowing(&ShadowConfig { features: FEATURES, max_pages: 64 }).unwrap();
        let gmem = vm.add_ram(&layout, SlotId(0), QUIET).unwrap();
        let mut cpu = Mmu::new(memory, FEATURES);
        cpu.set_stage2(Stage2::Untranslated(SpaceTag::Asid(Asid(1))));
        let copy = SystemMemory::flat(MEMORY).unwrap();
        let mut reference = Mmu::new(Arc::clone(&copy), FEATURES);
        reference.set_caches(Caches::empty());
        let state = form.state();
        let mut world = World { form, vm, gmem, cpu, copy, reference, state, unflushed: BTreeSet::new() };
        world.build();
        world.write_registers(form.state(), PagingChange::Reset);
        world
    }

    /// The window, and a path of tables to the region at zero: page directory, then two page tables.
    pub fn build(&mut self) {
        let full = P | W | U | A | D;
        let mut at = TABLES;
        let mut next = 1;
        for level in (3..=self.form.top()).rev() {
            let link = table(next) | if self.form == Form::Pae { P } else { full };
            // The window lies in another gigabyte than the region.
            self.host_store(at, link);
            if level == 3 {
                self.host_store(
                    at + 8 * (WINDOW >> 30),
                    table(next + 1) | if self.form == Form::Pae { P } else { full },
                );
            }
            at = table(next);
            next += 1;
        }
        let directory = at;
        let window = if self.form == Form::Legacy { directory } else { table(next) };
        next += 1;
        for n in 0..MEMORY / self.form.large() {
            let index = (WINDOW / self.form.large() + n) % (4096 / self.form.entry_bytes());
            self.host_store(window + index * self.form.entry_bytes(), n * self.form.large() | full | PS);
        }
        for n in 0..2 {
            self.host_store(directory + n * self.form.entry_bytes(), table(next + n) | full);
        }
    }

    /// The page directory of the region.
    pub fn directory(&self) -> u64 {
        table(u64::from(self.form.top()) - 2)
    }
    /// Its page tables.
    pub fn page_table(&self, n: u64) -> u64 {
        self.directory() + (2 + n) * 0x1000
    }

    /// Puts an entry where no processor looks yet.
    pub fn host_store(&mut self, gpa: u64, raw: u64) {
        let bytes = raw.to_le_bytes();
        let bytes = &bytes[..self.form.entry_bytes() as usize];
        self.vm.guest_write(Gpa::new(gpa), bytes, QUIET).unwrap();
        self.copy.write(Spa::new(gpa), bytes).unwrap();
    }

    pub fn pdptes(&self, mut state: PagingState) -> PagingState {
        if state.mode() == PagingMode::Pae {
            let mut raw = [0; 32];
            self.vm.guest_read(Gpa::new(state.cr3 & !0x1f), &mut raw, QUIET).unwrap();
            let (words, _) = raw.as_chunks::<8>();
            state.pdptes = Some(core::array::from_fn(|n| u64::from_le_bytes(words[n])));
        }
        state
    }

    pub fn write_registers(&mut self, state: PagingState, change: PagingChange) {
        let state = self.pdptes(state);
        self.state = state;
        let effective = self.vm.set_guest_paging(CPU, &state, change, QUIET).unwrap();
        self.cpu.set_paging(effective, change);
        self.reference.set_paging(state, change);
        self.obey();
    }

    /// What a processor does before it enters the guest.
    pub fn obey(&mut self) {
        if let Some(registers) = self.vm.reload_guest_paging(CPU, QUIET).unwrap() {
            self.cpu.set_paging(registers, PagingChange::WorldSwitch);
        }
        match self.vm.take_flush(CPU, QUIET) {
            None => {}
            Some(FlushRequest::All) => self.cpu.flush_all(),
            Some(FlushRequest::Range { first, nr_pages }) => self.cpu.flush_gpa_range(first, nr_pages),
        }
    }

    /// What the hypervisor makes of an access: where it goes, whether by an emulated write, or the guest's own fault.
    pub fn access(&mut self, gva: u64, access: Access, write: Option<&[u8]>) -> Result<Option<Spa>, PageFaultCode> {
        for _ in 0..16 {
            let (gva, code) = match self.cpu.translate(Gva::new(gva), access) {
                Ok(found) => {
                    if let Some(bytes) = write {
                        self.vm.memory().write(found.spa, bytes).unwrap();
                    }
                    return Ok(Some(found.spa));
                }
                Err(MmuFault::Guest { gva, code }) => (gva, code),
                Err(other) => panic!("{other:?}"),
            };
            let answer = self.vm.handle_page_fault(CPU, ShadowFault { gva, access, code }, QUIET).unwrap();
            self.obey();
            self.check();
            match answer {
                ShadowAnswer::Reflect(code) => return Err(code),
                ShadowAnswer::EmulateWrite { gpa } => {
                    if let Some(bytes) = write {
                        self.vm.emulate_write(CPU, gpa, bytes, QUIET).unwrap();
                        self.obey();
                    }
                    return Ok(None);
                }
                ShadowAnswer::Host(Action::Resume(_)) => {}
                ShadowAnswer::Host(other) => panic!("{other:?}"),
            }
        }
        panic!("{gva:#x} faults for ever");
    }

    /// A store of the guest's kernel, through the window.
    pub fn guest_store(&mut self, gpa: u64, bytes: &[u8]) {
        let access = Access::new(AccessKind::Write, Privilege::Supervisor);
        self.access(WINDOW + gpa, access, Some(bytes)).expect("the window is always mapped");
        self.copy.write(Spa::new(gpa), bytes).unwrap();
    }

    /// The guest writes an entry and, unless nothing was there, must flush what it mapped.
    pub fn edit(&mut self, table: u64, index: u64, raw: u64) {
        let bytes = self.form.entry_bytes();
        let at = table + index * bytes;
        let mut old = [0; 8];
        self.copy.read(Spa::new(at), &mut old[..bytes as usize]).unwrap();
        self.guest_store(at, &raw.to_le_bytes()[..bytes as usize]);
        if u64::from_le_bytes(old) & P != 0 {
            for page in self.pages() {
                self.unflushed.insert(page);
            }
        }
    }

    /// The addresses that tests use.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let large = self.form.large();
        (0..2).flat_map(move |directory| (0..4).map(move |page| directory * large + page * 0x1000))
    }

    /// Compares an access with the reference, if the guest has flushed the page.
    pub fn compare(&mut self, gva: u64, access: Access) {
        if self.unflushed.contains(&(gva & !0xfff)) {
            let _ = self.access(gva, access, None);
            // Both have touched the page: what they make of its A and D bits must not differ afterwards.
            self.align();
            return;
        }
        let ours = self.access(gva, access, None);
        let theirs = self.reference.translate(Gva::new(gva), access);
        match (ours, theirs) {
            (Ok(where_to), Ok(found)) => {
                let index = PageIndex(found.spa.frame().raw());
                let backed = self.vm.gmem(self.gmem, QUIET).unwrap().peek(index, QUIET).unwrap();
                if let Some(spa) = where_to {
                    assert_eq!(spa.frame(), backed.sfn, "{gva:#x} {access:?} goes to {:?}", found.spa);
                }
            }
            (Err(code), Err(MmuFault::Guest { code: expected, .. })) => {
                assert_eq!(code, expected, "{gva:#x} {access:?}")
            }
            (ours, theirs) => panic!("{gva:#x} {access:?}: {ours:?}, but the guest's tables say {theirs:?}"),
        }
        self.align();
    }

    /// A and D bits that one side has set for a stale translation count as set on both.
    pub fn align(&mut self) {
        for n in 0..8 {
            let mut guest = vec![0; 4096];
            self.vm.guest_read(Gpa::new(table(n)), &mut guest, QUIET).unwrap();
            self.copy.write(Spa::new(table(n)), &guest).unwrap();
        }
    }

    pub fn invlpg(&mut self, gva: u64) {
        self.cpu.invlpg(Gva::new(gva));
        self.vm.shadow_invlpg(CPU, Gva::new(gva), QUIET).unwrap();
        self.obey();
        self.unflushed.remove(&(gva & !0xfff));
    }

    pub fn flush_all(&mut self) {
        self.write_registers(self.state, PagingChange::MovCr3);
        self.unflushed.clear();
    }

    pub fn check(&self) {
        let verdict = self.vm.tables(QUIET).with_shadow(QUIET, |pages| check::all(pages, &FEATURES));
        verdict.expect("the VM shadows").unwrap();
    }
}

/// A step of the guest or its hypervisor. Numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// An entry of a page table.
    Pte {
        table: u64,
        index: u64,
        frame: u64,
        bits: u64,
    },
    /// An entry of the page directory: a table, or a large page.
    Pde {
        index: u64,
        to: u64,
        bits: u64,
    },
    Read {
        page: u64,
        privilege: u64,
    },
    Write {
        page: u64,
        privilege: u64,
    },
    Fetch {
        page: u64,
        privilege: u64,
    },
    Invlpg {
        page: u64,
    },
    Invpcid,
    LoadCr3,
    ToggleWp,
    ToggleNx,
    Zap {
        first: u64,
        nr_pages: u64,
    },
    ZapAll,
    Punch {
        frame: u64,
    },
    Unprotect {
        table: u64,
    },
}

pub fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_u64, 0..4_u64, 0..8_u64, any::<u64>())
            .prop_map(|(table, index, frame, bits)| Step::Pte { table, index, frame, bits }),
        2 => (0..2_u64, 0..4_u64, any::<u64>()).prop_map(|(index, to, bits)| Step::Pde { index, to, bits }),
        4 => (0..8_u64, 0..3_u64).prop_map(|(page, privilege)| Step::Read { page, privilege }),
        4 => (0..8_u64, 0..3_u64).prop_map(|(page, privilege)| Step::Write { page, privilege }),
        2 => (0..8_u64, 0..3_u64).prop_map(|(page, privilege)| Step::Fetch { page, privilege }),
        4 => (0..8_u64).prop_map(|page| Step::Invlpg { page }),
        1 => Just(Step::Invpcid),
        2 => Just(Step::LoadCr3),
        1 => Just(Step::ToggleWp),
        1 => Just(Step::ToggleNx),
        1 => (0..MEMORY >> 12, 1..600_u64).prop_map(|(first, nr_pages)| Step::Zap { first, nr_pages }),
        1 => Just(Step::ZapAll),
        1 => (0..8_u64).prop_map(|frame| Step::Punch { frame }),
        1 => (0..8_u64).prop_map(|table| Step::Unprotect { table }),
    ]
}

impl World {
    pub fn take(&mut self, step: Step) {
        let page = |world: &World, n: u64| world.pages().nth(n as usize).expect("there are eight");
        let by = |n: u64| Privilege::ALL[n as usize];
        let nx = if self.form == Form::Legacy { 0 } else { NX };
        match step {
            Step::Pte { table, index, frame, bits } => {
                // Some of the frames are the page tables themselves.
                let frame = if frame < 6 { DATA + frame * 0x1000 } else { self.page_table(frame - 6) };
                let raw = frame | bits & (P | W | U | A | D | nx) | if bits >> 20 & 3 == 0 { 0 } else { P };
                self.edit(self.page_table(table), index, raw);
            }
            Step::Pde { index, to, bits } => {
                let allowed = bits & (W | U | A | nx) | P;
                let raw = match to {
                    0 | 1 => self.page_table(to) | allowed,
                    2 => self.form.large() | allowed | bits & D | PS,
                    _ => 0,
                };
                self.edit(self.directory(), index, raw);
            }
            Step::Read { page: n, privilege } => {
                self.compare(page(self, n), Access::new(AccessKind::Read, by(privilege)));
            }
            Step::Write { page: n, privilege } => {
                self.compare(page(self, n), Access::new(AccessKind::Write, by(privilege)));
            }
            Step::Fetch { page: n, privilege } => {
                self.compare(page(self, n), Access::new(AccessKind::Execute, by(privilege)));
            }
            Step::Invlpg { page: n } => self.invlpg(page(self, n)),
            Step::Invpcid if matches!(self.form, Form::Four | Form::Five) => {
                self.cpu.invpcid(Invpcid::Single { pcid: Pcid::new(0) });
                self.vm.shadow_invpcid(CPU, Invpcid::Single { pcid: Pcid::new(0) }, QUIET).unwrap();
                self.obey();
                self.unflushed.clear();
            }
            Step::Invpcid => {}
            Step::LoadCr3 => self.flush_all(),
            Step::ToggleWp => {
                let mut state = self.state;
                state.cr0 ^= Cr0::WP;
                self.write_registers(state, PagingChange::MovCr0);
            }
            Step::ToggleNx if self.form != Form::Legacy => {
                let mut state = self.state;
                state.efer ^= Efer::NXE;
                self.write_registers(state, PagingChange::WriteEfer);
                self.unflushed.clear();
            }
            Step::ToggleNx => {}
            Step::Zap { first, nr_pages } => {
                self.vm.zap_range(Gfn::new(first), nr_pages, QUIET).unwrap();
                self.obey();
            }
            Step::ZapAll => {
                self.vm.zap_all(QUIET).unwrap();
                self.obey();
            }
            Step::Punch { frame } => {
                let at = if frame < 6 { DATA + frame * 0x1000 } else { self.page_table(frame - 6) };
                self.vm.punch_hole(self.gmem, at, 0x1000, QUIET).unwrap();
                self.copy.write(Spa::new(at), &[0; 4096]).unwrap();
                self.obey();
            }
            Step::Unprotect { table: n } => {
                self.vm.unprotect(Gpa::new(table(n)).frame(), QUIET).unwrap();
                self.obey();
            }
        }
        self.check();
    }
}
