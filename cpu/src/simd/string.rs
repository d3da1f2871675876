//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (Intel SDM vol. 1, "SSE4.2 String and Text Instructions").

use core::marker::PhantomData;

use emu_core::regs::Rflags;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, imm8, load128};
use crate::vector::V128;
use crate::vector::string::{StringFlags, StringMode, pcmpestri, pcmpestrm, pcmpistri, pcmpistrm};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// `aux`: the lengths of the strings are in RAX and RDX, not in EAX and EDX.
pub(crate) const WIDE_LENGTHS: u16 = 1;

/// Where the lengths come from, and where the result goes.
pub(crate) trait StringInsn {
    fn eval<F: Form>(cpu: &mut Cpu, op: &Op, a: V128, b: V128, mode: StringMode) -> StringFlags;
}
/// PCMPESTRI
pub(crate) struct Estri;
/// PCMPESTRM
pub(crate) struct Estrm;
/// PCMPISTRI
pub(crate) struct Istri;
/// PCMPISTRM
pub(crate) struct Istrm;

fn length(cpu: &Cpu, op: &Op, n: u8) -> i64 {
    if op.aux & WIDE_LENGTHS != 0 { cpu.reg::<u64>(n) as i64 } else { (cpu.reg::<u32>(n) as i32).into() }
}

impl StringInsn for Estri {
    fn eval<F: Form>(cpu: &mut Cpu, op: &Op, a: V128, b: V128, mode: StringMode) -> StringFlags {
        let (index, flags) = pcmpestri(a, length(cpu, op, RAX), b, length(cpu, op, RDX), mode);
        cpu.set_reg(RCX, index);
        flags
    }
}
impl StringInsn for Estrm {
    fn eval<F: Form>(cpu: &mut Cpu, op: &Op, a: V128, b: V128, mode: StringMode) -> StringFlags {
        let (mask, flags) = pcmpestrm(a, length(cpu, op, RAX), b, length(cpu, op, RDX), mode);
        F::set_low(cpu, 0, mask);
        flags
    }
}
impl StringInsn for Istri {
    fn eval<F: Form>(cpu: &mut Cpu, _op: &Op, a: V128, b: V128, mode: StringMode) -> StringFlags {
        let (index, flags) = pcmpistri(a, b, mode);
        cpu.set_reg(RCX, index);
        flags
    }
}
impl StringInsn for Istrm {
    fn eval<F: Form>(cpu: &mut Cpu, _op: &Op, a: V128, b: V128, mode: StringMode) -> StringFlags {
        let (mask, flags) = pcmpistrm(a, b, mode);
        F::set_low(cpu, 0, mask);
        flags
    }
}

/// `insn dst, src, imm8`
pub(crate) struct StringReg<S, F>(PhantomData<(S, F)>);
impl<S: StringInsn, F: Form> Pure for StringReg<S, F> {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let b = cpu.vector.xmm(op.src);
        finish::<S, F>(cpu, op, b);
    }
}

/// `insn dst, memory, imm8`: the operand needs no alignment.
pub(crate) struct StringMem<S, F>(PhantomData<(S, F)>);
impl<S: StringInsn, F: Form> Sem for StringMem<S, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, 16, Use::Read)?;
        let b = load128::<P>(cpu, linear, op.seg)?;
        finish::<S, F>(cpu, op, b);
        Ok(())
    }
}

fn finish<S: StringInsn, F: Form>(cpu: &mut Cpu, op: &Op, b: V128) {
    let a = cpu.vector.xmm(op.dst);
    let flags = S::eval::<F>(cpu, op, a, b, StringMode::from_imm(imm8(op)));
    let mut status = Rflags::empty();
    status.set(Rflags::CF, flags.cf);
    status.set(Rflags::ZF, flags.zf);
    status.set(Rflags::SF, flags.sf);
    status.set(Rflags::OF, flags.of);
    cpu.flags.set_status(status);
}
