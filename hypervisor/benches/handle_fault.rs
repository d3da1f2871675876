//! What a nested fault costs: first touch of fresh memory, a fault on memory that is there but unmapped, and both by two
//! processors at once. No page is written, so no page of the host is touched but those of tables.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use hypervisor::{FaultInput, PagePolicy, RamLayout, SlotId, SystemMemoryPlan, VcpuId, Vm, VmConfig};

const QUIET: &Task<'static> = &Task::QUIET;
/// Pages touched in one go: enough that the first tables do not weigh.
const fn touches(page: PageSize) -> u64 {
    match page {
        PageSize::Size4K => 8192,
        PageSize::Size2M => 2048,
        PageSize::Size1G => 64,
    }
}

fn vm(page: PageSize) -> Vm {
    let layout = RamLayout::pc(128 << 30, page).expect("a sound size");
    let pages = PagePolicy::of(page);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).expect("address space");
    let config = VmConfig { nr_vcpus: 2, ..VmConfig::new(pages, plan.host) };
    let vm = Vm::new(memory, &config).expect("a sound plan");
    vm.add_ram(&layout, SlotId(0), QUIET).expect("the plan has room");
    vm
}

/// Lets a processor touch `nr` pages from page `first` above 4 GiB on.
fn touch_from(vm: &Vm, vcpu: u16, page: PageSize, first: u64, nr: u64) {
    let task = Task::QUIET.on_lane(vcpu as u8);
    for n in first..first + nr {
        let gpa = Gpa::new((4 << 30) + n * page.bytes());
        let action = vm.handle_fault(VcpuId(vcpu), FaultInput::new(gpa, AccessKind::Write), &task);
        black_box(&action);
    }
}

fn touch(vm: &Vm, page: PageSize) {
    touch_from(vm, 0, page, 0, touches(page));
}

/// Each of two host threads touches half of the pages as a processor of its own.
fn touch_in_parallel(vm: &Vm, page: PageSize) {
    let half = touches(page) / 2;
    std::thread::scope(|scope| {
        scope.spawn(|| touch_from(vm, 1, page, half, half));
        touch_from(vm, 0, page, 0, half);
    });
}

fn faults(c: &mut Criterion) {
    for page in PageSize::ALL {
        let mut group = c.benchmark_group(format!("handle_fault/{page}"));
        group.throughput(criterion::Throughput::Elements(touches(page)));
        group.bench_function("first_touch", |b| {
            b.iter_batched_ref(|| vm(page), |vm| touch(vm, page), BatchSize::PerIteration);
        });
        group.bench_function("first_touch_by_two", |b| {
            b.iter_batched_ref(|| vm(page), |vm| touch_in_parallel(vm, page), BatchSize::PerIteration);
        });
        group.bench_function("refault_after_zap", |b| {
            let vm = vm(page);
            touch(&vm, page);
            b.iter(|| {
                let zapped = vm.zap_range(Gfn::new(1 << 20), touches(page) * page.frames(), QUIET);
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
