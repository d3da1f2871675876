//! What the hypervisor keeps for each virtual processor: frames for page tables, counters, and the flushes it owes.

use core::sync::atomic::{AtomicBool, Ordering};

use emu_core::sync::{Mutex, MutexGuard, Task};
use emu_core::{Gfn, Spa};
use gmem::{Host, OutOfMemory};

use crate::dirty::DirtyRing;
use crate::flush::{FlushRequest, Owed};
use crate::memslot::SlotHint;
use crate::mmio::MmioCache;
use crate::params::DirtyRingConfig;
use crate::prefault::Repeats;
use crate::snp::memory::vmsa::Place;
use crate::stats::FaultStats;
use crate::tdp::LastTable;

/// Number of a virtual processor of this VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u16);

/// Frames for page tables, taken before a fault holds any lock so that it need not ask the host under one
/// (`mmu_topup_memory_caches`).
#[derive(Debug, Default)]
pub(crate) struct TableCache {
    tables: Vec<Spa>,
}

impl TableCache {
    /// The most tables that one fault can need: every level below the root.
    const ENOUGH: usize = 3;

    /// Makes sure that a fault will not run out.
    #[inline]
    pub(crate) fn top_up(&mut self, host: &Host, task: &Task<'_>) -> Result<(), OutOfMemory> {
        match self.tables.len() {
            Self::ENOUGH.. => Ok(()),
            _ => host.alloc_tables(&mut self.tables, Self::ENOUGH, task),
        }
    }

    /// An empty table.
    ///
    /// # Panics
    /// When a fault takes more than it topped up.
    pub(crate) fn take(&mut self) -> Spa {
        match self.tables.pop() {
            Some(table) => table,
            None => panic!("a fault needs at most {} tables", Self::ENOUGH),
        }
    }

    /// An empty table, if one is left.
    pub(crate) fn try_take(&mut self) -> Option<Spa> {
        self.tables.pop()
    }

    /// Gives what is left back to the host.
    pub(crate) fn empty(&mut self, host: &Host, task: &Task<'_>) {
        if !self.tables.is_empty() {
            let mut host = host.lock(task);
            self.tables.drain(..).for_each(|table| host.free_table(table));
        }
    }

    /// Takes back a table in which nothing was written.
    pub(crate) fn put(&mut self, table: Spa) {
        self.tables.push(table);
    }
}

/// The part that only the processor's own thread uses, under `vcpu->mutex`.
#[derive(Debug, Default)]
pub(crate) struct VcpuMmu {
    pub(crate) tables: TableCache,
    pub(crate) stats: FaultStats,
    /// The table that it put a leaf in last.
    pub(crate) walked: Option<LastTable>,
    /// The memslot that it used last.
    pub(crate) slot: SlotHint,
    /// Where it last found no memory.
    pub(crate) mmio: MmioCache,
    pub(crate) repeats: Repeats,
    /// Present where pages that it wrote are pushed to a ring.
    pub(crate) ring: Option<DirtyRing>,
}

/// One virtual processor, as the hypervisor sees it. It shares no cache line with its neighbour.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Vcpu {
    pub(crate) mmu: Mutex<VcpuMmu>,
    /// Held while the processor executes the guest.
    in_guest: Mutex<()>,
    kicked: AtomicBool,
    /// Its root was given up, and it has not loaded another.
    pub(crate) obsolete: AtomicBool,
    owed: Mutex<Owed>,
    /// Where an SNP guest's state of it is.
    pub(crate) save_area: Mutex<Place>,
    /// That must be looked up again.
    pub(crate) area_stale: AtomicBool,
    /// The page that it logs modified pages in.
    pub(crate) pml: Option<Spa>,
}

impl Vcpu {
    /// A processor that owes nothing.
    pub(crate) fn new(id: VcpuId, ring: Option<DirtyRingConfig>, pml: Option<Spa>) -> Vcpu {
        let ring = ring.map(|config| DirtyRing::new(id, config.size));
        Vcpu { mmu: Mutex::new(VcpuMmu { ring, ..VcpuMmu::default() }), pml, ..Vcpu::default() }
    }

    /// Asks the processor to leave the guest and waits until it has (`kvm_vcpu_kick`).
    pub(crate) fn kick(&self, task: &Task<'_>) {
        self.kicked.store(true, Ordering::Release);
        drop(self.in_guest.lock(task));
    }

    /// The same, and it does not enter again as long as the guard lives.
    pub(crate) fn stop<'a>(&'a self, task: &Task<'a>) -> MutexGuard<'a, ()> {
        self.kicked.store(true, Ordering::Release);
        self.in_guest.lock(task)
    }

    /// Asks the processor to forget translations before it enters the guest again (`KVM_REQ_TLB_FLUSH`), and, if it is
    /// in the guest, waits until it has left.
    pub(crate) fn flush(&self, owed: &Owed, task: &Task<'_>) {
        self.owed.lock(task).merge(owed);
        self.kicked.store(true, Ordering::Release);
        drop(self.in_guest.lock(task));
    }

    /// What it must forget now.
    pub(crate) fn take_flush(&self, task: &Task<'_>) -> Option<FlushRequest> {
        // Most often nothing is owed, and a machine asks every vCPU after every exit.
        if !self.kicked.load(Ordering::Acquire) {
            return None;
        }
        self.kicked.store(false, Ordering::Release);
        self.owed.lock(task).take()
    }

    /// Whether a flush is owed that nothing will remind the processor of; `None` while somebody is asking for one.
    pub(crate) fn forgets_a_flush(&self, task: &Task<'_>) -> Option<bool> {
        let owed = self.owed.try_lock(task)?;
        Some(!owed.is_empty() && !self.kicked.load(Ordering::Acquire))
    }

    /// Whether a flush is owed that covers any of these guest frames.
    pub(crate) fn owes(&self, first: Gfn, nr_pages: u64, task: &Task<'_>) -> bool {
        self.owed.try_lock(task).is_none_or(|owed| owed.covers(first, nr_pages))
    }

    /// Enters the guest. What is owed afterwards waits until it leaves.
    pub(crate) fn enter<'a>(&'a self, task: &Task<'a>) -> (InGuest<'a>, Option<FlushRequest>) {
        let inside = self.in_guest.lock(task);
        let owed = self.take_flush(task);
        (InGuest { kicked: &self.kicked, inside }, owed)
    }
}

/// A processor executes the guest: it may use translations it has, and fill its TLB from the tables. Dropped when it
/// exits.
pub struct InGuest<'a> {
    kicked: &'a AtomicBool,
    #[expect(dead_code, reason = "whoever flushes waits for it")]
    inside: MutexGuard<'a, ()>,
}

impl InGuest<'_> {
    /// Whether somebody waits for the processor to leave (the IPI of `kvm_make_all_cpus_request`).
    pub fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::Acquire)
    }
}
