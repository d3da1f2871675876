//! What it costs to take host memory, cut it and put it together: folios of each size and source, splits and merges of
//! a 1G page with its vmemmap given back and restored.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use emu_core::memory::SystemMemory;
use emu_core::{PageSize, Sfn};
use gmem::directmap::{DirectMap, DirectMapPolicy, Event};
use gmem::provider::Want;
use gmem::{FolioPolicy, FolioProvider, FrameRange, HostLayout, HostMemory, HugeSize, NodeId, VmemmapMode};

const G1: u64 = PageSize::Size1G.frames();
const M2: u64 = PageSize::Size2M.frames();
const GIANT: FolioPolicy = FolioPolicy::Pool { size: HugeSize::Size1G };

/// 16 GiB, of which half are 1G pages and a quarter 2M pages, and 2 GiB of contiguous area.
fn host() -> HostMemory {
    let layout = HostLayout {
        nodes: vec![FrameRange { first: Sfn::new(0), nr_frames: 16 * G1 }],
        cma: vec![(NodeId::ZERO, FrameRange { first: Sfn::new(16 * G1), nr_frames: 2 * G1 })],
        pools: vec![(HugeSize::Size1G, 8), (HugeSize::Size2M, 2048)],
        vmemmap: VmemmapMode::Optimise,
    };
    let memory = SystemMemory::flat((18 * G1) << 12).expect("address space");
    HostMemory::with_layout(memory, &layout).expect("a sound layout")
}

fn provider_of(host: &mut HostMemory, policy: FolioPolicy) -> Box<dyn FolioProvider> {
    let mut provider = policy.provider();
    provider.reserve(host, policy.folio_size().frames()).expect("room for one");
    provider
}

fn allocate(host: &mut HostMemory, provider: &mut dyn FolioProvider, size: PageSize) -> Sfn {
    provider.allocate(host, Want::anywhere(size, 0)).expect("reserved").head
}

fn alloc_free(c: &mut Criterion) {
    let mut group = c.benchmark_group("alloc_free");
    let cases = [
        ("buddy_4k", FolioPolicy::Buddy { largest: PageSize::Size4K }),
        ("buddy_2m", FolioPolicy::Buddy { largest: PageSize::Size2M }),
        ("pool_2m", FolioPolicy::Pool { size: HugeSize::Size2M }),
        ("pool_1g", GIANT),
        ("cma_1g", FolioPolicy::Cma { size: HugeSize::Size1G }),
    ];
    for (name, policy) in cases {
        let mut host = host();
        let mut provider = policy.provider();
        let size = policy.folio_size();
        provider.reserve(&mut host, 2 * size.frames()).expect("room for two");
        // A neighbour that stays, as there always is one.
        allocate(&mut host, &mut *provider, size);
        group.bench_function(name, |b| {
            b.iter(|| {
                let head = allocate(&mut host, &mut *provider, size);
                host.put_page(head, size.frames() as u32);
            });
        });
    }
    group.finish();
}

/// How the pieces are used between a split and its merge.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    /// Not at all: all pieces stay alike.
    None,
    /// One reference in each 2M comes and goes, so that every piece has an entry of its own.
    Each2M,
}

fn restructure(c: &mut Criterion) {
    let mut group = c.benchmark_group("restructure");
    let cases = [
        ("1g_to_2m", PageSize::Size2M, Use::None),
        ("1g_to_4k", PageSize::Size4K, Use::None),
        ("1g_to_4k_used", PageSize::Size4K, Use::Each2M),
    ];
    for (name, target, usage) in cases {
        let mut host = host();
        let mut provider = provider_of(&mut host, GIANT);
        let head = allocate(&mut host, &mut *provider, PageSize::Size1G);
        let touch = |host: &mut HostMemory| {
            if usage == Use::Each2M {
                for sfn in (head.raw()..head.raw() + G1).step_by(M2 as usize).map(Sfn::new) {
                    host.get_page(sfn).expect("in use");
                    host.put_page(sfn, 1);
                }
            }
        };
        group.bench_function(format!("{name}/split"), |b| {
            b.iter_custom(|times| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..times {
                    let start = std::time::Instant::now();
                    provider.split(&mut host, head, target).expect("idle");
                    touch(&mut host);
                    spent += start.elapsed();
                    provider.reconstruct(&mut host, head, PageSize::Size1G).expect("idle");
                }
                spent
            });
        });
        group.bench_function(format!("{name}/reconstruct"), |b| {
            b.iter_custom(|times| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..times {
                    provider.split(&mut host, head, target).expect("idle");
                    touch(&mut host);
                    let start = std::time::Instant::now();
                    provider.reconstruct(&mut host, head, PageSize::Size1G).expect("idle");
                    spent += start.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

fn lookups(c: &mut Criterion) {
    let mut host = host();
    let mut provider = provider_of(&mut host, GIANT);
    let head = allocate(&mut host, &mut *provider, PageSize::Size1G);
    provider.split(&mut host, head, PageSize::Size2M).expect("idle");
    provider.split(&mut host, head, PageSize::Size4K).expect("idle");
    let mut group = c.benchmark_group("folio");
    for (name, sfn) in [("4k", head), ("2m", Sfn::new(head.raw() + M2 + 5))] {
        group.bench_function(format!("find_{name}"), |b| b.iter(|| host.folios().get(std::hint::black_box(sfn))));
        group.bench_function(format!("get_put_{name}"), |b| {
            b.iter(|| {
                host.get_page(std::hint::black_box(sfn)).expect("in use");
                host.put_page(sfn, 1);
            });
        });
    }
    group.finish();
}

fn pools_and_map(c: &mut Criterion) {
    let mut group = c.benchmark_group("host");
    group.sample_size(20);
    let memory = SystemMemory::flat(1 << 40).expect("address space");
    for (name, vmemmap) in [("pool_1t_of_2m", VmemmapMode::Off), ("pool_1t_of_2m_optimised", VmemmapMode::Optimise)] {
        let layout = HostLayout {
            nodes: vec![FrameRange { first: Sfn::new(0), nr_frames: 1 << 28 }],
            cma: Vec::new(),
            pools: vec![(HugeSize::Size2M, 500_000)],
            vmemmap,
        };
        group.bench_function(name, |b| b.iter(|| HostMemory::with_layout(memory.clone(), &layout).expect("room")));
    }
    let page = |block| Event::Change { block, size: PageSize::Size4K };
    group.bench_function("direct_map_split_4k", |b| {
        b.iter_batched(
            || DirectMap::new(Sfn::new(0), 1 << 28, DirectMapPolicy::Linux),
            |mut map| map.on(page(Sfn::new(12345))),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, alloc_free, restructure, lookups, pools_and_map);
criterion_main!(benches);
