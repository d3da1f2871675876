//! Memory as the host kernel owns it: frames, folios, huge-page pools and guest_memfd.
//!
//! Modelled: the parts of Linux's `mm/` and of `virt/kvm/guest_memfd.c` that decide which system frames stand behind
//! guest memory, and when they come and go. Nothing here knows of guest page tables or processors.
//!
//! - [`Host`] is the lock around [`HostMemory`], which owns a range of system memory: the [`Buddy`] page allocator, the [`pool::HugePool`]s, and the
//!   [`folio::FolioTable`] that says what every frame in use is used for.
//! - [`FolioProvider`] is the one interface by which an inode gets folios, whatever their size and source.
//! - [`GuestMemfd`] is the inode: a sparse map from page index to folio, the bindings of memslots, and who may use
//!   which page ([`shareability`]).
//! - [`Invalidation`] is the sequence by which a fault notices that it raced with a removal.
//!
//! Always true:
//! - metadata is in step with what is in use, never with the size of the machine: a terabyte starts at once;
//! - a free frame reads as zero and costs the host nothing, because freeing discards it; so a fresh folio is never
//!   cleared, and a 1 GiB folio does not become resident by being allocated;
//! - every frame in use has exactly one owner, and freeing what is not in use is a panic, not a corruption.
//!
//! Left out on purpose so far: splitting and merging folios, user mappings, NUMA nodes, cgroups, memory failure.
#![forbid(unsafe_code)]

pub mod buddy;
mod extent;
pub mod folio;
pub mod host;
pub mod inode;
pub mod invalidate;
pub mod pagemap;
pub mod pool;
pub mod provider;
pub mod shareability;

pub use buddy::Buddy;
pub use host::{HostConfig, HostMemory, OutOfMemory};
pub use inode::{
    Backed, BindError, Bound, Conversion, ConvertError, CreateError, CreateInfo, Exclusive, GetError, GmemFlags,
    GuestMemfd, PageIndex, PageRange, Shared, SlotId,
};
pub use invalidate::{Invalidation, SeqSample};
pub use pool::HugeSize;
pub use provider::{FolioPolicy, FolioProvider};
pub use shareability::{Shareability, ShareabilityMap};

/// The host's memory as tasks share it: one lock where Linux has the zones', `hugetlb_lock` and the CMA areas'. A leaf:
/// nothing else is taken while it is held.
pub type Host = emu_core::sync::Mutex<HostMemory>;
