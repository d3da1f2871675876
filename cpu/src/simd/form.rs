//! The three forms of a vector instruction, and its operands.
//!
//! Legacy SSE keeps what is above bit 127 of its destination and wants 128-bit memory operands aligned; VEX.128 clears
//! it; VEX.256 works on both lanes. [`Form`] is the choice as a type. Of an [`Op`], `dst` is the destination, `aux` the
//! first source (the destination itself in the legacy form), `src` the second, `imm` the immediate.

use emu_core::Exception;

use crate::address::{Addressing, Use};
use crate::cpu::Cpu;
use crate::fp::operand::Element;
use crate::mem::Path;
use crate::op::Op;
use crate::vector::{Lane, V128, V256};

/// An instruction that computes each 128-bit lane of its result from the same lanes of its sources.
pub(crate) trait Lanewise {
    /// By how much the immediate is shifted to the right for the upper lane.
    const UPPER: u32 = 0;
    /// One lane. An instruction with one source takes it as `b`.
    fn eval(a: V128, b: V128, imm: u8) -> V128;
}

/// See the module.
pub(crate) trait Form {
    /// What a register holds, as far as the form sees it.
    type Value: Copy;
    /// Bytes of it.
    const BYTES: u64;
    /// Whether operands of computations must be aligned in memory.
    const ALIGNED: bool;

    fn get(cpu: &Cpu, n: u8) -> Self::Value;
    /// Writes a destination.
    fn set(cpu: &mut Cpu, n: u8, value: Self::Value);
    /// Writes 128 bits to a destination: VEX forms clear the rest.
    fn set_low(cpu: &mut Cpu, n: u8, value: V128);
    /// Writes `value` to the lowest element of a destination whose other elements come from register `rest`, which is
    /// the destination itself in legacy forms.
    #[inline(always)]
    fn set_lowest<E: Element>(cpu: &mut Cpu, n: u8, rest: u8, value: E::Raw) {
        Self::set_low(cpu, n, E::put(cpu.vector.xmm(rest), 0, value));
    }
    fn lanes<O: Lanewise>(a: Self::Value, b: Self::Value, imm: u8) -> Self::Value;
    fn load<P: Path>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<Self::Value, P::Stop>;
    fn store<P: Path>(cpu: &mut Cpu, linear: u64, seg: u8, value: Self::Value) -> Result<(), P::Stop>;
    /// Both lanes; of a 128-bit form the upper one is zero.
    fn widen(value: Self::Value) -> V256;
    /// The lanes the form has.
    fn narrow(value: V256) -> Self::Value;
}

pub(crate) struct Sse;
/// Legacy SSE whose memory operands may lie anywhere.
pub(crate) struct SseAnywhere;
pub(crate) struct Vex128;
pub(crate) struct Vex256;

macro_rules! form128 {
    ($Form:ty, $aligned:literal, $set:ident $(, $set_lowest:item)?) => {
        impl Form for $Form {
            type Value = V128;
            const BYTES: u64 = 16;
            const ALIGNED: bool = $aligned;

            #[inline(always)]
            fn get(cpu: &Cpu, n: u8) -> V128 {
                cpu.vector.xmm(n)
            }
            #[inline(always)]
            fn set(cpu: &mut Cpu, n: u8, value: V128) {
                cpu.vector.$set(n, value);
            }
            #[inline(always)]
            fn set_low(cpu: &mut Cpu, n: u8, value: V128) {
                cpu.vector.$set(n, value);
            }
            $(#[inline(always)] $set_lowest)?
            #[inline(always)]
            fn lanes<O: Lanewise>(a: V128, b: V128, imm: u8) -> V128 {
                O::eval(a, b, imm)
            }
            #[inline(always)]
            fn load<P: Path>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<V128, P::Stop> {
                load128::<P>(cpu, linear, seg)
            }
            #[inline(always)]
            fn store<P: Path>(cpu: &mut Cpu, linear: u64, seg: u8, value: V128) -> Result<(), P::Stop> {
                P::store(cpu, linear, seg, value.to_u128())
            }
            #[inline(always)]
            fn widen(value: V128) -> V256 {
                [value, V128::ZERO]
            }
            #[inline(always)]
            fn narrow(value: V256) -> V128 {
                value[0]
            }
        }
    };
}

form128!(
    Sse,
    true,
    set_xmm,
    fn set_lowest<E: Element>(cpu: &mut Cpu, n: u8, _rest: u8, value: E::Raw) {
        let old = V128::from_low(cpu.vector.low(n));
        cpu.vector.set_low(n, E::put(old, 0, value).low());
    }
);
form128!(SseAnywhere, false, set_xmm);
form128!(Vex128, false, set_xmm_zero_upper);

impl Form for Vex256 {
    type Value = V256;
    const BYTES: u64 = 32;
    const ALIGNED: bool = false;

    #[inline(always)]
    fn get(cpu: &Cpu, n: u8) -> V256 {
        cpu.vector.ymm(n)
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, n: u8, value: V256) {
        cpu.vector.set_ymm(n, value);
    }
    #[inline(always)]
    fn set_low(cpu: &mut Cpu, n: u8, value: V128) {
        cpu.vector.set_xmm_zero_upper(n, value);
    }
    #[inline(always)]
    fn lanes<O: Lanewise>(a: V256, b: V256, imm: u8) -> V256 {
        [O::eval(a[0], b[0], imm), O::eval(a[1], b[1], imm.unbounded_shr(O::UPPER))]
    }
    #[inline(always)]
    fn load<P: Path>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<V256, P::Stop> {
        let [a, b, c, d]: [u64; 4] = P::load(cpu, linear, seg)?;
        Ok([<u64 as Lane>::join([a, b]), <u64 as Lane>::join([c, d])])
    }
    #[inline(always)]
    fn store<P: Path>(cpu: &mut Cpu, linear: u64, seg: u8, value: V256) -> Result<(), P::Stop> {
        let [low, high] = value;
        P::store(cpu, linear, seg, [low.low(), low.high(), high.low(), high.high()])
    }
    #[inline(always)]
    fn widen(value: V256) -> V256 {
        value
    }
    #[inline(always)]
    fn narrow(value: V256) -> V256 {
        value
    }
}

/// 128 bits from memory.
#[inline(always)]
pub(crate) fn load128<P: Path>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<V128, P::Stop> {
    Ok(V128::from_u128(P::load(cpu, linear, seg)?))
}

/// #GP(0) for an address that is not a multiple of `bytes`, where the instruction demands it.
#[inline(always)]
pub(crate) fn demand_alignment<const DEMANDED: bool>(linear: u64, bytes: u64) -> Result<(), Exception> {
    if DEMANDED && linear & (bytes - 1) != 0 { Err(Exception::GP0) } else { Ok(()) }
}

/// The memory operand of a computation.
#[inline(always)]
pub(crate) fn operand<P: Path, F: Form, A: Addressing>(cpu: &mut Cpu, op: &Op) -> Result<F::Value, P::Stop> {
    let linear = A::linear(cpu, op, 0, F::BYTES, Use::Read)?;
    if F::ALIGNED {
        demand_alignment::<true>(linear, 16)?;
    }
    F::load::<P>(cpu, linear, op.seg)
}

/// The immediate byte.
#[inline(always)]
pub(crate) fn imm8(op: &Op) -> u8 {
    op.imm.get() as u8
}
