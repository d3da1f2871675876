//! A sparse map from page numbers to entries of 4K, 2M or 1G, shaped like a page table.
//!
//! This is the xarray of the model: the page cache of an inode and the table of folios are both one. A huge folio is
//! one entry at the level of its size, so metadata grows with the number of folios and not with the bytes they hold.
//!
//! [`PageMap`] is the door. Always true: a node exists only while something lies below it, and no two entries overlap.
//! The height grows with the largest page number used; it never shrinks.

use emu_core::PageSize;

const BITS: u32 = 9;
const FANOUT: usize = 1 << BITS;
/// Levels 0, 1 and 2 hold leaves of 4K, 2M and 1G; the root is at least at level 2.
const HUGEST: u8 = 2;

#[derive(Clone, Copy)]
enum Entry<T> {
    Empty,
    Node(u32),
    Leaf(T),
}

struct Node<T> {
    used: u16,
    entries: Box<[Entry<T>; FANOUT]>,
}

impl<T: Copy> Node<T> {
    fn new() -> Node<T> {
        Node { used: 0, entries: Box::new([Entry::Empty; FANOUT]) }
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

/// See the module.
pub struct PageMap<T> {
    nodes: Vec<Node<T>>,
    unused: Vec<u32>,
    root: u32,
    top: u8,
    entries_by_size: [u64; 3],
}

impl<T: Copy> Default for PageMap<T> {
    fn default() -> Self {
        PageMap::new()
    }
}

fn slot_of(page: u64, level: u8) -> usize {
    let shift = BITS * level as u32;
    if shift >= 64 { 0 } else { (page >> shift) as usize & (FANOUT - 1) }
}

fn size_of_level(level: u8) -> PageSize {
    PageSize::ALL[usize::from(level)]
}

impl<T: Copy> PageMap<T> {
    /// An empty map.
    pub fn new() -> PageMap<T> {
        PageMap { nodes: vec![Node::new()], unused: Vec::new(), root: 0, top: HUGEST, entries_by_size: [0; 3] }
    }

    /// Entries of `size`.
    pub fn count(&self, size: PageSize) -> u64 {
        self.entries_by_size[size.index()]
    }

    /// Nodes in use: what the map itself costs.
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.unused.len()
    }

    /// Bytes of real memory that the map takes.
    pub fn metadata_bytes(&self) -> usize {
        self.nodes.len() * (size_of::<Node<T>>() + FANOUT * size_of::<Entry<T>>())
    }

    fn reaches(&self, page: u64) -> bool {
        let bits = BITS * (self.top as u32 + 1);
        bits >= 64 || page >> bits == 0
    }

    fn new_node(&mut self) -> u32 {
        if let Some(id) = self.unused.pop() {
            return id;
        }
        self.nodes.push(Node::new());
        (self.nodes.len() - 1) as u32
    }

    fn grow_to(&mut self, page: u64) {
        while !self.reaches(page) {
            let old = self.root;
            let root = self.new_node();
            if self.nodes[old as usize].used > 0 {
                self.nodes[root as usize].entries[0] = Entry::Node(old);
                self.nodes[root as usize].used = 1;
            } else {
                self.unused.push(old);
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
            node = match self.nodes[node as usize].entries[slot] {
                Entry::Node(below) => below,
                Entry::Leaf(_) => return Err(Occupied),
                Entry::Empty => {
                    let below = self.new_node();
                    let parent = &mut self.nodes[node as usize];
                    parent.entries[slot] = Entry::Node(below);
                    parent.used += 1;
                    below
                }
            };
        }
        let last = &mut self.nodes[node as usize];
        let entry = &mut last.entries[slot_of(page, goal)];
        // A node below would hold something, or it would not exist. And nothing was created on the way here: a node
        // made in the loop above has only empty entries.
        if !matches!(entry, Entry::Empty) {
            return Err(Occupied);
        }
        *entry = Entry::Leaf(value);
        last.used += 1;
        self.entries_by_size[size.index()] += 1;
        Ok(())
    }

    fn find(&self, page: u64) -> Option<(u32, u8, usize)> {
        if !self.reaches(page) {
            return None;
        }
        let mut node = self.root;
        let mut level = self.top;
        loop {
            let slot = slot_of(page, level);
            match self.nodes[node as usize].entries[slot] {
                Entry::Empty => return None,
                Entry::Leaf(_) => return Some((node, level, slot)),
                Entry::Node(below) => node = below,
            }
            level -= 1;
        }
    }

    /// The entry that covers `page`.
    pub fn get(&self, page: u64) -> Option<Hit<T>> {
        let (node, level, slot) = self.find(page)?;
        let Entry::Leaf(value) = self.nodes[node as usize].entries[slot] else { return None };
        let size = size_of_level(level);
        Some(Hit { base: page & !(size.frames() - 1), size, value })
    }

    /// The value of the entry that covers `page`, to change it.
    pub fn get_mut(&mut self, page: u64) -> Option<&mut T> {
        let (node, _, slot) = self.find(page)?;
        match &mut self.nodes[node as usize].entries[slot] {
            Entry::Leaf(value) => Some(value),
            _ => None,
        }
    }

    /// Takes out the entry that covers `page`.
    pub fn remove(&mut self, page: u64) -> Option<Hit<T>> {
        let hit = self.get(page)?;
        let goal = hit.size.index() as u8;
        let mut path = [0_u32; 8];
        let mut node = self.root;
        for level in (goal..=self.top).rev() {
            path[usize::from(level)] = node;
            if let Entry::Node(below) = self.nodes[node as usize].entries[slot_of(page, level)] {
                node = below;
            }
        }
        self.empty(page, goal, &path);
        self.entries_by_size[hit.size.index()] -= 1;
        Some(hit)
    }

    /// Makes the entry that covers `page` 512 entries of the next smaller size, whose values `part` gives by their first
    /// page; whether there was one, and larger than 4K.
    pub fn divide(&mut self, page: u64, mut part: impl FnMut(u64) -> T) -> bool {
        let Some((node, level, slot)) = self.find(page).filter(|found| found.1 > 0) else { return false };
        let size = size_of_level(level);
        let smaller = size_of_level(level - 1);
        let base = page & !(size.frames() - 1);
        let below = self.new_node();
        let parts = &mut self.nodes[below as usize];
        for (entry, at) in parts.entries.iter_mut().zip((base..).step_by(smaller.frames() as usize)) {
            *entry = Entry::Leaf(part(at));
        }
        parts.used = FANOUT as u16;
        self.nodes[node as usize].entries[slot] = Entry::Node(below);
        self.entries_by_size[size.index()] -= 1;
        self.entries_by_size[smaller.index()] += FANOUT as u64;
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
            match self.nodes[node as usize].entries[slot_of(page, level)] {
                Entry::Node(below) if level > goal => node = below,
                Entry::Node(below) => self.free_subtree(below, level - 1),
                Entry::Leaf(_) if level > goal => return Err(Occupied),
                Entry::Leaf(_) => self.entries_by_size[size.index()] -= 1,
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
            let node = &mut self.nodes[id as usize];
            node.entries[slot_of(page, level)] = Entry::Empty;
            node.used -= 1;
            if node.used > 0 || level == self.top {
                break;
            }
            self.unused.push(id);
        }
    }

    fn free_subtree(&mut self, node: u32, level: u8) {
        for slot in 0..FANOUT {
            match self.nodes[node as usize].entries[slot] {
                Entry::Empty => continue,
                Entry::Leaf(_) => self.entries_by_size[usize::from(level)] -= 1,
                Entry::Node(below) => self.free_subtree(below, level - 1),
            }
            self.nodes[node as usize].entries[slot] = Entry::Empty;
        }
        self.nodes[node as usize].used = 0;
        self.unused.push(node);
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
            match self.nodes[node as usize].entries[slot] {
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
        if !self.reaches(page) {
            return Some(PageSize::Size1G);
        }
        let mut node = self.root;
        for level in (0..=self.top).rev() {
            match self.nodes[node as usize].entries[slot_of(page, level)] {
                Entry::Empty => return Some(size_of_level(level.min(HUGEST))),
                Entry::Leaf(_) => return None,
                Entry::Node(below) => node = below,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const M2: u64 = PageSize::Size2M.frames();
    const G1: u64 = PageSize::Size1G.frames();

    #[test]
    fn sizes_live_side_by_side_and_never_overlap() {
        let mut map = PageMap::new();
        map.insert(0, PageSize::Size1G, 'g').unwrap();
        map.insert(G1, PageSize::Size2M, 'm').unwrap();
        map.insert(G1 + M2 + 3, PageSize::Size4K, 'k').unwrap();
        assert_eq!(map.insert(5, PageSize::Size4K, 'x'), Err(Occupied));
        assert_eq!(map.insert(G1, PageSize::Size1G, 'x'), Err(Occupied));
        assert_eq!(map.insert(1, PageSize::Size2M, 'x'), Err(Occupied), "not a multiple of its size");
        assert_eq!(map.get(G1 - 1), Some(Hit { base: 0, size: PageSize::Size1G, value: 'g' }));
        assert_eq!(map.get(G1 + M2 - 1).map(|h| h.value), Some('m'));
        assert_eq!(map.vacancy(G1 + M2 + 4), Some(PageSize::Size4K));
        assert_eq!(map.vacancy(G1 + 2 * M2), Some(PageSize::Size2M));
        assert_eq!(map.vacancy(2 * G1), Some(PageSize::Size1G));
        assert_eq!(map.vacancy(7), None);
    }

    #[test]
    fn far_pages_cost_a_path_and_give_it_back() {
        let mut map = PageMap::new();
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

    proptest! {
        #[test]
        fn agrees_with_a_list_of_intervals(
            steps in prop::collection::vec((0_u8..6, 0_u64..2 * G1, 0_usize..3), 1..120),
        ) {
            let mut map = PageMap::new();
            let mut model: Vec<(u64, PageSize, usize)> = Vec::new();
            for (step, (kind, page, size)) in steps.into_iter().enumerate() {
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
                    prop_assert_eq!(map.insert(base, size, step).is_ok(), free);
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
}
