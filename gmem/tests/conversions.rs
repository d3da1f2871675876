//! Random histories of one inode over every policy of splitting, holes and sharing, against a model that keeps one byte,
//! one attribute and one list of holders for each page. After each step: the bytes that users may see, the shape of the
//! folios that the attributes want, the references, and nothing changed by what was refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};
use gmem::host::HostStats;
use gmem::{
    ConvertError, CreateInfo, FolioPolicy, FrameRange, GetError, GmemFlags, GmemPolicy, GuestMemfd, Host, HostLayout,
    HostMemory, HugeSize, PageIndex, PageRange, PunchPolicy, Shareability, SharedFolios, SplitPolicy, VmemmapMode,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};

const QUIET: &Task<'static> = &Task::QUIET;
const M2: u64 = PageSize::Size2M.frames();
const G1: u64 = PageSize::Size1G.frames();

#[derive(Clone, Debug)]
enum Op {
    Write { page: u64, value: u8 },
    Read { page: u64 },
    Convert { first: u64, nr_pages: u64, private: bool },
    Punch { first: u64, nr_pages: u64 },
    Hold { page: u64, pin: bool },
    Release { which: Index },
    Fill { first: u64, nr_pages: u64 },
    Scarce { leave: u64 },
    Plenty,
}

/// Pages where something happens at the edges of 4K, 2M and 1G.
fn page(nr_pages: u64) -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0_u64), Just(1), Just(7), Just(M2 / 2), Just(M2 - 1)];
    let blocks = nr_pages / M2;
    (prop_oneof![0..blocks.min(2), Just(blocks / 2), Just(blocks - 1)], near)
        .prop_map(move |(block, near)| (block * M2 + near).min(nr_pages - 1))
}

fn op(nr_pages: u64) -> impl Strategy<Value = Op> {
    let length = || prop_oneof![Just(1_u64), Just(2), Just(M2 / 2), Just(M2), Just(M2 + 1), Just(2 * M2), Just(G1)];
    prop_oneof![
        4 => (page(nr_pages), 1_u8..255).prop_map(|(page, value)| Op::Write { page, value }),
        2 => page(nr_pages).prop_map(|page| Op::Read { page }),
        8 => (page(nr_pages), length(), any::<bool>())
            .prop_map(|(first, nr_pages, private)| Op::Convert { first, nr_pages, private }),
        3 => (page(nr_pages), length()).prop_map(|(first, nr_pages)| Op::Punch { first, nr_pages }),
        3 => (page(nr_pages), any::<bool>()).prop_map(|(page, pin)| Op::Hold { page, pin }),
        3 => any::<Index>().prop_map(|which| Op::Release { which }),
        1 => (page(nr_pages), length()).prop_map(|(first, nr_pages)| Op::Fill { first, nr_pages }),
        1 => prop_oneof![Just(0_u64), Just(6), Just(7), Just(4000)].prop_map(|leave| Op::Scarce { leave }),
        1 => Just(Op::Plenty),
    ]
}

/// What an inode is made of.
#[derive(Clone, Copy, Debug)]
struct Setup {
    unit: PageSize,
    source: Source,
    init_shared: bool,
    policy: GmemPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Pool,
    Buddy,
}

fn setup() -> impl Strategy<Value = Setup> {
    let unit = prop_oneof![3 => Just(PageSize::Size2M), 1 => Just(PageSize::Size1G)];
    let split =
        select(vec![SplitPolicy::EagerIntermediate, SplitPolicy::Eager4K, SplitPolicy::Lazy, SplitPolicy::Always4K]);
    let shared = select(vec![SharedFolios::Split, SharedFolios::WholeIfInitShared, SharedFolios::Whole]);
    let punch = select(vec![PunchPolicy::ZeroPartial, PunchPolicy::Refuse, PunchPolicy::SplitAndFree]);
    let source = select(vec![Source::Pool, Source::Buddy]);
    (unit, source, any::<bool>(), split, shared, punch).prop_map(|(unit, source, init_shared, split, shared, punch)| {
        Setup { unit, source, init_shared, policy: GmemPolicy { split, shared, punch, ..GmemPolicy::DEFAULT } }
    })
}

fn histories() -> impl Strategy<Value = (Setup, Vec<Op>)> {
    setup().prop_flat_map(|setup| {
        let (nr_pages, most) = if setup.unit == PageSize::Size1G { (G1, 12) } else { (3 * M2, 40) };
        (Just(setup), prop::collection::vec(op(nr_pages), 1..most))
    })
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    page: u64,
    sfn: Sfn,
    pin: bool,
    /// Whether the page cache still has it.
    cached: bool,
    /// What it must show once it is removed.
    shows: u8,
}

struct World {
    setup: Setup,
    memory: Arc<SystemMemory>,
    host: Host,
    inode: GuestMemfd,
    nr_pages: u64,
    bytes: BTreeMap<u64, u8>,
    /// Whether each page is private.
    private: Vec<bool>,
    holds: Vec<Hold>,
    fresh: HostStats,
}

type Digest = (Vec<(PageIndex, Sfn, PageSize)>, Vec<(u64, u64, Shareability)>, [u64; 3], u64);

impl World {
    fn new(setup: Setup) -> World {
        let nr_frames = 2 * G1 + 16 * M2;
        let memory = SystemMemory::flat(nr_frames << 12).unwrap();
        let units = if setup.unit == PageSize::Size1G { 1 } else { 3 };
        let layout = HostLayout {
            nodes: vec![FrameRange { first: Sfn::new(M2), nr_frames: nr_frames - M2 }],
            cma: Vec::new(),
            pools: vec![(HugeSize::of(setup.unit).unwrap(), units)],
            vmemmap: VmemmapMode::Optimise,
        };
        let host = Host::new(HostMemory::with_layout(Arc::clone(&memory), &layout).unwrap());
        let fresh = host.lock(QUIET).stats();
        let nr_pages = units * setup.unit.frames();
        let policy = match setup.source {
            Source::Pool => FolioPolicy::Pool { size: HugeSize::of(setup.unit).unwrap() },
            Source::Buddy => FolioPolicy::Buddy { largest: setup.unit },
        };
        let flags = if setup.init_shared { GmemFlags::INIT_SHARED } else { GmemFlags::empty() };
        let info = CreateInfo { size_bytes: nr_pages << 12, flags: flags.bits(), policy, gmem: setup.policy };
        let inode = GuestMemfd::create(&host, info, QUIET).unwrap();
        let private = vec![!setup.init_shared; nr_pages as usize];
        World { setup, memory, host, inode, nr_pages, bytes: BTreeMap::new(), private, holds: Vec::new(), fresh }
    }

    fn digest(&self) -> Digest {
        let attributes = self.inode.attributes(QUIET).runs().collect();
        let free = self.host.lock(QUIET).stats().free_frames;
        (self.inode.list(QUIET), attributes, self.inode.folios(QUIET), free)
    }

    /// Whether a block must not be one folio, by the rules in words.
    fn needs_split(&self, base: u64, size: PageSize) -> bool {
        let pages = &self.private[base as usize..(base + size.frames()) as usize];
        let (any_shared, any_private) = (pages.contains(&false), pages.contains(&true));
        let whole_shared = match self.setup.policy.shared {
            SharedFolios::Split => false,
            SharedFolios::WholeIfInitShared => self.setup.init_shared,
            SharedFolios::Whole => true,
        };
        self.setup.policy.split == SplitPolicy::Always4K || any_shared && (any_private || !whole_shared)
    }

    fn get(&self, page: u64) -> Option<Sfn> {
        match self.inode.shared(QUIET).get_folio(&self.host, PageIndex(page), QUIET) {
            Ok(backed) => Some(backed.sfn),
            Err(error) => {
                self.expect_short(&error);
                None
            }
        }
    }

    /// Refusals that want of memory, or of a page that is still held, explains.
    fn expect_short(&self, error: &GetError) {
        let scarce = self.host.lock(QUIET).stats().occupied_frames > 0;
        let held = self.holds.iter().any(|hold| !hold.cached);
        assert!(scarce || held, "{error} while nothing is scarce");
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { page, value } => {
                if let Some(sfn) = self.get(page) {
                    self.memory.store(sfn.base(), value).unwrap();
                    self.bytes.insert(page, value);
                }
            }
            Op::Read { page } => {
                if let Some(sfn) = self.get(page) {
                    let seen: u8 = self.memory.load(sfn.base()).unwrap();
                    assert_eq!(seen, self.bytes.get(&page).copied().unwrap_or(0), "page {page}");
                }
            }
            Op::Convert { first, nr_pages, private } => self.convert(first, nr_pages, private),
            Op::Punch { first, nr_pages } => self.punch(first, nr_pages),
            Op::Hold { page, pin } => self.hold(page, pin),
            Op::Release { which } if !self.holds.is_empty() => self.release(which.index(self.holds.len())),
            Op::Release { .. } => {}
            Op::Fill { first, nr_pages } => {
                let nr_pages = nr_pages.min(self.nr_pages - first);
                let range = PageRange { first: PageIndex(first), nr_pages };
                match self.inode.shared(QUIET).allocate(&self.host, range, QUIET) {
                    Ok(()) => {
                        let all = (first..first + nr_pages).all(|at| self.inode.peek(PageIndex(at), QUIET).is_some());
                        assert!(all, "B16: every index has a folio");
                    }
                    Err(error) => self.expect_short(&error),
                }
            }
            Op::Scarce { leave } => {
                let mut host = self.host.lock(QUIET);
                let free = host.stats().free_frames;
                host.occupy(free.saturating_sub(leave));
            }
            Op::Plenty => {
                self.host.lock(QUIET).vacate(u64::MAX);
            }
        }
    }

    fn convert(&mut self, first: u64, nr_pages: u64, private: bool) {
        let nr_pages = nr_pages.min(self.nr_pages - first);
        let end = first + nr_pages;
        let range = PageRange { first: PageIndex(first), nr_pages };
        let to = if private { Shareability::PRIVATE } else { Shareability::SHARED };
        let before = self.digest();
        // C5: the first page of the range in a folio that has a shared page of it and a holder.
        let busy = before.0.iter().find_map(|&(index, head, size)| {
            let held = |hold: &Hold| head <= hold.sfn && hold.sfn.raw() < head.raw() + size.frames();
            let (from, to) = (index.0.max(first), (index.0 + size.frames()).min(end));
            let shared = from < to && self.private[from as usize..to as usize].contains(&false);
            (shared && self.holds.iter().any(held)).then_some(from)
        });
        let done = {
            let exclusive = self.inode.exclusive(QUIET);
            match exclusive.plan_conversion(&self.host, range, to, QUIET) {
                Ok(Some(conversion)) => exclusive.convert(&self.host, &conversion, QUIET).map(|()| true),
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let changes = self.private[first as usize..end as usize].contains(&!private);
        match done {
            Ok(changed) => {
                assert_eq!(changed, changes, "C7: what is in its state already is left alone");
                assert!(!private || busy.is_none(), "C4: a page with a holder became private");
                self.private[first as usize..end as usize].fill(private);
                if changed {
                    self.check_merged(first, end);
                } else {
                    assert_eq!(self.digest(), before);
                }
            }
            Err(ConvertError::Busy { index }) => {
                let Some(at) = busy.filter(|_| private) else { panic!("nobody holds {index:?}") };
                let folio = before.0.iter().find(|f| f.0.0 <= at && at < f.0.0 + f.2.frames()).unwrap();
                assert!(folio.0.0.max(first) <= index.0 && index.0 < folio.0.0 + folio.2.frames());
                assert_eq!(self.digest(), before, "C6");
            }
            Err(ConvertError::Split { cause, .. }) => {
                let scarce = self.host.lock(QUIET).stats().occupied_frames > 0;
                assert!(scarce, "{cause}");
                assert_eq!(self.digest(), before, "F12: a split that fails leaves no trace");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// F13: what may be one folio again is one, unless a piece is missing or held.
    fn check_merged(&self, first: u64, end: u64) {
        let unit = self.setup.unit;
        if self.setup.policy.split == SplitPolicy::Always4K {
            return;
        }
        for base in (first & !(unit.frames() - 1)..end).step_by(unit.frames() as usize) {
            let inside = |index: u64| base <= index && index < base + unit.frames();
            let folios: Vec<_> = self.inode.list(QUIET).into_iter().filter(|f| inside(f.0.0)).collect();
            let complete = folios.iter().map(|f| f.2.frames()).sum::<u64>() == unit.frames();
            let one_unit = folios.windows(2).all(|w| w[0].1.raw() + w[0].2.frames() == w[1].1.raw())
                && self.setup.source == Source::Pool;
            let held = self.holds.iter().any(|hold| inside(hold.page));
            if complete && one_unit && !held && !self.needs_split(base, unit) {
                assert_eq!(folios.len(), 1, "the unit at {base} is not one folio again");
            }
        }
    }

    fn punch(&mut self, first: u64, nr_pages: u64) {
        let range = PageRange { first: PageIndex(first), nr_pages };
        let exclusive = self.inode.exclusive(QUIET);
        let end = (first + nr_pages).min(self.nr_pages);
        let aligned = first.is_multiple_of(self.setup.unit.frames())
            && (end == self.nr_pages || end.is_multiple_of(self.setup.unit.frames()));
        let refused = exclusive.check_hole(&self.host, range, QUIET).is_err();
        assert_eq!(refused, self.setup.policy.punch == PunchPolicy::Refuse && !aligned);
        if refused {
            return;
        }
        exclusive.remove(&self.host, range, QUIET);
        drop(exclusive);
        for hold in self.holds.iter_mut().filter(|hold| hold.cached) {
            let now = self.inode.peek(PageIndex(hold.page), QUIET).map(|backed| backed.sfn);
            if now != Some(hold.sfn) {
                hold.cached = false;
                hold.shows = self.bytes.get(&hold.page).copied().unwrap_or(0);
            }
        }
        self.bytes.retain(|&page, _| page < first || page >= end);
    }

    fn hold(&mut self, page: u64, pin: bool) {
        let shared = self.inode.shared(QUIET);
        let got = match pin {
            true => shared.pin_page(&self.host, PageIndex(page), QUIET),
            false => shared.get_page(&self.host, PageIndex(page), QUIET),
        };
        drop(shared);
        match got {
            Ok(sfn) => {
                assert!(!self.private[page as usize], "C3");
                self.holds.push(Hold { page, sfn, pin, cached: true, shows: 0 });
            }
            Err(GetError::Private { .. }) => assert!(self.private[page as usize]),
            Err(error) => self.expect_short(&error),
        }
    }

    fn release(&mut self, which: usize) {
        let hold = self.holds.swap_remove(which);
        if !hold.cached {
            let seen: u8 = self.memory.load(hold.sfn.base()).unwrap();
            assert_eq!(seen, hold.shows, "B14: who holds a removed page sees its old bytes");
        }
        match hold.pin {
            true => self.inode.unpin_page(&self.host, hold.sfn, QUIET),
            false => self.inode.put_page(&self.host, hold.sfn, QUIET),
        }
    }

    fn check(&self) {
        let list = self.inode.list(QUIET);
        let host = self.host.lock(QUIET);
        let mut last = 0;
        for &(index, head, size) in &list {
            assert!(index.0 >= last && index.0.is_multiple_of(size.frames()) && head.is_aligned(size), "B1");
            last = index.0 + size.frames();
            if size == PageSize::Size4K && self.setup.unit == PageSize::Size1G && !index.0.is_multiple_of(61) {
                // A sample of the many.
                continue;
            }
            let folio = host.folios().get(head).expect("B8: a cached folio is in use");
            assert_eq!((folio.head, folio.size), (head, size));
            let inside = |hold: &&Hold| head <= hold.sfn && hold.sfn.raw() < head.raw() + size.frames();
            let expected: u64 = size.frames()
                + self
                    .holds
                    .iter()
                    .filter(inside)
                    .map(|hold| if hold.pin && size == PageSize::Size4K { 1024 } else { 1 })
                    .sum::<u64>();
            assert_eq!(u64::from(folio.meta.refs), expected, "B5 of {index:?}");
            if self.setup.policy.split != SplitPolicy::Lazy && size > PageSize::Size4K {
                assert!(!self.needs_split(index.0, size), "a folio of {size} at {index:?} has to be split");
            }
        }
        // F16: at 4K is only what has to be, in inodes that split by levels and whose pieces nobody took or holds.
        for page in [0, 1, 7, M2 / 2, M2 - 1, M2, self.nr_pages - 1] {
            if let Some(backed) = self.inode.peek(PageIndex(page), QUIET) {
                let seen: u8 = self.memory.load(backed.sfn.base()).unwrap();
                assert_eq!(seen, self.bytes.get(&page).copied().unwrap_or(0), "B12, C11: page {page}");
            }
        }
        let attributes = self.inode.attributes(QUIET);
        for (first, nr_pages, state) in attributes.runs() {
            let same =
                self.private[first as usize..(first + nr_pages) as usize].iter().all(|&p| p == state.is_private());
            assert!(same, "C1, C2");
        }
        let pool = host.pool(HugeSize::of(self.setup.unit).unwrap()).stats();
        assert!(pool.resv <= pool.free, "F2");
    }

    /// Ends the inode while holds are out, then drops them: all is as it was before (F7, F8).
    fn end(mut self) {
        self.host.lock(QUIET).vacate(u64::MAX);
        self.inode.destroy(&self.host, QUIET);
        for hold in self.holds.drain(..) {
            match hold.pin {
                true => self.inode.unpin_page(&self.host, hold.sfn, QUIET),
                false => self.inode.put_page(&self.host, hold.sfn, QUIET),
            }
        }
        let stats = self.host.lock(QUIET).stats();
        let back =
            |stats: &HostStats| (stats.free_frames, stats.folios, stats.pools, stats.split_units, stats.waiting_frames);
        assert_eq!(back(&stats), back(&self.fresh), "F4: everything is back");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]
    #[test]
    fn histories_of_one_inode_keep_bytes_shapes_and_references((setup, ops) in histories()) {
        let mut world = World::new(setup);
        for op in &ops {
            world.step(op);
            world.check();
        }
        world.end();
    }
}

/// The page cache's and the folio table's books of 1 GiB, whole, split, and split with every piece deviating.
#[test]
fn books_of_a_gib_follow_what_deviates_in_it() {
    let policy = GmemPolicy { punch: PunchPolicy::SplitAndFree, ..GmemPolicy::DEFAULT };
    let setup = Setup { unit: PageSize::Size1G, source: Source::Pool, init_shared: false, policy };
    let mut world = World::new(setup);
    world.get(0).unwrap();
    let bytes = |world: &World| world.inode.metadata_bytes(QUIET) + world.host.lock(QUIET).folios().metadata_bytes();
    assert!(bytes(&world) < 1 << 20, "{} bytes for one folio", bytes(&world));
    world.convert(0, G1, false);
    assert_eq!(world.inode.folios(QUIET), [G1, 0, 0]);
    assert!(bytes(&world) < 1 << 20, "{} bytes for equal pieces", bytes(&world));
    for block in (0..G1).step_by(M2 as usize) {
        world.punch(block + 3, 1);
        world.hold(block, false);
    }
    assert_eq!(world.inode.folios(QUIET), [G1 - G1 / M2, 0, 0]);
    assert!(bytes(&world) < 6 << 20, "{} bytes for pieces that differ", bytes(&world));
    world.check();
    world.end();
}
