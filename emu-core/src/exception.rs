//! What the architecture delivers to the guest: exceptions with exactly the data their delivery needs.
//!
//! Source: APM vol. 2, "Exceptions and Interrupts"; Intel SDM vol. 3, "Interrupt and Exception Handling".

use bitflags::bitflags;

use crate::addr::Gva;
use crate::regs::Dr6;

bitflags! {
    /// The error code of a page fault (APM vol. 2, "Page-Fault Error Code").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct PageFaultCode: u32 {
        /// The page was present: a protection violation.
        const P = 1 << 0;
        /// The access was a write.
        const W = 1 << 1;
        /// The access was made at CPL 3.
        const U = 1 << 2;
        /// A reserved bit was set in a table entry.
        const RSVD = 1 << 3;
        /// The access was an instruction fetch (NX or SMEP in force).
        const I = 1 << 4;
        /// Protection-key violation.
        const PK = 1 << 5;
        /// Shadow-stack access.
        const SS = 1 << 6;
        /// RMP violation (SEV-SNP).
        const RMP = 1 << 31;
    }
}

/// Error code of the segment-related exceptions: selector index, TI, IDT and EXT bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SelectorError(u16);

impl SelectorError {
    /// No selector: the fault was not about one.
    pub const NONE: SelectorError = SelectorError(0);

    /// About `selector` (its RPL does not appear in the code).
    pub const fn selector(selector: u16) -> SelectorError {
        SelectorError(selector & 0xfffc)
    }
    /// About the IDT entry of `vector`.
    pub const fn idt(vector: u8) -> SelectorError {
        SelectorError((vector as u16) << 3 | 2)
    }
    /// The same, with EXT set: raised while an external event was being delivered.
    pub const fn external(self) -> SelectorError {
        SelectorError(self.0 | 1)
    }
    /// The code with these bits, as a frame or an event injected by a hypervisor has it.
    pub const fn from_raw(code: u16) -> SelectorError {
        SelectorError(code)
    }
    /// The 16-bit code.
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// An architectural exception. Interrupts from outside and `INT n` are not exceptions and are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exception {
    /// #DE, 0: divide error.
    DivideError,
    /// #DB, 1: debug; DR6 receives these bits. `trap` tells whether the instruction has completed.
    Debug {
        /// Bits to set in DR6.
        dr6: Dr6,
    },
    /// #BP, 3: INT3.
    Breakpoint,
    /// #OF, 4: INTO.
    Overflow,
    /// #BR, 5: BOUND.
    BoundRange,
    /// #UD, 6: invalid opcode.
    InvalidOpcode,
    /// #NM, 7: device not available.
    DeviceNotAvailable,
    /// #DF, 8: double fault; error code 0.
    DoubleFault,
    /// #TS, 10: invalid TSS.
    InvalidTss(SelectorError),
    /// #NP, 11: segment not present.
    SegmentNotPresent(SelectorError),
    /// #SS, 12: stack fault.
    StackFault(SelectorError),
    /// #GP, 13: general protection.
    GeneralProtection(SelectorError),
    /// #PF, 14: page fault.
    PageFault {
        /// The address for CR2.
        gva: Gva,
        /// The error code.
        code: PageFaultCode,
    },
    /// #MF, 16: unmasked x87 exception pending.
    X87FloatingPoint,
    /// #AC, 17: alignment check; error code 0.
    AlignmentCheck,
    /// #MC, 18: machine check.
    MachineCheck,
    /// #XM, 19: unmasked SIMD floating-point exception.
    SimdFloatingPoint,
    /// #VC, 29: VMM communication; the error code is the exit code.
    VmmCommunication {
        /// SVM exit code that would have been taken.
        exit_code: u32,
    },
}

/// How exceptions combine into #DF (APM vol. 2, "#DF—Double-Fault Exception").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExceptionClass {
    /// Never makes a double fault.
    Benign,
    /// Makes one when raised while delivering another contributory exception or a page fault.
    Contributory,
    /// A page fault.
    PageFault,
}

impl Exception {
    /// #GP(0), the commonest refusal.
    pub const GP0: Exception = Exception::GeneralProtection(SelectorError::NONE);

    /// The vector, 0 to 31.
    pub const fn vector(self) -> u8 {
        match self {
            Exception::DivideError => 0,
            Exception::Debug { .. } => 1,
            Exception::Breakpoint => 3,
            Exception::Overflow => 4,
            Exception::BoundRange => 5,
            Exception::InvalidOpcode => 6,
            Exception::DeviceNotAvailable => 7,
            Exception::DoubleFault => 8,
            Exception::InvalidTss(_) => 10,
            Exception::SegmentNotPresent(_) => 11,
            Exception::StackFault(_) => 12,
            Exception::GeneralProtection(_) => 13,
            Exception::PageFault { .. } => 14,
            Exception::X87FloatingPoint => 16,
            Exception::AlignmentCheck => 17,
            Exception::MachineCheck => 18,
            Exception::SimdFloatingPoint => 19,
            Exception::VmmCommunication { .. } => 29,
        }
    }

    /// The error code pushed at delivery, if this exception has one.
    pub const fn error_code(self) -> Option<u32> {
        match self {
            Exception::DoubleFault | Exception::AlignmentCheck => Some(0),
            Exception::InvalidTss(e)
            | Exception::SegmentNotPresent(e)
            | Exception::StackFault(e)
            | Exception::GeneralProtection(e) => Some(e.raw() as u32),
            Exception::PageFault { code, .. } => Some(code.bits()),
            Exception::VmmCommunication { exit_code } => Some(exit_code),
            _ => None,
        }
    }

    /// How it combines with an exception raised during its own delivery.
    pub const fn class(self) -> ExceptionClass {
        match self {
            Exception::DivideError
            | Exception::InvalidTss(_)
            | Exception::SegmentNotPresent(_)
            | Exception::StackFault(_)
            | Exception::GeneralProtection(_)
            | Exception::VmmCommunication { .. } => ExceptionClass::Contributory,
            Exception::PageFault { .. } => ExceptionClass::PageFault,
            _ => ExceptionClass::Benign,
        }
    }
}
