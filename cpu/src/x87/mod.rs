//! The x87 floating-point unit.

use crate::softfloat::F80;

/// x87 state (APM vol. 1, "x87 Floating-Point Programming").
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct X87State {
    /// Physical registers R0 to R7; ST(i) is register TOP+i. MMX registers are their significands.
    pub regs: [F80; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included.
    pub fsw: u16,
    /// Bit n set: physical register n is not empty.
    pub valid: u8,
    /// Opcode of the last non-control instruction, 11 bits.
    pub fop: u16,
    /// Its address.
    pub fip: u64,
    /// The address of its memory operand.
    pub fdp: u64,
}

impl X87State {
    /// After FNINIT.
    pub fn reset() -> X87State {
        X87State {
            regs: [F80 { sign_exp: 0, significand: 0 }; 8],
            fcw: 0x37f,
            fsw: 0,
            valid: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
        }
    }
}
