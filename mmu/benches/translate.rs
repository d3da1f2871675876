//! What one translation costs: a TLB hit in `translate`, walks of one and of two dimensions, with each cache on and off.
//!
//! The working set is 16 MiB of 4 KiB pages, visited in a fixed scattered order; nothing is in the fast TLB.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind, Gva, Privilege, Spa};
use mmu::{Asid, Caches, Mmu, NestedNx, Npt, PagingChange, PagingFeatures, PagingState, Stage2, Stage2Levels};

const PAGES: u64 = 4096;
const GVA: u64 = 0x7f00_0000_0000;
const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const ENTRY: u64 = 0x67;

/// Hands out zeroed table frames.
struct Frames {
    memory: Arc<SystemMemory>,
    next: u64,
    /// Added to a guest physical address to reach memory.
    offset: u64,
}

impl Frames {
    fn map(&mut self, root: u64, input: u64, page: u64) {
        let mut table = root;
        for shift in [39, 30, 21] {
            let slot = Spa::new(table + (input >> shift & 0x1ff) * 8 + self.offset);
            let entry: u64 = self.memory.load(slot).expect("in memory");
            table = if entry == 0 {
                self.next += 0x1000;
                self.memory.store(slot, self.next | ENTRY).expect("in memory");
                self.next
            } else {
                entry & !0xfff
            };
        }
        let slot = Spa::new(table + (input >> 12 & 0x1ff) * 8 + self.offset);
        self.memory.store(slot, page | ENTRY).expect("in memory");
    }
}

/// Guest tables from 16 MiB of guest physical space, data from 32 MiB; nested tables, if any, map it 1 GiB further on.
fn machine(nested: bool) -> Mmu {
    let memory = SystemMemory::flat(4 << 30).expect("address space");
    let offset = if nested { 1 << 30 } else { 0 };
    let mut guest = Frames { memory: Arc::clone(&memory), next: 0x100_0000, offset };
    for page in 0..PAGES {
        guest.map(0x100_0000, GVA + page * 4096, 0x200_0000 + page * 4096);
    }
    let mut mmu = Mmu::new(Arc::clone(&memory), PagingFeatures::AMD);
    if nested {
        let mut host = Frames { memory, next: 0x100_0000, offset: 0 };
        for gpa in (0x100_0000..0x200_0000 + PAGES * 4096).step_by(4096) {
            host.map(0x100_0000, gpa, gpa + offset);
        }
        mmu.set_stage2(Stage2::Npt(Npt {
            root: Spa::new(0x100_0000),
            levels: Stage2Levels::Four,
            nx: NestedNx::Enabled,
            asid: Asid(1),
            snp: None,
        }));
    }
    let state = PagingState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr3: 0x100_0000,
        cr4: Cr4::PAE | Cr4::PGE,
        efer: Efer::LME | Efer::LMA | Efer::NXE,
        ..PagingState::default()
    };
    mmu.set_paging(state, PagingChange::Reset);
    mmu
}

fn translate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("translate");
    let structures = Caches::GUEST_TABLES | Caches::NESTED_TABLES;
    let cases = [
        ("walk 1-D, no cache", false, Caches::empty(), PAGES),
        ("walk 1-D, paging-structure cache", false, structures, PAGES),
        ("walk 2-D, no cache", true, Caches::empty(), PAGES),
        ("walk 2-D, paging-structure caches", true, structures, PAGES),
        ("walk 2-D, paging-structure caches and nested TLB", true, structures | Caches::NESTED_TLB, PAGES),
        ("miss with all caches and both fills", true, Caches::all(), PAGES),
        ("TLB hit", true, Caches::all() - Caches::FAST, 256),
        ("TLB hit and fast fill", true, Caches::all(), 256),
    ];
    for (name, nested, caches, pages) in cases {
        let mut mmu = machine(nested);
        mmu.set_caches(caches);
        let mut n = 0_u64;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                n = n.wrapping_mul(5).wrapping_add(1) % pages;
                mmu.translate(Gva::new(GVA + n * 4096), READ).map(|t| black_box(t.spa))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, translate);
criterion_main!(benches);
