//! What one translation costs: a TLB hit in `translate`, walks of one and of two dimensions, with each cache on and off;
//! and what the RMP adds to it.
//!
//! The working set is 16 MiB of 4 KiB pages, visited in a fixed scattered order; nothing is in the fast TLB.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use emu_core::memory::{Key, SystemMemory};
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::sev::Vmpl;
use emu_core::{Access, AccessKind, Gpa, Gva, Privilege, Spa};
use mmu::rmp::{FirmwareCommand, Rmp, RmpPageSize, RmpPlace, RmpUpdate, VmplPermissions, Vmsa};
use mmu::{
    Asid, Caches, Mmu, NestedNx, Npt, PagingChange, PagingFeatures, PagingState, SnpGuest, Stage2, Stage2Levels,
};

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

/// What is between the guest and memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Second {
    Nothing,
    Npt,
    /// NPT in a machine with an RMP.
    NptAndRmp,
    /// The same for a guest that is SNP-active, whose pages all are its own.
    Snp,
}

const C_BIT: u8 = 51;
const ASID: Asid = Asid(1);

/// Guest tables from 16 MiB of guest physical space, data from 32 MiB; nested tables, if any, map it 1 GiB further on.
fn machine(second: Second) -> Mmu {
    let nested = second != Second::Nothing;
    let encrypted = if second == Second::Snp { 1 << C_BIT } else { 0 };
    let memory = SystemMemory::flat(4 << 30).expect("address space");
    let offset = if nested { 1 << 30 } else { 0 };
    let mut guest = Frames { memory: Arc::clone(&memory), next: 0x100_0000, offset };
    for page in 0..PAGES {
        guest.map(0x100_0000, GVA + page * 4096, (0x200_0000 + page * 4096) | encrypted);
    }
    let mut mmu = Mmu::new(Arc::clone(&memory), PagingFeatures::AMD);
    if nested {
        let all = || (0x100_0000..0x200_0000 + PAGES * 4096).step_by(4096);
        if matches!(second, Second::NptAndRmp | Second::Snp) {
            let base = Spa::new(0xc000_0000);
            let last = base.wrapping_add(Rmp::bytes_for(base.raw()) - 1);
            let rmp = Rmp::new(Arc::clone(&memory), RmpPlace::Contiguous { base, last }).expect("room for the table");
            if second == Second::Snp {
                all().for_each(|gpa| launch(&memory, &rmp, gpa, gpa + offset));
            }
            mmu.set_rmp(Some(Arc::new(rmp)));
        }
        let mut host = Frames { memory, next: 0x100_0000, offset: 0 };
        for gpa in all() {
            host.map(0x100_0000, gpa, gpa + offset);
        }
        mmu.set_stage2(Stage2::Npt(Npt {
            root: Spa::new(0x100_0000),
            levels: Stage2Levels::Four,
            nx: NestedNx::Enabled,
            asid: ASID,
            snp: (second == Second::Snp).then_some(SnpGuest { c_bit: C_BIT, vmpl: Vmpl::Vmpl0 }),
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

/// Makes a page the guest's, validated, in plain as it is.
fn launch(memory: &SystemMemory, rmp: &Rmp, gpa: u64, spa: u64) {
    let (spa, size) = (Spa::new(spa), RmpPageSize::Size4K);
    rmp.rmpupdate(spa, RmpUpdate::pre_guest(ASID, Gpa::new(gpa), size)).expect("the hypervisor's");
    let permissions = [VmplPermissions::empty(); 3];
    let page = FirmwareCommand::LaunchPage { asid: ASID, size, vmsa: Vmsa::No, permissions };
    rmp.firmware(spa, page).expect("before launch");
    memory.set_key(spa.frame(), Key::of_asid(ASID.0).expect("a guest's"));
}

fn translate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("translate");
    let structures = Caches::GUEST_TABLES | Caches::NESTED_TABLES;
    let cases = [
        ("walk 1-D, no cache", Second::Nothing, Caches::empty(), PAGES),
        ("walk 1-D, paging-structure cache", Second::Nothing, structures, PAGES),
        ("walk 2-D, no cache", Second::Npt, Caches::empty(), PAGES),
        ("walk 2-D, paging-structure caches", Second::Npt, structures, PAGES),
        ("walk 2-D, paging-structure caches and nested TLB", Second::Npt, structures | Caches::NESTED_TLB, PAGES),
        ("miss with all caches and both fills", Second::Npt, Caches::all(), PAGES),
        ("TLB hit", Second::Npt, Caches::all() - Caches::FAST, 256),
        ("TLB hit and fast fill", Second::Npt, Caches::all(), 256),
        ("walk 2-D, no cache, RMP", Second::NptAndRmp, Caches::empty(), PAGES),
        ("walk 2-D, no cache, SNP guest", Second::Snp, Caches::empty(), PAGES),
        ("miss with all caches and both fills, RMP", Second::NptAndRmp, Caches::all(), PAGES),
        ("miss with all caches and both fills, SNP guest", Second::Snp, Caches::all(), PAGES),
        ("TLB hit and fast fill, RMP", Second::NptAndRmp, Caches::all(), 256),
        ("TLB hit and fast fill, SNP guest", Second::Snp, Caches::all(), 256),
    ];
    for (name, second, caches, pages) in cases {
        let mut mmu = machine(second);
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
