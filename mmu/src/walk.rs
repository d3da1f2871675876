//! The walker: one routine for every format, nested or not.
//!
//! A walk goes down from a table pointer, asking the format what each entry means, and records the slot, the entry and
//! the folded rights of each step. It changes nothing and judges nothing. Permission is judged afterwards by `rights`;
//! then [`mark`] sets A and D by compare-exchange, and the caller walks again if another writer was first.
//!
//! Nesting is [`TableMemory`]: where an entry of a guest table lies in system memory is a question that the nested
//! implementation answers by a walk of its own tables with this same routine.
//!
//! Termination: each step goes one level down. A walk is repeated only when another writer changed one of its entries in
//! between, so that somebody made progress.

use emu_core::memory::{BusError, SystemMemory};
use emu_core::{Gpa, Spa};

use crate::fault::MmuFault;
use crate::format::{Entry, Format, Grants};
use crate::level::Level;
use crate::stats::MmuStats;
use crate::walk_cache::TablePointer;

/// An address of the space that a kind of table lies in.
pub(crate) trait TableAddress: Copy {
    /// From the address field of an entry or a root register.
    fn from_raw(raw: u64) -> Self;
    /// `bytes` further. Entries lie inside their table: nothing overflows.
    fn plus(self, bytes: u64) -> Self;
}

impl TableAddress for Gpa {
    fn from_raw(raw: u64) -> Gpa {
        Gpa::new(raw)
    }
    fn plus(self, bytes: u64) -> Gpa {
        self.wrapping_add(bytes)
    }
}
impl TableAddress for Spa {
    fn from_raw(raw: u64) -> Spa {
        Spa::new(raw)
    }
    fn plus(self, bytes: u64) -> Spa {
        self.wrapping_add(bytes)
    }
}

/// The memory that tables lie in.
pub(crate) trait TableMemory {
    /// The address space of table pointers.
    type Address: TableAddress;

    /// Where the entry at `slot`, of a table of `level`, lies.
    fn locate(&mut self, slot: Self::Address, level: Level) -> Result<Spa, MmuFault>;
    /// Where it lies for setting A or D in it; `found` is what [`TableMemory::locate`] said.
    fn locate_update(&mut self, slot: Self::Address, level: Level, found: Spa) -> Result<Spa, MmuFault>;
    /// Asked before A or D is set in an entry: whether that can be recorded.
    #[inline(always)]
    fn before_update(&mut self) -> Result<(), MmuFault> {
        Ok(())
    }
    /// Told when A of the entry at `slot` was clear and has been set.
    #[inline(always)]
    fn note_accessed(&mut self, _slot: Self::Address) {}
    /// Told when D of the leaf at `slot` was clear and has been set.
    #[inline(always)]
    fn note_dirtied(&mut self, _slot: Self::Address) -> Result<(), MmuFault> {
        Ok(())
    }
    /// Told of every entry that a walk reads.
    #[inline(always)]
    fn note_entry(&mut self, _level: Level, _raw: u64) {}
    /// System memory.
    fn system(&self) -> &SystemMemory;
    /// The counters.
    fn stats(&mut self) -> &mut MmuStats;
}

/// One entry on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<A> {
    pub(crate) slot: A,
    pub(crate) spa: Spa,
    pub(crate) raw: u64,
    /// Folded over the entries down to this one.
    pub(crate) grants: Grants,
}

/// A walk that reached a leaf.
pub(crate) struct Walk<A> {
    /// Level of the first step.
    top: Level,
    /// The entries, from the top; the last `filled` one is the leaf.
    steps: [Step<A>; Level::MAX],
    filled: usize,
    /// Level of the leaf.
    pub(crate) level: Level,
}

/// A walk that did not.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    NotPresent(Level),
    Reserved(Level),
    /// A table could not be read.
    Table(MmuFault),
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Stop {
        Stop::Table(MmuFault::Bus(error))
    }
}

impl<A: Copy> Walk<A> {
    /// A record to walk into.
    #[inline(always)]
    pub(crate) fn from(start: TablePointer<A>) -> Walk<A> {
        let unused = Step { slot: start.table, spa: Spa::new(0), raw: 0, grants: start.grants };
        Walk { top: start.level, steps: [unused; Level::MAX], filled: 1, level: start.level }
    }
    /// The leaf.
    #[inline]
    pub(crate) fn leaf(&self) -> &Step<A> {
        &self.steps[(self.filled - 1).min(Level::MAX - 1)]
    }
    /// Every step with its level, from the top.
    #[inline]
    pub(crate) fn steps(&self) -> impl Iterator<Item = (Level, &Step<A>)> {
        self.steps[..self.filled.min(Level::MAX)].iter().enumerate().map(|(n, step)| (self.top.down(n), step))
    }
    /// Every table that the walk went through below the first: its level, the entry that points to it, the one in it.
    #[inline]
    pub(crate) fn tables(&self) -> impl Iterator<Item = (Level, &Step<A>, &Step<A>)> {
        (1..self.filled.min(Level::MAX)).map(|n| (self.top.down(n), &self.steps[n - 1], &self.steps[n]))
    }
}

#[inline(always)]
fn load<F: Format>(memory: &SystemMemory, spa: Spa) -> Result<u64, BusError> {
    if F::ENTRY_BYTES == 4 { memory.load::<u32>(spa).map(u64::from) } else { memory.load::<u64>(spa) }
}

/// Walks from `start` to the leaf for `input`, recording the way in `walk`.
#[inline(always)]
pub(crate) fn walk<F: Format, M: TableMemory>(
    format: &F,
    memory: &mut M,
    walk: &mut Walk<M::Address>,
    start: TablePointer<M::Address>,
    input: u64,
) -> Result<(), Stop> {
    let TablePointer { mut level, mut table, spa: mut known, mut grants } = start;
    walk.top = level;
    walk.filled = 0;
    for step in &mut walk.steps {
        let offset = F::offset(input, level);
        let slot = table.plus(offset);
        let spa = match known.take() {
            Some(base) => base.wrapping_add(offset),
            None => memory.locate(slot, level).map_err(Stop::Table)?,
        };
        let raw = load::<F>(memory.system(), spa)?;
        memory.stats().table_loads += 1;
        memory.note_entry(level, raw);
        let entry = format.classify(raw, level);
        match entry {
            Entry::NotPresent => return Err(Stop::NotPresent(level)),
            Entry::Reserved => return Err(Stop::Reserved(level)),
            Entry::Table | Entry::Leaf => {}
        }
        grants &= format.grants(raw, level);
        *step = Step { slot, spa, raw, grants };
        walk.filled += 1;
        walk.level = level;
        match level.below() {
            Some(below) if entry == Entry::Table => level = below,
            _ => break,
        }
        table = TableAddress::from_raw(format.table(raw));
    }
    Ok(())
}

/// Whether A and D could be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    /// They are set.
    Done,
    /// Another writer changed an entry: walk again.
    Raced,
}

/// Sets A in every entry of the walk, and D in the leaf for a write.
#[inline]
pub(crate) fn mark<F: Format, M: TableMemory>(
    format: &F,
    memory: &mut M,
    walk: &Walk<M::Address>,
    write: bool,
) -> Result<Marked, MmuFault> {
    for (level, step) in walk.steps() {
        let dirty = if write && level == walk.level { format.dirty() } else { 0 };
        let wanted = step.raw | format.accessed(level) | dirty;
        if wanted == step.raw {
            continue;
        }
        memory.before_update()?;
        let spa = memory.locate_update(step.slot, level, step.spa)?;
        let exchanged = if F::ENTRY_BYTES == 4 {
            memory.system().compare_exchange_u32(spa, step.raw as u32, wanted as u32).map(|done| done.is_ok())
        } else {
            memory.system().compare_exchange_u64(spa, step.raw, wanted).map(|done| done.is_ok())
        };
        match exchanged {
            Ok(true) => {
                memory.stats().ad_updates += 1;
                if format.accessed(level) & !step.raw != 0 {
                    memory.note_accessed(step.slot);
                }
                if dirty & !step.raw != 0 {
                    memory.note_dirtied(step.slot)?;
                }
            }
            Ok(false) => {
                memory.stats().restarts += 1;
                return Ok(Marked::Raced);
            }
            // The entry was readable and is aligned, so this is ROM: the bus drops the store.
            Err(_) => {}
        }
    }
    Ok(Marked::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Long, bits};
    use crate::paging::PagingFeatures;

    /// Memory in which somebody else writes just before A or D is set.
    struct Contended<'a> {
        memory: &'a SystemMemory,
        stats: MmuStats,
        interference: Option<(Spa, u64)>,
    }

    impl TableMemory for Contended<'_> {
        type Address = Gpa;

        fn locate(&mut self, slot: Gpa, _level: Level) -> Result<Spa, MmuFault> {
            Ok(Spa::new(slot.raw()))
        }
        fn locate_update(&mut self, _slot: Gpa, _level: Level, found: Spa) -> Result<Spa, MmuFault> {
            if let Some((at, value)) = self.interference.take() {
                self.memory.store(at, value).map_err(MmuFault::Bus)?;
            }
            Ok(found)
        }
        fn system(&self) -> &SystemMemory {
            self.memory
        }
        fn stats(&mut self) -> &mut MmuStats {
            &mut self.stats
        }
    }

    #[test]
    fn a_lost_race_walks_again_and_overwrites_nothing() {
        let system = SystemMemory::flat(0x1_0000).expect("a few frames");
        let format = Long::new(&PagingFeatures::AMD, true);
        let links = [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)];
        for (slot, below) in links {
            system.store(Spa::new(slot), below | bits::P | bits::RW | bits::A).expect("inside memory");
        }
        let (pte, changed) = (Spa::new(0x4000), 0x6000 | bits::P | bits::RW);
        system.store(pte, 0x5000 | bits::P | bits::RW).expect("inside memory");
        let mut memory = Contended { memory: &system, stats: MmuStats::default(), interference: Some((pte, changed)) };
        let root = TablePointer { level: Level::PML4, table: Gpa::new(0x1000), spa: None, grants: Grants::all() };

        let mut outcomes = Vec::new();
        for _ in 0..2 {
            let mut way = Walk::from(root);
            assert!(walk(&format, &mut memory, &mut way, root, 0).is_ok());
            outcomes.push((way.leaf().raw & bits::ADDRESS, mark(&format, &mut memory, &way, true)));
        }
        assert_eq!(outcomes, [(0x5000, Ok(Marked::Raced)), (0x6000, Ok(Marked::Done))]);
        assert_eq!(system.load::<u64>(pte), Ok(changed | bits::A | bits::D));
        assert_eq!((memory.stats.restarts, memory.stats.ad_updates), (1, 1));
    }
}
