use super::*;
use crate::numa::MemPolicy;
use crate::vmemmap::{VmemmapMode, saved_pages};
use proptest::prelude::*;

const M2: u64 = PageSize::Size2M.frames();
const G1: u64 = PageSize::Size1G.frames();

fn anywhere(frames: &SystemFrames) -> NodeOrder {
    MemPolicy::Any.order(0, frames.online())
}

fn pool_of(nr: u64, spare: u64) -> (HugePool, SystemFrames) {
    let mut frames = SystemFrames::new(&[(Sfn::new(0), (nr + spare) * M2)], VmemmapMode::Off);
    let mut pool = HugePool::new(HugeSize::Size2M, 1);
    assert_eq!(pool.set_max(&mut frames, nr), nr);
    (pool, frames)
}

fn two_nodes(each: u64, mode: VmemmapMode) -> SystemFrames {
    SystemFrames::new(&[(Sfn::new(0), each), (Sfn::new(each), each)], mode)
}

fn by_node(pool: &HugePool) -> Vec<(u64, u64, u64)> {
    pool.node_stats().map(|node| (node.nr, node.free, node.surplus)).collect()
}

#[test]
fn a_terabyte_of_2m_pages_is_reserved_at_once() {
    let (mut pool, mut frames) = pool_of(1 << 19, 3);
    let sub = pool.new_subpool(&mut frames, SubpoolLimits::exactly(1 << 19)).unwrap();
    assert_eq!(pool.stats(), PoolStats { nr: 1 << 19, free: 1 << 19, resv: 1 << 19, surplus: 0, overcommit: 0 });
    pool.put_subpool(&mut frames, sub);
    assert_eq!(pool.available(), 1 << 19);
    assert!(pool.nodes[0].free.runs().count() < 32, "a few runs");
}

#[test]
fn statistics_are_those_of_sysfs() {
    for size in HugeSize::ALL {
        let name = format!("hugepages-{}kB", size.page_size().bytes() >> 10);
        assert_eq!(size.sysfs_name(), name);
    }
    let stats = PoolStats { nr: 5, free: 4, resv: 3, surplus: 2, overcommit: 1 };
    let shown: Vec<u64> = stats.files().iter().map(|file| file.1).collect();
    assert_eq!(shown, [5, 4, 3, 2, 1]);
}

#[test]
fn growth_stops_where_memory_does_and_shrinking_spares_promises() {
    let (mut pool, mut frames) = pool_of(4, 2);
    assert_eq!(pool.set_max(&mut frames, 13), 6);
    pool.reserve(&mut frames, 5, Surplus::Refused).unwrap();
    assert_eq!(pool.set_max(&mut frames, 0), 0, "what is promised becomes surplus");
    assert_eq!((pool.stats().nr, pool.stats().surplus, frames.pages.free_frames()), (5, 5, M2));
    pool.unreserve(&mut frames, 2);
    assert_eq!((pool.stats().nr, pool.stats().surplus), (3, 3), "and leaves when its promise does");
    assert_eq!(pool.set_max(&mut frames, 2), 2, "surplus pages are made persistent first");
    assert_eq!((pool.stats().nr, pool.stats().surplus), (3, 1));
}

#[test]
fn surplus_pages_come_and_go_with_their_promise() {
    let (mut pool, mut frames) = pool_of(2, 4);
    assert!(pool.reserve(&mut frames, 3, Surplus::Allowed).is_err(), "no overcommit");
    pool.set_overcommit(8);
    pool.reserve(&mut frames, 5, Surplus::Allowed).unwrap();
    assert_eq!((pool.stats().nr, pool.stats().surplus), (5, 3));
    let before = pool.stats();
    assert!(pool.reserve(&mut frames, 5, Surplus::Allowed).is_err(), "the allocator has one page left");
    assert_eq!(pool.stats(), before, "a refusal leaves no trace");
    pool.unreserve(&mut frames, 5);
    assert_eq!((pool.stats().nr, pool.stats().surplus), (2, 0));
    assert_eq!(frames.pages.free_frames(), 4 * M2);
}

#[test]
fn unreserved_pages_lean_on_surplus_and_temporary_ones_on_nothing() {
    let (mut pool, mut frames) = pool_of(1, 3);
    let nodes = anywhere(&frames);
    let own = pool.alloc(&mut frames, nodes, Grant::Unreserved).unwrap();
    assert!(pool.alloc(&mut frames, nodes, Grant::Unreserved).is_err());
    pool.set_overcommit(1);
    let surplus = pool.alloc(&mut frames, nodes, Grant::Unreserved).unwrap();
    assert!(pool.alloc(&mut frames, nodes, Grant::Unreserved).is_err(), "the limit is one");
    let temporary = pool.alloc_temporary(&mut frames, nodes).unwrap();
    assert_eq!((pool.stats().nr, pool.stats().surplus, pool.max()), (3, 1, 1));
    pool.free(&mut frames, temporary, Promise::Dropped);
    assert_eq!((pool.stats().nr, pool.stats().surplus, pool.stats().free), (2, 1, 0));
    pool.free(&mut frames, own, Promise::Dropped);
    assert_eq!((pool.stats().nr, pool.stats().surplus, pool.stats().free), (1, 0, 0), "a node sheds its surplus first");
    pool.free(&mut frames, surplus, Promise::Dropped);
    assert_eq!((pool.stats().nr, pool.stats().free, frames.pages.free_frames()), (1, 1, 3 * M2));
}

#[test]
fn nodes_grow_and_shrink_in_turn() {
    let mut frames = two_nodes(8 * M2, VmemmapMode::Off);
    let mut pool = HugePool::new(HugeSize::Size2M, 2);
    pool.set_max(&mut frames, 3);
    assert_eq!(by_node(&pool), [(2, 2, 0), (1, 1, 0)]);
    pool.set_max(&mut frames, 4);
    assert_eq!(by_node(&pool), [(2, 2, 0), (2, 2, 0)], "the turn was node 1's");
    pool.set_max(&mut frames, 16);
    assert_eq!(by_node(&pool), [(8, 8, 0), (8, 8, 0)]);
    pool.set_max(&mut frames, 1);
    assert_eq!(by_node(&pool).iter().map(|node| node.0).sum::<u64>(), 1);
    pool.set_max(&mut frames, 12);
    assert_eq!(pool.stats().nr, 12);
    let one = NodeId::new(1).unwrap();
    let mut on_one = 0;
    while pool.alloc(&mut frames, NodeOrder::only(one), Grant::Unreserved).is_ok() {
        on_one += 1;
    }
    assert_eq!(on_one, by_node(&pool)[1].0, "strict allocations stay on their node");
}

#[test]
fn a_node_is_set_without_touching_the_others() {
    let mut frames = two_nodes(8 * M2, VmemmapMode::Off);
    let mut pool = HugePool::new(HugeSize::Size2M, 2);
    pool.set_max(&mut frames, 4);
    let one = NodeId::new(1).unwrap();
    assert_eq!(pool.set_max_on(&mut frames, one, 7), 7);
    assert_eq!((by_node(&pool), pool.max()), (vec![(2, 2, 0), (7, 7, 0)], 9));
    assert_eq!(pool.set_max_on(&mut frames, one, 99), 8, "all that the node has");
    assert_eq!(pool.set_max_on(&mut frames, one, 0), 0);
    assert_eq!((by_node(&pool), pool.max()), (vec![(2, 2, 0), (0, 0, 0)], 2));
    pool.reserve(&mut frames, 2, Surplus::Refused).unwrap();
    assert_eq!(pool.set_max_on(&mut frames, NodeId::ZERO, 1), 1);
    assert_eq!(by_node(&pool), [(2, 2, 1), (0, 0, 0)], "promised pages stay as surplus");
    assert_eq!(pool.set_max_on(&mut frames, NodeId::new(9).unwrap(), 3), 0, "no such node");
}

/// the promise is the pool's, the page is a node's.
#[test]
fn a_promise_does_not_choose_the_node() {
    let mut frames = two_nodes(M2, VmemmapMode::Off);
    let mut pool = HugePool::new(HugeSize::Size2M, 2);
    pool.grow(&mut frames, 1);
    let sub = pool.new_subpool(&mut frames, SubpoolLimits::exactly(1)).unwrap();
    let before = (pool.stats(), *pool.subpool(sub).unwrap());
    let refused = pool.take(&mut frames, sub, NodeOrder::only(NodeId::new(1).unwrap()));
    assert_eq!(refused, Err(TakeError::Nodes { size: PageSize::Size2M }));
    assert_eq!((pool.stats(), *pool.subpool(sub).unwrap()), before);
    let nodes = anywhere(&frames);
    assert!(pool.take(&mut frames, sub, nodes).is_ok(), "any node keeps the promise");
}

#[test]
fn a_subpool_lives_until_its_last_page_is_back() {
    let (mut pool, mut frames) = pool_of(4, 0);
    let sub = pool.new_subpool(&mut frames, SubpoolLimits::exactly(3)).unwrap();
    let nodes = anywhere(&frames);
    let page = pool.take(&mut frames, sub, nodes).unwrap();
    pool.put_subpool(&mut frames, sub);
    assert_eq!((pool.stats().resv, pool.stats().free), (2, 3), "the inode is gone, its promise is not");
    pool.give(&mut frames, sub, page);
    assert_eq!((pool.stats().resv, pool.stats().free), (0, 4));
    assert!(pool.subpool(sub).is_none());
}

#[test]
fn limits_from_both_sides() {
    let (mut pool, mut frames) = pool_of(4, 4);
    pool.set_overcommit(8);
    let limits = SubpoolLimits { max: Some(6), min: Some(2), surplus: Surplus::Allowed };
    let sub = pool.new_subpool(&mut frames, limits).unwrap();
    let nodes = anywhere(&frames);
    let held: Vec<Sfn> = (0..6).map(|_| pool.take(&mut frames, sub, nodes).unwrap()).collect();
    assert_eq!((pool.stats().nr, pool.stats().surplus, pool.stats().resv), (6, 2, 0));
    let full = SubpoolFull { size: PageSize::Size2M, used: 6 };
    assert_eq!(pool.take(&mut frames, sub, nodes), Err(TakeError::Full(full)));
    for page in held {
        pool.give(&mut frames, sub, page);
    }
    assert_eq!((pool.stats().nr, pool.stats().surplus, pool.stats().resv), (4, 0, 2));
    assert_eq!(pool.subpool(sub).map(|s| (s.used(), s.rsv(), s.out())), Some((0, 2, 0)));
}

#[test]
fn demotion_moves_pages_and_counts() {
    let mut frames = SystemFrames::new(&[(Sfn::new(0), 4 * G1)], VmemmapMode::Optimise);
    let all = frames.vmemmap.stats().held;
    let mut giant = HugePool::new(HugeSize::Size1G, 1);
    let mut huge = HugePool::new(HugeSize::Size2M, 1);
    assert_eq!(giant.set_max(&mut frames, 3), 3);
    giant.reserve(&mut frames, 1, Surplus::Refused).unwrap();
    let done = giant.demote(&mut frames, &mut huge, 9);
    assert_eq!(done, Demotion { demoted: 2, gained: 1024 }, "promised pages stay");
    assert_eq!((giant.stats().nr, giant.max(), huge.stats().nr, huge.max()), (1, 1, 1024, 1024));
    assert_eq!(frames.vmemmap.stats().optimised, [1024, 1]);
    let saved = saved_pages(HugeSize::Size1G) + 1024 * saved_pages(HugeSize::Size2M);
    assert_eq!(frames.vmemmap.stats().held, all - saved);
}

/// Without frames for the vmemmap, pages cannot leave a pool: shrinking makes them surplus.
#[test]
fn pages_that_cannot_be_restored_stay_as_surplus() {
    let mut frames = SystemFrames::new(&[(Sfn::new(0), 16 * M2)], VmemmapMode::Optimise);
    let mut pool = HugePool::new(HugeSize::Size2M, 1);
    let nr = pool.set_max(&mut frames, 16);
    let nodes = anywhere(&frames);
    let mut held = Vec::new();
    let free = frames.pages.free_frames();
    assert!(frames.pages.alloc_frames(free, nodes, |first, nr| held.push((first, nr))));
    assert_eq!(pool.set_max(&mut frames, 0), 0);
    assert_eq!((pool.stats().nr, pool.stats().free, pool.stats().surplus), (nr, nr, nr));
    for (first, nr) in held {
        frames.pages.free_frames_from(first, nr);
    }
    pool.reserve(&mut frames, nr, Surplus::Refused).unwrap();
    pool.unreserve(&mut frames, nr);
    assert_eq!(pool.stats().nr, 0, "they go with the next promise that ends");
    assert_eq!(frames.vmemmap.stats().optimised, [0, 0]);
}

#[test]
fn a_poisoned_free_page_is_skipped() {
    let (mut pool, mut frames) = pool_of(3, 0);
    let nodes = anywhere(&frames);
    let gone = pool.poison_free(&mut frames, Sfn::new(M2 + 5));
    assert_eq!(gone, Some(Sfn::new(M2)), "a page that nobody needs leaves");
    assert_eq!((pool.stats().nr, pool.stats().free, pool.max()), (2, 2, 2));
    let sub = pool.new_subpool(&mut frames, SubpoolLimits::exactly(2)).unwrap();
    assert_eq!(pool.poison_free(&mut frames, Sfn::new(0)), None, "a promise leans on it");
    assert_eq!((pool.stats().nr, pool.stats().free, pool.available()), (2, 2, 0));
    assert_eq!(pool.take(&mut frames, sub, nodes), Ok(Sfn::new(2 * M2)));
    assert_eq!(pool.take(&mut frames, sub, nodes), Err(TakeError::Nodes { size: PageSize::Size2M }));
    assert!(pool.is_free(Sfn::new(0)) && !pool.is_free(Sfn::new(M2)));
}

proptest! {
    /// F1 to F7 over random lives of several inodes on two nodes, with and without optimisation.
    #[test]
    fn conservation(
        optimise in any::<bool>(),
        steps in prop::collection::vec((0_u8..8, any::<prop::sample::Index>(), 0_u64..8), 1..100),
    ) {
        let mode = if optimise { VmemmapMode::Optimise } else { VmemmapMode::Off };
        let mut frames = two_nodes(20 * M2, mode);
        let mut pool = HugePool::new(HugeSize::Size2M, 2);
        pool.grow(&mut frames, 16);
        let vmemmap_of_nothing = frames.vmemmap.stats().held + pool.stats().nr * if optimise { 7 } else { 0 };
        let nodes = anywhere(&frames);
        // Subpool, whether its inode lives, pages out.
        let mut inodes: Vec<(SubpoolId, bool, u64, Vec<Sfn>)> = Vec::new();
        for (what, pick, nr) in steps {
            let at = if inodes.is_empty() { None } else { Some(pick.index(inodes.len())) };
            match (what, at) {
                (0, _) => {
                    let (fits, before) = (nr <= pool.available(), pool.stats());
                    let made = pool.new_subpool(&mut frames, SubpoolLimits::exactly(nr));
                    prop_assert_eq!(made.is_ok(), fits);
                    prop_assert!(fits || pool.stats() == before, "F5");
                    inodes.extend(made.ok().map(|sub| (sub, true, nr, Vec::new())));
                }
                (1 | 2, Some(at)) if inodes[at].1 => {
                    let (sub, _, min, held) = &mut inodes[at];
                    let got = pool.take(&mut frames, *sub, nodes);
                    prop_assert_eq!(got.is_ok(), (held.len() as u64) < *min, "F6");
                    held.extend(got.ok());
                }
                (3, Some(at)) => {
                    let (sub, alive, _, held) = &mut inodes[at];
                    if let Some(sfn) = held.pop() {
                        pool.give(&mut frames, *sub, sfn);
                        if !*alive && held.is_empty() {
                            prop_assert!(pool.subpool(*sub).is_none(), "F7");
                            inodes.swap_remove(at);
                        }
                    }
                }
                (4, Some(at)) if inodes[at].1 => {
                    pool.put_subpool(&mut frames, inodes[at].0);
                    inodes[at].1 = false;
                    if inodes[at].3.is_empty() {
                        inodes.swap_remove(at);
                    }
                }
                (5, _) => {
                    pool.set_overcommit(nr);
                }
                (6, _) if nr % 2 == 0 => {
                    pool.set_max(&mut frames, nr * 4);
                }
                (6, _) => {
                    pool.set_max_on(&mut frames, NodeId::at(pick.index(2)), nr * 2);
                }
                (7, _) if pool.reserve(&mut frames, nr, Surplus::Allowed).is_ok() => {
                    pool.unreserve(&mut frames, nr);
                }
                _ => {}
            }
            let stats = pool.stats();
            let out: u64 = inodes.iter().map(|inode| inode.3.len() as u64).sum();
            prop_assert_eq!(stats.free + out, stats.nr, "F1");
            prop_assert_eq!(stats.resv, pool.subpools().map(Subpool::rsv).sum::<u64>(), "F2");
            prop_assert!(stats.resv <= stats.free && stats.surplus <= stats.nr);
            prop_assert_eq!(pool.max(), stats.nr - stats.surplus);
            for (sub, alive, min, held) in &inodes {
                let sub = pool.subpool(*sub).unwrap();
                prop_assert_eq!((sub.used(), sub.out()), (held.len() as u64, held.len() as u64));
                prop_assert_eq!(sub.rsv() + sub.out(), *min, "F3, alive {}", alive);
            }
            let vmemmap = frames.vmemmap.stats();
            let optimised = if optimise { stats.nr } else { 0 };
            prop_assert_eq!(vmemmap.optimised, [optimised, 0]);
            prop_assert_eq!(vmemmap.held, vmemmap_of_nothing - 7 * optimised, "F11");
            prop_assert_eq!(frames.pages.free_frames() + vmemmap.held + stats.nr * M2, 40 * M2, "frames are conserved");
        }
    }
}
