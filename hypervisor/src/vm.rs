//! The VM: host memory, inodes, memslots and nested tables under one door, and the locks between them.
//!
//! Locks, outer to inner: a vCPU's mutex or `slots_lock`; the memslots (every fault reads a set of them, from lookup to
//! install; a publication waits for those that use the set before, [`SlotSets`]); `mmap_lock` of the VMM; an inode's
//! `invalidate_lock`; its list of user mappings; a notifier's section; `mmu_lock`; and as leaves user page tables, the
//! inode's inner locks, the vCPUs' mailboxes and the host's memory. Whoever holds an `invalidate_lock` exclusively finds
//! the guest frames that show its pages by the inode's bindings, and those that show user mappings of it by the memslots,
//! which may be read under any lock because reading never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::memory::SystemMemory;
use emu_core::sync::{Mutex, Point, ReadGuard, ShardedLock, Task};
use emu_core::{Gfn, PageSize, Spa};
use gmem::{
    CreateInfo, FilePut, FolioPolicy, FrameOwner, GmemPolicy, GuestMemfd, Host, HostMemory, Invalidation, Kernel, Mm,
    MmId,
};

use crate::attributes::AttributeTree;
use crate::config::{PagePolicy, VmConfig, VmError};
use crate::dirty::Unlogged;
use crate::flush::{FlushRequest, Owed};
use crate::follow::{FollowPolicy, UserSignal};
use crate::kind::VmKind;
use crate::lifetime::Life;
use crate::memslot::{MemSlots, MemslotError, SlotSets};
use crate::params::{MmuParams, NxHugePages, Pml};
use crate::snp::memory::{SnpMemory, SnpStats};
use crate::stats::{FaultStats, VmStats};
use crate::tdp::{AdBit, Tables, TdpFormat};
use crate::vcpu::{InGuest, Vcpu, VcpuId};

/// Number of a guest_memfd inode of this VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GmemId(pub u32);

/// See the crate's introduction.
pub struct Vm {
    pub(crate) host: Host,
    memory: Arc<SystemMemory>,
    /// Closed inodes leave a gap: numbers are not used again.
    gmems: Mutex<Vec<Option<Arc<GuestMemfd>>>>,
    /// `kvm->slots_lock`: who changes memslots.
    pub(crate) slots_lock: Mutex<()>,
    pub(crate) slots: SlotSets,
    /// Files whose last reference is gone and that are to be released when `slots_lock` is free.
    pub(crate) closed: Mutex<Vec<GmemId>>,
    /// Who keeps the VM.
    pub(crate) life: Life,
    /// The VMM's address space.
    pub(crate) mm: Arc<Mm>,
    /// `mem_attr_array`: private or shared by guest frame, for inodes that do not say so themselves.
    pub(crate) attributes: ShardedLock<AttributeTree>,
    pub(crate) signals: Mutex<Vec<UserSignal>>,
    pub(crate) follow: FollowPolicy,
    /// `kvm->mmu_lock`.
    pub(crate) mmu: ShardedLock<Arc<Tables>>,
    /// The same tables, for who walks them without `mmu_lock`.
    pub(crate) tdp: Arc<Tables>,
    pub(crate) invalidation: Invalidation,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) pages: PagePolicy,
    pub(crate) kind: VmKind,
    pub(crate) gmem: GmemPolicy,
    /// Of an SNP guest.
    pub(crate) snp: Option<Arc<SnpMemory>>,
    /// Without nested paging.
    pub(crate) shadow: Option<crate::shadow::ShadowVm>,
    pub(crate) params: MmuParams,
    /// Whether leaves above 4K may be executed now.
    pub(crate) nx: AtomicBool,
    /// What the memslots' generation has above the bits that entries for devices keep.
    pub(crate) mmio_epoch: AtomicU64,
    /// 0 and 1 in turn, another with each root that is given up.
    pub(crate) mmu_valid_gen: AtomicU8,
    /// Writes that no log could take.
    pub(crate) unlogged: Unlogged,
    pub(crate) taint: crate::follow::map::Taint,
    flushes: AtomicU64,
}

impl Vm {
    /// A VM without memory. The host's share of `memory` must be all zero.
    pub fn new(memory: Arc<SystemMemory>, config: &VmConfig) -> Result<Vm, VmError> {
        Vm::with_params(memory, config, MmuParams::default())
    }

    /// The same with an MMU that works as `params` say.
    pub fn with_params(memory: Arc<SystemMemory>, config: &VmConfig, params: MmuParams) -> Result<Vm, VmError> {
        let maxphyaddr = config.maxphyaddr;
        if !(32..=48).contains(&maxphyaddr) {
            return Err(VmError::MaxPhyAddr { maxphyaddr });
        }
        let mut host = HostMemory::new(Arc::clone(&memory), &config.host)?;
        let snp = SnpMemory::of(config, &memory)?.map(Arc::new);
        if let Some(snp) = &snp {
            host.set_frame_owner(Arc::clone(snp) as Arc<dyn FrameOwner>);
        }
        let host = Host::new(host);
        let tables = Arc::new(Tables::new(&host, config.format, params.ad, &Task::QUIET)?);
        let logs = config.format == TdpFormat::Ept && params.pml == Pml::On;
        let vcpus = (0..config.nr_vcpus.max(1)).map(|n| {
            let pml = logs.then(|| host.lock(&Task::QUIET).alloc_table()).transpose()?;
            Ok(Vcpu::new(VcpuId(n), params.dirty_ring, pml))
        });
        let vcpus = vcpus.collect::<Result<Vec<Vcpu>, VmError>>()?;
        let last_gfn = Gfn::new((1 << (u32::from(maxphyaddr) - emu_core::page::PAGE_SHIFT)) - 1);
        Ok(Vm {
            host,
            gmems: Mutex::default(),
            slots_lock: Mutex::default(),
            closed: Mutex::default(),
            life: Life::default(),
            slots: SlotSets::new(last_gfn, if config.kind.has_private_memory() { 1 } else { 2 }),
            mm: Arc::new(Mm::new(MmId(0), Arc::clone(&memory))),
            attributes: ShardedLock::new(AttributeTree::new(last_gfn.raw() + 1)),
            signals: Mutex::default(),
            follow: config.follow,
            tdp: Arc::clone(&tables),
            mmu: ShardedLock::new(tables),
            invalidation: Invalidation::default(),
            vcpus,
            memory,
            pages: config.pages,
            kind: config.kind,
            gmem: config.gmem,
            snp,
            shadow: None,
            params,
            nx: AtomicBool::new(params.nx_huge_pages == NxHugePages::On),
            mmio_epoch: AtomicU64::new(0),
            mmu_valid_gen: AtomicU8::new(0),
            unlogged: Unlogged::default(),
            taint: crate::follow::map::Taint::default(),
            flushes: AtomicU64::new(0),
        })
    }

    /// What kind of VM it is.
    pub const fn kind(&self) -> VmKind {
        self.kind
    }

    /// The reverse map and the ASID of an SNP guest.
    pub fn rmp(&self) -> Option<(&Arc<mmu::Rmp>, mmu::Asid)> {
        self.snp.as_ref().map(|snp| (snp.rmp(), snp.asid()))
    }

    /// The root of the nested tables.
    pub fn root(&self) -> Spa {
        self.tdp.root()
    }

    /// What nCR3 (NPT) or the EPTP (EPT) holds.
    pub fn root_register(&self) -> u64 {
        self.tdp.root_register()
    }

    /// The format of the nested tables.
    pub fn format(&self) -> TdpFormat {
        self.tdp.format()
    }

    /// The bytes.
    pub const fn memory(&self) -> &Arc<SystemMemory> {
        &self.memory
    }

    /// The host's memory, for its counters and pools.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The nested tables, for listings and checks.
    pub fn tables<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, Arc<Tables>> {
        self.mmu.read(task)
    }

    /// The nested tables, unless somebody is changing them with `mmu_lock` held for writing.
    pub fn try_tables<'a>(&'a self, task: &Task<'a>) -> Option<ReadGuard<'a, Arc<Tables>>> {
        self.mmu.try_read(task)
    }

    /// The memslots.
    pub fn memslots<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, MemSlots> {
        self.slots.read(task)
    }

    /// The VMM's address space: what `userspace_addr` is an address of.
    pub const fn mm(&self) -> &Arc<Mm> {
        &self.mm
    }

    /// The kernel for operations on address spaces: this VM learns what goes.
    pub const fn kernel<'a>(&'a self, task: &'a Task<'a>) -> Kernel<'a> {
        Kernel { host: &self.host, notifier: self, task }
    }

    /// Signals that the kernel has sent to the VMM since this was last asked.
    pub fn take_signals(&self, task: &Task<'_>) -> Vec<UserSignal> {
        std::mem::take(&mut *self.signals.lock(task))
    }

    /// An inode.
    pub fn gmem(&self, id: GmemId, task: &Task<'_>) -> Option<Arc<GuestMemfd>> {
        self.gmems.lock(task).get(id.0 as usize)?.clone()
    }

    /// The inodes that are there, by number; `None` while one comes or goes.
    pub(crate) fn live_inodes(&self, task: &Task<'_>) -> Option<Vec<(GmemId, Arc<GuestMemfd>)>> {
        let gmems = self.gmems.try_lock(task)?;
        let live =
            gmems.iter().enumerate().filter_map(|(n, inode)| Some((GmemId(n as u32), Arc::clone(inode.as_ref()?))));
        Some(live.collect())
    }

    pub(crate) fn inode(&self, id: GmemId, task: &Task<'_>) -> Result<Arc<GuestMemfd>, VmError> {
        self.gmem(id, task).ok_or(VmError::NoSuchGmem { id })
    }

    pub(crate) fn inode_for_slot(&self, id: GmemId, task: &Task<'_>) -> Result<Arc<GuestMemfd>, MemslotError> {
        self.gmem(id, task).ok_or(MemslotError::NoSuchGmem { id })
    }

    /// The state of the invalidation protocol.
    pub const fn invalidation(&self) -> &Invalidation {
        &self.invalidation
    }

    /// The virtual processors.
    pub fn vcpu_ids(&self) -> impl Iterator<Item = VcpuId> + use<> {
        (0..self.vcpus.len() as u16).map(VcpuId)
    }

    /// A virtual processor.
    pub(crate) fn vcpu(&self, id: VcpuId) -> Result<&Vcpu, VmError> {
        self.vcpus.get(usize::from(id.0)).ok_or(VmError::NoSuchVcpu { id, nr_vcpus: self.vcpus.len() })
    }

    /// The counters.
    pub fn stats(&self) -> VmStats {
        let task = &Task::QUIET;
        let faults = self.vcpus.iter().fold(FaultStats::default(), |sum, vcpu| sum + vcpu.mmu.lock(task).stats);
        let folios = self.gmems.lock(task).iter().flatten().fold([0; 3], |sum, inode| {
            let folios = inode.folios(task);
            core::array::from_fn(|n| sum[n] + folios[n])
        });
        VmStats {
            faults,
            tables: self.mmu.read(task).stats(),
            shadow: self.shadow_stats(task),
            folios,
            host: self.host.lock(task).stats(),
            invalidations: self.invalidation.seq(),
            flushes: self.flushes.load(Ordering::Relaxed),
            snp: self.snp.as_ref().map_or_else(SnpStats::default, |snp| snp.stats()),
        }
    }

    /// `KVM_CREATE_GUEST_MEMFD` with the VM's folio policy; `flags` are [`gmem::GmemFlags`] as the caller gave them.
    pub fn create_guest_memfd(&self, size_bytes: u64, flags: u64, task: &Task<'_>) -> Result<GmemId, VmError> {
        self.create_guest_memfd_with(size_bytes, flags, self.pages.folios, task)
    }

    /// The same with a policy of its own.
    pub fn create_guest_memfd_with(
        &self,
        size_bytes: u64,
        flags: u64,
        policy: FolioPolicy,
        task: &Task<'_>,
    ) -> Result<GmemId, VmError> {
        self.check_open()?;
        let inode = GuestMemfd::create(&self.host, CreateInfo { size_bytes, flags, policy, gmem: self.gmem }, task)?;
        let mut gmems = self.gmems.lock(task);
        gmems.push(Some(Arc::new(inode)));
        self.file_begins(task);
        Ok(GmemId(gmems.len() as u32 - 1))
    }

    /// Closes an inode that no memslot shows: its folios and its reservation go back.
    pub fn close_guest_memfd(&self, id: GmemId, task: &Task<'_>) -> Result<(), VmError> {
        // Memslots bind under this lock too, so none can come while the inode goes.
        let changes = self.slots_lock.lock(task);
        let inode = self.inode(id, task)?;
        let mut exclusive = inode.exclusive(task);
        if exclusive.is_bound() {
            return Err(VmError::GmemInUse { id });
        }
        exclusive.release();
        drop(exclusive);
        self.forget_gmem(id, task);
        inode.destroy(&self.host, task);
        drop(changes);
        self.file_ends(id, task)
    }

    /// `close` of a guest_memfd's descriptor, whatever memslots show it. When that was the last reference on the file it
    /// is taken from them: they stay, every guest access to them leaves to the VMM, and the folios and the reservation go
    /// back.
    ///
    /// # Errors
    /// [`VmError::GmemInUse`] while a process maps it, which would keep the file open.
    pub fn close_descriptor(&self, id: GmemId, task: &Task<'_>) -> Result<(), VmError> {
        let inode = self.inode(id, task)?;
        if !inode.users().list(task).is_empty() {
            return Err(VmError::GmemInUse { id });
        }
        match inode.close_descriptor() {
            None => Err(VmError::NoSuchGmem { id }),
            Some(FilePut::Open) => Ok(()),
            Some(FilePut::Last) => self.release_file(id, &inode, task),
        }
    }

    /// The number of an inode names nothing any more.
    pub(crate) fn forget_gmem(&self, id: GmemId, task: &Task<'_>) {
        if let Some(place) = self.gmems.lock(task).get_mut(id.0 as usize) {
            *place = None;
        }
    }

    /// Makes every vCPU forget what `owed` says (`kvm_flush_remote_tlbs`): after it no processor uses the old translations.
    pub(crate) fn flush(&self, owed: &Owed, task: &Task<'_>) {
        if !owed.is_empty() {
            self.flushes.fetch_add(1, Ordering::Relaxed);
            let (first, nr_pages) = owed.span();
            task.report(Event::RemoteTlbFlush { first, nr_pages });
            self.vcpus.iter().for_each(|vcpu| vcpu.flush(owed, task));
        }
    }

    /// Enters the guest on `vcpu`, for a processor that runs beside others: what it must forget first, and what holds it
    /// there. Processors that take turns need only [`Vm::take_flush`].
    pub fn enter_guest<'a>(
        &'a self,
        vcpu: VcpuId,
        task: &Task<'a>,
    ) -> Result<(InGuest<'a>, Option<FlushRequest>), VmError> {
        Ok(self.vcpu(vcpu)?.enter(task))
    }

    /// What a vCPU must forget before it enters the guest.
    pub fn take_flush(&self, vcpu: VcpuId, task: &Task<'_>) -> Option<FlushRequest> {
        self.vcpus.get(usize::from(vcpu.0))?.take_flush(task)
    }

    /// Removes the leaves of a range of guest frames; the memory stays and comes back by faults (`kvm_zap_gfn_range`).
    pub fn zap_range(&self, first: Gfn, nr_pages: u64, task: &Task<'_>) -> Result<(), VmError> {
        let mut tables = self.mmu.write(task);
        let mut owed = Owed::default();
        self.invalidation.begin(task);
        self.invalidation.add_range(first, nr_pages, task);
        let mut rest = Some(first);
        let zapped = loop {
            let Some(from) = rest else { break Ok(()) };
            match tables.zap_valid(from, first.raw().saturating_add(nr_pages) - from.raw(), &mut owed, task) {
                Ok(next) => rest = next,
                Err(error) => break Err(error),
            }
            if rest.is_some() {
                // Whoever has the lock next finds nothing to zap and so nothing to flush.
                if !task.has(Defect::YieldWithoutFlush) {
                    self.flush(&owed, task);
                    owed = Owed::default();
                }
                drop(tables);
                task.at(Point::Z1);
                tables = self.mmu.write(task);
            }
        };
        self.flush(&owed, task);
        self.invalidation.end(task);
        tables.bury(&self.host, task);
        Ok(zapped?)
    }

    /// Removes every leaf and every table but the root.
    pub fn zap_all(&self, task: &Task<'_>) -> Result<(), VmError> {
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        self.invalidation.begin(task);
        self.invalidation.add_range(Gfn::new(0), u64::MAX, task);
        let zapped = tables.zap_all(&mut owed, task);
        self.flush(&owed, task);
        self.invalidation.end(task);
        tables.bury(&self.host, task);
        Ok(zapped?)
    }

    /// Clears the accessed or dirty flag of every leaf that reaches into the range and tells which had it.
    pub fn harvest(
        &self,
        first: Gfn,
        nr_pages: u64,
        bit: AdBit,
        found: &mut dyn FnMut(Gfn, PageSize),
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        let harvested = tables.harvest(first, nr_pages, bit, found, &mut owed, task);
        self.flush(&owed, task);
        tables.bury(&self.host, task);
        Ok(harvested?)
    }
}
