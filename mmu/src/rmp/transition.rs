//! What each instruction and each command of the firmware makes of an entry: pure functions, one an event.
//!
//! Source: APM vol. 2, "RMP Page States", "Page Validation", "VMPL Permissions" and "PSMASH"; AMD's SEV firmware for its
//! commands. Operands are checked before (`request`), and so is who owns the page in a guest's eyes (`check`). An old entry
//! here is the effective one; a new entry is what the page's own slot holds from then on, but for Subpage_Count, which
//! `table` keeps.
//!
//! Always true, and proved over all states by the tests of this crate: no instruction of the host makes a page Validated;
//! a page that changes its owner, its place or its size is not Validated and starts with the first permissions.

use emu_core::sev::Vmpl;

use super::check::{Fit, may_grant};
use super::entry::{PageState, RmpEntry, RmpPageSize};
use super::request::{
    Assigned, Changed, FirmwareRefused, Immutable, Pvalidate, RmpAdjust, RmpError, RmpQuery, RmpRefusal, RmpUpdate,
    Validated, Vmsa,
};

/// What the 512 slots of a region say of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// The slot at the 2 MiB boundary.
    pub(super) head: RmpEntry,
    /// Whether any page is assigned.
    pub(super) assigned: bool,
    /// Whether any page is immutable.
    pub(super) immutable: bool,
}

/// RMPUPDATE of 4 KiB.
pub(super) fn rmpupdate_4k(old: RmpEntry, new: &RmpUpdate) -> Result<RmpEntry, RmpError> {
    if old.immutable() {
        return Err(RmpError::FailPermission);
    }
    if old.page_size() == RmpPageSize::Size2M {
        return Err(RmpError::FailOverlap);
    }
    Ok(rewritten(old, new))
}

/// RMPUPDATE of 2 MiB.
pub(super) fn rmpupdate_2m(old: Region, new: &RmpUpdate) -> Result<RmpEntry, RmpError> {
    if old.immutable {
        return Err(RmpError::FailPermission);
    }
    if old.assigned && old.head.page_size() == RmpPageSize::Size4K {
        return Err(RmpError::FailOverlap);
    }
    Ok(rewritten(old.head, new))
}

/// The guest's part of an entry survives only if the entry still says the same of the same guest.
fn rewritten(old: RmpEntry, new: &RmpUpdate) -> RmpEntry {
    if new.assigned == Assigned::No {
        return RmpEntry::HYPERVISOR;
    }
    let same = old.assigned()
        && new.asid.0 != 0
        && old.asid() == new.asid
        && old.gpa() == new.gpa
        && old.page_size() == new.page_size;
    let guests_part = if same { old.with_subpage_count(0) } else { RmpEntry::HYPERVISOR.with_first_permissions() };
    guests_part
        .with_assigned(true)
        .with_page_size(new.page_size)
        .with_immutable(new.immutable == Immutable::Yes)
        .with_asid(new.asid)
        .with_gpa(new.gpa)
}

/// PSMASH: whether the 2 MiB entry may be divided; its parts are [`RmpEntry::part`].
pub(super) fn psmash(head: RmpEntry) -> Result<(), RmpError> {
    if head.immutable() {
        return Err(RmpError::FailPermission);
    }
    if !head.assigned() || head.page_size() == RmpPageSize::Size4K {
        return Err(RmpError::FailInput);
    }
    Ok(())
}

/// PVALIDATE of a page that is the guest's.
pub(super) fn pvalidate(old: (RmpEntry, Fit), request: &Pvalidate) -> Result<(RmpEntry, Changed), RmpError> {
    let (old, fit) = old;
    if fit == Fit::TooSmall {
        return Err(RmpError::FailSizeMismatch);
    }
    let validated = request.validated == Validated::Yes;
    let changed = if old.validated() == validated { Changed::No } else { Changed::Yes };
    Ok((old.with_validated(validated), changed))
}

/// RMPADJUST of a page that is the guest's.
pub(super) fn rmpadjust(
    old: (RmpEntry, Fit),
    vmpl: Vmpl,
    request: &RmpAdjust,
) -> Result<Result<RmpEntry, RmpError>, RmpRefusal> {
    let (old, fit) = old;
    if !old.validated() {
        return Err(RmpRefusal::NotValidated);
    }
    if fit == Fit::TooSmall {
        return Ok(Err(RmpError::FailSizeMismatch));
    }
    if !may_grant(old, vmpl, request.permissions) {
        return Ok(Err(RmpError::FailPermission));
    }
    let new = old.with_permissions(request.target, request.permissions);
    Ok(Ok(if vmpl == Vmpl::Vmpl0 { new.with_vmsa(request.vmsa == Vmsa::Yes) } else { new }))
}

/// RMPQUERY of a page that is the guest's.
pub(super) fn rmpquery(entry: RmpEntry, target: Vmpl) -> Result<RmpQuery, RmpRefusal> {
    if !entry.validated() {
        return Err(RmpRefusal::NotValidated);
    }
    let vmsa = if entry.vmsa() { Vmsa::Yes } else { Vmsa::No };
    Ok(RmpQuery { permissions: entry.permissions(target), vmsa, size: entry.page_size() })
}

/// SNP_LAUNCH_UPDATE.
pub(super) fn launch(
    old: RmpEntry,
    asid: crate::stage2::Asid,
    size: RmpPageSize,
    vmsa: Vmsa,
    permissions: [super::entry::VmplPermissions; 3],
) -> Result<RmpEntry, FirmwareRefused> {
    if old.state() != PageState::PreGuest {
        return Err(FirmwareRefused::InvalidPageState);
    }
    let runs = vmsa == Vmsa::Yes;
    if old.page_size() != size || runs && size == RmpPageSize::Size2M {
        return Err(FirmwareRefused::InvalidPageSize);
    }
    if old.asid() != asid {
        return Err(FirmwareRefused::InvalidPageOwner);
    }
    let mut new = old.with_validated(true).with_immutable(false).with_locked(false).with_vmsa(runs);
    for (vmpl, permissions) in Vmpl::ALL.into_iter().skip(1).zip(permissions) {
        new = new.with_permissions(vmpl, permissions);
    }
    Ok(new)
}

/// SNP_PAGE_RECLAIM. What the firmware has locked, the table's own pages, it keeps.
pub(super) fn reclaim(old: RmpEntry, size: RmpPageSize) -> Result<RmpEntry, FirmwareRefused> {
    use PageState::{Context, Firmware, Metadata, PreGuest};
    if !matches!(old.state(), PreGuest | Firmware | Metadata | Context) || old.locked() {
        return Err(FirmwareRefused::InvalidPageState);
    }
    if old.page_size() != size {
        return Err(FirmwareRefused::InvalidPageSize);
    }
    Ok(RmpEntry::HYPERVISOR.with_assigned(true).with_page_size(size))
}

/// SNP_GCTX_CREATE and SNP_DECOMMISSION: a 4 KiB page goes from one state of the firmware to the other.
pub(super) fn context(old: RmpEntry, from: PageState) -> Result<RmpEntry, FirmwareRefused> {
    if old.state() != from || old.locked() {
        return Err(FirmwareRefused::InvalidPageState);
    }
    if old.page_size() != RmpPageSize::Size4K {
        return Err(FirmwareRefused::InvalidPageSize);
    }
    Ok(old.with_vmsa(!old.vmsa()))
}

/// SNP_PAGE_UNSMASH, of the entries of a region in order.
pub(super) fn unsmash(region: &[RmpEntry]) -> Result<RmpEntry, FirmwareRefused> {
    let head = region[0].with_subpage_count(0);
    let large = head.with_page_size(RmpPageSize::Size2M);
    if head.page_size() == RmpPageSize::Size2M {
        return Err(FirmwareRefused::InvalidPageSize);
    }
    let starts = head.gpa().is_aligned(emu_core::PageSize::Size2M) && head.asid().0 != 0 && head.assigned();
    let follow = (1..).zip(&region[1..]).all(|(n, &entry)| entry == large.part(n));
    if starts && follow { Ok(large) } else { Err(FirmwareRefused::InvalidPageState) }
}

/// SNP_PAGE_SET_STATE.
pub(super) fn set_hv_fixed(old: RmpEntry) -> Result<RmpEntry, FirmwareRefused> {
    match old.state() {
        PageState::Hypervisor => Ok(RmpEntry::HYPERVISOR.with_immutable(true)),
        _ => Err(FirmwareRefused::InvalidPageState),
    }
}

/// The entry of a page that holds the table itself.
pub(super) const fn own() -> RmpEntry {
    RmpEntry::HYPERVISOR.with_assigned(true).with_immutable(true).with_locked(true)
}
