//! Who may use a page of guest_memfd: the guest alone, or guest and host (the attributes tree of in-place conversion).
//!
//! [`Shareability`] is one page's state, a private enum whose transitions are the pure functions of [`transition`];
//! [`ShareabilityMap`] gives every index of an inode exactly one state, as maximal runs. Always true: the runs cover
//! the inode without gap, and neighbours differ.
//!
//! What conversion does to the bytes depends on the kind of VM; here they are preserved, as for VMs whose memory is not
//! encrypted.

use std::collections::BTreeMap;

use emu_core::event::Sharing;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Guest only. Rejects: host mappings, host reads and writes, faults that ask for shared memory.
    Private,
    /// Guest and host. Rejects: faults that ask for private memory.
    Shared,
}

/// One page's state.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shareability(State);

impl core::fmt::Debug for Shareability {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&self.0, f)
    }
}

impl Shareability {
    /// Guest only.
    pub const PRIVATE: Shareability = Shareability(State::Private);
    /// Guest and host.
    pub const SHARED: Shareability = Shareability(State::Shared);
    /// Every state.
    pub const ALL: [Shareability; 2] = [Shareability::PRIVATE, Shareability::SHARED];

    /// Whether the host may map, read and write the page.
    pub const fn host_may_use(self) -> bool {
        matches!(self.0, State::Shared)
    }

    /// Whether the page is the guest's alone.
    pub const fn is_private(self) -> bool {
        matches!(self.0, State::Private)
    }
}

impl From<Shareability> for Sharing {
    fn from(state: Shareability) -> Sharing {
        match state.0 {
            State::Private => Sharing::Private,
            State::Shared => Sharing::Shared,
        }
    }
}

/// References to a folio beside the page cache's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holders {
    /// None, or no folio.
    CacheOnly,
    /// Somebody on the host may still look at it.
    Others,
}

/// A page cannot become private while somebody on the host holds it (`EAGAIN`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The transitions, one pure function per event.
pub mod transition {
    use super::{Busy, Holders, Shareability, State};

    /// The VMM or the guest asks for a shared page. Nobody but guest_memfd can hold a private one, so this cannot fail.
    pub const fn to_shared(_from: Shareability) -> Shareability {
        Shareability(State::Shared)
    }

    /// The VMM or the guest asks for a private page, once host mappings are gone.
    pub const fn to_private(from: Shareability, holders: Holders) -> Result<Shareability, Busy> {
        match (from.0, holders) {
            (State::Private, _) => Ok(from),
            (State::Shared, Holders::CacheOnly) => Ok(Shareability(State::Private)),
            (State::Shared, Holders::Others) => Err(Busy),
        }
    }

    /// The page's folio is removed. Removal says nothing about who may use the next one.
    pub const fn truncate(from: Shareability) -> Shareability {
        from
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareabilityMap {
    /// First index of each run; the first key is 0.
    runs: BTreeMap<u64, Shareability>,
    nr_pages: u64,
}

impl ShareabilityMap {
    /// All of `nr_pages` indices in one state.
    pub fn new(nr_pages: u64, initial: Shareability) -> ShareabilityMap {
        ShareabilityMap { runs: BTreeMap::from([(0, initial)]), nr_pages }
    }

    /// The state of `index`; indices behind the end share the last run's, as no folio is ever there.
    pub fn get(&self, index: u64) -> Shareability {
        self.runs.range(..=index).next_back().map_or(Shareability::PRIVATE, |(_, &state)| state)
    }

    /// Whether `[first, first + nr_pages)` is in one state throughout.
    pub fn is_uniform(&self, first: u64, nr_pages: u64) -> bool {
        self.runs.range(first.saturating_add(1)..first.saturating_add(nr_pages.max(1))).next().is_none()
    }

    /// Whether any of `[first, first + nr_pages)` is in `state`.
    pub fn contains(&self, first: u64, nr_pages: u64, state: Shareability) -> bool {
        let end = first.saturating_add(nr_pages);
        nr_pages > 0 && (self.get(first) == state || self.runs.range(first..end).any(|(_, &at_run)| at_run == state))
    }

    /// Stores a state for `[first, first + nr_pages)` as far as it lies inside; whether anything changed.
    pub fn set(&mut self, first: u64, nr_pages: u64, state: Shareability) -> bool {
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
        true
    }

    /// The runs as `(first index, nr_pages, state)`.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64, Shareability)> + '_ {
        let ends = self.runs.keys().copied().skip(1).chain([self.nr_pages]);
        self.runs.iter().zip(ends).map(|((&at, &state), end)| (at, end - at, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn laws_of_the_transitions_over_every_state() {
        for state in Shareability::ALL {
            assert_eq!(transition::truncate(state), state);
            assert_eq!(transition::to_shared(state), Shareability::SHARED);
            assert_eq!(transition::to_shared(transition::to_shared(state)), transition::to_shared(state));
            assert_eq!(transition::to_private(state, Holders::CacheOnly), Ok(Shareability::PRIVATE));
            let held = transition::to_private(state, Holders::Others);
            assert_eq!(held, if state.is_private() { Ok(state) } else { Err(Busy) });
            assert_ne!(state.host_may_use(), state.is_private());
        }
    }

    proptest! {
        /// Against one state per index.
        #[test]
        fn runs_agree_with_an_array(
            sets in prop::collection::vec((0_u64..70, 0_u64..70, any::<bool>()), 0..40),
        ) {
            let mut map = ShareabilityMap::new(64, Shareability::PRIVATE);
            let mut model = [Shareability::PRIVATE; 64];
            for (first, nr, shared) in sets {
                let state = Shareability::ALL[usize::from(shared)];
                let mut changed = false;
                for slot in model.iter_mut().skip(first as usize).take(nr as usize) {
                    changed |= *slot != state;
                    *slot = state;
                }
                prop_assert_eq!(map.set(first, nr, state), changed);
                prop_assert!((0..64).all(|i| map.get(i) == model[i as usize]));
                let window = &model[(first as usize).min(64)..((first + nr) as usize).min(64)];
                if !window.is_empty() {
                    let nr = window.len() as u64;
                    for state in Shareability::ALL {
                        prop_assert_eq!(map.contains(first, nr, state), window.contains(&state));
                    }
                    prop_assert_eq!(map.is_uniform(first, nr), window.iter().all(|s| *s == window[0]));
                }
                let runs: Vec<_> = map.runs().collect();
                prop_assert_eq!(runs.iter().map(|r| r.1).sum::<u64>(), 64);
                prop_assert!(runs.windows(2).all(|w| w[0].2 != w[1].2 && w[0].0 + w[0].1 == w[1].0));
            }
        }
    }
}
