//! What an instruction sees and leaves in user mode: general registers, flags, vectors, MXCSR and the x87 file.
//!
//! Source: APM vol. 1, "General-Purpose Programming", "x87 Floating-Point Programming"; vol. 2, "FXSAVE and FXRSTOR
//! Instructions" for the form of the x87 registers.
//!
//! Left out on purpose: segment registers and bases (flat, base 0), the x87 instruction and data pointers and FOP
//! (zero at the start of each case and not compared), opmask and ZMM state (not in the modelled set).

/// RFLAGS bits that a case may choose: the status flags, DF, AC and ID.
pub const RFLAGS_FREE: u64 = 0x0024_0cd5;
/// RFLAGS bits that are always as a user-mode program has them: bit 1 and IF.
pub const RFLAGS_FIXED: u64 = 0x202;

/// RFLAGS.CF.
pub const CF: u64 = 1 << 0;
/// RFLAGS.PF.
pub const PF: u64 = 1 << 2;
/// RFLAGS.AF.
pub const AF: u64 = 1 << 4;
/// RFLAGS.ZF.
pub const ZF: u64 = 1 << 6;
/// RFLAGS.SF.
pub const SF: u64 = 1 << 7;
/// RFLAGS.TF; never set in a case, but an instruction may load it.
pub const TF: u64 = 1 << 8;
/// RFLAGS.DF.
pub const DF: u64 = 1 << 10;
/// RFLAGS.OF.
pub const OF: u64 = 1 << 11;
/// RFLAGS.AC.
pub const AC: u64 = 1 << 18;

/// Number of RAX in [`CpuState::gpr`]; the others follow in the order of their encodings.
pub const RAX: usize = 0;
/// Number of RCX.
pub const RCX: usize = 1;
/// Number of RDX.
pub const RDX: usize = 2;
/// Number of RBX.
pub const RBX: usize = 3;
/// Number of RSP.
pub const RSP: usize = 4;
/// Number of RBP.
pub const RBP: usize = 5;
/// Number of RSI.
pub const RSI: usize = 6;
/// Number of RDI.
pub const RDI: usize = 7;

/// The x87 registers as FXSAVE64 writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct X87State {
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included.
    pub fsw: u16,
    /// Abridged tag word: bit `n` is set when physical register `n` is not empty.
    pub ftw: u8,
    /// ST(0) to ST(7), relative to TOP, least significant byte first. MMX register `n` is physical register `n`.
    pub st: [[u8; 10]; 8],
}

impl Default for X87State {
    /// As FNINIT leaves it, with zero contents.
    fn default() -> Self {
        X87State { fcw: 0x37f, fsw: 0, ftw: 0, st: [[0; 10]; 8] }
    }
}

/// The register state before or after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CpuState {
    /// General registers in the order of their encodings: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RFLAGS: [`RFLAGS_FIXED`] and any of [`RFLAGS_FREE`].
    pub rflags: u64,
    /// YMM0 to YMM15, least significant quadword first.
    pub vec: [[u64; 4]; 16],
    /// SIMD control and status; bits 16 to 31 must be zero.
    pub mxcsr: u32,
    /// The x87 (and MMX) registers.
    pub x87: X87State,
}

impl Default for CpuState {
    /// Zero registers, default control words.
    fn default() -> Self {
        CpuState { gpr: [0; 16], rflags: RFLAGS_FIXED, vec: [[0; 4]; 16], mxcsr: 0x1f80, x87: X87State::default() }
    }
}

impl CpuState {
    /// The state with bits that no case may choose put back to what user mode has.
    pub fn normalised(mut self) -> Self {
        self.rflags = self.rflags & RFLAGS_FREE | RFLAGS_FIXED;
        self.mxcsr &= 0xffff;
        self
    }
}
