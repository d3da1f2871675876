//! The way back from a guest frame to the entries that map it (`struct kvm_rmap_head`).
//!
//! It changes with `mmu_lock` held for writing. Who asks whether a page was used walks it without that lock
//! ([`Rmaps::age`], `kvm_rmap_lock_readonly`): a lock of the map's own keeps what is walked from changing. The kernel has
//! one in each head, bit 1; here one serves all heads and is given up between them.
//!
//! Always true: an entry leaves the map before its shadow page is freed, so that who holds the lock finds no entry that is
//! gone; a descriptor's number is used again, the number and its generation never.

use std::collections::BTreeMap;

use emu_core::defect::Defect;
use emu_core::memory::{BusError, SystemMemory};
use emu_core::sync::{Mutex, Point, Task};
use emu_core::{Gfn, Spa};

use super::pages::Slot;
use super::role::{frames, run_base};
use super::spte::ShadowPte;
use crate::age::Aging;

/// An entry that maps a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    slot: Slot,
    /// Where it stands.
    at: Spa,
}

/// Entries of a descriptor (`PTE_LIST_EXT`).
const PER_DESCRIPTOR: usize = 14;

/// A descriptor that lives, or lived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DescriptorId {
    number: u32,
    generation: u32,
}

/// A part of the entries that map one frame (`struct pte_list_desc`).
#[derive(Debug, Default)]
struct Descriptor {
    /// How often it was freed.
    generation: u32,
    mappings: Vec<Mapping>,
    /// The rest of them: full descriptors.
    more: Option<DescriptorId>,
    /// How many those hold (`tail_count`).
    tail: usize,
}

/// The entries that map one guest frame at one level: most often there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    One(Mapping),
    Many(DescriptorId),
}

/// A mapping of a frame, to go on from to the next.
#[derive(Clone, Copy, Debug)]
enum Position {
    One(Mapping),
    In { descriptor: DescriptorId, n: usize },
}

/// More entries for one frame than this are too many to keep (`RMAP_RECYCLE_THRESHOLD`).
pub(super) const RECYCLE: usize = 1000;

/// What the map's lock guards. Ordered, so that a range costs what is mapped in it.
#[derive(Debug, Default)]
pub(super) struct Heads {
    heads: BTreeMap<(u8, Gfn), Head>,
    descriptors: Vec<Descriptor>,
    vacant: Vec<u32>,
}

impl Heads {
    /// # Panics
    /// When it was freed since its number was read.
    fn descriptor(&self, id: DescriptorId) -> &Descriptor {
        let descriptor = &self.descriptors[id.number as usize];
        assert_eq!(
            descriptor.generation, id.generation,
            "E12: descriptor {} of the reverse map is walked and was freed",
            id.number
        );
        descriptor
    }

    fn descriptor_mut(&mut self, id: DescriptorId) -> &mut Descriptor {
        self.descriptor(id);
        &mut self.descriptors[id.number as usize]
    }

    /// A descriptor before those that `more` leads to.
    fn make(&mut self, first: Mapping, more: Option<DescriptorId>) -> DescriptorId {
        let tail = more.map_or(0, |id| self.count(id));
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.descriptors.push(Descriptor { mappings: Vec::with_capacity(PER_DESCRIPTOR), ..Descriptor::default() });
            self.descriptors.len() as u32 - 1
        });
        let descriptor = &mut self.descriptors[number as usize];
        descriptor.mappings.push(first);
        (descriptor.more, descriptor.tail) = (more, tail);
        DescriptorId { number, generation: descriptor.generation }
    }

    fn free(&mut self, id: DescriptorId) {
        let descriptor = self.descriptor_mut(id);
        descriptor.generation = descriptor.generation.wrapping_add(1);
        descriptor.mappings.clear();
        descriptor.more = None;
        self.vacant.push(id.number);
    }

    /// Mappings of a descriptor and those behind it.
    fn count(&self, id: DescriptorId) -> usize {
        let descriptor = self.descriptor(id);
        descriptor.mappings.len() + descriptor.tail
    }

    fn start(head: Head) -> Position {
        match head {
            Head::One(mapping) => Position::One(mapping),
            Head::Many(descriptor) => Position::In { descriptor, n: 0 },
        }
    }

    /// The mapping at a position and the position after it.
    fn step(&self, position: Position) -> (Option<Mapping>, Option<Position>) {
        match position {
            Position::One(mapping) => (Some(mapping), None),
            Position::In { descriptor: id, n } => {
                let descriptor = self.descriptor(id);
                let next = match n + 1 < descriptor.mappings.len() {
                    true => Some(Position::In { descriptor: id, n: n + 1 }),
                    false => descriptor.more.map(|descriptor| Position::In { descriptor, n: 0 }),
                };
                (descriptor.mappings.get(n).copied(), next)
            }
        }
    }

    fn mappings(&self, head: Head) -> impl Iterator<Item = Mapping> {
        let mut position = Some(Heads::start(head));
        core::iter::from_fn(move || {
            let (mapping, next) = self.step(position?);
            position = next;
            mapping
        })
    }

    fn add(&mut self, key: (u8, Gfn), mapping: Mapping) -> usize {
        let id = match self.heads.get(&key).copied() {
            None => {
                self.heads.insert(key, Head::One(mapping));
                return 1;
            }
            Some(Head::One(first)) => {
                let id = self.make(first, None);
                self.descriptor_mut(id).mappings.push(mapping);
                id
            }
            Some(Head::Many(id)) if self.descriptor(id).mappings.len() < PER_DESCRIPTOR => {
                self.descriptor_mut(id).mappings.push(mapping);
                id
            }
            Some(Head::Many(id)) => self.make(mapping, Some(id)),
        };
        self.heads.insert(key, Head::Many(id));
        self.count(id)
    }

    fn remove(&mut self, (level, gfn): (u8, Gfn), slot: Slot) {
        match self.heads.get(&(level, gfn)).copied() {
            Some(Head::One(only)) if only.slot == slot => drop(self.heads.remove(&(level, gfn))),
            Some(Head::Many(first)) => {
                let mut at = Some(first);
                while let Some(id) = at {
                    let descriptor = self.descriptor(id);
                    if let Some(n) = descriptor.mappings.iter().position(|one| one.slot == slot) {
                        return self.remove_from((level, gfn), first, id, n);
                    }
                    at = descriptor.more;
                }
                panic!("{slot:?} is not in the reverse map of {gfn:?} at level {level}");
            }
            _ => panic!("{gfn:?} has no reverse map at level {level} with {slot:?}"),
        }
    }

    /// The last mapping of the first descriptor takes the place of the one that goes; when none is left the descriptor is
    /// freed (`pte_list_desc_remove_entry`).
    fn remove_from(&mut self, key: (u8, Gfn), first: DescriptorId, id: DescriptorId, n: usize) {
        if let Some(last) = self.descriptor_mut(first).mappings.pop()
            && let Some(place) = self.descriptor_mut(id).mappings.get_mut(n)
        {
            *place = last;
        }
        if self.descriptor(first).mappings.is_empty() {
            match self.descriptor(first).more {
                Some(more) => drop(self.heads.insert(key, Head::Many(more))),
                None => drop(self.heads.remove(&key)),
            }
            self.free(first);
        }
    }

    /// The entries that map `gfn` at `level`.
    pub(super) fn of(&self, level: u8, gfn: Gfn) -> impl Iterator<Item = Slot> {
        let head = self.heads.get(&(level, gfn)).copied();
        head.into_iter().flat_map(|head| self.mappings(head)).map(|mapping| mapping.slot)
    }

    /// Every entry with the level and guest frame it is known for, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, Gfn, Slot)> {
        let heads = self.heads.iter();
        heads.flat_map(|(&(level, gfn), &head)| self.mappings(head).map(move |mapping| (level, gfn, mapping.slot)))
    }

    /// The first frame at `level` of `[from, end)` that anything maps.
    fn next(&self, level: u8, from: Gfn, end: Gfn) -> Option<(Gfn, Head)> {
        let (&(_, gfn), &head) = self.heads.range((level, from)..(level, end.max(from))).next()?;
        Some((gfn, head))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rmaps(Mutex<Heads>);

impl Rmaps {
    /// Takes note of an entry at `at` that maps `gfn`; how many there are now.
    pub(super) fn add(&self, level: u8, gfn: Gfn, (slot, at): (Slot, Spa), task: &Task<'_>) -> usize {
        self.0.lock(task).add((level, gfn), Mapping { slot, at })
    }

    /// Forgets an entry.
    ///
    /// # Panics
    /// When it is unknown: entry and reverse mapping have parted.
    pub(super) fn remove(&self, level: u8, gfn: Gfn, slot: Slot, task: &Task<'_>) {
        self.0.lock(task).remove((level, gfn), slot);
    }

    /// The entries that map `gfn` at `level`.
    pub(super) fn of(&self, level: u8, gfn: Gfn, task: &Task<'_>) -> Vec<Slot> {
        self.0.lock(task).of(level, gfn).collect()
    }

    /// The entries, of any level, whose page reaches into `[first, end)`.
    pub(super) fn reaching(&self, first: Gfn, end: Gfn, task: &Task<'_>) -> Vec<Slot> {
        let heads = self.0.lock(task);
        let mut found = Vec::new();
        for level in 1..=3 {
            let from = run_base(first, frames(level));
            for (_, &head) in heads.heads.range((level, from)..(level, end.max(from))) {
                found.extend(heads.mappings(head).map(|mapping| mapping.slot));
            }
        }
        found
    }

    /// What `look` says of the map, unless somebody walks it: for checks.
    pub(super) fn look<R>(&self, look: impl FnOnce(&Heads) -> R) -> Option<R> {
        self.0.try_lock(&Task::QUIET).map(|heads| look(&heads))
    }

    /// Whether any leaf of a page that reaches into `[first, end)` was used, without `mmu_lock`
    /// (`kvm_rmap_age_gfn_range`). Nothing is flushed.
    pub(super) fn age(
        &self,
        memory: &SystemMemory,
        (first, end): (Gfn, Gfn),
        aging: Aging,
        task: &Task<'_>,
    ) -> Result<bool, BusError> {
        let mut young = false;
        for level in 1..=3 {
            let mut from = run_base(first, frames(level));
            loop {
                let heads = self.0.lock(task);
                let Some((gfn, head)) = heads.next(level, from, end) else { break };
                from = Gfn::new(gfn.raw() + 1);
                let mut heads = Some(heads);
                let mut position = Some(Heads::start(head));
                while let Some(at) = position {
                    if task.has(Defect::AgeUnlocked) {
                        heads = None;
                    }
                    task.at(Point::R1);
                    let heads = heads.get_or_insert_with(|| self.0.lock(task));
                    let (mapping, next) = heads.step(at);
                    position = next;
                    if let Some(Mapping { at, .. }) = mapping {
                        young |= age_entry(memory, at, aging)?;
                    }
                }
            }
        }
        Ok(young)
    }
}

/// Whether the leaf at `at` was used. Only the flag is touched: whoever changes the entry meanwhile wins.
fn age_entry(memory: &SystemMemory, at: Spa, aging: Aging) -> Result<bool, BusError> {
    let mut spte = ShadowPte::from_raw(memory.load(at)?);
    while spte.is_present() && spte.is_accessed() {
        if aging == Aging::Test {
            return Ok(true);
        }
        match memory.compare_exchange_u64(at, spte.raw(), spte.unaccessed().raw())? {
            Ok(_) => return Ok(true),
            Err(seen) => spte = ShadowPte::from_raw(seen),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::super::pages::PageId;
    use super::*;
    use emu_core::defect::Defects;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const QUIET: &Task<'static> = &Task::QUIET;

    fn slot(n: u16) -> (Slot, Spa) {
        (Slot { page: PageId(0), index: n }, Spa::new(0x1000 + 8 * u64::from(n)))
    }

    proptest! {
        #[test]
        fn the_map_is_a_set_of_entries_for_each_frame(
            calls in prop::collection::vec((1_u8..=3, 0_u64..3, 0_u16..40, any::<bool>()), 0..300),
        ) {
            let (map, mut model) = (Rmaps::default(), BTreeSet::new());
            for (level, gfn, n, adds) in calls {
                let gfn = Gfn::new(gfn * frames(level));
                let known = model.contains(&(level, gfn, slot(n).0));
                if adds && !known {
                    model.insert((level, gfn, slot(n).0));
                    let count = model.iter().filter(|one| (one.0, one.1) == (level, gfn)).count();
                    prop_assert_eq!(map.add(level, gfn, slot(n), QUIET), count);
                } else if known {
                    model.remove(&(level, gfn, slot(n).0));
                    map.remove(level, gfn, slot(n).0, QUIET);
                }
                let all: Vec<_> = map.look(|heads| heads.iter().collect()).expect("nobody walks it");
                prop_assert_eq!(all.len(), model.len());
                prop_assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), model.clone());
                let of: BTreeSet<Slot> = map.of(level, gfn, QUIET).into_iter().collect();
                let wanted = model.iter().filter(|one| (one.0, one.1) == (level, gfn)).map(|one| one.2);
                prop_assert_eq!(of, wanted.collect());
            }
            let heads = map.0.lock(QUIET);
            let used = heads.descriptors.iter().filter(|one| !one.mappings.is_empty()).count();
            prop_assert_eq!(heads.descriptors.len(), used + heads.vacant.len(), "what is not used is free");
        }
    }

    #[test]
    fn aging_tells_and_clears_what_was_used() {
        let memory = SystemMemory::flat(1 << 16).expect("a little memory");
        let map = Rmaps::default();
        let used = ShadowPte::table(Spa::new(0x2000)).raw();
        for n in 0..20 {
            map.add(1, Gfn::new(5), slot(n), QUIET);
            memory.store(slot(n).1, if n == 17 { used } else { ShadowPte::from_raw(used).unaccessed().raw() }).unwrap();
        }
        let age = |range: (u64, u64), aging| {
            map.age(&memory, (Gfn::new(range.0), Gfn::new(range.1)), aging, QUIET).expect("tables lie in memory")
        };
        assert!(!age((0, 5), Aging::Clear) && !age((6, 9), Aging::Clear), "nothing is there");
        assert!(age((0, 9), Aging::Test) && age((5, 6), Aging::Clear) && !age((5, 6), Aging::Test));
    }

    #[test]
    #[should_panic(expected = "E12: descriptor 0 of the reverse map is walked and was freed")]
    fn a_descriptor_that_was_freed_is_known_even_when_it_is_used_again() {
        let mut heads = Heads::default();
        let mapping = |n| Mapping { slot: slot(n).0, at: slot(n).1 };
        let key = (1, Gfn::new(5));
        heads.add(key, mapping(0));
        heads.add(key, mapping(1));
        let position = Heads::start(heads.heads[&key]);
        for n in 0..2 {
            heads.remove(key, slot(n).0);
        }
        heads.add(key, mapping(2));
        heads.add(key, mapping(3));
        heads.step(position);
    }

    #[test]
    fn a_defect_of_aging_changes_nothing_while_nobody_else_runs() {
        let memory = SystemMemory::flat(1 << 16).expect("a little memory");
        let map = Rmaps::default();
        for n in 0..30 {
            map.add(1, Gfn::new(5), slot(n), QUIET);
        }
        let task = QUIET.with(Defects::only(Defect::AgeUnlocked));
        assert_eq!(map.age(&memory, (Gfn::new(0), Gfn::new(9)), Aging::Clear, &task), Ok(false));
    }
}
