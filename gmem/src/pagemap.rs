//! A sparse map from page numbers to entries of 4K, 2M or 1G, shaped like a page table.
//!
//! This is the xarray of the model: the page cache of an inode and the user's page tables are one. A huge page is one
//! entry at the level of its size, so metadata grows with the number of entries and not with the bytes they hold. An
//! entry is a word that is read and filled in one step, so that many may look and [`claim`](PageMap::claim) vacant places
//! at once; everything else needs the map alone.
//!
//! [`PageMap`] is the door. Always true: a node exists only while something lies below it, and no two entries overlap.
//! The height grows with the largest page number used; it never shrinks.

#[cfg(test)]
mod tests;

use core::marker::PhantomData;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use emu_core::PageSize;

const BITS: u32 = 9;
const FANOUT: usize = 1 << BITS;
/// Levels 0, 1 and 2 hold leaves of 4K, 2M and 1G; the root is at least at level 2.
const HUGEST: u8 = 2;

/// What an entry can hold: a value of 62 bits.
pub trait Packed: Copy {
    /// The value as a number below 2^62.
    fn pack(self) -> u64;
    /// The value that [`pack`](Packed::pack) made `bits` of.
    fn unpack(bits: u64) -> Self;
}

#[derive(Clone, Copy)]
enum Entry<T> {
    Empty,
    Node(u32),
    Leaf(T),
}

/// Bits 1:0 of a word say what it is; an empty one is zero.
const NODE: u64 = 1;
const LEAF: u64 = 2;

impl<T: Packed> Entry<T> {
    #[inline]
    fn word(self) -> u64 {
        match self {
            Entry::Empty => 0,
            Entry::Node(id) => u64::from(id) << 2 | NODE,
            Entry::Leaf(value) => value.pack() << 2 | LEAF,
        }
    }

    #[inline]
    fn of(word: u64) -> Entry<T> {
        match word & 3 {
            NODE => Entry::Node((word >> 2) as u32),
            LEAF => Entry::Leaf(T::unpack(word >> 2)),
            _ => Entry::Empty,
        }
    }
}

struct Node {
    /// Words that are not empty.
    used: AtomicU32,
    /// Its level, or [`UNUSED`].
    level: u8,
    words: [AtomicU64; FANOUT],
}

const UNUSED: u8 = u8::MAX;

impl Node {
    fn new(level: u8) -> Box<Node> {
        Box::new(Node { used: AtomicU32::new(0), level, words: [const { AtomicU64::new(0) }; FANOUT] })
    }

    fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }
}

/// An entry and the pages it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit<T> {
    /// First page number covered, a multiple of the size.
    pub base: u64,
    /// How much it covers.
    pub size: PageSize,
    /// What was stored.
    pub value: T,
}

impl<T> Hit<T> {
    /// First page number behind the entry.
    pub const fn end(&self) -> u64 {
        self.base + self.size.frames()
    }
}

/// The pages asked for are taken, wholly or in part, or do not start at a multiple of their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupied;

/// How a [`claim`](PageMap::claim) ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The entry is there.
    Entered,
    /// As [`Occupied`].
    Occupied,
    /// There is no node for it yet: only [`PageMap::insert`] makes one.
    NoNode,
}

/// Where a map has no entry for a page: the node that has none, and its level. Above the largest size there is no place
/// for an entry but by [`PageMap::insert`].
#[derive(Clone, Copy, Debug)]
pub struct Vacancy {
    node: u32,
    level: u8,
}

impl Vacancy {
    /// The largest size whose naturally aligned pages around the page are all free.
    #[inline]
    pub fn size(self) -> PageSize {
        size_of_level(self.level.min(HUGEST))
    }
}

/// See the module.
pub struct PageMap<T> {
    nodes: Vec<Box<Node>>,
    unused: Vec<u32>,
    root: u32,
    top: u8,
    values: PhantomData<T>,
}

impl<T: Packed> Default for PageMap<T> {
    fn default() -> Self {
        PageMap::new()
    }
}

const fn slot_of(page: u64, level: u8) -> usize {
    let shift = BITS * level as u32;
    if shift >= 64 { 0 } else { (page >> shift) as usize & (FANOUT - 1) }
}

fn size_of_level(level: u8) -> PageSize {
    PageSize::ALL[usize::from(level)]
}

impl<T: Packed> PageMap<T> {
    /// An empty map.
    pub fn new() -> PageMap<T> {
        PageMap { nodes: vec![Node::new(HUGEST)], unused: Vec::new(), root: 0, top: HUGEST, values: PhantomData }
    }

    /// Entries of `size`, counted over the nodes.
    pub fn count(&self, size: PageSize) -> u64 {
        let level = size.index() as u8;
        let at = |level: u8| self.nodes.iter().filter(move |node| node.level == level);
        let used: u64 = at(level).map(|node| u64::from(node.used())).sum();
        // Every node below stands in one of those words: none of them is the root, which is at level 2 or above.
        used - level.checked_sub(1).map_or(0, |below| at(below).count() as u64)
    }

    /// Nodes in use: what the map itself costs.
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.unused.len()
    }

    /// Bytes of real memory that the map takes.
    pub fn metadata_bytes(&self) -> usize {
        self.nodes.len() * (size_of::<Box<Node>>() + size_of::<Node>())
    }

    #[inline]
    fn reaches(&self, page: u64) -> bool {
        let bits = BITS * (self.top as u32 + 1);
        bits >= 64 || page >> bits == 0
    }

    #[inline]
    fn word(&self, node: u32, slot: usize) -> &AtomicU64 {
        &self.nodes[node as usize].words[slot]
    }

    #[inline]
    fn load(&self, node: u32, slot: usize) -> Entry<T> {
        Entry::of(self.word(node, slot).load(Ordering::Acquire))
    }

    fn store(&mut self, node: u32, slot: usize, entry: Entry<T>) {
        *self.nodes[node as usize].words[slot].get_mut() = entry.word();
    }

    fn used_mut(&mut self, node: u32) -> &mut u32 {
        self.nodes[node as usize].used.get_mut()
    }

    fn new_node(&mut self, level: u8) -> u32 {
        if let Some(id) = self.unused.pop() {
            self.nodes[id as usize].level = level;
            return id;
        }
        self.nodes.push(Node::new(level));
        (self.nodes.len() - 1) as u32
    }

    fn release_node(&mut self, id: u32) {
        self.nodes[id as usize].level = UNUSED;
        self.unused.push(id);
    }

    fn grow_to(&mut self, page: u64) {
        while !self.reaches(page) {
            let old = self.root;
            let root = self.new_node(self.top + 1);
            if *self.used_mut(old) > 0 {
                self.store(root, 0, Entry::Node(old));
                *self.used_mut(root) = 1;
            } else {
                self.release_node(old);
            }
            self.root = root;
            self.top += 1;
        }
    }

    /// Puts an entry over `size` pages at `page`.
    pub fn insert(&mut self, page: u64, size: PageSize, value: T) -> Result<(), Occupied> {
        if !page.is_multiple_of(size.frames()) {
            return Err(Occupied);
        }
        self.grow_to(page);
        let goal = size.index() as u8;
        let mut node = self.root;
        for level in (goal + 1..=self.top).rev() {
            let slot = slot_of(page, level);
            node = match self.load(node, slot) {
                Entry::Node(below) => below,
                Entry::Leaf(_) => return Err(Occupied),
                Entry::Empty => {
                    let below = self.new_node(level - 1);
                    self.store(node, slot, Entry::Node(below));
                    *self.used_mut(node) += 1;
                    below
                }
            };
        }
        // A node below would hold something, or it would not exist. And nothing was created on the way here: a node
        // made in the loop above has only empty entries.
        let slot = slot_of(page, goal);
        if !matches!(self.load(node, slot), Entry::Empty) {
            return Err(Occupied);
        }
        self.store(node, slot, Entry::Leaf(value));
        *self.used_mut(node) += 1;
        Ok(())
    }

    /// Puts an entry over `size` pages at `page` while others look, and claim places themselves. Of two that want one
    /// place, one gets it.
    pub fn claim(&self, page: u64, size: PageSize, value: T) -> Claim {
        if !page.is_multiple_of(size.frames()) {
            return Claim::Occupied;
        }
        if !self.reaches(page) {
            return Claim::NoNode;
        }
        let goal = size.index() as u8;
        let mut node = self.root;
        for level in (goal + 1..=self.top).rev() {
            node = match self.load(node, slot_of(page, level)) {
                Entry::Node(below) => below,
                Entry::Leaf(_) => return Claim::Occupied,
                Entry::Empty => return Claim::NoNode,
            };
        }
        self.claim_word(node, slot_of(page, goal), value)
    }

    /// The entry that covers `page`: its node, level and value; or where there is none.
    #[inline]
    fn descend(&self, page: u64) -> Result<(u32, u8, T), Vacancy> {
        if !self.reaches(page) {
            return Err(Vacancy { node: self.root, level: self.top + 1 });
        }
        let mut node = self.root;
        let mut level = self.top;
        loop {
            match self.load(node, slot_of(page, level)) {
                Entry::Empty => return Err(Vacancy { node, level }),
                Entry::Leaf(value) => return Ok((node, level, value)),
                Entry::Node(below) => node = below,
            }
            level -= 1;
        }
    }

    fn find(&self, page: u64) -> Option<(u32, u8, T)> {
        self.descend(page).ok()
    }

    /// The entry that covers `page`, or where there is none.
    #[inline]
    pub fn look(&self, page: u64) -> Result<Hit<T>, Vacancy> {
        let (_, level, value) = self.descend(page)?;
        let size = size_of_level(level);
        Ok(Hit { base: page & !(size.frames() - 1), size, value })
    }

    /// Puts an entry of the vacancy's size around `page`, for which it was found with the map held as it is now.
    #[inline]
    pub fn claim_at(&self, vacancy: Vacancy, page: u64, value: T) -> Claim {
        let Vacancy { node, level } = vacancy;
        if level > HUGEST {
            return Claim::NoNode;
        }
        self.claim_word(node, slot_of(page, level), value)
    }

    #[inline]
    fn claim_word(&self, node: u32, slot: usize, value: T) -> Claim {
        let leaf = Entry::Leaf(value).word();
        match self.word(node, slot).compare_exchange(0, leaf, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => {
                self.nodes[node as usize].used.fetch_add(1, Ordering::Relaxed);
                Claim::Entered
            }
            Err(_) => Claim::Occupied,
        }
    }

    /// The entry that covers `page`.
    #[inline]
    pub fn get(&self, page: u64) -> Option<Hit<T>> {
        self.look(page).ok()
    }

    /// Changes the value of the entry that covers `page`, and tells what `change` says; `None` where there is none.
    pub fn update<R>(&mut self, page: u64, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        let (node, level, mut value) = self.find(page)?;
        let told = change(&mut value);
        self.store(node, slot_of(page, level), Entry::Leaf(value));
        Some(told)
    }

    /// Takes out the entry that covers `page`.
    pub fn remove(&mut self, page: u64) -> Option<Hit<T>> {
        let hit = self.get(page)?;
        let goal = hit.size.index() as u8;
        let mut path = [0_u32; 8];
        let mut node = self.root;
        for level in (goal..=self.top).rev() {
            path[usize::from(level)] = node;
            if let Entry::Node(below) = self.load(node, slot_of(page, level)) {
                node = below;
            }
        }
        self.empty(page, goal, &path);
        Some(hit)
    }

    /// Makes the entry that covers `page` 512 entries of the next smaller size, whose values `part` gives by their first
    /// page; whether there was one, and larger than 4K.
    pub fn divide(&mut self, page: u64, mut part: impl FnMut(u64) -> T) -> bool {
        let Some((node, level, _)) = self.find(page).filter(|found| found.1 > 0) else { return false };
        let smaller = size_of_level(level - 1);
        let base = page & !(size_of_level(level).frames() - 1);
        let below = self.new_node(level - 1);
        let parts = &mut self.nodes[below as usize];
        for (word, at) in parts.words.iter_mut().zip((base..).step_by(smaller.frames() as usize)) {
            *word.get_mut() = Entry::Leaf(part(at)).word();
        }
        *parts.used.get_mut() = FANOUT as u32;
        self.store(node, slot_of(page, level), Entry::Node(below));
        true
    }

    /// Puts one entry over `size` pages at `page` in place of whatever lies there, as long as none of that is larger.
    pub fn unite(&mut self, page: u64, size: PageSize, value: T) -> Result<(), Occupied> {
        if !page.is_multiple_of(size.frames()) {
            return Err(Occupied);
        }
        self.clear_below(page, size)?;
        self.insert(page, size, value)
    }

    /// Takes out all entries that lie in the `size` pages at `page`, a multiple of the size, as long as none of them is
    /// larger.
    pub fn clear_below(&mut self, page: u64, size: PageSize) -> Result<(), Occupied> {
        if !self.reaches(page) {
            return Ok(());
        }
        let goal = size.index() as u8;
        let mut path = [0_u32; 8];
        let mut node = self.root;
        for level in (goal..=self.top).rev() {
            path[usize::from(level)] = node;
            match self.load(node, slot_of(page, level)) {
                Entry::Node(below) if level > goal => node = below,
                Entry::Node(below) => self.free_subtree(below),
                Entry::Leaf(_) if level > goal => return Err(Occupied),
                Entry::Leaf(_) => {}
                Entry::Empty => return Ok(()),
            }
        }
        self.empty(page, goal, &path);
        Ok(())
    }

    /// Empties the slot of `page` at level `goal`, and gives back the nodes on the `path` to it that hold nothing any more.
    fn empty(&mut self, page: u64, goal: u8, path: &[u32; 8]) {
        for level in goal..=self.top {
            let id = path[usize::from(level)];
            self.store(id, slot_of(page, level), Entry::Empty);
            let used = self.used_mut(id);
            *used -= 1;
            if *used > 0 || level == self.top {
                break;
            }
            self.release_node(id);
        }
    }

    fn free_subtree(&mut self, node: u32) {
        for slot in 0..FANOUT {
            if let Entry::Node(below) = self.load(node, slot) {
                self.free_subtree(below);
            }
            self.store(node, slot, Entry::Empty);
        }
        *self.used_mut(node) = 0;
        self.release_node(node);
    }

    /// The first entry that covers `page` or lies above it.
    pub fn next_from(&self, page: u64) -> Option<Hit<T>> {
        if !self.reaches(page) {
            return None;
        }
        self.next_in(self.root, self.top, 0, page)
    }

    fn next_in(&self, node: u32, level: u8, node_base: u64, from: u64) -> Option<Hit<T>> {
        let span_shift = BITS * level as u32;
        let first = if from <= node_base { 0 } else { slot_of(from, level) };
        for slot in first..FANOUT {
            let base = node_base + ((slot as u64) << span_shift);
            match self.load(node, slot) {
                Entry::Empty => {}
                Entry::Leaf(value) => return Some(Hit { base, size: size_of_level(level), value }),
                Entry::Node(below) => {
                    if let Some(hit) = self.next_in(below, level - 1, base, from.max(base)) {
                        return Some(hit);
                    }
                }
            }
        }
        None
    }

    /// The largest size whose naturally aligned pages around `page` are all free; `None` if `page` itself is taken.
    pub fn vacancy(&self, page: u64) -> Option<PageSize> {
        self.look(page).err().map(Vacancy::size)
    }

    /// Visits the entries that reach into `[from, to)`, ascending.
    pub fn visit<B>(&self, from: u64, to: u64, visit: &mut impl FnMut(Hit<T>) -> ControlFlow<B>) -> ControlFlow<B> {
        if from >= to || !self.reaches(from) {
            return ControlFlow::Continue(());
        }
        self.visit_in((self.root, self.top), 0, (from, to), visit)
    }

    fn visit_in<B>(
        &self,
        (node, level): (u32, u8),
        node_base: u64,
        (from, to): (u64, u64),
        visit: &mut impl FnMut(Hit<T>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let span_shift = BITS * level as u32;
        let first = if from <= node_base { 0 } else { slot_of(from, level) };
        for slot in first..FANOUT {
            let base = node_base + ((slot as u64) << span_shift);
            if base >= to {
                break;
            }
            match self.load(node, slot) {
                Entry::Empty => {}
                Entry::Leaf(value) => visit(Hit { base, size: size_of_level(level), value })?,
                Entry::Node(below) => self.visit_in((below, level - 1), base, (from.max(base), to), visit)?,
            }
        }
        ControlFlow::Continue(())
    }
}
