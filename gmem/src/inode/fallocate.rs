//! `fallocate` on a guest_memfd: what may be asked, and what it means (`vfs_fallocate`, `kvm_gmem_fallocate`).
//!
//! [`Fallocate::parse`] is the door; the hypervisor then allocates, or punches between the begin and the end of an
//! invalidation.

use bitflags::bitflags;
use emu_core::{Errno, PageSize};
use thiserror::Error;

use super::{GuestMemfd, PAGE, PageIndex, PageRange};
use crate::policy::Generation;

bitflags! {
    /// Modes of `fallocate`, with the values of `FALLOC_FL_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct FallocMode: u32 {
        /// `FALLOC_FL_KEEP_SIZE`: the file's size stays, as a guest_memfd's always does.
        const KEEP_SIZE = 1 << 0;
        /// `FALLOC_FL_PUNCH_HOLE`: the range reads as zero from now on.
        const PUNCH_HOLE = 1 << 1;
    }
}

/// What `fallocate` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Give every page a folio.
    Allocate(PageRange),
    /// Remove pages; behind the end of the inode there are none.
    Punch(PageRange),
}

/// Why `fallocate` refuses; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FallocateError {
    /// `EINVAL`.
    #[error("fallocate of {len_bytes:#x} bytes at {offset_bytes:#x}: neither may be negative, and the length not zero")]
    Negative {
        /// Offset, as the signed number it is.
        offset_bytes: i64,
        /// Length.
        len_bytes: i64,
    },
    /// `EOPNOTSUPP`: guest_memfd allocates with `KEEP_SIZE`, or punches with `KEEP_SIZE`, and nothing else.
    #[error("fallocate mode {mode:#x} is not one of guest_memfd")]
    Mode {
        /// The mode.
        mode: u32,
    },
    /// `EINVAL`.
    #[error("fallocate of {len_bytes:#x} bytes at {offset_bytes:#x} is not made of pages of {page}")]
    Misaligned {
        /// Offset.
        offset_bytes: u64,
        /// Length.
        len_bytes: u64,
        /// The page.
        page: PageSize,
    },
    /// `EINVAL`.
    #[error("fallocate of {len_bytes:#x} bytes at {offset_bytes:#x} ends behind a guest_memfd of {nr_pages:#x} pages")]
    BeyondEnd {
        /// Offset.
        offset_bytes: u64,
        /// Length.
        len_bytes: u64,
        /// The inode's size.
        nr_pages: u64,
    },
}

impl FallocateError {
    /// What the system call returns.
    pub const fn errno(&self) -> Errno {
        match self {
            FallocateError::Mode { .. } => Errno::OpNotSupp,
            FallocateError::Negative { .. } | FallocateError::Misaligned { .. } | FallocateError::BeyondEnd { .. } => {
                Errno::Inval
            }
        }
    }
}

impl Fallocate {
    /// What `fallocate(mode, offset, len)` on `inode` means.
    pub fn parse(
        inode: &GuestMemfd,
        mode: u32,
        offset_bytes: i64,
        len_bytes: i64,
    ) -> Result<Fallocate, FallocateError> {
        let (Ok(offset), Ok(len)) = (u64::try_from(offset_bytes), u64::try_from(len_bytes)) else {
            return Err(FallocateError::Negative { offset_bytes, len_bytes });
        };
        if len == 0 {
            return Err(FallocateError::Negative { offset_bytes, len_bytes });
        }
        let known = FallocMode::from_bits(mode).filter(|mode| mode.contains(FallocMode::KEEP_SIZE));
        let Some(known) = known else { return Err(FallocateError::Mode { mode }) };
        let page = match inode.policy.generation {
            Generation::Wip => inode.unit,
            _ => PageSize::Size4K,
        };
        if !offset.is_multiple_of(page.bytes()) || !len.is_multiple_of(page.bytes()) {
            return Err(FallocateError::Misaligned { offset_bytes: offset, len_bytes: len, page });
        }
        let range = PageRange { first: PageIndex(offset / PAGE), nr_pages: len / PAGE };
        if known.contains(FallocMode::PUNCH_HOLE) {
            return Ok(Fallocate::Punch(range));
        }
        if !range.lies_in(inode.nr_pages) {
            let nr_pages = inode.nr_pages;
            return Err(FallocateError::BeyondEnd { offset_bytes: offset, len_bytes: len, nr_pages });
        }
        Ok(Fallocate::Allocate(range))
    }
}
