//! The map against a list of intervals.

use super::*;
use proptest::prelude::*;

impl Packed for u32 {
    fn pack(self) -> u64 {
        u64::from(self)
    }
    fn unpack(bits: u64) -> u32 {
        bits as u32
    }
}

const M2: u64 = PageSize::Size2M.frames();
const G1: u64 = PageSize::Size1G.frames();

#[test]
fn sizes_live_side_by_side_and_never_overlap() {
    let mut map = PageMap::<u32>::new();
    map.insert(0, PageSize::Size1G, 103).unwrap();
    map.insert(G1, PageSize::Size2M, 109).unwrap();
    map.insert(G1 + M2 + 3, PageSize::Size4K, 107).unwrap();
    assert_eq!(map.insert(5, PageSize::Size4K, 120), Err(Occupied));
    assert_eq!(map.insert(G1, PageSize::Size1G, 120), Err(Occupied));
    assert_eq!(map.insert(1, PageSize::Size2M, 120), Err(Occupied), "not a multiple of its size");
    assert_eq!(map.get(G1 - 1), Some(Hit { base: 0, size: PageSize::Size1G, value: 103 }));
    assert_eq!(map.get(G1 + M2 - 1).map(|h| h.value), Some(109));
    assert_eq!(map.vacancy(G1 + M2 + 4), Some(PageSize::Size4K));
    assert_eq!(map.vacancy(G1 + 2 * M2), Some(PageSize::Size2M));
    assert_eq!(map.vacancy(2 * G1), Some(PageSize::Size1G));
    assert_eq!(map.vacancy(7), None);
}

#[test]
fn far_pages_cost_a_path_and_give_it_back() {
    let mut map = PageMap::<u32>::new();
    map.insert(0, PageSize::Size4K, 1).unwrap();
    let far = (1 << 50) - 1;
    map.insert(far, PageSize::Size4K, 2).unwrap();
    assert_eq!(map.get(0).map(|h| h.value), Some(1));
    assert_eq!(map.next_from(1).map(|h| h.base), Some(far));
    let with_both = map.nodes();
    assert_eq!(map.remove(far).map(|h| h.value), Some(2));
    assert_eq!(map.remove(far), None);
    assert!(map.nodes() < with_both);
}

#[test]
fn of_two_that_claim_a_place_one_gets_it() {
    let mut map = PageMap::<u32>::new();
    assert_eq!(map.claim(7, PageSize::Size4K, 0), Claim::NoNode);
    map.insert(511, PageSize::Size4K, 0).unwrap();
    let entered = |value: u32| (0..511).filter(|&at| map.claim(at, PageSize::Size4K, value) == Claim::Entered).count();
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| entered(1));
        (entered(2), other.join().unwrap())
    });
    let holds = |value: u32| (0..511).filter(|&at| map.get(at).map(|hit| hit.value) == Some(value)).count();
    assert_eq!((one + two, one, two), (511, holds(2), holds(1)));
    assert_eq!(map.count(PageSize::Size4K), 512);
}

proptest! {
    #[test]
    fn agrees_with_a_list_of_intervals(
        steps in prop::collection::vec((0_u8..6, 0_u64..2 * G1, 0_usize..3), 1..120),
    ) {
        let mut map = PageMap::<u32>::new();
        let mut model: Vec<(u64, PageSize, u32)> = Vec::new();
        for (step, (kind, page, size)) in (0..).zip(steps) {
            let size = PageSize::ALL[size];
            let covering = model.iter().position(|&(b, s, _)| b <= page && page < b + s.frames());
            if kind == 0 {
                let cut = covering.map(|at| model[at]).filter(|entry| entry.1 > PageSize::Size4K);
                prop_assert_eq!(map.divide(page, |_| step), cut.is_some());
                if let (Some((base, old, _)), Some(at)) = (cut, covering) {
                    let smaller = PageSize::ALL[old.index() - 1];
                    model.swap_remove(at);
                    model.extend((base..base + old.frames()).step_by(smaller.frames() as usize).map(|b| (b, smaller, step)));
                }
            } else if kind == 1 {
                let base = page & !(size.frames() - 1);
                let larger = covering.is_some_and(|at| model[at].1 > size);
                prop_assert_eq!(map.unite(base, size, step).is_ok(), !larger);
                if !larger {
                    model.retain(|&(b, s, _)| base + size.frames() <= b || b + s.frames() <= base);
                    model.push((base, size, step));
                }
            } else if kind < 4 {
                let base = page & !(size.frames() - 1);
                let free = model.iter().all(|&(b, s, _)| base + size.frames() <= b || b + s.frames() <= base);
                let claimed = match kind {
                    2 => Claim::NoNode,
                    _ => map.claim(base, size, step),
                };
                match claimed {
                    Claim::NoNode => prop_assert_eq!(map.insert(base, size, step).is_ok(), free),
                    claimed => prop_assert_eq!(claimed == Claim::Entered, free),
                }
                if free {
                    model.push((base, size, step));
                }
            } else {
                let gone = covering.map(|at| model.swap_remove(at));
                prop_assert_eq!(map.remove(page).map(|h| (h.base, h.size, h.value)), gone);
            }
            let covering = model.iter().find(|&&(b, s, _)| b <= page && page < b + s.frames()).copied();
            prop_assert_eq!(map.get(page).map(|h| (h.base, h.size, h.value)), covering);
            let next = model.iter().filter(|&&(b, s, _)| b + s.frames() > page).min_by_key(|e| e.0).copied();
            prop_assert_eq!(map.next_from(page).map(|h| (h.base, h.size, h.value)), next);
            let to = page + 3 * M2 / 2;
            let mut reach: Vec<_> = model.iter().filter(|&&(b, s, _)| b < to && b + s.frames() > page).copied().collect();
            reach.sort_by_key(|entry| entry.0);
            let mut seen = Vec::new();
            let all = map.visit(page, to, &mut |h| {
                seen.push((h.base, h.size, h.value));
                ControlFlow::<()>::Continue(())
            });
            prop_assert!(all.is_continue() && seen == reach);
            for size in PageSize::ALL {
                prop_assert_eq!(map.count(size), model.iter().filter(|e| e.1 == size).count() as u64);
            }
        }
        let mut at = 0;
        while let Some(hit) = map.next_from(at) {
            at = hit.end();
            map.remove(hit.base);
        }
        prop_assert_eq!(map.nodes(), 1, "only the root is left");
    }
}
