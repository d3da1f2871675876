//! Control, debug and flag registers as the manuals lay them out.
//!
//! Source: AMD APM vol. 2, "System-Control Registers"; Intel SDM vol. 3, "Control Registers". Which bits a given
//! processor reserves is the CPU model's business, not the types'.

use bitfield_struct::bitfield;
use bitflags::bitflags;

bitflags! {
    /// RFLAGS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always 1.
        const FIXED = 1 << 1;
        /// Parity of the low result byte.
        const PF = 1 << 2;
        /// Carry out of bit 3.
        const AF = 1 << 4;
        /// Result is zero.
        const ZF = 1 << 6;
        /// Sign of the result.
        const SF = 1 << 7;
        /// Trap after each instruction.
        const TF = 1 << 8;
        /// Maskable interrupts enabled.
        const IF = 1 << 9;
        /// String instructions count down.
        const DF = 1 << 10;
        /// Signed overflow.
        const OF = 1 << 11;
        /// I/O privilege level, low bit.
        const IOPL0 = 1 << 12;
        /// I/O privilege level, high bit.
        const IOPL1 = 1 << 13;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: suppress instruction breakpoints for one instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, and SMAP override.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID is available.
        const ID = 1 << 21;
    }
}

impl Rflags {
    /// The six flags arithmetic defines.
    pub const STATUS: Rflags =
        Rflags::CF.union(Rflags::PF).union(Rflags::AF).union(Rflags::ZF).union(Rflags::SF).union(Rflags::OF);

    /// I/O privilege level, 0 to 3.
    pub const fn iopl(self) -> u8 {
        ((self.bits() >> 12) & 3) as u8
    }
}

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Cr0: u64 {
        /// Protected mode enable.
        const PE = 1 << 0;
        /// Monitor coprocessor: WAIT honours TS.
        const MP = 1 << 1;
        /// Emulation: x87 raises #NM, SSE raises #UD.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type, always 1.
        const ET = 1 << 4;
        /// Numeric error: report x87 errors as #MF.
        const NE = 1 << 5;
        /// Write protect: supervisor writes honour R/W.
        const WP = 1 << 16;
        /// Alignment mask: RFLAGS.AC is effective.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags! {
    /// CR4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Cr4: u64 {
        /// Virtual-8086 extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// Time-stamp disable: RDTSC is privileged.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// Page-size extensions.
        const PSE = 1 << 4;
        /// Physical-address extension.
        const PAE = 1 << 5;
        /// Machine-check enable.
        const MCE = 1 << 6;
        /// Global-page enable.
        const PGE = 1 << 7;
        /// RDPMC for all.
        const PCE = 1 << 8;
        /// FXSAVE/FXRSTOR and SSE enabled by the system.
        const OSFXSR = 1 << 9;
        /// Unmasked SIMD exceptions are delivered as #XM.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// 57-bit linear addresses.
        const LA57 = 1 << 12;
        /// VMX enable.
        const VMXE = 1 << 13;
        /// FSGSBASE instructions.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and extended states enabled by the system.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 24;
    }
}

bitflags! {
    /// EFER, MSR 0xC000_0080.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Efer: u64 {
        /// SYSCALL/SYSRET enable.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
        /// SVM enable.
        const SVME = 1 << 12;
        /// Long-mode segment limits (AMD).
        const LMSLE = 1 << 13;
        /// Fast FXSAVE/FXRSTOR (AMD).
        const FFXSR = 1 << 14;
        /// Translation cache extension (AMD).
        const TCE = 1 << 15;
        /// Automatic IBRS enable (AMD).
        const AIBRSE = 1 << 21;
    }
}

bitflags! {
    /// XCR0, and the requested-feature bitmaps of the XSAVE family.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Xcr0: u64 {
        /// x87 state; always 1.
        const X87 = 1 << 0;
        /// XMM registers and MXCSR.
        const SSE = 1 << 1;
        /// Upper halves of YMM registers.
        const AVX = 1 << 2;
        /// PKRU.
        const PKRU = 1 << 9;
    }
}

bitflags! {
    /// DR6, debug status. Bits that are fixed to 1 are in [`Dr6::FIXED`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Dr6: u64 {
        /// Breakpoint 0 matched.
        const B0 = 1 << 0;
        /// Breakpoint 1 matched.
        const B1 = 1 << 1;
        /// Breakpoint 2 matched.
        const B2 = 1 << 2;
        /// Breakpoint 3 matched.
        const B3 = 1 << 3;
        /// Debug register accessed while DR7.GD.
        const BD = 1 << 13;
        /// Single step.
        const BS = 1 << 14;
        /// Task switch.
        const BT = 1 << 15;
        /// Bits that read as 1.
        const FIXED = 0xffff_0ff0;
    }
}

/// What a hardware breakpoint matches (DR7.R/Wn).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakpointKind {
    /// Instruction execution.
    Execute,
    /// Data writes.
    Write,
    /// I/O reads and writes (CR4.DE).
    Io,
    /// Data reads and writes.
    ReadWrite,
}

/// DR7, debug control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dr7(pub u64);

impl Dr7 {
    /// The reset value: bit 10 reads as 1.
    pub const RESET: Dr7 = Dr7(0x400);
    /// General detect enable: #DB on access to a debug register.
    pub const GD: u64 = 1 << 13;

    /// Whether breakpoint `n` (0 to 3) is enabled, locally or globally.
    pub const fn enabled(self, n: usize) -> bool {
        self.0 >> (2 * n) & 3 != 0
    }
    /// Whether any breakpoint is enabled.
    pub const fn any_enabled(self) -> bool {
        self.0 & 0xff != 0
    }
    /// What breakpoint `n` matches.
    pub const fn kind(self, n: usize) -> BreakpointKind {
        match self.0 >> (16 + 4 * n) & 3 {
            0 => BreakpointKind::Execute,
            1 => BreakpointKind::Write,
            2 => BreakpointKind::Io,
            _ => BreakpointKind::ReadWrite,
        }
    }
    /// Length of breakpoint `n` in bytes: 1, 2, 4 or 8.
    pub const fn len_bytes(self, n: usize) -> u64 {
        match self.0 >> (18 + 4 * n) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        }
    }
}

/// CR3 as long mode and 4-level or 5-level paging read it.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cr3 {
    /// PCID while CR4.PCIDE, else PWT and PCD in bits 3 and 4.
    #[bits(12)]
    pub pcid: u16,
    /// Frame of the root table.
    #[bits(40)]
    pub root_frame: u64,
    #[bits(11)]
    __: u16,
    /// In a MOV to CR3 with CR4.PCIDE: keep the TLB entries of the new PCID. Reads as 0.
    pub no_flush: bool,
}
