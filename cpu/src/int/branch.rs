//! Near jumps, calls and returns of 64-bit mode, and those of the other modes.

use core::marker::PhantomData;

use emu_core::Exception;

use crate::address::{Addressing, Use, linear_in_segment};
use crate::code::CodeCache;
use crate::cpu::Cpu;
use crate::dispatch::{Ender, Flow};
use crate::exec::{follow, jump};
use crate::exit::Trap;
use crate::flags::{self, Condition, Flags};
use crate::int::alu::branch;
use crate::int::stack::{pop, push};
use crate::mem::{Fast, Path, Slow};
use crate::op::{Next, Op, RIP, Rest, ZERO};
use crate::segment::SegReg;
use crate::width::Width;

const RSP: usize = 4;

/// Jcc rel
pub(crate) fn jcc<C: Condition>(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    let taken = C::holds(&cpu.flags);
    branch(cpu, code, op, rest, taken)
}

/// JMP rel, and the hand-over at the end of a block that was cut (which is no instruction).
pub(crate) fn jmp(cpu: &mut Cpu, code: &CodeCache, op: &Op, _rest: Rest<'_>) -> Next {
    let target = cpu.gpr[RIP as usize].wrapping_add(op.disp as i64 as u64);
    follow(cpu, code, op, target)
}

/// CALL rel in 64-bit mode
pub(crate) fn call(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    let start = cpu.gpr[RIP as usize];
    let rsp = cpu.gpr[RSP].wrapping_sub(8);
    match Fast::store(cpu, rsp, SegReg::Ss as u8, start.wrapping_add(op.ip as u64)) {
        Ok(()) => {
            cpu.gpr[RSP] = rsp;
            let target = start.wrapping_add(op.disp as i64 as u64);
            follow(cpu, code, op, target)
        }
        Err(_) => crate::dispatch::ender::<CallSlow>(cpu, code, op, rest),
    }
}

struct CallSlow;
impl Ender for CallSlow {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let start = cpu.gpr[RIP as usize];
        push::<Slow, u64>(cpu, start.wrapping_add(op.ip as u64))?;
        Ok(Flow::Jump(start.wrapping_add(op.disp as i64 as u64)))
    }
}

/// RET in 64-bit mode; `imm` more bytes are released.
pub(crate) fn ret(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    let rsp = cpu.gpr[RSP];
    match Fast::load::<u64>(cpu, rsp, SegReg::Ss as u8) {
        Ok(target) if plain(target) => {
            cpu.gpr[RSP] = rsp.wrapping_add(8).wrapping_add(op.aux as u64);
            jump(cpu, code, target)
        }
        _ => crate::dispatch::ender::<RetNear<u64>>(cpu, code, op, rest),
    }
}

/// JMP r64
pub(crate) fn jmp_reg(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    let target = cpu.reg::<u64>(op.dst);
    if !plain(target) {
        return crate::dispatch::ender::<JmpIndirect<u64, InReg>>(cpu, code, op, rest);
    }
    jump(cpu, code, target)
}

/// CALL r64
pub(crate) fn call_reg(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    let target = cpu.reg::<u64>(op.dst);
    if !plain(target) {
        return crate::dispatch::ender::<CallIndirect<u64, InReg>>(cpu, code, op, rest);
    }
    let rsp = cpu.gpr[RSP].wrapping_sub(8);
    let after = cpu.gpr[RIP as usize].wrapping_add(op.ip as u64);
    match Fast::store(cpu, rsp, SegReg::Ss as u8, after) {
        Ok(()) => {
            cpu.gpr[RSP] = rsp;
            jump(cpu, code, target)
        }
        Err(_) => crate::dispatch::ender::<CallIndirect<u64, InReg>>(cpu, code, op, rest),
    }
}

/// JMP m64
pub(crate) fn jmp_mem<A: Addressing>(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    let target = match A::linear(cpu, op, 0, 8, Use::Read) {
        Ok(linear) => Fast::load::<u64>(cpu, linear, op.seg).ok(),
        Err(_) => None,
    };
    match target {
        Some(target) if plain(target) => jump(cpu, code, target),
        _ => crate::dispatch::ender::<JmpIndirect<u64, InMem<A>>>(cpu, code, op, rest),
    }
}

/// CALL m64
pub(crate) fn call_mem<A: Addressing>(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    let target = match A::linear(cpu, op, 0, 8, Use::Read) {
        Ok(linear) => Fast::load::<u64>(cpu, linear, op.seg).ok(),
        Err(_) => None,
    };
    if let Some(target) = target
        && plain(target)
    {
        let rsp = cpu.gpr[RSP].wrapping_sub(8);
        let after = cpu.gpr[RIP as usize].wrapping_add(op.ip as u64);
        if Fast::store(cpu, rsp, SegReg::Ss as u8, after).is_ok() {
            cpu.gpr[RSP] = rsp;
            return jump(cpu, code, target);
        }
    }
    crate::dispatch::ender::<CallIndirect<u64, InMem<A>>>(cpu, code, op, rest)
}

/// Where an indirect branch finds its target.
pub(crate) trait TargetSource {
    fn target<T: Width>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap>;
}
/// In a register.
pub(crate) struct InReg;
/// In memory.
pub(crate) struct InMem<A>(PhantomData<A>);

impl TargetSource for InReg {
    fn target<T: Width>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
        Ok(cpu.reg(op.dst))
    }
}
impl<A: Addressing> TargetSource for InMem<A> {
    fn target<T: Width>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        Slow::load(cpu, linear, op.seg)
    }
}

/// Refuses a target that the fetch could not even begin at, so that the fault is the branch's.
fn checked(cpu: &Cpu, target: u64) -> Result<Flow, Trap> {
    let sound =
        if cpu.key.is_64() { cpu.is_canonical(target) } else { cpu.segments.get(SegReg::Cs).contains(target, 1) };
    if sound { Ok(Flow::Jump(target)) } else { Err(Exception::GP0.into()) }
}

/// Makes sure that a push would succeed: a CALL's stack is looked at before its target.
fn probe_push<T: Width>(cpu: &mut Cpu) -> Result<(), Trap> {
    let sp = cpu.stack_pointer().wrapping_sub(T::BYTES);
    let linear = cpu.stack_linear(sp, T::BYTES, Use::Write)?;
    Slow::probe_store(cpu, linear, SegReg::Ss as u8, T::BYTES)
}

/// Whether the fast handlers may jump there: whatever has more than 48 significant bits goes through [`checked`].
#[inline(always)]
fn plain(target: u64) -> bool {
    ((target << 16) as i64 >> 16) as u64 == target
}

/// JMP r/m of width `T`
pub(crate) struct JmpIndirect<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: TargetSource> Ender for JmpIndirect<T, S> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let target = S::target::<T>(cpu, op)?.zero_extend();
        checked(cpu, target)
    }
}

/// CALL r/m of width `T`
pub(crate) struct CallIndirect<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: TargetSource> Ender for CallIndirect<T, S> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let target = S::target::<T>(cpu, op)?.zero_extend();
        probe_push::<T>(cpu)?;
        let flow = checked(cpu, target)?;
        let after = cpu.rip_after(op);
        push::<Slow, T>(cpu, T::truncate(after))?;
        Ok(flow)
    }
}

/// RET of width `T`; `aux` more bytes are released.
pub(crate) struct RetNear<T>(PhantomData<T>);
impl<T: Width> Ender for RetNear<T> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let before = cpu.gpr[RSP];
        let target = pop::<Slow, T>(cpu)?.zero_extend();
        match checked(cpu, target) {
            Ok(flow) => {
                let rsp = cpu.gpr[RSP].wrapping_add(op.aux as u64);
                cpu.set_stack_pointer(rsp);
                Ok(flow)
            }
            Err(trap) => {
                cpu.gpr[RSP] = before;
                Err(trap)
            }
        }
    }
}

/// Conditions of the branches below, in `aux`: 0 to 15 as in Jcc, then the others.
pub(crate) const ALWAYS: u16 = 16;
/// JCXZ, JECXZ, JRCXZ.
pub(crate) const COUNT_ZERO: u16 = 17;
/// LOOP.
pub(crate) const LOOP: u16 = 18;
/// LOOPE.
pub(crate) const LOOPE: u16 = 19;
/// LOOPNE.
pub(crate) const LOOPNE: u16 = 20;
/// CALL.
pub(crate) const CALL: u16 = 21;

/// Whether Jcc condition `n` (its low opcode bits) holds.
pub(crate) fn condition(flags: &Flags, n: u8) -> bool {
    match n & 15 {
        0 => flags::O::holds(flags),
        1 => flags::No::holds(flags),
        2 => flags::B::holds(flags),
        3 => flags::Nb::holds(flags),
        4 => flags::Z::holds(flags),
        5 => flags::Nz::holds(flags),
        6 => flags::Be::holds(flags),
        7 => flags::Nbe::holds(flags),
        8 => flags::S::holds(flags),
        9 => flags::Ns::holds(flags),
        10 => flags::P::holds(flags),
        11 => flags::Np::holds(flags),
        12 => flags::L::holds(flags),
        13 => flags::Nl::holds(flags),
        14 => flags::Le::holds(flags),
        _ => flags::Nle::holds(flags),
    }
}

/// Any relative branch in any mode: condition in `aux`, distance from the next instruction in `imm`, operand size `T`
/// (the width RIP is cut to and, for CALL, what is pushed), bits of the count register for LOOP and JCXZ in `scale`.
pub(crate) struct Relative<T>(PhantomData<T>);
impl<T: Width> Ender for Relative<T> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let after = cpu.rip_after(op);
        let count_mask = match op.scale {
            16 => 0xffff,
            32 => 0xffff_ffff,
            _ => u64::MAX,
        };
        let counts = matches!(op.aux, LOOP | LOOPE | LOOPNE);
        let count = if counts { cpu.gpr[1].wrapping_sub(1) } else { cpu.gpr[1] } & count_mask;
        let taken = match op.aux {
            ALWAYS | CALL => true,
            COUNT_ZERO => count == 0,
            LOOP => count != 0,
            LOOPE => count != 0 && cpu.flags.zf(),
            LOOPNE => count != 0 && !cpu.flags.zf(),
            n => condition(&cpu.flags, n as u8),
        };
        if op.aux == CALL {
            probe_push::<T>(cpu)?;
        }
        let flow = if taken {
            let target = T::truncate(after.wrapping_add(op.imm.get())).zero_extend();
            checked(cpu, target)?
        } else {
            Flow::Jump(after)
        };
        if op.aux == CALL {
            push::<Slow, T>(cpu, T::truncate(after))?;
        }
        if counts {
            match op.scale {
                16 => cpu.set_reg(1, count as u16),
                32 => cpu.set_reg(1, count as u32),
                _ => cpu.set_reg(1, count),
            }
        }
        Ok(flow)
    }
}

/// XLAT: AL := [rBX + zero-extended AL]; here because its address is formed by hand.
pub(crate) struct Xlat;
impl crate::dispatch::Act for Xlat {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let address = cpu.gpr[3].wrapping_add(cpu.reg::<u8>(0) as u64);
        let address = match op.scale {
            16 => address & 0xffff,
            32 => address & 0xffff_ffff,
            _ => address,
        };
        let linear = linear_in_segment(cpu, op.seg, address, 1, Use::Read)?;
        let value: u8 = Slow::load(cpu, linear, op.seg)?;
        cpu.set_reg(0, value);
        Ok(())
    }
}

const _: () = assert!(ZERO == 16);
