//! Instructions on RFLAGS as a whole and on its system bits.
//!
//! APM vol. 3, "POPF", "PUSHF", "CLI", "STI", "LAHF", "SAHF", "CLAC", "STAC"; APM vol. 2, "Virtual Interrupts" (absent).

use emu_core::regs::Rflags;

use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow, Pure};
use crate::event::InterruptShadow;
use crate::exit::Trap;
use crate::int::stack::{pop, push};
use crate::mem::Slow;
use crate::mode::Mode;
use crate::op::Op;
use crate::system::descriptor::{gp0, ud};

/// Flags that every POPF and IRET may change.
pub(crate) const FREE: Rflags =
    Rflags::STATUS.union(Rflags::TF).union(Rflags::DF).union(Rflags::NT).union(Rflags::AC).union(Rflags::ID);
/// I/O privilege level.
pub(crate) const IOPL: Rflags = Rflags::IOPL0.union(Rflags::IOPL1);

impl Cpu {
    /// Which flags the current privilege may change by POPF and IRET.
    pub fn changeable_flags(&self) -> Rflags {
        let mut mask = FREE;
        if self.cpl == 0 {
            mask |= IOPL;
        }
        if self.cpl <= self.flags.other.iopl() {
            mask |= Rflags::IF;
        }
        mask
    }

    /// Replaces the flags in `mask`; an operand of two bytes has only the low sixteen.
    pub fn load_flags(&mut self, image: u64, mask: Rflags, bytes: u8) {
        let mask = if bytes == 2 { mask & Rflags::from_bits_retain(0xffff) } else { mask };
        let old = self.flags.rflags();
        self.flags.set_rflags(old - mask | Rflags::from_bits_retain(image) & mask);
    }

    /// Virtual-8086 mode leaves the interrupt flag to its monitor unless IOPL is 3.
    pub fn check_vm86_iopl(&self) -> Result<(), Trap> {
        if self.mode == Mode::Virtual8086 && self.flags.other.iopl() < 3 { Err(gp0()) } else { Ok(()) }
    }
}

/// PUSHF, PUSHFD, PUSHFQ (operand size in `aux`)
pub(crate) struct PushF;
impl Act for PushF {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_vm86_iopl()?;
        let image = cpu.flags.rflags() - Rflags::VM - Rflags::RF;
        let image = image.bits();
        match op.aux {
            2 => push::<Slow, u16>(cpu, image as u16),
            4 => push::<Slow, u32>(cpu, image as u32),
            _ => push::<Slow, u64>(cpu, image),
        }
    }
}

/// POPF, POPFD, POPFQ
pub(crate) struct PopF;
impl Ender for PopF {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        cpu.check_vm86_iopl()?;
        let image = match op.aux {
            2 => pop::<Slow, u16>(cpu)? as u64,
            4 => pop::<Slow, u32>(cpu)? as u64,
            _ => pop::<Slow, u64>(cpu)?,
        };
        let mask = cpu.changeable_flags();
        cpu.load_flags(image, mask, op.aux as u8);
        cpu.flags.other.remove(Rflags::RF);
        cpu.refresh_privilege();
        Ok(Flow::Next)
    }
}

fn may_mask_interrupts(cpu: &Cpu) -> Result<(), Trap> {
    if cpu.mode == Mode::Real || cpu.cpl <= cpu.flags.other.iopl() { Ok(()) } else { Err(gp0()) }
}

/// CLI
pub(crate) struct Cli;
impl Act for Cli {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        may_mask_interrupts(cpu)?;
        cpu.flags.other.remove(Rflags::IF);
        Ok(())
    }
}

/// STI: interrupts wait for one more instruction if they were masked before.
pub(crate) struct Sti;
impl Ender for Sti {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        may_mask_interrupts(cpu)?;
        if !cpu.flags.other.contains(Rflags::IF) {
            cpu.flags.other.insert(Rflags::IF);
            cpu.shadow = InterruptShadow::Sti;
        }
        Ok(Flow::Next)
    }
}

/// CLAC and STAC (the value of AC in `aux`)
pub(crate) struct SetAc;
impl Ender for SetAc {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        if cpu.cpl != 0 {
            return Err(ud());
        }
        cpu.flags.other.set(Rflags::AC, op.aux != 0);
        cpu.refresh_privilege();
        Ok(Flow::Jump(cpu.rip_after(op)))
    }
}

/// SF, ZF, AF, PF, CF: what AH carries.
const IN_AH: Rflags = Rflags::SF.union(Rflags::ZF).union(Rflags::AF).union(Rflags::PF).union(Rflags::CF);
const AH: u8 = crate::op::HIGH_BYTE;

/// LAHF
pub(crate) struct Lahf;
impl Pure for Lahf {
    fn exec(cpu: &mut Cpu, _op: &Op) {
        let image = cpu.flags.status() & IN_AH | Rflags::FIXED;
        cpu.set_reg(AH, image.bits() as u8);
    }
}

/// SAHF
pub(crate) struct Sahf;
impl Pure for Sahf {
    fn exec(cpu: &mut Cpu, _op: &Op) {
        let image = Rflags::from_bits_retain(cpu.reg::<u8>(AH) as u64) & IN_AH;
        let keep = cpu.flags.status() & Rflags::OF;
        cpu.flags.set_status(image | keep);
    }
}
