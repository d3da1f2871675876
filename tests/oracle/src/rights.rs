//! "Access Rights", as the SDM lists them, and the page-fault error code bit by bit.

use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind, Privilege};

use crate::Registers;

/// A mapped page as its entries describe it.
pub(crate) struct Page {
    /// U/S is 1 in every entry.
    pub(crate) user_mode: bool,
    /// R/W is 1 in every entry.
    pub(crate) writable: bool,
    /// XD is 1 in some entry.
    pub(crate) execute_disable: bool,
    /// Bits 62:59 of the leaf, in 4-level and 5-level paging.
    pub(crate) key: Option<u32>,
}

/// Whether protection keys permit a data access.
fn keys_permit(r: &Registers, page: &Page, access: Access) -> bool {
    let Some(key) = page.key else { return true };
    let write = access.kind == AccessKind::Write;
    let user_access = access.privilege == Privilege::User;
    if access.kind == AccessKind::Execute {
        return true;
    }
    if page.user_mode {
        if !r.cr4.contains(Cr4::PKE) {
            return true;
        }
        let ad = r.pkru >> (2 * key) & 1 == 1;
        let wd = r.pkru >> (2 * key + 1) & 1 == 1;
        if ad {
            return false;
        }
        if write && wd {
            // A user-mode write is not permitted; a supervisor-mode one only if CR0.WP is 0.
            return !user_access && !r.cr0.contains(Cr0::WP);
        }
        true
    } else {
        if !r.cr4.contains(Cr4::PKS) || user_access {
            return true;
        }
        let ad = r.pkrs >> (2 * key) & 1 == 1;
        let wd = r.pkrs >> (2 * key + 1) & 1 == 1;
        if ad {
            return false;
        }
        !(write && wd && r.cr0.contains(Cr0::WP))
    }
}

/// Whether everything but the keys permits the access.
fn paging_permits(r: &Registers, page: &Page, access: Access) -> bool {
    let smap_applies = r.cr4.contains(Cr4::SMAP) && access.privilege != Privilege::SupervisorAc;
    match (access.privilege == Privilege::User, access.kind) {
        // For supervisor-mode accesses.
        (false, AccessKind::Read) => {
            if page.user_mode {
                !smap_applies
            } else {
                true
            }
        }
        (false, AccessKind::Write) => {
            if page.user_mode && smap_applies {
                return false;
            }
            if r.cr0.contains(Cr0::WP) { page.writable } else { true }
        }
        (false, AccessKind::Execute) => {
            if page.user_mode && r.cr4.contains(Cr4::SMEP) {
                return false;
            }
            !page.execute_disable
        }
        // For user-mode accesses.
        (true, AccessKind::Read) => page.user_mode,
        (true, AccessKind::Write) => page.user_mode && page.writable,
        (true, AccessKind::Execute) => page.user_mode && !page.execute_disable,
    }
}

/// Judges an access to a mapped page: the error code if it is refused.
pub(crate) fn judge(r: &Registers, page: &Page, access: Access) -> Result<(), u32> {
    let keys = keys_permit(r, page, access);
    if keys && paging_permits(r, page, access) {
        return Ok(());
    }
    let pk = if keys { 0 } else { 1 << 5 };
    Err(error_code(r, access) | 1 | pk)
}

/// W/R, U/S and I/D of the error code.
pub(crate) fn error_code(r: &Registers, access: Access) -> u32 {
    let mut code = 0;
    if access.kind == AccessKind::Write {
        code |= 1 << 1;
    }
    if access.privilege == Privilege::User {
        code |= 1 << 2;
    }
    let fetches_reported = r.cr4.contains(Cr4::SMEP) || (r.cr4.contains(Cr4::PAE) && r.efer.contains(Efer::NXE));
    if access.kind == AccessKind::Execute && fetches_reported {
        code |= 1 << 4;
    }
    code
}
