//! The decimal adjustments of the legacy modes (AAA, AAD, AAM, AAS, DAA, DAS), SALC, and the single-flag instructions.

use emu_core::Exception;
use emu_core::regs::Rflags;

use crate::cpu::Cpu;
use crate::dispatch::{Act, Pure};
use crate::exit::Trap;
use crate::op::Op;

macro_rules! flag_ops {
    ($($(#[$doc:meta])* $Name:ident: |$cpu:ident, $op:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $Name;
        impl Pure for $Name {
            #[inline]
            fn exec($cpu: &mut Cpu, $op: &Op) {
                let _ = $op;
                $body
            }
        }
    )*};
}

flag_ops! {
    /// CF := 0
    Clc: |cpu, op| cpu.flags.set_cf(false);
    /// CF := 1
    Stc: |cpu, op| cpu.flags.set_cf(true);
    /// CF := NOT CF
    Cmc: |cpu, op| { let cf = cpu.flags.cf(); cpu.flags.set_cf(!cf) };
    /// DF := 0
    Cld: |cpu, op| cpu.flags.other.remove(Rflags::DF);
    /// DF := 1
    Std: |cpu, op| cpu.flags.other.insert(Rflags::DF);
    /// AH := low byte of RFLAGS
    Lahf: |cpu, op| { let low = cpu.flags.rflags().bits() as u8; cpu.set_reg(crate::op::HIGH_BYTE, low) };
    /// SF, ZF, AF, PF, CF := AH
    Sahf: |cpu, op| {
        let ah = Rflags::from_bits_retain(cpu.reg::<u8>(crate::op::HIGH_BYTE) as u64);
        let of = cpu.flags.status() & Rflags::OF;
        cpu.flags.set_status(ah & (Rflags::STATUS - Rflags::OF) | of)
    };
    /// AL := CF ? FFh : 0
    Salc: |cpu, op| { let all = if cpu.flags.cf() { 0xff_u8 } else { 0 }; cpu.set_reg(0, all) };
    /// Decimal adjust AL after addition
    Daa: |cpu, op| decimal(cpu, u8::wrapping_add);
    /// Decimal adjust AL after subtraction
    Das: |cpu, op| decimal(cpu, u8::wrapping_sub);
    /// ASCII adjust AL after addition
    Aaa: |cpu, op| ascii(cpu, |ax| ax.wrapping_add(0x106));
    /// ASCII adjust AL after subtraction
    Aas: |cpu, op| ascii(cpu, |ax| ax.wrapping_sub(0x106));
    /// AL := AH * imm + AL, AH := 0
    Aad: |cpu, op| cpu.aad(op.imm.get() as u8);
}

fn set_result_flags(cpu: &mut Cpu, al: u8, cf: bool, af: bool) {
    cpu.flags.set_explicit(al, cf, false, af);
}

fn decimal(cpu: &mut Cpu, adjust: fn(u8, u8) -> u8) {
    let al: u8 = cpu.reg(0);
    let status = cpu.flags.status();
    let low = al & 15 > 9 || status.contains(Rflags::AF);
    let high = al > 0x99 || status.contains(Rflags::CF);
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    // A borrow out of the low digit's adjustment counts too (DAS of AL below 6).
    let borrow = low && adjust(0x80, 6) < 0x80 && al < 6 && !high;
    let res = adjust(al, by);
    set_result_flags(cpu, res, high || borrow, low);
    cpu.set_reg(0, res);
}

fn ascii(cpu: &mut Cpu, adjust: fn(u16) -> u16) {
    let ax: u16 = cpu.reg(0);
    let needed = ax & 15 > 9 || cpu.flags.status().contains(Rflags::AF);
    let res = if needed { adjust(ax) } else { ax } & 0xff0f;
    set_result_flags(cpu, res as u8, needed, needed);
    cpu.set_reg(0, res);
}

impl Cpu {
    fn aad(&mut self, base: u8) {
        let ax: u16 = self.reg(0);
        let al = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(base));
        set_result_flags(self, al, false, false);
        self.set_reg(0, al as u16);
    }
}

/// AAM imm: AH := AL / imm, AL := AL mod imm; #DE for zero
pub(crate) struct Aam;
impl Act for Aam {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let base = op.imm.get() as u8;
        let al: u8 = cpu.reg(0);
        let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
            return Err(Exception::DivideError.into());
        };
        set_result_flags(cpu, low, false, false);
        cpu.set_reg(0, u16::from_le_bytes([low, high]));
        Ok(())
    }
}
