//! The rest of the board: everything of a PC that is neither processor nor memory.
//!
//! - [`board`]: the whole, wired. [`board::Board`] answers port, MMIO and MSR accesses for every processor.
//! - Interrupts: [`lapic`] (one each processor, and the fabric that carries messages between them), [`ioapic`], [`pic`].
//! - Time: [`pit`], [`rtc`], [`acpi::pm`] (the PM timer); the LAPIC's timer lives with the LAPIC.
//! - Input and output: [`uart`], [`i8042`], [`fw_cfg`], [`pci`], [`testdev`], [`chipset`] (the small system ports).
//! - Disks: [`block`] (what they hold), [`nvme`] (a controller on the PCI bus).
//! - [`dma`]: what each of them did to guest memory.
//! - [`virtio`]: disk, network, console and randomness as guests of hypervisors know them.
//! - Firmware's part: [`acpi::tables`] builds the tables a kernel finds.
//!
//! A device is a struct of registers plus the ports it is given in each call: no thread, no host clock, no host
//! input or output. Register decoding is a pure function apart from the effects; interrupt lines are recomputed
//! from state after each access, never toggled. Every struct of state is `Clone` and comparable, so that a snapshot
//! is a copy. Time enters as an [`Instant`](emu_core::time::Instant); a device with a timer says when it next has
//! something to do (`next_event`) and is told when that point has come (`advance`). A device advanced late is in the
//! same state as one advanced at each of its events, but for the interrupts in between, which merge as they would
//! on a processor that was not listening.
//!
//! Nothing a guest writes panics, loops or allocates without bound.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod acpi;
pub mod block;
pub mod board;
pub mod bus;
pub mod chipset;
pub mod dma;
pub mod fw_cfg;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod message;
pub mod nvme;
pub mod pci;
pub mod pic;
pub mod pit;
#[cfg(test)]
mod ram;
pub mod rtc;
pub mod testdev;
pub mod uart;
pub mod virtio;

pub use board::{Board, BoardConfig, BoardEvents, BoardRequest};
pub use bus::{ByteSink, CpuIndex, CpuSet, DmaPort, Port, Width};
