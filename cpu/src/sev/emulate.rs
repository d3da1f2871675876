//! What a hypervisor does in place of a guest with encrypted state that asks by its GHCB: RDMSR, WRMSR and CPUID by the
//! processor's own tables.
//!
//! The guest's own registers stay hidden: those it reads and writes without an intercept are refused here, as the
//! hypervisor has only ciphertext of them.

use emu_core::cpuid::CpuidResult;
use emu_core::msr::{Msr, MsrRefused};
use emu_core::regs::Xcr0;
use thiserror::Error;

use crate::exit::MsrAccess;
use crate::sev::intercept::is_passed_through;
use crate::vcpu::Vcpu;

/// What came of an access to an MSR on the guest's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated<T> {
    /// Done.
    Done(T),
    /// The register lies on the board, which has not been asked yet. After a write that it took:
    /// [`Vcpu::board_took`].
    Board(MsrAccess),
}

/// Why an MSR is not accessed on the guest's behalf: the answer is #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EmulationRefused {
    /// RDMSR or WRMSR would raise #GP.
    #[error(transparent)]
    Msr(#[from] MsrRefused),
    /// The hypervisor cannot reach the register.
    #[error("{0} is part of the guest's encrypted state")]
    GuestState(Msr),
}

fn reachable(msr: Msr) -> Result<(), EmulationRefused> {
    if is_passed_through(msr) { Err(EmulationRefused::GuestState(msr)) } else { Ok(()) }
}

impl Vcpu {
    /// RDMSR for the guest.
    pub fn emulated_rdmsr(&mut self, msr: Msr) -> Result<Emulated<u64>, EmulationRefused> {
        reachable(msr)?;
        let cpu = &mut self.engine.cpu;
        Ok(match cpu.own_msr(msr, cpu.now())? {
            Some(value) => Emulated::Done(value),
            None => Emulated::Board(MsrAccess { msr: msr.0, write: None }),
        })
    }

    /// WRMSR for the guest.
    pub fn emulated_wrmsr(&mut self, msr: Msr, value: u64) -> Result<Emulated<()>, EmulationRefused> {
        reachable(msr)?;
        let cpu = &mut self.engine.cpu;
        Ok(match cpu.set_own_msr(msr, value, cpu.now())? {
            Some(()) => Emulated::Done(()),
            None => Emulated::Board(MsrAccess { msr: msr.0, write: Some(value) }),
        })
    }

    /// The board took a write that [`Vcpu::emulated_wrmsr`] gave back.
    pub fn board_took(&mut self, access: MsrAccess) {
        if let Some(value) = access.write {
            self.engine.cpu.note_board_msr(Msr(access.msr), value);
        }
    }

    /// CPUID for the guest, which says which XCR0 and XSS it has. CR4 is known: writes of it are trapped.
    pub fn emulated_cpuid(&self, leaf: u32, subleaf: u32, xcr0: u64, xss: u64) -> CpuidResult {
        let cpu = &self.engine.cpu;
        let mut now = cpu.cpuid_state();
        now.xcr0 = Xcr0::from_bits_truncate(xcr0);
        now.xss = Xcr0::from_bits_truncate(xss);
        cpu.model.cpuid(leaf, subleaf, &now)
    }
}
