//! Save areas: the pages that processors of an SNP guest run from (`sev_snp_init_protected_guest_state`).
//!
//! A processor that is launched has its area in a page of the kernel, which never goes. The guest makes areas for its other
//! processors in pages of its own, and such a page can go: punched out, made shared, with its memslot. Whoever takes it away
//! asks the processor to look it up again and waits until it has left the guest ([`Vm::reload_save_areas`]), before the frame
//! is taken from the guest; a processor that enters asks whether it must ([`Vm::must_reload`]) once nobody can take anything
//! away unnoticed, and then looks the page up anew ([`Vm::snp_reload_save_area`]).
//!
//! Always true: a processor in the guest runs from the page that stands behind its area's guest frame, or it was asked to
//! leave. Whether the page is a save area at all is for VMRUN to find out.

use core::sync::atomic::Ordering;

use emu_core::defect::Defect;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, Sfn, Spa};

use super::launch::{LaunchError, Measure};
use crate::config::VmError;
use crate::memslot::{Slot, SlotState};
use crate::vcpu::VcpuId;
use crate::vm::Vm;

/// Where a processor's save area is, as the hypervisor knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Place {
    /// Nobody said.
    #[default]
    Unknown,
    /// In a page of the kernel.
    Kernel(Sfn),
    /// In a page of the guest; without a frame while there is none.
    Guest {
        /// The guest frame.
        gfn: Gfn,
        /// Where that was found.
        page: Option<Sfn>,
    },
}

impl Vm {
    /// The frame behind a private page of the guest, which it calls a save area.
    pub fn snp_save_area(&self, gfn: Gfn, task: &Task<'_>) -> Option<Sfn> {
        let slots = self.slots.read(task);
        self.private_page(slots.lookup(gfn)?, gfn, task)
    }

    /// The guest has made a save area for `vcpu` at `gfn` (the GHCB's AP creation). The frame behind it, for the VMCB to point
    /// at; `None` if no private page is there, and then nothing changes.
    ///
    /// # Errors
    /// [`VmError::NoSuchVcpu`].
    pub fn snp_use_save_area(&self, vcpu: VcpuId, gfn: Gfn, task: &Task<'_>) -> Result<Option<Sfn>, VmError> {
        let state = self.vcpu(vcpu)?;
        let before = core::mem::replace(&mut *state.save_area.lock(task), Place::Guest { gfn, page: None });
        let found = loop {
            match self.snp_reload_save_area(vcpu, task)? {
                Reloaded::At(sfn) => break Some(sfn),
                Reloaded::Gone => break None,
                Reloaded::Retry => task.give_way(),
            }
        };
        if found.is_none() {
            *state.save_area.lock(task) = before;
        }
        Ok(found)
    }

    /// Looks up where the save area of `vcpu` is by now.
    ///
    /// # Errors
    /// [`VmError::NoSuchVcpu`].
    pub fn snp_reload_save_area(&self, vcpu: VcpuId, task: &Task<'_>) -> Result<Reloaded, VmError> {
        let state = self.vcpu(vcpu)?;
        let sample = self.invalidation.sample();
        let gfn = match *state.save_area.lock(task) {
            Place::Unknown => return Ok(Reloaded::Gone),
            Place::Kernel(sfn) => return Ok(Reloaded::At(sfn)),
            Place::Guest { gfn, .. } => gfn,
        };
        // Held to the end: whoever withdraws the memslot waits.
        let slots = self.slots.read(task);
        let page = slots.lookup(gfn).and_then(|slot| self.private_page(slot, gfn, task));
        task.at(Point::V1);
        let _tables = self.mmu.read(task);
        if self.invalidation.must_retry(sample, gfn, task) {
            return Ok(Reloaded::Retry);
        }
        *state.save_area.lock(task) = Place::Guest { gfn, page };
        state.area_stale.store(false, Ordering::Release);
        Ok(page.map_or(Reloaded::Gone, Reloaded::At))
    }

    /// The frame behind a private page of the guest.
    fn private_page(&self, slot: &Slot, gfn: Gfn, task: &Task<'_>) -> Option<Sfn> {
        let (inode, index) = slot.gmem_page(gfn).filter(|_| slot.state() == SlotState::Active)?;
        let _stays = inode.shared(task);
        let is_private = self.slot_attribute(slot, gfn, task).is_private();
        inode.peek(index, task).filter(|_| is_private).map(|folio| folio.sfn)
    }

    /// Guest frames are about to lose their pages: processors whose save areas are there look them up again, and are not in
    /// the guest when this returns (`KVM_REQ_UPDATE_PROTECTED_GUEST_STATE`). With `mmu_lock` held for writing.
    #[inline]
    pub(crate) fn reload_save_areas(&self, first: Gfn, nr_pages: u64, task: &Task<'_>) {
        if self.snp.is_some() && !task.has(Defect::ForgetSaveArea) {
            self.ask_processors(first, nr_pages, task);
        }
    }

    #[cold]
    fn ask_processors(&self, first: Gfn, nr_pages: u64, task: &Task<'_>) {
        for vcpu in &self.vcpus {
            let place = *vcpu.save_area.lock(task);
            if let Place::Guest { gfn, .. } = place
                && gfn.raw().wrapping_sub(first.raw()) < nr_pages
            {
                vcpu.area_stale.store(true, Ordering::Release);
                vcpu.kick(task);
            }
        }
    }

    /// Launches the save areas of processors from their state: `state` is asked for that of each, while none of them runs
    /// (`snp_launch_update_vmsa` with all vCPUs locked), and says nothing of those that have an area already. Where each lies,
    /// in their order.
    ///
    /// # Errors
    /// [`LaunchError`]; the areas before the one that failed stay launched.
    pub fn snp_launch_processors(
        &self,
        state: &mut dyn FnMut(VcpuId) -> Option<Box<[u8; PAGE_SIZE]>>,
        measure: &mut Measure<'_>,
        task: &Task<'_>,
    ) -> Result<Vec<Option<Spa>>, LaunchError> {
        let stopped = || -> Vec<_> { self.vcpus.iter().map(|vcpu| vcpu.stop(task)).collect() };
        let _stopped = if task.has(Defect::LaunchBesideProcessors) { Vec::new() } else { stopped() };
        let launch = |(n, vcpu): (usize, &crate::vcpu::Vcpu)| {
            let Some(bytes) = state(VcpuId(n as u16)) else { return Ok(None) };
            task.at(Point::V2);
            let area = self.snp_launch_vmsa(&bytes, measure, task)?;
            *vcpu.save_area.lock(task) = Place::Kernel(area.frame());
            Ok(Some(area))
        };
        self.vcpus.iter().enumerate().map(launch).collect()
    }
}

/// What came of looking a save area up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// It is in this frame.
    At(Sfn),
    /// There is none: the processor does not run.
    Gone,
    /// The page is about to go: to be tried again.
    Retry,
}
