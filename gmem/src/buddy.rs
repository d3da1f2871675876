//! The page allocator: binary buddies over one range of system frames (Linux `mm/page_alloc.c`).
//!
//! [`Buddy`] is the door to one range, [`PageAllocator`] to the ranges of all nodes. A buddy's free lists are populated lazily: a fresh range is a handful of blocks as large as their
//! alignment allows, cut only when something smaller is asked for. So the cost of the structure is the fragmentation
//! it describes. Of equal blocks the lowest is taken, so that runs repeat.
//!
//! Always true: free blocks are disjoint and naturally aligned, and no two free buddies of one order stay unmerged.
//! Left out: zones, migrate types, per-CPU lists, watermarks.

mod nodes;

use std::collections::BTreeSet;

use emu_core::{Order, Sfn};

pub use nodes::PageAllocator;

/// The largest block is 2^36 frames, 2^48 bytes.
const ORDERS: usize = 37;

/// See the module.
#[derive(Clone, Debug)]
pub struct Buddy {
    start: u64,
    end: u64,
    free: Vec<BTreeSet<u64>>,
    /// Bit n: there is a free block of order n.
    available: u64,
    free_frames: u64,
}

impl Buddy {
    /// An allocator over `nr_frames` free frames from `first`.
    pub fn new(first: Sfn, nr_frames: u64) -> Buddy {
        let start = first.raw();
        let end = start.saturating_add(nr_frames);
        let mut buddy = Buddy { start, end, free: vec![BTreeSet::new(); ORDERS], available: 0, free_frames: 0 };
        let mut at = start;
        while at < end {
            let aligned = at.trailing_zeros();
            let fits = (end - at).ilog2();
            let order = aligned.min(fits).min(ORDERS as u32 - 1) as usize;
            buddy.put(at, order);
            at += 1 << order;
        }
        buddy.free_frames = end - start;
        buddy
    }

    fn put(&mut self, frame: u64, order: usize) {
        self.free[order].insert(frame);
        self.available |= 1 << order;
    }

    fn take(&mut self, frame: u64, order: usize) -> bool {
        let there = self.free[order].remove(&frame);
        if self.free[order].is_empty() {
            self.available &= !(1 << order);
        }
        there
    }

    /// The first frame of the range.
    pub fn first(&self) -> Sfn {
        Sfn::new(self.start)
    }

    /// Frames that are free.
    pub fn free_frames(&self) -> u64 {
        self.free_frames
    }

    /// Frames in all.
    pub fn nr_frames(&self) -> u64 {
        self.end - self.start
    }

    /// Free blocks per order, as `/proc/buddyinfo` shows them.
    pub fn free_blocks(&self, order: Order) -> u64 {
        self.free.get(usize::from(order.raw())).map_or(0, |list| list.len() as u64)
    }

    /// Takes a naturally aligned block of `order`, or `None` when no free block is large enough.
    pub fn alloc(&mut self, order: Order) -> Option<Sfn> {
        let want = usize::from(order.raw());
        if want >= ORDERS {
            return None;
        }
        let candidates = self.available >> want << want;
        if candidates == 0 {
            return None;
        }
        let mut have = candidates.trailing_zeros() as usize;
        let frame = *self.free[have].first()?;
        self.take(frame, have);
        while have > want {
            have -= 1;
            self.put(frame + (1 << have), have);
        }
        self.free_frames -= order.frames();
        Some(Sfn::new(frame))
    }

    /// Gives back what [`Buddy::alloc`] gave, or an aligned part of it.
    ///
    /// # Panics
    /// When the block lies outside the range or its buddy's merge shows it free already; the caller's books are wrong.
    pub fn free(&mut self, block: Sfn, order: Order) {
        let mut frame = block.raw();
        let mut at = usize::from(order.raw());
        assert!(
            at < ORDERS && frame.is_multiple_of(1 << at) && frame >= self.start && frame + (1 << at) <= self.end,
            "{block:?} of order {at} is not a block of this allocator"
        );
        debug_assert!(!self.is_free(block, order), "{block:?} is free already");
        while at + 1 < ORDERS && self.take(frame ^ (1 << at), at) {
            frame &= !(1 << at);
            at += 1;
        }
        self.put(frame, at);
        self.free_frames += order.frames();
    }

    /// Whether `sfn` is in the allocator's range, free or not.
    pub fn contains(&self, sfn: Sfn) -> bool {
        (self.start..self.end).contains(&sfn.raw())
    }

    /// Takes `nr_frames` frames, wherever they are, all or nothing; `taken` is told each block as `(first, frames)`.
    /// Large blocks come first, so that the caller's books stay short.
    ///
    /// Whether there were enough.
    pub fn alloc_frames(&mut self, nr_frames: u64, mut taken: impl FnMut(Sfn, u64)) -> bool {
        if self.free_frames < nr_frames {
            return false;
        }
        let mut left = nr_frames;
        let mut above = ORDERS as u8 - 1;
        while left > 0 {
            above = above.min(left.ilog2() as u8);
            match Order::new(above).and_then(|order| self.alloc(order)) {
                Some(first) => {
                    taken(first, 1 << above);
                    left -= 1 << above;
                }
                // With a free frame left, order 0 cannot fail.
                None => above = above.saturating_sub(1),
            }
        }
        true
    }

    /// Gives back `nr_frames` frames from `first`, however they are aligned.
    ///
    /// # Panics
    /// As [`Buddy::free`].
    pub fn free_frames_from(&mut self, first: Sfn, nr_frames: u64) {
        let mut at = first.raw();
        let end = at + nr_frames;
        while at < end {
            let order = at.trailing_zeros().min((end - at).ilog2()).min(ORDERS as u32 - 1) as u8;
            let Some(order) = Order::new(order) else { break };
            self.free(Sfn::new(at), order);
            at += order.frames();
        }
    }

    /// Takes one particular block out of the free ones; whether all of it was free.
    pub fn take_block(&mut self, first: Sfn, order: Order) -> bool {
        let frame = first.raw();
        let goal = usize::from(order.raw());
        let holds = |at: &usize| self.free[*at].contains(&(frame & !((1 << at) - 1)));
        // Free buddies are merged: what is free as a whole lies in one block.
        let Some(mut at) = (goal..ORDERS).find(holds) else { return false };
        let mut block = frame & !((1 << at) - 1);
        self.take(block, at);
        while at > goal {
            at -= 1;
            let half = 1 << at;
            if frame & half == 0 {
                self.put(block + half, at);
            } else {
                self.put(block, at);
                block += half;
            }
        }
        self.free_frames -= order.frames();
        true
    }

    /// Free frames of the free blocks that start in `[first, end)`.
    pub(crate) fn free_in(&self, first: u64, end: u64) -> u64 {
        self.free.iter().enumerate().map(|(at, list)| (list.range(first..end).count() as u64) << at).sum()
    }

    /// Whether any frame of the block is free.
    pub fn is_free(&self, block: Sfn, order: Order) -> bool {
        let frame = block.raw();
        let end = frame.saturating_add(order.frames());
        self.free.iter().enumerate().any(|(at, list)| {
            let container = frame & !((1 << at) - 1);
            list.contains(&container) || list.range(frame..end).next().is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(raw: u8) -> Order {
        Order::new(raw).unwrap()
    }

    #[test]
    fn a_terabyte_is_a_few_blocks() {
        let buddy = Buddy::new(Sfn::new(512), (1 << 28) - 512);
        let blocks: u64 = (0..37).map(|o| buddy.free_blocks(order(o))).sum();
        assert!(blocks < 64, "{blocks}");
        assert_eq!(buddy.free_frames(), (1 << 28) - 512);
    }

    #[test]
    fn huge_blocks_are_aligned_and_merge_back() {
        let mut buddy = Buddy::new(Sfn::new(1), (1 << 19) + 5);
        let fresh = buddy.clone();
        let huge = buddy.alloc(order(18)).unwrap();
        assert_eq!(huge, Sfn::new(1 << 18));
        assert_eq!(buddy.alloc(order(18)), None);
        buddy.free(huge, order(18));
        assert_eq!(buddy.free, fresh.free);
    }

    #[test]
    fn scattered_frames_and_single_ones() {
        let mut buddy = Buddy::new(Sfn::new(3), 600);
        let fresh = buddy.free.clone();
        assert!(!buddy.alloc_frames(601, |_, _| panic!("all or nothing")));
        let mut got = Vec::new();
        assert!(buddy.alloc_frames(600, |first, nr| got.push((first, nr))));
        assert_eq!(buddy.free_frames(), 0);
        for (first, nr) in got {
            buddy.free_frames_from(first, nr);
        }
        assert_eq!(buddy.free, fresh);
        assert!(buddy.take_block(Sfn::new(300), Order::ZERO) && !buddy.take_block(Sfn::new(300), order(2)));
        assert_eq!((buddy.free_frames(), buddy.is_free(Sfn::new(300), Order::ZERO)), (599, false));
        assert!(buddy.is_free(Sfn::new(301), Order::ZERO) && buddy.is_free(Sfn::new(299), Order::ZERO));
        buddy.free(Sfn::new(300), Order::ZERO);
        assert_eq!(buddy.free, fresh);
    }

    proptest! {
        #[test]
        fn never_hands_out_a_frame_twice_and_merges_fully(
            first in 0_u64..64, frames in 1_u64..2000, steps in prop::collection::vec((0_u8..10, any::<prop::sample::Index>()), 1..100),
        ) {
            let mut buddy = Buddy::new(Sfn::new(first), frames);
            let fresh = buddy.free.clone();
            let mut held: Vec<(Sfn, Order)> = Vec::new();
            for (o, pick) in steps {
                if o < 6 {
                    if let Some(block) = buddy.alloc(order(o)) {
                        let (b, e) = (block.raw(), block.raw() + order(o).frames());
                        prop_assert!(b >= first && e <= first + frames && b.is_multiple_of(order(o).frames()));
                        prop_assert!(held.iter().all(|&(h, ho)| e <= h.raw() || h.raw() + ho.frames() <= b));
                        prop_assert!(!buddy.is_free(block, order(o)));
                        held.push((block, order(o)));
                    }
                } else if !held.is_empty() {
                    let (block, o) = held.swap_remove(pick.index(held.len()));
                    buddy.free(block, o);
                    prop_assert!(buddy.is_free(block, o));
                }
                let in_use: u64 = held.iter().map(|&(_, o)| o.frames()).sum();
                prop_assert_eq!(buddy.free_frames() + in_use, buddy.nr_frames());
            }
            for (block, o) in held {
                buddy.free(block, o);
            }
            prop_assert_eq!(buddy.free, fresh, "everything merged back");
        }
    }
}
