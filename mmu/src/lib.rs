//! Translation as the processor does it.
//!
//! Modelled: first-stage paging (32-bit, PAE, 4-level, 5-level), AMD nested page tables, Intel EPT, the TLB and the
//! paging-structure caches. Sources: AMD APM vol. 2, "Page Translation and Protection" and "Nested Paging"; Intel SDM
//! vol. 3, "Paging" and "VMX Support for Address Translation". Also the reverse map of SEV-SNP: who may use a page, whatever
//! tables say (APM vol. 2, "Secure Nested Paging").
//!
//! [`Mmu`] is the door, one for each virtual processor: it takes an [`emu_core::Gva`] and an [`emu_core::Access`], and
//! gives a [`Translation`] or an [`MmuFault`]. Registers reach it as a [`PagingState`], nested tables as a [`Stage2`].
//! Beneath it, from the ground up:
//!
//! - `format`: what a raw entry means, one file a format. `walk`: the one walker, and the setting of A and D.
//! - `nested`: the second stage, as memory that the walker reads guest tables from. `stage1`: the first stage.
//! - `guest`: the same walk made by software, for a hypervisor that looks at its guest's tables.
//! - [`rmp`]: who owns each page of system memory. `protect`: its checks behind the second stage. `snp`: what [`Mmu`] does
//!   about it.
//! - `pml`: the log of pages that were written. `rights`: pure judgement of a finished walk.
//! - `tlb`, `walk_cache`, `caches`: what is remembered. `flush`: when it is forgotten. [`fast`]: the front.
//!
//! Always true:
//! - no guest-visible outcome depends on a cache, as long as software invalidates what the manuals say it owes;
//! - A and D change only for a translation that succeeded, by compare-exchange on the entry that was judged;
//! - a translation allocates nothing, and no table contents make it loop or panic.
//!
//! Left out on purpose: shadow-stack pages, LAM, GMET, sub-page write permissions, nested tables of an AMD host outside
//! long mode, and the combination of memory types (a [`Translation`] carries the EPT type and the PAT index apart).
#![deny(unsafe_code)]
#![deny(missing_docs)]

mod caches;
mod context;
pub mod fast;
mod fault;
mod flush;
mod format;
mod guest;
mod invalidate;
mod level;
mod mmu;
mod nested;
mod paging;
mod pml;
mod protect;
mod rights;
pub mod rmp;
mod snp;
mod stage1;
mod stage2;
mod stats;
mod tlb;
mod translation;
mod walk;
mod walk_cache;

pub use caches::{CachedPage, Caches};
pub use fast::FastTlb;
pub use fault::{MmuFault, NestedFaultKind, NestedPageFault, RmpCause, Stage2Cause, Stage2Rights};
pub use guest::{GuestEntry, GuestPaging, GuestRights, GuestStep, GuestTables, GuestWalk, GuestWalkError, WalkNote};
pub use invalidate::{Globals, Invept, Invpcid, Invvpid};
pub use level::Level;
pub use mmu::Mmu;
pub use paging::{PagingCapabilities, PagingChange, PagingFeatures, PagingMode, PagingState, Pcid, Vendor};
pub use pml::ModificationLog;
pub use rmp::Rmp;
pub use stage2::{
    Asid, Ept, EptAccessedDirty, EptExecute, Eptp, NestedNx, Npt, SnpGuest, SpaceTag, Stage2, Stage2Levels, Vpid,
};
pub use stats::MmuStats;
pub use translation::{GpaTranslation, PageFlags, Translation};
