//! What SEV-SNP adds to an [`Mmu`]: the RMP in force, translating under it, forgetting what it takes away, and the
//! instructions of a guest that name a page of it.
//!
//! Source: AMD APM vol. 2, "RMP and VMPL Access Checks", "Page Validation", "VMPL Permissions"; APM vol. 3, PVALIDATE,
//! RMPADJUST, RMPQUERY. The door is [`Mmu::set_rmp`] for the machine, and the instructions by linear address for the
//! processor.
//!
//! What is cached carries the verdict of the RMP: an entry of the TLBs is one access kind by one privilege level that was
//! judged, and a cached pointer to a guest's table is a table that was judged. Finished nested walks are kept unjudged and
//! judged whenever they are used.
//!
//! Always true: what this processor does itself takes effect before the operation returns; what others do, before the next
//! access that the fast TLB does not answer, and with [`Mmu::catch_up`] for every access.

use std::sync::Arc;

use emu_core::memory::{Key, Writability};
use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gva, PageSize, Privilege, Spa};

use crate::context::{Context, SnpMode};
use crate::fault::{MmuFault, NestedFaultKind, NestedPageFault, Stage2Cause};
use crate::mmu::Mmu;
use crate::nested::Judge;
use crate::protect::Accessor;
use crate::rmp::{
    Changed, GuestPage, Pvalidate, Rmp, RmpAdjust, RmpBacklog, RmpChange, RmpCursor, RmpError, RmpPageSize, RmpQuery,
    RmpRefusal, Taken, Validated,
};
use crate::translation::{PageFlags, Translation};

/// The RMP as one processor sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RmpView {
    pub(crate) rmp: Option<Arc<Rmp>>,
    /// What is taken away and known.
    cursor: RmpCursor,
    /// See [`Mmu::named_page`].
    named: Option<GuestPage>,
}

impl RmpView {
    pub(crate) const fn mode(&self) -> SnpMode {
        if self.rmp.is_some() { SnpMode::On } else { SnpMode::Off }
    }
}

/// What has become of a page since it was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Still,
    /// Something was taken away since.
    Before,
}

impl Mmu {
    /// Puts the RMP of the machine in force, or none: SNP is off and nothing is checked. Nothing cached survives.
    pub fn set_rmp(&mut self, rmp: Option<Arc<Rmp>>) {
        let cursor = rmp.as_ref().map_or(RmpCursor::default(), |rmp| rmp.changes().now());
        self.view = RmpView { rmp, cursor, named: None };
        let stage2 = *self.stage2();
        self.context = Context::new(&self.features, &self.paging, &stage2, self.context.id, self.view.mode());
        self.flush_all();
    }

    /// The RMP in force.
    pub fn rmp(&self) -> Option<&Arc<Rmp>> {
        self.view.rmp.as_ref()
    }

    /// The page that the last PVALIDATE, RMPADJUST or RMPQUERY reached; nothing if its operands were refused before they
    /// were translated, or its translation faulted.
    pub fn named_page(&self) -> Option<GuestPage> {
        self.view.named
    }

    /// [`Mmu::translate`] where accesses are judged. Repeated only if somebody took away what it found meanwhile.
    pub(crate) fn translate_guarded(
        &mut self,
        accessor: Accessor,
        gva: Gva,
        access: Access,
    ) -> Result<Translation, MmuFault> {
        self.catch_up_rmp();
        loop {
            let found = self.find(gva, access)?;
            let translation = found.outcome.translation;
            let leaf = if translation.flags.contains(PageFlags::ENCRYPTED) { CBit::Set } else { CBit::Clear };
            let key = accessor.key(accessor.effective(leaf, access.kind));
            if self.claim(&translation, key) == Judged::Still {
                self.keep(gva, access, &found);
                return Ok(translation);
            }
        }
    }

    /// Prepares the frame for an access under `key`, and looks whether anything was taken away meanwhile.
    fn claim(&mut self, translation: &Translation, key: Key) -> Judged {
        let Some(rmp) = &self.view.rmp else { return Judged::Still };
        let sfn = translation.spa.frame();
        if self.memory.key(sfn) != key {
            rmp.rekey(sfn, key);
        }
        if !self.is_behind_rmp() {
            return Judged::Still;
        }
        let page = reach(translation.spa, translation.size);
        let mut judged = Judged::Still;
        self.forget_taken(|change| {
            if change.is_none_or(|change| change.what == Taken::Rights && overlap(regions(change), page)) {
                judged = Judged::Before;
            }
        });
        // ROM, and what is no memory, has no key.
        let held = self.memory.page(sfn).is_none_or(|view| view.writability == Writability::Rom);
        if self.memory.key(sfn) != key && !held { Judged::Before } else { judged }
    }

    /// The same for a frame that the second stage alone gave, which nothing is cached of but the way to it.
    pub(crate) fn claim_reached(&mut self, spa: Spa, kind: AccessKind) {
        if let (Some(rmp), Some(accessor)) = (&self.view.rmp, self.context.accessor) {
            rmp.rekey(spa.frame(), accessor.key(accessor.effective(CBit::Set, kind)));
            self.catch_up_rmp();
        }
    }

    /// Whether the RMP took something away that [`Mmu::catch_up`] would drop.
    #[inline]
    pub fn is_behind_rmp(&self) -> bool {
        self.view.rmp.as_ref().is_some_and(|rmp| rmp.changes().is_behind(self.view.cursor))
    }

    /// Drops what the RMP took away since the last time.
    pub(crate) fn catch_up_rmp(&mut self) {
        if self.is_behind_rmp() {
            self.forget_taken(|_| {});
        }
    }

    /// Tells `each` what was taken, nothing for all, and drops it.
    #[cold]
    fn forget_taken(&mut self, mut each: impl FnMut(Option<RmpChange>)) {
        let Some(rmp) = &self.view.rmp else { return };
        match rmp.changes().catch_up(&mut self.view.cursor) {
            RmpBacklog::Lost => {
                each(None);
                self.flush_all();
            }
            RmpBacklog::Changes(changes) => {
                for change in changes {
                    each(Some(change));
                    self.forget(change);
                }
            }
        }
    }

    /// Drops what leads to the frames past a check: pointers to a guest's tables, fast entries and, if rights changed,
    /// translations, which are judged when they are made. What nested tables say stays.
    fn forget(&mut self, change: RmpChange) {
        self.stats.flushes += 1;
        if self.caches.guest_tables.leads_to(change.first, change.frames) {
            self.caches.guest_tables.flush();
        }
        match change.what {
            Taken::Rights => {
                // A write through a large mapping was allowed for what the whole region was.
                let region = regions(change);
                self.fast.flush_frames(region.first, region.frames);
                self.caches.linear.drop_where(|entry| overlap(region, reach(Spa::new(entry.spa), entry.size)));
            }
            // The frame's key is looked at whenever an entry for the fast TLB is made.
            Taken::Bytes => self.fast.flush_frames(change.first, change.frames),
        }
    }

    /// PVALIDATE of the page at `gva`: what EAX and the carry flag say, or the fault. Elsewhere than in an SNP guest, where it
    /// is #UD, there is no such page.
    pub fn pvalidate(
        &mut self,
        gva: Gva,
        privilege: Privilege,
        size: RmpPageSize,
        validated: Validated,
    ) -> Result<Result<Changed, RmpError>, MmuFault> {
        let request = Pvalidate { size, validated };
        let check = |gva, vmpl| request.check_operands(gva, vmpl);
        self.on_page(gva, privilege, check, |rmp, page| rmp.pvalidate(page, &request))
    }

    /// RMPADJUST of the page at `gva`.
    pub fn rmpadjust(
        &mut self,
        gva: Gva,
        privilege: Privilege,
        size: RmpPageSize,
        request: RmpAdjust,
    ) -> Result<Result<(), RmpError>, MmuFault> {
        let check = |gva, vmpl| request.check_operands(gva, size, vmpl);
        self.on_page(gva, privilege, check, |rmp, page| rmp.rmpadjust(page, size, &request))
    }

    /// RMPQUERY of the page at `gva`.
    pub fn rmpquery(
        &mut self,
        gva: Gva,
        privilege: Privilege,
        target: Vmpl,
    ) -> Result<Result<RmpQuery, RmpError>, MmuFault> {
        let check = |_, vmpl| if target < vmpl { Err(RmpError::FailPermission) } else { Ok(()) };
        self.on_page(gva, privilege, check, |rmp, page| rmp.rmpquery(page, target))
    }

    /// Checks operands, translates `gva` as for a read, and lets `act` do its work on the page. Such an access is private,
    /// whatever the guest's leaf says, and the RMP judges it by the instruction's own rules.
    fn on_page<R>(
        &mut self,
        gva: Gva,
        privilege: Privilege,
        check: impl FnOnce(Gva, Vmpl) -> Result<(), RmpError>,
        act: impl FnOnce(&Rmp, &GuestPage) -> Result<Result<R, RmpError>, RmpRefusal>,
    ) -> Result<Result<R, RmpError>, MmuFault> {
        let (Some(rmp), Some(Accessor::Snp(asid, guest))) = (self.view.rmp.clone(), self.context.accessor) else {
            return Ok(Err(RmpError::FailInput));
        };
        self.view.named = None;
        let gva = self.context.linear(gva);
        if let Err(refused) = check(gva, guest.vmpl) {
            return Ok(Err(refused));
        }
        self.catch_up_rmp();
        let outcome = self.walk(gva, Access::new(AccessKind::Read, privilege), Judge::Instruction)?;
        let Translation { gpa, spa, flags, .. } = outcome.translation;
        let page = GuestPage { gva, gpa, spa, mapped: outcome.nested, asid, vmpl: guest.vmpl };
        self.view.named = Some(page);
        let done = act(&rmp, &page);
        self.catch_up_rmp();
        done.map_err(|refusal| match refusal {
            RmpRefusal::Rmp(cause) => MmuFault::Nested(NestedPageFault {
                gpa,
                gva: Some(gva),
                access: AccessKind::Read,
                cause: Stage2Cause::FinalAddress,
                kind: NestedFaultKind::Rmp(cause),
                rights: flags.nested_rights(),
                c_bit: CBit::Set,
            }),
            RmpRefusal::NotValidated => MmuFault::NotValidated { gva },
        })
    }
}

/// The frames of the page of `size` that `spa` is in.
fn reach(spa: Spa, size: PageSize) -> RmpChange {
    RmpChange { what: Taken::Rights, first: spa.align_down(size).frame(), frames: size.frames() }
}

/// The 2 MiB regions that a change is in.
fn regions(change: RmpChange) -> RmpChange {
    let frames = PageSize::Size2M.frames();
    let first = change.first.align_down(PageSize::Size2M);
    let end = change.first.raw().saturating_add(change.frames);
    RmpChange { first, frames: (end - first.raw()).div_ceil(frames) * frames, ..change }
}

fn overlap(a: RmpChange, b: RmpChange) -> bool {
    let (a_first, b_first) = (a.first.raw(), b.first.raw());
    a_first < b_first.saturating_add(b.frames) && b_first < a_first.saturating_add(a.frames)
}
