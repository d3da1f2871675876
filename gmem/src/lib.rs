//! Memory as the host kernel owns it: frames, folios, huge-page pools and guest_memfd.
//!
//! Modelled: the parts of Linux's `mm/` and of `virt/kvm/guest_memfd.c` that decide which system frames stand behind
//! guest memory, and when they come and go. Nothing here knows of guest page tables or processors.
//!
//! - [`Host`] is the lock around [`HostMemory`], with a stock of fresh folios for each lane of tasks. [`HostMemory`] owns
//!   ranges of system memory: the page allocator with a [`Buddy`] for each NUMA node, the [`pool::HugePool`]s, the
//!   [`cma::CmaArea`]s, what the `struct page` array costs ([`vmemmap`]), and the [`folio::FolioTable`] that says what
//!   every frame in use is used for.
//! - [`FolioProvider`] is the one interface by which an inode gets, splits and merges folios, whatever their size and
//!   source; [`provider::unit`] keeps what was allocated as one together until all of it is back.
//! - [`directmap::DirectMap`] is how the host itself maps its memory, and what a private page does to that.
//! - [`GuestMemfd`] is the inode: a sparse map from page index to folio, the bindings of memslots, and who may use
//!   which page ([`shareability`]).
//! - [`mm::Mm`] is the address space of a process on the host: anonymous memory, guest_memfd and device memory at user
//!   addresses, get_user_pages, and the notifiers by which a secondary MMU learns that pages go.
//! - [`FrameOwner`] is told of frames that leave the private side, where hardware keeps books of who owns what.
//! - [`GmemPolicy`] is every decision in which implementations of guest_memfd differ.
//! - [`Invalidation`] is the sequence by which a fault notices that it raced with a removal.
//!
//! Always true:
//! - metadata is in step with what is in use, never with the size of the machine: a terabyte starts at once;
//! - a free frame reads as zero and costs the host nothing, because freeing discards it; so a fresh folio is never
//!   cleared, and a 1 GiB folio does not become resident by being allocated;
//! - every frame in use has exactly one owner, and freeing what is not in use is a panic, not a corruption.
//!
//! Left out on purpose so far: cgroups.
#![forbid(unsafe_code)]

pub mod buddy;
pub mod cma;
pub mod directmap;
mod extent;
pub mod folio;
pub mod host;
pub mod inode;
pub mod invalidate;
pub mod mm;
pub mod numa;
pub mod owner;
pub mod pagemap;
pub mod policy;
pub mod pool;
pub mod provider;
pub mod runs;
pub mod shareability;
pub mod vmemmap;

pub use buddy::Buddy;
pub use directmap::{DirectMap, DirectMapPolicy};
pub use host::{FrameRange, Host, HostConfig, HostLayout, HostMemory, OutOfMemory};
pub use inode::{
    Backed, BindError, Bound, Conversion, ConvertError, CreateArgs, CreateError, CreateInfo, Exclusive, Failure,
    FallocMode, Fallocate, FallocateError, FilePut, FolioRun, GetError, GmemFlags, GuestMemfd, HoleError, InodeView,
    PageIndex, PageRange, Shared, SlotId,
};
pub use invalidate::{Invalidation, SeqSample};
pub use mm::{Kernel, Mm, MmId, MmuNotifier, NoNotifier};
pub use numa::{MemPolicy, NodeId, NodeMask};
pub use owner::{FrameOwner, Leaving, Reclaimed};
pub use policy::{
    BusyPages, Content, Generation, GmemPolicy, HostMapping, LruBatches, OrderRule, PunchPolicy, Quirks, SharedFolios,
    SlotSpan, SplitPolicy,
};
pub use pool::HugeSize;
pub use provider::{FolioPolicy, FolioProvider};
pub use shareability::{Shareability, ShareabilityMap};
pub use vmemmap::VmemmapMode;
