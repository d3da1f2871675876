//! A value for each page of an inode, as maximal runs: attributes, memory policies.
//!
//! Always true: the runs cover the inode without gap, and neighbours differ. The cost is in step with where values
//! change, not with the size.

use std::collections::BTreeMap;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMap<T> {
    /// First index of each run; the first key is 0.
    runs: BTreeMap<u64, T>,
    nr_pages: u64,
    initial: T,
    /// The value of all, while there is one run.
    only: Option<T>,
}

impl<T: Copy + PartialEq> RunMap<T> {
    /// All of `nr_pages` indices in one state.
    pub fn new(nr_pages: u64, initial: T) -> RunMap<T> {
        RunMap { runs: BTreeMap::from([(0, initial)]), nr_pages, initial, only: Some(initial) }
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
        self.runs.range(..=index).next_back().map_or(self.initial, |(_, &state)| state)
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
        nr_pages > 0 && (self.get(first) == state || self.runs.range(first..end).any(|(_, &at_run)| at_run == state))
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
        if first == 0 || self.get(first - 1) != state {
            self.runs.insert(first, state);
        }
        if end < self.nr_pages {
            if after == state {
                self.runs.remove(&end);
            } else {
                self.runs.insert(end, after);
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
        self.runs.iter().zip(ends).map(|((&at, &state), end)| (at, end - at, state))
    }
}
