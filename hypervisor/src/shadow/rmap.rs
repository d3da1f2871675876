//! The way back from a guest frame to the entries that map it (`struct kvm_rmap_head`).

use std::collections::BTreeMap;

use emu_core::Gfn;

use super::pages::Slot;
use super::role::{frames, run_base};

/// The entries that map one guest frame at one level: most often there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Head {
    One(Slot),
    Many(Vec<Slot>),
}

/// More entries for one frame than this are too many to keep (`RMAP_RECYCLE_THRESHOLD`).
pub(super) const RECYCLE: usize = 1000;

/// See the module. Ordered, so that a range costs what is mapped in it.
#[derive(Debug, Default)]
pub(super) struct Rmaps {
    heads: BTreeMap<(u8, Gfn), Head>,
}

impl Rmaps {
    /// Takes note of an entry that maps `gfn`; how many there are now.
    pub(super) fn add(&mut self, level: u8, gfn: Gfn, slot: Slot) -> usize {
        match self.heads.get_mut(&(level, gfn)) {
            None => {
                self.heads.insert((level, gfn), Head::One(slot));
                1
            }
            Some(Head::Many(slots)) => {
                slots.push(slot);
                slots.len()
            }
            Some(head) => {
                if let Head::One(first) = *head {
                    *head = Head::Many(vec![first, slot]);
                }
                2
            }
        }
    }

    /// Forgets an entry.
    ///
    /// # Panics
    /// When it is unknown: entry and reverse mapping have parted.
    pub(super) fn remove(&mut self, level: u8, gfn: Gfn, slot: Slot) {
        let key = (level, gfn);
        let empty = match self.heads.get_mut(&key) {
            Some(Head::One(only)) if *only == slot => true,
            Some(Head::Many(slots)) => match slots.iter().position(|one| *one == slot) {
                Some(at) => {
                    slots.swap_remove(at);
                    slots.is_empty()
                }
                None => panic!("{slot:?} is not in the reverse map of {gfn:?} at level {level}"),
            },
            _ => panic!("{gfn:?} has no reverse map at level {level} with {slot:?}"),
        };
        if empty {
            self.heads.remove(&key);
        }
    }

    /// The entries that map `gfn` at `level`.
    pub(super) fn of(&self, level: u8, gfn: Gfn) -> &[Slot] {
        match self.heads.get(&(level, gfn)) {
            None => &[],
            Some(Head::One(slot)) => core::slice::from_ref(slot),
            Some(Head::Many(slots)) => slots,
        }
    }

    /// The entries, of any level, whose page reaches into `[first, end)`.
    pub(super) fn reaching(&self, first: Gfn, end: Gfn) -> Vec<Slot> {
        let mut found = Vec::new();
        for level in 1..=3 {
            let from = run_base(first, frames(level));
            for (_, head) in self.heads.range((level, from)..(level, end.max(from))) {
                match head {
                    Head::One(slot) => found.push(*slot),
                    Head::Many(slots) => found.extend_from_slice(slots),
                }
            }
        }
        found
    }

    /// Every entry with the level and guest frame it is known for, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, Gfn, Slot)> {
        self.heads.iter().flat_map(|(&(level, gfn), head)| {
            let slots = match head {
                Head::One(slot) => core::slice::from_ref(slot),
                Head::Many(slots) => slots,
            };
            slots.iter().map(move |&slot| (level, gfn, slot))
        })
    }
}
