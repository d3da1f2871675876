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
use hypervisor::{FaultInput, PagePolicy, RamLayout, SlotId, SystemMemoryPlan, TdpFormat, VcpuId, Vm, VmConfig};
use mmu::{
    Asid, Ept, EptExecute, Eptp, Mmu, MmuFault, NestedNx, Npt, PagingChange, PagingFeatures, PagingState, Stage2,
    Stage2Levels, Vpid,
};

/// Guest physical addresses from here are fresh memory above the 4 GiB hole.
const FRESH: u64 = 4 << 30;
const ACCESSES: u64 = 256;
const READ: Access = Access::new(AccessKind::Read, Privilege::Supervisor);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::Supervisor);

/// A guest with paging off over nested tables, as the machine wires it: what all its processors share.
struct Guest {
    vm: Vm,
}

/// A processor of it, as far as its MMU goes.
struct Processor {
    n: u16,
    mmu: Mmu,
}

fn guest(page: PageSize, format: TdpFormat) -> Guest {
    let layout = RamLayout::pc(16 << 30, page).expect("a sound size");
    let pages = PagePolicy::of(page);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).expect("address space");
    let config = VmConfig { format, nr_vcpus: 2, ..VmConfig::new(pages, plan.host) };
    let vm = Vm::new(memory, &config).expect("a sound plan");
    vm.add_ram(&layout, SlotId(0), &Task::QUIET).expect("the plan has room");
    Guest { vm }
}

impl Guest {
    fn processor(&self, n: u16) -> Processor {
        let features = match self.vm.format() {
            TdpFormat::Npt => PagingFeatures::AMD,
            TdpFormat::Ept => PagingFeatures::INTEL,
        };
        let mut mmu = Mmu::new(Arc::clone(self.vm.memory()), features);
        mmu.set_stage2(match self.vm.format() {
            TdpFormat::Npt => Stage2::Npt(Npt {
                root: self.vm.root(),
                levels: Stage2Levels::Four,
                nx: NestedNx::Enabled,
                asid: Asid(u32::from(n) + 1),
                snp: None,
            }),
            TdpFormat::Ept => {
                Stage2::Ept(Ept { eptp: Eptp(self.vm.root_register()), execute: EptExecute::Single, vpid: Vpid(n + 1) })
            }
        });
        mmu.set_paging(PagingState { cr0: Cr0::PE, ..PagingState::default() }, PagingChange::Reset);
        mmu.fast.select(Privilege::Supervisor);
        Processor { n, mmu }
    }

    /// Makes an access the way an instruction does: again after each nested fault that the hypervisor resolved.
    fn touch(&self, on: &mut Processor, gva: u64, access: Access) {
        while let Err(fault) = on.mmu.translate(Gva::new(gva), access) {
            self.resolve(on.n, &fault);
        }
    }

    /// The same for a guest physical address that only wider addresses than these reach.
    fn touch_gpa(&self, on: &mut Processor, gpa: u64) {
        while let Err(fault) = on.mmu.translate_gpa(Gpa::new(gpa), AccessKind::Write) {
            self.resolve(on.n, &fault);
        }
    }

    fn resolve(&self, vcpu: u16, fault: &MmuFault) {
        let MmuFault::Nested(fault) = fault else { unreachable!("paging is off: {fault:?}") };
        let task = Task::QUIET.on_lane(vcpu as u8);
        black_box(&self.vm.handle_fault(VcpuId(vcpu), FaultInput::new(fault.gpa, fault.access), &task));
        black_box(self.vm.take_flush(VcpuId(vcpu), &task));
    }
}

fn hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("fast_tlb");
    group.throughput(Throughput::Elements(ACCESSES));
    let guest = guest(PageSize::Size4K, TdpFormat::Npt);
    let on = &mut guest.processor(0);
    // Below 4 GiB, where 32-bit addresses reach; every page in a slot of its own.
    let at = |n: u64| 0x100_0000 + n * 4096 + (n * 24 & 0xff8);
    for n in 0..ACCESSES {
        guest.touch(on, at(n), READ);
        guest.touch(on, at(n), WRITE);
    }
    group.bench_function("load", |b| {
        b.iter(|| (0..ACCESSES).fold(0, |sum, n| sum ^ on.mmu.fast.load::<u64>(black_box(at(n))).unwrap_or(1)));
    });
    group.bench_function("store", |b| {
        b.iter(|| (0..ACCESSES).filter(|&n| on.mmu.fast.store(black_box(at(n)), n).is_some()).count());
    });
    group.bench_function("update", |b| {
        b.iter(|| {
            (0..ACCESSES)
                .fold(0, |sum, n| sum ^ on.mmu.fast.update(black_box(at(n)), |old: u64| (old + 1, old)).unwrap_or(1))
        });
    });
    group.finish();
}

/// Pages touched in one go.
const fn touches(page: PageSize) -> u64 {
    match page {
        PageSize::Size4K => 8192,
        PageSize::Size2M => 2048,
        PageSize::Size1G => 8,
    }
}

/// A first touch from the TLB miss to the translation, by page size, format of the tables and number of processors.
fn nested_faults(c: &mut Criterion) {
    for page in PageSize::ALL {
        let mut group = c.benchmark_group(format!("nested_fault/{page}"));
        group.sample_size(20);
        let nr = touches(page);
        group.throughput(Throughput::Elements(nr));
        let part = |guest: &Guest, on: &mut Processor, from: u64, to: u64| {
            (from..to).for_each(|n| guest.touch_gpa(on, FRESH + n * page.bytes()));
        };
        for (name, format) in [("npt", TdpFormat::Npt), ("ept", TdpFormat::Ept)] {
            let fresh = || {
                let guest = guest(page, format);
                let processors = [guest.processor(0), guest.processor(1)];
                (guest, processors)
            };
            group.bench_function(format!("{name}/1"), |b| {
                b.iter_batched_ref(fresh, |(guest, [on, _])| part(guest, on, 0, nr), BatchSize::PerIteration);
            });
            group.bench_function(format!("{name}/2"), |b| {
                b.iter_batched_ref(
                    fresh,
                    |(guest, [one, two])| {
                        let guest = &*guest;
                        std::thread::scope(|scope| {
                            scope.spawn(|| part(guest, two, nr / 2, nr));
                            part(guest, one, 0, nr / 2);
                        });
                    },
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, hits, nested_faults);
criterion_main!(benches);
