//! What the pipeline reports while it runs.
//!
//! Events carry facts, no host time; a sink decides what becomes of them. Names follow the kernel's tracepoints where
//! one exists.

use crate::addr::{Gfn, Gpa, Sfn};
use crate::page::PageSize;

/// One event of the memory pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A nested fault entered the pipeline (`kvm_page_fault`).
    PageFault {
        /// Where.
        gpa: Gpa,
        /// On a write.
        write: bool,
        /// On an instruction fetch.
        execute: bool,
    },
    /// A folio was taken from its provider (`mm_filemap_add_to_page_cache` of the inode).
    FolioAllocated {
        /// First frame.
        sfn: Sfn,
        /// Size of the folio.
        size: PageSize,
    },
    /// A nested-table leaf was installed (`kvm_mmu_set_spte`).
    Mapped {
        /// First guest frame.
        gfn: Gfn,
        /// First system frame.
        sfn: Sfn,
        /// Level of the leaf.
        size: PageSize,
    },
    /// A nested-table leaf was removed.
    Zapped {
        /// First guest frame.
        gfn: Gfn,
        /// Level of the leaf.
        size: PageSize,
    },
}

/// Where events go.
pub trait EventSink {
    /// Takes one event. Must not call back into the pipeline.
    fn report(&self, event: Event);
}

/// Drops everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl EventSink for Silent {
    #[inline]
    fn report(&self, _event: Event) {}
}
