//! Counters of a VM.

use gmem::host::HostStats;

use crate::fault::{Action, Resumed};
use crate::shadow::ShadowStats;
use crate::snp::memory::SnpStats;
use crate::tdp::TablesStats;

/// Faults by how they ended. Sizes are indexed by [`emu_core::PageSize::index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FaultStats {
    /// All that came in.
    pub taken: u64,
    /// Of these, on an entry of the guest's own tables.
    pub on_guest_tables: u64,
    /// Of these, through a present entry that denied the access.
    pub denied: u64,
    /// Ended with a leaf of each size.
    pub fixed: [u64; 3],
    /// Of these, by the fast path, without a lock.
    pub fast: u64,
    /// The leaf was there.
    pub spurious: u64,
    /// Raced with an invalidation.
    pub retry: u64,
    /// No memslot.
    pub mmio: u64,
    /// Of these, known from an entry of the tables.
    pub mmio_cached: u64,
    /// The most often that a processor took one fault again while nothing else changed.
    pub most_repeats: u64,
    /// Writes to read-only slots.
    pub rom_write: u64,
    /// Exits to the VMM.
    pub memory_fault: u64,
}

impl FaultStats {
    pub(crate) fn count(&mut self, action: &Action) {
        let counter = match action {
            Action::Resume(Resumed::Fixed { size }) => &mut self.fixed[size.index()],
            Action::Resume(Resumed::Spurious) => &mut self.spurious,
            Action::Resume(Resumed::Retry) => &mut self.retry,
            Action::Mmio { .. } => &mut self.mmio,
            Action::RomWrite { .. } => &mut self.rom_write,
            Action::MemoryFault(_) => &mut self.memory_fault,
        };
        *counter += 1;
    }
}

impl core::ops::Add for FaultStats {
    type Output = FaultStats;
    fn add(self, other: FaultStats) -> FaultStats {
        FaultStats {
            taken: self.taken + other.taken,
            on_guest_tables: self.on_guest_tables + other.on_guest_tables,
            denied: self.denied + other.denied,
            fixed: core::array::from_fn(|n| self.fixed[n] + other.fixed[n]),
            fast: self.fast + other.fast,
            spurious: self.spurious + other.spurious,
            retry: self.retry + other.retry,
            mmio: self.mmio + other.mmio,
            mmio_cached: self.mmio_cached + other.mmio_cached,
            most_repeats: self.most_repeats.max(other.most_repeats),
            rom_write: self.rom_write + other.rom_write,
            memory_fault: self.memory_fault + other.memory_fault,
        }
    }
}

/// Everything a summary prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VmStats {
    /// Faults.
    pub faults: FaultStats,
    /// Leaves and tables.
    pub tables: TablesStats,
    /// Shadow paging; all zero without it.
    pub shadow: ShadowStats,
    /// Folios behind guest memory, by [`emu_core::PageSize::index`].
    pub folios: [u64; 3],
    /// Pools, free memory, everything in use.
    pub host: HostStats,
    /// Invalidations completed.
    pub invalidations: u64,
    /// Flushes that were asked of every vCPU.
    pub flushes: u64,
    /// Memory of an SNP guest; all zero for any other.
    pub snp: SnpStats,
}
