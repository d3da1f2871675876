//! The reverse map as a trace tells it: which frames are the guest's, at which of its frames, in which state and by entries
//! of which size.
//!
//! RMPUPDATE, PSMASH, PAGE_UNSMASH, LAUNCH_UPDATE and PVALIDATE are followed; what each changes becomes steps that the picture
//! adds up. Commands and instructions that failed change nothing.
//!
//! Always true: the steps of an entry cancel each other from its assignment to its return.

use std::collections::BTreeMap;

use emu_core::PageSize;
use emu_core::event::{Event, RmpOwner, Validity};

/// What a page of the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::report) enum Sort {
    /// The guest accepted it: usable.
    Validated(PageSize),
    /// The guest has not accepted it.
    Assigned(PageSize),
    /// The firmware works on it.
    Immutable,
}

impl Sort {
    /// How many there are, in the picture.
    pub(in crate::report) const COUNT: usize = 5;

    /// Validated by 4K and 2M, assigned by 4K and 2M, immutable.
    pub(super) const fn index(self) -> usize {
        match self {
            Sort::Validated(PageSize::Size4K) => 0,
            Sort::Validated(_) => 1,
            Sort::Assigned(PageSize::Size4K) => 2,
            Sort::Assigned(_) => 3,
            Sort::Immutable => 4,
        }
    }

    const fn of_size(self, size: PageSize) -> Sort {
        match self {
            Sort::Validated(_) => Sort::Validated(size),
            Sort::Assigned(_) => Sort::Assigned(size),
            Sort::Immutable => Sort::Immutable,
        }
    }
}

/// Pages that become (`sign` 1) or are no longer (-1) of a sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) gfn: u64,
    pub(super) frames: u64,
    pub(super) sort: Sort,
    pub(super) sign: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    gfn: u64,
    size: PageSize,
    sort: Sort,
}

impl Entry {
    fn step(self, sign: i64) -> Step {
        Step { gfn: self.gfn, frames: self.size.frames(), sort: self.sort, sign }
    }
}

/// The guest's entries by first system frame.
#[derive(Debug, Default)]
pub(super) struct Entries(BTreeMap<u64, Entry>);

impl Entries {
    /// What `event` changes.
    pub(super) fn follow(&mut self, event: &Event) -> Vec<Step> {
        match *event {
            Event::RmpUpdate { sfn, size, owner, gfn, result: 0, .. } => {
                let sort = match owner {
                    RmpOwner::Guest => Sort::Assigned(size),
                    RmpOwner::PreGuest => Sort::Immutable,
                    // A page of the firmware is at no place of the guest.
                    RmpOwner::Hypervisor | RmpOwner::Firmware => return self.remove(sfn.raw()),
                };
                let new = Entry { gfn: gfn.raw(), size, sort };
                // The same owner, place and size: the page stays accepted.
                let same = self.0.get(&sfn.raw()).is_some_and(|old| {
                    (old.gfn, old.size) == (new.gfn, size) && old.sort != Sort::Immutable && sort != Sort::Immutable
                });
                if same { Vec::new() } else { self.put(sfn.raw(), new) }
            }
            Event::LaunchUpdate { gfn, sfn, size, status: 0, .. } => {
                self.put(sfn.raw(), Entry { gfn: gfn.raw(), size, sort: Sort::Validated(size) })
            }
            Event::Pvalidate { sfn, size, to, result: 0, carry: 0, .. } => {
                let first = sfn.align_down(size).raw();
                let Some(&old) = self.0.get(&first) else { return Vec::new() };
                let sort = match to {
                    Validity::Validated => Sort::Validated(old.size),
                    Validity::Rescinded => Sort::Assigned(old.size),
                };
                self.put(first, Entry { sort, ..old })
            }
            Event::Psmash { sfn, result: 0 } => {
                let Some(&old) = self.0.get(&sfn.raw()) else { return Vec::new() };
                let mut steps = self.remove(sfn.raw());
                let (size, sort) = (PageSize::Size4K, old.sort.of_size(PageSize::Size4K));
                for n in 0..old.size.frames() {
                    self.0.insert(sfn.raw() + n, Entry { gfn: old.gfn + n, size, sort });
                }
                steps.push(Step { gfn: old.gfn, frames: old.size.frames(), sort, sign: 1 });
                steps
            }
            Event::Unsmash { sfn, status: 0 } => {
                let Some(&old) = self.0.get(&sfn.raw()) else { return Vec::new() };
                let size = PageSize::Size2M;
                let mut steps = Vec::new();
                for n in 0..size.frames() {
                    steps.extend(self.remove(sfn.raw() + n));
                }
                steps.extend(self.put(sfn.raw(), Entry { size, sort: old.sort.of_size(size), ..old }));
                steps
            }
            _ => Vec::new(),
        }
    }

    fn put(&mut self, sfn: u64, new: Entry) -> Vec<Step> {
        let old = self.0.insert(sfn, new);
        old.map(|old| old.step(-1)).into_iter().chain([new.step(1)]).collect()
    }

    fn remove(&mut self, sfn: u64) -> Vec<Step> {
        self.0.remove(&sfn).map(|old| old.step(-1)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use emu_core::event::Ino;
    use emu_core::{Gfn, Gva, Sfn};

    use super::*;
    use crate::report::memory::{Memory, State};

    const M2: PageSize = PageSize::Size2M;
    const K4: PageSize = PageSize::Size4K;

    fn update(sfn: u64, size: PageSize, owner: RmpOwner, gfn: u64) -> Event {
        Event::RmpUpdate { sfn: Sfn::new(sfn), size, owner, gfn: Gfn::new(gfn), asid: 1, result: 0 }
    }

    fn pvalidate(sfn: u64, size: PageSize, to: Validity) -> Event {
        let (gva, gfn, sfn) = (Gva::new(0), Gfn::new(0), Sfn::new(sfn));
        Event::Pvalidate { gva, gfn, sfn, size, to, result: 0, carry: 0 }
    }

    /// The guest's pages by sort after `events`.
    fn sorts(events: &[Event]) -> [i64; Sort::COUNT] {
        let mut memory = Memory::default();
        memory.follow(&Event::GmemBound { ino: Ino(1), slot: 0, index: 0, nr_pages: 2048, gfn: Gfn::new(0) });
        events.iter().for_each(|event| memory.follow(event));
        let State { rmp, .. } = memory.total();
        rmp
    }

    #[test]
    fn a_large_page_is_assigned_accepted_split_and_returned() {
        let life = [
            update(1024, M2, RmpOwner::Guest, 512),
            pvalidate(1024, M2, Validity::Validated),
            update(1024, M2, RmpOwner::Guest, 512),
            Event::Psmash { sfn: Sfn::new(1024), result: 0 },
            pvalidate(1030, K4, Validity::Rescinded),
            update(1030, K4, RmpOwner::Hypervisor, 0),
            update(1030, K4, RmpOwner::Guest, 518),
            pvalidate(1030, K4, Validity::Validated),
            Event::Unsmash { sfn: Sfn::new(1024), status: 0 },
            update(1024, M2, RmpOwner::Hypervisor, 0),
        ];
        let seen: Vec<_> = (1..=life.len()).map(|n| sorts(&life[..n])).collect();
        let expected = [
            [0, 0, 0, 512, 0],
            [0, 512, 0, 0, 0],
            [0, 512, 0, 0, 0],
            [512, 0, 0, 0, 0],
            [511, 0, 1, 0, 0],
            [511, 0, 0, 0, 0],
            [511, 0, 1, 0, 0],
            [512, 0, 0, 0, 0],
            [0, 512, 0, 0, 0],
            [0; 5],
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_launched_page_is_immutable_first() {
        let pre = update(7, K4, RmpOwner::PreGuest, 7);
        assert_eq!(sorts(&[pre]), [0, 0, 0, 0, 1]);
        let (gfn, sfn) = (Gfn::new(7), Sfn::new(7));
        let launched = Event::LaunchUpdate { gfn, sfn, size: K4, page_type: 1, status: 0 };
        assert_eq!(sorts(&[pre, launched]), [1, 0, 0, 0, 0]);
        let refused = Event::LaunchUpdate { gfn, sfn, size: K4, page_type: 1, status: 0x1a };
        assert_eq!(sorts(&[pre, refused]), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn what_fails_and_what_another_vm_did_is_not_there() {
        let failed = Event::RmpUpdate {
            sfn: Sfn::new(3),
            size: K4,
            owner: RmpOwner::Guest,
            gfn: Gfn::new(3),
            asid: 1,
            result: 4,
        };
        assert_eq!(sorts(&[failed, pvalidate(3, K4, Validity::Validated)]), [0; 5]);
        let next = Event::VmCreated { nr_vcpus: 1 };
        assert_eq!(sorts(&[update(3, K4, RmpOwner::Guest, 3), next]), [0; 5]);
    }
}
