//! What each generation of guest_memfd refuses and with which error number, and the mistakes that reading found: each
//! shows in its generation and is gone once its quirk is.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{Errno, PageSize, Sfn};
use gmem::{
    ConvertError, CreateArgs, CreateInfo, Fallocate, FolioPolicy, Generation, GmemFlags, GmemPolicy, GuestMemfd, Host,
    HostConfig, HostMemory, HugeSize, PageIndex, PageRange, Quirks, Shareability,
};

const QUIET: &Task<'static> = &Task::QUIET;
const M2: u64 = PageSize::Size2M.frames();
const PRIVATE: Shareability = Shareability::PRIVATE;
const SHARED: Shareability = Shareability::SHARED;
const POOL: FolioPolicy = FolioPolicy::Pool { size: HugeSize::Size2M };
const PAGES: FolioPolicy = FolioPolicy::Buddy { largest: PageSize::Size4K };

fn range(first: u64, nr_pages: u64) -> PageRange {
    PageRange { first: PageIndex(first), nr_pages }
}

fn host() -> (Arc<SystemMemory>, Host) {
    let memory = SystemMemory::flat(16 * M2 << 12).unwrap();
    let config = HostConfig { first: Sfn::new(16), nr_frames: 16 * M2 - 16, pools: vec![(HugeSize::Size2M, 6)] };
    let host = HostMemory::new(Arc::clone(&memory), &config).unwrap();
    (memory, Host::new(host))
}

struct World {
    memory: Arc<SystemMemory>,
    host: Host,
    inode: GuestMemfd,
}

fn world(policy: GmemPolicy, folios: FolioPolicy, flags: GmemFlags) -> World {
    let (memory, host) = host();
    let info = CreateInfo { size_bytes: 4 * M2 << 12, flags: flags.bits(), policy: folios, gmem: policy };
    let inode = GuestMemfd::create(&host, info, QUIET).unwrap();
    World { memory, host, inode }
}

impl World {
    fn convert(&self, range: PageRange, to: Shareability) -> Result<(), ConvertError> {
        let exclusive = self.inode.exclusive(QUIET);
        for step in exclusive.steps(range) {
            if let Some(conversion) = exclusive.plan_conversion(&self.host, step, to, QUIET)? {
                exclusive.convert(&self.host, &conversion, QUIET)?;
            }
        }
        Ok(())
    }

    fn frame(&self, page: u64) -> Sfn {
        self.inode.shared(QUIET).get_folio(&self.host, PageIndex(page), QUIET).unwrap().sfn
    }

    fn write(&self, page: u64) {
        self.memory.store(self.frame(page).base(), 0xa5_u8).unwrap();
    }

    fn read(&self, page: u64) -> u8 {
        self.memory.load(self.frame(page).base()).unwrap()
    }

    fn punch(&self, range: PageRange) -> Result<(), Errno> {
        let exclusive = self.inode.exclusive(QUIET);
        exclusive.check_hole(&self.host, range, QUIET).map_err(|error| error.errno())?;
        exclusive.remove(&self.host, range, QUIET);
        Ok(())
    }

    fn is_private(&self, page: u64) -> bool {
        self.inode.attribute(PageIndex(page), QUIET).is_private()
    }
}

/// The generation as it is, and without its mistake.
fn with_and_without(generation: Generation, quirk: Quirks) -> [GmemPolicy; 2] {
    let policy = generation.policy();
    assert!(policy.has(quirk), "{quirk:?} is a mistake of {generation:?}");
    [policy, GmemPolicy { quirks: policy.quirks - quirk, ..policy }]
}

#[test]
fn creation_takes_and_refuses_what_its_generation_does() {
    use Errno::Inval;
    use Generation::{Next, V1, V2, V7_3, Wip};
    let size = 4 * M2 << 12;
    let pool = |size| Ok(FolioPolicy::Pool { size });
    let m2 = || pool(HugeSize::Size2M);
    let (two, one_g, odd) = (21 << 26, 30 << 26, 25 << 26);
    type Row = (Generation, u64, u64, u8, Result<FolioPolicy, Errno>);
    let rows: &[Row] = &[
        (V7_3, 0, size, 0, Ok(PAGES)),
        (V7_3, 3, size, 0, Ok(PAGES)),
        (Next, 2, size, 0, Ok(PAGES)),
        (Next, 4, size, 0, Err(Inval)),
        (Next, 1 << 63, size, 0, Err(Inval)),
        (Next, 0, 0, 0, Err(Inval)),
        (Next, 0, 1, 0, Err(Inval)),
        (Next, 0, 4097, 0, Err(Inval)),
        (Next, 0, (-4096_i64) as u64, 0, Err(Inval)),
        (Next, 0, 1 << 63, 0, Err(Inval)),
        (Next, 0, i64::MAX as u64 - 4095, 0, Ok(PAGES)),
        (V1, 1, size, 0, Err(Inval)),
        (V1, 2, size, 0, m2()),
        (V1, 2 | two, size, 0, m2()),
        (V1, 2 | odd, size, 0, Err(Inval)),
        (V1, two, size, 0, Err(Inval)),
        (V1, 2 | two, size + 4096, 0, Err(Inval)),
        (V1, 2 | one_g, 1 << 30, 0, Err(Errno::NoMem)),
        (V2, 1, size, 0, Ok(PAGES)),
        (V2, 2, size, 0, Err(Inval)),
        (V2, 3 | 4, size, 0, m2()),
        (V2, 4 | odd, size, 0, Err(Inval)),
        (V2, 8, size, 0, Err(Inval)),
        (Wip, 4, size, 9, m2()),
        (Wip, 4, size, 0, Err(Inval)),
        (Wip, 4, size, 8, Err(Inval)),
        (Wip, 0, size, 9, Err(Inval)),
        (Wip, 4 | 2, size, 9, Err(Inval)),
        (Wip, 4, size + 4096, 9, Err(Inval)),
        (Wip, 4, 7 * M2 << 12, 9, Err(Errno::NoMem)),
        (Wip, 3, size, 0, Ok(PAGES)),
    ];
    for &(generation, flags, size_bytes, page_order, expected) in rows {
        let (_, host) = host();
        let before = host.lock(QUIET).stats();
        let args = CreateArgs { size_bytes, flags, page_order };
        let created = args.decode(generation.policy(), PAGES).and_then(|info| {
            let inode = GuestMemfd::create(&host, info, QUIET)?;
            Ok((inode, info.policy))
        });
        let row = (generation, flags, size_bytes, page_order);
        match created {
            Ok((inode, folios)) => {
                assert_eq!(Ok(folios), expected, "{row:?}");
                inode.destroy(&host, QUIET);
            }
            Err(error) => assert_eq!(Err(error.errno()), expected, "{row:?}: {error}"),
        }
        assert_eq!(host.lock(QUIET).stats(), before, "A12: {row:?} leaves a trace");
    }
    let v2 = |flags| CreateArgs { size_bytes: size, flags, page_order: 0 }.decode(V2.policy(), PAGES).unwrap().flags;
    assert_eq!((v2(0), v2(1), v2(3)), (0, 3, 1), "starts shared unless it says otherwise");
}

#[test]
fn fallocate_refuses_what_the_kernel_refuses() {
    use Errno::{Inval, OpNotSupp};
    let size = (4 * M2 << 12) as i64;
    let next = world(Generation::Next.policy(), POOL, GmemFlags::empty());
    let wip = world(Generation::Wip.policy(), POOL, GmemFlags::empty());
    type Row<'w> = (&'w World, u32, i64, i64, Result<(), Errno>);
    let rows: &[Row<'_>] = &[
        (&next, 0, 0, 4096, Err(OpNotSupp)),
        (&next, 2, 0, 4096, Err(OpNotSupp)),
        (&next, 0x10, 0, 4096, Err(OpNotSupp)),
        (&next, 0x11, 0, 4096, Err(OpNotSupp)),
        (&next, 0x9, 0, 4096, Err(OpNotSupp)),
        (&next, 1, 1, 4096, Err(Inval)),
        (&next, 3, 4096, 1, Err(Inval)),
        (&next, 3, 4096, 0, Err(Inval)),
        (&next, 3, -4096, 4096, Err(Inval)),
        (&next, 1, 0, -4096, Err(Inval)),
        (&next, 1, size, 4096, Err(Inval)),
        (&next, 1, size - 4096, 8192, Err(Inval)),
        (&next, 1, size - 4096, 4096, Ok(())),
        (&next, 3, size, 4096, Ok(())),
        (&next, 3, size - 4096, 1 << 40, Ok(())),
        (&next, 3, 4096, 4096, Ok(())),
        (&wip, 1, 4096, 4096, Err(Inval)),
        (&wip, 3, 0, 4096, Err(Inval)),
        (&wip, 3, 0, 2 << 20, Ok(())),
    ];
    for &(world, mode, offset, len, expected) in rows {
        let done = match Fallocate::parse(&world.inode, mode, offset, len) {
            Ok(Fallocate::Allocate(range)) => {
                let allocated = world.inode.shared(QUIET).allocate(&world.host, range, QUIET);
                allocated.map_err(|error| error.errno())
            }
            Ok(Fallocate::Punch(range)) => world.punch(range),
            Err(error) => Err(error.errno()),
        };
        assert_eq!(done, expected, "mode {mode:#x}, {len:#x} bytes at {offset:#x}");
    }
}

#[test]
fn conversions_refuse_with_their_generations_errors() {
    let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
    for generation in Generation::ALL {
        let world = world(generation.policy(), POOL, flags);
        let errno = |first, nr_pages, to| world.convert(range(first, nr_pages), to).map_err(|error| error.errno());
        if generation == Generation::V7_3 {
            assert_eq!(errno(0, 1, PRIVATE), Err(Errno::NoTty), "attributes are the VM's");
            continue;
        }
        let empty = if generation == Generation::V2 { Ok(()) } else { Err(Errno::Inval) };
        assert_eq!(
            world.inode.exclusive(QUIET).changes(range(1, 0), PRIVATE, QUIET).map(|_| ()).map_err(|e| e.errno()),
            empty
        );
        assert_eq!(errno(4 * M2, 1, PRIVATE), Err(Errno::Inval), "behind the end");
        assert_eq!(errno(1, 4 * M2, PRIVATE), Err(Errno::Inval));
        assert_eq!(errno(0, 4 * M2, SHARED), Ok(()), "already");
        let held = world.inode.shared(QUIET).pin_page(&world.host, PageIndex(M2 + 3), QUIET).unwrap();
        let refused = world.convert(range(0, 2 * M2), PRIVATE).unwrap_err();
        let (errno, index) = match generation {
            Generation::V1 => (Errno::Inval, None),
            // The first huge page of an inode that lets shared folios be whole, the very page in the others.
            Generation::Next => (Errno::Again, Some(PageIndex(M2))),
            _ => (Errno::Again, Some(PageIndex(M2 + 3))),
        };
        assert_eq!((refused.errno(), refused.error_index()), (errno, index), "{generation:?}");
        let kept_first = generation == Generation::Wip;
        assert_eq!(world.is_private(0), kept_first, "only {:?} keeps what came before", Generation::Wip);
        assert!(!world.is_private(M2));
        world.inode.unpin_page(&world.host, held, QUIET);
        world.convert(range(0, 2 * M2), PRIVATE).unwrap();
        assert_eq!(world.inode.peek(PageIndex(M2 + 3), QUIET).unwrap().size, PageSize::Size2M, "{generation:?} merges");
    }
}

#[test]
fn r33_a_failed_conversion_of_v1_shares_private_pages() {
    for policy in with_and_without(Generation::V1, Quirks::ROLLBACK_SHARES_ALL) {
        let world = world(policy, POOL, GmemFlags::INIT_SHARED);
        world.convert(range(3, 1), PRIVATE).unwrap();
        world.inode.shared(QUIET).pin_page(&world.host, PageIndex(1), QUIET).unwrap();
        let refused = world.convert(range(0, 4), PRIVATE);
        assert_eq!(refused, Err(ConvertError::Mapped { index: PageIndex(1) }));
        let reachable = world.inode.shared(QUIET).get_page(&world.host, PageIndex(3), QUIET).is_ok();
        assert_eq!(reachable, policy.has(Quirks::ROLLBACK_SHARES_ALL), "C3");
    }
}

#[test]
fn r34_a_conversion_of_v2_without_memory_for_its_list_says_that_it_succeeded() {
    for policy in with_and_without(Generation::V2, Quirks::SILENT_PARTIAL) {
        let world = world(policy, POOL, GmemFlags::INIT_SHARED);
        world.convert(range(2, 1), PRIVATE).unwrap();
        world.host.lock(QUIET).occupy(u64::MAX);
        let done = world.convert(range(0, 5), PRIVATE);
        if policy.has(Quirks::SILENT_PARTIAL) {
            assert_eq!((done, world.is_private(0), world.is_private(4)), (Ok(()), true, false));
        } else {
            assert_eq!(done, Err(ConvertError::NoMemory { index: PageIndex(3) }));
            assert!(!world.is_private(0), "C6");
        }
    }
}

#[test]
fn r42_a_hole_in_a_huge_page_takes_its_neighbours_along() {
    for policy in with_and_without(Generation::V1, Quirks::HOLE_CLEARS_HUGE_PAGE) {
        let world = world(policy, POOL, GmemFlags::empty());
        [0, 1, 2, M2 - 1].into_iter().for_each(|page| world.write(page));
        world.punch(range(1, 1)).unwrap();
        let lost = policy.has(Quirks::HOLE_CLEARS_HUGE_PAGE);
        assert_eq!([0, 2, M2 - 1].map(|page| world.read(page) == 0), [lost; 3], "B12");
        assert_eq!(world.read(1), 0);
    }
    for policy in with_and_without(Generation::V2, Quirks::HOLE_CLEARS_FROM_HEAD) {
        let world = world(policy, POOL, GmemFlags::empty());
        [0, M2 / 2, M2].into_iter().for_each(|page| world.write(page));
        world.punch(range(M2 / 2, M2 / 2)).unwrap();
        assert_eq!(world.read(0) == 0, policy.has(Quirks::HOLE_CLEARS_FROM_HEAD), "B12");
        assert_eq!((world.read(M2 / 2), world.read(M2)), (0, 0xa5));
    }
}

#[test]
fn r43_an_allocation_inside_a_huge_page_allocates_nothing() {
    for generation in [Generation::V1, Generation::V2] {
        for policy in with_and_without(generation, Quirks::ALLOCATION_ROUNDS_DOWN) {
            let world = world(policy, POOL, GmemFlags::empty());
            world.inode.shared(QUIET).allocate(&world.host, range(3, 4), QUIET).unwrap();
            let there = world.inode.peek(PageIndex(3), QUIET).is_some();
            assert_eq!(there, !policy.has(Quirks::ALLOCATION_ROUNDS_DOWN), "B16");
        }
    }
}

#[test]
fn r44_a_fresh_huge_page_of_wip_shows_what_its_frames_held() {
    for policy in with_and_without(Generation::Wip, Quirks::CLEAR_FIRST_4K) {
        let world = world(policy, POOL, GmemFlags::empty());
        assert_eq!(world.read(0), 0);
        assert_eq!(world.read(2) != 0, policy.has(Quirks::CLEAR_FIRST_4K), "B9");
    }
}

#[test]
fn r46_page_by_page_v1_never_merges_again() {
    for policy in with_and_without(Generation::V1, Quirks::MERGE_INSIDE_RANGE_ONLY) {
        let world = world(policy, POOL, GmemFlags::empty());
        world.write(5);
        world.convert(range(0, M2), SHARED).unwrap();
        assert_eq!(world.inode.folios(QUIET), [M2, 0, 0]);
        for page in 0..M2 {
            world.convert(range(page, 1), PRIVATE).unwrap();
        }
        let merged = !policy.has(Quirks::MERGE_INSIDE_RANGE_ONLY);
        assert_eq!(world.inode.folios(QUIET) == [0, 1, 0], merged, "F13");
        assert_eq!(world.read(5), 0xa5);
    }
}

#[test]
fn a_failure_costs_its_page_alone_and_that_page_can_not_become_private() {
    for shared in [false, true] {
        let flags = if shared { GmemFlags::INIT_SHARED } else { GmemFlags::empty() };
        let world = world(GmemPolicy::DEFAULT, POOL, flags);
        [6, 7, 8].into_iter().for_each(|page| world.write(page));
        let lost = world.inode.exclusive(QUIET).error(&world.host, PageIndex(7), QUIET).unwrap().unwrap();
        assert!(!lost.known);
        let get = |page| world.inode.shared(QUIET).get_folio(&world.host, PageIndex(page), QUIET);
        assert_eq!(get(7).map_err(|error| error.errno()), Err(Errno::HwPoison), "B18");
        assert_eq!((get(6).unwrap().size, world.read(8)), (PageSize::Size4K, 0xa5));
        assert_eq!(get(M2).unwrap().size, PageSize::Size2M, "others are as they were");
        assert!(world.inode.exclusive(QUIET).error(&world.host, PageIndex(7), QUIET).unwrap().unwrap().known);
        assert_eq!(world.inode.exclusive(QUIET).error(&world.host, PageIndex(3 * M2), QUIET), Ok(None));
        if shared {
            let refused = world.convert(range(0, M2), PRIVATE).map_err(|error| error.errno());
            assert_eq!(refused, Err(Errno::Again));
        }
    }
}

#[test]
fn the_hosts_own_map_follows_private_pages_as_its_policy_has_it() {
    use gmem::{DirectMapPolicy, HostMapping};
    let policy = GmemPolicy { host_mapping: HostMapping::FollowsPrivacy, ..GmemPolicy::DEFAULT };
    for map in DirectMapPolicy::ALL {
        let world = world(policy, POOL, GmemFlags::empty());
        world.host.lock(QUIET).model_direct_map(map);
        let before = world.host.lock(QUIET).stats().direct_map;
        let frame = world.frame(3);
        let entry = |sfn| world.host.lock(QUIET).direct_map().unwrap().lookup(sfn);
        let private_2m = entry(frame);
        let done = world.convert(range(3, 1), SHARED);
        let shared_4k = entry(frame);
        if map == DirectMapPolicy::Refuse {
            assert_eq!(done.map_err(|error| error.errno()), Err(Errno::OpNotSupp));
            assert_eq!((world.is_private(3), shared_4k), (true, private_2m), "nothing was changed");
            continue;
        }
        done.unwrap();
        assert_eq!(shared_4k, Some(PageSize::Size4K), "{map:?}");
        let next = entry(Sfn::new(frame.raw() + 1));
        assert_eq!(next.is_none(), map == DirectMapPolicy::Unmap, "{map:?}: a private neighbour");
        world.convert(range(3, 1), PRIVATE).unwrap();
        let settled = entry(frame);
        match map {
            DirectMapPolicy::Linux => assert_eq!(settled, Some(PageSize::Size4K), "nothing collapses"),
            DirectMapPolicy::Unmap => assert_eq!(settled, None),
            _ => assert_eq!(settled, private_2m),
        }
        world.punch(range(0, 4 * M2)).unwrap();
        let after = world.host.lock(QUIET).stats().direct_map;
        match map {
            DirectMapPolicy::Linux => assert!(after.entries[0] > before.entries[0]),
            DirectMapPolicy::Rebuild => assert_eq!(after.entries, before.entries, "as large as before"),
            _ => assert!(entry(frame).is_some(), "a free frame is the host's"),
        }
    }
}
