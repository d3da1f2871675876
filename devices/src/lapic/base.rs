//! IA32_APIC_BASE and the MSR interface of the local APIC (Intel SDM vol. 3, "Local APIC Status and Location",
//! "x2APIC State Transitions", "RDMSR/WRMSR in x2APIC mode").

use emu_core::addr::Gpa;
use emu_core::time::Instant;
use thiserror::Error;

use super::regs::{self, Reg};
use super::{Effect, Lapic, msr};
use crate::message::Destination;

const BSP: u64 = 1 << 8;
const EXTD: u64 = 1 << 10;
const EN: u64 = 1 << 11;
const DEFAULT: u64 = 0xfee0_0000;

/// The value of IA32_APIC_BASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicBase(u64);

/// The state that EN and EXTD choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApicMode {
    /// EN clear: as if there were no local APIC.
    Disabled,
    /// EN set: registers in memory.
    XApic,
    /// EN and EXTD set: registers are MSRs.
    X2Apic,
}

impl ApicBase {
    /// The value after reset.
    pub const fn reset(bsp: bool) -> ApicBase {
        ApicBase(DEFAULT | EN | if bsp { BSP } else { 0 })
    }
    /// All 64 bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The mode. EXTD without EN cannot be written.
    #[inline]
    pub const fn mode(self) -> ApicMode {
        match (self.0 & EN != 0, self.0 & EXTD != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        }
    }
    /// Where the register page lies.
    #[inline]
    pub const fn page(self) -> Gpa {
        Gpa::new(self.0 & !0xfff)
    }

    /// What a write of `value` makes of this, or `None` for #GP.
    ///
    /// BSP is not writable. From x2APIC mode the only way is to disabled; x2APIC is entered from xAPIC mode alone.
    pub const fn written(self, value: u64, phys_bits: u32) -> Option<ApicBase> {
        let above = if phys_bits >= 64 { 0 } else { u64::MAX << phys_bits };
        let reserved = above | 0xff | 1 << 9;
        if value & reserved != 0 || value & EXTD != 0 && value & EN == 0 {
            return None;
        }
        let next = ApicBase(value & !BSP | self.0 & BSP);
        match (self.mode(), next.mode()) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => None,
            _ => Some(next),
        }
    }
}

/// Why an MSR access did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsrError {
    /// The MSR is none of the local APIC's: somebody else must answer.
    #[error("MSR {0:#x} does not belong to the local APIC")]
    NotOurs(u32),
    /// The guest gets #GP(0): no such register in this mode, wrong direction, or a reserved bit set.
    #[error("#GP(0): access to local APIC MSR {0:#x} in this mode or with this value")]
    GeneralProtection(u32),
}

impl Lapic {
    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// See [`MsrError`].
    pub fn msr_read(&self, number: u32, now: Instant) -> Result<u64, MsrError> {
        match number {
            msr::APIC_BASE => Ok(self.base.raw()),
            msr::TSC_DEADLINE => Ok(self.timer.deadline()),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let fault = MsrError::GeneralProtection(number);
                if self.base.mode() != ApicMode::X2Apic {
                    return Err(fault);
                }
                match regs::decode_x2apic(number) {
                    Some(Reg::Icr) => Ok(self.icr),
                    Some(reg) if reg.x2apic_readable() => Ok(self.read(reg, now) as u64),
                    _ => Err(fault),
                }
            }
            _ => Err(MsrError::NotOurs(number)),
        }
    }

    /// WRMSR of the same.
    ///
    /// # Errors
    /// See [`MsrError`]; nothing has changed then.
    pub fn msr_write(&mut self, number: u32, value: u64, now: Instant) -> Result<Effect, MsrError> {
        match number {
            msr::APIC_BASE => self.write_base(value).map(|()| Effect::None),
            msr::TSC_DEADLINE => {
                let tsc = self.config.tsc;
                self.timer.set_deadline(value, tsc, now);
                Ok(Effect::None)
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let fault = MsrError::GeneralProtection(number);
                if self.base.mode() != ApicMode::X2Apic {
                    return Err(fault);
                }
                let Some(reg) = regs::decode_x2apic(number) else { return Err(fault) };
                if !reg.x2apic_writable() || value & !reg.x2apic_allowed() != 0 {
                    return Err(fault);
                }
                Ok(self.write_x2apic(reg, value, now))
            }
            _ => Err(MsrError::NotOurs(number)),
        }
    }

    fn write_x2apic(&mut self, reg: Reg, value: u64, now: Instant) -> Effect {
        match reg {
            Reg::Icr => {
                // Delivery status does not exist in x2APIC mode; a set bit is dropped, not refused.
                self.icr = value & !(1 << 12);
                let id = (value >> 32) as u32;
                let physical = if id == u32::MAX { Destination::Everyone } else { Destination::Physical(id) };
                self.send(self.icr, physical, id)
            }
            // A self IPI is an ICR write with the shorthand "self", fixed and edge.
            Reg::SelfIpi => self.send(1 << 18 | value, Destination::Sender, 0),
            _ => self.write(reg, value as u32, now),
        }
    }

    fn write_base(&mut self, value: u64) -> Result<(), MsrError> {
        let Some(next) = self.base.written(value, self.config.phys_bits) else {
            return Err(MsrError::GeneralProtection(msr::APIC_BASE));
        };
        let before = self.base.mode();
        self.base = next;
        match (before, next.mode()) {
            (ApicMode::XApic | ApicMode::X2Apic, ApicMode::Disabled) => self.init_reset(),
            (ApicMode::XApic, ApicMode::X2Apic) => {
                self.icr &= 0xffff_ffff;
                self.ldr = self.x2apic_ldr();
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition_is_as_the_state_diagram_says() {
        let states = [0, EN, EN | EXTD, EXTD];
        for from in [0, EN, EN | EXTD] {
            for to in states {
                let allowed = match (from, to) {
                    (_, EXTD) => false,
                    (0, t) => t != EN | EXTD,
                    (EN, _) => true,
                    (_, t) => t != EN,
                };
                let base = ApicBase(DEFAULT | BSP | from);
                let next = base.written(DEFAULT | to, 48);
                assert_eq!(next.is_some(), allowed, "{from:#x} to {to:#x}");
                if let Some(next) = next {
                    assert_eq!(next.raw(), DEFAULT | BSP | to, "BSP is not writable");
                }
            }
        }
    }

    #[test]
    fn every_reserved_bit_faults() {
        let base = ApicBase::reset(false);
        for bit in 0..64 {
            let value = DEFAULT | EN | 1 << bit;
            let reserved = bit < 8 || bit == 9 || bit >= 40;
            assert_eq!(base.written(value, 40).is_none(), reserved, "bit {bit}");
        }
    }
}
