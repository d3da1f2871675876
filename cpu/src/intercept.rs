//! What a hypervisor without nested paging intercepts: page faults, and whatever changes or flushes the guest's paging.
//!
//! Such a hypervisor lets the processor walk tables of its own ([`crate::Vcpu::run_over`] gives the registers), so that a
//! page fault says nothing about the guest's tables until it has looked at them. In hardware terms these are the exception
//! intercept of #PF, the CR and EFER write traps of AMD (the write has happened; nothing was executed since), the
//! intercepts of INVLPG and INVPCID (likewise here), and the loading of PDPTEs, which lie at a guest physical address that
//! the processor cannot find.
//!
//! A page fault leaves with what the instruction wanted there. Its answer is one of three: nothing (the tables were mended:
//! the instruction starts again), [`Completion::Done`] (the access was made, by a device or by an emulated write), or
//! [`Completion::PageFault`] (it is the guest's own).
//!
//! Left out: a hardware task switch that changes CR3 loads the new task's segments through the old task's tables, which
//! is the same wherever both map the descriptor tables alike.

use emu_core::memory::Scalar;
use emu_core::{Access, AccessKind, Exception, Gpa, Gva, PageFaultCode};
use mmu::{PagingChange, PagingState};

use crate::cpu::Cpu;
use crate::event::Asked;
use crate::exit::{Completion, Exit, LinearData, LinearOperand, PageFaultExit, Trap};
use crate::latch::Question;
use crate::vcpu::Vcpu;

/// Whose tables the processor walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Tables {
    /// The guest's, over nested tables or none.
    #[default]
    Guest,
    /// A hypervisor's, which shadow the guest's.
    Shadow,
}

/// An operand of the instruction that the tables refuse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub gva: Gva,
    pub access: Access,
    pub code: PageFaultCode,
}

impl Refused {
    fn exit(self, operand: Option<LinearOperand>) -> Trap {
        let Refused { gva, access, code } = self;
        Exit::PageFault(PageFaultExit { gva, access, code, operand }).into()
    }

    fn fault(self, code: PageFaultCode) -> Trap {
        Exception::PageFault { gva: self.gva, code }.into()
    }
}

impl Vcpu {
    /// Lets a hypervisor shadow the guest's tables from now on: the processor intercepts what it must for that. The first
    /// thing it does is to leave with [`Exit::PagingWritten`].
    pub fn intercept_paging(&mut self) {
        let cpu = &mut self.engine.cpu;
        cpu.tables = Tables::Shadow;
        cpu.update_paging(PagingChange::Reset);
    }

    /// The guest's own paging registers.
    pub fn guest_paging(&self) -> PagingState {
        self.engine.cpu.guest_paging()
    }

    /// The registers to walk with in place of the guest's.
    pub fn run_over(&mut self, state: PagingState, change: PagingChange) {
        self.engine.cpu.mmu.set_paging(state, change);
    }
}

impl Cpu {
    /// Whether a hypervisor shadows the guest's tables.
    #[inline]
    pub fn is_shadowed(&self) -> bool {
        self.tables == Tables::Shadow
    }

    /// Remembers that the guest's paging registers have changed; the strongest change of an instruction counts.
    pub fn note_paging_change(&mut self, change: PagingChange) {
        let strength = |change: PagingChange| match change {
            PagingChange::ProtectionKeys | PagingChange::WorldSwitch => 0,
            PagingChange::MovCr3NoFlush => 1,
            PagingChange::MovCr3 => 2,
            PagingChange::WriteEfer => 3,
            PagingChange::MovCr0 => 4,
            PagingChange::MovCr4 => 5,
            PagingChange::Reset => 6,
        };
        let noted = match self.pending.asked {
            Some(Asked::Paging(other)) if strength(other) > strength(change) => other,
            _ => change,
        };
        self.pending.asked = Some(Asked::Paging(noted));
    }

    /// Asks about a refused operand before anything is done there. `Ok`: the access can be made, by asking again with data.
    pub fn settle_refused(&mut self, refused: Refused) -> Result<(), Trap> {
        let write = refused.access.kind == AccessKind::Write;
        match self.latch.ask(Question::Linear { address: refused.gva.raw(), len_bytes: 0, write }) {
            Some(Completion::PageFault(code)) => Err(refused.fault(code)),
            Some(Completion::Done(_) | Completion::Refused) => Ok(()),
            None => Err(refused.exit(None)),
        }
    }

    /// Makes a refused access through the hypervisor.
    pub fn ask_linear(&mut self, refused: Refused, len: usize, data: LinearData) -> Result<[u8; 32], Trap> {
        let write = data != LinearData::Read;
        let question = Question::Linear { address: refused.gva.raw(), len_bytes: len as u8, write };
        match self.latch.ask(question) {
            Some(Completion::Done(bytes)) => Ok(bytes),
            Some(Completion::PageFault(code)) => Err(refused.fault(code)),
            Some(Completion::Refused) => Err(Exception::GP0.into()),
            None => Err(refused.exit(Some(LinearOperand { len_bytes: len as u8, data }))),
        }
    }

    /// What an exchange at `linear` found there, if the hypervisor has made it before the instruction started again.
    pub fn exchanged<T: Scalar>(&mut self, linear: u64) -> Option<T> {
        let question = Question::Exchange { address: linear, len_bytes: size_of::<T>() as u8 };
        match self.latch.answered(question)? {
            Completion::Done(bytes) => Some(T::from_bytes(&bytes)),
            Completion::Refused | Completion::PageFault(_) => None,
        }
    }

    /// Leaves with a read-modify-write of refused memory that can be read.
    pub fn ask_exchange<T: Scalar>(&mut self, linear: u64, refused: Refused, old: T, new: T) -> Trap {
        let len = size_of::<T>();
        let wide = |value: T| {
            let mut bytes = [0; 32];
            bytes[..len].copy_from_slice(&value.to_bytes()[..len]);
            bytes
        };
        match self.latch.ask(Question::Exchange { address: linear, len_bytes: len as u8 }) {
            Some(Completion::PageFault(code)) => refused.fault(code),
            _ => refused.exit(Some(LinearOperand {
                len_bytes: len as u8,
                data: LinearData::Exchange { old: wide(old), new: wide(new) },
            })),
        }
    }

    /// The trap for a page fault where no device and no guest table can be behind it: code.
    pub fn page_fault(&mut self, gva: Gva, code: PageFaultCode) -> Trap {
        let kind = if code.contains(PageFaultCode::I) {
            AccessKind::Execute
        } else if code.contains(PageFaultCode::W) {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        let refused = Refused { gva, access: Access::new(kind, self.privilege()), code };
        match self.settle_refused(refused) {
            Err(trap) => trap,
            Ok(()) => refused.exit(None),
        }
    }

    /// The 32 bytes at guest physical address `gpa`: the PDPTEs.
    pub fn ask_pdptes(&mut self, gpa: Gpa) -> Result<[u8; 32], Trap> {
        match self.latch.ask(Question::Pdptes { address: gpa.raw() }) {
            Some(Completion::Done(bytes)) => Ok(bytes),
            Some(Completion::Refused | Completion::PageFault(_)) => Err(Exception::GP0.into()),
            None => Err(Exit::ReadPdptes { gpa }.into()),
        }
    }
}
