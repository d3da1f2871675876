//! What a nested fault costs: first touch of fresh memory, and a fault on memory that is there but unmapped.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use hypervisor::{FaultInput, PagePolicy, RamLayout, SlotId, SystemMemoryPlan, TdpFormat, VcpuId, Vm, VmConfig};

const QUIET: &Task<'static> = &Task::QUIET;
const TOUCHES: u64 = 64;

fn vm(page: PageSize) -> Vm {
    let layout = RamLayout::pc(128 << 30, page).expect("a sound size");
    let pages = PagePolicy::of(page);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).expect("address space");
    let config = VmConfig { format: TdpFormat::Npt, pages, maxphyaddr: 48, nr_vcpus: 1, host: plan.host };
    let vm = Vm::new(memory, &config).expect("a sound plan");
    vm.add_ram(&layout, SlotId(0), QUIET).expect("the plan has room");
    vm
}

fn touch(vm: &Vm, page: PageSize) {
    for n in 0..TOUCHES {
        let gpa = Gpa::new((4 << 30) + n * page.bytes());
        let action = vm.handle_fault(VcpuId(0), FaultInput::new(gpa, AccessKind::Write), QUIET);
        black_box(&action);
    }
}

fn faults(c: &mut Criterion) {
    for page in PageSize::ALL {
        let mut group = c.benchmark_group(format!("handle_fault/{page}"));
        group.throughput(criterion::Throughput::Elements(TOUCHES));
        group.bench_function("first_touch", |b| {
            b.iter_batched_ref(|| vm(page), |vm| touch(vm, page), BatchSize::PerIteration);
        });
        group.bench_function("refault_after_zap", |b| {
            let vm = vm(page);
            touch(&vm, page);
            b.iter(|| {
                let zapped = vm.zap_range(Gfn::new(1 << 20), TOUCHES * page.frames(), QUIET);
                black_box(&zapped);
                black_box(vm.take_flush(VcpuId(0), QUIET));
                touch(&vm, page);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, faults);
criterion_main!(benches);
