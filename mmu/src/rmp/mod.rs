//! The reverse map: who owns each page of system memory, and at which address a guest has it.
//!
//! Modelled: the RMP of SEV-SNP, contiguous or segmented; the host's instructions RMPUPDATE, PSMASH and RMPREAD; the guest's
//! PVALIDATE, RMPADJUST and RMPQUERY on a page that is already translated; the commands of the firmware that change entries;
//! the checks of an access. Source: AMD APM vol. 2, "Secure Nested Paging (SEV-SNP)"; APM vol. 3 for the instructions; AMD's
//! SEV firmware for entries and commands. Where these leave something open, docs/sev-snp.md says what was decided.
//!
//! [`Rmp`] is the door: one table for the machine, shared by all processors and the hypervisor, changed through `&self`. It
//! lives in system memory in its own layout (`entry`, `place`) where `registers` say. `transition` is the state machine and `check` the judgement,
//! both pure; `table` only loads and stores.
//!
//! Always true:
//! - a check takes no lock and allocates nothing, and sees an entry before or after a change, never between;
//! - whatever takes a right away is in [`Rmp::changes`] before the operation returns;
//! - the entry at a 2 MiB boundary and the 511 after it agree on the size of the page, and the counter of an ASID is the
//!   number of 4 KiB pages that carry it.
//!
//! Left out on purpose: collisions of two processors that change one entry (the later one waits and sees the outcome of the
//! earlier), supervisor shadow stacks, RMPOPT, and the entry's fields for PCIe and page migration.

mod changes;
mod check;
mod entry;
mod place;
mod registers;
mod request;
mod table;
#[cfg(test)]
mod tests;
mod transition;

use std::sync::Arc;

use emu_core::memory::{Key, SystemMemory};
use emu_core::sev::Vmpl;
use emu_core::{AccessKind, PageSize, Sfn, Spa};

pub use changes::{RmpBacklog, RmpChange, RmpChanges, RmpCursor, Taken};
pub use entry::{PageState, RmpEntry, RmpPageSize, VmplPermissions};
pub use place::{RmpPlace, RmpSetupError};
pub use registers::{RmpRegister, RmpRegisterRefused, RmpRegisters, SegmentShifts, Written};
pub use request::{
    Assigned, Changed, FirmwareCommand, FirmwareRefused, GuestAccess, GuestPage, Immutable, InUse, Pvalidate,
    RegionStatus, RmpAdjust, RmpError, RmpQuery, RmpRead, RmpRefusal, RmpUpdate, Validated, Vmsa,
};

use crate::fault::RmpCause;
use crate::stage2::Asid;
use place::Layout;
use table::{Table, Writer};

/// The table.
#[derive(Debug)]
pub struct Rmp {
    table: Table,
    changes: RmpChanges,
}

impl Rmp {
    /// A table where the registers say, with what is in that memory: software clears it first.
    ///
    /// # Errors
    /// [`RmpSetupError`], when the place is misaligned, has no room for an entry, or is not in memory.
    pub fn new(memory: Arc<SystemMemory>, place: RmpPlace) -> Result<Rmp, RmpSetupError> {
        let layout = Layout::new(&memory, place)?;
        Ok(Rmp { table: Table::new(memory, layout), changes: RmpChanges::default() })
    }

    /// Length of a contiguous table for system memory below `covered_bytes`.
    pub const fn bytes_for(covered_bytes: u64) -> u64 {
        place::bytes_for(covered_bytes)
    }

    /// What was taken away so far.
    #[inline]
    pub fn changes(&self) -> &RmpChanges {
        &self.changes
    }

    /// The entry that decides on `sfn`: its own or that of its 2 MiB page, with the guest physical address of `sfn` itself.
    /// `None`: the table does not cover the page, which is the hypervisor's for ever.
    #[inline]
    pub fn entry(&self, sfn: Sfn) -> Option<RmpEntry> {
        self.table.entry(sfn)
    }

    /// How many 4 KiB pages carry `asid`. The firmware activates no guest under an ASID of which there are any.
    pub fn pages_of(&self, asid: Asid) -> u64 {
        self.table.count_of(asid)
    }

    /// RMPUPDATE. What changes of the page's owner, place or size also takes Validated, VMSA and the permissions.
    pub fn rmpupdate(&self, spa: Spa, new: RmpUpdate) -> Result<(), RmpError> {
        new.check_operands(spa)?;
        let sfn = spa.frame();
        let writer = self.table.write(sfn).ok_or(RmpError::FailInput)?;
        if writer.is_in_use(sfn, new.page_size.frames()) || self.uses_same_page(&writer, sfn) {
            return Err(RmpError::FailInUse);
        }
        match new.page_size {
            RmpPageSize::Size4K => {
                let old = writer.entry(sfn);
                let entry = transition::rmpupdate_4k(old, &new)?;
                writer.replace(sfn, entry);
                if entry != old {
                    self.took(sfn, 1);
                }
            }
            RmpPageSize::Size2M => {
                let old = writer.region();
                let entry = transition::rmpupdate_2m(old, &new)?;
                writer.replace_all(entry);
                if entry != old.head {
                    self.took(sfn, RmpPageSize::Size2M.frames());
                }
            }
        }
        Ok(())
    }

    /// Whether the 2 MiB page that `sfn` is part of is in use.
    fn uses_same_page(&self, writer: &Writer<'_>, sfn: Sfn) -> bool {
        let large = writer.entry(sfn).page_size() == RmpPageSize::Size2M;
        large && writer.is_in_use(sfn.align_down(PageSize::Size2M), RmpPageSize::Size2M.frames())
    }

    /// PSMASH: the 2 MiB page at `spa` becomes 512 pages that differ from it in size and place alone.
    pub fn psmash(&self, spa: Spa) -> Result<(), RmpError> {
        if !spa.is_aligned(PageSize::Size2M) {
            return Err(RmpError::FailInput);
        }
        let sfn = spa.frame();
        let writer = self.table.write(sfn).ok_or(RmpError::FailInput)?;
        if writer.is_in_use(sfn, RmpPageSize::Size2M.frames()) {
            return Err(RmpError::FailInUse);
        }
        let head = writer.entry(sfn);
        transition::psmash(head)?;
        writer.divide(head);
        self.took(sfn, RmpPageSize::Size2M.frames());
        Ok(())
    }

    /// RMPREAD. The guest's part of the entry is not told.
    pub fn rmpread(&self, spa: Spa) -> Result<RmpRead, RmpError> {
        if !spa.is_aligned(PageSize::Size4K) {
            return Err(RmpError::FailInput);
        }
        let (entry, others) = self.table.entry_and_others(spa.frame()).ok_or(RmpError::FailInput)?;
        let others = others && spa.is_aligned(PageSize::Size2M);
        Ok(RmpRead {
            gpa: entry.gpa(),
            assigned: if entry.assigned() { Assigned::Yes } else { Assigned::No },
            page_size: entry.page_size(),
            region: if others { RegionStatus::InUse } else { RegionStatus::Free },
            immutable: if entry.immutable() { Immutable::Yes } else { Immutable::No },
            asid: entry.asid(),
        })
    }

    /// A write by the host, by a device, or by a guest that is not SNP-active, through a mapping of `mapped`. It needs a page
    /// of the hypervisor, and through 2 MiB or more a region of nothing else. Also what VMRUN asks of the VMCB and what a
    /// setting of A or D asks, both with [`PageSize::Size4K`].
    #[inline]
    pub fn check_host_write(&self, spa: Spa, mapped: PageSize) -> Result<(), RmpCause> {
        let assigned = match RmpPageSize::wanted_by(mapped) {
            RmpPageSize::Size4K => self.table.entry(spa.frame()).is_some_and(RmpEntry::assigned),
            RmpPageSize::Size2M => self.table.region_is_assigned(spa.frame()).unwrap_or(false),
        };
        if assigned { Err(RmpCause::Ownership) } else { Ok(()) }
    }

    /// An access of an SNP guest, after both stages of translation. Tells the largest page that may be cached for it.
    #[inline]
    pub fn check_guest(&self, access: &GuestAccess) -> Result<PageSize, RmpRefusal> {
        if check::is_private(access) {
            return self.check_private(access).map(|entry| entry.page_size().page_size());
        }
        if access.access.kind == AccessKind::Write {
            self.check_host_write(access.spa, access.mapped)?;
        }
        Ok(access.mapped.min(PageSize::Size2M))
    }

    /// The same for an access that is private. The entry that allows it tells what else the privilege level may do there.
    #[inline]
    pub fn check_private(&self, access: &GuestAccess) -> Result<RmpEntry, RmpRefusal> {
        check::private(self.table.entry(access.spa.frame()), access)
    }

    /// VMRUN of an SNP-active guest: its VMSA.
    pub fn check_vmsa(&self, spa: Spa, asid: Asid) -> Result<(), RmpCause> {
        check::vmsa(self.table.entry(spa.frame()), asid)
    }

    /// VMRUN of an SNP-active guest: its VMSA is asked about and noted as in use in one step, so that nobody takes it away
    /// between. Each use ends with [`Rmp::set_in_use`].
    pub fn use_vmsa(&self, spa: Spa, asid: Asid) -> Result<(), RmpCause> {
        let sfn = spa.frame();
        let mut writer = self.table.write(sfn).ok_or(RmpCause::Ownership)?;
        check::vmsa(Some(writer.entry(sfn)), asid)?;
        writer.note_use(sfn);
        Ok(())
    }

    /// A processor runs with this page, or has stopped to: RMPUPDATE and PSMASH of it fail meanwhile. Uses are counted, and
    /// each ends once.
    pub fn set_in_use(&self, sfn: Sfn, in_use: InUse) {
        match in_use {
            InUse::Yes => self.table.use_frame(sfn),
            InUse::No => self.table.unuse_frame(sfn),
        }
    }

    /// PVALIDATE. The caller has asked [`Pvalidate::check_operands`] before it translated; it is asked again.
    pub fn pvalidate(&self, page: &GuestPage, request: &Pvalidate) -> Result<Result<Changed, RmpError>, RmpRefusal> {
        if let Err(refused) = request.check_operands(page.gva, page.vmpl) {
            return Ok(Err(refused));
        }
        let sfn = page.spa.frame();
        let Some(writer) = self.table.write(sfn) else { return Err(RmpCause::Ownership.into()) };
        let old = check::operand(Some(writer.entry(sfn)), page, request.size)?;
        Ok(transition::pvalidate(old, request).map(|(new, changed)| {
            if changed == Changed::Yes {
                writer.replace(sfn, new);
            }
            if changed == Changed::Yes && request.validated == Validated::No {
                self.took_page(sfn, new);
            }
            changed
        }))
    }

    /// RMPADJUST. The caller has asked [`RmpAdjust::check_operands`] before it translated; it is asked again.
    pub fn rmpadjust(
        &self,
        page: &GuestPage,
        size: RmpPageSize,
        request: &RmpAdjust,
    ) -> Result<Result<(), RmpError>, RmpRefusal> {
        if let Err(refused) = request.check_operands(page.gva, size, page.vmpl) {
            return Ok(Err(refused));
        }
        let sfn = page.spa.frame();
        let Some(writer) = self.table.write(sfn) else { return Err(RmpCause::Ownership.into()) };
        let old = check::operand(Some(writer.entry(sfn)), page, size)?;
        Ok(transition::rmpadjust(old, page.vmpl, request)?.map(|new| {
            writer.replace(sfn, new);
            if !request.permissions.contains(old.0.permissions(request.target)) {
                self.took_page(sfn, new);
            }
        }))
    }

    /// RMPQUERY: what `target` may do with the page, which is checked as for a read.
    pub fn rmpquery(&self, page: &GuestPage, target: Vmpl) -> Result<Result<RmpQuery, RmpError>, RmpRefusal> {
        if target < page.vmpl {
            return Ok(Err(RmpError::FailPermission));
        }
        let entry = check::owned(self.table.entry(page.spa.frame()), page.asid, page.gpa)?;
        if entry.page_size() != RmpPageSize::wanted_by(page.mapped) {
            return Err(RmpCause::PageSize.into());
        }
        transition::rmpquery(entry, target).map(Ok)
    }

    /// A command of the firmware on the page at `spa`.
    pub fn firmware(&self, spa: Spa, command: FirmwareCommand) -> Result<(), FirmwareRefused> {
        let size = match command {
            FirmwareCommand::LaunchPage { size, .. } | FirmwareCommand::Reclaim { size } => size,
            FirmwareCommand::Unsmash => RmpPageSize::Size2M,
            FirmwareCommand::CreateContext | FirmwareCommand::Decommission | FirmwareCommand::SetHvFixed => {
                RmpPageSize::Size4K
            }
        };
        if !spa.is_aligned(size.page_size()) {
            return Err(FirmwareRefused::InvalidAddress);
        }
        let sfn = spa.frame();
        let writer = self.table.write(sfn).ok_or(FirmwareRefused::InvalidAddress)?;
        let old = writer.entry(sfn);
        let new = match command {
            FirmwareCommand::LaunchPage { asid, size, vmsa, permissions } => {
                transition::launch(old, asid, size, vmsa, permissions)?
            }
            FirmwareCommand::Reclaim { size } => transition::reclaim(old, size)?,
            FirmwareCommand::CreateContext => transition::context(old, PageState::Firmware)?,
            FirmwareCommand::Decommission => transition::context(old, PageState::Context)?,
            FirmwareCommand::SetHvFixed => transition::set_hv_fixed(old)?,
            FirmwareCommand::Unsmash => {
                if writer.is_in_use(sfn, size.frames()) {
                    return Err(FirmwareRefused::InvalidPageState);
                }
                writer.replace_all(transition::unsmash(&writer.slots())?);
                self.took(sfn, size.frames());
                return Ok(());
            }
        };
        writer.replace(sfn, new);
        Ok(())
    }

    /// What SNP_INIT does about the pages of the table itself: they become the firmware's for good, and writes of the host
    /// to them fail. The table covers them, or they stay as they are.
    pub fn protect_own_pages(&self) {
        for (first, frames) in self.table.layout.own_frames() {
            for frame in first.raw()..first.raw() + frames {
                let sfn = Sfn::new(frame);
                if let Some(writer) = self.table.write(sfn)
                    && writer.entry(sfn) == RmpEntry::HYPERVISOR
                {
                    writer.replace(sfn, transition::own());
                }
            }
            self.took(first, frames);
        }
    }

    /// Makes the bytes of `sfn` what the owner of `key` reads there ([`SystemMemory::rekey`]), before somebody accesses them
    /// under that key. If they changed, every processor forgets what leads to the frame.
    pub fn rekey(&self, sfn: Sfn, key: Key) {
        if self.table.memory().rekey(sfn, key) {
            self.changes.push(RmpChange { what: Taken::Bytes, first: sfn, frames: 1 });
        }
    }

    fn took(&self, first: Sfn, frames: u64) {
        self.changes.push(RmpChange { what: Taken::Rights, first, frames });
    }

    /// The whole page that `entry` is for, which `sfn` lies in.
    fn took_page(&self, sfn: Sfn, entry: RmpEntry) {
        self.took(sfn.align_down(entry.page_size().page_size()), entry.page_size().frames());
    }
}
