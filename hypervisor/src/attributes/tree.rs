//! `mem_attr_array`: who may use each guest frame, as the VM says.
//!
//! [`AttributeTree`] stores the attributes as runs; beside them it knows which entries of the kernel's xarray are
//! reserved and empty. A store of more than "no attributes" first reserves an entry for each frame, and nodes of 64
//! entries are memory that may be wanting. What was reserved by then stays reserved.
//!
//! Always true: reserved entries say nothing about any frame, and no frame is both stored and reserved.

use core::ops::Range;

use emu_core::defect::Defect;
use emu_core::sync::Task;
use gmem::{Shareability, ShareabilityMap};

/// Entries of a node (`XA_CHUNK_SIZE`).
const NODE: u64 = 64;

/// No memory for a node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoNode {
    /// The first frame that has no entry.
    pub(crate) at: u64,
}

/// Whether the host has memory for another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeMemory {
    /// It has.
    Plenty,
    /// Only nodes that are there can be used.
    None,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AttributeTree {
    map: ShareabilityMap,
    /// Disjoint, in the order of the failed calls that left them.
    reserved: Vec<Range<u64>>,
}

impl AttributeTree {
    /// `nr_frames` frames without attributes, which means shared.
    pub(crate) fn new(nr_frames: u64) -> AttributeTree {
        AttributeTree { map: ShareabilityMap::new(nr_frames, Shareability::SHARED), reserved: Vec::new() }
    }

    /// The attributes themselves.
    pub(crate) const fn map(&self) -> &ShareabilityMap {
        &self.map
    }

    /// Who may use a frame.
    #[inline]
    pub(crate) fn get(&self, gfn: u64) -> Shareability {
        self.map.get(gfn)
    }

    /// Whether frames `[first, first + nr)` have one attribute (`kvm_range_has_memory_attributes`).
    pub(crate) fn is_uniform(&self, first: u64, nr: u64, task: &Task<'_>) -> bool {
        let uniform = self.map.is_uniform(first, nr);
        // The search for anything stored at all stops at an entry that is reserved and empty.
        let stumbles = task.has(Defect::CountReservedEntries) && !self.get(first).is_private();
        uniform && !(stumbles && self.reserved.iter().any(|part| part.start < first + nr && first < part.end))
    }

    /// Makes sure that attributes of `range` can be stored (`xa_reserve` for each frame).
    ///
    /// # Errors
    /// The first frame without an entry. Those below it are reserved from now on.
    pub(crate) fn reserve(&mut self, range: Range<u64>, memory: NodeMemory) -> Result<(), NoNode> {
        if memory == NodeMemory::Plenty {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let node = at - at % NODE..at - at % NODE + NODE;
            let stored = self.map.contains(node.start, NODE, Shareability::PRIVATE);
            if !stored && !self.reserved.iter().any(|part| part.start < node.end && node.start < part.end) {
                self.keep(range.start..at);
                return Err(NoNode { at });
            }
            at = node.end;
        }
        Ok(())
    }

    /// Remembers what of `range` is reserved and empty.
    fn keep(&mut self, range: Range<u64>) {
        self.release(&range);
        let empty = self.map.runs_in(range.start, range.end).filter(|run| !run.2.is_private());
        self.reserved.extend(empty.map(|(first, nr, _)| first..first + nr));
    }

    /// Nothing of `range` is reserved and empty any more.
    fn release(&mut self, range: &Range<u64>) {
        let left = |part: Range<u64>| {
            let sides = [part.start..part.end.min(range.start), part.start.max(range.end)..part.end];
            sides.into_iter().filter(|side| !side.is_empty())
        };
        self.reserved = std::mem::take(&mut self.reserved).into_iter().flat_map(left).collect();
    }

    /// Stores `to` for `[first, first + nr)`, for which there are entries.
    pub(crate) fn set(&mut self, first: u64, nr: u64, to: Shareability) {
        if !self.reserved.is_empty() {
            self.release(&(first..first + nr));
        }
        self.map.set(first, nr, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu_core::defect::Defects;

    const QUIET: &Task<'static> = &Task::QUIET;

    #[test]
    fn what_a_failed_store_reserved_stays_and_says_nothing() {
        let mut tree = AttributeTree::new(1024);
        tree.set(3, 1, Shareability::PRIVATE);
        assert_eq!(tree.reserve(8..128, NodeMemory::None), Err(NoNode { at: 64 }));
        assert_eq!(tree.reserved.as_slice(), core::slice::from_ref(&(8..64)));
        tree.set(3, 1, Shareability::SHARED);
        assert!(tree.is_uniform(0, 512, QUIET), "nothing is stored");
        let task = &QUIET.with(Defects::only(Defect::CountReservedEntries));
        assert!(!tree.is_uniform(0, 512, task) && tree.is_uniform(64, 512, task));
        assert_eq!(tree.reserve(10..20, NodeMemory::None), Ok(()), "the node is there");
        tree.set(10, 10, Shareability::PRIVATE);
        assert_eq!(tree.reserved, [8..10, 20..64]);
        assert_eq!(tree.reserve(0..4096, NodeMemory::Plenty), Ok(()));
    }
}
