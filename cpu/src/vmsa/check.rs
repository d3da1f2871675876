//! What VMRUN wants of a VMSA before it runs from it (APM vol. 2, "Canonicalization and Consistency Checks",
//! "SEV-ES: VMRUN"); a failure is VMEXIT_INVALID.

use emu_core::cpu_model::CpuModel;
use emu_core::msr::{Msr, validate_write};
use emu_core::regs::{Cr0, Cr4, Efer, Xcr0};
use emu_core::sev::{SevFeatures, Vmpl};
use thiserror::Error;

use super::layout::{self as at, VMSA_LEN};
use crate::fp::mxcsr;
use crate::sev::{SevGuest, SevRefused};

/// VMEXIT_INVALID, and which of the checks it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VmsaError {
    /// SEV_FEATURES is not for this processor.
    #[error(transparent)]
    Features(#[from] SevRefused),
    /// SEV_FEATURES has bits that mean nothing.
    #[error("SEV_FEATURES has unknown bits: {0:#x}")]
    UnknownFeatures(u64),
    /// There are four privilege levels.
    #[error("VMPL is {0}; there are 0 to 3")]
    Vmpl(u8),
    /// EFER.SVME is clear.
    #[error("EFER.SVME is clear in EFER {0:#x}; a VMSA must have it set")]
    Svme(u64),
    /// EFER has reserved bits set.
    #[error("EFER {0:#x} has reserved bits set")]
    Efer(u64),
    /// CR0 has upper bits set, or NW without CD, or PG without PE.
    #[error("CR0 {0:#x} is no state of CR0")]
    Cr0(u64),
    /// CR3 has reserved bits set.
    #[error("CR3 {0:#x} has reserved bits set")]
    Cr3(u64),
    /// CR4 has bits set that the model lacks.
    #[error("CR4 {0:#x} has reserved bits set")]
    Cr4(u64),
    /// Long mode is being activated without what it needs: PAE, and code that is not both 64-bit and 32-bit.
    #[error("long mode with CR4 {cr4:#x} and a code segment of attributes {cs_attributes:#x}")]
    LongMode {
        /// CR4
        cr4: u64,
        /// CS
        cs_attributes: u16,
    },
    /// DR6 or DR7 has upper bits set.
    #[error("debug registers have upper bits set: DR6 {dr6:#x}, DR7 {dr7:#x}")]
    DebugRegisters {
        /// DR6
        dr6: u64,
        /// DR7
        dr7: u64,
    },
    /// The PAT has a reserved memory type.
    #[error("PAT {0:#x} has a reserved memory type")]
    Pat(u64),
    /// XSETBV would refuse XCR0, or IA32_XSS has a bit set.
    #[error("XCR0 {xcr0:#x} and XSS {xss:#x} are no set of states of the model")]
    States {
        /// XCR0
        xcr0: u64,
        /// IA32_XSS
        xss: u64,
    },
    /// MXCSR has reserved bits set.
    #[error("MXCSR {0:#x} has reserved bits set")]
    Mxcsr(u32),
}

/// The registers whose values were checked.
pub(super) struct Checked {
    pub guest: SevGuest,
    pub cr0: Cr0,
    pub cr4: Cr4,
    /// LMA as LME and PG have it.
    pub efer: Efer,
    pub xcr0: Xcr0,
}

/// Checks `page` for a processor of `model`.
pub(super) fn check(model: &CpuModel, page: &[u8; VMSA_LEN]) -> Result<Checked, VmsaError> {
    let guest = guest(model, page)?;
    let efer = at::EFER.get(page);
    if efer & Efer::SVME.bits() == 0 {
        return Err(VmsaError::Svme(efer));
    }
    let efer = Efer::from_bits(efer)
        .filter(|bits| (model.efer_allowed() | Efer::SVME).contains(*bits))
        .ok_or(VmsaError::Efer(efer))?;
    let raw = at::CR0.get(page);
    let cr0 = Cr0::from_bits_retain(raw);
    let has = |bit| cr0.contains(bit);
    if raw >> 32 != 0 || has(Cr0::NW) && !has(Cr0::CD) || has(Cr0::PG) && !has(Cr0::PE) {
        return Err(VmsaError::Cr0(raw));
    }
    let cr3 = at::CR3.get(page);
    if cr3 & !model.cr3_allowed() != 0 {
        return Err(VmsaError::Cr3(cr3));
    }
    let raw = at::CR4.get(page);
    let cr4 = Cr4::from_bits(raw).filter(|bits| model.cr4_allowed().contains(*bits)).ok_or(VmsaError::Cr4(raw))?;
    let long = efer.contains(Efer::LME) && has(Cr0::PG);
    let cs = at::CS.get(page).attributes;
    if long && (!cr4.contains(Cr4::PAE) || cs.l() && cs.db()) {
        return Err(VmsaError::LongMode { cr4: raw, cs_attributes: cs.into_bits() });
    }
    let (dr6, dr7) = (at::DR6.get(page), at::DR7.get(page));
    if dr6 >> 32 != 0 || dr7 >> 32 != 0 {
        return Err(VmsaError::DebugRegisters { dr6, dr7 });
    }
    let pat = at::G_PAT.get(page);
    validate_write(model, Msr::PAT, 0, pat).map_err(|_| VmsaError::Pat(pat))?;
    let (xcr0, xss) = (at::XCR0.get(page), at::XSS.get(page));
    let states = model.xcr0_valid(xcr0).filter(|_| xss == 0).ok_or(VmsaError::States { xcr0, xss })?;
    let mxcsr = at::MXCSR.get(page);
    mxcsr::check(mxcsr).map_err(|_| VmsaError::Mxcsr(mxcsr))?;
    let mut efer = efer;
    efer.set(Efer::LMA, long);
    Ok(Checked { guest, cr0: cr0 & model.cr0_allowed() | Cr0::ET, cr4, efer, xcr0: states })
}

fn guest(model: &CpuModel, page: &[u8; VMSA_LEN]) -> Result<SevGuest, VmsaError> {
    let raw = at::SEV_FEATURES.get(page);
    let features = SevFeatures::from_bits(raw).ok_or(VmsaError::UnknownFeatures(raw & !SevFeatures::all().bits()))?;
    let vmpl = at::VMPL.get(page);
    let vmpl = Vmpl::new(vmpl as u64).ok_or(VmsaError::Vmpl(vmpl))?;
    let guest = SevGuest { features, vmpl, c_bit: model.c_bit().unwrap_or(0) };
    guest.check(model)?;
    Ok(guest)
}
