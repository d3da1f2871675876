//! Translation as the processor does it.
//!
//! Modelled: first-stage paging (32-bit, PAE, 4-level, 5-level), AMD nested page tables, Intel EPT, the TLB and the
//! paging-structure caches. Sources: AMD APM vol. 2, "Page Translation and Protection" and "Nested Paging"; Intel SDM
//! vol. 3, "Paging" and "VMX Support for Address Translation".
//!
//! [`Mmu`] is the door, one for each virtual processor: it takes a [`emu_core::Gva`] and an [`emu_core::Access`], and
//! gives a [`Translation`] or an [`MmuFault`].
#![deny(unsafe_code)]
#![deny(missing_docs)]

mod caches;
mod context;
pub mod fast;
mod fault;
mod flush;
mod format;
mod invalidate;
mod level;
mod mmu;
mod nested;
mod paging;
mod rights;
mod stage1;
mod stage2;
mod stats;
mod tlb;
mod translation;
mod walk;
mod walk_cache;

pub use caches::Caches;
pub use fast::FastTlb;
pub use fault::{MmuFault, NestedFaultKind, NestedPageFault, Stage2Cause, Stage2Rights};
pub use invalidate::{Globals, Invept, Invpcid, Invvpid};
pub use level::Level;
pub use mmu::Mmu;
pub use paging::{PagingCapabilities, PagingChange, PagingFeatures, PagingMode, PagingState, Pcid, Vendor};
pub use stage2::{Asid, Ept, EptAccessedDirty, EptExecute, Eptp, NestedNx, Npt, SpaceTag, Stage2, Stage2Levels, Vpid};
pub use stats::MmuStats;
pub use translation::{GpaTranslation, PageFlags, Translation};
