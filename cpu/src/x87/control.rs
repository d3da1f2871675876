//! Control and status words, the stack pointer and tags (APM vol. 5, "x87 Floating-Point Instruction Reference").
//!
//! The instructions whose names start with FN do not wait: they execute with an exception pending.

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::x87::{BUSY, C1, ES, EXCEPTIONS, SF, X87State};

/// FNINIT. The data registers keep their contents.
pub(crate) struct Fninit;
impl Act for Fninit {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        cpu.x87 = X87State { regs: cpu.x87.regs, ..X87State::reset() };
        Ok(())
    }
}

/// FNCLEX
pub(crate) struct Fnclex;
impl Act for Fnclex {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        cpu.x87.fsw &= !(EXCEPTIONS | SF | ES | BUSY);
        Ok(())
    }
}

/// FWAIT
pub(crate) struct Fwait;
impl Act for Fwait {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        Ok(cpu.check_x87_pending()?)
    }
}

/// FNSTCW m16
pub(crate) struct Fnstcw;
impl Act for Fnstcw {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, 2, Use::Write)?;
        Slow::store(cpu, linear, op.seg, cpu.x87.fcw)
    }
}

/// FLDCW m16
pub(crate) struct Fldcw;
impl Act for Fldcw {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let linear = Legacy::linear(cpu, op, 0, 2, Use::Read)?;
        let fcw = Slow::load(cpu, linear, op.seg)?;
        cpu.x87.set_fcw(fcw);
        Ok(())
    }
}

/// FNSTSW m16
pub(crate) struct FnstswMem;
impl Act for FnstswMem {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, 2, Use::Write)?;
        Slow::store(cpu, linear, op.seg, cpu.x87.fsw)
    }
}

/// FNSTSW AX
pub(crate) struct FnstswAx;
impl Act for FnstswAx {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        cpu.set_reg::<u16>(0, cpu.x87.fsw);
        Ok(())
    }
}

/// FNENI, FNDISI and FNSETPM: nothing since the 387.
pub(crate) struct Ignored;
impl Act for Ignored {
    fn exec(_cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        Ok(())
    }
}

/// FNOP
pub(crate) struct Fnop;
impl Act for Fnop {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        Ok(cpu.check_x87_pending()?)
    }
}

/// FINCSTP
pub(crate) struct Fincstp;
impl Act for Fincstp {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        cpu.x87.set_top(cpu.x87.top() + 1);
        cpu.x87.fsw &= !C1;
        Ok(())
    }
}

/// FDECSTP
pub(crate) struct Fdecstp;
impl Act for Fdecstp {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        cpu.x87.set_top(cpu.x87.top().wrapping_sub(1));
        cpu.x87.fsw &= !C1;
        Ok(())
    }
}

/// FFREE ST(i), and FFREEP, which pops.
pub(crate) struct Ffree<const POP: bool>;
impl<const POP: bool> Act for Ffree<POP> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        cpu.x87.free(op.src);
        if POP {
            cpu.x87.pop();
        }
        Ok(())
    }
}
