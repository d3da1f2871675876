//! Stage 3: the memory behind the page, from guest_memfd or from the VMM's address space (`kvm_mmu_faultin_pfn`).

use emu_core::defect::Defect;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, PageSize};
use gmem::GetError;
use gmem::mm::{Hold, UserAccess, Wait};

use super::admit::Admitted;
use super::level;
use super::{Action, MemoryFaultReason, Resumed, Stop, memory_fault};
use crate::config::VmError;
use crate::follow::{FollowPfn, HeldPage, MapWritable, PfnError, UserSignal, follow};
use crate::memslot::Slot;
use crate::snp::memory::SnpMemory;
use crate::tdp::Rights;
use crate::vm::Vm;

/// A fault whose page has memory.
pub struct Backed<'s> {
    fault: Admitted<'s>,
    memory: gmem::Backed,
    origin: Origin,
    /// What the host allows the guest to do.
    rights: Rights,
    page: HeldPage<'s>,
}

/// Where the memory is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A folio of the slot's guest_memfd, which nothing holds.
    Gmem,
    /// User memory at `userspace_addr`.
    UserMemory,
}

impl<'s> Backed<'s> {
    /// The fault that may be served.
    pub const fn fault(&self) -> &Admitted<'s> {
        &self.fault
    }
    /// The frame behind the faulting page, and the size of its folio or of the host's own mapping of it.
    pub const fn folio(&self) -> gmem::Backed {
        self.memory
    }
    /// Where it is from.
    pub const fn origin(&self) -> Origin {
        self.origin
    }
    /// The most an entry may allow.
    pub fn rights(&self) -> Rights {
        self.fault.rights() & self.rights
    }
    /// What holds it.
    pub(crate) const fn page(&self) -> &HeldPage<'s> {
        &self.page
    }
}

/// Finds or allocates the memory. It may be gone again when the entry is to be written; then the sequence has moved.
#[inline(always)]
pub fn fault_in<'s>(fault: Admitted<'s>, vm: &'s Vm, task: &'s Task<'s>) -> Result<Backed<'s>, Stop> {
    let slot = fault.fault().slot();
    let private = fault.fault().fault().input().privacy.is_private();
    if private || slot.info().is_gmem_only() { from_gmem(fault, vm, task) } else { from_user(fault, vm, task) }
}

/// `kvm_mmu_faultin_pfn_gmem`: the folio carries no reference.
#[inline(always)]
fn from_gmem<'s>(fault: Admitted<'s>, vm: &'s Vm, task: &'s Task<'s>) -> Result<Backed<'s>, Stop> {
    let slot = fault.fault().slot();
    let Some((inode, index)) = slot.gmem_page(fault.fault().fault().gfn()) else {
        return Err(memory_fault(fault.fault().fault().input(), MemoryFaultReason::PrivateWithoutGmem));
    };
    let shared = inode.shared(task);
    let closed = || memory_fault(fault.fault().fault().input(), MemoryFaultReason::FileClosed);
    if !slot.info().range().is_some_and(|range| shared.is_bound_to(slot.info().binding_id(), range.first, index)) {
        // From the file's release on `slot->gmem.file` is null, and nobody is bound.
        match inode.is_released() {
            true if task.has(Defect::ReviveFile) => {}
            true => return Err(closed()),
            false => return Err(VmError::NotBound { slot: slot.info().id, index }.into()),
        }
    }
    let memory = match shared.get_folio(&vm.host, index, task) {
        Err(GetError::Closed { .. }) => return Err(closed()),
        found => found?,
    };
    if let Some(snp) = vm.snp.as_deref() {
        prepare(&fault, snp, memory, vm, task)?;
    }
    let page = HeldPage::new(None, UserAccess::Write, &vm.host, task);
    Ok(Backed { fault, memory, origin: Origin::Gmem, rights: Rights::all(), page })
}

/// A private page becomes the guest's before a leaf shows it (`kvm_gmem_prepare_folio`). The inode's lock is held: no
/// conversion comes in between, and one since the fault was admitted is noticed.
#[inline(never)]
fn prepare(fault: &Admitted<'_>, snp: &SnpMemory, memory: gmem::Backed, vm: &Vm, task: &Task<'_>) -> Result<(), Stop> {
    let (slot, unresolved) = (fault.fault().slot(), fault.fault().fault());
    let gfn = unresolved.gfn();
    if !unresolved.input().privacy.is_private() {
        return Ok(());
    }
    if !vm.slot_attribute(slot, gfn, task).is_private() {
        return Err(Stop::Answer(Action::Resume(Resumed::Retry)));
    }
    let largest = level::allowed_by_memory(vm, slot, gfn, memory, Origin::Gmem, task);
    Ok(vm.assign(snp, (gfn, memory.sfn), largest, task)?)
}

/// `__kvm_faultin_pfn`: first without waiting for a disk, and if that is not enough with it. A guest that could do
/// something else meanwhile would be told; this one is not.
#[inline(never)]
fn from_user<'s>(fault: Admitted<'s>, vm: &'s Vm, task: &'s Task<'s>) -> Result<Backed<'s>, Stop> {
    let unresolved = fault.fault().fault();
    let access = match unresolved.input().kind {
        AccessKind::Write => UserAccess::Write,
        _ => UserAccess::Read,
    };
    let ask = |wait| FollowPfn {
        slot: fault.fault().slot().info(),
        gfn: unresolved.gfn(),
        access,
        writable: MapWritable::Wanted,
        hold: Hold::Get,
        wait,
    };
    let kernel = vm.kernel(task);
    let found = match follow(&vm.mm, vm.follow.unsafe_mappings, ask(Wait::Never), kernel) {
        Err(PfnError::NeedsIo { .. }) => follow(&vm.mm, vm.follow.unsafe_mappings, ask(Wait::Block), kernel),
        found => found,
    };
    let found = found.map_err(|error| match error {
        PfnError::ReadOnly { .. } => Stop::Answer(Action::RomWrite { gpa: unresolved.input().gpa }),
        PfnError::HwPoison { hva } => {
            // `kvm_send_hwpoison_signal`; the fault comes again if the VMM survives that.
            vm.signals.lock(task).push(UserSignal::HwPoison { hva: hva.align_down(PageSize::Size4K) });
            Stop::Answer(Action::Resume(Resumed::Retry))
        }
        error => Stop::Failed(error.into()),
    })?;
    let rights = match found.rights {
        UserAccess::Write => Rights::all(),
        UserAccess::Read => Rights::all() - Rights::WRITE,
    };
    let memory = gmem::Backed { sfn: found.sfn, size: found.size };
    let page = HeldPage::new(found.page, found.rights, &vm.host, task);
    Ok(Backed { fault, memory, origin: Origin::UserMemory, rights, page })
}

/// The memory behind a guest frame as a fault would find it now, without populating anything or holding it.
pub(crate) fn present(vm: &Vm, slot: &Slot, gfn: Gfn, task: &Task<'_>) -> Option<(gmem::Backed, Origin)> {
    if slot.info().is_gmem_only() || vm.slot_attribute(slot, gfn, task).is_private() {
        let (inode, index) = slot.gmem_page(gfn)?;
        return Some((inode.peek(index, task)?, Origin::Gmem));
    }
    let leaf = vm.mm.table().leaf(slot.info().hva_of(gfn).frame(), task)?;
    Some((gmem::Backed { sfn: leaf.sfn, size: leaf.size }, Origin::UserMemory))
}
