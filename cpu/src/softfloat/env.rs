//! The control and status half of MXCSR and of the x87 control and status words.
//!
//! Models Intel SDM vol. 1, 8.1.3 "x87 FPU Status Word", 8.1.5 "x87 FPU Control Word", 10.2.3 "MXCSR Control and
//! Status Register" and the response rules of 4.9 and 11.5 as far as they concern one operation. [`Env`] is the door:
//! build one from the guest's register, run the lanes of one instruction with it, ask [`Env::sse_outcome`] or
//! [`Env::x87_outcome`] what the instruction leaves behind.

bitflags::bitflags! {
    /// Exception flags, at the bit positions of MXCSR and of the x87 status word; as a mask set, at MXCSR's bits
    /// shifted right by seven or the x87 control word's own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Flags: u16 {
        /// Invalid operation.
        const IE = 1 << 0;
        /// Denormal operand.
        const DE = 1 << 1;
        /// Division by zero.
        const ZE = 1 << 2;
        /// Overflow.
        const OE = 1 << 3;
        /// Underflow.
        const UE = 1 << 4;
        /// Precision: the result was inexact.
        const PE = 1 << 5;
        /// x87 condition code C1: the last rounding went away from zero. SSE callers drop it.
        const C1 = 1 << 9;
    }
}

impl Flags {
    /// The six exceptions without C1.
    pub const EXCEPTIONS: Self = Self::from_bits_truncate(0x3f);
    /// The exceptions found on the operands, before anything is computed.
    pub const PRE_COMPUTATION: Self = Self::IE.union(Self::DE).union(Self::ZE);
}

/// Rounding control, in the encoding of the RC fields and of the immediates of ROUNDxx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest = 0,
    /// Toward minus infinity.
    Down = 1,
    /// Toward plus infinity.
    Up = 2,
    /// Toward zero.
    Zero = 3,
}

impl Rounding {
    /// Decodes a two-bit RC field; higher bits are ignored.
    #[inline]
    pub const fn from_rc(rc: u8) -> Self {
        match rc & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// Precision control of the x87 control word: significand bits of FADD, FSUB, FMUL, FDIV and FSQRT results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 24 bits.
    Single = 24,
    /// 53 bits.
    Double = 53,
    /// 64 bits.
    Extended = 64,
}

impl Precision {
    /// Decodes a two-bit PC field. The reserved value 1 is taken as 64 bits.
    #[inline]
    pub const fn from_pc(pc: u8) -> Self {
        match pc & 3 {
            0 => Self::Single,
            2 => Self::Double,
            _ => Self::Extended,
        }
    }
}

/// What MXCSR does to denormals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denormals {
    /// DAZ: denormal operands are zeros and raise no DE.
    pub operands_are_zero: bool,
    /// FTZ: tiny results become zeros, while underflow is masked.
    pub flush_results: bool,
}

impl Denormals {
    /// IEEE behaviour, and the only one of x87.
    pub const KEEP: Self = Self { operands_are_zero: false, flush_results: false };
}

/// What an instruction leaves behind once all its lanes are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What to OR into MXCSR, or into the x87 status word (where C1 is to be replaced rather than ORed).
    pub flags: Flags,
    /// The members of `flags` that are unmasked; if not empty, #XM for SSE, or ES and a pending #MF for x87.
    pub unmasked: Flags,
    /// Whether the destination is written (and, for x87, the stack popped).
    pub write: bool,
}

/// Rounding, masks and sticky flags under which operations run. One `Env` serves all lanes of one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Env {
    /// Rounding control.
    pub rounding: Rounding,
    /// x87 precision control; has no effect on formats other than the 80-bit one.
    pub precision: Precision,
    /// DAZ and FTZ; have no effect on the 80-bit format.
    pub denormals: Denormals,
    /// Masked exceptions. Operations consult OE and UE, as the other masks change no value.
    pub masks: Flags,
    /// Flags raised since the construction.
    pub flags: Flags,
}

impl Env {
    /// Round to nearest, everything masked, no flag set: the reset state of MXCSR, and of x87 after FNINIT.
    pub const DEFAULT: Self = Self {
        rounding: Rounding::Nearest,
        precision: Precision::Extended,
        denormals: Denormals::KEEP,
        masks: Flags::EXCEPTIONS,
        flags: Flags::empty(),
    };

    /// The environment that MXCSR describes, with no flag set yet.
    #[inline]
    pub const fn from_mxcsr(mxcsr: u32) -> Self {
        Self {
            rounding: Rounding::from_rc((mxcsr >> 13) as u8),
            precision: Precision::Extended,
            denormals: Denormals { operands_are_zero: mxcsr & (1 << 6) != 0, flush_results: mxcsr & (1 << 15) != 0 },
            masks: Flags::from_bits_truncate((mxcsr >> 7) as u16 & 0x3f),
            flags: Flags::empty(),
        }
    }

    /// The environment that the x87 control word describes, with no flag set yet.
    #[inline]
    pub const fn from_fcw(fcw: u16) -> Self {
        Self {
            rounding: Rounding::from_rc((fcw >> 10) as u8),
            precision: Precision::from_pc((fcw >> 8) as u8),
            denormals: Denormals::KEEP,
            masks: Flags::from_bits_truncate(fcw & 0x3f),
            flags: Flags::empty(),
        }
    }

    /// Sets flags.
    #[inline]
    pub fn raise(&mut self, flags: Flags) {
        self.flags = self.flags.union(flags);
    }

    /// Whether one exception is masked.
    #[inline]
    pub const fn masked(&self, flag: Flags) -> bool {
        self.masks.contains(flag)
    }

    /// What an SSE or AVX instruction leaves behind: an unmasked exception suppresses the destination, and one found
    /// before the computation, in any lane, also hides those found after it (SDM vol. 1, 11.5.1).
    #[inline]
    pub fn sse_outcome(&self) -> Outcome {
        let raised = self.flags & Flags::EXCEPTIONS;
        let unmasked = raised - self.masks;
        if unmasked.is_empty() {
            return Outcome { flags: raised, unmasked, write: true };
        }
        let pre = unmasked.intersects(Flags::PRE_COMPUTATION);
        let flags = if pre { raised & Flags::PRE_COMPUTATION } else { raised };
        Outcome { flags, unmasked: flags - self.masks, write: false }
    }

    /// What an x87 instruction leaves behind: an unmasked exception found before the computation suppresses the
    /// destination, one found after it does so only for O and U and only when the destination is memory (SDM vol. 1,
    /// 8.5.4 and 8.5.5). An unmasked D does not keep a load from pushing, which processors do although 8.5.2 reads
    /// otherwise.
    #[inline]
    pub fn x87_outcome(&self, destination: Destination) -> Outcome {
        let raised = self.flags;
        let unmasked = (raised & Flags::EXCEPTIONS) - self.masks;
        if unmasked.is_empty() {
            return Outcome { flags: raised, unmasked, write: true };
        }
        if unmasked.intersects(Flags::PRE_COMPUTATION) {
            let flags = raised & Flags::PRE_COMPUTATION;
            let unmasked = flags - self.masks;
            let write = destination == Destination::Push && unmasked == Flags::DE;
            return Outcome { flags, unmasked, write };
        }
        if destination == Destination::Memory && unmasked.intersects(Flags::OE | Flags::UE) {
            // Nothing is rounded to the destination, so precision and C1 do not show.
            let flags = raised - Flags::PE - Flags::C1;
            return Outcome { flags, unmasked: flags & (Flags::EXCEPTIONS - self.masks), write: false };
        }
        Outcome { flags: raised, unmasked, write: true }
    }
}

/// Where an x87 result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A stack register.
    Register,
    /// A register pushed by FLD m32 or FLD m64.
    Push,
    /// Memory: FST, FIST, FBSTP and their popping forms.
    Memory,
}
