//! What do whole guests take? First touch of all of RAM by the guest's own instructions: under each kind of MMU, by one
//! processor and by two at the same time; and the same paging work over nested and over shadow tables.

use std::time::{Duration, Instant};

use bifold::config::NestedPaging;
use bifold::loader::BuiltinGuest;
use bifold::machine::{Limits, Machine, Outcome};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emu_core::PageSize;

const KINDS: [(&str, NestedPaging); 3] =
    [("npt", NestedPaging::Npt), ("ept", NestedPaging::Ept), ("shadow", NestedPaging::Shadow)];
/// RAM of the guest that touches it, and where it begins to.
const MEMORY: u64 = 1 << 30;
const FROM: u64 = 32 << 20;

fn machine(guest: &str, memory: u64, mmu: NestedPaging, cpus: u16) -> Machine {
    let guest = BuiltinGuest::named(guest).expect("it is built in");
    let builder = Machine::builder().memory(memory).mmu(mmu).cpus(cpus).pages(PageSize::Size4K);
    builder.build(&guest.image).expect("a sound machine")
}

/// Runs machines to their end; what is timed is the run alone.
fn runs(times: u64, build: impl Fn() -> Machine, run: impl Fn(&mut Machine) -> Outcome) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..times {
        let mut machine = build();
        let start = Instant::now();
        let outcome = run(&mut machine);
        spent += start.elapsed();
        assert_eq!(outcome, Outcome::PowerOff, "{}", String::from_utf8_lossy(&machine.take_serial()));
    }
    spent
}

fn in_turns(machine: &mut Machine) -> Outcome {
    machine.run(Limits::default(), |_| true).expect("the host is fine")
}

fn side_by_side(machine: &mut Machine) -> Outcome {
    machine.run_parallel(Limits::default(), |_| true).expect("the host is fine")
}

fn first_touch(c: &mut Criterion) {
    let mut group = c.benchmark_group("guest_first_touch/4K");
    group.sample_size(10);
    group.throughput(Throughput::Elements((MEMORY - FROM) >> 12));
    for (name, mmu) in KINDS {
        group.bench_function(format!("{name}/1"), |b| {
            b.iter_custom(|times| runs(times, || machine("touch", MEMORY, mmu, 1), in_turns));
        });
    }
    for cpus in [1, 2] {
        group.bench_function(format!("npt/parallel/{cpus}"), |b| {
            b.iter_custom(|times| runs(times, || machine("touch", MEMORY, NestedPaging::Npt, cpus), side_by_side));
        });
    }
    group.finish();
}

/// The guest that checks paging: it maps, unmaps, flushes and faults on its own tables.
fn paging(c: &mut Criterion) {
    let mut group = c.benchmark_group("guest_paging");
    group.sample_size(10);
    for (name, mmu) in KINDS {
        group.bench_function(name, |b| {
            b.iter_custom(|times| runs(times, || machine("paging", 64 << 20, mmu, 1), in_turns));
        });
    }
    group.finish();
}

criterion_group!(benches, first_touch, paging);
criterion_main!(benches);
