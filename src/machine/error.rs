//! What can go wrong on the host's side.

use devices::acpi::tables::AcpiError;
use devices::board::BoardError;
use devices::pci::PlugError;
use devices::pci::assign::NoRoom;
use emu_core::Gpa;
use emu_core::cpu_model::CpuModelError;
use emu_core::memory;
use hypervisor::{VmError, plan};
use thiserror::Error;

use crate::loader::{LoadError, MemoryMapError};
use crate::vmm::memory::MemoryError;

/// A machine that cannot be built as asked.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Number of processors.
    #[error("{cpus} processors were asked for; a machine has 1 to {most}")]
    Cpus {
        /// What was asked for.
        cpus: u16,
        /// The most there can be.
        most: u16,
    },
    /// The guest's memory cannot be laid out.
    #[error(transparent)]
    Layout(#[from] plan::LayoutError),
    /// The guest's memory map cannot be described.
    #[error(transparent)]
    Map(#[from] MemoryMapError),
    /// The host would not give the memory.
    #[error(transparent)]
    Memory(#[from] memory::LayoutError),
    /// The hypervisor could not be set up.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// RAM could not become private.
    #[error(transparent)]
    Private(#[from] MemoryError),
    /// The board could not be set up.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// There are more devices than the PCI bus has slots.
    #[error(transparent)]
    Slots(#[from] PlugError),
    /// The devices' registers do not fit into the PCI window.
    #[error(transparent)]
    PciWindow(#[from] NoRoom),
    /// The ACPI tables could not be made.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The processor model is impossible.
    #[error(transparent)]
    Model(#[from] CpuModelError),
    /// The image cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tables of the firmware do not fit in guest memory.
    #[error("guest memory has no room for the firmware tables at {gpa}")]
    NoRoomForTables {
        /// Where they were to go.
        gpa: Gpa,
    },
}

/// A run that cannot go on for a reason of the host's.
#[derive(Debug, Error)]
pub enum RunError {
    /// The hypervisor gave up.
    #[error(transparent)]
    Vm(#[from] VmError),
}
