//! The shapes of handlers: from an instruction's meaning to a link in the chain.
//!
//! - [`pure`]: registers and flags only; cannot fail.
//! - [`hot`]: may access memory; runs the fast instance inline and the slow one out of line.
//! - [`slow`]: anything that does not need to be quick; may fail.
//! - [`ender`]: the last instruction of its block; says where to go on.

use crate::code::CodeCache;
use crate::cpu::Cpu;
use crate::exec::{jump_in_any_mode, leave_after, stop};
use crate::exit::Trap;
use crate::mem::{Fast, Miss, Path, Slow};
use crate::op::{Next, Op, RIP, Rest, next};

/// The meaning of an instruction that touches no memory.
pub(crate) trait Pure {
    fn exec(cpu: &mut Cpu, op: &Op);
}

/// The meaning of an instruction over either path to memory. It changes no state before its last access that can fail.
pub(crate) trait Sem {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop>;
}

/// The meaning of an instruction that need not be quick. The same rule holds.
pub(crate) trait Act {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap>;
}

/// Where control goes after the last instruction of a block.
pub(crate) enum Flow {
    /// To the next instruction, after the run loop has looked around.
    Next,
    /// To this RIP, within the same mode.
    Jump(u64),
    /// RIP (and whatever else) is set: the run loop takes over.
    Leave,
}

/// The meaning of an instruction that ends its block.
pub(crate) trait Ender {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap>;
}

/// What an out-of-line instance tells its handler: a plain number, so that nothing needs dropping at the hand-over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    Retired,
    RetiredWithNews,
    Stopped(Next),
}

pub(crate) fn pure<S: Pure>(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    S::exec(cpu, op);
    next!(cpu, code, op, rest)
}

pub(crate) fn hot<S: Sem>(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    match S::exec::<Fast>(cpu, op) {
        Ok(()) => next!(cpu, code, op, rest),
        Err(Miss) => cold::<S>(cpu, code, op, rest),
    }
}

/// The slow instance of a hot instruction; also its handler where the fast path cannot be right (16- and 32-bit
/// addressing, whose segments have limits).
#[inline(never)]
pub(crate) fn cold<S: Sem>(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    match run_sem::<S>(cpu, op) {
        Done::Retired => next!(cpu, code, op, rest),
        Done::RetiredWithNews => leave_after(cpu, op),
        Done::Stopped(next) => next,
    }
}

#[inline(never)]
fn run_sem<S: Sem>(cpu: &mut Cpu, op: &Op) -> Done {
    finish(S::exec::<Slow>(cpu, op), cpu, op)
}

pub(crate) fn slow<S: Act>(cpu: &mut Cpu, code: &CodeCache, op: &Op, rest: Rest<'_>) -> Next {
    match run_act::<S>(cpu, op) {
        Done::Retired => next!(cpu, code, op, rest),
        Done::RetiredWithNews => leave_after(cpu, op),
        Done::Stopped(next) => next,
    }
}

#[inline(never)]
fn run_act<S: Act>(cpu: &mut Cpu, op: &Op) -> Done {
    finish(S::exec(cpu, op), cpu, op)
}

#[inline(always)]
fn finish(result: Result<(), Trap>, cpu: &mut Cpu, op: &Op) -> Done {
    match result {
        Ok(()) if cpu.attention => Done::RetiredWithNews,
        Ok(()) => Done::Retired,
        Err(trap) => Done::Stopped(stop(cpu, op, trap)),
    }
}

pub(crate) fn ender<S: Ender>(cpu: &mut Cpu, code: &CodeCache, op: &Op, _rest: Rest<'_>) -> Next {
    match run_ender::<S>(cpu, op) {
        Done::Retired => jump_in_any_mode(cpu, code, cpu.gpr[RIP as usize]),
        Done::RetiredWithNews => Next::Boundary,
        Done::Stopped(next) => next,
    }
}

#[inline(never)]
fn run_ender<S: Ender>(cpu: &mut Cpu, op: &Op) -> Done {
    match S::exec(cpu, op) {
        Ok(Flow::Jump(rip)) => {
            cpu.gpr[RIP as usize] = rip;
            if cpu.attention { Done::RetiredWithNews } else { Done::Retired }
        }
        Ok(Flow::Next) => {
            cpu.gpr[RIP as usize] = cpu.rip_after(op);
            Done::RetiredWithNews
        }
        Ok(Flow::Leave) => Done::RetiredWithNews,
        Err(trap) => Done::Stopped(stop(cpu, op, trap)),
    }
}
