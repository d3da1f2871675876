//! The nested tables that the hypervisor builds, after KVM's TDP MMU (`arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! [`spte`] says what an entry means in either format; [`Tables`] is one tree of four levels in system memory.
//! `Tables::change` is the only function that writes an entry, but for `repoint`, by which a host lies: it asserts what must
//! never happen, records the flush that is owed, counts, and reports the event. `install` and `zap` decide what to write.
//!
//! Always true: a leaf's guest and system frames are multiples of its size; a present leaf never becomes a leaf to another
//! frame without being absent between; every frame of the tree is a page table of the host's folio table.
//!
//! Faults change the tree at the same time, with `mmu_lock` held for reading: every change is a compare-exchange, and who
//! loses starts over. Removals hold it for writing. A table leaves the tree frozen, and is freed only when the lock is
//! next held for writing and the flush it owed is done, so that neither a fault nor a processor can be walking it.

mod age;
mod fast;
mod install;
pub mod leaf;
mod log;
pub mod mmio;
mod nx;
mod repoint;
mod roots;
mod split;
pub mod spte;
mod survey;
mod tables;
mod zap;

pub(crate) use fast::{Fast, Logged};
pub(crate) use install::Install;
pub use install::Outcome;
pub use leaf::{AdType, HostAccess, NewLeaf, SplitExecute, Touch, WholeExecute, WriteState};
pub(crate) use log::Arm;
pub use mmio::{MMIO_GENERATION_BITS, MmioGeneration, MmioSpte};
pub(crate) use roots::ZapRoot;
pub(crate) use split::Split;
pub use spte::{Entry, Level, Rights, Spte, TdpFormat};
pub use survey::Survey;
pub(crate) use tables::LastTable;
pub use tables::{LeafView, Tables, TablesStats};
pub use zap::AdBit;
