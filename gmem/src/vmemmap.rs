//! What the `struct page` array costs, and how huge pages give most of it back (Linux `mm/hugetlb_vmemmap.c`, "HVO").
//!
//! A `struct page` has 64 bytes, so one 4 KiB frame of the array (the *vmemmap*) describes 64 frames. The description of
//! a huge page is the same for all its tails: optimised, it keeps one frame and gives the others to the page allocator.
//! [`Vmemmap`] keeps the account and the real frames, in [`SystemFrames`] beside the allocator they come from. No byte
//! of the array is modelled, so which frame describes which page is not either: the array is one stack of runs.
//!
//! Always true, with optimisation on: the frames held are one for each 64 frames of the machine, less
//! [`saved_pages`] for each optimised page; a restore that fails has changed nothing; a restore and the optimisation
//! after it leave the page allocator as it was. With optimisation off the array lies outside the machine's memory and
//! nothing is ever optimised.
//!
//! Left out: the sysctl at run time, the shared tail page of each zone and order (one frame for the whole machine), the
//! kernel page tables of the array.

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::buddy::PageAllocator;
use crate::numa::{NodeId, NodeMask, NodeOrder};
use crate::pool::HugeSize;

/// Frames described by one frame of the array.
const FRAMES_PER_VMEMMAP_FRAME: u64 = PageSize::Size4K.bytes() / 64;

/// Frames of the array behind a huge page: 8 or 4096.
pub const fn full_pages(size: HugeSize) -> u64 {
    size.page_size().frames() / FRAMES_PER_VMEMMAP_FRAME
}

/// Frames that an optimised huge page keeps.
pub const KEPT_PAGES: u64 = 1;

/// Frames that an optimised huge page gives back: 7 or 4095.
pub const fn saved_pages(size: HugeSize) -> u64 {
    full_pages(size) - KEPT_PAGES
}

/// Whether huge pages of pools are optimised (`hugetlb_free_vmemmap=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum VmemmapMode {
    /// No; the array is not charged to the machine's memory at all.
    #[default]
    Off,
    /// Yes; the array is taken from each node's memory at boot.
    Optimise,
}

/// `ENOMEM`: there are too few free frames to give a huge page its descriptions back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("restoring the vmemmap of a {size} page takes {needed} frames, {free_frames} are free")]
pub struct VmemmapExhausted {
    /// The huge page.
    pub size: PageSize,
    /// Frames needed.
    pub needed: u64,
    /// Frames free in all nodes.
    pub free_frames: u64,
}

/// Counters of the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VmemmapStats {
    /// Frames it holds.
    pub held: u64,
    /// Optimised huge pages, by position in [`HugeSize::ALL`].
    pub optimised: [u64; 2],
    /// Huge pages restored so far.
    pub restored: u64,
    /// Restores refused for want of frames.
    pub failed: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Vmemmap {
    mode: VmemmapMode,
    /// The frames held, as `(first, frames)`; taken from and given back to the end.
    runs: Vec<(u64, u64)>,
    stats: VmemmapStats,
}

impl Vmemmap {
    /// The array of all of `pages`' memory, none of it optimised. With [`VmemmapMode::Optimise`] each node's part is
    /// taken from that node.
    pub fn new(mode: VmemmapMode, pages: &mut PageAllocator) -> Vmemmap {
        let mut vmemmap = Vmemmap { mode, ..Vmemmap::default() };
        if mode == VmemmapMode::Optimise {
            for node in pages.online().iter() {
                let nr = pages.node(node).map_or(0, |buddy| buddy.nr_frames().div_ceil(FRAMES_PER_VMEMMAP_FRAME));
                // A 64th of a node's frames is there while none is in use.
                vmemmap.take(pages, nr, NodeOrder::only(node));
            }
        }
        vmemmap
    }

    /// Whether huge pages of pools are optimised.
    pub const fn mode(&self) -> VmemmapMode {
        self.mode
    }

    /// The counters.
    pub const fn stats(&self) -> VmemmapStats {
        self.stats
    }

    fn take(&mut self, pages: &mut PageAllocator, nr_frames: u64, nodes: NodeOrder) -> bool {
        let runs = &mut self.runs;
        let taken = pages.alloc_frames(nr_frames, nodes, |first, nr| match runs.last_mut() {
            Some((start, run)) if *start + *run == first.raw() => *run += nr,
            _ => runs.push((first.raw(), nr)),
        });
        if taken {
            self.stats.held += nr_frames;
        }
        taken
    }

    fn give(&mut self, pages: &mut PageAllocator, nr_frames: u64) {
        let mut left = nr_frames;
        while left > 0 {
            let Some((start, run)) = self.runs.last_mut() else { break };
            let nr = left.min(*run);
            *run -= nr;
            let first = Sfn::new(*start + *run);
            if *run == 0 {
                self.runs.pop();
            }
            // A run may have grown over the border of two nodes.
            give_by_node(pages, first, nr);
            left -= nr;
        }
        assert_eq!(left, 0, "the array holds at least what its optimised pages save");
        self.stats.held -= nr_frames;
    }

    /// Gives the descriptions of `nr_pages` huge pages back but for one frame each (`hugetlb_vmemmap_optimize_folio`).
    /// Whether they are optimised now: not with [`VmemmapMode::Off`].
    pub fn optimise(&mut self, pages: &mut PageAllocator, size: HugeSize, nr_pages: u64) -> bool {
        if self.mode == VmemmapMode::Off {
            return false;
        }
        self.give(pages, nr_pages * saved_pages(size));
        self.stats.optimised[size as usize] += nr_pages;
        true
    }

    /// Gives `nr_pages` optimised huge pages their descriptions back, all or nothing
    /// (`hugetlb_vmemmap_restore_folio`), with frames of `near` where there are some. Nothing to do with
    /// [`VmemmapMode::Off`].
    ///
    /// # Panics
    /// When fewer are optimised.
    pub fn restore(
        &mut self,
        pages: &mut PageAllocator,
        size: HugeSize,
        nr_pages: u64,
        near: NodeId,
    ) -> Result<(), VmemmapExhausted> {
        if self.mode == VmemmapMode::Off {
            return Ok(());
        }
        let optimised = self.stats.optimised[size as usize];
        assert!(
            nr_pages <= optimised,
            "{nr_pages} {} pages are to be restored, {optimised} are optimised",
            size.page_size()
        );
        let needed = nr_pages * saved_pages(size);
        let nodes = crate::numa::MemPolicy::Preferred(near).order(0, pages.online());
        if !self.take(pages, needed, nodes) {
            self.stats.failed += 1;
            return Err(VmemmapExhausted { size: size.page_size(), needed, free_frames: pages.free_frames() });
        }
        self.stats.optimised[size as usize] -= nr_pages;
        self.stats.restored += nr_pages;
        Ok(())
    }

    /// `parts` optimised 2M pages, and otherwise restored memory, become one optimised 1G page. Nothing to do with
    /// [`VmemmapMode::Off`].
    pub(crate) fn fold(&mut self, pages: &mut PageAllocator, parts: u64) -> bool {
        if self.mode == VmemmapMode::Off {
            return false;
        }
        self.stats.optimised[HugeSize::Size2M as usize] -= parts;
        self.stats.optimised[HugeSize::Size1G as usize] += 1;
        self.give(pages, saved_pages(HugeSize::Size1G) - parts * saved_pages(HugeSize::Size2M));
        true
    }
}

fn give_by_node(pages: &mut PageAllocator, first: Sfn, nr_frames: u64) {
    let end = first.raw() + nr_frames;
    let mut at = first.raw();
    while at < end {
        let node_end = pages
            .node_of(Sfn::new(at))
            .and_then(|node| pages.node(node))
            .map_or(end, |buddy| buddy.first().raw() + buddy.nr_frames());
        let nr = node_end.min(end) - at;
        pages.free_frames_from(Sfn::new(at), nr);
        at += nr;
    }
}

/// The page allocator and the array that describes its frames: what everything that holds frames leans on.
#[derive(Clone, Debug)]
pub struct SystemFrames {
    /// Free frames, by node.
    pub pages: PageAllocator,
    /// Their descriptions.
    pub vmemmap: Vmemmap,
}

impl SystemFrames {
    /// All of `ranges` free, but for the array itself.
    ///
    /// # Panics
    /// As [`PageAllocator::new`].
    pub fn new(ranges: &[(Sfn, u64)], mode: VmemmapMode) -> SystemFrames {
        let mut pages = PageAllocator::new(ranges);
        let vmemmap = Vmemmap::new(mode, &mut pages);
        SystemFrames { pages, vmemmap }
    }

    /// The nodes there are.
    pub fn online(&self) -> NodeMask {
        self.pages.online()
    }

    pub(crate) fn optimise(&mut self, size: HugeSize, nr_pages: u64) -> bool {
        self.vmemmap.optimise(&mut self.pages, size, nr_pages)
    }

    pub(crate) fn fold(&mut self, parts: u64) -> bool {
        self.vmemmap.fold(&mut self.pages, parts)
    }

    pub(crate) fn restore(&mut self, size: HugeSize, nr_pages: u64, near: Sfn) -> Result<(), VmemmapExhausted> {
        let near = self.pages.node_of(near).unwrap_or(NodeId::ZERO);
        self.vmemmap.restore(&mut self.pages, size, nr_pages, near)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const G1: u64 = PageSize::Size1G.frames();

    fn frames(nr: u64) -> SystemFrames {
        SystemFrames::new(&[(Sfn::new(0), nr / 2), (Sfn::new(nr / 2), nr - nr / 2)], VmemmapMode::Optimise)
    }

    #[test]
    fn the_table_of_sizes() {
        let row = |size| (full_pages(size), saved_pages(size), saved_pages(size) * 4);
        assert_eq!(row(HugeSize::Size2M), (8, 7, 28));
        assert_eq!(row(HugeSize::Size1G), (4096, 4095, 16380));
    }

    #[test]
    fn a_restore_without_frames_leaves_no_trace() {
        let mut sys = frames(2 * G1);
        assert_eq!(sys.vmemmap.stats().held, 2 * G1 / 64);
        assert!(sys.optimise(HugeSize::Size1G, 1));
        let spare = sys.pages.free_frames() - 4094;
        let any = crate::numa::MemPolicy::Any.order(0, sys.online());
        let mut held = Vec::new();
        assert!(sys.pages.alloc_frames(spare, any, |first, nr| held.push((first, nr))));
        let before = sys.clone();
        let refused = sys.restore(HugeSize::Size1G, 1, Sfn::new(0));
        assert_eq!(refused, Err(VmemmapExhausted { size: PageSize::Size1G, needed: 4095, free_frames: 4094 }));
        assert_eq!(sys.pages.free_frames(), before.pages.free_frames());
        assert_eq!(sys.vmemmap.runs, before.vmemmap.runs);
        assert_eq!(sys.vmemmap.stats(), VmemmapStats { failed: 1, ..before.vmemmap.stats() });
        sys.pages.free_frames_from(held[0].0, 1);
        assert_eq!(sys.restore(HugeSize::Size1G, 1, Sfn::new(0)), Ok(()));
        assert_eq!((sys.pages.free_frames(), sys.vmemmap.stats().held), (0, 2 * G1 / 64));
    }

    #[test]
    fn off_costs_and_saves_nothing() {
        let mut sys = SystemFrames::new(&[(Sfn::new(0), G1)], VmemmapMode::Off);
        assert!(!sys.optimise(HugeSize::Size1G, 1));
        assert_eq!(sys.restore(HugeSize::Size1G, 1, Sfn::new(0)), Ok(()));
        assert_eq!((sys.vmemmap.stats(), sys.pages.free_frames()), (VmemmapStats::default(), G1));
    }

    proptest! {
        /// F11, and that the array is short whatever happens to it.
        #[test]
        fn frames_held_follow_what_is_optimised(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 1_u64..40), 1..80),
        ) {
            let mut sys = frames(4 * G1);
            for (restore, giant, nr) in steps {
                let size = if giant { HugeSize::Size1G } else { HugeSize::Size2M };
                let nr = if giant { nr % 3 } else { nr };
                let stats = sys.vmemmap.stats();
                if restore {
                    let nr = nr.min(stats.optimised[size as usize]);
                    sys.restore(size, nr, Sfn::new(0)).unwrap();
                } else if nr * saved_pages(size) <= stats.held {
                    sys.optimise(size, nr);
                }
                let stats = sys.vmemmap.stats();
                let saved: u64 = HugeSize::ALL.iter().map(|&s| stats.optimised[s as usize] * saved_pages(s)).sum();
                prop_assert_eq!(stats.held, 4 * G1 / 64 - saved);
                prop_assert_eq!(sys.vmemmap.runs.iter().map(|r| r.1).sum::<u64>(), stats.held);
                prop_assert_eq!(sys.pages.free_frames() + stats.held, 4 * G1);
            }
        }
    }
}
