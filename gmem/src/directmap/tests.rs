use super::*;
use proptest::prelude::*;

const SMALL: PageSize = PageSize::Size4K;
const HUGE: PageSize = PageSize::Size2M;
const GIANT: PageSize = PageSize::Size1G;

fn map(policy: DirectMapPolicy) -> DirectMap {
    DirectMap::new(Sfn::new(0), 4 * G1, policy)
}

fn change(block: u64, size: PageSize) -> Event {
    Event::Change { block: Sfn::new(block), size }
}

#[test]
fn boot_maps_as_large_as_alignment_allows() {
    let map = DirectMap::new(Sfn::new(M2 + 3), 3 * G1, DirectMapPolicy::Linux);
    assert_eq!(map.entries(), [(M2 - 3) + 3, 510 + 1, 2]);
    assert_eq!(map.lookup(Sfn::new(M2 + 2)), None);
    assert_eq!(map.lookup(Sfn::new(M2 + 3)), Some(SMALL));
    assert_eq!(map.lookup(Sfn::new(2 * M2)), Some(HUGE));
    assert_eq!(map.lookup(Sfn::new(G1)), Some(GIANT));
    assert_eq!(map.lookup(Sfn::new(3 * G1 + M2 + 3)), None);
    let tera = DirectMap::new(Sfn::new(0), 1024 * G1, DirectMapPolicy::Linux);
    assert_eq!((tera.entries(), tera.table_pages()), ([0, 0, 1024], 0));
}

#[test]
fn linux_splits_for_4k_alone_and_never_collapses() {
    let mut map = map(DirectMapPolicy::Linux);
    assert_eq!(map.on(change(M2, HUGE)), Ok(Effect::default()), "hardware checks 1G entries as 2M");
    let split = map.on(change(5, SMALL)).unwrap();
    assert_eq!((split.splits, split.flushes, split.tables_allocated), (2, 1, 2));
    assert_eq!(map.on(change(6, SMALL)), Ok(Effect::default()), "split already");
    assert_eq!(map.entries(), [512, 511, 3]);
    map.on(Event::Uniform { block: Sfn::new(5), size: SMALL }).unwrap();
    map.on(Event::Release { first: Sfn::new(0), nr_frames: G1 }).unwrap();
    assert_eq!((map.entries(), map.table_pages()), ([512, 511, 3], 2));
}

#[test]
fn rebuild_collapses_with_the_last_deviating_page() {
    let mut map = map(DirectMapPolicy::Rebuild);
    for page in [5, 6, M2 + 1] {
        map.on(change(page, SMALL)).unwrap();
    }
    map.on(Event::Uniform { block: Sfn::new(5), size: SMALL }).unwrap();
    assert_eq!(map.entries(), [1024, 510, 3]);
    let done = map.on(Event::Uniform { block: Sfn::new(6), size: SMALL }).unwrap();
    assert_eq!((done.collapses, done.flushes, map.entries()), (1, 1, [512, 511, 3]));
    let done = map.on(Event::Release { first: Sfn::new(0), nr_frames: G1 }).unwrap();
    assert_eq!((done.collapses, map.entries(), map.table_pages()), (2, [0, 0, 4], 0));
    assert_eq!(map.totals().tables_allocated, map.totals().tables_freed);
}

#[test]
fn unmap_removes_what_changes_and_restores_at_release() {
    let mut map = map(DirectMapPolicy::Unmap);
    assert_eq!(map.on(change(M2, HUGE)).unwrap().removed_frames, M2);
    assert_eq!(map.on(change(3, SMALL)).unwrap().removed_frames, 1);
    assert_eq!(map.entries(), [511, 510, 3]);
    assert_eq!((map.lookup(Sfn::new(3)), map.lookup(Sfn::new(M2 + 9))), (None, None));
    assert_eq!(map.on(Event::Uniform { block: Sfn::new(3), size: SMALL }), Ok(Effect::default()));
    let done = map.on(Event::Release { first: Sfn::new(0), nr_frames: 4 * G1 }).unwrap();
    assert_eq!((done.restored_frames, done.flushes), (M2 + 1, 0), "what was not present is in no TLB");
    assert_eq!(map.entries(), [512, 511, 3]);
    assert_eq!(map.on(change(G1, GIANT)).unwrap().removed_frames, G1);
}

#[test]
fn refuse_pays_in_bytes() {
    let mut map = map(DirectMapPolicy::Refuse);
    assert_eq!(map.on(change(7, SMALL)), Err(Refused { block: Sfn::new(7), size: SMALL }));
    assert_eq!(map.on(change(0, HUGE)), Ok(Effect::default()));
    map.charge_shared(Sfn::new(7), 1);
    map.charge_shared(Sfn::new(M2), 512);
    map.charge_shared(Sfn::new(2 * M2), 12);
    assert_eq!(map.wasted_bytes(), (511 + 500) * 4096);
    map.charge_shared(Sfn::new(7), 0);
    map.on(Event::Release { first: Sfn::new(2 * M2), nr_frames: M2 }).unwrap();
    assert_eq!((map.wasted_bytes(), map.entries()), (0, [0, 0, 4]));
}

#[test]
fn what_the_host_meets() {
    let mut map = map(DirectMapPolicy::Linux);
    let guest = Sfn::new(9);
    let assigned = |first: Sfn, nr: u64| (first <= guest && guest.raw() < first.raw() + nr).then_some(guest);
    let check = |map: &DirectMap, page, op, how| map.check(Sfn::new(page), op, how, assigned);
    let (read, write, hard) = (HostOp::Read, HostOp::Write, Protection::Hardware);
    let fault = |mapping| HostAccess::RmpFault { assigned: guest, mapping };
    assert_eq!(check(&map, 9, read, hard), HostAccess::Ciphertext);
    assert_eq!(check(&map, 8, read, hard), HostAccess::Bytes);
    assert_eq!(check(&map, 8, write, hard), fault(GIANT), "the neighbour suffers while the entry is large");
    assert_eq!(check(&map, M2, write, hard), HostAccess::Bytes, "1G is checked as 2M");
    map.on(change(9, SMALL)).unwrap();
    assert_eq!(check(&map, 8, write, hard), HostAccess::Bytes);
    assert_eq!(check(&map, 9, write, hard), fault(SMALL));
    assert_eq!(check(&map, 9, write, Protection::Software), HostAccess::Bytes);
    map.set_invalid(guest, 1);
    assert_eq!(check(&map, 9, read, Protection::Software), HostAccess::NotMapped);
    assert_eq!(check(&map, 4 * G1, read, hard), HostAccess::NotMapped);
}

fn set(present: &mut [bool], first: u64, from: u64, count: u64, on: bool) {
    for frame in from.max(first)..(from + count).min(first + present.len() as u64) {
        present[(frame - first) as usize] = on;
    }
}

proptest! {
    /// Every operation against one bit for each frame, and the counters against a recount.
    #[test]
    fn agrees_with_an_array(
        policy in 0_usize..4, first in 0_u64..2 * M2, nr in 1_u64..G1 + 3 * M2,
        steps in prop::collection::vec((0_u8..7, 0_u64..G1 + 5 * M2, 0_u64..3 * M2, 0_usize..2), 1..30),
    ) {
        let mut map = DirectMap::new(Sfn::new(first), nr, DirectMapPolicy::ALL[policy]);
        let boot = map.entries();
        let mut present = vec![true; nr as usize];
        for (what, at, count, size) in steps {
            let size = PageSize::ALL[size];
            let block = Sfn::new(at).align_down(size);
            match what {
                0 => {
                    map.split(Sfn::new(at), size);
                }
                1 => {
                    map.collapse(Sfn::new(at), count);
                }
                2 => {
                    map.set_invalid(Sfn::new(at), count);
                    set(&mut present, first, at, count, false);
                }
                3 => {
                    map.set_default(Sfn::new(at), count);
                    set(&mut present, first, at, count, true);
                }
                4 => {
                    let done = map.on(Event::Change { block, size });
                    prop_assert_eq!(done.is_err(), map.policy() == DirectMapPolicy::Refuse && size == SMALL);
                    if map.policy() == DirectMapPolicy::Unmap {
                        set(&mut present, first, block.raw(), size.frames(), false);
                    }
                }
                5 => prop_assert!(map.on(Event::Uniform { block, size }).is_ok(), "nothing to refuse"),
                _ => {
                    map.on(Event::Release { first: Sfn::new(at), nr_frames: count }).unwrap();
                    if map.policy() == DirectMapPolicy::Unmap {
                        set(&mut present, first, at, count, true);
                    }
                }
            }
            let (mut frame, mut entries) = (first, [0_u64; 3]);
            while frame < first + nr {
                let found = map.lookup(Sfn::new(frame));
                let step = found.unwrap_or(SMALL).frames();
                prop_assert!(frame.is_multiple_of(step), "an entry is aligned");
                if let Some(size) = found {
                    entries[size.index()] += 1;
                }
                let seen = &present[(frame - first) as usize..(frame - first + step) as usize];
                prop_assert!(seen.iter().all(|&bit| bit == found.is_some()));
                frame += step;
            }
            prop_assert_eq!(entries, map.entries());
            let small = map.gibs.values().flat_map(|gib| &gib.blocks).filter(|block| matches!(block, Block::Small(_)));
            prop_assert_eq!(map.page_tables, small.count() as u64);
        }
        // With nothing removed and nobody deviating, all is as it was after boot, or larger than it was.
        map.set_default(Sfn::new(0), 2 * G1);
        map.on(Event::Release { first: Sfn::new(0), nr_frames: 2 * G1 }).unwrap();
        map.collapse(Sfn::new(0), 2 * G1);
        prop_assert_eq!(map.entries(), boot);
    }
}
