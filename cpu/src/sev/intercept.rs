//! What becomes of an intercept when the hypervisor cannot see the registers: #VC for the guest, with the exit code as
//! error code (APM vol. 2, "SEV-ES: Automatic and Non-Automatic Exits").
//!
//! The hypervisor's intercepts are those KVM sets for such a guest. CPUID and port I/O are intercepted whatever it says;
//! RDMSR and WRMSR but for the registers of [`PASSED_THROUGH`]; RDPMC, INVD, WBINVD, VMMCALL, MONITOR, MWAIT and DR7.
//! HLT, VMGEXIT, interrupts, shutdown and nested page faults remain exits, but for a fault by a reserved bit on a shared
//! access: that is how a hypervisor marks devices.
//!
//! Each check stands at the intercept's place among the instruction's other checks: before them all for CPUID, behind
//! privilege and permission for the rest. An MSR that does not exist is intercepted like one that does.

use emu_core::Exception;
use emu_core::msr::Msr;
use emu_core::sev::{CBit, ExitCode};
use mmu::{NestedFaultKind, NestedPageFault};

use crate::cpu::Cpu;
use crate::exit::Trap;

/// The #VC that stands for an exit with `code`.
pub(crate) const fn vc(code: ExitCode) -> Exception {
    Exception::VmmCommunication { exit_code: code.0 as u32 }
}

/// Whether an MSR is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MsrUse {
    Read,
    Write,
}

/// Runs of MSRs that the guest reads and writes by itself: first and last.
const PASSED_THROUGH: &[(Msr, Msr)] = &[
    (Msr::SPEC_CTRL, Msr::PRED_CMD),
    (Msr::SYSENTER_CS, Msr::SYSENTER_EIP),
    (Msr::DEBUGCTL, Msr::DEBUGCTL),
    (Msr::LAST_BRANCH, Msr::LAST_BRANCH.offset(3)),
    (Msr::PAT, Msr::PAT),
    (Msr::XSS, Msr::XSS),
    (Msr::EFER, Msr::FMASK),
    (Msr::FS_BASE, Msr::TSC_AUX),
    (Msr::GHCB, Msr::SEV_STATUS),
];

/// Whether the register is the guest's own, in its VMSA or fixed by it.
pub(crate) fn is_passed_through(msr: Msr) -> bool {
    PASSED_THROUGH.iter().any(|&(first, last)| (first..=last).contains(&msr))
}

impl Cpu {
    /// #VC with `code` in a guest with encrypted state; `Ok` for every other, where nothing of this is intercepted.
    #[inline]
    pub fn intercept(&self, code: ExitCode) -> Result<(), Exception> {
        if self.sev.is_some() { Err(vc(code)) } else { Ok(()) }
    }

    /// The intercept of RDMSR and WRMSR. The TSC can be read and not be written.
    pub fn intercept_msr(&self, msr: Msr, usage: MsrUse) -> Result<(), Exception> {
        if is_passed_through(msr) || msr == Msr::TSC && usage == MsrUse::Read {
            return Ok(());
        }
        self.intercept(ExitCode::MSR)
    }

    /// A nested fault of this guest where no device is asked.
    pub fn nested_trap(&self, fault: NestedPageFault) -> Trap {
        let marked = matches!(fault.kind, NestedFaultKind::Reserved { .. }) && fault.c_bit == CBit::Clear;
        if marked && self.sev.is_some() {
            return vc(ExitCode::NPF).into();
        }
        crate::exit::Exit::NestedPageFault { fault, access: None }.into()
    }
}
