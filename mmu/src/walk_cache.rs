//! The paging-structure cache: where the walk of an address may start below the root.
//!
//! Intel SDM vol. 3, "Paging-Structure Caches". Direct-mapped, one array for each level of the table an entry points to.
//! An entry is made only from table entries whose A bit is set, after a walk that succeeded, and it keeps the system
//! address of the table, so that under nesting it is a combined mapping: a change of either stage must drop it.
//!
//! Every operation that must drop some of it drops all of it, which costs one increment; the manuals allow more
//! invalidation than asked for.

use emu_core::{Sfn, Spa};

use crate::format::Grants;
use crate::level::Level;
use crate::tlb::Space;

/// log2 of the entries that point to page tables, page directories and PDPTs.
const SHAPE: [u32; 3] = [6, 4, 3];

#[derive(Clone, Copy)]
struct Entry<A> {
    generation: u32,
    space: Space,
    prefix: u64,
    pointer: TablePointer<A>,
}

/// A table on the way, and what the entries above it allow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TablePointer<A> {
    pub(crate) level: Level,
    pub(crate) table: A,
    /// Where the table is, once known.
    pub(crate) spa: Option<Spa>,
    pub(crate) grants: Grants,
}

/// See the module.
pub(crate) struct WalkCache<A> {
    generation: u32,
    levels: [Box<[Option<Entry<A>>]>; 3],
}

impl<A: Copy> WalkCache<A> {
    pub(crate) fn new() -> WalkCache<A> {
        WalkCache { generation: 0, levels: SHAPE.map(|bits| vec![None; 1 << bits].into_boxed_slice()) }
    }

    /// The deepest table known for `input`. `shift` gives the address bits below the index of a level.
    #[inline]
    pub(crate) fn lookup(&self, input: u64, space: Space, shift: impl Fn(Level) -> u32) -> Option<TablePointer<A>> {
        for (above, entries) in [Level::PD, Level::PDPT, Level::PML4].into_iter().zip(&self.levels) {
            let prefix = input >> shift(above);
            if let Some(entry) = &entries[prefix as usize & (entries.len() - 1)]
                && entry.prefix == prefix
                && entry.space == space
                && entry.generation == self.generation
            {
                return Some(entry.pointer);
            }
        }
        None
    }

    /// Remembers a table. Tables above a PDPT are not kept.
    #[inline]
    pub(crate) fn fill(&mut self, input: u64, space: Space, pointer: TablePointer<A>, shift: impl Fn(Level) -> u32) {
        let index = usize::from(pointer.level.number()) - 1;
        let above = [Level::PD, Level::PDPT, Level::PML4];
        let (Some(&above), Some(entries)) = (above.get(index), self.levels.get_mut(index)) else { return };
        let prefix = input >> shift(above);
        let slot = prefix as usize & (entries.len() - 1);
        entries[slot] = Some(Entry { generation: self.generation, space, prefix, pointer });
    }

    /// Whether a table that is remembered lies in one of `frames` frames from `first`.
    pub(crate) fn leads_to(&self, first: Sfn, frames: u64) -> bool {
        self.levels.iter().flatten().flatten().any(|entry| {
            let sfn = entry.pointer.spa.map(Spa::frame);
            entry.generation == self.generation
                && sfn.and_then(|sfn| sfn.offset_from(first)).is_some_and(|distance| distance < frames)
        })
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            // After 2^32 flushes an ancient entry would look current.
            for entries in &mut self.levels {
                entries.fill(None);
            }
        }
    }
}
