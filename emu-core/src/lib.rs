//! The vocabulary every other crate speaks.
//!
//! - [`addr`]: the three address spaces of a machine with nested paging, and that of a process on the host. No
//!   conversion exists between them; only a page walk turns an address of one space into one of another.
//! - [`page`]: page sizes, orders, memory types. [`access`]: what is asked of a translation.
//! - [`regs`]: control, debug and flag registers. [`exception`]: what the architecture delivers to the guest.
//! - [`cpu_model`], [`cpuid`], [`msr`]: what the modelled processor is, as tables that CPUID, instruction guards and
//!   control-register checks all read.
//! - [`memory`]: system memory, the bytes behind every system physical address.
//! - [`time`], [`rng`]: virtual time and seeded randomness, the only sources of either.
//! - [`event`]: what the pipeline reports. [`sync`]: its threads and locks, which a controlled schedule can take over.
//!   [`defect`]: its known bugs, as switches.
//!
//! Always true: nothing here reads host time, host randomness, or anything else that could make two runs differ.
//! `unsafe` is confined to [`memory`]'s arena and its atomics, and to the lock of [`sync`] with readers by lane.

pub mod access;
pub mod addr;
pub mod cpu_model;
pub mod cpuid;
pub mod defect;
pub mod errno;
pub mod event;
pub mod exception;
pub mod memory;
pub mod msr;
pub mod page;
pub mod regs;
pub mod rng;
pub mod sev;
pub mod sync;
pub mod time;

pub use access::{Access, AccessKind, Privilege};
pub use addr::{Gfn, Gpa, Gva, Gvn, Hva, Hvn, Sfn, Spa};
pub use cpu_model::{CpuModel, Vendor};
pub use cpuid::Feature;
pub use errno::Errno;
pub use exception::{Exception, PageFaultCode};
pub use msr::Msr;
pub use page::{MemoryType, Order, PageSize};
