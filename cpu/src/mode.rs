//! The processor's operating mode, and the part of it that decoded code depends on.

use emu_core::regs::{Cr0, Cr4, Efer, Rflags, Xcr0};

use crate::segment::{SegReg, Segments};

/// Operating modes (APM vol. 2, "Operating Modes").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// CR0.PE clear.
    Real,
    /// RFLAGS.VM set.
    Virtual8086,
    /// Legacy protected mode, or compatibility mode when EFER.LMA is set.
    Protected {
        /// Long mode is active.
        compatibility: bool,
    },
    /// Long mode with CS.L.
    Long64,
}

impl Mode {
    /// The mode these registers select.
    pub fn of(cr0: Cr0, efer: Efer, flags: Rflags, segments: &Segments) -> Mode {
        if !cr0.contains(Cr0::PE) {
            Mode::Real
        } else if efer.contains(Efer::LMA) {
            if segments.get(SegReg::Cs).attributes.l() { Mode::Long64 } else { Mode::Protected { compatibility: true } }
        } else if flags.contains(Rflags::VM) {
            Mode::Virtual8086
        } else {
            Mode::Protected { compatibility: false }
        }
    }
    /// Whether selectors are paragraph numbers instead of descriptor indices.
    pub const fn is_real_addressing(self) -> bool {
        matches!(self, Mode::Real | Mode::Virtual8086)
    }
}

/// Default operand and address size of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeSize {
    /// 16-bit.
    Bits16,
    /// 32-bit.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// Everything outside the bytes that the decoded form of code depends on; part of a block's identity.
///
/// Zero is the key of no mode, so that a dead block can be given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ModeKey(u32);

impl ModeKey {
    pub const DEAD: ModeKey = ModeKey(0);
    const LIVE: u32 = 1;
    const SIZE_SHIFT: u32 = 1;
    const STACK32: u32 = 1 << 3;
    const TS: u32 = 1 << 4;
    const EM: u32 = 1 << 5;
    const MP: u32 = 1 << 6;
    const OSFXSR: u32 = 1 << 7;
    const AVX: u32 = 1 << 8;
    const OSXSAVE: u32 = 1 << 9;
    const PROTECTED: u32 = 1 << 10;
    const USER: u32 = 1 << 11;
    const PRECISE: u32 = 1 << 12;

    pub fn of(mode: Mode, cr0: Cr0, cr4: Cr4, xcr0: Xcr0, segments: &Segments) -> ModeKey {
        let size = match mode {
            Mode::Long64 => CodeSize::Bits64,
            Mode::Real | Mode::Virtual8086 => CodeSize::Bits16,
            Mode::Protected { .. } if segments.get(SegReg::Cs).attributes.db() => CodeSize::Bits32,
            Mode::Protected { .. } => CodeSize::Bits16,
        };
        // In real mode too the stack width follows SS.B: "unreal" segments keep it.
        let stack32 = segments.get(SegReg::Ss).attributes.db() && mode != Mode::Virtual8086;
        let avx = cr4.contains(Cr4::OSXSAVE) && xcr0.contains(Xcr0::SSE | Xcr0::AVX);
        let mut key = Self::LIVE | (size as u32) << Self::SIZE_SHIFT;
        for (bit, on) in [
            (Self::STACK32, stack32),
            (Self::TS, cr0.contains(Cr0::TS)),
            (Self::EM, cr0.contains(Cr0::EM)),
            (Self::MP, cr0.contains(Cr0::MP)),
            (Self::OSFXSR, cr4.contains(Cr4::OSFXSR)),
            (Self::OSXSAVE, cr4.contains(Cr4::OSXSAVE)),
            (Self::AVX, avx),
            (Self::PROTECTED, !mode.is_real_addressing()),
            (Self::USER, segments.get(SegReg::Ss).attributes.dpl() == 3 || mode == Mode::Virtual8086),
        ] {
            if on {
                key |= bit;
            }
        }
        ModeKey(key)
    }

    /// The same mode, decoded so that it can stop after any instruction: no fusion, no flag left out.
    pub const fn precise(self) -> ModeKey {
        ModeKey(self.0 | Self::PRECISE)
    }
    pub const fn is_precise(self) -> bool {
        self.0 & Self::PRECISE != 0
    }
    pub const fn raw(self) -> u32 {
        self.0
    }
    pub const fn code_size(self) -> CodeSize {
        match self.0 >> Self::SIZE_SHIFT & 3 {
            0 => CodeSize::Bits16,
            1 => CodeSize::Bits32,
            _ => CodeSize::Bits64,
        }
    }
    pub const fn is_64(self) -> bool {
        matches!(self.code_size(), CodeSize::Bits64)
    }
    /// Width of the stack pointer in bytes.
    pub const fn stack_bytes(self) -> u8 {
        if self.is_64() {
            8
        } else if self.0 & Self::STACK32 != 0 {
            4
        } else {
            2
        }
    }
    /// Protected, compatibility or 64-bit mode: not real and not virtual-8086 mode.
    pub const fn is_protected(self) -> bool {
        self.0 & Self::PROTECTED != 0
    }
    /// CR0.TS.
    pub const fn ts(self) -> bool {
        self.0 & Self::TS != 0
    }
    /// CR0.EM.
    pub const fn em(self) -> bool {
        self.0 & Self::EM != 0
    }
    /// CR0.MP.
    pub const fn mp(self) -> bool {
        self.0 & Self::MP != 0
    }
    /// CR4.OSFXSR.
    pub const fn osfxsr(self) -> bool {
        self.0 & Self::OSFXSR != 0
    }
    /// CR4.OSXSAVE.
    pub const fn osxsave(self) -> bool {
        self.0 & Self::OSXSAVE != 0
    }
    /// VEX-encoded vector instructions are enabled by CR4.OSXSAVE and XCR0.
    pub const fn avx(self) -> bool {
        self.0 & Self::AVX != 0
    }
}
