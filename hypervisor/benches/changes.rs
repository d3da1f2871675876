//! What does it cost to change what stands behind guest memory? Holes with the faults that follow, conversions by range
//! and granularity with and without splits, and what the rules for large leaves leave of a guest whose RAM has a hole.

mod support;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use emu_core::PageSize;
use gmem::policy::OrderRule;
use gmem::{GmemPolicy, Shareability};
use hypervisor::{GmemId, RamLayout, VcpuId, Vm};
use support::{HIGH, QUIET, Setup, populate, touch, touch_as};

const M2: u64 = PageSize::Size2M.bytes();
const G1: u64 = PageSize::Size1G.bytes();
const PRIVATE: Shareability = Shareability::PRIVATE;
const SHARED: Shareability = Shareability::SHARED;
/// Where RAM above 4 GiB starts in its guest_memfd.
const HIGH_OFFSET: u64 = 3 << 30;

fn settle(vm: &Vm) {
    black_box(vm.take_flush(VcpuId(0), QUIET));
    black_box(vm.take_flush(VcpuId(1), QUIET));
}

/// A hole and the faults that fill it again: page by page, and all pages at once.
fn holes(c: &mut Criterion) {
    for page in [PageSize::Size4K, PageSize::Size2M] {
        let mut group = c.benchmark_group(format!("punch_and_refault/{page}"));
        let nr = 512;
        group.throughput(Throughput::Elements(nr));
        let (vm, gmem) = Setup::of(page).build();
        touch(&vm, 0, HIGH, page, nr);
        let punch = |offset: u64, len: u64| vm.punch_hole(gmem, HIGH_OFFSET + offset, len, QUIET).expect("inside");
        group.bench_function("single", |b| {
            b.iter(|| {
                for n in 0..nr {
                    punch(n * page.bytes(), page.bytes());
                    settle(&vm);
                    touch(&vm, 0, HIGH + n * page.bytes(), page, 1);
                }
            });
        });
        group.bench_function("batched", |b| {
            b.iter(|| {
                punch(0, nr * page.bytes());
                settle(&vm);
                touch(&vm, 0, HIGH, page, nr);
            });
        });
        group.finish();
    }
}

fn convert(vm: &Vm, gmem: GmemId, offset: u64, len: u64, step: u64, to: Shareability) {
    for at in (0..len).step_by(step as usize) {
        vm.convert(gmem, HIGH_OFFSET + offset + at, step, to, QUIET).expect("nobody holds a page");
        settle(vm);
    }
}

/// 1 GiB to and fro in steps of one size, over folios of another. The first conversion of a folio splits it, the last
/// merges it.
fn conversions(c: &mut Criterion) {
    for folio in PageSize::ALL {
        let mut group = c.benchmark_group(format!("convert_1g_to_and_fro/{folio}"));
        group.sample_size(10);
        for (name, step) in [("at_once", G1), ("by_2m", M2), ("by_4k", 4096)] {
            group.throughput(Throughput::Elements(2 * G1 / step));
            let (vm, gmem) = Setup { memory_bytes: 8 << 30, ..Setup::of(folio) }.build();
            touch(&vm, 0, HIGH, folio, G1 / folio.bytes());
            group.bench_function(name, |b| {
                b.iter(|| {
                    convert(&vm, gmem, 0, G1, step, PRIVATE);
                    convert(&vm, gmem, 0, G1, step, SHARED);
                });
            });
        }
        group.finish();
    }
}

/// One 4K page of each huge page becomes private and shared again, mapped as it is found.
fn one_page_of_each(c: &mut Criterion) {
    for folio in [PageSize::Size2M, PageSize::Size1G] {
        let mut group = c.benchmark_group(format!("convert_one_page_of_each/{folio}"));
        let units = if folio == PageSize::Size1G { 4 } else { 64 };
        group.throughput(Throughput::Elements(units));
        let (vm, gmem) = Setup { memory_bytes: 16 << 30, ..Setup::of(folio) }.build();
        touch(&vm, 0, HIGH, folio, units);
        group.bench_function("split_fault_merge_fault", |b| {
            b.iter(|| {
                for n in 0..units {
                    let at = n * folio.bytes() + 5 * 4096;
                    convert(&vm, gmem, at, 4096, 4096, PRIVATE);
                    touch_as(&vm, 0, HIGH + at, PageSize::Size4K, 1, PRIVATE);
                    convert(&vm, gmem, at, 4096, 4096, SHARED);
                    touch(&vm, 0, HIGH + at, PageSize::Size4K, 1);
                }
            });
        });
        group.finish();
    }
}

/// 1 GiB of a 16 GiB guest whose RAM has the legacy hole, populated page by page under each rule: a rule that denies 2M
/// leaves pays with 512 faults for one.
fn order_rules(c: &mut Criterion) {
    let mut group = c.benchmark_group("order_rules/16g_with_hole");
    group.sample_size(10);
    let layout = RamLayout::pc(16 << 30, PageSize::Size2M)
        .and_then(|layout| layout.without(emu_core::Gpa::new(0xa_0000), 0x6_0000))
        .expect("a sound layout");
    let rules = [
        ("all_or_nothing", OrderRule::AllOrNothing),
        ("contained", OrderRule::Contained),
        ("always_4k", OrderRule::AlwaysZero),
    ];
    for (name, rule) in rules {
        let setup = Setup {
            memory_bytes: 16 << 30,
            gmem: GmemPolicy { order: rule, ..GmemPolicy::DEFAULT },
            ..Setup::of(PageSize::Size2M)
        };
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || setup.build_with(&layout).0,
                |vm| populate(vm, 1 << 20, (1 << 20) + G1),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, holes, conversions, one_page_of_each, order_rules);
criterion_main!(benches);
