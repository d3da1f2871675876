//! The nested tables that the hypervisor builds, after KVM's TDP MMU (`arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! [`spte`] says what an entry means in either format; [`Tables`] is one tree of four levels in system memory.
//! `Tables::change` is the only function that writes an entry: it asserts what must never happen, records the flush
//! that is owed, counts, and reports the event. `install` and `zap` decide what to write.
//!
//! Always true: a leaf's guest and system frames are multiples of its size; a present leaf never becomes a leaf to another
//! frame without being absent between; every frame of the tree is a page table of the host's folio table.
//!
//! Tables are never freed while a vCPU may walk them: only the removal of a whole tree or the collapse of a table into a
//! huge leaf frees one, and both owe a flush that the machine obeys before vCPUs go on.

mod install;
pub mod spte;
mod tables;
mod zap;

pub use install::Outcome;
pub use spte::{Entry, Level, Rights, Spte, TdpFormat};
pub use tables::{LeafView, Tables, TablesStats};
pub use zap::AdBit;
