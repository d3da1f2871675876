//! One access of a processor, from a hit in the fast TLB to a nested fault that the hypervisor resolves.
//!
//! What lies between, walks with and without paging-structure caches, is in `mmu/benches/translate.rs`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use emu_core::memory::SystemMemory;
use emu_core::regs::Cr0;
use emu_core::sync::Task;
use emu_core::{Access, AccessKind, Gpa, Gva, PageSize, Privilege};
use hypervisor::{FaultInput, PagePolicy, RamLayout, SlotId, SystemMemoryPlan, VcpuId, Vm, VmConfig};
use mmu::{Asid, Mmu, MmuFault, NestedNx, Npt, PagingChange, PagingFeatures, PagingState, Stage2, Stage2Levels};

/// Guest physical addresses from here are fresh memory above the 4 GiB hole.
const FRESH: u64 = 4 << 30;
const ACCESSES: u64 = 256;
const READ: Access = Access::new(AccessKind::Read, Privilege::Supervisor);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::Supervisor);

/// A guest with paging off over nested tables, as the machine wires them.
struct Guest {
    vm: Vm,
    mmu: Mmu,
}

fn guest(page: PageSize) -> Guest {
    let layout = RamLayout::pc(16 << 30, page).expect("a sound size");
    let pages = PagePolicy::of(page);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).expect("address space");
    let config = VmConfig::new(pages, plan.host);
    let vm = Vm::new(Arc::clone(&memory), &config).expect("a sound plan");
    vm.add_ram(&layout, SlotId(0), &Task::QUIET).expect("the plan has room");
    let mut mmu = Mmu::new(memory, PagingFeatures::AMD);
    mmu.set_stage2(Stage2::Npt(Npt {
        root: vm.root(),
        levels: Stage2Levels::Four,
        nx: NestedNx::Enabled,
        asid: Asid(1),
    }));
    mmu.set_paging(PagingState { cr0: Cr0::PE, ..PagingState::default() }, PagingChange::Reset);
    mmu.fast.select(Privilege::Supervisor);
    Guest { vm, mmu }
}

impl Guest {
    /// Makes an access the way an instruction does: again after each nested fault that the hypervisor resolved.
    fn touch(&mut self, gva: u64, access: Access) {
        while let Err(fault) = self.mmu.translate(Gva::new(gva), access) {
            self.resolve(&fault);
        }
    }

    /// The same for a guest physical address that only wider addresses than these reach.
    fn touch_gpa(&mut self, gpa: u64) {
        while let Err(fault) = self.mmu.translate_gpa(Gpa::new(gpa), AccessKind::Write) {
            self.resolve(&fault);
        }
    }

    fn resolve(&mut self, fault: &MmuFault) {
        let MmuFault::Nested(fault) = fault else { unreachable!("paging is off: {fault:?}") };
        black_box(&self.vm.handle_fault(VcpuId(0), FaultInput::new(fault.gpa, fault.access), &Task::QUIET));
    }
}

fn hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("fast_tlb");
    group.throughput(Throughput::Elements(ACCESSES));
    let mut guest = guest(PageSize::Size4K);
    // Below 4 GiB, where 32-bit addresses reach; every page in a slot of its own.
    let at = |n: u64| 0x100_0000 + n * 4096 + (n * 24 & 0xff8);
    for n in 0..ACCESSES {
        guest.touch(at(n), READ);
        guest.touch(at(n), WRITE);
    }
    group.bench_function("load", |b| {
        b.iter(|| (0..ACCESSES).fold(0, |sum, n| sum ^ guest.mmu.fast.load::<u64>(black_box(at(n))).unwrap_or(1)));
    });
    group.bench_function("store", |b| {
        b.iter(|| (0..ACCESSES).filter(|&n| guest.mmu.fast.store(black_box(at(n)), n).is_some()).count());
    });
    group.bench_function("update", |b| {
        b.iter(|| {
            (0..ACCESSES)
                .fold(0, |sum, n| sum ^ guest.mmu.fast.update(black_box(at(n)), |old: u64| (old + 1, old)).unwrap_or(1))
        });
    });
    group.finish();
}

fn nested_faults(c: &mut Criterion) {
    for page in PageSize::ALL {
        let mut group = c.benchmark_group(format!("nested_fault/{page}"));
        let touches = 8;
        group.throughput(Throughput::Elements(touches));
        group.bench_function("walk_fault_resolve_retry", |b| {
            b.iter_batched_ref(
                || guest(page),
                |guest| {
                    for n in 0..touches {
                        guest.touch_gpa(FRESH + n * page.bytes());
                    }
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, hits, nested_faults);
criterion_main!(benches);
