//! The checks of an access that both stages of translation allow, as pure functions of the entry it meets.
//!
//! Source: APM vol. 2, "RMP and VMPL Access Checks" (the table of checks by kind of access, and their order): Covered,
//! Guest-Owned, Reverse-Map, Mutable and Page-Size make a nested page fault, then Validated a #VC, then the permissions of
//! the privilege level a nested page fault again.
//!
//! An entry here is the effective one; `None` is a page that the table does not cover, which is the hypervisor's for ever.

use emu_core::sev::Vmpl;
use emu_core::{AccessKind, Gpa, Privilege};

use super::entry::{RmpEntry, RmpPageSize, VmplPermissions};
use super::request::{GuestAccess, RmpRefusal};
use crate::fault::RmpCause;
use crate::stage2::Asid;

/// Whether a guest's access is checked as one to its own memory.
#[inline]
pub(super) const fn is_private(access: &GuestAccess) -> bool {
    access.c_bit.is_set() || matches!(access.access.kind, AccessKind::Execute)
}

/// RMP-Covered, Guest-Owned, Reverse-Map, Mutable.
#[inline]
pub(super) fn owned(entry: Option<RmpEntry>, asid: Asid, gpa: Gpa) -> Result<RmpEntry, RmpCause> {
    let entry = entry.ok_or(RmpCause::Ownership)?;
    let mine = entry.assigned() && entry.asid() == asid && entry.gpa().frame() == gpa.frame();
    if mine && !entry.immutable() { Ok(entry) } else { Err(RmpCause::Ownership) }
}

/// A private access: everything. The entry that allows it has the size of the nested leaf, or of its 2 MiB part.
#[inline]
pub(super) fn private(entry: Option<RmpEntry>, access: &GuestAccess) -> Result<RmpEntry, RmpRefusal> {
    let entry = owned(entry, access.asid, access.gpa)?;
    if entry.page_size() != RmpPageSize::wanted_by(access.mapped) {
        return Err(RmpCause::PageSize.into());
    }
    if !entry.validated() {
        return Err(RmpRefusal::NotValidated);
    }
    let wanted = wanted(access.access.kind, access.access.privilege);
    if !entry.permissions(access.vmpl).contains(wanted) {
        return Err(RmpCause::Vmpl.into());
    }
    Ok(entry)
}

/// What a privilege level must be permitted. A write also needs reads: W without R is no legal combination, and every data
/// access to such a page fails.
#[inline]
const fn wanted(kind: AccessKind, privilege: Privilege) -> VmplPermissions {
    match kind {
        AccessKind::Read => VmplPermissions::READ,
        AccessKind::Write => VmplPermissions::READ.union(VmplPermissions::WRITE),
        AccessKind::Execute if privilege.is_user() => VmplPermissions::EXECUTE_USER,
        AccessKind::Execute => VmplPermissions::EXECUTE_SUPERVISOR,
    }
}

/// What VMRUN asks of the VMSA of an SNP-active guest. Reverse-Map is not asked: the VMCB names the page by its system
/// physical address, so there is no guest physical one to compare.
pub(super) fn vmsa(entry: Option<RmpEntry>, asid: Asid) -> Result<(), RmpCause> {
    let entry = entry.ok_or(RmpCause::Ownership)?;
    let mine = entry.assigned() && entry.asid() == asid;
    if mine && !entry.immutable() && entry.vmsa() { Ok(()) } else { Err(RmpCause::Ownership) }
}

/// What an instruction of the guest asks of the page it names before its own conditions: ownership, then the sizes. For
/// 4 KiB of a larger page the hypervisor must act; for 2 MiB of smaller pages the guest is told so.
pub(super) fn operand(
    entry: Option<RmpEntry>,
    page: &super::request::GuestPage,
    size: RmpPageSize,
) -> Result<(RmpEntry, Fit), RmpCause> {
    let entry = owned(entry, page.asid, page.gpa)?;
    let nested = RmpPageSize::wanted_by(page.mapped);
    match size {
        RmpPageSize::Size4K if entry.page_size() == RmpPageSize::Size2M || nested == RmpPageSize::Size2M => {
            Err(RmpCause::SizeMismatch)
        }
        RmpPageSize::Size2M if entry.page_size() == RmpPageSize::Size4K || nested == RmpPageSize::Size4K => {
            Ok((entry, Fit::TooSmall))
        }
        _ => Ok((entry, Fit::Exact)),
    }
}

/// How the page of an operand fits the size that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It has that size.
    Exact,
    /// 2 MiB were asked for and the page is smaller: FAIL_SIZEMISMATCH.
    TooSmall,
}

/// Whether `permissions` are among those of `vmpl` in `entry`.
pub(super) fn may_grant(entry: RmpEntry, vmpl: Vmpl, permissions: VmplPermissions) -> bool {
    entry.permissions(vmpl).contains(permissions)
}
