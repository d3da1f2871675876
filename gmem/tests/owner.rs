//! Frames that hardware keeps books of: when gmem asks for them, and what becomes of those that do not come back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{Errno, PageSize, Sfn};
use gmem::{
    CreateInfo, FolioPolicy, FrameOwner, GetError, GmemPolicy, GuestMemfd, Host, HostConfig, HostMemory, HugeSize,
    Leaving, PageIndex, PageRange, Reclaimed, Shareability,
};

const QUIET: &Task<'static> = &Task::QUIET;
const M2: u64 = PageSize::Size2M.frames();
const POOL: FolioPolicy = FolioPolicy::Pool { size: HugeSize::Size2M };
const SMALL: FolioPolicy = FolioPolicy::Buddy { largest: PageSize::Size4K };

/// Books by frame.
#[derive(Default)]
struct Books {
    owned: Mutex<BTreeSet<u64>>,
    stuck: Mutex<BTreeSet<u64>>,
    asked: Mutex<Vec<Leaving>>,
}

impl FrameOwner for Books {
    fn reclaim(&self, first: Sfn, nr: u64, leaving: Leaving, each: &mut dyn FnMut(Reclaimed), _: &Task<'_>) {
        self.asked.lock().unwrap().push(leaving);
        let (mut owned, stuck) = (self.owned.lock().unwrap(), self.stuck.lock().unwrap());
        for frame in first.raw()..first.raw() + nr {
            if stuck.contains(&frame) {
                each(Reclaimed::Kept { sfn: Sfn::new(frame) });
            } else if owned.remove(&frame) {
                each(Reclaimed::Returned { block: Sfn::new(frame), size: PageSize::Size4K });
            }
        }
    }
}

struct World {
    books: Arc<Books>,
    host: Host,
    inode: GuestMemfd,
}

impl World {
    /// A private inode of two blocks of 2M, all of it there and the guest's.
    fn new(policy: FolioPolicy) -> World {
        let books = Arc::new(Books::default());
        let nr_frames = 8 * M2;
        let memory = SystemMemory::flat((M2 + nr_frames) << 12).unwrap();
        let pools = if policy == POOL { vec![(HugeSize::Size2M, 2)] } else { vec![] };
        let mut host = HostMemory::new(memory, &HostConfig { first: Sfn::new(M2), nr_frames, pools }).unwrap();
        host.set_frame_owner(Arc::clone(&books) as Arc<dyn FrameOwner>);
        let host = Host::new(host);
        let info = CreateInfo { size_bytes: 2 * M2 << 12, flags: 0, policy, gmem: GmemPolicy::DEFAULT };
        let inode = GuestMemfd::create(&host, info, QUIET).unwrap();
        inode.shared(QUIET).allocate(&host, range(0, 2 * M2), QUIET).unwrap();
        let world = World { books, host, inode };
        for index in 0..2 * M2 {
            let sfn = world.sfn(index);
            world.books.owned.lock().unwrap().insert(sfn.raw());
            world.host.lock(QUIET).memory().store(sfn.base(), index + 1).unwrap();
        }
        world
    }

    fn sfn(&self, index: u64) -> Sfn {
        self.inode.peek(PageIndex(index), QUIET).unwrap().sfn
    }

    fn word(&self, sfn: Sfn) -> u64 {
        self.host.lock(QUIET).memory().load(sfn.base()).unwrap()
    }

    fn owned(&self) -> usize {
        self.books.owned.lock().unwrap().len()
    }

    fn convert(&self, range: PageRange, to: Shareability) -> Result<(), gmem::ConvertError> {
        let exclusive = self.inode.exclusive(QUIET);
        let Some(conversion) = exclusive.plan_conversion(&self.host, range, to, QUIET)? else { return Ok(()) };
        exclusive.convert(&self.host, &conversion, QUIET)
    }
}

fn range(first: u64, nr_pages: u64) -> PageRange {
    PageRange { first: PageIndex(first), nr_pages }
}

#[test]
fn pages_that_become_shared_are_asked_for_and_those_that_become_private_are_not() {
    for policy in [SMALL, POOL] {
        let world = World::new(policy);
        world.convert(range(3, 5), Shareability::SHARED).unwrap();
        assert_eq!(world.owned() as u64, 2 * M2 - 5);
        assert!(world.books.asked.lock().unwrap().drain(..).all(|leaving| leaving == Leaving::Shared));
        world.convert(range(3, 5), Shareability::PRIVATE).unwrap();
        assert_eq!(*world.books.asked.lock().unwrap(), []);
        assert_eq!(world.word(world.sfn(4)), 5, "what becomes of the bytes is the owner's");
    }
}

#[test]
fn a_page_that_stays_its_guests_cannot_become_shared() {
    for policy in [SMALL, POOL] {
        let world = World::new(policy);
        world.books.stuck.lock().unwrap().insert(world.sfn(6).raw());
        let refused = world.convert(range(4, 8), Shareability::SHARED).unwrap_err();
        assert_eq!((refused.errno(), refused.error_index()), (Errno::Busy, Some(PageIndex(6))));
        assert!((0..2 * M2).all(|index| world.inode.attribute(PageIndex(index), QUIET).is_private()));
        assert_eq!(world.host.lock(QUIET).stats().leaked_frames, 0, "it is the guest's, and no leak");
    }
}

#[test]
fn frames_come_back_before_they_are_free_and_those_that_do_not_are_leaked() {
    for policy in [SMALL, POOL] {
        let world = World::new(policy);
        let stuck = world.sfn(M2 + 1);
        world.books.stuck.lock().unwrap().insert(stuck.raw());
        world.inode.destroy(&world.host, QUIET);
        assert_eq!(world.owned(), 1);
        assert!(world.books.asked.lock().unwrap().iter().all(|&leaving| leaving == Leaving::Freed));
        assert_eq!(world.word(stuck), M2 + 2, "its bytes are the guest's still");
        let mut host = world.host.lock(QUIET);
        assert_eq!((host.stats().leaked_frames, host.is_leaked(stuck)), (1, true));
        while let Ok(table) = host.alloc_table() {
            assert_ne!(table.frame(), stuck);
            assert_eq!(host.memory().load::<u64>(table), Ok(0));
        }
    }
}

#[test]
fn a_part_of_a_huge_page_comes_back_before_it_is_cleared() {
    let world = World::new(POOL);
    let (stuck, cleared) = (world.sfn(9), world.sfn(8));
    world.books.stuck.lock().unwrap().insert(stuck.raw());
    world.inode.exclusive(QUIET).remove(&world.host, range(8, 2), QUIET);
    assert_eq!(world.owned() as u64, 2 * M2 - 1);
    assert_eq!((world.word(cleared), world.word(stuck)), (0, 10));
    let lost = world.inode.shared(QUIET).get_folio(&world.host, PageIndex(9), QUIET);
    assert_eq!(lost, Err(GetError::Poisoned { index: PageIndex(9), sfn: stuck }));
    assert_eq!(world.inode.shared(QUIET).get_folio(&world.host, PageIndex(8), QUIET).map(|page| page.sfn), Ok(cleared));
}
