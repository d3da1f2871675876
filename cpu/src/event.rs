//! What can be delivered through the IDT, and what holds it back.

use emu_core::{Exception, Gva};
use mmu::{Invpcid, PagingChange};

/// An event on its way to a handler of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An exception; RIP is what the handler will see.
    Exception(Exception),
    /// A maskable interrupt that the interrupt controller has handed over.
    Interrupt {
        /// Its vector.
        vector: u8,
    },
    /// A non-maskable interrupt.
    Nmi,
    /// INT n, INT3, INTO or INT1: RIP to return to is after the instruction, gates are checked against CPL.
    Software {
        /// The vector.
        vector: u8,
        /// RIP of the instruction itself, restored when its delivery faults.
        rip: u64,
        /// Which instruction.
        kind: SoftwareKind,
    },
}

/// The instructions that deliver an event by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftwareKind {
    /// INT n: gate DPL is checked.
    Int,
    /// INT3 and INTO: gate DPL is checked, never redirected in virtual-8086 mode.
    Breakpoint,
    /// INT1: as an exception, no DPL check.
    Icebp,
}

/// Interrupts are held back for one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum InterruptShadow {
    #[default]
    None,
    /// After STI: maskable interrupts.
    Sti,
    /// After MOV SS and POP SS: those, NMIs and debug traps.
    MovSs,
}

/// What a retired instruction asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// HLT
    Halt,
    /// VMCALL or VMMCALL
    Hypercall,
    /// VMGEXIT
    VmgExit,
    /// WRMSR of the TSC or IA32_TSC_ADJUST
    TscMoved,
    /// A write of paging registers over shadow tables
    Paging(PagingChange),
    /// INVLPG over shadow tables
    Invlpg(Gva),
    /// INVPCID over shadow tables
    Invpcid(Invpcid),
}

/// What waits for its moment between two instructions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    /// An NMI has arrived.
    pub nmi: bool,
    /// An NMI handler runs, up to its IRET.
    pub nmi_blocked: bool,
    /// The machine wants to know when a maskable interrupt can be taken.
    pub window: bool,
    /// What the instruction that has just retired asked for.
    pub asked: Option<Asked>,
    /// A task switch has happened and the new task faulted: RIP is its own.
    pub switched_task: bool,
    /// The instruction is traced by the TF it leaves, not by the one it found (SYSCALL).
    pub traced_by_new_flags: bool,
    /// RIP is on a repeated string instruction that has iterations behind it and iterations left.
    pub between_iterations: bool,
}
