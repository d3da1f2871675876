//! The VM: host memory, inodes, memslots and nested tables under one door.

use std::sync::Arc;

use emu_core::event::{Event, EventSink, Silent};
use emu_core::memory::SystemMemory;
use emu_core::page::PAGE_SIZE;
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Spa};
use gmem::{CreateInfo, FolioPolicy, GuestMemfd, HostMemory, Invalidation, SlotId};

use crate::config::{PagePolicy, VmConfig, VmError};
use crate::fault::{
    Action, EntryState, FaultCause, FaultInput, Resumed, Stop, Unresolved, admit, back, level, resolve,
};
use crate::flush::FlushRequest;
use crate::memslot::{MemSlot, MemSlotSpec, MemSlots, MemslotError, SlotFlags};
use crate::plan::RamLayout;
use crate::stats::{FaultStats, VmStats};
use crate::tdp::{AdBit, Outcome, Tables, TdpFormat};

const PAGE: u64 = PAGE_SIZE as u64;

/// Number of a guest_memfd inode of this VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GmemId(pub u32);

/// A fault between its two halves.
#[derive(Clone, Copy, Debug)]
pub enum FaultInFlight {
    /// It is answered already.
    Answered(Action),
    /// It has its folio, and [`Vm::fault_finish`] is next.
    Backed(back::Backed),
}

/// See the crate's introduction.
pub struct Vm {
    pub(crate) host: HostMemory,
    /// Closed inodes leave a gap: numbers are not used again.
    pub(crate) gmems: Vec<Option<GuestMemfd>>,
    pub(crate) slots: MemSlots,
    pub(crate) tables: Tables,
    pub(crate) invalidation: Invalidation,
    pages: PagePolicy,
    faults: FaultStats,
    flushes: u64,
}

impl Vm {
    /// A VM without memory. The host's share of `memory` must be all zero.
    pub fn new(memory: Arc<SystemMemory>, config: &VmConfig) -> Result<Vm, VmError> {
        let maxphyaddr = config.maxphyaddr;
        if !(32..=48).contains(&maxphyaddr) {
            return Err(VmError::MaxPhyAddr { maxphyaddr });
        }
        let mut host = HostMemory::new(memory, &config.host)?;
        let tables = Tables::new(&mut host, config.format)?;
        let last_gfn = Gfn::new((1 << (u32::from(maxphyaddr) - emu_core::page::PAGE_SHIFT)) - 1);
        Ok(Vm {
            host,
            gmems: Vec::new(),
            slots: MemSlots::new(last_gfn),
            tables,
            invalidation: Invalidation::default(),
            pages: config.pages,
            faults: FaultStats::default(),
            flushes: 0,
        })
    }

    /// The root of the nested tables.
    pub fn root(&self) -> Spa {
        self.tables.root()
    }

    /// What nCR3 (NPT) or the EPTP (EPT) holds.
    pub fn root_register(&self) -> u64 {
        self.format().root_register(self.root())
    }

    /// The format of the nested tables.
    pub fn format(&self) -> TdpFormat {
        self.tables.format()
    }

    /// The bytes.
    pub fn memory(&self) -> &Arc<SystemMemory> {
        self.host.memory()
    }

    /// The host's memory, for its counters and pools.
    pub fn host(&self) -> &HostMemory {
        &self.host
    }

    /// The nested tables, for listings and checks.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The memslots.
    pub fn memslots(&self) -> &MemSlots {
        &self.slots
    }

    /// An inode.
    pub fn gmem(&self, id: GmemId) -> Option<&GuestMemfd> {
        self.gmems.get(id.0 as usize)?.as_ref()
    }

    /// The state of the invalidation protocol.
    pub fn invalidation(&self) -> &Invalidation {
        &self.invalidation
    }

    /// The counters.
    pub fn stats(&self) -> VmStats {
        VmStats {
            faults: self.faults,
            tables: *self.tables.stats(),
            folios: self.gmems.iter().flatten().fold([0; 3], |sum, inode| {
                let folios = inode.folios();
                core::array::from_fn(|n| sum[n] + folios[n])
            }),
            host: self.host.stats(),
            invalidations: self.invalidation.seq(),
            flushes: self.flushes,
        }
    }

    pub(crate) fn host_and_gmem(&mut self, id: GmemId) -> Option<(&mut HostMemory, &mut GuestMemfd)> {
        Some((&mut self.host, self.gmems.get_mut(id.0 as usize)?.as_mut()?))
    }

    /// `KVM_CREATE_GUEST_MEMFD` with the VM's folio policy; `flags` are [`gmem::GmemFlags`] as the caller gave them.
    pub fn create_guest_memfd(&mut self, size_bytes: u64, flags: u64) -> Result<GmemId, VmError> {
        self.create_guest_memfd_with(size_bytes, flags, self.pages.folios)
    }

    /// The same with a policy of its own.
    pub fn create_guest_memfd_with(
        &mut self,
        size_bytes: u64,
        flags: u64,
        policy: FolioPolicy,
    ) -> Result<GmemId, VmError> {
        let inode = GuestMemfd::create(&mut self.host, CreateInfo { size_bytes, flags, policy })?;
        self.gmems.push(Some(inode));
        Ok(GmemId(self.gmems.len() as u32 - 1))
    }

    /// Closes an inode that nothing uses: its folios and its reservation go back.
    pub fn close_guest_memfd(&mut self, id: GmemId) -> Result<(), VmError> {
        let place = self.gmems.get_mut(id.0 as usize).ok_or(VmError::NoSuchGmem { id })?;
        let inode = place.take().ok_or(VmError::NoSuchGmem { id })?;
        if inode.is_bound() || inode.is_invalidating() {
            *place = Some(inode);
            return Err(VmError::GmemInUse { id });
        }
        inode.destroy(&mut self.host);
        Ok(())
    }

    /// `KVM_SET_USER_MEMORY_REGION2`: binds, then publishes.
    pub fn add_memslot(&mut self, spec: &MemSlotSpec) -> Result<(), VmError> {
        let slot = self.slots.check(spec, None)?;
        let inode = Self::inode_of(&mut self.gmems, slot.gmem)?;
        inode.bind(slot.id, slot.range()).map_err(MemslotError::Bind)?;
        self.slots.publish(slot);
        Ok(())
    }

    /// Deletes a memslot: its leaves go before anything else can be put there.
    pub fn remove_memslot(&mut self, id: SlotId, events: &mut dyn EventSink) -> Result<(), VmError> {
        let slot = *self.slots.by_id(id).ok_or(MemslotError::NotFound { id })?;
        // Before anything changes: a removal in flight freezes the binding.
        Self::inode_of(&mut self.gmems, slot.gmem)?.unbind(slot.first_index).map_err(MemslotError::Bind)?;
        self.withdraw(&slot, events)
    }

    /// Moves a memslot to another guest physical address; its bytes stay.
    pub fn move_memslot(&mut self, id: SlotId, gpa: Gpa, events: &mut dyn EventSink) -> Result<(), VmError> {
        let slot = *self.slots.by_id(id).ok_or(MemslotError::NotFound { id })?;
        let spec = MemSlotSpec {
            id,
            gpa,
            len_bytes: slot.nr_pages * PAGE,
            flags: slot.flags,
            gmem: slot.gmem,
            offset_bytes: slot.first_index.0 * PAGE,
        };
        let moved = self.slots.check(&spec, Some(id))?;
        if Self::inode_of(&mut self.gmems, slot.gmem)?.is_invalidating() {
            // The removal told which guest frames must retry; the slot may not show its pages at others meanwhile.
            return Err(MemslotError::Bind(gmem::BindError::Busy).into());
        }
        self.withdraw(&slot, events)?;
        self.slots.publish(moved);
        Ok(())
    }

    fn withdraw(&mut self, slot: &MemSlot, events: &mut dyn EventSink) -> Result<(), VmError> {
        self.invalidation.begin();
        self.invalidation.add_range(slot.first, slot.nr_pages);
        let zapped = self.tables.zap(slot.first, slot.nr_pages, events);
        self.slots.withdraw(slot.id);
        self.invalidation.end();
        Ok(zapped?)
    }

    pub(crate) fn inode_of(gmems: &mut [Option<GuestMemfd>], id: GmemId) -> Result<&mut GuestMemfd, MemslotError> {
        gmems.get_mut(id.0 as usize).and_then(Option::as_mut).ok_or(MemslotError::NoSuchGmem { id })
    }

    /// Guest RAM: one guest_memfd, shared with the host, and a memslot for each part, numbered from `first_id`. All or
    /// nothing.
    pub fn add_ram(&mut self, layout: &RamLayout, first_id: SlotId) -> Result<GmemId, VmError> {
        let flags = gmem::GmemFlags::MMAP | gmem::GmemFlags::INIT_SHARED;
        let gmem = self.create_guest_memfd(layout.inode_bytes, flags.bits())?;
        for (n, range) in layout.ranges.iter().enumerate() {
            let added = self.add_memslot(&MemSlotSpec {
                id: SlotId(first_id.0.saturating_add(n as u16)),
                gpa: range.gpa,
                len_bytes: range.len_bytes,
                flags: SlotFlags::empty(),
                gmem,
                offset_bytes: range.offset_bytes,
            });
            if let Err(error) = added {
                // Nothing was faulted in through these slots, so there is nothing to report.
                for n in 0..n {
                    self.remove_memslot(SlotId(first_id.0.saturating_add(n as u16)), &mut Silent)?;
                }
                self.close_guest_memfd(gmem)?;
                return Err(error);
            }
        }
        Ok(gmem)
    }

    /// Answers a nested fault.
    pub fn handle_fault(&mut self, fault: FaultInput, events: &mut dyn EventSink) -> Result<Action, VmError> {
        match self.fault_begin(fault, events)? {
            FaultInFlight::Answered(action) => Ok(action),
            FaultInFlight::Backed(fault) => self.fault_finish(fault, events),
        }
    }

    /// The stages of [`Vm::handle_fault`] up to the folio, for a scheduler that lets other actors run before
    /// [`Vm::fault_finish`]: anything may happen in between to what was read here.
    pub fn fault_begin(&mut self, fault: FaultInput, events: &mut dyn EventSink) -> Result<FaultInFlight, VmError> {
        self.faults.taken += 1;
        self.faults.on_guest_tables += u64::from(fault.cause == FaultCause::GuestTable);
        self.faults.denied += u64::from(fault.entry == EntryState::Denied);
        events.report(Event::PageFault {
            gpa: fault.gpa,
            write: fault.kind == AccessKind::Write,
            execute: fault.kind == AccessKind::Execute,
        });
        match self.fault_in(fault, events) {
            Ok(backed) => Ok(FaultInFlight::Backed(backed)),
            Err(Stop::Answer(action)) => {
                self.faults.count(&action);
                Ok(FaultInFlight::Answered(action))
            }
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn fault_in(&mut self, fault: FaultInput, events: &mut dyn EventSink) -> Result<back::Backed, Stop> {
        let fault = Unresolved::new(fault, &self.invalidation);
        let fault = resolve::resolve(&self.slots, fault)?;
        if self.invalidation.must_retry(fault.fault().sample(), fault.fault().gfn()) {
            // Saves populating a page that is about to go.
            return Err(Stop::Answer(Action::Resume(Resumed::Retry)));
        }
        let inode = Self::inode_of(&mut self.gmems, fault.slot().gmem)?;
        let fault = admit::admit(inode.shareability(), fault)?;
        back::fault_in(inode, &mut self.host, fault, events)
    }

    /// The last stages of [`Vm::handle_fault`].
    pub fn fault_finish(&mut self, fault: back::Backed, events: &mut dyn EventSink) -> Result<Action, VmError> {
        // An inode that was closed meanwhile had its slots removed first: the sequence has moved.
        let resumed = match self.gmem(fault.fault().fault().slot().gmem) {
            None => Resumed::Retry,
            Some(inode) => {
                let fault = level::choose(inode.shareability(), fault, self.pages.max_level);
                match self.tables.install(&mut self.host, &self.invalidation, fault, events)? {
                    Outcome::Fixed { size } => Resumed::Fixed { size },
                    Outcome::Spurious => Resumed::Spurious,
                    Outcome::Retry => Resumed::Retry,
                }
            }
        };
        let action = Action::Resume(resumed);
        self.faults.count(&action);
        Ok(action)
    }

    /// The flush owed since the last call. Every vCPU obeys it before it enters the guest.
    pub fn take_flush(&mut self) -> Option<FlushRequest> {
        let flush = self.tables.take_flush();
        self.flushes += u64::from(flush.is_some());
        flush
    }

    /// Removes the leaves of a range of guest frames; the memory stays and comes back by faults.
    pub fn zap_range(&mut self, first: Gfn, nr_pages: u64, events: &mut dyn EventSink) -> Result<(), VmError> {
        self.invalidation.begin();
        self.invalidation.add_range(first, nr_pages);
        let zapped = self.tables.zap(first, nr_pages, events);
        self.invalidation.end();
        Ok(zapped?)
    }

    /// Removes every leaf and every table but the root.
    pub fn zap_all(&mut self, events: &mut dyn EventSink) -> Result<(), VmError> {
        self.invalidation.begin();
        self.invalidation.add_range(Gfn::new(0), u64::MAX);
        let zapped = self.tables.zap_all(&mut self.host, events);
        self.invalidation.end();
        Ok(zapped?)
    }

    /// Clears the accessed or dirty flag of every leaf that reaches into the range and tells which had it. The flush is
    /// owed before the next harvest can be believed.
    pub fn harvest(
        &mut self,
        first: Gfn,
        nr_pages: u64,
        bit: AdBit,
        events: &mut dyn EventSink,
        found: &mut dyn FnMut(Gfn, PageSize),
    ) -> Result<(), VmError> {
        Ok(self.tables.harvest(first, nr_pages, bit, events, found)?)
    }
}
