//! How control leaves the processor: exits to the machine, and the internal reasons an instruction stops.

use emu_core::{Access, AccessKind, Exception, Gpa, Gva, PageFaultCode, Spa};
use mmu::{Invpcid, NestedPageFault, PagingChange};

use crate::vmsa::InvalidGuestState;

/// Why [`crate::Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The time granted is used up.
    TimeUp,
    /// HLT retired: nothing happens until an interrupt.
    Halt,
    /// The stage-2 tables refused an access. When the answer is "emulate a device", perform the
    /// [`MmioAccess`] and [`crate::Vcpu::complete`] it; when the tables were mended, just run again.
    NestedPageFault {
        /// What was refused.
        fault: NestedPageFault,
        /// What the instruction wanted to do there, if the fault was on its own operand and not on a table.
        access: Option<MmioAccess>,
    },
    /// Page-modification log-full event: empty the log and run again; the instruction starts from its first byte.
    ModificationLogFull,
    /// On a bare machine: an access to an address where no memory answers.
    Mmio {
        /// Where.
        spa: Spa,
        /// What.
        access: MmioAccess,
    },
    /// IN or OUT; [`crate::Vcpu::complete`] with what was read (anything, for a write).
    Io(IoAccess),
    /// RDMSR or WRMSR of a register the board answers for.
    Msr(MsrAccess),
    /// MOV from or to CR8: bits 7:4 of the local APIC's task priority, in whichever mode the APIC is.
    TaskPriority {
        /// `None` to read, else what is written (0 to 15).
        write: Option<u8>,
    },
    /// VMCALL or VMMCALL retired; the arguments are in the registers.
    Hypercall,
    /// VMGEXIT retired in a guest with encrypted state: what it wants is in the GHCB, or in its MSR ([`crate::Vcpu::ghcb`]).
    VmgExit,
    /// A write to the TSC or to IA32_TSC_ADJUST retired: [`crate::Vcpu::tsc_offset`] is another, and what waits for a
    /// value of the TSC waits for another time.
    TscMoved,
    /// Maskable interrupts can be taken now, as [`crate::Vcpu::request_interrupt_window`] asked.
    InterruptWindow,
    /// VMEXIT_INVALID: the guest was not entered, because its save area cannot be used.
    InvalidGuestState(InvalidGuestState),
    /// Triple fault.
    Shutdown,
    /// Under a hypervisor that shadows tables: an access that its tables refuse. [`crate::Vcpu::complete`] it, or mend the
    /// tables and run again.
    PageFault(PageFaultExit),
    /// Under such a hypervisor: paging registers were written. [`crate::Vcpu::run_over`] before running again.
    PagingWritten {
        /// How.
        change: PagingChange,
    },
    /// Under such a hypervisor: INVLPG retired.
    Invlpg {
        /// Of this address.
        gva: Gva,
    },
    /// Under such a hypervisor: INVPCID retired.
    Invpcid {
        /// Its operands.
        what: Invpcid,
    },
    /// Under such a hypervisor: the four PDPTEs are wanted; [`crate::Vcpu::complete`] with their 32 bytes.
    ReadPdptes {
        /// Where they lie.
        gpa: Gpa,
    },
}

/// One access to memory that a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioAccess {
    /// Where, when a nested walk gave a guest physical address; the same number as the system address otherwise.
    pub gpa: Gpa,
    /// 1 to 32 bytes.
    pub len_bytes: u8,
    /// Read, or write of these bytes (little-endian, the low `len_bytes` count).
    pub data: MmioData,
}

/// Direction and data of a device access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioData {
    /// Give back what the device says.
    Read,
    /// The device takes this.
    Write([u8; 32]),
}

impl MmioData {
    /// The kind of access, for a translation.
    pub const fn kind(self) -> AccessKind {
        match self {
            MmioData::Read => AccessKind::Read,
            MmioData::Write(_) => AccessKind::Write,
        }
    }
}

/// A page fault that a hypervisor intercepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFaultExit {
    /// Where (EXITINFO2, the exit qualification).
    pub gva: Gva,
    /// What for, and on whose authority.
    pub access: Access,
    /// The error code.
    pub code: PageFaultCode,
    /// What the instruction wanted there; `None` when it was only about to use the page, or fetches from it. Such a fault
    /// is completed by [`Completion::Done`] to say that the access itself will be answered.
    pub operand: Option<LinearOperand>,
}

/// An access at a linear address, for whoever makes it in place of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearOperand {
    /// 1 to 32 bytes, all of one page.
    pub len_bytes: u8,
    /// What is to be done; the low bytes count.
    pub data: LinearData,
}

/// Direction and data of an access at a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearData {
    /// Give back what is there.
    Read,
    /// Put this there.
    Write([u8; 32]),
    /// Put `new` there if `old` is there still, and give `old` back; otherwise do nothing and do not complete.
    Exchange {
        /// What the instruction has read.
        old: [u8; 32],
        /// What it makes of it.
        new: [u8; 32],
    },
}

/// One port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The port.
    pub port: u16,
    /// 1, 2 or 4.
    pub len_bytes: u8,
    /// `None` to read, else what is written.
    pub write: Option<u32>,
}

/// One access to a model-specific register that lies on the board (local APIC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrAccess {
    /// The register's number.
    pub msr: u32,
    /// `None` to read, else what is written.
    pub write: Option<u64>,
}

/// The machine's answer to an exit that asked for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Done; for reads, these bytes (little-endian).
    Done([u8; 32]),
    /// Refused: #GP(0). Only MSR accesses can be refused.
    Refused,
    /// The page fault is the guest's own, with this error code.
    PageFault(PageFaultCode),
}

impl Completion {
    /// Done, and this was read.
    pub fn value(value: u64) -> Completion {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        Completion::Done(bytes)
    }
}

/// Why an instruction stopped before it retired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// The guest gets an exception; RIP stays on the instruction.
    Exception(Exception),
    /// Control goes to the machine; the instruction restarts afterwards.
    Exit(Box<Exit>),
    /// A string instruction used up the time granted with iterations left: RIP stays on it, registers show the progress.
    Paused,
}

impl From<Exception> for Trap {
    fn from(exception: Exception) -> Trap {
        Trap::Exception(exception)
    }
}

impl From<Exit> for Trap {
    fn from(exit: Exit) -> Trap {
        Trap::Exit(Box::new(exit))
    }
}
