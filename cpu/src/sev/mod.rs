//! The guest mode of encrypted state (SEV-ES and SEV-SNP): what is different for a guest whose registers its hypervisor
//! cannot see.
//!
//! APM vol. 2, "Encrypted State (SEV-ES)" and "Secure Nested Paging (SEV-SNP)". [`SevGuest`] is what a VMSA says of the
//! mode, [`Vcpu::enter_sev`] the door. Which second stage is in force, and with it the privilege level that the RMP
//! judges by, is the translation unit's own affair ([`Vcpu::mmu`]).
//!
//! - [`intercept`]: what raises #VC in place of an exit. [`emulate`]: what the hypervisor then does for the guest.
//! - [`rmp`]: the instructions on the RMP, of the guest and of the hypervisor. [`registers`]: the MSRs that place it.
//! - [`record`]: what a trace says of all this.
//! - [`crate::vmsa`]: the registers in memory, from which such a guest starts and goes on.
//!
//! Always true: the mode is entered once and never left; EFER.SVME reads as 1 in it and cannot be changed.
//!
//! Left out on purpose: every option of SEV_FEATURES that changes what the processor does (virtual top of memory,
//! restricted and alternate injection, swapped debug registers, secure TSC); a guest that asks for one is refused. Breakpoint
//! addresses in DR0 to DR3 are therefore the hypervisor's to switch, and stay in the processor.

pub(crate) mod emulate;
pub(crate) mod intercept;
pub(crate) mod record;
pub(crate) mod registers;
pub(crate) mod rmp;

use emu_core::cpu_model::CpuModel;
use emu_core::cpuid::Feature;
use emu_core::msr::{Msr, MsrRefused};
use emu_core::regs::Efer;
use emu_core::sev::{SevFeatures, Vmpl, ghcb_sev_info};
use thiserror::Error;

use crate::cpu::Cpu;
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

impl SevGuest {
    /// Whether its memory is under the RMP.
    pub const fn is_snp_active(&self) -> bool {
        self.features.contains(SevFeatures::SNP_ACTIVE)
    }

    /// Whether a processor of `model` can run it.
    pub(crate) fn check(&self, model: &CpuModel) -> Result<(), SevRefused> {
        let needs = if self.is_snp_active() { Feature::SevSnp } else { Feature::SevEs };
        if !model.has(needs) {
            return Err(SevRefused::NoFeature(needs));
        }
        if !SUPPORTED.contains(self.features) {
            return Err(SevRefused::Unsupported(self.features - SUPPORTED));
        }
        Ok(())
    }
}

/// Features of a guest that change nothing here, or whose change is modelled.
const SUPPORTED: SevFeatures =
    SevFeatures::SNP_ACTIVE.union(SevFeatures::BTB_ISOLATION).union(SevFeatures::PREVENT_HOST_IBS);

/// Why the processor does not run a guest with encrypted state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SevRefused {
    /// The model cannot.
    #[error("the CPU model has no {0:?}, which a guest with encrypted state needs")]
    NoFeature(Feature),
    /// The guest wants more than is modelled.
    #[error("SEV_FEATURES asks for {0:?}, which the processor does not have")]
    Unsupported(SevFeatures),
}

impl Vcpu {
    /// From now on the processor runs a guest with encrypted state. The GHCB's MSR gets its reset value when the guest
    /// was none before.
    pub fn enter_sev(&mut self, guest: SevGuest) -> Result<(), SevRefused> {
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

    /// The guest says that its NMI handler has done what must not be interrupted by another NMI. Its hypervisor cannot
    /// intercept IRET, so in such a guest IRET ends nothing.
    pub fn nmi_complete(&mut self) {
        self.engine.cpu.pending.nmi_blocked = false;
    }
}

impl Cpu {
    /// See [`Vcpu::enter_sev`].
    pub fn enter_sev(&mut self, guest: SevGuest) -> Result<(), SevRefused> {
        guest.check(&self.model)?;
        if self.sev.replace(guest).is_none() {
            let (max, min) = GHCB_VERSIONS;
            self.msr.file.set(Msr::GHCB, ghcb_sev_info(max, min, guest.c_bit));
        }
        self.msr.file.set(Msr::SEV_STATUS, guest.features.sev_status());
        self.control.efer |= Efer::SVME;
        Ok(())
    }

    /// Refuses what only a guest with encrypted state has.
    pub fn check_guest_only(&self, msr: Msr) -> Result<(), MsrRefused> {
        if msr == Msr::GHCB && self.sev.is_none() { Err(MsrRefused::Unknown(msr)) } else { Ok(()) }
    }

    /// Bits of a register that the mode fixes: writes of them are ignored (APM vol. 2, "SEV-ES: EFER.SVME").
    pub fn fixed_bits(&self, msr: Msr) -> u64 {
        if msr == Msr::EFER && self.sev.is_some() { Efer::SVME.bits() } else { 0 }
    }
}
