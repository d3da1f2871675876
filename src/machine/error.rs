//! What can go wrong on the host's side.

use cpu::{EmulationRefused, SevRefused};
use devices::acpi::tables::AcpiError;
use devices::board::BoardError;
use devices::pci::PlugError;
use devices::pci::assign::NoRoom;
use emu_core::Gpa;
use emu_core::cpu_model::CpuModelError;
use emu_core::memory;
use hypervisor::snp::launch::{CpuidPageError, FirmwareStatus, PolicyRefused};
use hypervisor::snp::memory::LaunchError;
use hypervisor::{VmError, plan};
use mmu::rmp::RmpSetupError;
use thiserror::Error;

use crate::config::NestedPaging;
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
    /// SNP is AMD's, and over nested tables.
    #[error("an SNP guest runs over NPT, not over {mmu}")]
    SnpNeedsNpt {
        /// What was asked for.
        mmu: NestedPaging,
    },
    /// Shared memory of the VMM's own is what the VM's attributes choose, and comes in small pages.
    #[error("shared memory beside guest_memfd needs --gmem 7.3 and pages of 4K")]
    TwoSided,
    /// The machine's reverse map cannot be set up.
    #[error(transparent)]
    Rmp(#[from] RmpSetupError),
    /// The processor model has no encrypted guests.
    #[error(transparent)]
    NoSev(#[from] SevRefused),
    /// A register of the processor cannot be set as firmware leaves it.
    #[error(transparent)]
    Msr(#[from] EmulationRefused),
    /// A page could not be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The firmware refuses the guest.
    #[error(transparent)]
    Firmware(#[from] FirmwareStatus),
    /// The policy is none that KVM takes.
    #[error(transparent)]
    Policy(#[from] PolicyRefused),
    /// The processor's CPUID cannot be told in a page.
    #[error(transparent)]
    Cpuid(#[from] CpuidPageError),
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

impl BuildError {
    /// What can be done about it.
    pub fn help(&self) -> &'static str {
        match self {
            BuildError::TwoSided => "leave --gmem and --pages out, or say --vm sw-protected,api=next",
            BuildError::SnpNeedsNpt { .. } => "say --mmu npt, or leave --mmu out",
            BuildError::Policy(_) | BuildError::Firmware(_) => "the usual policy is 0x30000; leave --policy out",
            BuildError::Load(cause) => cause.help(),
            BuildError::Slots(_) | BuildError::PciWindow(_) => "give fewer devices",
            _ => "a smaller --memory or fewer --cpus may fit",
        }
    }
}

/// A run that cannot go on for a reason of the host's.
#[derive(Debug, Error)]
pub enum RunError {
    /// The hypervisor gave up.
    #[error(transparent)]
    Vm(#[from] VmError),
}
