//! Dirty logging: which guest pages were written since the VMM last asked (Documentation/virt/kvm/api.rst,
//! `KVM_GET_DIRTY_LOG`, `KVM_CLEAR_DIRTY_LOG`, `KVM_CAP_DIRTY_LOG_RING`).
//!
//! While a memslot is logged no writable leaf in it is above 4K, and every 4K leaf that a write can go through unnoticed
//! belongs to a page that is marked already. A write to any other page faults, or is logged by the processor
//! ([`crate::Pml`]), and is marked: in the slot's [`DirtyBitmap`], or in the ring of the processor that wrote. Harvesting
//! clears the mark and arms the leaf again, in this order under `mmu_lock`, so that no write is lost; the flush comes
//! after the lock and before the VMM learns the result.
//!
//! - [`Vm::set_dirty_logging`](crate::Vm::set_dirty_logging) starts and stops it for a slot.
//! - [`Vm::get_dirty_log`](crate::Vm::get_dirty_log), [`Vm::clear_dirty_log`](crate::Vm::clear_dirty_log) are for
//!   bitmaps, [`Vm::collect_dirty_ring`](crate::Vm::collect_dirty_ring) and
//!   [`Vm::reset_dirty_rings`](crate::Vm::reset_dirty_rings) for rings.
//!
//! KVM refuses to log slots on guest_memfd. Here all RAM is guest_memfd, so they can be logged.

mod bitmap;
mod log;
mod ring;

pub use bitmap::{DirtyBitmap, Initially, WORD_PAGES};
pub(crate) use log::Unlogged;
pub use log::{DirtyLogError, DirtyLogging, SlotLog};
pub(crate) use ring::DirtyRing;
pub use ring::{DirtyGfn, ENTRY_BYTES, MAX_ENTRIES, RESERVED_ENTRIES, RingSize, RingSizeError};

/// Whether slots have bitmaps besides rings, for writes that no processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingWithBitmap {
    /// They have.
    Yes,
    /// A write without a processor is a mistake of the VMM's: it is counted and lost.
    No,
}
