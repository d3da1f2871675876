//! The guest mode of encrypted state (SEV-ES and SEV-SNP): what is different for a guest whose registers its hypervisor
//! cannot see.
//!
//! APM vol. 2, "Encrypted State (SEV-ES)" and "Secure Nested Paging (SEV-SNP)". [`SevGuest`] is what a VMSA says of the
//! mode, [`Vcpu::enter_sev`] the door. Which second stage is in force, and with it the privilege level that the RMP
//! judges by, is the translation unit's own affair ([`Vcpu::mmu`]).
//!
//! Always true: the mode is entered once and never left; EFER.SVME reads as 1 in it and cannot be changed.

use emu_core::cpuid::Feature;
use emu_core::msr::Msr;
use emu_core::regs::Efer;
use emu_core::sev::{SevFeatures, Vmpl, ghcb_sev_info};
use thiserror::Error;

use crate::cpu::Cpu;
use crate::exit::Trap;
use crate::system::descriptor::gp0;
use crate::vcpu::Vcpu;

/// Versions of the GHCB protocol that the reset value of the GHCB's MSR offers: the highest, and the lowest.
const GHCB_VERSIONS: (u16, u16) = (2, 1);

/// A guest with encrypted state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SevGuest {
    /// SEV_FEATURES of its VMSA.
    pub features: SevFeatures,
    /// The privilege level that its VMSA is for.
    pub vmpl: Vmpl,
    /// Position of the C-bit in its page-table entries.
    pub c_bit: u8,
}

/// A processor whose model cannot run guests with encrypted state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the CPU model has no {0:?}, which a guest with encrypted state needs")]
pub struct NoSev(pub Feature);

impl Vcpu {
    /// From now on the processor runs a guest with encrypted state. The GHCB's MSR gets its reset value when the guest
    /// was none before.
    pub fn enter_sev(&mut self, guest: SevGuest) -> Result<(), NoSev> {
        self.engine.cpu.enter_sev(guest)
    }

    /// The guest with encrypted state that runs here, if it is one.
    pub fn sev_guest(&self) -> Option<SevGuest> {
        self.engine.cpu.sev
    }

    /// The GHCB's MSR (C001_0130), by which guest and hypervisor talk: the address of a GHCB, a request or an answer.
    pub fn ghcb(&self) -> u64 {
        self.engine.cpu.msr.file.get(Msr::GHCB)
    }

    /// Replaces it, as VMRUN loads it from the VMCB.
    pub fn set_ghcb(&mut self, value: u64) {
        self.engine.cpu.msr.file.set(Msr::GHCB, value);
    }
}

impl Cpu {
    pub fn enter_sev(&mut self, guest: SevGuest) -> Result<(), NoSev> {
        let needs = if guest.features.contains(SevFeatures::SNP_ACTIVE) { Feature::SevSnp } else { Feature::SevEs };
        if !self.model.has(needs) {
            return Err(NoSev(needs));
        }
        if self.sev.replace(guest).is_none() {
            let (max, min) = GHCB_VERSIONS;
            self.msr.file.set(Msr::GHCB, ghcb_sev_info(max, min, guest.c_bit));
        }
        self.msr.file.set(Msr::SEV_STATUS, guest.features.sev_status());
        self.control.efer |= Efer::SVME;
        Ok(())
    }

    /// Refuses what only a guest with encrypted state has.
    pub fn check_guest_only(&self, msr: Msr) -> Result<(), Trap> {
        if msr == Msr::GHCB && self.sev.is_none() { Err(gp0()) } else { Ok(()) }
    }

    /// Bits of a register that the mode fixes: writes of them are ignored (APM vol. 2, "SEV-ES: EFER.SVME").
    pub fn fixed_bits(&self, msr: Msr) -> u64 {
        if msr == Msr::EFER && self.sev.is_some() { Efer::SVME.bits() } else { 0 }
    }
}
