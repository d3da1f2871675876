//! Who owns a frame by the hardware's own books, which the host cannot overrule (`kvm_arch_gmem_invalidate`).
//!
//! Under SEV-SNP a private page is its guest's until the host takes it back, and until then a write of the host is a fault.
//! gmem knows nothing of such books: it tells a [`FrameOwner`] which frames leave the private side, before the host touches
//! them and after nothing maps them any more. That is when a page becomes shared, when it leaves the page cache, whole or in
//! part, and when its inode ends. Without an owner nothing is asked.
//!
//! Always true: a frame that its owner did not give back is never used again. It stays out of the page allocator, the pools
//! and the contiguous areas like one whose memory failed, and its bytes are not touched (`snp_leak_pages`).

use std::sync::Arc;

use emu_core::defect::Defect;
use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};

use crate::host::{Host, HostMemory};
use crate::shareability::Shareability;

/// What becomes of frames that leave the private side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// The host and the guest both use the page from now on; its bytes stay, as the host sees them.
    Shared,
    /// The page leaves its inode, and the frame is cleared before anybody uses it.
    Freed,
}

/// What became of a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// A block that the books changed as one is the host's again.
    Returned {
        /// First frame, a multiple of the size.
        block: Sfn,
        /// 4K or 2M.
        size: PageSize,
    },
    /// A frame that stays as it is.
    Kept {
        /// The frame.
        sfn: Sfn,
    },
}

/// The books of the hardware. Called with the host's memory locked: it may take no lock of this crate.
pub trait FrameOwner: Send + Sync {
    /// Takes `nr_frames` frames back, of which any may be the host's already: those are not told of. `each` learns what
    /// became of the others.
    fn reclaim(&self, first: Sfn, nr_frames: u64, leaving: Leaving, each: &mut dyn FnMut(Reclaimed), task: &Task<'_>);
}

impl Host {
    /// The hardware's books are about to say that a block is a guest's: the host's own map, where it is modelled, is split
    /// around 4K first (`adjust_direct_map`), so that no write to a neighbour reaches over the block.
    #[inline]
    pub fn assign_block(&self, block: Sfn, size: PageSize, task: &Task<'_>) {
        if self.models_direct_map() {
            self.lock(task).becomes(Shareability::PRIVATE, block, size);
        }
    }

    /// The books do not say so after all.
    #[inline]
    pub fn keep_block(&self, block: Sfn, size: PageSize, task: &Task<'_>) {
        if self.models_direct_map() {
            self.lock(task).becomes(Shareability::SHARED, block, size);
        }
    }
}

impl HostMemory {
    /// Has `owner` asked about frames that leave the private side. To be said before [`crate::Host::new`].
    pub fn set_frame_owner(&mut self, owner: Arc<dyn FrameOwner>) {
        self.owner = Some(owner);
    }

    /// Frames leave the private side: the first that stays its guest's, if any. Of frames that are to be freed those that
    /// stay are leaked.
    #[inline]
    pub(crate) fn reclaim(&mut self, first: Sfn, nr_frames: u64, leaving: Leaving, task: &Task<'_>) -> Option<Sfn> {
        let owner = Arc::clone(self.owner.as_ref()?);
        self.ask_owner(&*owner, first, nr_frames, leaving, task)
    }

    #[cold]
    fn ask_owner(
        &mut self,
        owner: &dyn FrameOwner,
        first: Sfn,
        nr_frames: u64,
        leaving: Leaving,
        task: &Task<'_>,
    ) -> Option<Sfn> {
        let mut kept = None;
        let each = &mut |reclaimed: Reclaimed| match reclaimed {
            Reclaimed::Returned { block, size } => self.becomes(Shareability::SHARED, block, size),
            Reclaimed::Kept { sfn } => {
                kept = kept.or(Some(sfn));
                if leaving == Leaving::Freed {
                    self.leak(sfn, task);
                }
            }
        };
        owner.reclaim(first, nr_frames, leaving, each, task);
        kept
    }

    /// Gives a frame up for good.
    fn leak(&mut self, sfn: Sfn, task: &Task<'_>) {
        if !task.has(Defect::UseKeptFrames) {
            self.poisoned.insert(sfn.raw());
        }
        self.leaked.insert(sfn.raw());
    }

    /// Whether a frame was given up because its owner kept it.
    pub fn is_leaked(&self, sfn: Sfn) -> bool {
        self.leaked.contains(&sfn.raw())
    }
}
