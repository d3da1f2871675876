//! Random lives of inodes against a naive model. After every step the books must balance: bindings, page cache,
//! references, frames and reservations.

use std::collections::BTreeMap;
use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{Gfn, PageSize, Sfn};
use gmem::inode::CreateInfo;
use gmem::{
    BindError, ConvertError, FolioPolicy, GetError, GmemFlags, GmemPolicy, GuestMemfd, Host, HostConfig, HostMemory,
    HugeSize, PageIndex, PageRange, Shareability, SlotId,
};
use proptest::prelude::*;
use proptest::sample::Index;

const QUIET: &Task<'static> = &Task::QUIET;
const M2: u64 = PageSize::Size2M.frames();
const ARENA_FRAMES: u64 = 24 * M2;
const POOL_PAGES: u64 = 4;

#[derive(Clone, Debug)]
enum Op {
    Create { policy: u8, size: u64 },
    Write { inode: Index, page: Index, value: u8 },
    Read { inode: Index, page: Index },
    Allocate { inode: Index, first: Index, nr_pages: u64 },
    Punch { inode: Index, first: Index, nr_pages: u64 },
    Bind { inode: Index, slot: u16, first: Index, nr_pages: u64 },
    Unbind { inode: Index, which: Index },
    Pin { inode: Index, page: Index },
    Unpin { which: Index },
    Destroy { inode: Index },
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    let span = prop_oneof![1_u64..8, Just(M2), Just(M2 + 3), Just(2 * M2)];
    prop_oneof![
        2 => (0_u8..3, 1_u64..4).prop_map(|(policy, size)| Op::Create { policy, size }),
        6 => (index(), index(), any::<u8>()).prop_map(|(inode, page, value)| Op::Write { inode, page, value }),
        4 => (index(), index()).prop_map(|(inode, page)| Op::Read { inode, page }),
        1 => (index(), index(), span.clone())
            .prop_map(|(inode, first, nr_pages)| Op::Allocate { inode, first, nr_pages }),
        4 => (index(), index(), span.clone()).prop_map(|(inode, first, nr_pages)| Op::Punch { inode, first, nr_pages }),
        2 => (index(), 0_u16..4, index(), span)
            .prop_map(|(inode, slot, first, nr_pages)| Op::Bind { inode, slot, first, nr_pages }),
        1 => (index(), index()).prop_map(|(inode, which)| Op::Unbind { inode, which }),
        2 => (index(), index()).prop_map(|(inode, page)| Op::Pin { inode, page }),
        2 => index().prop_map(|which| Op::Unpin { which }),
        1 => index().prop_map(|inode| Op::Destroy { inode }),
    ]
}

/// What an inode must look like: the first byte of each written page, and the bindings.
struct Model {
    inode: GuestMemfd,
    nr_pages: u64,
    bytes: BTreeMap<u64, u8>,
    bindings: Vec<(u64, u64, SlotId)>,
    pins: u64,
}

/// A page held by the host: which inode, where, and what it showed when its index was removed.
struct Pin {
    inode: usize,
    sfn: Sfn,
    index: u64,
    frozen: Option<u8>,
}

struct World {
    memory: Arc<SystemMemory>,
    host: Host,
    inodes: Vec<Option<Model>>,
    pins: Vec<Pin>,
}

impl World {
    fn new() -> World {
        let memory = SystemMemory::flat(ARENA_FRAMES << 12).unwrap();
        let config = HostConfig {
            first: Sfn::new(16),
            nr_frames: ARENA_FRAMES - 16,
            pools: vec![(HugeSize::Size2M, POOL_PAGES)],
        };
        let host = Host::new(HostMemory::new(Arc::clone(&memory), &config).unwrap());
        World { memory, host, inodes: Vec::new(), pins: Vec::new() }
    }

    fn pick(&self, inode: Index) -> Option<usize> {
        let alive: Vec<usize> = (0..self.inodes.len()).filter(|&n| self.inodes[n].is_some()).collect();
        (!alive.is_empty()).then(|| alive[inode.index(alive.len())])
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Create { policy, size } => self.create(policy, size),
            Op::Unpin { which } if !self.pins.is_empty() => self.unpin(which.index(self.pins.len())),
            Op::Unpin { .. } => {}
            Op::Write { inode, page, value } => self.with(inode, |m, host, _, _| {
                let page = page.index(m.nr_pages as usize) as u64;
                if let Ok(backed) = m.inode.shared(QUIET).get_folio(host, PageIndex(page), QUIET) {
                    host.lock(QUIET).memory().store(backed.sfn.base(), value).unwrap();
                    m.bytes.insert(page, value);
                }
            }),
            Op::Read { inode, page } => self.with(inode, |m, host, _, _| {
                let page = page.index(m.nr_pages as usize) as u64;
                if let Ok(backed) = m.inode.shared(QUIET).get_folio(host, PageIndex(page), QUIET) {
                    let seen: u8 = host.lock(QUIET).memory().load(backed.sfn.base()).unwrap();
                    assert_eq!(
                        seen,
                        m.bytes.get(&page).copied().unwrap_or(0),
                        "page {page} shows what was written or zero"
                    );
                }
            }),
            Op::Allocate { inode, first, nr_pages } => self.with(inode, |m, host, _, _| {
                let first = first.index(m.nr_pages as usize) as u64;
                let range = PageRange { first: PageIndex(first), nr_pages };
                match m.inode.shared(QUIET).allocate(host, range, QUIET) {
                    Ok(()) => assert!(
                        (first..first + nr_pages).all(|i| m.inode.peek(PageIndex(i), QUIET).is_some()),
                        "every index has a folio"
                    ),
                    Err(GetError::BeyondEnd { .. }) => assert!(first + nr_pages > m.nr_pages),
                    Err(error) => assert!(matches!(error, GetError::NoFolio { .. })),
                }
            }),
            Op::Punch { inode, first, nr_pages } => self.with(inode, |m, host, pins, at| {
                let first = first.index(m.nr_pages as usize) as u64;
                punch(m, host, pins, at, first, nr_pages);
            }),
            Op::Bind { inode, slot, first, nr_pages } => self.with(inode, |m, _, _, _| {
                let first = first.index(m.nr_pages as usize) as u64;
                let end = first + nr_pages;
                let free = m.bindings.iter().all(|&(b, e, _)| end <= b || e <= first);
                let range = PageRange { first: PageIndex(first), nr_pages };
                let bound = m.inode.exclusive(QUIET).bind(SlotId(slot), range, Gfn::new(1 << 20));
                match bound {
                    Ok(()) => {
                        assert!(free && end <= m.nr_pages, "bindings are disjoint and inside the inode");
                        m.bindings.push((first, end, SlotId(slot)));
                    }
                    Err(BindError::OutOfBounds { .. }) => assert!(end > m.nr_pages),
                    Err(BindError::Overlap { .. }) => assert!(!free),
                    Err(BindError::Misaligned { .. }) => unreachable!("the order rule binds anything"),
                }
            }),
            Op::Unbind { inode, which } => self.with(inode, |m, _, _, _| {
                if !m.bindings.is_empty() {
                    let (first, ..) = m.bindings.swap_remove(which.index(m.bindings.len()));
                    m.inode.exclusive(QUIET).unbind(PageIndex(first));
                }
            }),
            Op::Pin { inode, page } => self.with(inode, |m, host, pins, at| {
                let index = page.index(m.nr_pages as usize) as u64;
                if let Ok(sfn) = m.inode.shared(QUIET).get_page(host, PageIndex(index), QUIET) {
                    m.pins += 1;
                    pins.push(Pin { inode: at, sfn, index, frozen: None });
                }
            }),
            Op::Destroy { inode } => {
                let Some(at) = self.pick(inode) else { return };
                let idle = self.inodes[at].as_ref().is_some_and(|m| m.bindings.is_empty() && m.pins == 0);
                if let Some(m) = self.inodes[at].take_if(|_| idle) {
                    m.inode.destroy(&self.host, QUIET);
                }
            }
        }
    }

    fn with(&mut self, inode: Index, f: impl FnOnce(&mut Model, &Host, &mut Vec<Pin>, usize)) {
        let Some(at) = self.pick(inode) else { return };
        if let Some(m) = &mut self.inodes[at] {
            f(m, &self.host, &mut self.pins, at);
        }
    }

    fn create(&mut self, policy: u8, size: u64) {
        let (policy, nr_pages) = match policy {
            0 => (FolioPolicy::Buddy { largest: PageSize::Size4K }, size * 100),
            1 => (FolioPolicy::Buddy { largest: PageSize::Size2M }, size * M2 + 7),
            _ => (FolioPolicy::Pool { size: HugeSize::Size2M }, size * M2),
        };
        let pooled = matches!(policy, FolioPolicy::Pool { .. });
        let fits = !pooled || size <= self.host.lock(QUIET).pool(HugeSize::Size2M).available();
        let before = self.host.lock(QUIET).stats();
        let info = CreateInfo {
            size_bytes: nr_pages << 12,
            flags: GmemFlags::INIT_SHARED.bits(),
            policy,
            gmem: GmemPolicy::DEFAULT,
        };
        match GuestMemfd::create(&self.host, info, QUIET) {
            Ok(inode) => {
                assert!(fits, "a reservation needs unpromised pages");
                let model = Model { inode, nr_pages, bytes: BTreeMap::new(), bindings: Vec::new(), pins: 0 };
                self.inodes.push(Some(model));
            }
            Err(_) => {
                assert!(
                    !fits && self.host.lock(QUIET).stats() == before,
                    "refused only for want of pages, and without a trace"
                )
            }
        }
    }

    fn unpin(&mut self, which: usize) {
        let pin = self.pins.swap_remove(which);
        let m = self.inodes[pin.inode].as_mut().expect("pins keep an inode from being destroyed");
        if let Some(byte) = pin.frozen {
            let seen: u8 = self.memory.load(pin.sfn.base()).unwrap();
            assert_eq!(seen, byte, "a removed page keeps its bytes for who holds it");
        }
        m.pins -= 1;
        m.inode.put_page(&self.host, pin.sfn, QUIET);
    }

    fn check(&self) {
        let mut cached: BTreeMap<Sfn, PageSize> = BTreeMap::new();
        for (at, m) in self.inodes.iter().enumerate() {
            let Some(m) = m else { continue };
            let mut last_end = 0;
            for (index, head, size) in m.inode.list(QUIET) {
                assert!(
                    index.0.is_multiple_of(size.frames()) && head.is_aligned(size),
                    "a folio is aligned in both spaces"
                );
                assert!(index.0 >= last_end && index.0 + size.frames() <= m.nr_pages, "folios do not overlap");
                last_end = index.0 + size.frames();
                assert_eq!(cached.insert(head, size), None, "a frame backs one index");
                let host = self.host.lock(QUIET);
                let folio = host.folios().get(head).expect("a cached folio is in use");
                let pinned = self.pins.iter().filter(|p| head <= p.sfn && p.sfn.raw() < head.raw() + size.frames());
                assert_eq!(
                    folio.meta.refs as u64,
                    size.frames() + pinned.count() as u64,
                    "page cache and pins, nothing else"
                );
            }
            let bound = |index: u64| m.bindings.iter().find(|b| b.0 <= index && index < b.1).map(|b| b.2);
            for &(first, end, slot) in &m.bindings {
                for index in [first, end - 1, end, first.saturating_sub(1)] {
                    let shared = m.inode.shared(QUIET);
                    assert_eq!(shared.slot_at(PageIndex(index)), bound(index), "the binding at {index} of inode {at}");
                    assert_eq!(
                        shared.is_bound_to(slot, PageIndex(first), PageIndex(index)),
                        bound(index) == Some(slot),
                        "whether {index} of inode {at} is bound to {slot:?}"
                    );
                }
            }
        }
        // Whatever is in use and in no cache is held by a pin; nothing leaks, nothing overlaps.
        let mut end = Sfn::new(0);
        let mut in_use = [0_u64; 2];
        let host = self.host.lock(QUIET);
        for folio in host.folios().iter() {
            assert!(folio.head >= end, "folios overlap");
            end = Sfn::new(folio.head.raw() + folio.size.frames());
            let held = self.pins.iter().any(|p| folio.head <= p.sfn && p.sfn < end);
            assert!(cached.contains_key(&folio.head) || held, "leaked {folio:?}");
            in_use[usize::from(folio.size == PageSize::Size2M)] += 1;
        }
        let stats = host.stats();
        let pool = stats.pools[0];
        let in_use_frames = in_use[0] + in_use[1] * M2;
        assert_eq!(stats.free_frames + pool.free * M2 + in_use_frames, stats.nr_frames, "frames are conserved");
        assert_eq!((pool.nr, pool.surplus), (POOL_PAGES, 0), "the pool keeps its size");
        assert!(pool.resv <= pool.free, "promises are covered by free pages");
    }
}

fn punch(m: &mut Model, host: &Host, pins: &mut [Pin], at: usize, first: u64, nr_pages: u64) {
    let end = (first + nr_pages).min(m.nr_pages);
    for pin in pins.iter_mut().filter(|p| p.inode == at && p.frozen.is_none()) {
        let folio = m.inode.peek(PageIndex(pin.index), QUIET).expect("a pinned index is populated until it is removed");
        let head = pin.index & !(folio.size.frames() - 1);
        if first <= head && head + folio.size.frames() <= end {
            pin.frozen = Some(m.bytes.get(&pin.index).copied().unwrap_or(0));
        }
    }
    let range = PageRange { first: PageIndex(first), nr_pages };
    let exclusive = m.inode.exclusive(QUIET);
    let told: u64 = exclusive.bound(range).iter().map(|b| b.nr_pages).sum();
    let expected: u64 = m.bindings.iter().map(|b| b.1.min(end).saturating_sub(b.0.max(first))).sum();
    assert_eq!(told, expected, "every bound page of the hole is to be zapped");
    exclusive.remove(host, range, QUIET);
    drop(exclusive);
    m.bytes.retain(|&page, _| page < first || page >= end);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn random_lives_keep_the_books(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
            world.check();
        }
        while !world.pins.is_empty() {
            world.unpin(0);
        }
        for m in world.inodes.drain(..).flatten() {
            for (first, ..) in m.bindings {
                m.inode.exclusive(QUIET).unbind(PageIndex(first));
            }
            m.inode.destroy(&world.host, QUIET);
        }
        prop_assert_eq!(world.host.lock(QUIET).stats(), World::new().host.lock(QUIET).stats(), "everything is back");
    }
}

#[test]
fn a_removed_page_lives_on_for_its_holder_and_its_index_starts_anew() {
    let mut world = World::new();
    world.create(2, 1);
    let m = world.inodes[0].as_mut().unwrap();
    let held = m.inode.shared(QUIET).get_page(&world.host, PageIndex(3), QUIET).unwrap();
    world.host.lock(QUIET).memory().store(held.base(), 0x5a_u8).unwrap();
    punch(m, &world.host, &mut [], 0, 0, M2);
    assert!(
        matches!(m.inode.shared(QUIET).get_folio(&world.host, PageIndex(3), QUIET), Err(GetError::NoFolio { .. })),
        "the one page of the reservation is still out"
    );
    assert_eq!(world.memory.load::<u8>(held.base()), Ok(0x5a));
    m.inode.put_page(&world.host, held, QUIET);
    let anew = m.inode.shared(QUIET).get_folio(&world.host, PageIndex(3), QUIET).unwrap();
    assert_eq!(world.memory.load::<u8>(anew.sfn.base()), Ok(0));
}

#[test]
fn private_pages_are_not_for_the_host() {
    let world = World::new();
    let policy = FolioPolicy::Buddy { largest: PageSize::Size4K };
    let info = CreateInfo { size_bytes: 0x2000, flags: 0, policy, gmem: GmemPolicy::DEFAULT };
    let inode = GuestMemfd::create(&world.host, info, QUIET).unwrap();
    let refused = inode.shared(QUIET).get_page(&world.host, PageIndex(1), QUIET);
    assert_eq!(refused, Err(GetError::Private { index: PageIndex(1) }));
    assert!(inode.peek(PageIndex(1), QUIET).is_none());
    inode.destroy(&world.host, QUIET);
}

#[test]
fn a_page_that_the_host_holds_cannot_become_private() {
    let mut world = World::new();
    world.create(2, 2);
    let m = world.inodes[0].as_mut().unwrap();
    let range = |first, nr_pages| PageRange { first: PageIndex(first), nr_pages };
    let held = m.inode.shared(QUIET).get_page(&world.host, PageIndex(M2 + 9), QUIET).unwrap();
    let plan = |m: &Model, host: &Host, range, to| {
        m.inode.exclusive(QUIET).plan_conversion(host, range, to, QUIET).map(|c| c.is_some())
    };
    let private = Shareability::PRIVATE;
    let busy = |index| Err(ConvertError::Busy { index: PageIndex(index) });
    assert_eq!(plan(m, &world.host, range(0, 2 * M2), private), busy(M2), "the folio's first page");
    assert_eq!(plan(m, &world.host, range(M2 + 3, 1), private), busy(M2 + 3), "references are the folio's");
    assert_eq!(plan(m, &world.host, range(0, M2), private), Ok(true));
    assert_eq!(plan(m, &world.host, range(0, 2 * M2), Shareability::SHARED), Ok(false), "nothing to do");
    assert!(matches!(plan(m, &world.host, range(1, 2 * M2), private), Err(ConvertError::OutOfBounds { .. })));
    assert!(matches!(plan(m, &world.host, range(1, 0), private), Err(ConvertError::OutOfBounds { .. })));
    m.inode.put_page(&world.host, held, QUIET);
    let exclusive = m.inode.exclusive(QUIET);
    let conversion = exclusive.plan_conversion(&world.host, range(0, 2 * M2), private, QUIET).unwrap().unwrap();
    exclusive.convert(&world.host, &conversion, QUIET).unwrap();
    drop(exclusive);
    assert_eq!(plan(m, &world.host, range(0, 2 * M2), private), Ok(false));
    let refused = m.inode.shared(QUIET).get_page(&world.host, PageIndex(0), QUIET);
    assert_eq!(refused, Err(GetError::Private { index: PageIndex(0) }));
    punch(m, &world.host, &mut [], 0, 0, 2 * M2);
    assert!(
        m.inode.attributes(QUIET).is_uniform(0, 2 * M2) && m.inode.attribute(PageIndex(0), QUIET).is_private(),
        "removal says nothing about who may use a page"
    );
}
