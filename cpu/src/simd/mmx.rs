//! MMX (APM vol. 5; APM vol. 1, "Actions Taken on Executing 64-Bit Media Instructions").
//!
//! MMX registers are the significands of the physical x87 registers. Every instruction here first reports a pending
//! x87 exception; when it retires, TOP is 0 and all registers count as in use (EMMS: as empty). A written register's
//! sign and exponent are all ones. None of this is made to be quick.

use core::marker::PhantomData;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::simd::form::{Lanewise, imm8};
use crate::simd::masked::store_bytes;
use crate::simd::packed::Count;
use crate::softfloat::F80;
use crate::vector::mask::{ElementMask, pmovmskb};
use crate::vector::{V128, horizontal, pack, shuffle};

/// How the second operand of an instruction is reached, in `aux`: a register, or so many bytes of memory.
pub(crate) const REGISTER: u16 = 0;

fn get(cpu: &Cpu, n: u8) -> u64 {
    cpu.x87.regs[n as usize % 8].significand
}

fn set(cpu: &mut Cpu, n: u8, value: u64) {
    cpu.x87.regs[n as usize % 8] = F80 { sign_exp: 0xffff, significand: value };
}

/// What every retiring MMX instruction does to the x87 state.
fn enter(cpu: &mut Cpu) {
    cpu.x87.set_top(0);
    cpu.x87.valid = 0xff;
}

fn operand(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    if op.aux == REGISTER {
        return Ok(get(cpu, op.src));
    }
    load(cpu, op)
}

/// `aux` bytes from memory, zero-extended.
fn load(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    let linear = Legacy::linear(cpu, op, 0, op.aux.into(), Use::Read)?;
    Ok(match op.aux {
        2 => Slow::load::<u16>(cpu, linear, op.seg)?.into(),
        4 => Slow::load::<u32>(cpu, linear, op.seg)?.into(),
        _ => Slow::load::<u64>(cpu, linear, op.seg)?,
    })
}

/// An operation on two MMX registers.
pub(crate) trait Mmx {
    fn eval(a: u64, b: u64, imm: u8) -> u64;
}

/// `op mm, mm/memory`
pub(crate) struct Compute<O>(PhantomData<O>);
impl<O: Mmx> Act for Compute<O> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let b = operand(cpu, op)?;
        let result = O::eval(get(cpu, op.dst), b, imm8(op));
        enter(cpu);
        set(cpu, op.dst, result);
        Ok(())
    }
}

/// The low half of the 128-bit operation, on operands zero-extended.
pub(crate) struct Low<O>(PhantomData<O>);
impl<O: Lanewise> Mmx for Low<O> {
    fn eval(a: u64, b: u64, imm: u8) -> u64 {
        O::eval(V128::from_low(a), V128::from_low(b), imm).low()
    }
}

/// A shift by a count in a register or in memory.
pub(crate) struct ByCount<O>(PhantomData<O>);
impl<O: Count> Mmx for ByCount<O> {
    fn eval(a: u64, b: u64, _imm: u8) -> u64 {
        O::eval(V128::from_low(a), b).low()
    }
}

/// A shift by an immediate.
pub(crate) struct ByImm<O>(PhantomData<O>);
impl<O: Count> Mmx for ByImm<O> {
    fn eval(a: u64, _b: u64, imm: u8) -> u64 {
        O::eval(V128::from_low(a), imm.into()).low()
    }
}

/// Operations whose MMX form is not the low half of the 128-bit one.
macro_rules! own {
    ($($Name:ident = |$a:ident, $b:ident, $imm:ident| $value:expr;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Mmx for $Name {
            fn eval($a: u64, $b: u64, $imm: u8) -> u64 {
                $value
            }
        }
    )*};
}

own! {
    Phaddw = |a, b, _imm| horizontal::phaddw_mmx(a, b);
    Phaddd = |a, b, _imm| horizontal::phaddd_mmx(a, b);
    Phaddsw = |a, b, _imm| horizontal::phaddsw_mmx(a, b);
    Phsubw = |a, b, _imm| horizontal::phsubw_mmx(a, b);
    Phsubd = |a, b, _imm| horizontal::phsubd_mmx(a, b);
    Phsubsw = |a, b, _imm| horizontal::phsubsw_mmx(a, b);
    Packsswb = |a, b, _imm| pack::packsswb_mmx(a, b);
    Packssdw = |a, b, _imm| pack::packssdw_mmx(a, b);
    Packuswb = |a, b, _imm| pack::packuswb_mmx(a, b);
    Punpckhbw = |a, b, _imm| pack::punpckhbw_mmx(a, b);
    Punpckhwd = |a, b, _imm| pack::punpckhwd_mmx(a, b);
    Punpckhdq = |a, b, _imm| pack::punpckhdq_mmx(a, b);
    Pshufb = |a, b, _imm| shuffle::pshufb_mmx(a, b);
    Pshufw = |_a, b, imm| shuffle::pshufw(b, imm);
    Palignr = |a, b, imm| shuffle::palignr_mmx(a, b, imm);
    // MOVQ, MOVD
    Copy = |_a, b, _imm| b;
    // PINSRW from memory
    Pinsrw = |a, b, imm| shuffle::pinsrw_mmx(a, b as u16, imm);
}

/// MOVD, MOVQ mm, general register
pub(crate) struct FromGpr<const BITS: u32>;
impl<const BITS: u32> Act for FromGpr<BITS> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let value = cpu.reg::<u64>(op.src) & (u64::MAX >> (64 - BITS));
        enter(cpu);
        set(cpu, op.dst, value);
        Ok(())
    }
}

/// PINSRW mm, general register
pub(crate) struct InsertWord;
impl Act for InsertWord {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let result = shuffle::pinsrw_mmx(get(cpu, op.dst), cpu.reg::<u16>(op.src), imm8(op));
        enter(cpu);
        set(cpu, op.dst, result);
        Ok(())
    }
}

/// What a general register gets from an MMX register, zero-extended.
pub(crate) trait Out {
    fn eval(a: u64, imm: u8) -> u64;
}
/// MOVD
pub(crate) struct Dword;
/// MOVQ
pub(crate) struct Qword;
/// PEXTRW
pub(crate) struct Word;
/// PMOVMSKB
pub(crate) struct SignMask;
impl Out for Dword {
    fn eval(a: u64, _imm: u8) -> u64 {
        a & 0xffff_ffff
    }
}
impl Out for Qword {
    fn eval(a: u64, _imm: u8) -> u64 {
        a
    }
}
impl Out for Word {
    fn eval(a: u64, imm: u8) -> u64 {
        shuffle::pextrw_mmx(a, imm).into()
    }
}
impl Out for SignMask {
    fn eval(a: u64, _imm: u8) -> u64 {
        pmovmskb(V128::from_low(a)).into()
    }
}

/// `op reg, mm`
pub(crate) struct ToGpr<O>(PhantomData<O>);
impl<O: Out> Act for ToGpr<O> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let value = O::eval(get(cpu, op.src), imm8(op));
        enter(cpu);
        cpu.set_reg(op.dst, value);
        Ok(())
    }
}

/// MOVD, MOVQ, MOVNTQ `memory, mm`: `aux` bytes
pub(crate) struct Store;
impl Act for Store {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let linear = Legacy::linear(cpu, op, 0, op.aux.into(), Use::Write)?;
        let value = get(cpu, op.src);
        match op.aux {
            4 => Slow::store(cpu, linear, op.seg, value as u32)?,
            _ => Slow::store(cpu, linear, op.seg, value)?,
        }
        enter(cpu);
        Ok(())
    }
}

/// MASKMOVQ `src, mask aux`, to where rDI points
pub(crate) struct Maskmovq;
impl Act for Maskmovq {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let selected = ElementMask::of_bytes(V128::from_low(get(cpu, op.aux as u8)));
        let bytes = get(cpu, op.src).to_le_bytes();
        // Zen is in MMX state even when the store faults. The instruction that restarts finds what it found before.
        enter(cpu);
        store_bytes(cpu, op, selected, bytes)
    }
}

/// MOVQ2DQ
pub(crate) struct Movq2dq;
impl Act for Movq2dq {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let value = V128::from_low(get(cpu, op.src));
        enter(cpu);
        cpu.vector.set_xmm(op.dst, value);
        Ok(())
    }
}

/// MOVDQ2Q
pub(crate) struct Movdq2q;
impl Act for Movdq2q {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let value = cpu.vector.xmm(op.src).low();
        enter(cpu);
        set(cpu, op.dst, value);
        Ok(())
    }
}

/// EMMS
pub(crate) struct Emms;
impl Act for Emms {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        enter(cpu);
        cpu.x87.valid = 0;
        Ok(())
    }
}
