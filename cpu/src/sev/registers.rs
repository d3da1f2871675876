//! RMP_BASE, RMP_END and the part of SYSCFG that puts the RMP in force, for code that owns the machine.
//!
//! APM vol. 2, "Enabling SEV-SNP" and "Reverse Map Table". What the registers hold and refuse is [`mmu::rmp::RmpRegisters`];
//! here RDMSR and WRMSR reach it, and the write that sets SYSCFG.SecureNestedPagingEn makes the table that they name.
//!
//! Code owns the machine when no second stage is beneath it and its state is not encrypted. For every guest the registers
//! are as KVM has them: RMP_BASE and RMP_END do not exist, and SYSCFG has none of the bits.
//!
//! Always true: from the write that turns SNP on until RESET nothing here changes.
//!
//! Left out on purpose: RMP_CFG, since no model advertises segmented tables; what MtrrFixDramModEn allows in fixed-range
//! MTRRs; memory encryption of the host's own, which MemEncryptionModEn would make available; and several processors that
//! turn SNP on by themselves, since each would have a table of its own over the same memory.

use std::sync::Arc;

use emu_core::msr::{Msr, MsrRefused, validate_write};
use mmu::rmp::{RmpRegister, RmpRegisterRefused, Written};
use mmu::{Rmp, Stage2};

use crate::cpu::Cpu;

/// What the guest is told in place of the register's own words.
fn refused(cause: RmpRegisterRefused, msr: Msr, old: u64, new: u64) -> MsrRefused {
    match cause {
        RmpRegisterRefused::Absent => MsrRefused::Unknown(msr),
        RmpRegisterRefused::Fixed { .. } => MsrRefused::FixedBySnp(msr),
        RmpRegisterRefused::Reserved { bits, .. } => MsrRefused::Reserved { msr, bits },
        RmpRegisterRefused::SegmentShift { .. } | RmpRegisterRefused::Place { .. } => {
            MsrRefused::Transition { msr, old, new }
        }
    }
}

impl Cpu {
    /// Whether the running code has the machine to itself.
    pub fn owns_machine(&self) -> bool {
        self.sev.is_none() && matches!(self.mmu.stage2(), Stage2::None)
    }

    /// Refuses what only code that owns the machine has.
    pub fn check_owner_only(&self, msr: Msr) -> Result<(), MsrRefused> {
        let owners = matches!(msr, Msr::RMP_BASE | Msr::RMP_END);
        if owners && !self.owns_machine() { Err(MsrRefused::Unknown(msr)) } else { Ok(()) }
    }

    /// The register that `msr` is, where the code has it.
    fn rmp_register(&self, msr: Msr) -> Option<RmpRegister> {
        let register = RmpRegister::ALL.into_iter().find(|register| register.msr() == msr)?;
        (self.model.has(emu_core::cpuid::Feature::SevSnp) && self.owns_machine()).then_some(register)
    }

    /// RDMSR; `None` for every other register.
    pub fn rmp_msr(&self, msr: Msr) -> Option<u64> {
        let register = self.rmp_register(msr)?;
        // SYSCFG has bits that are no affair of the RMP.
        let others = if register == RmpRegister::Syscfg { self.msr.file.get(msr) } else { 0 };
        self.rmp_registers.read(register).ok().map(|value| value | others)
    }

    /// WRMSR; `None`, and nothing has happened, for every other register that is not fixed.
    pub fn set_rmp_msr(&mut self, msr: Msr, value: u64) -> Result<Option<()>, MsrRefused> {
        let Some(register) = self.rmp_register(msr) else {
            let fixed = self.owns_machine() && self.rmp_registers.fixes(msr);
            return if fixed { Err(MsrRefused::FixedBySnp(msr)) } else { Ok(None) };
        };
        let old = self.rmp_msr(msr).unwrap_or(0);
        let mut registers = self.rmp_registers;
        let written = registers.write(register, value).map_err(|cause| refused(cause, msr, old, value))?;
        if written == Written::Ignored {
            return Ok(Some(()));
        }
        if register == RmpRegister::Syscfg {
            let others = validate_write(&self.model, msr, self.msr.file.get(msr), value)?;
            if let Some(place) = registers.place()
                && self.mmu.rmp().is_none()
            {
                let refused = MsrRefused::Transition { msr, old, new: value };
                let rmp = Rmp::new(Arc::clone(self.mmu.memory()), place).map_err(|_| refused)?;
                self.mmu.set_rmp(Some(Arc::new(rmp)));
            }
            self.msr.file.set(msr, others);
        }
        self.rmp_registers = registers;
        Ok(Some(()))
    }
}
