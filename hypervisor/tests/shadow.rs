//! Shadow paging against the guest's own tables: a processor walks the shadow, a reference processor walks a plain copy of
//! the guest's memory, and whenever the guest has flushed what it changed both must say the same. After each step the
//! invariants of the shadow MMU are recomputed.

use std::collections::BTreeSet;
use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::sync::Task;
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, PageFaultCode, PageSize, Privilege, Spa};
use gmem::PageIndex;
use hypervisor::dirty::{DirtyLogError, DirtyLogging};
use hypervisor::shadow::{Emulated, Origin, ShadowAnswer, ShadowConfig, ShadowFault, ShadowMmu, check};
use hypervisor::*;
use mmu::{
    Asid, Caches, Invpcid, Mmu, MmuFault, PagingChange, PagingFeatures, PagingMode, PagingState, Pcid, SpaceTag, Stage2,
};
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const CPU: VcpuId = VcpuId(0);
const FEATURES: PagingFeatures = PagingFeatures::AMD;
const MEMORY: u64 = 16 << 20;
/// Where all guest memory is mapped, by large pages that no test changes.
const WINDOW: u64 = 0x8000_0000;
/// Guest tables: the root, then tables of the lower levels, a page each.
const TABLES: u64 = 0x10_0000;
/// Pages that tests map.
const DATA: u64 = 0x20_0000;

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Legacy,
    Pae,
    Four,
    Five,
}

impl Form {
    const ALL: [Form; 4] = [Form::Legacy, Form::Pae, Form::Four, Form::Five];

    const fn entry_bytes(self) -> u64 {
        if matches!(self, Form::Legacy) { 4 } else { 8 }
    }
    const fn top(self) -> u8 {
        match self {
            Form::Legacy => 2,
            Form::Pae => 3,
            Form::Four => 4,
            Form::Five => 5,
        }
    }
    const fn shift(self, level: u8) -> u32 {
        let bits = if matches!(self, Form::Legacy) { 10 } else { 9 };
        12 + bits * (level as u32 - 1)
    }
    const fn large(self) -> u64 {
        1 << self.shift(2)
    }
    fn state(self) -> PagingState {
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
struct World {
    form: Form,
    vm: Vm,
    gmem: GmemId,
    /// Walks shadow tables.
    cpu: Mmu,
    /// A copy of the guest's memory, at its guest physical addresses.
    copy: Arc<SystemMemory>,
    /// Walks the copy; caches nothing.
    reference: Mmu,
    state: PagingState,
    /// Pages whose translation the guest has changed and not flushed.
    unflushed: BTreeSet<u64>,
}

fn table(n: u64) -> u64 {
    TABLES + n * 0x1000
}

impl World {
    fn new(form: Form, page: PageSize) -> World {
        let layout = RamLayout::pc(MEMORY, page).unwrap();
        let pages = PagePolicy::of(page);
        let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let vm = Vm::new(Arc::clone(&memory), &VmConfig::new(pages, plan.host)).unwrap();
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
    fn build(&mut self) {
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
    fn directory(&self) -> u64 {
        table(u64::from(self.form.top()) - 2)
    }
    /// Its page tables.
    fn page_table(&self, n: u64) -> u64 {
        self.directory() + (2 + n) * 0x1000
    }

    /// Puts an entry where no processor looks yet.
    fn host_store(&mut self, gpa: u64, raw: u64) {
        let bytes = raw.to_le_bytes();
        let bytes = &bytes[..self.form.entry_bytes() as usize];
        self.vm.guest_write(Gpa::new(gpa), bytes, QUIET).unwrap();
        self.copy.write(Spa::new(gpa), bytes).unwrap();
    }

    fn pdptes(&self, mut state: PagingState) -> PagingState {
        if state.mode() == PagingMode::Pae {
            let mut raw = [0; 32];
            self.vm.guest_read(Gpa::new(state.cr3 & !0x1f), &mut raw, QUIET).unwrap();
            let (words, _) = raw.as_chunks::<8>();
            state.pdptes = Some(core::array::from_fn(|n| u64::from_le_bytes(words[n])));
        }
        state
    }

    fn write_registers(&mut self, state: PagingState, change: PagingChange) {
        let state = self.pdptes(state);
        self.state = state;
        let effective = self.vm.set_guest_paging(CPU, &state, change, QUIET).unwrap();
        self.cpu.set_paging(effective, change);
        self.reference.set_paging(state, change);
        self.obey();
    }

    /// What a processor does before it enters the guest.
    fn obey(&mut self) {
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
    fn access(&mut self, gva: u64, access: Access, write: Option<&[u8]>) -> Result<Option<Spa>, PageFaultCode> {
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
                        self.vm.emulate_write(gpa, bytes, QUIET).unwrap();
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
    fn guest_store(&mut self, gpa: u64, bytes: &[u8]) {
        let access = Access::new(AccessKind::Write, Privilege::Supervisor);
        self.access(WINDOW + gpa, access, Some(bytes)).expect("the window is always mapped");
        self.copy.write(Spa::new(gpa), bytes).unwrap();
    }

    /// The guest writes an entry and, unless nothing was there, must flush what it mapped.
    fn edit(&mut self, table: u64, index: u64, raw: u64) {
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
    fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let large = self.form.large();
        (0..2).flat_map(move |directory| (0..4).map(move |page| directory * large + page * 0x1000))
    }

    /// Compares an access with the reference, if the guest has flushed the page.
    fn compare(&mut self, gva: u64, access: Access) {
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
    fn align(&mut self) {
        for n in 0..8 {
            let mut guest = vec![0; 4096];
            self.vm.guest_read(Gpa::new(table(n)), &mut guest, QUIET).unwrap();
            self.copy.write(Spa::new(table(n)), &guest).unwrap();
        }
    }

    fn invlpg(&mut self, gva: u64) {
        self.cpu.invlpg(Gva::new(gva));
        self.vm.shadow_invlpg(CPU, Gva::new(gva), QUIET).unwrap();
        self.obey();
        self.unflushed.remove(&(gva & !0xfff));
    }

    fn flush_all(&mut self) {
        self.write_registers(self.state, PagingChange::MovCr3);
        self.unflushed.clear();
    }

    fn check(&self) {
        let verdict = self.vm.tables(QUIET).with_shadow(QUIET, |pages| check::all(pages, &FEATURES));
        verdict.expect("the VM shadows").unwrap();
    }
}

/// A step of the guest or its hypervisor. Numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
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

fn steps() -> impl Strategy<Value = Step> {
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
    fn take(&mut self, step: Step) {
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

proptest! {
    #[test]
    fn random_guest_tables_translate_as_the_guest_says(
        form in prop::sample::select(&Form::ALL[..]),
        page in prop::sample::select(&[PageSize::Size4K, PageSize::Size2M][..]),
        steps in prop::collection::vec(steps(), 1..120),
    ) {
        let mut world = World::new(form, page);
        for step in steps {
            world.take(step);
        }
        world.flush_all();
        for gva in world.pages() {
            world.compare(gva, Access::new(AccessKind::Read, Privilege::Supervisor));
        }
        world.check();
    }
}

#[test]
fn a_page_table_goes_unsync_and_follows_again_when_the_guest_flushes() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    for form in Form::ALL {
        let mut world = World::new(form, PageSize::Size4K);
        let frame = |world: &mut World| world.access(0x1000, read, None).unwrap().unwrap().frame();
        world.edit(world.page_table(0), 1, DATA | P | W | A | D);
        let first = frame(&mut world);
        // The table is shadowed by now, so the first store to it makes its page unsync and the others go through.
        world.edit(world.page_table(0), 1, DATA + 0x1000 | P | W | A | D);
        world.edit(world.page_table(0), 2, DATA + 0x2000 | P | W | A | D);
        let stats = world.vm.shadow_stats(QUIET);
        assert_eq!((stats.unsync, stats.emulated), (1, 0), "{form:?}");
        assert_eq!(frame(&mut world), first, "stale until the guest flushes");
        world.invlpg(0x1000);
        assert_ne!(frame(&mut world), first, "{form:?}");
        world.flush_all();
        assert_eq!(world.vm.shadow_stats(QUIET).synced, 1, "{form:?}");
        world.check();
    }
}

#[test]
fn a_table_above_the_lowest_level_is_written_by_the_hypervisor() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    for form in Form::ALL {
        let mut world = World::new(form, PageSize::Size4K);
        world.edit(world.page_table(0), 0, DATA | P | W | A | D);
        world.edit(world.page_table(1), 0, DATA + 0x3000 | P | W | A | D);
        let first = world.access(0, read, None).unwrap().unwrap();
        let entry = world.page_table(1) | P | W | U | A | D;
        world.edit(world.directory(), 0, entry);
        assert_eq!(world.vm.shadow_stats(QUIET).emulated, 1, "{form:?}");
        let second = world.access(0, read, None).unwrap().unwrap();
        assert_ne!(first.frame(), second.frame(), "{form:?}");
        world.check();
    }
}

#[test]
fn a_large_page_of_the_guest_is_mapped_by_parts_where_the_host_has_small_pages_or_it_covers_a_table() {
    let write = Access::new(AccessKind::Write, Privilege::Supervisor);
    for form in Form::ALL {
        for page in [PageSize::Size4K, PageSize::Size2M] {
            let mut world = World::new(form, page);
            let data = 6 << 20;
            world.access(WINDOW + data, write, None).unwrap();
            let huge = usize::from(page == PageSize::Size2M);
            let stats = world.vm.shadow_stats(QUIET);
            assert_eq!(stats.installed[1], huge as u64, "{form:?} {page}: no table lies there");
            world.access(WINDOW + DATA - 0x1000, write, None).unwrap();
            let stats = world.vm.shadow_stats(QUIET);
            assert_eq!(stats.installed[1], huge as u64, "{form:?} {page}: tables lie in this one");
            world.check();
        }
    }
}

#[test]
fn a_write_that_floods_a_table_gives_it_back() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let mut world = World::new(Form::Four, PageSize::Size4K);
    world.edit(world.page_table(0), 0, DATA | P | W | A | D);
    world.access(0, read, None).unwrap();
    for n in 0..4 {
        world.edit(world.directory(), 100 + n, 0);
    }
    let stats = world.vm.shadow_stats(QUIET);
    assert_eq!((stats.flooded, stats.emulated), (1, 3), "the fourth store is the guest's own");
    world.access(0, read, None).unwrap();
    world.check();
}

#[test]
fn the_limit_of_shadow_pages_holds() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let mut world = World::new(Form::Four, PageSize::Size4K);
    let tables = 0x40_0000;
    for n in 0..200 {
        world.guest_store(tables + n * 0x1000, &(DATA | P | A).to_le_bytes());
        world.guest_store(world.directory() + 8 * (2 + n), &(tables + n * 0x1000 | P | W | A).to_le_bytes());
    }
    for n in 0..200 {
        world.access((2 + n) << 21, read, None).unwrap();
        let stats = world.vm.shadow_stats(QUIET);
        assert!(stats.pages <= 64, "{stats:?}");
    }
    assert!(world.vm.shadow_stats(QUIET).recycled > 100);
    world.check();
}

#[test]
fn paging_off_is_shadowed_directly() {
    let mut world = World::new(Form::Pae, PageSize::Size4K);
    let off = PagingState { cr0: Cr0::PE | Cr0::ET, ..PagingState::default() };
    world.write_registers(off, PagingChange::Reset);
    for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Execute] {
        world.compare(DATA + 0x123, Access::new(kind, Privilege::User));
    }
    world.check();
}

#[test]
fn a_memslot_takes_its_leaves_and_the_shadows_of_its_tables_along() {
    let mut world = World::new(Form::Four, PageSize::Size4K);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    world.edit(world.page_table(0), 0, DATA | P | W | A | D);
    world.access(0, read, None).unwrap();
    world.vm.remove_memslot(SlotId(0), QUIET).unwrap();
    world.obey();
    let of_guest = |pages: &ShadowMmu| pages.pages().filter(|(_, page)| page.role.origin == Origin::Guest).count();
    let left = world.vm.tables(QUIET).with_shadow(QUIET, of_guest);
    assert_eq!(left, Some(0), "no guest table is shadowed, not even the root");
    let stats = world.vm.shadow_stats(QUIET);
    assert_eq!(stats.installed, stats.zapped, "direct pages may stay, but they are empty");
    let refused = world.access(0, read, None);
    assert_eq!(refused, Err(PageFaultCode::empty()), "the guest's tables are nowhere");
    world.check();
}

#[test]
fn leaves_of_shadow_tables_are_not_logged() {
    let world = World::new(Form::Four, PageSize::Size4K);
    let asked = world.vm.set_dirty_logging(SlotId(0), DirtyLogging::On, QUIET);
    assert_eq!(asked, Err(DirtyLogError::Shadowing { slot: SlotId(0) }));
}

#[test]
fn an_exchange_happens_only_if_the_memory_is_what_the_instruction_saw() {
    let world = World::new(Form::Four, PageSize::Size4K);
    let gpa = Gpa::new(DATA);
    world.vm.guest_write(gpa, &7_u64.to_le_bytes(), QUIET).unwrap();
    let exchange =
        |old: u64, new: u64| world.vm.emulate_exchange(gpa, &old.to_le_bytes(), &new.to_le_bytes(), QUIET).unwrap();
    assert_eq!(exchange(8, 9), Emulated::Changed);
    assert_eq!(exchange(7, 9), Emulated::Done);
    assert_eq!(exchange(9, 1), Emulated::Done);
}

#[test]
fn roots_are_kept_for_guests_with_pcids() {
    let mut world = World::new(Form::Four, PageSize::Size4K);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let other = 0x60_0000;
    let mut root = vec![0; 4096];
    world.vm.guest_read(Gpa::new(TABLES), &mut root, QUIET).unwrap();
    world.guest_store(other, &root[..8]);
    let with = |cr3: u64| PagingState { cr3, cr4: Form::Four.state().cr4 | Cr4::PCIDE, ..Form::Four.state() };
    world.write_registers(with(TABLES | 1), PagingChange::MovCr4);
    world.access(WINDOW, read, None).unwrap();
    let loaded = world.vm.shadow_stats(QUIET).roots_loaded;
    for _ in 0..4 {
        world.write_registers(with(other | 2), PagingChange::MovCr3NoFlush);
        world.write_registers(with(TABLES | 1), PagingChange::MovCr3NoFlush);
    }
    let stats = world.vm.shadow_stats(QUIET);
    assert_eq!((stats.roots_loaded - loaded, stats.roots_reused), (1, 7));
    world.vm.shadow_invpcid(CPU, Invpcid::Single { pcid: Pcid::new(2) }, QUIET).unwrap();
    world.write_registers(with(other | 2), PagingChange::MovCr3NoFlush);
    assert_eq!(world.vm.shadow_stats(QUIET).roots_loaded - loaded, 2, "the flushed root is not reused as it was");
    world.check();
}
