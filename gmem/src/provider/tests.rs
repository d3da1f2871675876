use emu_core::memory::SystemMemory;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::folio::{Folio, FolioFlags};
use crate::host::{FrameRange, HostLayout};
use crate::numa::{NodeId, NodeMask};
use crate::pool::SubpoolLimits;
use crate::vmemmap::{VmemmapExhausted, VmemmapMode, saved_pages};

const M2: u64 = PageSize::Size2M.frames();
const G1: u64 = PageSize::Size1G.frames();
const NODE_FRAMES: u64 = 4 * G1;
const CMA_FRAMES: u64 = 2 * G1;
const SMALL: PageSize = PageSize::Size4K;
const HUGE: PageSize = PageSize::Size2M;
const GIANT: PageSize = PageSize::Size1G;

/// Two nodes with a 1G page each and a few 2M pages, and an area of 2 GiB.
fn host(vmemmap: VmemmapMode) -> HostMemory {
    let range = |at: u64, nr_frames| FrameRange { first: Sfn::new(at), nr_frames };
    let layout = HostLayout {
        nodes: vec![range(0, NODE_FRAMES), range(NODE_FRAMES, NODE_FRAMES)],
        cma: vec![(NodeId::ZERO, range(2 * NODE_FRAMES, CMA_FRAMES))],
        pools: vec![(HugeSize::Size1G, 2), (HugeSize::Size2M, 6)],
        vmemmap,
    };
    let memory = SystemMemory::flat((2 * NODE_FRAMES + CMA_FRAMES) << 12).unwrap();
    HostMemory::with_layout(memory, &layout).unwrap()
}

const GIANT_POOL: FolioPolicy = FolioPolicy::Pool { size: HugeSize::Size1G };
const HUGE_POOL: FolioPolicy = FolioPolicy::Pool { size: HugeSize::Size2M };

fn folio_of(host: &mut HostMemory, policy: FolioPolicy) -> (Box<dyn FolioProvider>, Sfn) {
    let mut provider = policy.provider();
    let size = policy.folio_size();
    provider.reserve(host, size.frames()).unwrap();
    let fresh = provider.allocate(host, Want::anywhere(size, 0)).unwrap();
    assert_eq!(fresh.size, size);
    (provider, fresh.head)
}

fn folios(host: &HostMemory) -> Vec<Folio> {
    host.folios().iter().collect()
}

/// What must be the same after a split and its merge.
fn digest(host: &HostMemory) -> (crate::host::HostStats, Vec<Folio>) {
    let mut stats = host.stats();
    (stats.vmemmap.restored, stats.vmemmap.failed) = (0, 0);
    (stats, folios(host))
}

fn put_all(host: &mut HostMemory, head: Sfn, frames: u64) {
    let mut at = head;
    while at.raw() < head.raw() + frames {
        let folio = host.folios().get(at).expect("a piece in use");
        at = folio.end();
        host.put_page(folio.head, folio.cache_refs());
    }
}

/// The owner puts each part behind a lock of its own; so all may move between threads.
#[test]
fn every_part_may_move_between_threads() {
    fn moves<T: Send + 'static>() -> std::any::TypeId {
        std::any::TypeId::of::<T>()
    }
    let parts = [
        moves::<HostMemory>(),
        moves::<crate::vmemmap::SystemFrames>(),
        moves::<crate::pool::HugePool>(),
        moves::<crate::cma::CmaArea>(),
        moves::<crate::folio::FolioTable>(),
        moves::<crate::directmap::DirectMap>(),
        moves::<Box<dyn FolioProvider>>(),
    ];
    assert!((1..parts.len()).all(|n| !parts[..n].contains(&parts[n])), "each named once");
}

#[test]
fn split_and_merge_are_each_others_reverse() {
    let all =
        [GIANT_POOL, HUGE_POOL, FolioPolicy::Buddy { largest: GIANT }, FolioPolicy::Cma { size: HugeSize::Size1G }];
    for vmemmap in [VmemmapMode::Off, VmemmapMode::Optimise] {
        for policy in all {
            let mut host = host(vmemmap);
            let (mut provider, head) = folio_of(&mut host, policy);
            host.folios.meta_mut(head).flags |= FolioFlags::UPTODATE;
            let before = digest(&host);
            let size = policy.folio_size();
            for target in [SMALL, HUGE].into_iter().filter(|&target| target < size) {
                host.memory().store(Sfn::new(head.raw() + 3).base(), 0x5a_u8).unwrap();
                let split = provider.split(&mut host, head, target).unwrap();
                assert_eq!(split.pieces, size.frames() / target.frames());
                assert_eq!(host.folios().count(target), split.pieces, "F16: and nothing else");
                for folio in folios(&host) {
                    assert!(folio.is_cache_only() && folio.meta.flags.contains(FolioFlags::UPTODATE), "F14: {folio:?}");
                }
                let done = provider.reconstruct(&mut host, head, size).unwrap();
                assert_eq!((done.pieces, done.cleared, done.whole), (split.pieces, 0, true));
                assert_eq!(done.vmemmap_given, split.vmemmap_taken - split.vmemmap_given);
                assert_eq!(host.memory().load::<u8>(Sfn::new(head.raw() + 3).base()), Ok(0x5a));
                assert_eq!(digest(&host), before, "F13, {policy:?} to {target}");
            }
        }
    }
}

#[test]
fn an_intermediate_split_costs_what_the_table_says() {
    let mut host = host(VmemmapMode::Optimise);
    let (mut provider, head) = folio_of(&mut host, GIANT_POOL);
    let before = digest(&host);
    let split = provider.split(&mut host, head, HUGE).unwrap();
    assert_eq!((split.vmemmap_taken, split.vmemmap_given), (4095, 512 * 7), "512 frames live where 1 did");
    let affected = Sfn::new(head.raw() + 9 * M2);
    let split = provider.split(&mut host, affected, SMALL).unwrap();
    assert_eq!((split.vmemmap_taken, split.vmemmap_given), (7, 0));
    assert_eq!(host.stats().folios, [512, 511, 0]);
    assert_eq!(host.stats().split_units, 1, "one unit, however it is cut");
    assert_eq!(host.units().unit_of(affected), Some((head, GIANT)));
    let done = provider.reconstruct(&mut host, affected, HUGE).unwrap();
    assert!(!done.whole);
    let done = provider.reconstruct(&mut host, head, GIANT).unwrap();
    assert!(done.whole);
    assert_eq!(digest(&host), before);
    provider.split(&mut host, head, HUGE).unwrap();
    provider.split(&mut host, affected, SMALL).unwrap();
    let done = provider.reconstruct(&mut host, head, GIANT).unwrap();
    assert_eq!(done.pieces, 511 + 512, "pieces of both sizes merge at once");
    assert_eq!(digest(&host), before);
}

/// F12, R-45.
#[test]
fn a_split_without_memory_for_the_vmemmap_changes_nothing() {
    let mut host = host(VmemmapMode::Optimise);
    let (mut provider, head) = folio_of(&mut host, GIANT_POOL);
    let spare = host.frames.pages.free_frames() - 4094;
    assert_eq!(host.occupy(spare), spare);
    let before = digest(&host);
    for target in [HUGE, SMALL] {
        let refused = SplitError::Vmemmap(VmemmapExhausted { size: GIANT, needed: 4095, free_frames: 4094 });
        assert_eq!(provider.split(&mut host, head, target), Err(refused));
    }
    let after = digest(&host);
    assert_eq!(after, before);
    assert_eq!((host.stats().vmemmap.failed, after.0.split_units), (2, 0));
    assert_eq!(host.vacate(1), 1);
    assert!(provider.split(&mut host, head, SMALL).is_ok());
    assert_eq!(host.frames.pages.free_frames(), 0);
}

#[test]
fn who_holds_a_folio_or_a_piece_stands_against_splits_and_merges() {
    let mut host = host(VmemmapMode::Optimise);
    let (mut provider, head) = folio_of(&mut host, HUGE_POOL);
    let at = Sfn::new(head.raw() + 5);
    host.get_page(at).unwrap();
    assert_eq!(provider.split(&mut host, head, SMALL), Err(SplitError::Busy { head, refs: 513, cache: 512 }));
    host.put_page(at, 1);
    assert_eq!(provider.split(&mut host, at, SMALL), Err(SplitError::NotAFolio { head: at }));
    assert_eq!(provider.split(&mut host, head, HUGE), Err(SplitError::NotLarger { head, size: HUGE, target: HUGE }));
    assert_eq!(provider.reconstruct(&mut host, head, HUGE), Err(ReconstructError::NotSplit { head, size: HUGE }));
    provider.split(&mut host, head, SMALL).unwrap();
    assert_eq!(provider.reconstruct(&mut host, at, HUGE), Err(ReconstructError::NotABlock { head: at, size: HUGE }));
    assert_eq!(provider.reconstruct(&mut host, head, SMALL), Err(ReconstructError::NotABlock { head, size: SMALL }));
    let giant = head.align_down(GIANT);
    assert_eq!(
        provider.reconstruct(&mut host, giant, GIANT),
        Err(ReconstructError::NotSplit { head: giant, size: GIANT })
    );
    let busy = |refs| Err(ReconstructError::Busy { sfn: at, refs, cache: 1 });
    host.get_page(at).unwrap();
    assert_eq!(provider.reconstruct(&mut host, head, HUGE), busy(2));
    host.put_page(at, 1);
    host.pin_page(at).unwrap();
    assert_eq!(provider.reconstruct(&mut host, head, HUGE), busy(1025));
    host.unpin_page(at);
    host.map_page(at).unwrap();
    assert_eq!(provider.reconstruct(&mut host, head, HUGE), busy(2));
    host.unmap_page(at);
    host.put_page(at, 1);
    assert_eq!(provider.reconstruct(&mut host, head, HUGE), Err(ReconstructError::Hole { sfn: at }));
}

#[test]
fn a_merge_of_defined_and_undefined_pieces_clears_the_latter() {
    let mut host = host(VmemmapMode::Off);
    let (mut provider, head) = folio_of(&mut host, HUGE_POOL);
    provider.split(&mut host, head, SMALL).unwrap();
    let (defined, stale) = (Sfn::new(head.raw() + 1), Sfn::new(head.raw() + 2));
    for sfn in [defined, stale] {
        host.memory().store(sfn.base(), 7_u8).unwrap();
        host.folios.meta_mut(sfn).flags = FolioFlags::empty();
    }
    host.folios.meta_mut(defined).flags = FolioFlags::UPTODATE;
    let done = provider.reconstruct(&mut host, head, HUGE).unwrap();
    assert_eq!(done.cleared, 1);
    assert_eq!(host.memory().load::<u8>(defined.base()), Ok(7));
    assert_eq!(host.memory().load::<u8>(stale.base()), Ok(0));
    let flags = host.folios().get(head).unwrap().meta.flags;
    assert_eq!(flags, FolioFlags::UPTODATE | FolioFlags::HUGETLB);
}

/// F7, F8: a piece held by somebody keeps its unit from the pool, beyond the inode and its reservation.
#[test]
fn a_unit_returns_with_its_last_piece() {
    for (policy, size) in [(GIANT_POOL, HugeSize::Size1G), (HUGE_POOL, HugeSize::Size2M)] {
        let mut host = host(VmemmapMode::Optimise);
        let before = host.stats();
        let (mut provider, head) = folio_of(&mut host, policy);
        provider.split(&mut host, head, SMALL).unwrap();
        let held = Sfn::new(head.raw() + 77);
        host.memory().store(held.base(), 0x77_u8).unwrap();
        host.pin_page(held).unwrap();
        put_all(&mut host, head, size.page_size().frames());
        provider.unreserve(&mut host);
        let stats = host.stats();
        assert_eq!(stats.waiting_frames, size.page_size().frames() - 1);
        let pool = stats.pools[size as usize];
        let was = before.pools[size as usize];
        assert_eq!((pool.free, pool.nr, pool.resv), (was.free - 1, was.nr, 0), "the pool is short of one unit");
        assert_eq!(host.memory().load::<u8>(held.base()), Ok(0x77));
        host.unpin_page(held);
        let mut after = host.stats();
        after.vmemmap.restored = 0;
        assert_eq!(after, before);
    }
}

/// R-49 with the `error` operation: 4 KiB are lost, nothing else.
#[test]
fn a_failed_piece_is_retired_alone() {
    for policy in [GIANT_POOL, FolioPolicy::Buddy { largest: GIANT }, FolioPolicy::Cma { size: HugeSize::Size1G }] {
        let mut host = host(VmemmapMode::Optimise);
        let (mut provider, head) = folio_of(&mut host, policy);
        let all = total(&host);
        let lost = Sfn::new(head.raw() + 5 * M2 + 9);
        let Ok(Poisoned::InFolio(folio)) = provider.error(&mut host, lost) else { panic!("in the folio") };
        assert!(folio.head == head && folio.meta.flags.contains(FolioFlags::HAS_HWPOISONED));
        assert_eq!(provider.error(&mut host, lost), Ok(Poisoned::Already));
        provider.split(&mut host, head, HUGE).unwrap();
        provider.split(&mut host, lost.align_down(HUGE), SMALL).unwrap();
        let bad: Vec<Folio> = folios(&host)
            .into_iter()
            .filter(|f| f.meta.flags.intersects(FolioFlags::HWPOISON | FolioFlags::HAS_HWPOISONED))
            .collect();
        assert_eq!((bad.len(), bad[0].head, bad[0].size), (1, lost, SMALL), "the flag is on the right piece");
        let refused = provider.reconstruct(&mut host, lost.align_down(HUGE), HUGE);
        assert_eq!(refused, Err(ReconstructError::Poisoned { sfn: lost }));
        put_all(&mut host, head, G1);
        provider.unreserve(&mut host);
        assert_eq!((total(&host), host.stats().retired_frames, host.stats().split_units), (all, 1, 0));
        let pools = host.stats().pools;
        assert_eq!(pools[1].nr, 2 - u64::from(policy == GIANT_POOL), "a unit with a hole is no unit");
        assert!(host.folios().get(lost).is_none() && host.is_poisoned(lost));
    }
}

#[test]
fn failures_of_what_nobody_uses() {
    let mut host = host(VmemmapMode::Optimise);
    let all = total(&host);
    let pooled = {
        let (pool, frames) = host.pool_mut(HugeSize::Size2M);
        let nodes = MemPolicy::Any.order(0, frames.online());
        let sub = pool.new_subpool(frames, SubpoolLimits::exactly(1)).unwrap();
        let sfn = pool.take(frames, sub, nodes).unwrap();
        pool.give(frames, sub, sfn);
        pool.put_subpool(frames, sub);
        sfn
    };
    assert_eq!(host.poison(Sfn::new(pooled.raw() + 1)), Ok(Poisoned::Free));
    assert_eq!(host.stats().pools[0].nr, 5, "taken apart");
    assert_eq!(host.poison(Sfn::new(2 * NODE_FRAMES)), Ok(Poisoned::Free), "of the contiguous area");
    let table = host.alloc_table().unwrap().frame();
    assert_eq!(host.poison(table), Err(PoisonError::PageTable { sfn: table }));
    host.free_table(table.base());
    assert_eq!(host.poison(table), Ok(Poisoned::Free), "of the page allocator");
    let nowhere = Sfn::new(1 << 40);
    assert_eq!(host.poison(nowhere), Err(PoisonError::Unknown { sfn: nowhere }));
    assert_eq!((host.stats().retired_frames, total(&host)), (3, all));
}

/// A whole page in which memory failed, with nothing left to restore its vmemmap: it stays in the pool and is skipped.
#[test]
fn a_failed_page_that_cannot_be_taken_apart_is_shelved() {
    let mut host = host(VmemmapMode::Optimise);
    let (mut provider, head) = folio_of(&mut host, HUGE_POOL);
    provider.error(&mut host, Sfn::new(head.raw() + 1)).unwrap();
    host.occupy(u64::MAX);
    host.put_page(head, 512);
    provider.unreserve(&mut host);
    let pool = host.stats().pools[0];
    assert_eq!((pool.nr, pool.free, pool.resv, host.pool(HugeSize::Size2M).available()), (6, 6, 0, 5));
}

/// F18, R-48.
#[test]
fn policies_choose_nodes() {
    let mut host = host(VmemmapMode::Off);
    let node = |n| NodeId::new(n).unwrap();
    let want = |policy, index| Want { at_most: HUGE, index, policy };
    for policy in [HUGE_POOL, FolioPolicy::Buddy { largest: HUGE }] {
        let mut provider = policy.provider();
        provider.reserve(&mut host, 6 * M2).unwrap();
        let mut held = Vec::new();
        let mut node_of = |host: &mut HostMemory, want| {
            let fresh = provider.allocate(host, want)?;
            held.push(fresh.head);
            Ok::<_, ProviderError>(host.frames().pages.node_of(fresh.head).unwrap())
        };
        let both = NodeMask::first(2);
        assert_eq!(node_of(&mut host, want(MemPolicy::Interleave(both), 0)), Ok(node(0)));
        assert_eq!(node_of(&mut host, want(MemPolicy::Interleave(both), M2)), Ok(node(1)));
        assert_eq!(node_of(&mut host, want(MemPolicy::Preferred(node(1)), 0)), Ok(node(1)));
        let strict = want(MemPolicy::Bind(NodeMask::only(node(1))), 0);
        assert_eq!(node_of(&mut host, strict), Ok(node(1)));
        if policy == HUGE_POOL {
            assert_eq!(node_of(&mut host, strict), Err(TakeError::Nodes { size: HUGE }.into()), "promised, not there");
        }
        assert_eq!(node_of(&mut host, want(MemPolicy::Preferred(node(0)), 0)), Ok(node(0)));
        held.into_iter().for_each(|head| host.put_page(head, 512));
        provider.unreserve(&mut host);
    }
    let mut provider = FolioPolicy::Cma { size: HugeSize::Size2M }.provider();
    provider.reserve(&mut host, M2).unwrap();
    let strict = |n| want(MemPolicy::Bind(NodeMask::only(node(n))), 0);
    assert_eq!(provider.allocate(&mut host, strict(1)), Err(ProviderError::Node { node: node(0) }));
    assert!(provider.allocate(&mut host, strict(0)).is_ok());
}

#[test]
fn the_same_contract_whatever_the_source() {
    for (policy, most) in [(HUGE_POOL, 6), (GIANT_POOL, 2), (FolioPolicy::Cma { size: HugeSize::Size1G }, 2)] {
        let mut host = host(VmemmapMode::Off);
        let before = host.stats();
        let frames = policy.folio_size().frames();
        let mut provider = policy.provider();
        assert!(provider.reserve(&mut host, (most + 1) * frames).is_err(), "all or nothing");
        assert_eq!(host.stats(), before, "F5");
        let size = policy.folio_size();
        let refused = provider.allocate(&mut host, Want::anywhere(size, 0));
        assert_eq!(refused, Err(ProviderError::NotReserved { size }));
        provider.reserve(&mut host, most * frames).unwrap();
        assert!(matches!(provider.allocate(&mut host, Want::anywhere(SMALL, 0)), Err(ProviderError::TooLarge { .. })));
        let held: Vec<FreshFolio> =
            (0..most).map(|_| provider.allocate(&mut host, Want::anywhere(size, 0)).unwrap()).collect();
        assert!(provider.allocate(&mut host, Want::anywhere(size, 0)).is_err());
        held.into_iter().for_each(|fresh| host.put_page(fresh.head, fresh.size.frames() as u32));
        provider.unreserve(&mut host);
        assert_eq!(host.stats(), before);
    }
}

#[test]
fn loans_make_room_for_a_claim_and_leave_no_bytes() {
    let mut host = host(VmemmapMode::Off);
    let loan = host.lend(emu_core::Order::new(4).unwrap()).unwrap();
    host.memory().store(loan.first.base(), 9_u8).unwrap();
    let mut provider = FolioPolicy::Cma { size: HugeSize::Size1G }.provider();
    provider.reserve(&mut host, 2 * G1).unwrap();
    assert_eq!(host.take_recalled(), [loan]);
    assert!(!host.take_loan_back(loan) && host.take_recalled().is_empty());
    let heads = [0, 1].map(|n| provider.allocate(&mut host, Want::anywhere(GIANT, n * G1)).unwrap().head);
    assert_eq!(host.memory().load::<u8>(loan.first.base()), Ok(0));
    heads.into_iter().for_each(|head| host.put_page(head, G1 as u32));
    provider.unreserve(&mut host);
    assert_eq!(host.stats().cma.free, CMA_FRAMES);
}

/// Every frame has one place.
fn total(host: &HostMemory) -> u64 {
    let stats = host.stats();
    let pooled: u64 = HugeSize::ALL.iter().map(|&s| stats.pools[s as usize].free * s.page_size().frames()).sum();
    let in_use: u64 = PageSize::ALL.iter().map(|&s| stats.folios[s.index()] * s.frames()).sum();
    let cma = stats.cma.free + stats.cma.lent + stats.cma.claimed - stats.cma.out;
    stats.free_frames
        + stats.vmemmap.held
        + pooled
        + in_use
        + cma
        + stats.waiting_frames
        + stats.retired_frames
        + stats.occupied_frames
}

fn check(host: &HostMemory) {
    assert_eq!(total(host), 2 * NODE_FRAMES + CMA_FRAMES, "frames are conserved");
    let stats = host.stats();
    if host.frames().vmemmap.mode() == VmemmapMode::Optimise {
        let saved: u64 = HugeSize::ALL.iter().map(|&s| stats.vmemmap.optimised[s as usize] * saved_pages(s)).sum();
        assert_eq!(stats.vmemmap.held + saved, 2 * NODE_FRAMES / 64, "F11");
        let flagged = |size| {
            let optimised = |f: &Folio| f.size == size && f.meta.flags.contains(FolioFlags::VMEMMAP_OPTIMISED);
            folios(host).iter().filter(|f| optimised(f)).count() as u64
        };
        assert_eq!(stats.vmemmap.optimised[1], stats.pools[1].free + flagged(GIANT), "F10");
        assert!(stats.vmemmap.optimised[0] >= stats.pools[0].free + flagged(HUGE));
    }
    for size in HugeSize::ALL {
        let pool = host.pool(size);
        let out: u64 = pool.subpools().map(|sub| sub.out()).sum();
        assert_eq!(pool.stats().free + out, pool.stats().nr, "F1, F4, F9");
        assert_eq!(pool.stats().resv, pool.subpools().map(|sub| sub.rsv()).sum::<u64>(), "F2");
    }
    for folio in folios(host) {
        let small_and_optimised = folio.size == SMALL && folio.meta.flags.contains(FolioFlags::VMEMMAP_OPTIMISED);
        assert!(!small_and_optimised, "F10: {folio:?} has no struct page");
        let bad = host.poisoned_in(folio.head, folio.size).count() > 0;
        let flag = folio.meta.flags.intersects(FolioFlags::HWPOISON | FolioFlags::HAS_HWPOISONED);
        assert_eq!(bad, flag, "{folio:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    /// Random lives of inodes of every policy, whose pieces are held, split, merged, lost and freed in any order.
    #[test]
    fn units_keep_the_books(
        optimise in any::<bool>(),
        steps in prop::collection::vec((0_u8..14, any::<Index>(), any::<Index>(), 0_usize..3), 1..50),
    ) {
        let mut host = host(if optimise { VmemmapMode::Optimise } else { VmemmapMode::Off });
        let fresh = host.stats();
        let policies = [
            GIANT_POOL,
            HUGE_POOL,
            FolioPolicy::Buddy { largest: HUGE },
            FolioPolicy::Cma { size: HugeSize::Size2M },
            FolioPolicy::Cma { size: HugeSize::Size1G },
        ];
        let mut inodes: Vec<(Box<dyn FolioProvider>, PageSize)> = Vec::new();
        // Folios and pieces of the page caches; and pages held beside them.
        let mut pins: Vec<Sfn> = Vec::new();
        let mut cached: std::collections::BTreeSet<Sfn> = std::collections::BTreeSet::new();
        let mut poisoned = 0;
        for (what, pick, other, size) in steps {
            let size = PageSize::ALL[size];
            let piece = (!cached.is_empty()).then(|| *cached.iter().nth(pick.index(cached.len())).unwrap());
            let folio = piece.map(|sfn| host.folios().get(sfn).unwrap());
            match (what, folio) {
                (0, _) => {
                    let policy = policies[pick.index(policies.len())];
                    let mut provider = policy.provider();
                    if provider.reserve(&mut host, policy.folio_size().frames() * (1 + other.index(2) as u64)).is_ok() {
                        inodes.push((provider, policy.folio_size()));
                    }
                }
                (1 | 2, _) if !inodes.is_empty() => {
                    let at = pick.index(inodes.len());
                    let (provider, most) = &mut inodes[at];
                    if let Ok(fresh) = provider.allocate(&mut host, Want::anywhere(*most, other.index(99) as u64)) {
                        cached.insert(fresh.head);
                    }
                }
                // 1G to 4K at once would make the list of pieces long.
                (3 | 4, Some(folio)) if folio.size == HUGE || size == HUGE => {
                    let before = digest(&host);
                    let split = host.split_folio(folio.head, size);
                    let no_memory = matches!(split, Err(SplitError::Vmemmap(_)));
                    let legal = folio.is_cache_only() && folio.size > size;
                    prop_assert_eq!(split.is_ok() || no_memory, legal, "{:?}", split);
                    if let Ok(split) = split {
                        cached.extend((0..split.pieces).map(|n| Sfn::new(folio.head.raw() + n * size.frames())));
                    } else {
                        prop_assert_eq!(digest(&host), before);
                    }
                }
                (5 | 6, Some(folio)) => {
                    let head = folio.head.align_down(size);
                    let before = digest(&host);
                    match host.reconstruct_folio(head, size) {
                        Ok(_) => {
                            prop_assert!(host.poisoned_in(head, size).next().is_none(), "F15");
                            let pieces: Vec<Sfn> = cached.range(head..Sfn::new(head.raw() + size.frames())).copied().collect();
                            pieces.iter().for_each(|piece| {
                                cached.remove(piece);
                            });
                            cached.insert(head);
                        }
                        Err(_) => prop_assert_eq!(digest(&host), before),
                    }
                }
                (7, Some(folio)) => {
                    cached.remove(&folio.head);
                    host.put_page(folio.head, folio.cache_refs());
                }
                (8, Some(folio)) => {
                    host.pin_page(folio.head).unwrap();
                    pins.push(folio.head);
                }
                (9, _) if !pins.is_empty() => {
                    let sfn = pins.swap_remove(pick.index(pins.len()));
                    host.unpin_page(sfn);
                }
                (10, Some(folio)) => {
                    let sfn = Sfn::new(folio.head.raw() + other.index(folio.size.frames() as usize) as u64);
                    poisoned += u64::from(matches!(host.poison(sfn), Ok(Poisoned::InFolio(_))));
                }
                // Down to a few frames, so that some restores fail and some do not.
                (12, _) => {
                    host.vacate(u64::MAX);
                    host.occupy(host.frames().pages.free_frames().saturating_sub([0, 6, 7, 20, 4094, 4095][pick.index(6)]));
                }
                (13, _) => {
                    host.vacate(u64::MAX);
                }
                (11, _) if !inodes.is_empty() => {
                    inodes.swap_remove(pick.index(inodes.len())).0.unreserve(&mut host);
                }
                _ => {}
            }
            check(&host);
        }
        for head in cached {
            let refs = host.folios().get(head).unwrap().cache_refs();
            host.put_page(head, refs);
        }
        pins.into_iter().for_each(|sfn| host.unpin_page(sfn));
        inodes.into_iter().for_each(|(mut provider, _)| provider.unreserve(&mut host));
        host.vacate(u64::MAX);
        check(&host);
        let mut end = host.stats();
        prop_assert_eq!((end.split_units, end.folios, end.waiting_frames), (0, [0; 3], 0));
        // A page that could not be taken apart for want of memory is still in its pool, with its failed frames.
        prop_assert!(end.retired_frames <= poisoned);
        if poisoned == 0 {
            (end.vmemmap.restored, end.vmemmap.failed) = (0, 0);
            prop_assert_eq!(end, fresh, "everything is back");
        }
    }
}
