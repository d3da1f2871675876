//! Shadow paging, as KVM does it without nested paging (`arch/x86/kvm/mmu/mmu.c`, `paging_tmpl.h`).
//!
//! The processor does not know of guest physical addresses: it walks *shadow tables* in system memory, which say what the
//! guest's tables say and where the guest's frames lie. A guest table is shadowed when a fault goes through it; from then
//! on its writes are seen, or forgiven until the guest flushes its TLB.
//!
//! - [`crate::Vm::shadowing`] makes a VM shadow. [`crate::Vm::set_guest_paging`] takes the guest's registers and gives those
//!   that the processor runs with; [`crate::Vm::handle_page_fault`] answers its page faults; [`crate::Vm::emulate_write`]
//!   writes guest tables; [`crate::Vm::shadow_invlpg`] and [`crate::Vm::shadow_invpcid`] stand for the instructions.
//! - [`ShadowMmu`] is the shadow pages, found by guest frame and [`Role`], with the entries' one funnel, the reverse map and
//!   the unsync marks. [`check`] recomputes what must hold of it.
//!
//! Always true: an entry allows no more than the guest and the host do; a guest table above the lowest level is never
//! writable, nor one that its shadow follows; a guest table is not covered by a huge leaf; a page dies before the memory
//! behind its guest table changes.
//!
//! Left out: guests in 5-level paging on a processor without it, protection keys (the guest's processor has none, as in
//! KVM), MMIO entries (an access to a device is found by its guest walk), nested guests.

pub mod check;
mod emulate;
mod fast;
mod fault;
mod fetch;
mod log;
mod pages;
mod registers;
mod rmap;
mod role;
mod spte;
mod stats;
mod survey;
mod sync;
mod track;
mod vcpus;
mod zap;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::Gfn;
use emu_core::memory::BusError;
use emu_core::sync::{Mutex, Task};
use mmu::PagingFeatures;

pub use emulate::{Emulated, EmulationError};
pub use fault::{ShadowAnswer, ShadowFault};
pub use pages::{Following, Page, PageId, ShadowMmu, Slot, Standing, Target};
pub use role::{Origin, Role, RoleControls, TableFormat};
pub use spte::{ShadowEntry, ShadowPte};
pub use stats::ShadowStats;
pub(crate) use survey::ShadowSurvey;

use crate::age::Aging;
use crate::config::VmError;
use crate::vcpu::VcpuId;
use crate::vm::Vm;
use rmap::Rmaps;
use vcpus::{Known, Reloads, VcpuShadow};

/// What shadowing needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowConfig {
    /// The guest's processor, as far as its tables are concerned.
    pub features: PagingFeatures,
    /// The most shadow pages to keep, at least [`ShadowConfig::LEAST_PAGES`].
    pub max_pages: usize,
}

impl ShadowConfig {
    /// `KVM_MIN_ALLOC_MMU_PAGES`.
    pub const LEAST_PAGES: usize = 64;

    /// The usual limit for a guest with `memory_bytes`: a page for every fifty of its own
    /// (`KVM_PERMILLE_MMU_PAGES`), and what a small guest's first processes need.
    pub fn for_guest(features: PagingFeatures, memory_bytes: u64) -> ShadowConfig {
        let pages = memory_bytes / emu_core::page::PAGE_SIZE as u64;
        ShadowConfig { features, max_pages: (pages / 50) as usize + Self::LEAST_PAGES }
    }
}

/// The part of a VM that only shadowing has.
pub(crate) struct ShadowVm {
    pub(crate) features: PagingFeatures,
    pub(crate) reloads: Arc<Reloads>,
    known: Arc<Known>,
    rmaps: Arc<Rmaps>,
    /// Emulated writes that have changed bytes and not told the shadow MMU yet.
    emulating: AtomicU64,
    vcpus: Vec<Mutex<VcpuShadow>>,
}

impl ShadowVm {
    fn vcpu(&self, id: VcpuId) -> Result<&Mutex<VcpuShadow>, VmError> {
        self.vcpus.get(usize::from(id.0)).ok_or(VmError::NoSuchVcpu { id, nr_vcpus: self.vcpus.len() })
    }
}

impl Vm {
    /// The same VM without nested paging: its vCPUs run over shadow tables.
    pub fn shadowing(mut self, config: &ShadowConfig) -> Result<Vm, VmError> {
        let task = &Task::QUIET;
        let dummy = self.host.lock(task).alloc_table()?;
        let nr_vcpus = self.vcpus.len();
        let reloads = Arc::new(Reloads::new(nr_vcpus));
        let max_pages = config.max_pages.max(ShadowConfig::LEAST_PAGES);
        let known = Arc::new(Known::default());
        let mut pages = ShadowMmu::new(Arc::clone(self.memory()), dummy, max_pages, Arc::clone(&reloads));
        pages.known = Arc::clone(&known);
        let rmaps = Arc::clone(&pages.rmaps);
        *self.mmu.write(task).shadow.lock(task) = Some(Box::new(pages));
        self.shadow = Some(ShadowVm {
            features: config.features,
            reloads,
            known,
            rmaps,
            emulating: AtomicU64::new(0),
            vcpus: (0..nr_vcpus).map(|_| Mutex::new(VcpuShadow::new(&config.features))).collect(),
        });
        Ok(self)
    }

    /// Whether an emulated write is between its bytes and what follows from them: a synced page may be behind its table.
    pub(crate) fn is_emulating(&self) -> bool {
        self.shadow.as_ref().is_some_and(|shadow| shadow.emulating.load(Ordering::Acquire) != 0)
    }

    /// Whether the VM shadows its guest's tables.
    pub const fn is_shadowing(&self) -> bool {
        self.shadow.is_some()
    }

    pub(crate) fn shadow(&self) -> Result<&ShadowVm, VmError> {
        self.shadow.as_ref().ok_or(VmError::NotShadowing)
    }

    /// Whether a leaf over shadow tables that reaches into the range was used. No lock of `mmu_lock`'s is taken.
    pub(crate) fn age_shadowed(&self, range: (Gfn, Gfn), aging: Aging, task: &Task<'_>) -> Result<bool, BusError> {
        self.shadow.as_ref().map_or(Ok(false), |shadow| shadow.rmaps.age(self.memory(), range, aging, task))
    }

    /// The counters of shadowing; all zero without it.
    pub fn shadow_stats(&self, task: &Task<'_>) -> ShadowStats {
        self.mmu.read(task).with_shadow(task, ShadowMmu::stats).unwrap_or_default()
    }
}
