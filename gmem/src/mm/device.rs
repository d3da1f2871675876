//! Memory of a device that its driver lets processes map (`remap_pfn_range`): a block of more than one page that is no
//! compound page, as `alloc_pages` without `__GFP_COMP` makes it.
//!
//! Its head page carries the driver's reference and its tails none, so taking and dropping a reference on a tail frees a
//! page that the driver still uses. Therefore its entries are special and nobody takes references.

use emu_core::memory::BusError;
use emu_core::{Hva, Order, PageSize, Sfn};
use thiserror::Error;

use super::{HvaRange, Kernel, Mm, MmError, NotifyReason, What};
use crate::folio::{FolioFlags, FolioKind, FolioMeta, Source};
use crate::numa::MemPolicy;
use crate::{HostMemory, OutOfMemory};

/// A block of a driver. It is given back by [`HostMemory::free_device`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a block that is not given back is lost"]
pub struct DeviceMemory {
    first: Sfn,
    order: Order,
}

impl DeviceMemory {
    /// Its first frame.
    pub const fn first(&self) -> Sfn {
        self.first
    }
    /// Its frames.
    pub const fn nr_frames(&self) -> u64 {
        self.order.frames()
    }
    /// What a process maps to see it.
    pub const fn what(&self) -> What {
        What::Device { first: self.first }
    }
}

/// What a driver finds wrong with its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// Somebody's last reference on a tail freed a page of the driver's (CVE-2021-22543).
    #[error("{sfn:?} of a driver was freed under it")]
    FreedUnderneath {
        /// The page.
        sfn: Sfn,
    },
    /// Somebody holds references that no page of it may have.
    #[error("{sfn:?} of a driver has {refs} references too many")]
    Held {
        /// The page.
        sfn: Sfn,
        /// References beside the driver's.
        refs: u32,
    },
    /// The block is not system memory.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl HostMemory {
    /// A zeroed block for a driver.
    pub fn alloc_device(&mut self, order: Order) -> Result<DeviceMemory, OutOfMemory> {
        let nodes = MemPolicy::Any.order(0, self.frames.online());
        let out_of_memory = OutOfMemory { size: order.largest_page(), free_frames: self.frames.pages.free_frames() };
        let first = self.frames.pages.alloc(order, nodes).ok_or(out_of_memory)?;
        for n in 0..order.frames() {
            let refs = u32::from(n == 0);
            let meta = FolioMeta { kind: FolioKind::Device, flags: FolioFlags::empty(), refs, maps: 0 };
            self.folios.insert(Sfn::new(first.raw() + n), PageSize::Size4K, meta, Source::Pages);
        }
        Ok(DeviceMemory { first, order })
    }

    /// Whether every page of the block is as the driver left it.
    pub fn check_device(&self, block: &DeviceMemory) -> Result<(), DeviceError> {
        for n in 0..block.nr_frames() {
            let sfn = Sfn::new(block.first.raw() + n);
            let own = u32::from(n == 0);
            match self.folios.get(sfn) {
                Some(folio) if folio.meta.kind == FolioKind::Device => {
                    let refs = folio.meta.refs.saturating_sub(own);
                    if refs > 0 {
                        return Err(DeviceError::Held { sfn, refs });
                    }
                }
                _ => return Err(DeviceError::FreedUnderneath { sfn }),
            }
        }
        Ok(())
    }

    /// Takes a block back (`__free_pages`). No process may map it any more.
    pub fn free_device(&mut self, block: DeviceMemory) -> Result<(), DeviceError> {
        self.check_device(&block)?;
        for n in 0..block.nr_frames() {
            let sfn = Sfn::new(block.first.raw() + n);
            self.folios.meta_mut(sfn).refs = 0;
            self.end_use(sfn);
        }
        self.frames.pages.free(block.first, block.order);
        Ok(())
    }
}

impl Mm {
    /// A driver moves what a process sees at `at` to other frames: the entries go first (`unmap_mapping_range`), and the
    /// next fault finds the new ones.
    pub fn move_device(&self, at: Hva, len_bytes: u64, to: Sfn, kernel: Kernel<'_>) -> Result<(), MmError> {
        let range = HvaRange::checked(at, len_bytes)?;
        let mut vmas = self.vmas.write(kernel.task);
        vmas.must_cover(range)?;
        let move_to = |vma: &mut super::Vma| {
            vma.set_device(Sfn::new(to.raw() + (vma.range().first.raw() - range.first.raw())));
        };
        for pages in self.change_vmas(&mut vmas, range, &move_to, kernel.task) {
            kernel.notifier.invalidate(self.id, pages, NotifyReason::Clear, kernel.task, &mut |task| {
                self.table.zap(pages, kernel.host, task);
            });
        }
        Ok(())
    }
}
