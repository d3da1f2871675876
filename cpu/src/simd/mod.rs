//! SSE and AVX: the vector registers and the instructions on them that do not calculate in floating point (APM vol. 4,
//! "128-Bit and 256-Bit Media Instructions"; APM vol. 5, "64-Bit Media Instruction Reference").
//!
//! [`VectorState`] is the register file. Values are computed by [`crate::vector`]; here are operand fetch, alignment,
//! the treatment of the upper half, flags, and the restart rules of masked accesses.
//!
//! What floating point computes, and MXCSR, is elsewhere; the file is shared.

pub(crate) mod element;
pub(crate) mod form;
pub(crate) mod masked;
pub(crate) mod mmx;
pub(crate) mod moves;
pub(crate) mod ops;
pub(crate) mod packed;
pub(crate) mod string;

use crate::vector::{Lane, V128, V256};

/// Vector state. Registers are kept in three parts: what was written in parts and is read whole at once would wait for
/// the host's store buffer, so everything is written and read by these parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VectorState {
    /// Bits 63:0.
    low: [u64; 16],
    /// Bits 127:64.
    high: [u64; 16],
    /// Bits 255:128.
    upper: [V128; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl VectorState {
    /// MXCSR after reset: all exceptions masked, round to nearest.
    pub const MXCSR_RESET: u32 = 0x1f80;

    pub fn reset() -> VectorState {
        VectorState { low: [0; 16], high: [0; 16], upper: [V128::ZERO; 16], mxcsr: Self::MXCSR_RESET }
    }

    /// The registers as quadwords, lowest first.
    pub fn to_quadwords(&self) -> [[u64; 4]; 16] {
        core::array::from_fn(|n| [self.low[n], self.high[n], self.upper[n].low(), self.upper[n].high()])
    }

    /// The state whose registers have these quadwords.
    pub fn from_quadwords(ymm: &[[u64; 4]; 16], mxcsr: u32) -> VectorState {
        VectorState {
            low: ymm.map(|[low, ..]| low),
            high: ymm.map(|[_, high, ..]| high),
            upper: ymm.map(|[.., low, high]| <u64 as Lane>::join([low, high])),
            mxcsr,
        }
    }

    /// Bits 63:0 of XMM register `n`.
    #[inline(always)]
    pub fn low(&self, n: u8) -> u64 {
        self.low[n as usize % 16]
    }

    /// Replaces bits 63:0 of XMM register `n` and nothing else.
    #[inline(always)]
    pub fn set_low(&mut self, n: u8, value: u64) {
        self.low[n as usize % 16] = value;
    }

    /// XMM register `n`.
    #[inline(always)]
    pub fn xmm(&self, n: u8) -> V128 {
        <u64 as Lane>::join([self.low[n as usize % 16], self.high[n as usize % 16]])
    }

    /// Replaces XMM register `n`; the upper half of the YMM register stays, as legacy SSE has it.
    #[inline(always)]
    pub fn set_xmm(&mut self, n: u8, value: V128) {
        self.low[n as usize % 16] = value.low();
        self.high[n as usize % 16] = value.high();
    }

    /// Replaces XMM register `n` and clears the upper half of the YMM register, as VEX.128 has it.
    #[inline(always)]
    pub fn set_xmm_zero_upper(&mut self, n: u8, value: V128) {
        self.set_xmm(n, value);
        self.set_upper(n, V128::ZERO);
    }

    /// YMM register `n`.
    #[inline(always)]
    pub fn ymm(&self, n: u8) -> V256 {
        [self.xmm(n), self.upper[n as usize % 16]]
    }

    /// Replaces YMM register `n`.
    #[inline(always)]
    pub fn set_ymm(&mut self, n: u8, value: V256) {
        let [low, high] = value;
        self.set_xmm(n, low);
        self.set_upper(n, high);
    }

    /// Replaces the upper half of YMM register `n`.
    #[inline(always)]
    pub fn set_upper(&mut self, n: u8, value: V128) {
        self.upper[n as usize % 16] = value;
    }
}
