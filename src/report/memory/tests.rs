use super::*;
use emu_core::{Gfn, Sfn};
use proptest::prelude::*;

const PAGES: u64 = 4096;
const INO: Ino = Ino(7);

/// What a memslot at frame 100 shows of the inode's pages, page by page.
#[derive(Clone, Debug)]
struct Naive {
    private: Vec<bool>,
    folios: Vec<Option<PageSize>>,
}

#[derive(Clone, Debug)]
enum Step {
    Convert(u64, u64, Sharing),
    Allocate(u64, PageSize),
    Remove(u64),
    Split(u64),
    Merge(u64),
    Later(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let sharing = prop_oneof![Just(Sharing::Private), Just(Sharing::Shared)];
    let size = prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M)];
    prop_oneof![
        (0..PAGES, 1..900_u64, sharing).prop_map(|(at, nr, to)| Step::Convert(at, nr.min(PAGES - at), to)),
        (0..PAGES, size).prop_map(|(at, size)| Step::Allocate(at & !(size.frames() - 1), size)),
        (0..PAGES).prop_map(Step::Remove),
        (0..PAGES / 512).prop_map(|n| Step::Split(n * 512)),
        (0..PAGES / 512).prop_map(|n| Step::Merge(n * 512)),
        (1..4_usize).prop_map(Step::Later),
    ]
}

impl Naive {
    fn range(&self, at: u64, size: PageSize) -> &[Option<PageSize>] {
        &self.folios[at as usize..(at + size.frames()) as usize]
    }

    fn put(&mut self, at: u64, size: PageSize, folio: Option<PageSize>) {
        self.folios[at as usize..(at + size.frames()) as usize].fill(folio);
    }

    /// The event that the step amounts to, if it can happen now.
    fn event(&mut self, step: &Step) -> Option<Event> {
        let (ino, sfn, large) = (INO, Sfn::new(0), PageSize::Size2M);
        match *step {
            Step::Convert(index, nr_pages, to) => {
                self.private[index as usize..(index + nr_pages) as usize].fill(to == Sharing::Private);
                Some(Event::Converted { ino, index, nr_pages, to })
            }
            Step::Allocate(index, size) => {
                let free = self.range(index, size).iter().all(Option::is_none);
                free.then(|| self.put(index, size, Some(size)))?;
                Some(Event::FolioAllocated { ino, index, sfn, size })
            }
            Step::Remove(at) => {
                let size = self.folios[at as usize]?;
                let index = at & !(size.frames() - 1);
                self.put(index, size, None);
                Some(Event::FolioRemoved { ino, index, sfn, size })
            }
            Step::Split(index) => {
                (self.folios[index as usize] == Some(large)).then_some(())?;
                self.put(index, large, Some(PageSize::Size4K));
                Some(Event::FolioSplit { ino, index, sfn, from: large, to: PageSize::Size4K })
            }
            Step::Merge(index) => {
                let whole = self.range(index, large).iter().all(|folio| *folio == Some(PageSize::Size4K));
                whole.then(|| self.put(index, large, Some(large)))?;
                Some(Event::FolioMerged { ino, index, sfn, size: large })
            }
            Step::Later(_) => None,
        }
    }

    fn state(&self) -> State {
        let count = |size| self.folios.iter().filter(|folio| **folio == Some(size)).count() as i64;
        State {
            bound: PAGES as i64,
            private: self.private.iter().filter(|private| **private).count() as i64,
            mapped: [0; 3],
            folios: PageSize::ALL.map(count),
            ..State::default()
        }
    }
}

fn bound() -> Event {
    Event::GmemBound { ino: INO, slot: 0, index: 0, nr_pages: PAGES, gfn: Gfn::new(100) }
}

proptest! {
    #[test]
    fn blocks_add_up_to_what_pages_are(steps in prop::collection::vec(step(), 1..60), late in 0..60_usize) {
        let mut naive = Naive { private: vec![true; PAGES as usize], folios: vec![None; PAGES as usize] };
        let mut memory = Memory::default();
        memory.follow(&Event::GmemCreated { ino: INO, nr_pages: PAGES, initial: Sharing::Private });
        let mut column = 0;
        for (n, step) in steps.iter().enumerate() {
            if n == late {
                memory.follow(&bound());
            }
            if let Step::Later(by) = step {
                column += by;
                memory.advance(column, 0);
            }
            if let Some(event) = naive.event(step) {
                memory.follow(&event);
            }
        }
        if late >= steps.len() {
            prop_assert_eq!(memory.total(), State::default());
            memory.follow(&bound());
        }
        prop_assert_eq!(memory.total(), naive.state());
        let rows = memory.rows();
        let last = |row: &Row| row.states.last().map(|(_, state)| *state).unwrap_or_default();
        let sum = rows.iter().fold(State::default(), |sum, row| sum.plus(last(row), 1));
        prop_assert_eq!(sum, naive.state());
        prop_assert!(rows.iter().all(|row| row.states.is_sorted_by_key(|(column, _)| *column)));
        // Half the columns, double the blocks: the same memory.
        memory.advance(column / 2, 1);
        memory.coarsen();
        prop_assert_eq!(memory.total(), naive.state());
        memory.follow(&Event::GmemUnbound { ino: INO, index: 0 });
        prop_assert_eq!(memory.total(), State::default());
    }
}

#[test]
fn the_parts_of_a_leaf_that_is_split_are_mapped() {
    let mut memory = Memory::default();
    let (gfn, spte) = (Gfn::new(1 << 18), emu_core::event::Bits(0));
    memory.follow(&Event::Mapped { gfn, sfn: Sfn::new(0), size: PageSize::Size1G });
    memory.follow(&Event::Zapped { gfn, size: PageSize::Size1G });
    memory.follow(&Event::SplitHugePage { gfn, spte, level: 3, errno: 0 });
    assert_eq!(memory.total().mapped, [0, 1 << 18, 0]);
    memory.follow(&Event::Zapped { gfn, size: PageSize::Size2M });
    memory.follow(&Event::SplitHugePage { gfn, spte, level: 2, errno: 0 });
    assert_eq!(memory.total().mapped, [512, (1 << 18) - 512, 0]);
}

#[test]
fn a_terabyte_has_few_blocks_and_few_rows() {
    let mut memory = Memory::default();
    let nr_pages = 1 << 28;
    memory.follow(&Event::GmemCreated { ino: INO, nr_pages, initial: Sharing::Shared });
    memory.follow(&Event::GmemBound { ino: INO, slot: 0, index: 0, nr_pages, gfn: Gfn::new(0) });
    assert!(memory.blocks.len() <= BLOCKS);
    memory.follow(&Event::Mapped { gfn: Gfn::new(0), sfn: Sfn::new(0), size: PageSize::Size1G });
    assert_eq!(memory.total().mapped, [0, 0, 1 << 18]);
    assert!(memory.rows().len() <= ROWS);
    assert_eq!(memory.rows().iter().map(|row| row.nr_pages).sum::<u64>(), nr_pages);
}
