//! Who may use a page of guest_memfd: the guest alone, or guest and host (the attributes tree of in-place conversion).
//!
//! [`Shareability`] is one page's state, a private enum whose transitions are the pure functions of [`transition`];
//! [`ShareabilityMap`] gives every index of an inode exactly one state.
//!
//! What conversion does to the bytes is the policy's to say: [`crate::policy::Content`].

use crate::runs::RunMap;

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

/// Every index of an inode and its state.
pub type ShareabilityMap = RunMap<Shareability>;

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
                for from in [0, 1, 31] {
                    let inside: Vec<_> = map.runs_in(from, 63).collect();
                    prop_assert_eq!(inside.iter().map(|run| run.1).sum::<u64>(), 63 - from);
                    prop_assert!(inside.iter().all(|run| (run.0..run.0 + run.1).all(|i| model[i as usize] == run.2)));
                }
                let runs: Vec<_> = map.runs().collect();
                prop_assert_eq!(runs.iter().map(|r| r.1).sum::<u64>(), 64);
                prop_assert!(runs.windows(2).all(|w| w[0].2 != w[1].2 && w[0].0 + w[0].1 == w[1].0));
            }
        }
    }
}
