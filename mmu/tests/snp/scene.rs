//! An SNP guest with one page of data: its tables, the nested tables and the RMP in system memory, each as large as asked.
//!
//! | what | guest physical | system physical |
//! |---|---|---|
//! | tables of the guest | from [`TABLES_GPA`] | from [`TABLES_SPA`] |
//! | data | [`DATA_GPA`] | [`DATA_SPA`] |
//! | tables of a host that maps the data at [`DATA`] | | from [`HOST_TABLES`] |
//! | nested tables | | from [`NESTED`] |

use std::sync::Arc;

use emu_core::memory::{Key, SystemMemory};
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gpa, Gva, Privilege, Spa};
use mmu::rmp::{FirmwareCommand, Rmp, RmpPageSize, RmpPlace, RmpUpdate, VmplPermissions, Vmsa};
use mmu::{Asid, Mmu, NestedNx, Npt, PagingChange, PagingFeatures, PagingState, SnpGuest, Stage2, Stage2Levels};

pub const ASID: Asid = Asid(3);
pub const C_BIT: u8 = 51;
/// The number is the same as that of the guest physical address, so that the page is there with paging off.
pub const DATA: u64 = DATA_GPA;
pub const DATA_GPA: u64 = 0x4060_0000;
pub const DATA_SPA: u64 = 0x60_0000;
const TABLES_GPA: u64 = 0x10_0000;
const TABLES_SPA: u64 = 0x30_0000;
const HOST_TABLES: u64 = 0x40_0000;
const NESTED: u64 = 0x1000_0000;
const NR_TABLES: u64 = 9;
const COVERED: u64 = 0x2000_0000;
/// P, R/W, U/S, A, D.
const FULL: u64 = 0x67;
const A: u64 = 1 << 5;
const PS: u64 = 1 << 7;

/// A leaf, of the guest or of the nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    Size4K,
    Size2M,
    Size1G,
}

/// What the RMP says of the page of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Hypervisor,
    /// The hypervisor's, and another page of the region is a guest's.
    BesideAssigned,
    Uncovered,
    Firmware,
    OtherAsid,
    OtherGpa,
    Immutable,
    Unvalidated,
    Valid,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Hypervisor,
        State::BesideAssigned,
        State::Uncovered,
        State::Firmware,
        State::OtherAsid,
        State::OtherGpa,
        State::Immutable,
        State::Unvalidated,
        State::Valid,
    ];

    /// The sizes an entry can have.
    pub fn sizes(self) -> Vec<RmpPageSize> {
        match self {
            State::Hypervisor | State::BesideAssigned | State::Uncovered => vec![RmpPageSize::Size4K],
            _ => vec![RmpPageSize::Size4K, RmpPageSize::Size2M],
        }
    }

    /// What `vmpl` can have been permitted.
    pub fn masks(self, vmpl: Vmpl) -> Vec<VmplPermissions> {
        if self == State::Valid && vmpl != Vmpl::Vmpl0 {
            (0..16).map(VmplPermissions::from_bits_truncate).collect()
        } else {
            vec![VmplPermissions::all()]
        }
    }
}

pub fn accesses() -> impl Iterator<Item = Access> {
    let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Execute];
    kinds.into_iter().flat_map(|kind| Privilege::ALL.map(|privilege| Access::new(kind, privilege)))
}

pub struct Scene {
    pub memory: Arc<SystemMemory>,
    pub rmp: Arc<Rmp>,
    pub mmu: Mmu,
    guest: Leaf,
    /// Of the pointers in the guest's tables.
    pointers: CBit,
}

pub fn guest_key() -> Key {
    Key::of_asid(ASID.0).expect("an ASID that has a key")
}

fn mask(c: CBit) -> u64 {
    if c.is_set() { 1 << C_BIT } else { 0 }
}

fn long_mode(cr3: u64) -> PagingState {
    PagingState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr3,
        cr4: Cr4::PAE | Cr4::PGE,
        efer: Efer::LME | Efer::LMA | Efer::NXE,
        ..PagingState::default()
    }
}

/// The guest at a privilege level.
pub fn stage2(vmpl: Vmpl) -> Stage2 {
    Stage2::Npt(Npt {
        root: Spa::new(NESTED),
        levels: Stage2Levels::Four,
        nx: NestedNx::Enabled,
        asid: ASID,
        snp: Some(SnpGuest { c_bit: C_BIT, vmpl }),
    })
}

impl Scene {
    pub fn new(guest: Leaf, nested: Leaf, vmpl: Vmpl) -> Scene {
        let memory = SystemMemory::flat(1 << 30).expect("address space");
        let rmp = rmp(&memory, 0x3000_0000, COVERED);
        let mut mmu = Mmu::new(Arc::clone(&memory), PagingFeatures::AMD);
        mmu.set_rmp(Some(Arc::clone(&rmp)));
        mmu.set_stage2(stage2(vmpl));
        let mut scene = Scene { memory, rmp, mmu, guest, pointers: CBit::Set };
        scene.map_nested_data(nested);
        scene.launch_tables(VmplPermissions::all());
        scene.put_tables_under(guest_key());
        scene.map_data(CBit::Set);
        scene.set_c_of_pointers(CBit::Set);
        scene
    }

    /// Stores under the key that the frame is under.
    pub fn store(&self, spa: u64, value: u64) {
        self.memory.store(Spa::new(spa), value).expect("in memory");
    }
    pub fn load(&self, spa: u64) -> u64 {
        self.memory.load(Spa::new(spa)).expect("in memory")
    }

    /// Declares that whoever owns `key` wrote the guest's tables.
    pub fn put_tables_under(&self, key: Key) {
        for n in 0..NR_TABLES {
            self.memory.set_key(Spa::new(TABLES_SPA + n * 0x1000).frame(), key);
        }
    }

    pub fn rmpupdate(&self, spa: u64, new: RmpUpdate) {
        self.rmp.rmpupdate(Spa::new(spa), new).unwrap_or_else(|refused| panic!("{spa:#x} {new:?}: {refused}"));
    }
    pub fn firmware(&self, spa: u64, command: FirmwareCommand) {
        self.rmp.firmware(Spa::new(spa), command).unwrap_or_else(|refused| panic!("{spa:#x}: {refused}"));
    }

    /// Makes a page the guest's, validated.
    pub fn launch(&self, spa: u64, gpa: u64, size: RmpPageSize, permissions: VmplPermissions) {
        self.rmpupdate(spa, RmpUpdate::pre_guest(ASID, Gpa::new(gpa), size));
        let permissions = [permissions; 3];
        self.firmware(spa, FirmwareCommand::LaunchPage { asid: ASID, size, vmsa: Vmsa::No, permissions });
    }

    fn launch_tables(&self, permissions: VmplPermissions) {
        for at in (0..NR_TABLES).map(|n| n * 0x1000) {
            self.launch(TABLES_SPA + at, TABLES_GPA + at, RmpPageSize::Size4K, permissions);
        }
    }

    /// Gives VMPL 1 to 3 these permissions for the guest's tables.
    pub fn permit_tables(&self, permissions: VmplPermissions) {
        for at in (0..NR_TABLES).map(|n| n * 0x1000) {
            self.rmpupdate(TABLES_SPA + at, RmpUpdate::hypervisor(RmpPageSize::Size4K));
        }
        self.launch_tables(permissions);
    }

    /// Puts the page of data in `state`; `permissions` are those of VMPL 1 to 3.
    pub fn put(&mut self, state: State, size: RmpPageSize, permissions: VmplPermissions) {
        if let Some(entry) = self.rmp.entry(Spa::new(DATA_SPA).frame())
            && entry.assigned()
        {
            self.rmpupdate(DATA_SPA, RmpUpdate::hypervisor(entry.page_size()));
        }
        let gpa = Gpa::new(DATA_GPA);
        match state {
            State::Hypervisor => {}
            State::BesideAssigned => {
                self.rmpupdate(DATA_SPA + 0x1000, RmpUpdate::guest(ASID, Gpa::new(0x5000), RmpPageSize::Size4K));
            }
            State::Uncovered => {
                self.rmp = rmp(&self.memory, 0x3800_0000, DATA_SPA);
                self.launch_tables(VmplPermissions::all());
                self.mmu.set_rmp(Some(Arc::clone(&self.rmp)));
            }
            State::Firmware => self.rmpupdate(DATA_SPA, RmpUpdate::firmware(size)),
            State::OtherAsid => self.rmpupdate(DATA_SPA, RmpUpdate::guest(Asid(4), gpa, size)),
            State::OtherGpa => {
                let other = gpa.wrapping_add(size.page_size().bytes());
                self.rmpupdate(DATA_SPA, RmpUpdate::guest(ASID, other, size));
            }
            State::Immutable => self.rmpupdate(DATA_SPA, RmpUpdate::pre_guest(ASID, gpa, size)),
            State::Unvalidated => self.rmpupdate(DATA_SPA, RmpUpdate::guest(ASID, gpa, size)),
            State::Valid => self.launch(DATA_SPA, DATA_GPA, size, permissions),
        }
    }

    pub fn table_gpa(&self, level: u64) -> u64 {
        TABLES_GPA + level * 0x1000
    }
    /// The guest's tables from the root, 0, to the page table, 3.
    pub fn table_spa(&self, level: u64) -> u64 {
        TABLES_SPA + level * 0x1000
    }

    /// Writes the pointers of the guest's tables, CR3 among them.
    pub fn set_c_of_pointers(&mut self, c: CBit) {
        self.pointers = c;
        self.store(self.table_spa(0), self.table_gpa(1) | FULL | mask(c));
        self.store(self.table_spa(1) + 8, self.table_gpa(2) | FULL | mask(c));
        if self.guest == Leaf::Size4K {
            self.store(self.table_spa(2) + 3 * 8, self.table_gpa(3) | FULL | mask(c));
        }
        self.mmu.set_paging(long_mode(self.table_gpa(0) | mask(c)), PagingChange::Reset);
    }

    /// Maps the data, and in 4 KiB pages the 2 MiB around it.
    pub fn map_data(&mut self, c: CBit) {
        match self.guest {
            Leaf::Size4K => {
                for n in 0..512 {
                    self.store(self.table_spa(3) + n * 8, (DATA_GPA + n * 0x1000) | FULL | mask(c));
                }
            }
            _ => self.store(self.table_spa(2) + 3 * 8, DATA_GPA | FULL | PS | mask(c)),
        }
        self.mmu.invlpg(Gva::new(DATA));
    }

    /// Clears A of the leaf for the data, in the tables of the guest and of the host.
    pub fn clear_accessed_of_data(&self) {
        for slot in [self.table_spa(3), HOST_TABLES + 0x3000] {
            self.store(slot, self.load(slot) & !A);
        }
    }

    /// Maps one page of the data, or the large page it is in.
    pub fn map_page(&self, page: u64, c: CBit, flags: u64) {
        match self.guest {
            Leaf::Size4K => self.store(self.table_spa(3) + page * 8, (DATA_GPA + page * 0x1000) | flags | mask(c)),
            _ => self.store(self.table_spa(2) + 3 * 8, DATA_GPA | flags | PS | mask(c)),
        }
    }

    pub fn map_nested_data(&mut self, nested: Leaf) {
        self.write_nested_data(nested);
        self.mmu.flush_all();
    }

    pub fn write_nested_data(&self, nested: Leaf) {
        self.store(NESTED, (NESTED + 0x1000) | FULL);
        self.store(NESTED + 0x1000, (NESTED + 0x2000) | FULL);
        self.store(NESTED + 0x2000, (NESTED + 0x3000) | FULL);
        for at in (0..NR_TABLES).map(|n| n * 0x1000) {
            self.store(NESTED + 0x3000 + ((TABLES_GPA + at) >> 12) * 8, (TABLES_SPA + at) | FULL);
        }
        for n in 0..512 {
            self.store(NESTED + 0x5000 + n * 8, (DATA_SPA + n * 0x1000) | FULL);
        }
        let directory = match nested {
            Leaf::Size4K => (NESTED + 0x5000) | FULL,
            _ => DATA_SPA | FULL | PS,
        };
        self.store(NESTED + 0x4000 + 3 * 8, directory);
        let pointer = match nested {
            Leaf::Size1G => FULL | PS,
            _ => (NESTED + 0x4000) | FULL,
        };
        self.store(NESTED + 0x1000 + 8, pointer);
    }

    pub fn unmap_nested_data(&mut self) {
        self.store(NESTED + 0x1000 + 8, 0);
        self.mmu.flush_all();
    }

    /// The same guest at another privilege level, with what is cached.
    pub fn run_at(&mut self, vmpl: Vmpl) {
        self.mmu.set_stage2(stage2(vmpl));
    }

    /// The host, with tables of its own that map the data.
    pub fn become_host(&mut self) {
        for (table, slot) in [(0, 0), (1, 8), (2, 3 * 8)] {
            self.store(HOST_TABLES + table * 0x1000 + slot, (HOST_TABLES + (table + 1) * 0x1000) | FULL);
        }
        for n in 0..512 {
            self.store(HOST_TABLES + 0x3000 + n * 8, (DATA_SPA + n * 0x1000) | FULL);
        }
        if self.guest == Leaf::Size2M {
            self.store(HOST_TABLES + 0x2000 + 3 * 8, DATA_SPA | FULL | PS);
        }
        self.mmu.set_stage2(Stage2::None);
        self.mmu.set_paging(long_mode(HOST_TABLES), PagingChange::Reset);
    }
    pub fn host_page_table(&self) -> u64 {
        HOST_TABLES + 0x3000
    }

    pub fn enter_real_mode(&mut self) -> Gva {
        self.mmu.set_paging(PagingState::default(), PagingChange::Reset);
        Gva::new(DATA)
    }

    pub fn enter_legacy_paging(&mut self) -> Gva {
        let store = |spa, value: u32| self.memory.store(Spa::new(spa), value).expect("in memory");
        store(self.table_spa(4) + (DATA >> 22) * 4, self.table_gpa(5) as u32 | FULL as u32);
        store(self.table_spa(5) + (DATA >> 12 & 0x3ff) * 4, DATA_GPA as u32 | FULL as u32);
        let cr3 = self.table_gpa(4);
        self.mmu.set_paging(
            PagingState { cr0: Cr0::PE | Cr0::PG | Cr0::WP, cr3, ..PagingState::default() },
            PagingChange::Reset,
        );
        Gva::new(DATA)
    }

    pub fn enter_pae_paging(&mut self, c: CBit) -> Gva {
        self.store(self.table_spa(6) + 8, self.table_gpa(7) | 1 | mask(self.pointers));
        self.store(self.table_spa(7) + 3 * 8, self.table_gpa(8) | FULL | mask(self.pointers));
        self.store(self.table_spa(8), DATA_GPA | FULL | mask(c));
        let state = PagingState {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP,
            cr3: self.table_gpa(6),
            cr4: Cr4::PAE,
            ..PagingState::default()
        };
        self.mmu.set_paging(state, PagingChange::Reset);
        Gva::new(DATA)
    }

    /// A processor of the same guest.
    pub fn another_processor(&self) -> Mmu {
        let mut other = Mmu::new(Arc::clone(&self.memory), PagingFeatures::AMD);
        other.set_rmp(Some(Arc::clone(&self.rmp)));
        other.set_stage2(*self.mmu.stage2());
        other.set_paging(*self.mmu.paging(), PagingChange::Reset);
        other
    }

    /// Whatever the fast TLB answers at `gva` is `allowed`.
    pub fn assert_fast_allows_no_more(&mut self, gva: Gva, allowed: impl Fn(Access) -> bool) {
        for privilege in Privilege::ALL {
            self.mmu.fast.select(privilege);
            let hit = |kind| match kind {
                AccessKind::Read => self.mmu.fast.load::<u8>(gva.raw()).is_some(),
                AccessKind::Write => self.mmu.fast.can_store(gva.raw(), 1),
                AccessKind::Execute => self.mmu.fast.code_page(gva.raw()).is_some(),
            };
            for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Execute] {
                let access = Access::new(kind, privilege);
                assert!(!hit(kind) || allowed(access), "a fast entry for {access:?}");
            }
        }
    }
}

fn rmp(memory: &Arc<SystemMemory>, base: u64, covered: u64) -> Arc<Rmp> {
    let last = Spa::new(base + Rmp::bytes_for(covered) - 1);
    let place = RmpPlace::Contiguous { base: Spa::new(base), last };
    Arc::new(Rmp::new(Arc::clone(memory), place).expect("room for the table"))
}
