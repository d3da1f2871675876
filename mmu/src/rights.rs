//! Judging an access against the folded rights of a finished walk. Pure functions, one for each stage.
//!
//! Intel SDM vol. 3, "Access Rights", "Protection Keys", "Page-Fault Exceptions"; APM vol. 2, "Page-Protection Checks".

use bitflags::bitflags;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind, PageFaultCode, Privilege};

use crate::fault::Stage2Rights;
use crate::paging::{PagingMode, PagingState};
use crate::translation::PageFlags;

bitflags! {
    /// The control bits that the judgement reads.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Controls: u8 {
        const WP = 1 << 0;
        const SMEP = 1 << 1;
        const SMAP = 1 << 2;
        /// Protection keys for user pages are in force (CR4.PKE in long mode).
        const PKE = 1 << 3;
        /// Protection keys for supervisor pages are in force.
        const PKS = 1 << 4;
        /// Fetches are reported as such in the error code.
        const REPORT_FETCH = 1 << 5;
        /// G is honoured.
        const PGE = 1 << 6;
    }
}

/// Paging registers, reduced to what a judgement needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) controls: Controls,
    pub(crate) pkru: u32,
    pub(crate) pkrs: u32,
}

impl Rules {
    /// With paging off nothing is in force.
    pub(crate) fn new(state: &PagingState) -> Rules {
        let long = matches!(state.mode(), PagingMode::FourLevel | PagingMode::FiveLevel);
        let cr4 = state.cr4;
        let nx = cr4.contains(Cr4::PAE) && state.efer.contains(Efer::NXE);
        let mut controls = Controls::empty();
        if state.mode() == PagingMode::Off {
            return Rules { controls, pkru: 0, pkrs: 0 };
        }
        controls.set(Controls::WP, state.cr0.contains(Cr0::WP));
        controls.set(Controls::SMEP, cr4.contains(Cr4::SMEP));
        controls.set(Controls::SMAP, cr4.contains(Cr4::SMAP));
        controls.set(Controls::PKE, long && cr4.contains(Cr4::PKE));
        controls.set(Controls::PKS, long && cr4.contains(Cr4::PKS));
        controls.set(Controls::REPORT_FETCH, nx || cr4.contains(Cr4::SMEP));
        controls.set(Controls::PGE, cr4.contains(Cr4::PGE));
        Rules { controls, pkru: state.pkru, pkrs: state.pkrs }
    }

    /// The part of an error code that depends on the access alone.
    pub(crate) fn access_code(&self, access: Access) -> PageFaultCode {
        let mut code = PageFaultCode::empty();
        code.set(PageFaultCode::U, access.privilege.is_user());
        match access.kind {
            AccessKind::Read => {}
            AccessKind::Write => code |= PageFaultCode::W,
            AccessKind::Execute => code.set(PageFaultCode::I, self.controls.contains(Controls::REPORT_FETCH)),
        }
        code
    }

    /// Whether the first stage allows `access` to a page with these flags and key; else the error code.
    #[inline]
    pub(crate) fn check(&self, page: PageFlags, key: u8, access: Access) -> Result<(), PageFaultCode> {
        let controls = self.controls;
        let user = access.privilege.is_user();
        let user_page = page.contains(PageFlags::USER);
        let write_protected = user || controls.contains(Controls::WP);
        let by_mode = if user {
            user_page
        } else {
            match access.kind {
                AccessKind::Execute => !(user_page && controls.contains(Controls::SMEP)),
                AccessKind::Read | AccessKind::Write => {
                    !(user_page && access.privilege == Privilege::Supervisor && controls.contains(Controls::SMAP))
                }
            }
        };
        let by_kind = match access.kind {
            AccessKind::Read => true,
            AccessKind::Write => page.contains(PageFlags::WRITABLE) || !write_protected,
            AccessKind::Execute => page.contains(PageFlags::EXECUTABLE),
        };
        let by_key = self.key_allows(user_page, key, access, write_protected);
        if by_mode && by_kind && by_key {
            return Ok(());
        }
        let mut code = self.access_code(access) | PageFaultCode::P;
        code.set(PageFaultCode::PK, !by_key);
        Err(code)
    }

    /// Protection keys restrict data accesses only. Each register gives the keys of one kind of page; a user access to a
    /// supervisor page fails on U/S and is not a key violation.
    #[inline]
    fn key_allows(&self, user_page: bool, key: u8, access: Access, write_protected: bool) -> bool {
        let rights = if user_page && self.controls.contains(Controls::PKE) {
            self.pkru
        } else if !user_page && !access.privilege.is_user() && self.controls.contains(Controls::PKS) {
            self.pkrs
        } else {
            return true;
        };
        let (access_disable, write_disable) = (rights >> (2 * key) & 1 != 0, rights >> (2 * key + 1) & 1 != 0);
        match access.kind {
            AccessKind::Read => !access_disable,
            AccessKind::Write => !(access_disable || write_disable && write_protected),
            AccessKind::Execute => true,
        }
    }
}

/// Whether a linear address is a user-mode or a supervisor-mode one, as mode-based execute control asks: by U/S of the
/// guest's entries. With paging off every address is a user-mode address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinearMode {
    User,
    Supervisor,
}

/// The nested right that an access needs.
#[inline]
pub(crate) const fn needed(kind: AccessKind, mode: LinearMode, mode_based_execute: bool) -> Stage2Rights {
    match (kind, mode) {
        (AccessKind::Read, _) => Stage2Rights::READ,
        (AccessKind::Write, _) => Stage2Rights::WRITE,
        (AccessKind::Execute, LinearMode::User) if mode_based_execute => Stage2Rights::EXECUTE_USER,
        (AccessKind::Execute, _) => Stage2Rights::EXECUTE,
    }
}
