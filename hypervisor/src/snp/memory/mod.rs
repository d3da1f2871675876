//! Guest memory of an SNP guest: who owns which page by the reverse map (RMP), and when that changes.
//!
//! Modelled: the memory half of Linux `arch/x86/kvm/svm/sev.c` (`sev_gmem_prepare`, `sev_gmem_invalidate`,
//! `sev_handle_rmp_fault`, `sev_private_max_mapping_level`, `snp_launch_update`) and what a VMM does for
//! `KVM_HC_MAP_GPA_RANGE`. RMPUPDATE, PSMASH and the firmware's commands are [`mmu::rmp`]'s.
//!
//! - [`SnpConfig`] says which RMP, which guest and by which policy; a VM of [`crate::VmKind::Snp`] has one.
//! - `assign` makes a private page the guest's before a leaf shows it, `reclaim` gives it back when it leaves the private
//!   side ([`gmem::FrameOwner`]), `fault` brings nested leaf and entry to one size.
//! - [`crate::Vm::page_state_change`] is what a guest asks for by GHCB, [`crate::Vm::snp_launch_update`] how pages are its own
//!   before it runs.
//! - `lie` is what a hypervisor can do to a guest that it means ill, by the same instructions. Nothing calls it unasked.
//!
//! Always true, outside the functions here and until somebody lies: a private leaf is no larger than its entry of the RMP,
//! whose ASID and guest frame are those of the leaf; a frame that is not a private page of the guest is not assigned, but for
//! VMSAs. An entry changes hands only while no leaf shows its frame, and is split only between the begin and the end of an
//! invalidation.
//!
//! Left out: the firmware's pages (guest contexts are not in system memory), swapping and migration of private pages.

mod assign;
mod fault;
mod launch;
mod lie;
mod psc;
mod reclaim;
pub(crate) mod vmsa;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::defect::Defect;
use emu_core::event::{Event, RmpOwner};
use emu_core::memory::{Key, SystemMemory};
use emu_core::sync::{Mutex, Sharded, Task};
use emu_core::{Gfn, PageSize, Sfn};
use mmu::Asid;
use mmu::rmp::{Assigned, Immutable, Rmp, RmpEntry, RmpError, RmpPageSize, RmpUpdate};
use thiserror::Error;

use crate::config::VmConfig;
use crate::kind::VmKind;
use crate::tdp::TdpFormat;

pub use assign::AssignError;
pub use launch::{LaunchContent, LaunchError, LaunchedPage, Measure, SnpLaunchUpdate, SnpPageType};
pub use lie::LieError;
pub use psc::{PageStateChange, PageStateError, SizeHint};
pub use vmsa::Reloaded;

/// When a page that became private is assigned to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Assign {
    /// At the guest's next use of it, as KVM does.
    #[default]
    Lazy,
    /// With the conversion, if it has memory by then.
    Eager,
}

/// How large entries of the RMP may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum RmpSizes {
    /// 4K, as with Linux 6.12, whose guest_memfd knows no other folios.
    Only4K,
    /// 2M where folio, attributes and alignment allow it and nothing of the 2M is assigned. What was split stays split.
    #[default]
    UpTo2M,
    /// The same, and 512 entries of 4K that are alike become one again when the guest makes all of their 2M private or asks
    /// for it (`SNP_PAGE_UNSMASH`).
    MergeBack,
}

/// What makes a VM an SNP guest.
#[derive(Clone, Debug)]
pub struct SnpConfig {
    /// The machine's reverse map. It covers the host's memory.
    pub rmp: Arc<Rmp>,
    /// The guest. No page carries it yet.
    pub asid: Asid,
    /// When pages are assigned.
    pub assign: Assign,
    /// How large their entries may be.
    pub sizes: RmpSizes,
}

impl PartialEq for SnpConfig {
    /// The same table, not one that looks the same.
    fn eq(&self, other: &SnpConfig) -> bool {
        Arc::ptr_eq(&self.rmp, &other.rmp)
            && (self.asid, self.assign, self.sizes) == (other.asid, other.assign, other.sizes)
    }
}

impl Eq for SnpConfig {}

/// Why a VM cannot be an SNP guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnpSetupError {
    /// The kind of the VM says one thing and its configuration another.
    #[error("a VM has a reverse map exactly if it is an SNP guest")]
    KindDisagrees,
    /// Only AMD's nested tables stand under a reverse map.
    #[error("an SNP guest needs nested tables in NPT format")]
    NeedsNpt,
    /// Memory behind the table's end could never be a guest's.
    #[error("the reverse map does not cover the host's memory up to {last:?}")]
    NotCovered {
        /// The last frame of the host.
        last: Sfn,
    },
    /// `SNP_ACTIVATE` refuses: pages of a guest before are left.
    #[error("{nr_pages} pages carry ASID {} already", asid.0)]
    AsidInUse {
        /// The ASID.
        asid: Asid,
        /// How many pages carry it.
        nr_pages: u64,
    },
    /// ASID 0 is the host's, and large ones do not fit an entry.
    #[error("ASID {} is no guest's", asid.0)]
    BadAsid {
        /// The ASID.
        asid: Asid,
    },
}

/// Counters of an SNP guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SnpStats {
    /// Entries assigned to the guest, of 4K and of 2M.
    pub assigned: [u64; 2],
    /// Entries given back, of 4K and of 2M.
    pub returned: [u64; 2],
    /// PSMASH.
    pub smashed: u64,
    /// `SNP_PAGE_UNSMASH`.
    pub unsmashed: u64,
    /// Nested faults because of the RMP.
    pub rmp_faults: u64,
    /// Pages of the launch image, in 4K.
    pub launched_pages: u64,
}

#[derive(Debug, Default)]
struct Counters {
    assigned: [AtomicU64; 2],
    returned: [AtomicU64; 2],
    smashed: AtomicU64,
    unsmashed: AtomicU64,
    rmp_faults: AtomicU64,
    launched_pages: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The guest's side of the RMP. See the module.
#[derive(Debug)]
pub(crate) struct SnpMemory {
    rmp: Arc<Rmp>,
    memory: Arc<SystemMemory>,
    asid: Asid,
    /// What the guest's memory is encrypted with.
    key: Key,
    assign: Assign,
    sizes: RmpSizes,
    /// Who looks at the entries of a 2M block and then changes them (in Linux the folio's lock). A lane serves many blocks.
    /// A leaf among locks, but for the host's memory.
    blocks: Sharded<Mutex<()>>,
    /// Pages of the kernel that processors start from.
    vmsas: Mutex<Vec<Sfn>>,
    counters: Counters,
}

impl SnpMemory {
    /// What `config` asks for, which an SNP guest must and any other VM may not.
    pub(crate) fn of(config: &VmConfig, memory: &Arc<SystemMemory>) -> Result<Option<SnpMemory>, SnpSetupError> {
        let last = Sfn::new(config.host.first.raw() + config.host.nr_frames.saturating_sub(1));
        match (&config.snp, config.kind) {
            (Some(_), VmKind::Snp) if config.format != TdpFormat::Npt => Err(SnpSetupError::NeedsNpt),
            (Some(snp), VmKind::Snp) => SnpMemory::new(snp, memory, last).map(Some),
            (None, VmKind::Default | VmKind::SwProtected) => Ok(None),
            _ => Err(SnpSetupError::KindDisagrees),
        }
    }

    fn new(config: &SnpConfig, memory: &Arc<SystemMemory>, last: Sfn) -> Result<SnpMemory, SnpSetupError> {
        let SnpConfig { rmp, asid, assign, sizes } = config;
        let key = Key::of_asid(asid.0).ok_or(SnpSetupError::BadAsid { asid: *asid })?;
        if rmp.entry(last).is_none() {
            return Err(SnpSetupError::NotCovered { last });
        }
        match rmp.pages_of(*asid) {
            0 => {}
            nr_pages => return Err(SnpSetupError::AsidInUse { asid: *asid, nr_pages }),
        }
        Ok(SnpMemory {
            rmp: Arc::clone(rmp),
            memory: Arc::clone(memory),
            asid: *asid,
            key,
            assign: *assign,
            sizes: *sizes,
            blocks: Sharded::default(),
            vmsas: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// The reverse map.
    pub(crate) const fn rmp(&self) -> &Arc<Rmp> {
        &self.rmp
    }

    /// The guest.
    pub(crate) const fn asid(&self) -> Asid {
        self.asid
    }

    /// Pages of the kernel that are the guest's all the same.
    pub(crate) fn nr_vmsas(&self, task: &Task<'_>) -> u64 {
        self.vmsas.lock(task).len() as u64
    }

    pub(crate) fn stats(&self) -> SnpStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { assigned, returned, smashed, unsmashed, rmp_faults, launched_pages } = &self.counters;
        SnpStats {
            assigned: assigned.each_ref().map(load),
            returned: returned.each_ref().map(load),
            smashed: load(smashed),
            unsmashed: load(unsmashed),
            rmp_faults: load(rmp_faults),
            launched_pages: load(launched_pages),
        }
    }

    /// Whether an entry says that its frame stands behind `gfn` of this guest.
    pub(crate) fn is_at(&self, entry: RmpEntry, gfn: Gfn) -> bool {
        entry.assigned() && entry.asid() == self.asid && entry.gpa().frame() == gfn
    }

    /// The largest leaf that may show the private page in `sfn` (`sev_private_max_mapping_level`).
    pub(crate) fn max_mapping_size(&self, sfn: Sfn) -> PageSize {
        match self.rmp.entry(sfn) {
            Some(entry) if entry.assigned() => entry.page_size().page_size(),
            _ => PageSize::Size4K,
        }
    }

    /// Takes the lock of the 2M block around `sfn`.
    fn block<'a>(&'a self, sfn: Sfn, task: &Task<'a>) -> emu_core::sync::MutexGuard<'a, ()> {
        self.blocks.lane((sfn.raw() / PageSize::Size2M.frames()) as usize).lock(task)
    }

    /// RMPUPDATE.
    fn rmpupdate(&self, sfn: Sfn, update: RmpUpdate, task: &Task<'_>) -> Result<(), RmpError> {
        let done = self.rmp.rmpupdate(sfn.base(), update);
        task.report_with(|| Event::RmpUpdate {
            sfn,
            size: update.page_size.page_size(),
            owner: match (update.assigned, update.immutable) {
                (Assigned::No, _) => RmpOwner::Hypervisor,
                (Assigned::Yes, Immutable::No) => RmpOwner::Guest,
                (Assigned::Yes, Immutable::Yes) if update.asid.0 != 0 => RmpOwner::PreGuest,
                (Assigned::Yes, Immutable::Yes) => RmpOwner::Firmware,
            },
            gfn: update.gpa.frame(),
            asid: update.asid.0,
            result: code(done),
        });
        if done.is_ok() {
            let counters = match update.assigned {
                Assigned::Yes => &self.counters.assigned,
                Assigned::No => &self.counters.returned,
            };
            count(&counters[update.page_size.page_size().index()], 1);
        }
        done
    }

    /// PSMASH of the 2M around `sfn`. Whoever was faster has done the same.
    fn psmash(&self, sfn: Sfn, task: &Task<'_>) -> Result<(), RmpError> {
        let head = sfn.align_down(PageSize::Size2M);
        let done = self.rmp.psmash(head.base());
        task.report(Event::Psmash { sfn: head, result: code(done) });
        match done {
            Ok(()) => count(&self.counters.smashed, 1),
            Err(_) if task.has(Defect::SecondPsmashFails) => return done,
            Err(_) if self.rmp.entry(head).is_some_and(|entry| entry.page_size() == RmpPageSize::Size4K) => {}
            Err(refused) => return Err(refused),
        }
        Ok(())
    }
}

/// What an instruction leaves in EAX.
fn code(done: Result<(), RmpError>) -> u32 {
    done.err().map_or(0, RmpError::code)
}
