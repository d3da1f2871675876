//! What does a nested fault cost? First touch of fresh memory by page size and backing, a fault on memory that is there
//! but unmapped, and both by two processors at once; beside it what this host's own kernel takes for a first touch.
//!
//! No page is written by the model, so no page of the host is touched but those of tables.
//!
//! What two processors gain over one says little of the model where the host's two processors are siblings of one core, or
//! somebody else's too. So the same run measures two threads that share nothing, and says what share of their gain two
//! faulting processors reach.

mod support;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_utils::CachePadded;
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

/// What two host threads take that start `work` together, each with its number.
fn by_two(work: &(impl Fn(u16) + Sync)) -> Duration {
    let ready = AtomicUsize::new(0);
    let run = |number| {
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < 2 {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        work(number);
        (start, Instant::now())
    };
    let (mine, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        (run(0), other.join().expect("the other thread works too"))
    });
    mine.1.max(other.1) - mine.0.min(other.0)
}

/// Each of two host threads touches half of the pages as a processor of its own.
fn touch_in_parallel(vm: &Vm, page: PageSize) -> Duration {
    let half = touches(page) / 2;
    by_two(&|number| touch(vm, number, HIGH + u64::from(number) * half * page.bytes(), page, half))
}

/// As much as `nr` faults, roughly, in words and memory of a thread's own: locked additions, dependent loads, and stores.
fn work_alone(words: &[CachePadded<AtomicU64>], memory: &[AtomicU64], nr: u64) {
    let mut at = 0;
    for n in 0..nr {
        for word in words {
            word.fetch_add(1, Ordering::SeqCst);
            for _ in 0..32 {
                at = (at * 5 + 1 + memory[at].load(Ordering::Relaxed) as usize) % memory.len();
            }
        }
        memory[n as usize % memory.len()].store(0, Ordering::Relaxed);
    }
    black_box(at);
}

/// How many times the work of one thread two do at best, given what all of the work takes one and half of it each takes two.
fn gain(mut one: impl FnMut() -> Duration, mut two: impl FnMut() -> Duration) -> f64 {
    // In turns: the host's speed changes.
    let tries = (0..15).map(|_| (one(), two()));
    let best = tries.fold((Duration::MAX, Duration::MAX), |best, (one, two)| (best.0.min(one), best.1.min(two)));
    best.0.as_secs_f64() / best.1.as_secs_f64()
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Says what two processors gain, and what there was to gain.
fn two_against_one(_: &mut Criterion) {
    let nr = touches(PageSize::Size4K);
    let own = || {
        let words: Vec<CachePadded<AtomicU64>> = (0..16).map(|_| CachePadded::default()).collect();
        let memory: Vec<AtomicU64> = (0..1 << 12).map(|_| AtomicU64::new(0)).collect();
        (words, memory)
    };
    let own = [own(), own()];
    let work = |number: u16, nr| {
        let (words, memory) = &own[usize::from(number)];
        work_alone(words, memory, nr);
    };
    let most = gain(|| timed(|| work(0, nr)), || by_two(&|number| work(number, nr / 2)));
    println!("two host threads that share nothing do {most:.2} times the work of one");
    for page in [PageSize::Size4K, PageSize::Size2M] {
        let setup = Setup::of(page);
        let fresh = || setup.build().0;
        let one = || {
            let vm = fresh();
            timed(|| touch(&vm, 0, HIGH, page, touches(page)))
        };
        let gained = gain(one, || touch_in_parallel(&fresh(), page));
        println!("first touch of {page} by two processors: {gained:.2} times one, {:.2} of that", gained / most);
    }
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
            b.iter_custom(|times| (0..times).map(|_| touch_in_parallel(&setup.build().0, page)).sum());
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

criterion_group!(benches, faults, native, two_against_one);
criterion_main!(benches);
