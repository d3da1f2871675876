//! What the instructions and the firmware's commands are asked, and what they answer.
//!
//! Source: APM vol. 3, RMPUPDATE, PSMASH, PVALIDATE, RMPADJUST, RMPQUERY, RMPREAD; APM vol. 2, "RMP and VMPL Access Checks";
//! the structures Linux hands over (`struct rmp_state` of arch/x86/include/asm/sev.h); AMD's SEV firmware for its commands.

use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, Gpa, Gva, PageSize, Spa};
use thiserror::Error;

use super::entry::{MAX_ASID, RmpEntry, RmpPageSize, VmplPermissions};
use crate::fault::RmpCause;
use crate::stage2::Asid;

/// What an instruction leaves in EAX when it did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u32)]
pub enum RmpError {
    /// FAIL_INPUT: an operand is malformed, or names a page without an entry.
    #[error("FAIL_INPUT: an operand is malformed or names a page that the RMP does not cover")]
    FailInput = 1,
    /// FAIL_PERMISSION: the page is immutable, or the caller's privilege level does not suffice.
    #[error("FAIL_PERMISSION: the page is immutable or the privilege level does not suffice")]
    FailPermission = 2,
    /// FAIL_INUSE: a virtual processor runs with the page.
    #[error("FAIL_INUSE: a running virtual processor uses the page")]
    FailInUse = 3,
    /// FAIL_OVERLAP: 4 KiB of a 2 MiB entry, or 2 MiB over assigned 4 KiB entries.
    #[error("FAIL_OVERLAP: the page overlaps entries of the other size")]
    FailOverlap = 4,
    /// FAIL_SIZEMISMATCH: 2 MiB were to be changed and the RMP or the nested tables have 4 KiB pages there.
    #[error("FAIL_SIZEMISMATCH: the page is mapped or assigned in 4 KiB pieces")]
    FailSizeMismatch = 6,
}

impl RmpError {
    /// The value of EAX.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// Why an access, or an instruction of a guest, does not proceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum RmpRefusal {
    /// #VMEXIT(NPF).
    #[error(transparent)]
    Rmp(#[from] RmpCause),
    /// #VC in the guest.
    #[error("the guest has not validated the page")]
    NotValidated,
}

/// Assigned of an entry to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Assigned {
    /// The page is the hypervisor's.
    No,
    /// The page is a guest's, or the firmware's.
    Yes,
}

/// Immutable of an entry to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Immutable {
    /// The page can be used, and taken back.
    No,
    /// Only the firmware changes the page.
    Yes,
}

/// Operand of RMPUPDATE: the entry that is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpUpdate {
    /// Whether somebody else than the hypervisor owns the page.
    pub assigned: Assigned,
    /// Its size.
    pub page_size: RmpPageSize,
    /// Whether it is the firmware's to work on.
    pub immutable: Immutable,
    /// The guest.
    pub asid: Asid,
    /// Where the guest has it.
    pub gpa: Gpa,
}

impl RmpUpdate {
    /// The page becomes the hypervisor's (`rmp_make_shared`).
    pub const fn hypervisor(page_size: RmpPageSize) -> RmpUpdate {
        RmpUpdate { assigned: Assigned::No, page_size, immutable: Immutable::No, asid: Asid(0), gpa: Gpa::new(0) }
    }
    /// The page becomes a guest's, which has to validate it (`rmp_make_private`).
    pub const fn guest(asid: Asid, gpa: Gpa, page_size: RmpPageSize) -> RmpUpdate {
        RmpUpdate { assigned: Assigned::Yes, page_size, immutable: Immutable::No, asid, gpa }
    }
    /// The page becomes a guest's, for the firmware to launch.
    pub const fn pre_guest(asid: Asid, gpa: Gpa, page_size: RmpPageSize) -> RmpUpdate {
        RmpUpdate { assigned: Assigned::Yes, page_size, immutable: Immutable::Yes, asid, gpa }
    }
    /// The page becomes the firmware's.
    pub const fn firmware(page_size: RmpPageSize) -> RmpUpdate {
        RmpUpdate { assigned: Assigned::Yes, page_size, immutable: Immutable::Yes, asid: Asid(0), gpa: Gpa::new(0) }
    }

    /// Reads the sixteen bytes that RCX points to: GPA, three truth values, a reserved byte, the ASID.
    pub fn from_bytes(bytes: &[u8; 16]) -> Result<RmpUpdate, RmpError> {
        let word = u128::from_le_bytes(*bytes);
        let byte = |n: u32| (word >> (8 * n)) as u8;
        if byte(8) > 1 || byte(9) > 1 || byte(10) > 1 || byte(11) != 0 {
            return Err(RmpError::FailInput);
        }
        Ok(RmpUpdate {
            assigned: if byte(8) == 1 { Assigned::Yes } else { Assigned::No },
            page_size: if byte(9) == 1 { RmpPageSize::Size2M } else { RmpPageSize::Size4K },
            immutable: if byte(10) == 1 { Immutable::Yes } else { Immutable::No },
            asid: Asid((word >> 96) as u32),
            gpa: Gpa::new(word as u64),
        })
    }

    /// The sixteen bytes.
    pub fn to_bytes(&self) -> [u8; 16] {
        let truth = |set| u128::from(u8::from(set));
        (u128::from(self.gpa.raw())
            | truth(self.assigned == Assigned::Yes) << 64
            | truth(self.page_size == RmpPageSize::Size2M) << 72
            | truth(self.immutable == Immutable::Yes) << 80
            | u128::from(self.asid.0) << 96)
            .to_le_bytes()
    }

    /// Whether an entry can say this about the page at `spa`: alignment, widths, and nothing set of a page of the hypervisor.
    pub(super) fn check_operands(&self, spa: Spa) -> Result<(), RmpError> {
        let size = self.page_size.page_size();
        let sound = spa.is_aligned(size)
            && match self.assigned {
                Assigned::No => self.immutable == Immutable::No && self.asid == Asid(0),
                Assigned::Yes => self.asid <= MAX_ASID && RmpEntry::carries_gpa(self.gpa) && self.gpa.is_aligned(size),
            };
        if sound { Ok(()) } else { Err(RmpError::FailInput) }
    }
}

/// What RMPREAD stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpRead {
    /// Where the guest has the page.
    pub gpa: Gpa,
    /// Whether somebody else than the hypervisor owns it.
    pub assigned: Assigned,
    /// Size of the entry that says so.
    pub page_size: RmpPageSize,
    /// Whether the page starts a region of 2 MiB of which another page is assigned.
    pub region: RegionStatus,
    /// Whether only the firmware changes it.
    pub immutable: Immutable,
    /// The guest.
    pub asid: Asid,
}

/// What RMPREAD says of the rest of a 2 MiB region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionStatus {
    /// Nothing, or that no other page is assigned.
    Free,
    /// Another page is assigned.
    InUse,
}

impl RmpRead {
    /// The sixteen bytes that RCX points to.
    pub fn to_bytes(&self) -> [u8; 16] {
        let update = RmpUpdate {
            assigned: self.assigned,
            page_size: self.page_size,
            immutable: self.immutable,
            asid: self.asid,
            gpa: self.gpa,
        };
        let mut bytes = update.to_bytes();
        if self.region == RegionStatus::InUse {
            bytes[9] |= 0b10;
        }
        bytes
    }
}

/// One access of an SNP guest that both stages of translation allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestAccess {
    /// What it reaches.
    pub spa: Spa,
    /// Guest physical address, without the C-bit.
    pub gpa: Gpa,
    /// Size of the nested leaf.
    pub mapped: PageSize,
    /// The guest.
    pub asid: Asid,
    /// Its privilege level.
    pub vmpl: Vmpl,
    /// Whether it is private. Fetches are, whatever this says; accesses to the guest's tables are, and the caller says so.
    pub c_bit: CBit,
    /// What is done and at which CPL; a table is read, and written where A or D is set.
    pub access: Access,
}

/// The page that an instruction of a guest names, after both stages of translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPage {
    /// rAX.
    pub gva: Gva,
    /// Guest physical address of it, without the C-bit.
    pub gpa: Gpa,
    /// System physical address of it.
    pub spa: Spa,
    /// Size of the nested leaf.
    pub mapped: PageSize,
    /// The guest.
    pub asid: Asid,
    /// The privilege level that executes the instruction.
    pub vmpl: Vmpl,
}

/// Operand and result of PVALIDATE: the bit Validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Validated {
    /// Clear.
    No,
    /// Set.
    Yes,
}

/// Whether PVALIDATE found something to change: the complement of the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Changed {
    /// The bit had the value already: CF is set.
    No,
    /// The bit has the value now: CF is clear.
    Yes,
}

/// Operands of PVALIDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pvalidate {
    /// ECX.
    pub size: RmpPageSize,
    /// EDX\[0\].
    pub validated: Validated,
}

impl Pvalidate {
    /// Reads ECX and EDX. Bits 31:1 of EDX are ignored.
    pub const fn decode(ecx: u32, edx: u32) -> Result<Pvalidate, RmpError> {
        let size = match ecx {
            0 => RmpPageSize::Size4K,
            1 => RmpPageSize::Size2M,
            _ => return Err(RmpError::FailInput),
        };
        let validated = if edx & 1 == 1 { Validated::Yes } else { Validated::No };
        Ok(Pvalidate { size, validated })
    }

    /// What the processor asks before it translates `gva`: only VMPL 0 may validate, and 2 MiB start on their boundary.
    pub fn check_operands(&self, gva: Gva, vmpl: Vmpl) -> Result<(), RmpError> {
        if vmpl != Vmpl::Vmpl0 {
            return Err(RmpError::FailPermission);
        }
        check_alignment(gva, self.size)
    }
}

/// VMSA of an entry to be, where RMPADJUST may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vmsa {
    /// Nobody runs from the page.
    No,
    /// A virtual processor may run from the page.
    Yes,
}

/// Operands of RMPADJUST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpAdjust {
    /// Whose permissions change.
    pub target: Vmpl,
    /// What they become.
    pub permissions: VmplPermissions,
    /// What VMSA becomes, if VMPL 0 asks.
    pub vmsa: Vmsa,
}

impl RmpAdjust {
    /// Reads RDX: the level in bits 7:0, permissions in 15:8, VMSA in 16, nothing above.
    pub fn decode(rdx: u64) -> Result<RmpAdjust, RmpError> {
        let target = Vmpl::new(rdx & 0xff).ok_or(RmpError::FailInput)?;
        let permissions = VmplPermissions::from_bits((rdx >> 8) as u8).ok_or(RmpError::FailInput)?;
        match rdx >> 16 {
            0 => Ok(RmpAdjust { target, permissions, vmsa: Vmsa::No }),
            1 => Ok(RmpAdjust { target, permissions, vmsa: Vmsa::Yes }),
            _ => Err(RmpError::FailInput),
        }
    }

    /// Reads RCX: the page size of RMPADJUST.
    pub const fn decode_size(rcx: u64) -> Result<RmpPageSize, RmpError> {
        match rcx {
            0 => Ok(RmpPageSize::Size4K),
            1 => Ok(RmpPageSize::Size2M),
            _ => Err(RmpError::FailInput),
        }
    }

    /// What the processor asks before it translates `gva`: 2 MiB start on their boundary, and permissions change only for
    /// levels below the caller's.
    pub fn check_operands(&self, gva: Gva, size: RmpPageSize, vmpl: Vmpl) -> Result<(), RmpError> {
        check_alignment(gva, size)?;
        if self.target <= vmpl { Err(RmpError::FailPermission) } else { Ok(()) }
    }
}

fn check_alignment(gva: Gva, size: RmpPageSize) -> Result<(), RmpError> {
    match size {
        // Bits 11:0 of the address are ignored.
        RmpPageSize::Size4K => Ok(()),
        RmpPageSize::Size2M if gva.is_aligned(PageSize::Size2M) => Ok(()),
        RmpPageSize::Size2M => Err(RmpError::FailInput),
    }
}

/// What RMPQUERY tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmpQuery {
    /// Permissions of the level that was asked for: RDX\[15:8\].
    pub permissions: VmplPermissions,
    /// RDX\[16\].
    pub vmsa: Vmsa,
    /// RCX.
    pub size: RmpPageSize,
}

/// A command of the firmware, as far as it changes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FirmwareCommand {
    /// SNP_LAUNCH_UPDATE: Pre-Guest to Guest-Valid.
    LaunchPage {
        /// The guest.
        asid: Asid,
        /// Size of the page.
        size: RmpPageSize,
        /// Whether a virtual processor is to run from it.
        vmsa: Vmsa,
        /// Permissions of VMPL 1 to 3.
        permissions: [VmplPermissions; 3],
    },
    /// SNP_PAGE_RECLAIM: Pre-Guest, Firmware, Metadata or Context to Reclaim.
    Reclaim {
        /// Size of the page.
        size: RmpPageSize,
    },
    /// SNP_GCTX_CREATE: Firmware to Context.
    CreateContext,
    /// SNP_DECOMMISSION: Context to Firmware.
    Decommission,
    /// SNP_PAGE_UNSMASH: 512 pages of a guest that follow each other become one.
    Unsmash,
    /// SNP_PAGE_SET_STATE: Hypervisor to HV-Fixed.
    SetHvFixed,
}

/// Why the firmware did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u32)]
pub enum FirmwareRefused {
    /// INVALID_ADDRESS: not aligned, or without an entry.
    #[error("INVALID_ADDRESS: the page is misaligned or the RMP does not cover it")]
    InvalidAddress = 0x09,
    /// INVALID_PAGE_SIZE.
    #[error("INVALID_PAGE_SIZE: the RMP has a page of another size")]
    InvalidPageSize = 0x19,
    /// INVALID_PAGE_STATE.
    #[error("INVALID_PAGE_STATE: the page's state does not allow the command")]
    InvalidPageState = 0x1a,
    /// INVALID_PAGE_OWNER.
    #[error("INVALID_PAGE_OWNER: the page is another guest's")]
    InvalidPageOwner = 0x1c,
}

impl FirmwareRefused {
    /// The status of the command.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// Whether a processor runs with a page as its VMCB, VMSA or AVIC backing page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InUse {
    /// From #VMEXIT on.
    No,
    /// From VMRUN on.
    Yes,
}
