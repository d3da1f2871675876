//! ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST, and the compares fused with the conditional jump after them.

use core::marker::PhantomData;

use crate::address::{Addressing, Use};
use crate::code::CodeCache;
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::exec::{follow, leave_after, stop};
use crate::exit::Trap;
use crate::flags::{Condition, Flags};
use crate::mem::{Fast, Miss, Path, Slow};
use crate::op::{Next, Op, RIP, Rest, next};
use crate::width::Width;

/// An operation with two inputs, perhaps the carry, one result and flags.
pub(crate) trait Alu {
    /// Whether the result replaces the first operand.
    const STORES: bool = true;
    /// Whether CF is an input.
    const CARRIES: bool = false;
    fn eval<T: Width>(a: T, b: T, carry: bool) -> T;
    fn flags<T: Width>(flags: &mut Flags, a: T, b: T, res: T, carry: bool);
}

/// DEST := DEST + SRC
pub(crate) struct Add;
/// DEST := DEST + SRC + CF
pub(crate) struct Adc;
/// DEST := DEST - SRC
pub(crate) struct Sub;
/// DEST := DEST - (SRC + CF)
pub(crate) struct Sbb;
/// DEST := DEST AND SRC
pub(crate) struct And;
/// DEST := DEST OR SRC
pub(crate) struct Or;
/// DEST := DEST XOR SRC
pub(crate) struct Xor;
/// DEST - SRC, flags only
pub(crate) struct Cmp;
/// DEST AND SRC, flags only
pub(crate) struct Test;

impl Alu for Add {
    #[inline(always)]
    fn eval<T: Width>(a: T, b: T, _carry: bool) -> T {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, _a: T, b: T, res: T, _carry: bool) {
        flags.set_add(res, b);
    }
}

impl Alu for Adc {
    const CARRIES: bool = true;
    #[inline(always)]
    fn eval<T: Width>(a: T, b: T, carry: bool) -> T {
        a.wrapping_add(b).wrapping_add(T::truncate(carry as u64))
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, b: T, res: T, carry: bool) {
        let cf = if carry { res <= a } else { res < a };
        let of = ((a ^ res) & (b ^ res)).sign();
        flags.set_explicit(res, cf, of, (a ^ b ^ res).zero_extend() & 0x10 != 0);
    }
}

impl Alu for Sub {
    #[inline(always)]
    fn eval<T: Width>(a: T, b: T, _carry: bool) -> T {
        a.wrapping_sub(b)
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, _a: T, b: T, res: T, _carry: bool) {
        flags.set_sub(res, b);
    }
}

impl Alu for Sbb {
    const CARRIES: bool = true;
    #[inline(always)]
    fn eval<T: Width>(a: T, b: T, carry: bool) -> T {
        a.wrapping_sub(b).wrapping_sub(T::truncate(carry as u64))
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, b: T, res: T, carry: bool) {
        let cf = if carry { a <= b } else { a < b };
        let of = ((a ^ b) & (a ^ res)).sign();
        flags.set_explicit(res, cf, of, (a ^ b ^ res).zero_extend() & 0x10 != 0);
    }
}

macro_rules! logic {
    ($($Op:ident $op:tt;)*) => {$(
        impl Alu for $Op {
            #[inline(always)]
            fn eval<T: Width>(a: T, b: T, _carry: bool) -> T {
                a $op b
            }
            #[inline(always)]
            fn flags<T: Width>(flags: &mut Flags, _a: T, _b: T, res: T, _carry: bool) {
                flags.set_logic(res);
            }
        }
    )*};
}
logic! { And &; Or |; Xor ^; }

impl Alu for Cmp {
    const STORES: bool = false;
    #[inline(always)]
    fn eval<T: Width>(a: T, b: T, _carry: bool) -> T {
        a.wrapping_sub(b)
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, _a: T, b: T, res: T, _carry: bool) {
        flags.set_sub(res, b);
    }
}

impl Alu for Test {
    const STORES: bool = false;
    #[inline(always)]
    fn eval<T: Width>(a: T, b: T, _carry: bool) -> T {
        a & b
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, _a: T, _b: T, res: T, _carry: bool) {
        flags.set_logic(res);
    }
}

#[inline(always)]
fn carry_in<O: Alu>(cpu: &Cpu) -> bool {
    O::CARRIES && cpu.flags.cf()
}

/// The second operand.
pub(crate) trait Source {
    fn get<T: Width>(cpu: &Cpu, op: &Op) -> T;
}
/// A register.
pub(crate) struct FromReg;
/// The immediate.
pub(crate) struct FromImm;

impl Source for FromReg {
    #[inline(always)]
    fn get<T: Width>(cpu: &Cpu, op: &Op) -> T {
        cpu.reg(op.src)
    }
}
impl Source for FromImm {
    #[inline(always)]
    fn get<T: Width>(_cpu: &Cpu, op: &Op) -> T {
        T::truncate(op.imm.get())
    }
}

/// `op reg, reg` and `op reg, imm`; with `QUIET` nobody reads the flags before they are set again.
pub(crate) struct ToReg<O, T, S, const QUIET: bool>(PhantomData<(O, T, S)>);

impl<O: Alu, T: Width, S: Source, const QUIET: bool> Pure for ToReg<O, T, S, QUIET> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let carry = carry_in::<O>(cpu);
        let (a, b) = (cpu.reg::<T>(op.dst), S::get::<T>(cpu, op));
        let res = O::eval(a, b, carry);
        if !QUIET {
            O::flags(&mut cpu.flags, a, b, res, carry);
        }
        if O::STORES {
            cpu.set_reg(op.dst, res);
        }
    }
}

/// `op reg, mem`
pub(crate) struct RegMem<O, T, A>(PhantomData<(O, T, A)>);

impl<O: Alu, T: Width, A: Addressing> Sem for RegMem<O, T, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let b: T = P::load(cpu, linear, op.seg)?;
        let carry = carry_in::<O>(cpu);
        let a = cpu.reg::<T>(op.dst);
        let res = O::eval(a, b, carry);
        O::flags(&mut cpu.flags, a, b, res, carry);
        if O::STORES {
            cpu.set_reg(op.dst, res);
        }
        Ok(())
    }
}

/// `op mem, reg` and `op mem, imm`
pub(crate) struct ToMem<O, T, S, A>(PhantomData<(O, T, S, A)>);

impl<O: Alu, T: Width, S: Source, A: Addressing> Sem for ToMem<O, T, S, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::get::<T>(cpu, op);
        if !O::STORES {
            let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
            let a: T = P::load(cpu, linear, op.seg)?;
            O::flags(&mut cpu.flags, a, b, O::eval(a, b, false), false);
            return Ok(());
        }
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let carry = carry_in::<O>(cpu);
        let (a, res) = P::update(cpu, linear, op.seg, |a: T| {
            let res = O::eval(a, b, carry);
            (res, (a, res))
        })?;
        O::flags(&mut cpu.flags, a, b, res, carry);
        Ok(())
    }
}

/// A comparison: CMP or TEST, with what a condition says right after it.
pub(crate) trait Compare: Alu {
    fn holds<C: Condition, T: Width>(a: T, b: T) -> bool;
}
impl Compare for Cmp {
    #[inline(always)]
    fn holds<C: Condition, T: Width>(a: T, b: T) -> bool {
        C::after_sub(a, b)
    }
}
impl Compare for Test {
    #[inline(always)]
    fn holds<C: Condition, T: Width>(a: T, b: T) -> bool {
        C::after_logic(a & b)
    }
}

/// A fused or plain conditional jump: out of the block, whose remaining instructions are not executed, or on in it.
#[inline(always)]
pub(crate) fn branch(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>, taken: bool) -> Next {
    if taken {
        cpu.budget += op.left as i64 - 1;
        let target = cpu.gpr[RIP as usize].wrapping_add(op.disp as i64 as u64);
        return follow(cpu, code, op, target);
    }
    next!(cpu, code, op, rest)
}

/// What a fused comparison does with its result: the jump is the op after it.
#[inline(always)]
fn branch_after(cpu: &mut Cpu, code: &CodeCache, op: &Op, mut rest: Rest<'_>, taken: bool) -> Next {
    match rest.next() {
        Some(jcc) => branch(cpu, code, jcc, rest, taken),
        None => crate::exec::end_of_slice(cpu, op),
    }
}

/// `cmp reg, reg|imm` or `test` fused with the Jcc after it (two instructions). A fused op is a compare op followed by
/// its jump op in the same block: registers and immediate come from the first, target and links from the second.
pub(crate) fn compare_jump<K: Compare, C: Condition, T: Width, S: Source>(
    cpu: &mut Cpu,
    code: &CodeCache,
    op: &Op,
    rest: Rest<'_>,
) -> Next {
    let (a, b) = (cpu.reg::<T>(op.dst), S::get::<T>(cpu, op));
    K::flags(&mut cpu.flags, a, b, K::eval(a, b, false), false);
    let taken = K::holds::<C, T>(a, b);
    branch_after(cpu, code, op, rest, taken)
}

/// A memory operand compared with a register or immediate (`MEM_FIRST`) or a register with memory, and the Jcc after it.
pub(crate) trait CompareMem {
    fn compare<P: Path, C: Condition>(cpu: &mut Cpu, op: &Op) -> Result<bool, P::Stop>;
}

/// `cmp mem, reg|imm`
pub(crate) struct MemFirst<K, T, S, A>(PhantomData<(K, T, S, A)>);
/// `cmp reg, mem`
pub(crate) struct RegFirst<K, T, A>(PhantomData<(K, T, A)>);

impl<K: Compare, T: Width, S: Source, A: Addressing> CompareMem for MemFirst<K, T, S, A> {
    #[inline(always)]
    fn compare<P: Path, C: Condition>(cpu: &mut Cpu, op: &Op) -> Result<bool, P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let a: T = P::load(cpu, linear, op.seg)?;
        let b = S::get::<T>(cpu, op);
        K::flags(&mut cpu.flags, a, b, K::eval(a, b, false), false);
        Ok(K::holds::<C, T>(a, b))
    }
}

impl<K: Compare, T: Width, A: Addressing> CompareMem for RegFirst<K, T, A> {
    #[inline(always)]
    fn compare<P: Path, C: Condition>(cpu: &mut Cpu, op: &Op) -> Result<bool, P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let b: T = P::load(cpu, linear, op.seg)?;
        let a = cpu.reg::<T>(op.dst);
        K::flags(&mut cpu.flags, a, b, K::eval(a, b, false), false);
        Ok(K::holds::<C, T>(a, b))
    }
}

pub(crate) fn compare_mem_jump<M: CompareMem, C: Condition>(
    cpu: &mut Cpu,
    code: &CodeCache,
    op: &Op,
    rest: Rest<'_>,
) -> Next {
    match M::compare::<Fast, C>(cpu, op) {
        Ok(taken) => branch_after(cpu, code, op, rest, taken),
        Err(Miss) => compare_mem_jump_slow::<M, C>(cpu, code, op, rest),
    }
}

#[derive(Clone, Copy)]
enum Compared {
    Way(bool),
    News,
    Stopped(Next),
}

#[cold]
#[inline(never)]
fn compare_mem_jump_slow<M: CompareMem, C: Condition>(
    cpu: &mut Cpu,
    code: &CodeCache,
    op: &Op,
    rest: Rest<'_>,
) -> Next {
    match compare_slow::<M, C>(cpu, op) {
        Compared::Way(taken) => branch_after(cpu, code, op, rest, taken),
        Compared::News => leave_after(cpu, op),
        Compared::Stopped(next) => next,
    }
}

#[inline(never)]
fn compare_slow<M: CompareMem, C: Condition>(cpu: &mut Cpu, op: &Op) -> Compared {
    let compared: Result<bool, Trap> = M::compare::<Slow, C>(cpu, op);
    match compared {
        Ok(_) if cpu.attention => Compared::News,
        Ok(taken) => Compared::Way(taken),
        Err(trap) => Compared::Stopped(stop(cpu, op, trap)),
    }
}
