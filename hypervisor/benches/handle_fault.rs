//! What does a nested fault cost? First touch of fresh memory by page size and backing, a fault on memory that is there
//! but unmapped, and both by two processors at once; beside it what this host's own kernel takes for a first touch.
//!
//! No page is written by the model, so no page of the host is touched but those of tables.

mod support;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use emu_core::{Gfn, PageSize};
use hypervisor::{FolioPolicy, HugeSize, VcpuId, Vm};
use support::{HIGH, QUIET, Setup, touch};

/// Pages touched in one go: enough that the first tables do not weigh.
const fn touches(page: PageSize) -> u64 {
    match page {
        PageSize::Size4K => 8192,
        PageSize::Size2M => 2048,
        PageSize::Size1G => 64,
    }
}

/// Each of two host threads touches half of the pages as a processor of its own.
fn touch_in_parallel(vm: &Vm, page: PageSize) {
    let half = touches(page) / 2;
    std::thread::scope(|scope| {
        scope.spawn(|| touch(vm, 1, HIGH + half * page.bytes(), page, half));
        touch(vm, 0, HIGH, page, half);
    });
}

fn faults(c: &mut Criterion) {
    for page in PageSize::ALL {
        let mut group = c.benchmark_group(format!("handle_fault/{page}"));
        group.throughput(Throughput::Elements(touches(page)));
        let setup = Setup::of(page);
        group.bench_function("first_touch", |b| {
            b.iter_batched_ref(
                || setup.build().0,
                |vm| touch(vm, 0, HIGH, page, touches(page)),
                BatchSize::PerIteration,
            );
        });
        if page == PageSize::Size2M {
            let buddy = Setup::over(FolioPolicy::Buddy { largest: page });
            group.bench_function("first_touch_page_allocator", |b| {
                let build = || buddy.build().0;
                b.iter_batched_ref(build, |vm| touch(vm, 0, HIGH, page, touches(page)), BatchSize::PerIteration);
            });
            assert_eq!(setup.pages.folios, FolioPolicy::Pool { size: HugeSize::Size2M });
        }
        group.bench_function("first_touch_by_two", |b| {
            b.iter_batched_ref(|| setup.build().0, |vm| touch_in_parallel(vm, page), BatchSize::PerIteration);
        });
        group.bench_function("refault_after_zap", |b| {
            let vm = setup.build().0;
            touch(&vm, 0, HIGH, page, touches(page));
            b.iter(|| {
                let zapped = vm.zap_range(Gfn::new(HIGH >> 12), touches(page) * page.frames(), QUIET);
                black_box(&zapped);
                black_box(vm.take_flush(VcpuId(0), QUIET));
                touch(&vm, 0, HIGH, page, touches(page));
            });
        });
        group.finish();
    }
}

/// A first touch by this process: an exception, a page of the kernel's, and clearing it.
fn native(c: &mut Criterion) {
    let page = PageSize::Size4K;
    let len_bytes = (touches(page) * page.bytes()) as usize;
    let mut group = c.benchmark_group("native");
    group.throughput(Throughput::Elements(touches(page)));
    group.bench_function("first_touch", |b| {
        // Zeroed memory of this size is mapped and not there yet.
        b.iter_batched_ref(
            || vec![0_u8; len_bytes],
            |fresh| fresh.iter_mut().step_by(page.bytes() as usize).for_each(|byte| *black_box(byte) = 1),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, faults, native);
criterion_main!(benches);
