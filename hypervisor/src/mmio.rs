//! Accesses where no memory is, answered without a look at the memslots (`handle_mmio_page_fault`).
//!
//! The first access to such a page leaves an entry that makes the processor fault in a way of its own
//! ([`crate::tdp::mmio`]), with the memslots' generation in it. The next one is answered from what the processor's own
//! cache says ([`MmioCache`]), or from the entry. Either is good for one generation only: whoever adds a memslot makes
//! them stale without finding them. An entry keeps 18 bits of the generation; when these start over, everything is zapped.
//!
//! Left out: more than [`MOST_TABLES`] tables for the sake of such entries. KVM has no bound; here a guest that touches
//! addresses at random would use up what the host has for tables.

use std::sync::atomic::Ordering;

use emu_core::Gfn;
use emu_core::defect::Defect;
use emu_core::event::{Bits, Event};
use emu_core::sync::Task;

use crate::config::VmError;
use crate::flush::Owed;
use crate::memslot::{MemSlots, UPDATE_IN_PROGRESS};
use crate::params::MmioCaching;
use crate::tdp::{Entry, MMIO_GENERATION_BITS, MmioGeneration, MmioSpte, Rights};
use crate::vcpu::VcpuMmu;
use crate::vm::Vm;

/// Tables that may stand for devices alone: 2 GiB of them, or 1024 distant registers.
pub const MOST_TABLES: u64 = 1024;

/// The last page where a processor found no memory (`vcpu->arch.mmio_gfn`, `mmio_gen`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MmioCache(Option<(Gfn, u64)>);

impl MmioCache {
    fn hit(self, gfn: Gfn, generation: u64) -> bool {
        self.0 == Some((gfn, generation))
    }

    /// Whether it is about `gfn`, whenever that was.
    fn names(self, gfn: Gfn) -> bool {
        self.0.is_some_and(|(known, _)| known == gfn)
    }
}

/// What is known of a page at which a processor took a reserved fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmioFault {
    /// No memory is there.
    Mmio,
    /// The entry is of another generation, or gone: the fault takes the long way.
    Unknown,
}

fn settled(slots: &MemSlots) -> Option<u64> {
    Some(slots.generation()).filter(|generation| generation & UPDATE_IN_PROGRESS == 0)
}

impl Vm {
    /// Answers a reserved fault.
    pub(crate) fn mmio_fault(&self, own: &mut VcpuMmu, gfn: Gfn, task: &Task<'_>) -> Result<MmioFault, VmError> {
        let slots = self.slots.read(task);
        let Some(generation) = settled(&slots) else { return Ok(MmioFault::Unknown) };
        let believes_all = task.has(Defect::IgnoreMmioGeneration);
        if own.mmio.hit(gfn, generation) || believes_all && own.mmio.names(gfn) {
            return Ok(MmioFault::Mmio);
        }
        let entry = {
            let _walking = self.tdp.lockless(task);
            self.tdp.last(gfn)?
        };
        let same_epoch = self.mmio_epoch.load(Ordering::Acquire) == generation >> MMIO_GENERATION_BITS;
        let of_now = |mmio: MmioSpte| same_epoch && mmio.generation == MmioGeneration::of(generation);
        match entry {
            Entry::Mmio(mmio) => {
                task.report_with(|| Event::CheckMmioSpte {
                    spte: Bits(self.format().mmio(mmio).raw()),
                    kvm_generation: MmioGeneration::of(generation).bits(),
                    spte_generation: mmio.generation.bits(),
                });
                if !of_now(mmio) && !believes_all {
                    return Ok(MmioFault::Unknown);
                }
                let access = Bits(mmio.rights.bits().into());
                task.report(Event::HandleMmioPageFault { addr: gfn.base(), gfn: mmio.gfn, access });
                own.mmio = MmioCache(Some((gfn, generation)));
                own.stats.mmio_cached += 1;
                Ok(MmioFault::Mmio)
            }
            _ => Ok(MmioFault::Unknown),
        }
    }

    /// Remembers that no memory is at `gfn`, which was found with `slots` held. It is an optimisation: what cannot be
    /// remembered now is found again.
    pub(crate) fn remember_mmio(
        &self,
        own: &mut VcpuMmu,
        gfn: Gfn,
        slots: &MemSlots,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let Some(generation) = settled(slots) else { return Ok(()) };
        own.mmio = MmioCache(Some((gfn, generation)));
        let room = self.tdp.mmio_tables() < MOST_TABLES;
        if self.params.mmio_caching == MmioCaching::Off || !room || gfn > slots.last_gfn() {
            return Ok(());
        }
        let epoch = generation >> MMIO_GENERATION_BITS;
        if self.mmio_epoch.load(Ordering::Acquire) != epoch {
            // The bits that entries keep have started over.
            self.zap_all(task)?;
            self.mmio_epoch.store(epoch, Ordering::Release);
        }
        if own.tables.top_up(&self.host, task).is_err() {
            return Ok(());
        }
        task.report_with(|| Event::MarkMmioSpte {
            gfn,
            access: Bits(Rights::all().bits().into()),
            generation: MmioGeneration::of(generation).bits(),
        });
        let mut owed = Owed::default();
        self.mmu.read(task).install_mmio(gfn, MmioGeneration::of(generation), &mut own.tables, &mut owed, task)?;
        Ok(())
    }
}
