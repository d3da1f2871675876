//! A value for each page of an inode, as maximal runs: attributes, memory policies.
//!
//! Always true: the runs cover the inode without gap, and neighbours differ. The cost is in step with where values
//! change, not with the size. A store puts new nodes in the place of those that it touches, as a maple tree does, and no
//! two nodes ever have the same number.

use std::collections::BTreeMap;

/// A run as it is stored.
#[derive(Clone, Copy, Debug)]
struct Node<T> {
    value: T,
    number: u64,
}

/// Equal runs say the same, whenever they were stored.
impl<T: PartialEq> PartialEq for Node<T> {
    fn eq(&self, other: &Node<T>) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Node<T> {}

/// Where a node was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeRef {
    first: u64,
    number: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct RunMap<T> {
    /// First index of each run; the first key is 0.
    runs: BTreeMap<u64, Node<T>>,
    /// Nodes so far.
    nr_nodes: u64,
    nr_pages: u64,
    initial: T,
    /// The value of all, while there is one run.
    only: Option<T>,
}

impl<T: PartialEq> PartialEq for RunMap<T> {
    fn eq(&self, other: &RunMap<T>) -> bool {
        (self.nr_pages, &self.runs) == (other.nr_pages, &other.runs)
    }
}

impl<T: Eq> Eq for RunMap<T> {}

impl<T: Copy + PartialEq> RunMap<T> {
    /// All of `nr_pages` indices in one state.
    pub fn new(nr_pages: u64, initial: T) -> RunMap<T> {
        let runs = BTreeMap::from([(0, Node { value: initial, number: 0 })]);
        RunMap { runs, nr_nodes: 1, nr_pages, initial, only: Some(initial) }
    }

    /// Stores a node that is new.
    fn put(&mut self, first: u64, value: T) {
        let number = self.nr_nodes;
        self.nr_nodes += 1;
        self.runs.insert(first, Node { value, number });
    }

    /// The node that says what `index` is: the first half of a lookup.
    pub(crate) fn node_at(&self, index: u64) -> Option<NodeRef> {
        let (&first, node) = self.runs.range(..=index).next_back()?;
        Some(NodeRef { first, number: node.number })
    }

    /// What a node says, unless it was freed since it was found: the second half.
    pub(crate) fn read(&self, node: NodeRef) -> Option<T> {
        self.runs.get(&node.first).filter(|now| now.number == node.number).map(|now| now.value)
    }

    /// The state of all, if there is one run.
    pub fn uniform(&self) -> Option<T> {
        self.only
    }

    /// The state of `index`; indices behind the end share the last run's, as no folio is ever there.
    #[inline]
    pub fn get(&self, index: u64) -> T {
        match self.only {
            Some(value) => value,
            None => self.find(index),
        }
    }

    fn find(&self, index: u64) -> T {
        self.runs.range(..=index).next_back().map_or(self.initial, |(_, node)| node.value)
    }

    /// Whether `[first, first + nr_pages)` is in one state throughout.
    pub fn is_uniform(&self, first: u64, nr_pages: u64) -> bool {
        self.only.is_some()
            || self.runs.range(first.saturating_add(1)..first.saturating_add(nr_pages.max(1))).next().is_none()
    }

    /// Whether any of `[first, first + nr_pages)` is in `state`.
    pub fn contains(&self, first: u64, nr_pages: u64, state: T) -> bool {
        if let Some(value) = self.only {
            return nr_pages > 0 && value == state;
        }
        let end = first.saturating_add(nr_pages);
        nr_pages > 0 && (self.get(first) == state || self.runs.range(first..end).any(|(_, node)| node.value == state))
    }

    /// Stores a state for `[first, first + nr_pages)` as far as it lies inside; whether anything changed.
    pub fn set(&mut self, first: u64, nr_pages: u64, state: T) -> bool {
        let end = first.saturating_add(nr_pages).min(self.nr_pages);
        if first >= end || (self.is_uniform(first, end - first) && self.get(first) == state) {
            return false;
        }
        let after = self.get(end);
        let inner: Vec<u64> = self.runs.range(first..end).map(|(&at, _)| at).collect();
        for at in inner {
            self.runs.remove(&at);
        }
        let before = self.runs.range(..first).next_back().map(|(&at, node)| (at, node.value));
        if let Some((at, value)) = before {
            // It ends elsewhere from now on.
            self.put(at, value);
        }
        if before.is_none_or(|(_, value)| value != state) {
            self.put(first, state);
        }
        if end < self.nr_pages {
            if after == state {
                self.runs.remove(&end);
            } else {
                self.put(end, after);
            }
        }
        self.only = if self.runs.len() == 1 { Some(self.find(0)) } else { None };
        true
    }

    /// The runs that reach into `[first, end)`, clipped to it, as `(first index, nr_pages, state)`.
    pub fn runs_in(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64, T)> + '_ {
        let end = end.min(self.nr_pages);
        let mut at = first;
        core::iter::from_fn(move || {
            let from = at;
            if from >= end {
                return None;
            }
            at = self.runs.range(from + 1..end).next().map_or(end, |(&next, _)| next);
            Some((from, at - from, self.get(from)))
        })
    }

    /// The runs as `(first index, nr_pages, state)`.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64, T)> + '_ {
        let ends = self.runs.keys().copied().skip(1).chain([self.nr_pages]);
        self.runs.iter().zip(ends).map(|((&at, node), end)| (at, end - at, node.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_frees_the_nodes_beside_it_and_no_others() {
        let mut map = RunMap::new(64, 0);
        map.set(32, 8, 1);
        let [low, middle, high] = [0, 35, 50].map(|index| map.node_at(index).expect("every page has one"));
        assert_eq!([low, middle, high].map(|node| map.read(node)), [Some(0), Some(1), Some(0)]);
        map.set(34, 2, 2);
        assert_eq!([low, middle, high].map(|node| map.read(node)), [Some(0), None, Some(0)]);
        map.set(34, 2, 1);
        assert_eq!(map.read(middle), None, "what it says is said by another node");
        assert!(map.set(32, 8, 0) && map.read(low).is_none() && map.read(high).is_none());
        assert_eq!(map, RunMap::new(64, 0), "maps are equal that say the same");
    }
}
