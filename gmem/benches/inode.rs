//! What changes of an inode cost: conversions that split, merge or only store attributes, holes, and allocations of pages
//! whose attributes want them in pieces.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};
use gmem::{
    CreateInfo, FolioPolicy, FrameRange, GmemPolicy, GuestMemfd, Host, HostLayout, HostMemory, HugeSize, PageIndex,
    PageRange, PunchPolicy, Shareability, SplitPolicy, VmemmapMode,
};

const QUIET: &Task<'static> = &Task::QUIET;
const G1: u64 = PageSize::Size1G.frames();
const M2: u64 = PageSize::Size2M.frames();

struct World {
    host: Host,
    inode: GuestMemfd,
}

/// A private inode of 1 GiB, all of it there.
fn world(size: HugeSize, policy: GmemPolicy) -> World {
    let pages = G1 / size.page_size().frames();
    let layout = HostLayout {
        nodes: vec![FrameRange { first: Sfn::new(0), nr_frames: 4 * G1 }],
        cma: Vec::new(),
        pools: vec![(size, pages)],
        vmemmap: VmemmapMode::Optimise,
    };
    let memory = SystemMemory::flat((4 * G1) << 12).expect("address space");
    let host = Host::new(HostMemory::with_layout(memory, &layout).expect("a sound layout"));
    let info = CreateInfo { size_bytes: G1 << 12, flags: 0, policy: FolioPolicy::Pool { size }, gmem: policy };
    let inode = GuestMemfd::create(&host, info, QUIET).expect("the pool has them");
    let world = World { host, inode };
    world.fill();
    world
}

const ALL: PageRange = PageRange { first: PageIndex(0), nr_pages: G1 };
const ONE: PageRange = PageRange { first: PageIndex(5), nr_pages: 1 };

impl World {
    fn fill(&self) {
        self.inode.shared(QUIET).allocate(&self.host, ALL, QUIET).expect("reserved");
    }

    fn convert(&self, range: PageRange, to: Shareability) {
        let exclusive = self.inode.exclusive(QUIET);
        let conversion = exclusive.plan_conversion(&self.host, range, to, QUIET).expect("nobody holds it");
        exclusive.convert(&self.host, &conversion.expect("it changes"), QUIET).expect("memory for it");
    }

    fn punch(&self, range: PageRange) {
        self.inode.exclusive(QUIET).remove(&self.host, range, QUIET);
    }
}

/// Times `there` and not `back`.
fn there_and_back(times: u64, there: impl Fn(), back: impl Fn()) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..times {
        let start = Instant::now();
        there();
        spent += start.elapsed();
        back();
    }
    spent
}

fn conversions(c: &mut Criterion) {
    let mut group = c.benchmark_group("convert");
    let eager_4k = GmemPolicy { split: SplitPolicy::Eager4K, ..GmemPolicy::DEFAULT };
    let cases = [
        ("one_page_of_2m", HugeSize::Size2M, GmemPolicy::DEFAULT, ONE, 1),
        ("one_page_of_1g_by_levels", HugeSize::Size1G, GmemPolicy::DEFAULT, ONE, 1),
        ("one_page_of_1g_to_4k", HugeSize::Size1G, eager_4k, ONE, 1),
        ("1g_in_units_of_2m", HugeSize::Size2M, GmemPolicy::DEFAULT, ALL, G1 / M2),
        ("1g_in_one_unit", HugeSize::Size1G, GmemPolicy::DEFAULT, ALL, 1),
    ];
    for (name, size, policy, range, units) in cases {
        let world = world(size, policy);
        let shared = || world.convert(range, Shareability::SHARED);
        let private = || world.convert(range, Shareability::PRIVATE);
        group.throughput(Throughput::Elements(units));
        group.bench_function(format!("{name}/split"), |b| b.iter_custom(|n| there_and_back(n, shared, private)));
        group.bench_function(format!("{name}/reconstruct"), |b| {
            b.iter_custom(|n| {
                shared();
                let spent = there_and_back(n, private, shared);
                private();
                spent
            });
        });
    }
    let world = world(HugeSize::Size2M, GmemPolicy { split: SplitPolicy::Always4K, ..GmemPolicy::DEFAULT });
    let (shared, private) = (|| world.convert(ALL, Shareability::SHARED), || world.convert(ALL, Shareability::PRIVATE));
    group.throughput(Throughput::Elements(G1));
    group.bench_function("1g_split_already/to_shared", |b| b.iter_custom(|n| there_and_back(n, shared, private)));
    shared();
    // Every piece was used, so each has an entry of its own.
    for page in (0..G1).step_by(M2 as usize) {
        let held = world.inode.shared(QUIET).get_page(&world.host, PageIndex(page), QUIET).expect("shared");
        world.inode.put_page(&world.host, held, QUIET);
    }
    group.bench_function("1g_split_already/to_private", |b| b.iter_custom(|n| there_and_back(n, private, shared)));
    group.finish();
}

fn holes(c: &mut Criterion) {
    let mut group = c.benchmark_group("punch");
    let whole = PageRange { first: PageIndex(0), nr_pages: M2 };
    let free = GmemPolicy { punch: PunchPolicy::SplitAndFree, ..GmemPolicy::DEFAULT };
    for (name, policy, range) in [
        ("2m_whole", GmemPolicy::DEFAULT, whole),
        ("4k_of_2m_cleared", GmemPolicy::DEFAULT, ONE),
        ("4k_of_2m_split_and_freed", free, ONE),
    ] {
        let world = world(HugeSize::Size2M, policy);
        let refill = || {
            world.punch(whole);
            world.fill();
        };
        group.bench_function(name, |b| b.iter_custom(|n| there_and_back(n, || world.punch(range), refill)));
    }
    group.finish();
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("get_folio");
    let world = world(HugeSize::Size2M, GmemPolicy::DEFAULT);
    let get = |page| world.inode.shared(QUIET).get_folio(&world.host, PageIndex(page), QUIET);
    group.bench_function("whole", |b| b.iter(|| get(std::hint::black_box(77))));
    world.convert(ONE, Shareability::SHARED);
    group.bench_function("piece", |b| b.iter(|| get(std::hint::black_box(77))));
    group.finish();
}

criterion_group!(benches, conversions, holes, lookups);
criterion_main!(benches);
