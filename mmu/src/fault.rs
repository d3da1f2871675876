//! Why a translation failed, with all that delivering the failure needs.
//!
//! Source: AMD APM vol. 2, "Page-Fault Error Code" and "Nested versus Guest Page Faults, Fault Ordering"; Intel SDM
//! vol. 3, "Exit Qualification for EPT Violations". [`MmuFault`] is the door. A guest's page fault goes to the guest, a
//! nested fault or a full log to its hypervisor, and a [`MmuFault::Bus`] is a machine check or a broken table: these never share a
//! variant.

use bitflags::bitflags;
use emu_core::memory::BusError;
use emu_core::sev::CBit;
use emu_core::{AccessKind, Gpa, Gva, PageFaultCode};

use crate::level::Level;

/// A translation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmuFault {
    /// The linear address is not canonical: #GP or #SS, by the segment the instruction used.
    NonCanonical {
        /// The address.
        gva: Gva,
    },
    /// The guest's tables refuse: #PF.
    Guest {
        /// For CR2.
        gva: Gva,
        /// The error code.
        code: PageFaultCode,
    },
    /// The nested tables refuse: #VMEXIT(NPF), EPT violation or misconfiguration.
    Nested(NestedPageFault),
    /// A private access of an SNP guest to a page of its own that it has not validated: #VC with
    /// [`emu_core::sev::ExitCode::PAGE_NOT_VALIDATED`], seen by no hypervisor.
    NotValidated {
        /// For CR2.
        gva: Gva,
    },
    /// An accessed or dirty flag for EPT would have to be set and the page-modification log has no room: a VM exit, before
    /// anything was changed for this access.
    LogFull,
    /// A table lies where no memory answers.
    Bus(BusError),
}

impl From<NestedPageFault> for MmuFault {
    fn from(fault: NestedPageFault) -> MmuFault {
        MmuFault::Nested(fault)
    }
}

/// What the nested walk was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage2Cause {
    /// The address that the guest's access itself reaches.
    FinalAddress,
    /// Reading an entry of the guest's table at this level.
    GuestTableEntry {
        /// Level of the guest's table.
        level: Level,
    },
    /// Setting A or D in an entry of the guest's table at this level. Only where reading and setting are distinct
    /// accesses: EPT without accessed and dirty flags.
    GuestTableUpdate {
        /// Level of the guest's table.
        level: Level,
    },
}

/// How the nested tables refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NestedFaultKind {
    /// An entry on the way is not present, or the address is wider than the tables translate.
    NotPresent {
        /// Where the walk ended.
        level: Level,
    },
    /// NPT: an entry on the way has a reserved bit set.
    Reserved {
        /// Level of that entry.
        level: Level,
    },
    /// The walk succeeded and the rights do not allow the access.
    Permission,
    /// EPT: an entry is misconfigured; the exit is an EPT misconfiguration, which has no qualification.
    Misconfigured {
        /// Level of that entry.
        level: Level,
    },
    /// The nested tables allow the access and the RMP does not.
    Rmp(RmpCause),
}

/// Why the RMP refuses an access that both stages of translation allow (APM vol. 2, "RMP and VMPL Access Checks"). A page
/// that is merely not validated is [`MmuFault::NotValidated`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RmpCause {
    /// The page is not covered, immutable, or belongs to somebody else or elsewhere in the guest's memory; for a write by the
    /// host, or a shared one, it belongs to a guest or to the firmware.
    #[error("the page's owner, place or state forbids the access")]
    Ownership,
    /// The sizes of nested page and RMP entry differ.
    #[error("the nested page and the RMP entry differ in size")]
    PageSize,
    /// PVALIDATE or RMPADJUST of a 4 KiB page within a 2 MiB entry.
    #[error("4 KiB of a 2 MiB RMP entry were to be changed")]
    SizeMismatch,
    /// The permissions of the guest's privilege level do not allow the access.
    #[error("the privilege level has no permission for the access")]
    Vmpl,
}

bitflags! {
    /// What the nested entries on the way allow together, in the bit order of an EPT entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Stage2Rights: u8 {
        /// Reads.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Fetches; with mode-based execute control, from supervisor-mode linear addresses.
        const EXECUTE = 1 << 2;
        /// With mode-based execute control: fetches from user-mode linear addresses.
        const EXECUTE_USER = 1 << 3;
    }
}

/// A nested page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedPageFault {
    /// The guest physical address that did not translate (EXITINFO2, the guest-physical-address field).
    pub gpa: Gpa,
    /// The linear address being translated, if there was one (the guest-linear-address field).
    pub gva: Option<Gva>,
    /// How the nested tables were asked: for a guest table entry this is how the entry is accessed, not what the
    /// instruction wanted.
    pub access: AccessKind,
    /// What the nested walk was for.
    pub cause: Stage2Cause,
    /// How it was refused.
    pub kind: NestedFaultKind,
    /// What the entries read allow; empty unless the walk reached a leaf.
    pub rights: Stage2Rights,
    /// The effective C-bit of the access, set for fetches and for the guest's tables; clear for a guest that is not
    /// SNP-active.
    pub c_bit: CBit,
}

/// Bits of EXITINFO1 for #VMEXIT(NPF) above those of [`PageFaultCode`].
mod exitinfo1 {
    pub(super) const RMP: u64 = 1 << 31;
    pub(super) const FINAL_ADDRESS: u64 = 1 << 32;
    pub(super) const TABLE_WALK: u64 = 1 << 33;
    /// The effective C-bit.
    pub(super) const ENC: u64 = 1 << 34;
    /// The size of an RMP entry is another than the instruction wants.
    pub(super) const SIZEM: u64 = 1 << 35;
    pub(super) const VMPL: u64 = 1 << 36;
}

impl NestedPageFault {
    /// EXITINFO1 of #VMEXIT(NPF). Every nested access is a user access.
    pub fn exitinfo1(&self) -> u64 {
        let mut code = PageFaultCode::U;
        match self.kind {
            NestedFaultKind::NotPresent { .. } => {}
            NestedFaultKind::Reserved { .. } | NestedFaultKind::Misconfigured { .. } => {
                code |= PageFaultCode::P | PageFaultCode::RSVD;
            }
            NestedFaultKind::Permission | NestedFaultKind::Rmp(_) => code |= PageFaultCode::P,
        }
        match self.access {
            AccessKind::Read => {}
            AccessKind::Write => code |= PageFaultCode::W,
            AccessKind::Execute => code |= PageFaultCode::I,
        }
        let stage = match self.cause {
            Stage2Cause::FinalAddress => exitinfo1::FINAL_ADDRESS,
            Stage2Cause::GuestTableEntry { .. } | Stage2Cause::GuestTableUpdate { .. } => exitinfo1::TABLE_WALK,
        };
        let rmp = match self.kind {
            NestedFaultKind::Rmp(RmpCause::Ownership | RmpCause::PageSize) => exitinfo1::RMP,
            NestedFaultKind::Rmp(RmpCause::SizeMismatch) => exitinfo1::RMP | exitinfo1::SIZEM,
            NestedFaultKind::Rmp(RmpCause::Vmpl) => exitinfo1::RMP | exitinfo1::VMPL,
            _ => 0,
        };
        let encrypted = if self.c_bit.is_set() { exitinfo1::ENC } else { 0 };
        u64::from(code.bits()) | stage | rmp | encrypted
    }

    /// The exit qualification of an EPT violation. Bits 3 to 6 hold [`NestedPageFault::rights`], bit 7 tells that a
    /// linear address is known, bit 8 that the fault was on its final translation.
    pub fn qualification(&self) -> u64 {
        let access = match (self.access, self.cause) {
            (AccessKind::Read, _) => 0b001,
            // A guest table entry is read to be used: where that counts as a write, both bits are set.
            (AccessKind::Write, Stage2Cause::GuestTableEntry { .. }) => 0b011,
            (AccessKind::Write, _) => 0b010,
            (AccessKind::Execute, _) => 0b100,
        };
        let linear = match (self.gva, self.cause) {
            (None, _) => 0,
            (Some(_), Stage2Cause::FinalAddress) => 0b11 << 7,
            (Some(_), _) => 0b01 << 7,
        };
        access | u64::from(self.rights.bits()) << 3 | linear
    }

    /// Whether the exit is an EPT misconfiguration and not a violation.
    pub const fn is_misconfiguration(&self) -> bool {
        matches!(self.kind, NestedFaultKind::Misconfigured { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exitinfo1_tells_every_refusal_of_the_rmp_apart() {
        let fault = NestedPageFault {
            gpa: Gpa::new(0x1000),
            gva: None,
            access: AccessKind::Write,
            cause: Stage2Cause::FinalAddress,
            kind: NestedFaultKind::Permission,
            rights: Stage2Rights::READ,
            c_bit: CBit::Clear,
        };
        let of = |kind, c_bit| NestedPageFault { kind, c_bit, ..fault }.exitinfo1();
        let plain = 0b111 | 1 << 32;
        assert_eq!(of(NestedFaultKind::Permission, CBit::Clear), plain);
        assert_eq!(of(NestedFaultKind::Permission, CBit::Set), plain | 1 << 34);
        for (cause, bits) in [
            (RmpCause::Ownership, 1 << 31),
            (RmpCause::PageSize, 1 << 31),
            (RmpCause::SizeMismatch, 1 << 31 | 1 << 35),
            (RmpCause::Vmpl, 1 << 31 | 1 << 36),
        ] {
            assert_eq!(of(NestedFaultKind::Rmp(cause), CBit::Clear), plain | bits, "{cause}");
            assert_eq!(of(NestedFaultKind::Rmp(cause), CBit::Set), plain | bits | 1 << 34, "{cause}");
        }
        let walk = NestedPageFault { cause: Stage2Cause::GuestTableEntry { level: Level::PT }, ..fault };
        assert_eq!(walk.exitinfo1(), 0b111 | 1 << 33);
    }
}
