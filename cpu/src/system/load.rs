//! Loading segment registers: MOV, POP and LxS, and the checks they share with returns and tasks.
//!
//! APM vol. 2, "Data-Access Privilege Checks"; Intel SDM vol. 3, "Privilege Level Checking When Accessing Data Segments".

use emu_core::cpu_model::Vendor;
use emu_core::cpuid::Feature;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::event::InterruptShadow;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::mode::Mode;
use crate::op::Op;
use crate::segment::{SegReg, Segment, SegmentAttributes};
use crate::system::descriptor::{Selector, gp, gp0, np, ss};
use crate::system::stack::Stack;

/// The register whose encoding is `n`.
pub(crate) fn seg_reg(n: u8) -> SegReg {
    SegReg::ALL[n as usize % 6]
}

impl Cpu {
    /// Puts a loaded segment into its register. Modes follow CS and SS.
    pub fn set_segment(&mut self, reg: SegReg, segment: Segment) {
        self.segments.regs[reg as usize] = segment;
        match reg {
            SegReg::Cs | SegReg::Ss => self.refresh_mode(),
            SegReg::Fs | SegReg::Gs => self.seg_base[reg as usize] = segment.base,
            SegReg::Ds | SegReg::Es if self.mode != Mode::Long64 => self.seg_base[reg as usize] = segment.base,
            SegReg::Ds | SegReg::Es => {}
        }
    }

    /// What ES, SS, DS, FS or GS holds after a load of `selector` in the current mode. Sets the accessed bit.
    pub fn loaded(&mut self, reg: SegReg, selector: Selector) -> Result<Segment, Trap> {
        match self.mode {
            // Limit and attributes stay, as software that builds "unreal" segments counts on.
            Mode::Real => {
                let old = *self.segments.get(reg);
                Ok(Segment { selector: selector.0, base: (selector.0 as u64) << 4, ..old })
            }
            Mode::Virtual8086 => Ok(virtual_8086(selector)),
            _ if reg == SegReg::Ss => self.stack_segment(selector, self.cpl, gp),
            _ => self.data_segment(reg, selector),
        }
    }

    /// SS for `cpl`. `refuse` is #GP for loads, #TS for stacks out of a TSS.
    pub fn stack_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        refuse: fn(Selector) -> Trap,
    ) -> Result<Segment, Trap> {
        if selector.is_null() {
            let allowed = self.mode == Mode::Long64 && cpl != 3 && selector.rpl() == cpl;
            return if allowed { Ok(null_stack(selector, cpl)) } else { Err(refuse(Selector(0))) };
        }
        let descriptor = self.descriptor(selector, refuse)?;
        let a = descriptor.attributes();
        if selector.rpl() != cpl || !a.s() || !a.is_writable() || a.dpl() != cpl {
            return Err(refuse(selector));
        }
        if !a.p() {
            return Err(ss(selector));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    fn data_segment(&mut self, reg: SegReg, selector: Selector) -> Result<Segment, Trap> {
        if selector.is_null() {
            return Ok(self.null_data(reg, selector));
        }
        let descriptor = self.descriptor(selector, gp)?;
        let a = descriptor.attributes();
        if !a.s() || !a.is_readable() {
            return Err(gp(selector));
        }
        if !a.is_conforming() && (selector.rpl() > a.dpl() || self.cpl > a.dpl()) {
            return Err(gp(selector));
        }
        if !a.p() {
            return Err(np(selector));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    fn null_data(&self, reg: SegReg, selector: Selector) -> Segment {
        let keeps_base =
            self.model.vendor() == Vendor::Amd && !self.model.has(Feature::NullSelectClearsBase) && self.is_long();
        let base = if keeps_base { self.segments.get(reg).base } else { 0 };
        Segment { selector: selector.0, base, ..Segment::NULL }
    }

    /// After a return to the outer ring `cpl`: data segments that it may not use become null. Unlike a load of a null
    /// selector this leaves the bases of FS and GS, which 64-bit mode goes on using, on either vendor's processors.
    pub fn drop_inner_segments(&mut self, cpl: u8) {
        for reg in [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            let segment = *self.segments.get(reg);
            let a = segment.attributes;
            // A null segment counts as one of ring 0: whatever RPL its selector had is gone.
            if a.dpl() < cpl && !(a.is_code() && a.is_conforming()) {
                self.segments.regs[reg as usize] = Segment { base: segment.base, ..Segment::NULL };
            }
        }
    }
}

/// A null SS of 64-bit mode, which still knows its privilege.
pub(crate) fn null_stack(selector: Selector, cpl: u8) -> Segment {
    Segment { selector: selector.0, attributes: SegmentAttributes::new().with_dpl(cpl), ..Segment::NULL }
}

/// A segment of virtual-8086 mode.
pub(crate) fn virtual_8086(selector: Selector) -> Segment {
    let real = Segment::real(selector.0);
    Segment { attributes: real.attributes.with_dpl(3), ..real }
}

/// Finishes a load of SS, after which interrupts and traps wait for one more instruction.
fn set_stack_segment(cpu: &mut Cpu, segment: Segment) {
    cpu.set_segment(SegReg::Ss, segment);
    cpu.shadow = InterruptShadow::MovSs;
}

fn selector_operand(cpu: &mut Cpu, op: &Op) -> Result<Selector, Trap> {
    super::operand(cpu, op, 2).map(|value| Selector(value as u16))
}

/// MOV ES/DS/FS/GS, r/m16 (register number in `dst`)
pub(crate) struct MovToSeg;
impl Act for MovToSeg {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let selector = selector_operand(cpu, op)?;
        let reg = seg_reg(op.dst);
        let segment = cpu.loaded(reg, selector)?;
        cpu.set_segment(reg, segment);
        Ok(())
    }
}

/// MOV SS, r/m16
pub(crate) struct MovToSs;
impl Ender for MovToSs {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let selector = selector_operand(cpu, op)?;
        let segment = cpu.loaded(SegReg::Ss, selector)?;
        set_stack_segment(cpu, segment);
        Ok(Flow::Next)
    }
}

/// MOV r/m, Sreg (segment in `dst`; the width of a register operand in `aux`)
pub(crate) struct MovFromSeg;
impl Act for MovFromSeg {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let selector = cpu.segments.get(seg_reg(op.dst)).selector;
        super::store_operand(cpu, op, selector as u64)
    }
}

/// Whether PUSH and POP of a segment register move the selector's two bytes alone and step over the other two of a
/// 32-bit operand: recent Intel processors do, AMD's move all four (Intel SDM vol. 2, "PUSH").
fn moves_selector_alone(cpu: &Cpu, op: &Op) -> bool {
    op.aux == 4 && cpu.model.vendor() == Vendor::Intel
}

/// PUSH Sreg (operand size in `aux`)
pub(crate) struct PushSeg;
impl Act for PushSeg {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let selector = cpu.segments.get(seg_reg(op.dst)).selector as u64;
        let mut stack = Stack::current(cpu);
        if moves_selector_alone(cpu, op) {
            stack.release(2_u64.wrapping_neg());
            stack.push(cpu, selector, 2)?;
        } else {
            stack.push(cpu, selector, op.aux as u8)?;
        }
        stack.commit(cpu);
        Ok(())
    }
}

fn pop_segment(cpu: &mut Cpu, op: &Op, reg: SegReg) -> Result<(Segment, Stack), Trap> {
    let mut stack = Stack::current(cpu);
    let alone = moves_selector_alone(cpu, op);
    let value = stack.pop(cpu, if alone { 2 } else { op.aux as u8 })?;
    if alone {
        stack.release(2);
    }
    Ok((cpu.loaded(reg, Selector(value as u16))?, stack))
}

/// POP ES/DS/FS/GS
pub(crate) struct PopSeg;
impl Act for PopSeg {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let reg = seg_reg(op.dst);
        let (segment, stack) = pop_segment(cpu, op, reg)?;
        stack.commit(cpu);
        cpu.set_segment(reg, segment);
        Ok(())
    }
}

/// POP SS
pub(crate) struct PopSs;
impl Ender for PopSs {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let (segment, stack) = pop_segment(cpu, op, SegReg::Ss)?;
        stack.commit(cpu);
        set_stack_segment(cpu, segment);
        Ok(Flow::Next)
    }
}

/// LDS, LES, LFS, LGS, LSS: offset of `aux` bytes to register `src`, selector after it to segment `dst`
pub(crate) struct LoadFar;
impl Ender for LoadFar {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let (offset, selector) = far_pointer(cpu, op, op.aux as u8)?;
        let reg = seg_reg(op.dst);
        let segment = cpu.loaded(reg, selector)?;
        cpu.set_segment(reg, segment);
        super::write_reg(cpu, op.src, op.aux as u8, offset);
        Ok(Flow::Next)
    }
}

/// Reads a far pointer from memory: an offset of `bytes` bytes, then a selector.
pub(crate) fn far_pointer(cpu: &mut Cpu, op: &Op, bytes: u8) -> Result<(u64, Selector), Trap> {
    let linear = Legacy::linear(cpu, op, 0, bytes as u64 + 2, Use::Read)?;
    let offset = match bytes {
        2 => Slow::load::<u16>(cpu, linear, op.seg)? as u64,
        4 => Slow::load::<u32>(cpu, linear, op.seg)? as u64,
        _ => Slow::load::<u64>(cpu, linear, op.seg)?,
    };
    let linear = Legacy::linear(cpu, op, bytes as u64, 2, Use::Read)?;
    let selector: u16 = Slow::load(cpu, linear, op.seg)?;
    Ok((offset, Selector(selector)))
}

/// #GP(0) above CPL 0.
pub(crate) fn privileged(cpu: &Cpu) -> Result<(), Trap> {
    if cpu.cpl == 0 { Ok(()) } else { Err(gp0()) }
}
