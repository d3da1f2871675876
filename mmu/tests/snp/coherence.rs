//! Histories of accesses by two processors, RMP changes, key changes and mappings, run with caches and without. A processor
//! does what a real one does: it asks the fast TLB first. Nobody can tell the difference: same bytes, same faults, same keys.

use emu_core::memory::Key;
use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, PageSize, Privilege, Spa};
use mmu::rmp::{FirmwareCommand, RmpAdjust, RmpPageSize, RmpUpdate, Validated, VmplPermissions, Vmsa};
use mmu::{Asid, Caches, Mmu, MmuFault};
use proptest::prelude::*;

use crate::scene::{ASID, DATA, DATA_GPA, DATA_SPA, Leaf, Scene, stage2};

/// Pages of the data that histories play with.
const PAGES: u64 = 4;

/// One event. `cpu` is 0 or 1, `page` counts from the start of the data.
#[derive(Clone, Copy, Debug)]
enum Op {
    Access {
        cpu: usize,
        page: u64,
        access: Access,
    },
    /// Rewrites the guest's leaf of a page and invalidates it on both.
    Map {
        page: u64,
        c: CBit,
        flags: u64,
    },
    /// Rewrites the nested leaves and flushes.
    Nested {
        leaf: Leaf,
    },
    Rmpupdate {
        page: u64,
        new: RmpUpdate,
    },
    Launch {
        page: u64,
        size: RmpPageSize,
        permissions: VmplPermissions,
    },
    Psmash,
    Pvalidate {
        cpu: usize,
        page: u64,
        size: RmpPageSize,
        validated: Validated,
    },
    Rmpadjust {
        cpu: usize,
        page: u64,
        size: RmpPageSize,
        request: RmpAdjust,
    },
    /// A device or the hypervisor accesses the frame.
    Host {
        page: u64,
        write: bool,
    },
    RunAt {
        cpu: usize,
        vmpl: Vmpl,
    },
    /// Drops more than is owed.
    Flush {
        cpu: usize,
    },
}

fn sizes() -> impl Strategy<Value = RmpPageSize> {
    prop_oneof![3 => Just(RmpPageSize::Size4K), 2 => Just(RmpPageSize::Size2M)]
}

fn updates() -> impl Strategy<Value = (u64, RmpUpdate)> {
    (0..PAGES, sizes(), 0..8_u32).prop_map(|(page, size, what)| {
        let page = if size == RmpPageSize::Size2M { 0 } else { page };
        let gpa = Gpa::new(DATA_GPA + page * 0x1000);
        let new = match what {
            0..3 => RmpUpdate::hypervisor(size),
            3..6 => RmpUpdate::guest(ASID, gpa, size),
            6 => RmpUpdate::guest(Asid(4), gpa, size),
            _ => RmpUpdate::guest(ASID, gpa.wrapping_add(size.page_size().bytes()), size),
        };
        (page, new)
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let cpu = || 0..2_usize;
    let page = || 0..PAGES;
    let permissions = || (0..16_u8).prop_map(VmplPermissions::from_bits_truncate);
    let c = prop_oneof![3 => Just(CBit::Set), 1 => Just(CBit::Clear)];
    let leaves = prop_oneof![4 => Just(Leaf::Size4K), 2 => Just(Leaf::Size2M), 1 => Just(Leaf::Size1G)];
    prop_oneof![
        16 => (cpu(), page(), 0..9_usize).prop_map(|(cpu, page, n)| {
            let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Execute];
            Op::Access { cpu, page, access: Access::new(kinds[n / 3], Privilege::ALL[n % 3]) }
        }),
        3 => (page(), c, 0..3_usize).prop_map(|(page, c, n)| Op::Map { page, c, flags: [0x67, 0x27, 7][n] }),
        1 => leaves.prop_map(|leaf| Op::Nested { leaf }),
        3 => updates().prop_map(|(page, new)| Op::Rmpupdate { page, new }),
        4 => (page(), sizes(), permissions())
            .prop_map(|(page, size, permissions)| Op::Launch { page, size, permissions }),
        1 => Just(Op::Psmash),
        3 => (cpu(), page(), sizes(), any::<bool>()).prop_map(|(cpu, page, size, yes)| {
            Op::Pvalidate { cpu, page, size, validated: if yes { Validated::Yes } else { Validated::No } }
        }),
        2 => (cpu(), page(), sizes(), 1..4_usize, permissions()).prop_map(|(cpu, page, size, target, permissions)| {
            let request = RmpAdjust { target: Vmpl::ALL[target], permissions, vmsa: Vmsa::No };
            Op::Rmpadjust { cpu, page, size, request }
        }),
        2 => (page(), any::<bool>()).prop_map(|(page, write)| Op::Host { page, write }),
        1 => (cpu(), 0..3_usize).prop_map(|(cpu, n)| Op::RunAt { cpu, vmpl: Vmpl::ALL[n] }),
        1 => cpu().prop_map(|cpu| Op::Flush { cpu }),
    ]
}

struct Machine {
    scene: Scene,
    other: Mmu,
    /// What the next write stores.
    next: u64,
}

/// What an operation shows to software.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Value(u64),
    Stored,
    Fault(MmuFault),
    Answer(String),
}

impl Machine {
    fn new(guest: Leaf, caches: Caches) -> Machine {
        let mut scene = Scene::new(guest, Leaf::Size4K, Vmpl::Vmpl0);
        scene.mmu.set_caches(caches);
        let mut other = scene.another_processor();
        other.set_caches(caches);
        Machine { scene, other, next: 1 }
    }

    fn cpu(&mut self, n: usize) -> &mut Mmu {
        if n == 0 { &mut self.scene.mmu } else { &mut self.other }
    }

    fn access(&mut self, n: usize, page: u64, access: Access) -> Seen {
        let memory = std::sync::Arc::clone(&self.scene.memory);
        let at = DATA + page * 0x1000 + 0x120;
        self.next += 1;
        let value = self.next;
        let cpu = self.cpu(n);
        cpu.catch_up();
        cpu.fast.select(access.privilege);
        let fast = match access.kind {
            AccessKind::Read => cpu.fast.load::<u64>(at).map(Seen::Value),
            AccessKind::Write => cpu.fast.store(at, value).map(|()| Seen::Stored),
            AccessKind::Execute => {
                let mut bytes = [0; 8];
                cpu.fast
                    .code_bytes(at, &mut bytes)
                    .map(|(_, code)| Seen::Value(u64::from_le_bytes(code.try_into().unwrap())))
            }
        };
        fast.unwrap_or_else(|| match cpu.translate(Gva::new(at), access) {
            Err(fault) => Seen::Fault(fault),
            Ok(found) => {
                assert_eq!((found.spa.raw(), found.gpa.raw()), (at - DATA + DATA_SPA, at - DATA + DATA_GPA));
                if access.kind == AccessKind::Write {
                    memory.store(found.spa, value).expect("in memory");
                    Seen::Stored
                } else {
                    Seen::Value(memory.load(found.spa).expect("in memory"))
                }
            }
        })
    }

    fn run(&mut self, op: Op) -> Seen {
        let rmp = std::sync::Arc::clone(&self.scene.rmp);
        let gva = |page: u64| Gva::new(DATA + page * 0x1000);
        let spa = |page: u64| Spa::new(DATA_SPA + page * 0x1000);
        let of_size = |page, size| if size == RmpPageSize::Size2M { 0 } else { page };
        match op {
            Op::Access { cpu, page, access } => return self.access(cpu, page, access),
            Op::Map { page, c, flags } => {
                self.scene.map_page(page, c, flags);
                for cpu in 0..2 {
                    self.cpu(cpu).invlpg(gva(page));
                }
            }
            Op::Nested { leaf } => {
                self.scene.write_nested_data(leaf);
                for cpu in 0..2 {
                    self.cpu(cpu).flush_gpa_range(Gfn::new(DATA_GPA >> 12), PageSize::Size1G.frames());
                }
            }
            Op::Rmpupdate { page, new } => return Seen::Answer(format!("{:?}", rmp.rmpupdate(spa(page), new))),
            Op::Launch { page, size, permissions } => {
                let page = of_size(page, size);
                let gpa = Gpa::new(DATA_GPA + page * 0x1000);
                let updated = rmp.rmpupdate(spa(page), RmpUpdate::pre_guest(ASID, gpa, size));
                let permissions = [permissions; 3];
                let command = FirmwareCommand::LaunchPage { asid: ASID, size, vmsa: Vmsa::No, permissions };
                return Seen::Answer(format!("{updated:?} {:?}", rmp.firmware(spa(page), command)));
            }
            Op::Psmash => return Seen::Answer(format!("{:?}", rmp.psmash(spa(0)))),
            Op::Pvalidate { cpu, page, size, validated } => {
                let at = gva(of_size(page, size));
                let answer = self.cpu(cpu).pvalidate(at, Privilege::Supervisor, size, validated);
                return Seen::Answer(format!("{answer:?}"));
            }
            Op::Rmpadjust { cpu, page, size, request } => {
                let at = gva(of_size(page, size));
                let answer = self.cpu(cpu).rmpadjust(at, Privilege::Supervisor, size, request);
                return Seen::Answer(format!("{answer:?}"));
            }
            Op::Host { page, write } => {
                self.next += 1;
                let at = spa(page).wrapping_add(0x120);
                if write && rmp.check_host_write(at, PageSize::Size4K).is_err() {
                    return Seen::Answer("refused".into());
                }
                rmp.rekey(at.frame(), Key::HOST);
                if write {
                    self.scene.store(at.raw(), self.next);
                }
                return Seen::Value(self.scene.load(at.raw()));
            }
            Op::RunAt { cpu, vmpl } => self.cpu(cpu).set_stage2(stage2(vmpl)),
            Op::Flush { cpu } => self.cpu(cpu).flush_all(),
        }
        Seen::Stored
    }

    fn keys(&self) -> Vec<Key> {
        (0..PAGES).map(|page| self.scene.memory.key(Spa::new(DATA_SPA + page * 0x1000).frame())).collect()
    }
}

fn agree(guest: Leaf, caches: Caches, history: &[Op]) {
    let mut cached = Machine::new(guest, caches);
    let mut plain = Machine::new(guest, Caches::empty());
    for (n, &op) in history.iter().enumerate() {
        assert_eq!(cached.run(op), plain.run(op), "step {n}: {op:?} with {caches:?}");
        assert_eq!(cached.keys(), plain.keys(), "step {n}: {op:?} with {caches:?}");
    }
    for page in 0..PAGES {
        let slot = plain.scene.table_spa(3) + page * 8;
        assert_eq!(cached.scene.load(slot), plain.scene.load(slot), "A and D of page {page}");
    }
}

proptest! {
    #[test]
    fn caches_are_invisible_to_an_snp_guest(history in prop::collection::vec(ops(), 1..150)) {
        for guest in [Leaf::Size4K, Leaf::Size2M] {
            for caches in [Caches::all(), Caches::all() - Caches::FAST, Caches::TLB | Caches::FAST] {
                agree(guest, caches, &history);
            }
        }
    }
}

/// Most random histories end in refusals: these start where a page is usable.
#[test]
fn a_history_that_takes_and_gives_everything_is_told_the_same_with_caches() {
    let access = |cpu, kind| Op::Access { cpu, page: 0, access: Access::new(kind, Privilege::Supervisor) };
    let every = [AccessKind::Read, AccessKind::Write, AccessKind::Execute];
    let size = RmpPageSize::Size4K;
    let gpa = Gpa::new(DATA_GPA);
    let of = |validated| Op::Pvalidate { cpu: 0, page: 0, size, validated };
    let events = [
        Op::Launch { page: 0, size, permissions: VmplPermissions::all() },
        Op::RunAt { cpu: 1, vmpl: Vmpl::Vmpl1 },
        of(Validated::No),
        of(Validated::Yes),
        Op::Host { page: 0, write: false },
        Op::Map { page: 0, c: CBit::Clear, flags: 7 },
        Op::Map { page: 0, c: CBit::Set, flags: 7 },
        Op::Rmpupdate { page: 0, new: RmpUpdate::hypervisor(size) },
        Op::Map { page: 0, c: CBit::Clear, flags: 0x67 },
        Op::Host { page: 0, write: true },
        Op::Rmpupdate { page: 0, new: RmpUpdate::guest(ASID, gpa, size) },
    ];
    let mut history = Vec::new();
    for event in events.into_iter().chain(events) {
        history.push(event);
        history.extend([0, 1, 0].into_iter().flat_map(|cpu| every.map(|kind| access(cpu, kind))));
    }
    for guest in [Leaf::Size4K, Leaf::Size2M] {
        agree(guest, Caches::all(), &history);
    }
}
