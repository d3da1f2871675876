//! Why a memslot call is refused.

use emu_core::{Errno, Gfn, Gpa, Hva};
use gmem::{BindError, SlotId};
use thiserror::Error;

use super::{MAX_PAGES, MAX_SLOTS, SlotFlags};
use crate::vm::GmemId;

/// Why a memslot call was refused; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MemslotError {
    /// `EINVAL`.
    #[error("memslot {} is not below {MAX_SLOTS}", id.0)]
    IdTooLarge {
        /// The number.
        id: SlotId,
    },
    /// `EINVAL`: VMs with private memory have one address space, others two.
    #[error("there is no address space {space}; the VM has {nr_spaces}")]
    NoSuchSpace {
        /// The number.
        space: u32,
        /// How many there are.
        nr_spaces: u32,
    },
    /// `EINVAL`.
    #[error("memslot flags {unknown:#x} mean nothing here")]
    UnknownFlags {
        /// The bits.
        unknown: u32,
    },
    /// `EINVAL`: a slot on guest_memfd is neither logged nor read-only.
    #[error("{refused:?} cannot be combined with guest_memfd")]
    NotWithGmem {
        /// The flags that cannot.
        refused: SlotFlags,
    },
    /// `EINVAL`: slots on guest_memfd cannot be changed, only deleted. Of others, size, user address and whether they are
    /// read-only stay.
    #[error("memslot {} exists and cannot be changed", id.0)]
    Immutable {
        /// The number.
        id: SlotId,
    },
    /// `EINVAL`.
    #[error("there is no memslot {}", id.0)]
    NotFound {
        /// The number.
        id: SlotId,
    },
    /// `EINVAL`.
    #[error("memslot of {len_bytes:#x} bytes at {gpa}, offset {offset_bytes:#x}: each must be a multiple of 4 KiB")]
    Misaligned {
        /// First address.
        gpa: Gpa,
        /// Length.
        len_bytes: u64,
        /// Offset in the inode.
        offset_bytes: u64,
    },
    /// `EINVAL`: not whole pages of user memory.
    #[error("{len_bytes:#x} bytes at {hva} are not whole pages of user memory")]
    BadUserAddress {
        /// The user address.
        hva: Hva,
        /// The length.
        len_bytes: u64,
    },
    /// `EINVAL`: the part of the inode wraps.
    #[error("{len_bytes:#x} bytes at offset {offset_bytes:#x} of a guest_memfd wrap")]
    OffsetWraps {
        /// The offset.
        offset_bytes: u64,
        /// The length.
        len_bytes: u64,
    },
    /// `EINVAL`: zero pages, or more than [`MAX_PAGES`].
    #[error("a memslot has 1 to {MAX_PAGES} pages, not {nr_pages}")]
    BadLength {
        /// Pages asked for.
        nr_pages: u64,
    },
    /// `EINVAL`: the slot wraps or ends above the last guest frame.
    #[error("memslot at {gpa} of {nr_pages:#x} pages ends above the last guest frame {last:?}")]
    BeyondMaxGfn {
        /// First address.
        gpa: Gpa,
        /// Pages.
        nr_pages: u64,
        /// The last guest frame there can be.
        last: Gfn,
    },
    /// `EEXIST`.
    #[error("memslot {} is at {at:?} already", slot.0)]
    Overlap {
        /// First frame claimed twice.
        at: Gfn,
        /// By whom.
        slot: SlotId,
    },
    /// The inode does not exist (`EBADF`).
    #[error("there is no guest_memfd {}", id.0)]
    NoSuchGmem {
        /// The number.
        id: GmemId,
    },
    /// `EBADF`.
    #[error("the file descriptor is not open")]
    FdNotOpen,
    /// `EINVAL`.
    #[error("the file is no guest_memfd of this VM")]
    FdNotGmem,
    /// `EINVAL`: this generation wants user memory to show the same pages of the same guest_memfd.
    #[error("user memory at {hva} does not show what the guest_memfd holds")]
    SplitView {
        /// The user address.
        hva: Hva,
    },
    /// The inode refused.
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl MemslotError {
    /// What `KVM_SET_USER_MEMORY_REGION2` returns.
    pub const fn errno(&self) -> Errno {
        match self {
            MemslotError::NoSuchGmem { .. } | MemslotError::FdNotOpen => Errno::BadF,
            MemslotError::Overlap { .. } => Errno::Exist,
            MemslotError::Bind(error) => error.errno(),
            _ => Errno::Inval,
        }
    }
}
