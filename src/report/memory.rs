//! The guest's memory over time: for each block of guest frames how much of it is mapped by which level, backed by which
//! folio size, and private; of an SNP guest, how much is its own in the reverse map, and in which state (`entries`).
//!
//! A block's state is a count of pages for each of these, so that blocks add up; its history holds the state at the end
//! of every column in which it changed. Blocks are as small as 2 MiB and grow so that there are few of them.

mod entries;

use std::collections::BTreeMap;

use emu_core::PageSize;
use emu_core::event::{Event, Ino, Sharing};
use entries::{Entries, Step};

pub(super) use entries::Sort;

/// The most blocks that are told apart.
const BLOCKS: usize = 4096;
/// Rows of the picture, at the most.
const ROWS: usize = 256;

/// Pages of a block by what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct State {
    /// Shown by a memslot.
    pub(super) bound: i64,
    pub(super) private: i64,
    pub(super) mapped: [i64; 3],
    pub(super) folios: [i64; 3],
    /// Of the guest in the reverse map, by [`Sort::index`].
    pub(super) rmp: [i64; Sort::COUNT],
}

fn add<const N: usize>(a: [i64; N], b: [i64; N], sign: i64) -> [i64; N] {
    core::array::from_fn(|n| a[n] + sign * b[n])
}

impl State {
    fn plus(self, other: State, sign: i64) -> State {
        State {
            bound: self.bound + sign * other.bound,
            private: self.private + sign * other.private,
            mapped: add(self.mapped, other.mapped, sign),
            folios: add(self.folios, other.folios, sign),
            rmp: add(self.rmp, other.rmp, sign),
        }
    }
}

#[derive(Debug, Default)]
struct Block {
    now: State,
    history: Vec<(usize, State)>,
}

/// A part of an inode that a memslot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) ino: Ino,
    pub(super) slot: u16,
    pub(super) index: u64,
    pub(super) nr_pages: u64,
    pub(super) gfn: u64,
}

/// Which pages of an inode are private: disjoint ranges, first to end.
#[derive(Debug, Default)]
struct Inode {
    private: BTreeMap<u64, u64>,
    folios: BTreeMap<u64, PageSize>,
}

impl Inode {
    fn set(&mut self, from: u64, to: u64, sharing: Sharing) {
        let reach: Vec<(u64, u64)> = self
            .private
            .range(..to)
            .rev()
            .take_while(|(_, end)| **end > from)
            .map(|(first, end)| (*first, *end))
            .collect();
        for (first, end) in reach {
            self.private.remove(&first);
            if first < from {
                self.private.insert(first, from);
            }
            if end > to {
                self.private.insert(to, end);
            }
        }
        if sharing == Sharing::Private {
            self.private.insert(from, to);
        }
    }

    fn parts(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let before = self.private.range(..from).next_back();
        let parts = before.into_iter().chain(self.private.range(from..to));
        parts.map(|(first, end)| ((*first).max(from), (*end).min(to))).filter(|(a, b)| a < b).collect()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    /// log2 of the frames of a block.
    shift: u32,
    blocks: BTreeMap<u64, Block>,
    inodes: BTreeMap<Ino, Inode>,
    bindings: Vec<Binding>,
    entries: Entries,
    column: usize,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            shift: 9,
            blocks: BTreeMap::new(),
            inodes: BTreeMap::new(),
            bindings: Vec::new(),
            entries: Entries::default(),
            column: 0,
        }
    }
}

/// A row of the picture: its first frame, its pages, and its state wherever it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) gfn: u64,
    pub(super) nr_pages: u64,
    pub(super) states: Vec<(usize, State)>,
}

impl Memory {
    /// From now on changes belong to `column`, after neighbouring columns became one `halvings` times.
    pub(super) fn advance(&mut self, column: usize, halvings: u32) {
        if halvings > 0 {
            for block in self.blocks.values_mut() {
                block.history.iter_mut().for_each(|(column, _)| *column >>= halvings);
                // Of states in one column the last stays.
                block.history.reverse();
                block.history.dedup_by_key(|(column, _)| *column);
                block.history.reverse();
            }
        }
        self.column = column;
    }

    /// Everything before belongs to another VM.
    pub(super) fn restart(&mut self) {
        let frames: Vec<u64> = self.blocks.keys().copied().collect();
        for block in frames {
            self.change(block, |_| State::default());
        }
        self.inodes.clear();
        self.bindings.clear();
        self.entries = Entries::default();
    }

    fn change(&mut self, block: u64, to: impl FnOnce(State) -> State) {
        let column = self.column;
        let block = self.blocks.entry(block).or_default();
        block.now = to(block.now);
        match block.history.last_mut() {
            Some((at, state)) if *at == column => *state = block.now,
            _ => block.history.push((column, block.now)),
        }
    }

    /// Adds `what(pages)` to every block that `[gfn, gfn + nr_pages)` reaches into.
    fn add(&mut self, gfn: u64, nr_pages: u64, sign: i64, what: impl Fn(i64) -> State) {
        let (mut at, end) = (gfn, gfn.saturating_add(nr_pages));
        while at < end {
            let block = at >> self.shift;
            let next = ((block + 1) << self.shift).min(end);
            self.change(block, |state| state.plus(what((next - at) as i64), sign));
            at = next;
        }
    }

    /// The guest frames that show `[index, index + nr_pages)` of an inode.
    fn shown(&self, ino: Ino, index: u64, nr_pages: u64) -> Vec<(u64, u64)> {
        let end = index.saturating_add(nr_pages);
        let reaching = self.bindings.iter().filter(|bound| bound.ino == ino);
        reaching
            .filter_map(|bound| {
                let (from, to) = (index.max(bound.index), end.min(bound.index + bound.nr_pages));
                (from < to).then(|| (bound.gfn + (from - bound.index), to - from))
            })
            .collect()
    }

    fn add_shown(&mut self, ino: Ino, index: u64, nr_pages: u64, sign: i64, what: impl Fn(i64) -> State) {
        for (gfn, nr_pages) in self.shown(ino, index, nr_pages) {
            self.add(gfn, nr_pages, sign, &what);
        }
    }

    /// What a binding shows comes, or goes.
    fn bind(&mut self, bound: Binding, sign: i64) {
        let coarsest = bound.nr_pages.div_ceil(BLOCKS as u64).next_power_of_two().trailing_zeros();
        while self.shift < coarsest || self.blocks.len() > 2 * BLOCKS {
            self.coarsen();
        }
        let Binding { ino, index, nr_pages, gfn, .. } = bound;
        self.add(gfn, nr_pages, sign, |n| State { bound: n, ..State::default() });
        let Some(inode) = self.inodes.get(&ino) else { return };
        let private = inode.parts(index, index + nr_pages);
        let folios: Vec<(u64, PageSize)> =
            inode.folios.range(..index + nr_pages).map(|(i, size)| (*i, *size)).collect();
        for (from, to) in private {
            self.add(gfn + (from - index), to - from, sign, |n| State { private: n, ..State::default() });
        }
        for (first, size) in folios {
            let (from, to) = (first.max(index), (first + size.frames()).min(index + nr_pages));
            if from < to {
                self.add(gfn + (from - index), to - from, sign, |n| folio(size, n));
            }
        }
    }

    /// Makes two blocks one.
    fn coarsen(&mut self) {
        self.shift += 1;
        let mut pairs: BTreeMap<u64, Vec<Block>> = BTreeMap::new();
        for (at, block) in core::mem::take(&mut self.blocks) {
            pairs.entry(at >> 1).or_default().push(block);
        }
        self.blocks = pairs.into_iter().map(|(at, blocks)| (at, joined(&blocks))).collect();
    }

    /// Follows an event, as far as it concerns memory.
    pub(super) fn follow(&mut self, event: &Event) {
        match *event {
            Event::VmCreated { .. } => self.restart(),
            Event::GmemCreated { ino, nr_pages, initial } => {
                let inode = self.inodes.entry(ino).or_default();
                inode.set(0, nr_pages, initial);
            }
            Event::GmemBound { ino, slot, index, nr_pages, gfn } => {
                let bound = Binding { ino, slot, index, nr_pages, gfn: gfn.raw() };
                self.bindings.push(bound);
                self.bind(bound, 1);
            }
            Event::GmemUnbound { ino, index } => {
                if let Some(at) = self.bindings.iter().position(|bound| bound.ino == ino && bound.index == index) {
                    let bound = self.bindings.remove(at);
                    self.bind(bound, -1);
                }
            }
            Event::Converted { ino, index, nr_pages, to } => {
                let end = index.saturating_add(nr_pages);
                let Some(inode) = self.inodes.get_mut(&ino) else { return };
                let before = inode.parts(index, end);
                inode.set(index, end, to);
                let private = |n| State { private: n, ..State::default() };
                for (from, to) in before {
                    self.add_shown(ino, from, to - from, -1, private);
                }
                if to == Sharing::Private {
                    self.add_shown(ino, index, nr_pages, 1, private);
                }
            }
            Event::FolioAllocated { ino, index, size, .. } => self.folio(ino, index, Some(size)),
            Event::FolioRemoved { ino, index, .. } => self.folio(ino, index, None),
            Event::FolioSplit { ino, index, from, to, .. } => {
                for n in 0..from.frames() / to.frames() {
                    self.folio(ino, index + n * to.frames(), Some(to));
                }
            }
            Event::FolioMerged { ino, index, size, .. } => {
                let Some(inode) = self.inodes.get(&ino) else { return };
                let pieces: Vec<u64> = inode.folios.range(index..index + size.frames()).map(|(at, _)| *at).collect();
                pieces.into_iter().for_each(|at| self.folio(ino, at, None));
                self.folio(ino, index, Some(size));
            }
            Event::Mapped { gfn, size, .. } => self.add(gfn.raw(), size.frames(), 1, |n| mapped(size, n)),
            // The whole leaf was told as zapped; its parts are leaves without a word of their own.
            Event::SplitHugePage { gfn, level, errno: 0, .. } => {
                if let Some(size) = parts_of(level) {
                    self.add(gfn.raw(), 512 * size.frames(), 1, |n| mapped(size, n));
                }
            }
            Event::Zapped { gfn, size } => self.add(gfn.raw(), size.frames(), -1, |n| mapped(size, n)),
            _ => {
                for Step { gfn, frames, sort, sign } in self.entries.follow(event) {
                    self.add(gfn, frames, sign, |n| of_sort(sort, n));
                }
            }
        }
    }

    /// Puts a folio at `index`, in the place of what was there, or none.
    fn folio(&mut self, ino: Ino, index: u64, size: Option<PageSize>) {
        let inode = self.inodes.entry(ino).or_default();
        let before = match size {
            Some(size) => inode.folios.insert(index, size),
            None => inode.folios.remove(&index),
        };
        for (size, sign) in [(before, -1), (size, 1)] {
            if let Some(size) = size {
                self.add_shown(ino, index, size.frames(), sign, |n| folio(size, n));
            }
        }
    }

    /// What memslots show at the end.
    pub(super) fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    /// The sum of all blocks now.
    pub(super) fn total(&self) -> State {
        self.blocks.values().fold(State::default(), |sum, block| sum.plus(block.now, 1))
    }

    /// The picture's rows, ascending: blocks that a memslot showed or a leaf mapped at any time.
    pub(super) fn rows(&self) -> Vec<Row> {
        let used = |block: &Block| block.history.iter().any(|(_, state)| *state != State::default());
        let blocks: Vec<(u64, &Block)> = self.blocks.iter().filter(|(_, b)| used(b)).map(|(at, b)| (*at, b)).collect();
        // Neighbours share a row when there are too many; a hole between them always begins a new one.
        let per_row = blocks.len().div_ceil(ROWS).next_power_of_two() as u64;
        let mut rows: Vec<(u64, u64, Vec<&Block>)> = Vec::new();
        for (at, block) in blocks {
            match rows.last_mut() {
                Some((first, end, members)) if *end == at && at - *first < per_row => {
                    *end += 1;
                    members.push(block);
                }
                _ => rows.push((at, at + 1, vec![block])),
            }
        }
        let row = |(first, end, members): (u64, u64, Vec<&Block>)| Row {
            gfn: first << self.shift,
            nr_pages: (end - first) << self.shift,
            states: joined_history(&members),
        };
        rows.into_iter().map(row).collect()
    }
}

/// The size of the parts that a leaf of `level` is split into.
pub(super) fn parts_of(level: u8) -> Option<PageSize> {
    PageSize::ALL.get(usize::from(level.checked_sub(2)?)).copied()
}

fn mapped(size: PageSize, nr_pages: i64) -> State {
    let mut state = State::default();
    state.mapped[size.index()] = nr_pages;
    state
}

fn folio(size: PageSize, nr_pages: i64) -> State {
    let mut state = State::default();
    state.folios[size.index()] = nr_pages;
    state
}

fn of_sort(sort: Sort, nr_pages: i64) -> State {
    let mut state = State::default();
    state.rmp[sort.index()] = nr_pages;
    state
}

fn joined(blocks: &[Block]) -> Block {
    let members: Vec<&Block> = blocks.iter().collect();
    let now = blocks.iter().fold(State::default(), |sum, block| sum.plus(block.now, 1));
    Block { now, history: joined_history(&members) }
}

/// The sum of several histories: at every column in which any changed, what all were then.
fn joined_history(blocks: &[&Block]) -> Vec<(usize, State)> {
    let mut changes: Vec<(usize, usize, State)> = Vec::new();
    for (n, block) in blocks.iter().enumerate() {
        changes.extend(block.history.iter().map(|&(column, state)| (column, n, state)));
    }
    changes.sort_by_key(|&(column, n, _)| (column, n));
    let (mut at, mut sum) = (vec![State::default(); blocks.len()], State::default());
    let mut history: Vec<(usize, State)> = Vec::new();
    for (column, n, state) in changes {
        sum = sum.plus(at[n], -1).plus(state, 1);
        at[n] = state;
        match history.last_mut() {
            Some((last, of)) if *last == column => *of = sum,
            _ => history.push((column, sum)),
        }
    }
    history
}

#[cfg(test)]
mod tests;
