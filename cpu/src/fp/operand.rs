//! What all floating-point instructions share: elements, sources, and what MXCSR makes of the flags.
//!
//! Of an [`Op`], `dst` is the destination, the low byte of `aux` the first source (the destination itself in the legacy
//! form), `src` the register of the second source unless it is in memory, `imm` the immediate.

use core::marker::PhantomData;

use emu_core::Exception;
use emu_core::memory::Scalar;
use emu_core::regs::Cr4;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, operand};
use crate::softfloat::fast::{self, FastMode, Guess};
use crate::softfloat::{Env, F32, F64, Format};
use crate::vector::{Lane, V128, V256};

/// Flag in [`Op::aux`] for [`Any`]: the second source is a register.
pub(crate) const REGISTER: u16 = 1 << 8;

/// What a fast instance stops with when the host's arithmetic is not certain: the slow instance computes exactly. Any
/// exception does, because on the fast path all of them mean that.
pub(crate) const START_AGAIN: Exception = Exception::SimdFloatingPoint;

/// Single or double precision as the element of a vector register.
pub(crate) trait Element: Format<Bits = Self::Raw> {
    /// The element's bits.
    type Raw: Scalar + Eq + core::fmt::Debug;
    /// Bytes of it.
    const BYTES: usize;
    /// Elements in 128 bits.
    const COUNT: usize = 16 / Self::BYTES;

    /// Element `n` of `v`.
    fn get(v: V128, n: usize) -> Self::Raw;
    /// `v` with element `n` replaced.
    fn put(v: V128, n: usize, value: Self::Raw) -> V128;
    /// All ones or all zeros.
    fn mask(on: bool) -> Self::Raw;
    /// The lowest element of a register.
    #[inline(always)]
    fn lowest(cpu: &Cpu, n: u8) -> Self::Raw {
        Self::from_u64(cpu.vector.low(n))
    }
    /// From the low bits of a number.
    fn from_u64(value: u64) -> Self::Raw;
    /// Zero-extended.
    fn to_u64(value: Self::Raw) -> u64;
    /// Whether `a` is less than `b`, and whether they are equal, if both are zeros or normal numbers.
    fn compare(a: Self::Raw, b: Self::Raw) -> Option<(bool, bool)>;
    /// Whether any of these doubts is one.
    fn doubtful(doubts: impl IntoIterator<Item = Self::Raw>) -> bool;

    fn fast_add(a: Self::Raw, b: Self::Raw) -> Guess<Self::Raw>;
    fn fast_sub(a: Self::Raw, b: Self::Raw) -> Guess<Self::Raw>;
    fn fast_mul(a: Self::Raw, b: Self::Raw) -> Guess<Self::Raw>;
    fn fast_div(a: Self::Raw, b: Self::Raw) -> Guess<Self::Raw>;
    fn fast_sqrt(a: Self::Raw) -> Guess<Self::Raw>;
    fn fast_min(a: Self::Raw, b: Self::Raw) -> Guess<Self::Raw>;
    fn fast_max(a: Self::Raw, b: Self::Raw) -> Guess<Self::Raw>;
}

macro_rules! element {
    ($F:ty, $raw:ty, $float:ty, $add:ident, $sub:ident, $mul:ident, $div:ident, $sqrt:ident, $min:ident, $max:ident) => {
        impl Element for $F {
            type Raw = $raw;
            const BYTES: usize = size_of::<$raw>();

            #[inline(always)]
            fn get(v: V128, n: usize) -> $raw {
                let quadword = if n < Self::COUNT / 2 { v.low() } else { v.high() };
                (quadword >> (n as u32 * <$raw>::BITS % 64)) as $raw
            }
            #[inline(always)]
            fn put(v: V128, n: usize, value: $raw) -> V128 {
                let shift = n as u32 * <$raw>::BITS % 64;
                let place = |old: u64| old & !((<$raw>::MAX as u64) << shift) | (value as u64) << shift;
                let (low, high) = (v.low(), v.high());
                let halves = if n < Self::COUNT / 2 { [place(low), high] } else { [low, place(high)] };
                <u64 as Lane>::join(halves)
            }
            #[inline(always)]
            fn mask(on: bool) -> $raw {
                if on { <$raw>::MAX } else { 0 }
            }
            #[inline(always)]
            fn from_u64(value: u64) -> $raw {
                value as $raw
            }
            #[inline(always)]
            fn to_u64(value: $raw) -> u64 {
                value as u64
            }
            #[inline(always)]
            fn compare(a: $raw, b: $raw) -> Option<(bool, bool)> {
                if Self::doubtful([fast::$min(a, b).doubt]) {
                    return None;
                }
                let (a, b) = (<$float>::from_bits(a), <$float>::from_bits(b));
                Some((a < b, a == b))
            }
            #[inline(always)]
            fn doubtful(doubts: impl IntoIterator<Item = $raw>) -> bool {
                doubts.into_iter().fold(0, |all, doubt| all | doubt) >> (<$raw>::BITS - 1) != 0
            }

            #[inline(always)]
            fn fast_add(a: $raw, b: $raw) -> Guess<$raw> {
                fast::$add(a, b)
            }
            #[inline(always)]
            fn fast_sub(a: $raw, b: $raw) -> Guess<$raw> {
                fast::$sub(a, b)
            }
            #[inline(always)]
            fn fast_mul(a: $raw, b: $raw) -> Guess<$raw> {
                fast::$mul(a, b)
            }
            #[inline(always)]
            fn fast_div(a: $raw, b: $raw) -> Guess<$raw> {
                fast::$div(a, b)
            }
            #[inline(always)]
            fn fast_sqrt(a: $raw) -> Guess<$raw> {
                fast::$sqrt(a)
            }
            #[inline(always)]
            fn fast_min(a: $raw, b: $raw) -> Guess<$raw> {
                fast::$min(a, b)
            }
            #[inline(always)]
            fn fast_max(a: $raw, b: $raw) -> Guess<$raw> {
                fast::$max(a, b)
            }
        }
    };
}

element!(F32, u32, f32, add_f32, sub_f32, mul_f32, div_f32, sqrt_f32, min_f32, max_f32);
element!(F64, u64, f64, add_f64, sub_f64, mul_f64, div_f64, sqrt_f64, min_f64, max_f64);

/// Where the second source is.
pub(crate) trait Source {
    /// All of it.
    fn packed<P: Path, F: Form>(cpu: &mut Cpu, op: &Op) -> Result<F::Value, P::Stop>;
    /// Its lowest element; memory operands have any alignment.
    fn element<P: Path, E: Element>(cpu: &mut Cpu, op: &Op) -> Result<E::Raw, P::Stop>;
}

/// In a register.
pub(crate) struct Reg;
/// In memory.
pub(crate) struct Mem<A>(PhantomData<A>);
/// In either, as [`Op::aux`] says; for what need not be quick.
pub(crate) struct Any;

impl Source for Reg {
    #[inline(always)]
    fn packed<P: Path, F: Form>(cpu: &mut Cpu, op: &Op) -> Result<F::Value, P::Stop> {
        Ok(F::get(cpu, op.src))
    }
    #[inline(always)]
    fn element<P: Path, E: Element>(cpu: &mut Cpu, op: &Op) -> Result<E::Raw, P::Stop> {
        Ok(E::lowest(cpu, op.src))
    }
}

impl<A: Addressing> Source for Mem<A> {
    #[inline(always)]
    fn packed<P: Path, F: Form>(cpu: &mut Cpu, op: &Op) -> Result<F::Value, P::Stop> {
        operand::<P, F, A>(cpu, op)
    }
    #[inline(always)]
    fn element<P: Path, E: Element>(cpu: &mut Cpu, op: &Op) -> Result<E::Raw, P::Stop> {
        let linear = A::linear(cpu, op, 0, E::BYTES as u64, Use::Read)?;
        P::load(cpu, linear, op.seg)
    }
}

impl Source for Any {
    fn packed<P: Path, F: Form>(cpu: &mut Cpu, op: &Op) -> Result<F::Value, P::Stop> {
        if op.aux & REGISTER != 0 { Reg::packed::<P, F>(cpu, op) } else { Mem::<Legacy>::packed::<P, F>(cpu, op) }
    }
    fn element<P: Path, E: Element>(cpu: &mut Cpu, op: &Op) -> Result<E::Raw, P::Stop> {
        if op.aux & REGISTER != 0 { Reg::element::<P, E>(cpu, op) } else { Mem::<Legacy>::element::<P, E>(cpu, op) }
    }
}

/// The number of the first source.
#[inline(always)]
pub(crate) fn first(op: &Op) -> u8 {
    op.aux as u8
}

impl Cpu {
    /// Whether the host's arithmetic may be used.
    #[inline(always)]
    pub fn fast_mode(&self) -> FastMode {
        FastMode::from_mxcsr(self.vector.mxcsr)
    }

    /// The environment of one instruction.
    #[inline]
    pub fn sse_env(&self) -> Env {
        Env::from_mxcsr(self.vector.mxcsr)
    }

    /// Adds the flags of an instruction to MXCSR. If one is unmasked, the exception, and nothing else may change.
    #[inline]
    pub fn settle(&mut self, env: &Env) -> Result<(), Exception> {
        let outcome = env.sse_outcome();
        self.vector.mxcsr |= u32::from(outcome.flags.bits());
        if outcome.write {
            return Ok(());
        }
        Err(if self.control.cr4.contains(Cr4::OSXMMEXCPT) {
            Exception::SimdFloatingPoint
        } else {
            Exception::InvalidOpcode
        })
    }
}

/// Both lanes, with `f` of each element of those that form `F` has.
#[inline(always)]
pub(crate) fn each_element<F: Form, E: Element>(mut f: impl FnMut(usize, usize) -> E::Raw) -> V256 {
    let mut result = [V128::ZERO; 2];
    for (lane, value) in result.iter_mut().enumerate().take(F::BYTES as usize / 16) {
        for n in 0..E::COUNT {
            *value = E::put(*value, n, f(lane, n));
        }
    }
    result
}
