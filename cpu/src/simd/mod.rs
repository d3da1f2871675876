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

use crate::vector::{V128, V256};

/// Vector state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VectorState {
    /// YMM0 to YMM15; XMM registers are the lower lanes.
    pub ymm: [V256; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl VectorState {
    /// MXCSR after reset: all exceptions masked, round to nearest.
    pub const MXCSR_RESET: u32 = 0x1f80;

    pub fn reset() -> VectorState {
        VectorState { ymm: [[V128::ZERO; 2]; 16], mxcsr: Self::MXCSR_RESET }
    }

    /// The registers as quadwords, lowest first.
    pub fn to_quadwords(&self) -> [[u64; 4]; 16] {
        self.ymm.map(|[low, high]| [low.low(), low.high(), high.low(), high.high()])
    }

    /// The state whose registers have these quadwords.
    pub fn from_quadwords(ymm: &[[u64; 4]; 16], mxcsr: u32) -> VectorState {
        let lane = |low: u64, high: u64| V128::from_u128(u128::from(high) << 64 | u128::from(low));
        VectorState { ymm: ymm.map(|[a, b, c, d]| [lane(a, b), lane(c, d)]), mxcsr }
    }

    /// XMM register `n`.
    #[inline(always)]
    pub fn xmm(&self, n: u8) -> V128 {
        self.ymm[n as usize % 16][0]
    }

    /// Replaces XMM register `n`; the upper half of the YMM register stays, as legacy SSE has it.
    #[inline(always)]
    pub fn set_xmm(&mut self, n: u8, value: V128) {
        self.ymm[n as usize % 16][0] = value;
    }

    /// Replaces XMM register `n` and clears the upper half of the YMM register, as VEX.128 has it.
    #[inline(always)]
    pub fn set_xmm_zero_upper(&mut self, n: u8, value: V128) {
        self.ymm[n as usize % 16] = [value, V128::ZERO];
    }

    /// YMM register `n`.
    #[inline(always)]
    pub fn ymm(&self, n: u8) -> V256 {
        self.ymm[n as usize % 16]
    }

    /// Replaces YMM register `n`.
    #[inline(always)]
    pub fn set_ymm(&mut self, n: u8, value: V256) {
        self.ymm[n as usize % 16] = value;
    }
}
