//! What the host does to its own map when a page becomes the guest's, and when it comes back.
//!
//! [`DirectMapPolicy`] names the four ways that were implemented or proposed; [`DirectMap::on`] takes the [`Event`]s. The
//! reason for all of them: an SNP host that writes through an entry overlapping a guest-owned 4K page takes an RMP
//! fault, even when the write goes elsewhere.

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use super::{DirectMap, Effect, G1, M2};

/// When the direct map is split, unmapped and rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DirectMapPolicy {
    /// Linux: a 4K change splits the entry around it, and nothing collapses until the host reboots.
    #[default]
    Linux,
    /// A 4K change splits; when a 2M block has no deviating page left, it is collapsed, and its GiB with it.
    Rebuild,
    /// Private pages leave the map, as 2M where they change as 2M, and come back when the inode releases them.
    Unmap,
    /// A change of 4K is refused: who wants a shared page gives 2M away for it.
    Refuse,
}

impl DirectMapPolicy {
    /// Every policy.
    pub const ALL: [DirectMapPolicy; 4] =
        [DirectMapPolicy::Linux, DirectMapPolicy::Rebuild, DirectMapPolicy::Unmap, DirectMapPolicy::Refuse];
}

/// What happens to host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The block's RMP entry, or the privacy of the block, changes at this granularity and now deviates from its
    /// surroundings.
    Change {
        /// First frame, a multiple of the size.
        block: Sfn,
        /// Granularity of the change.
        size: PageSize,
    },
    /// The block is again as its surroundings are.
    Uniform {
        /// First frame, a multiple of the size.
        block: Sfn,
        /// Granularity.
        size: PageSize,
    },
    /// The inode gives the frames back.
    Release {
        /// First frame.
        first: Sfn,
        /// How many.
        nr_frames: u64,
    },
}

/// `EOPNOTSUPP`: the policy does not split; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the direct map is not split for the {size} page at {block:?}; convert {whole} at a time", whole = PageSize::Size2M)]
pub struct Refused {
    /// The page.
    pub block: Sfn,
    /// Its size.
    pub size: PageSize,
}

impl DirectMap {
    /// Applies the policy to an event. Frames outside the range are nobody's concern.
    pub fn on(&mut self, event: Event) -> Result<Effect, Refused> {
        let effect = match (self.policy(), event) {
            (DirectMapPolicy::Linux, Event::Change { block, size: PageSize::Size4K }) => {
                self.split(block, PageSize::Size4K)
            }
            (DirectMapPolicy::Linux, _) => Effect::default(),
            (DirectMapPolicy::Rebuild, Event::Change { block, size: PageSize::Size4K }) => {
                let effect = self.split(block, PageSize::Size4K);
                self.set_deviating(block, 1, true);
                effect
            }
            (DirectMapPolicy::Rebuild, Event::Change { .. }) => Effect::default(),
            (DirectMapPolicy::Rebuild, Event::Uniform { block, size }) => self.settle(block, size.frames()),
            (DirectMapPolicy::Rebuild, Event::Release { first, nr_frames }) => self.settle(first, nr_frames),
            (DirectMapPolicy::Unmap, Event::Change { block, size }) => self.set_invalid(block, size.frames()),
            (DirectMapPolicy::Unmap, Event::Uniform { .. }) => Effect::default(),
            (DirectMapPolicy::Unmap, Event::Release { first, nr_frames }) => self.set_default(first, nr_frames),
            (DirectMapPolicy::Refuse, Event::Change { block, size: size @ PageSize::Size4K }) => {
                return Err(Refused { block, size });
            }
            (DirectMapPolicy::Refuse, Event::Release { first, nr_frames }) => {
                let (from, to) = (first.raw().div_ceil(M2), first.raw().saturating_add(nr_frames) / M2);
                let gone: Vec<u64> = self.shared.range(from..to.max(from)).map(|(&block, _)| block).collect();
                for block in gone {
                    self.shared.remove(&block);
                }
                Effect::default()
            }
            (DirectMapPolicy::Refuse, _) => Effect::default(),
        };
        Ok(effect)
    }

    /// Frames of an inode went back to their source.
    pub(crate) fn release(&mut self, first: Sfn, nr_frames: u64) {
        let released = self.on(Event::Release { first, nr_frames });
        debug_assert!(released.is_ok(), "a release is never refused");
    }

    /// Pieces became one folio again.
    pub(crate) fn settled(&mut self, block: Sfn, size: PageSize) {
        let settled = self.on(Event::Uniform { block, size });
        debug_assert!(settled.is_ok(), "what is uniform is never refused");
    }

    /// Whether the policy takes a change of this size.
    pub fn takes(&self, block: Sfn, size: PageSize) -> Result<(), Refused> {
        match (self.policy(), size) {
            (DirectMapPolicy::Refuse, PageSize::Size4K) => Err(Refused { block, size }),
            _ => Ok(()),
        }
    }

    fn settle(&mut self, first: Sfn, nr_frames: u64) -> Effect {
        self.set_deviating(first, nr_frames, false);
        self.collapse(first, nr_frames)
    }

    /// Notes for whose sake blocks are split; a block that is not split has no such page.
    fn set_deviating(&mut self, first: Sfn, nr_frames: u64, deviating: bool) {
        let (from, to) = self.clip(first, nr_frames);
        if from >= to {
            return;
        }
        for (&gib, directory) in self.gibs.range_mut(from / G1..=(to - 1) / G1) {
            for (block, base) in directory.blocks.iter_mut().zip((gib * G1..).step_by(M2 as usize)) {
                let (at, end) = (from.max(base), to.min(base + M2));
                if let super::Block::Small(pages) = block
                    && at < end
                {
                    pages.deviating.set(at - base, end - at, deviating);
                }
            }
        }
    }

    /// Under [`DirectMapPolicy::Refuse`]: the 2M block around `sfn` was given away for `shared_frames` shared pages; none
    /// ends that.
    pub fn charge_shared(&mut self, sfn: Sfn, shared_frames: u64) {
        let block = sfn.raw() / M2;
        match shared_frames.min(M2) {
            0 => self.shared.remove(&block),
            frames => self.shared.insert(block, frames),
        };
    }

    /// Bytes of blocks given away that nobody shares.
    pub fn wasted_bytes(&self) -> u64 {
        self.shared.values().map(|frames| (M2 - frames) * PageSize::Size4K.bytes()).sum()
    }
}
