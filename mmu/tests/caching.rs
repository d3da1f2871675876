//! Histories of table changes, register changes, invalidations and accesses, run with caches and without. As long as
//! software invalidates what the manuals say it owes, nobody can tell the difference: same outcomes, same A and D bits.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, Privilege, Spa};
use mmu::{
    Asid, Caches, Ept, EptAccessedDirty, EptExecute, Eptp, Globals, Invept, Invpcid, Invvpid, Mmu, MmuFault, NestedNx,
    Npt, PagingChange, PagingFeatures, Pcid, Stage2, Stage2Levels, Translation, Vpid,
};
use proptest::prelude::*;

/// Guest frames of 4 KiB that histories play with: two address spaces of tables, then data.
const FRAMES: u64 = 64;
/// Nested tables map guest physical to system physical this much further on.
const OFFSET: u64 = 0x40_0000;
const NESTED_ROOT: u64 = 0x80_0000;
const DATA: u64 = 32;
const MEMORY: u64 = 0x1000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nesting {
    None,
    Npt,
    Ept(EptAccessedDirty),
}

/// One step of software or of the processor.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// An access to page `page`, by its virtual number.
    Access { page: u64, access: Access },
    /// Rewrites the PTE (or, for `large`, the PDE) of a page in address space `space` and invalidates it.
    Remap { space: usize, page: u64, frame: u64, flags: u64, large: bool },
    /// Sets P and R/W and clears NX of a PTE, which owes no invalidation (U/S would: SMEP and SMAP take away for it).
    Grant { space: usize, page: u64 },
    /// Rewrites a nested entry and flushes the frame.
    RemapNested { frame: u64, flags: u64 },
    /// Moves the first page table of an address space to another frame, clears the old one and invalidates the PCID.
    MoveTable { space: usize },
    /// The same with the nested page table, and a flush of all it maps.
    MoveNestedTable,
    /// Switches to an address space.
    Switch { space: usize, flush: bool },
    /// Toggles a bit of CR0 or CR4 whose change owes no flush, or writes PKRU.
    Rules { cr0: Cr0, cr4: Cr4, pkru: u32 },
    /// Drops more than is owed.
    Superfluous { which: u8 },
}

fn accesses() -> impl Strategy<Value = Access> {
    (0..3_usize, 0..3_usize).prop_map(|(kind, privilege)| {
        Access::new([AccessKind::Read, AccessKind::Write, AccessKind::Execute][kind], Privilege::ALL[privilege])
    })
}

/// Bits that vary in a leaf: P, R/W, U/S, A, D, G, NX and a key.
fn leaf_flags() -> impl Strategy<Value = u64> {
    (0_u64..128, 0_u64..2).prop_map(|(n, key)| {
        let bits = [0, 1, 2, 5, 6, 8, 63];
        // Mostly present.
        let n = if n % 8 == 0 { n } else { n | 1 };
        bits.iter().enumerate().filter(|(i, _)| n >> i & 1 == 1).fold(key << 59, |sum, (_, bit)| sum | 1 << bit)
    })
}

/// Global pages, or nested faults on tables of one address space: with both, a global page would rightly hide that the
/// other space cannot be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    GlobalPages,
    NestedFaultsOnTables,
}

fn ops(theme: Theme) -> impl Strategy<Value = Op> {
    let nested_frames = if theme == Theme::GlobalPages { DATA..FRAMES } else { 0..FRAMES };
    let page = || prop_oneof![4 => 0_u64..4, 4 => 512_u64..516, 4 => 1024_u64..1028];
    prop_oneof![
        12 => (page(), accesses()).prop_map(|(page, access)| Op::Access { page, access }),
        3 => (0..2_usize, page(), DATA..FRAMES, leaf_flags(), prop::bool::weighted(0.15))
            .prop_map(move |(space, page, frame, flags, large)| {
                // The second 2 MiB alone changes its page size, the third alone is global.
                let flags = if page >= 1024 && theme == Theme::GlobalPages { flags } else { flags & !(1 << 8) };
                Op::Remap { space, page, frame, flags, large: large && page / 512 == 1 }
            }),
        1 => (0..2_usize, page()).prop_map(|(space, page)| Op::Grant { space, page }),
        2 => (nested_frames, 0_u64..8).prop_map(|(frame, flags)| Op::RemapNested { frame, flags: flags | 1 }),
        1 => (0..2_usize).prop_map(|space| Op::MoveTable { space }),
        1 => Just(Op::MoveNestedTable),
        2 => (0..2_usize, any::<bool>()).prop_map(|(space, flush)| Op::Switch { space, flush }),
        1 => (any::<bool>(), 0..8_u64, any::<u32>()).prop_map(|(wp, n, pkru)| Op::Rules {
            cr0: if wp { Cr0::WP } else { Cr0::empty() },
            cr4: [Cr4::SMAP, Cr4::PKE, Cr4::SMEP].into_iter().enumerate()
                .filter(|(i, _)| n >> i & 1 == 1).fold(Cr4::empty(), |sum, (_, bit)| sum | bit),
            pkru: pkru & 0xf,
        }),
        1 => (0..8_u8).prop_map(|which| Op::Superfluous { which }),
    ]
}

struct Machine {
    memory: Arc<SystemMemory>,
    mmu: Mmu,
    nesting: Nesting,
    offset: u64,
    space: usize,
    /// In which address space the second PDE is a 2 MiB page.
    large: [bool; 2],
}

/// A table of an address space: PML4, PDPT, PD and its own page tables.
fn frame_of(space: usize, table: u64) -> u64 {
    (space as u64 * 8 + table) * 4096
}

/// What to xor with the address of each space's first page table to get the frame it may move to: 17 and 18.
const FIRST_TABLES: [u64; 2] = [(3 ^ 17) << 12, (11 ^ 18) << 12];

/// The page table for a page at the start. The third 2 MiB are global and share one, as kernels do.
fn page_table(space: usize, page: u64) -> u64 {
    if page >= 1024 { 16 * 4096 } else { frame_of(space, 3 + page / 512) }
}

/// The pages that histories use.
fn pages() -> impl Iterator<Item = u64> {
    (0..4).chain(512..516).chain(1024..1028)
}

impl Machine {
    fn new(nesting: Nesting, caches: Caches) -> Machine {
        let memory = SystemMemory::flat(MEMORY).expect("address space");
        let offset = if nesting == Nesting::None { 0 } else { OFFSET };
        let mut mmu = Mmu::new(
            Arc::clone(&memory),
            if matches!(nesting, Nesting::Ept(_)) { PagingFeatures::INTEL } else { PagingFeatures::AMD },
        );
        mmu.set_caches(caches);
        let mut machine = Machine { memory, mmu, nesting, offset, space: 0, large: [false; 2] };
        for space in 0..2 {
            for table in [0, 1] {
                machine.store_guest(frame_of(space, table), frame_of(space, table + 1) | 0x27);
            }
            for page in pages() {
                let table = page_table(space, page);
                machine.store_guest(frame_of(space, 2) + page / 512 * 8, table | 0x27);
                machine.store_guest(table + page % 512 * 8, ((DATA + page % 16) * 4096) | 7);
            }
        }
        for frame in (DATA..FRAMES).chain(512..516) {
            machine.store_guest(frame * 4096, frame);
        }
        machine.build_nested();
        machine.set_space(0, PagingChange::Reset);
        machine
    }

    fn store_guest(&self, gpa: u64, value: u64) {
        self.memory.store(Spa::new(gpa + self.offset), value).expect("inside memory");
    }
    fn load_guest(&self, gpa: u64) -> u64 {
        self.memory.load(Spa::new(gpa + self.offset)).expect("inside memory")
    }

    /// The first page table of an address space, wherever it was moved.
    fn first_table(&self, space: usize) -> u64 {
        self.load_guest(frame_of(space, 2)) & 0xf_f000
    }
    /// Where the PTE of a page is.
    fn slot(&self, space: usize, page: u64) -> u64 {
        let table = if page < 512 { self.first_table(space) } else { page_table(space, page) };
        table + page % 512 * 8
    }
    /// The nested page table, wherever it was moved.
    fn nested_table(&self) -> u64 {
        self.memory.load::<u64>(Spa::new(NESTED_ROOT + 0x2000)).expect("inside memory") & !0xfff
    }

    fn build_nested(&mut self) {
        let store = |spa, value: u64| self.memory.store(Spa::new(spa), value).expect("inside memory");
        let (table, leaf) = match self.nesting {
            Nesting::None => return,
            Nesting::Npt => (7, 7),
            Nesting::Ept(_) => (7, 7 | 6 << 3),
        };
        store(NESTED_ROOT, (NESTED_ROOT + 0x1000) | table);
        store(NESTED_ROOT + 0x1000, (NESTED_ROOT + 0x2000) | table);
        store(NESTED_ROOT + 0x2000, (NESTED_ROOT + 0x3000) | table);
        // The second 2 MiB of guest physical memory is one large nested page.
        store(NESTED_ROOT + 0x2008, (OFFSET + 0x20_0000) | leaf | 1 << 7);
        for frame in 0..512 {
            store(NESTED_ROOT + 0x3000 + frame * 8, (OFFSET + frame * 4096) | leaf);
        }
        self.mmu.set_stage2(match self.nesting {
            Nesting::None => Stage2::None,
            Nesting::Npt => Stage2::Npt(Npt {
                root: Spa::new(NESTED_ROOT),
                levels: Stage2Levels::Four,
                nx: NestedNx::Enabled,
                asid: Asid(3),
                snp: None,
            }),
            Nesting::Ept(flags) => Stage2::Ept(Ept {
                eptp: Eptp::new(Spa::new(NESTED_ROOT), Stage2Levels::Four, flags),
                execute: EptExecute::ModeBased,
                vpid: Vpid(3),
            }),
        });
    }

    fn set_space(&mut self, space: usize, change: PagingChange) {
        self.space = space;
        let mut state = *self.mmu.paging();
        if change == PagingChange::Reset {
            state.cr0 = Cr0::PE | Cr0::PG | Cr0::WP;
            state.cr4 = Cr4::PAE | Cr4::PGE | Cr4::PCIDE;
            state.efer = Efer::LME | Efer::LMA | Efer::NXE;
        }
        state.cr3 = frame_of(space, 0) | (space as u64 + 1);
        self.mmu.set_paging(state, change);
    }

    /// What a changed page owes: INVLPG where its space is current, INVPCID where it is not, for all pages of a range whose
    /// page size changed. A shared page is in both spaces, and INVLPG drops its global entries.
    fn invalidate(&mut self, space: usize, page: u64, resized: bool) {
        let pages = if resized { 512..516 } else { page..page + 1 };
        for page in pages {
            let gva = Gva::new(page * 4096);
            let shared = page >= 1024;
            if shared || space == self.space {
                self.mmu.invlpg(gva);
            }
            for other in 0..2 {
                if other != self.space && (shared || space == other) {
                    self.mmu.invpcid(Invpcid::Address { pcid: Pcid::new(other as u16 + 1), gva });
                }
            }
        }
    }

    fn run(&mut self, op: Op) -> Option<Result<Translation, MmuFault>> {
        match op {
            Op::Access { page, access } => return Some(self.mmu.translate(Gva::new(page * 4096 + 0x123), access)),
            Op::Remap { space, page, frame, flags, large } => {
                let resizable = page / 512 == 1;
                let was_large = resizable && core::mem::replace(&mut self.large[space], large);
                let pde = frame_of(space, 2) + page / 512 * 8;
                if large {
                    self.store_guest(pde, 0x20_0000 | flags | 1 << 7);
                } else {
                    if was_large {
                        self.store_guest(pde, page_table(space, page) | 0x27);
                    }
                    self.store_guest(self.slot(space, page), (frame * 4096) | flags);
                }
                self.invalidate(space, page, large != was_large);
            }
            Op::Grant { space, page } => {
                let slot = self.slot(space, page);
                let old = self.load_guest(slot);
                self.store_guest(slot, (old | 0b011) & !(1 << 63));
            }
            Op::RemapNested { frame, flags } => {
                let slot = self.nested_table() + frame * 8;
                if self.nesting != Nesting::None {
                    let kept = if self.nesting == Nesting::Npt { flags | 4 } else { flags | 6 << 3 | 1 << 10 };
                    self.memory.store(Spa::new(slot), (OFFSET + frame * 4096) | kept).expect("inside memory");
                    self.mmu.flush_gpa_range(Gfn::new(frame), 1);
                }
            }
            Op::MoveTable { space } => {
                let pde = frame_of(space, 2);
                let (from, to) = (self.first_table(space), self.first_table(space) ^ FIRST_TABLES[space]);
                for n in 0..4 {
                    self.store_guest(to + n * 8, self.load_guest(from + n * 8));
                    self.store_guest(from + n * 8, 0);
                }
                self.store_guest(pde, to | 0x27);
                if space == self.space {
                    self.set_space(space, PagingChange::MovCr3);
                } else {
                    self.mmu.invpcid(Invpcid::Single { pcid: Pcid::new(space as u16 + 1) });
                }
            }
            Op::MoveNestedTable => {
                if self.nesting != Nesting::None {
                    let load = |spa| self.memory.load::<u64>(Spa::new(spa)).expect("inside memory");
                    let store = |spa, value: u64| self.memory.store(Spa::new(spa), value).expect("inside memory");
                    let pde = load(NESTED_ROOT + 0x2000);
                    let (from, to) = (pde & !0xfff, (pde & !0xfff) ^ 0x7000);
                    for n in 0..FRAMES {
                        store(to + n * 8, load(from + n * 8));
                        store(from + n * 8, 0);
                    }
                    store(NESTED_ROOT + 0x2000, pde ^ 0x7000);
                    self.mmu.flush_gpa_range(Gfn::new(0), 512);
                }
            }
            Op::Switch { space, flush } => {
                let change = if flush { PagingChange::MovCr3 } else { PagingChange::MovCr3NoFlush };
                self.set_space(space, change);
            }
            Op::Rules { cr0, cr4, pkru } => {
                let mut state = *self.mmu.paging();
                state.cr0 = (state.cr0 - Cr0::WP) | cr0;
                self.mmu.set_paging(state, PagingChange::MovCr0);
                state.cr4 = (state.cr4 - (Cr4::SMAP | Cr4::SMEP | Cr4::PKE)) | cr4;
                self.mmu.set_paging(state, PagingChange::MovCr4);
                state.pkru = pkru;
                self.mmu.set_paging(state, PagingChange::ProtectionKeys);
            }
            Op::Superfluous { which } => match which {
                0 => self.mmu.flush_all(),
                1 => self.mmu.invpcid(Invpcid::All),
                2 => self.mmu.invpcid(Invpcid::Single { pcid: Pcid::new(1) }),
                3 => self.mmu.invpcid(Invpcid::Address { pcid: Pcid::new(2), gva: Gva::new(0x1000) }),
                4 => self.mmu.invept(Invept::All),
                5 => self.mmu.invvpid(Invvpid::Single { vpid: Vpid(3) }),
                6 => self.mmu.flush_asid(Asid(3), Globals::Keep),
                _ => self.mmu.invlpga(Gva::new(0x2000), Asid(3)),
            },
        }
        None
    }

    /// Walks the tables of both spaces. Who found all pages of a space in the TLB, because they are global, never walked
    /// the space's own tables: the nested A bits of those then differ, and rightly.
    fn walk_both_spaces(&mut self) {
        for space in [0, 1] {
            self.set_space(space, PagingChange::MovCr3);
            self.mmu.flush_all();
            let _allowed_or_not = self.mmu.translate(Gva::new(0), Access::new(AccessKind::Read, Privilege::Supervisor));
        }
    }

    /// Everything that a walk may change.
    fn tables(&self) -> Vec<u64> {
        let guest = (0..19 * 512).map(|n| self.load_guest(n * 8));
        let nested = (0..5 * 512).map(|n| self.memory.load(Spa::new(NESTED_ROOT + n * 8)).expect("inside memory"));
        guest.chain(nested).collect()
    }
}

/// What software sees of a translation. Reach may differ: a cached piece of a large page reaches less far. D that was
/// set by another processor's view does not exist here, so that flags are equal too.
fn visible(result: Result<Translation, MmuFault>) -> Result<(Spa, Gpa), MmuFault> {
    result.map(|t| (t.spa, t.gpa))
}

fn agree(theme: Theme, nesting: Nesting, caches: Caches, history: &[Op]) {
    let mut cached = Machine::new(nesting, caches);
    let mut plain = Machine::new(nesting, Caches::empty());
    for (n, &op) in history.iter().enumerate() {
        let (seen, expected) = (cached.run(op).map(visible), plain.run(op).map(visible));
        assert_eq!(seen, expected, "step {n}: {op:?}");
        check_fast(&mut cached, &plain);
    }
    if theme == Theme::GlobalPages {
        cached.walk_both_spaces();
        plain.walk_both_spaces();
    }
    assert!(cached.tables() == plain.tables(), "A and D bits differ");
}

/// Whatever the fast TLB answers, a walk of the tables allows.
fn check_fast(cached: &mut Machine, plain: &Machine) {
    for privilege in Privilege::ALL {
        cached.mmu.fast.select(privilege);
        for page in pages() {
            let gva = page * 4096;
            let probe = |kind| plain.mmu.probe(Gva::new(gva), Access::new(kind, privilege));
            if let Some(seen) = cached.mmu.fast.load::<u64>(gva) {
                let there = probe(AccessKind::Read).expect("readable");
                assert_eq!(Ok(seen), plain.memory.load::<u64>(there.spa));
            }
            if cached.mmu.fast.can_store(gva, 8) {
                assert!(probe(AccessKind::Write).is_ok(), "writable");
                let flags = probe(AccessKind::Read).expect("what can be written can be read").flags;
                let dirty = mmu::PageFlags::DIRTY | mmu::PageFlags::NESTED_DIRTY;
                assert!(flags.contains(dirty), "a fast write entry without D: {flags:?}");
            }
            if cached.mmu.fast.code_page(gva).is_some() {
                assert!(probe(AccessKind::Execute).is_ok(), "executable");
            }
        }
    }
}

fn agree_everywhere(theme: Theme, history: &[Op]) {
    let ept = [EptAccessedDirty::Enabled, EptAccessedDirty::Disabled].map(Nesting::Ept);
    for nesting in [Nesting::None, Nesting::Npt, ept[0], ept[1]] {
        for caches in [Caches::all(), Caches::all() - Caches::TLB, Caches::TLB | Caches::FAST] {
            agree(theme, nesting, caches, history);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct(
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/caching.proptest-regressions"),
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn caches_are_invisible_with_global_pages(history in prop::collection::vec(ops(Theme::GlobalPages), 1..120)) {
        agree_everywhere(Theme::GlobalPages, &history);
    }

    #[test]
    fn caches_are_invisible_with_nested_faults_on_tables(
        history in prop::collection::vec(ops(Theme::NestedFaultsOnTables), 1..120),
    ) {
        agree_everywhere(Theme::NestedFaultsOnTables, &history);
    }
}
