//! SSE and AVX: the vector registers and the instructions on them.

/// Vector state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VectorState {
    /// YMM0 to YMM15, lowest quadword first; XMM registers are the low halves.
    pub ymm: [[u64; 4]; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl VectorState {
    /// MXCSR after reset: all exceptions masked, round to nearest.
    pub const MXCSR_RESET: u32 = 0x1f80;

    pub fn reset() -> VectorState {
        VectorState { ymm: [[0; 4]; 16], mxcsr: Self::MXCSR_RESET }
    }
}
