//! Descriptor-table registers: LGDT, LIDT, LLDT, LTR and the instructions that store them.
//!
//! APM vol. 2, "Descriptor Tables"; APM vol. 3, the instructions by name.

use emu_core::Gva;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::segment::{DescriptorTable, Segment};
use crate::system::control::check_umip;
use crate::system::descriptor::{Selector, SystemKind, gp, gp0, np, ud};
use crate::system::load::privileged;

/// Reads the pseudo-descriptor of LGDT and LIDT: limit, then 24, 32 or 64 bits of base (operand size in `aux`).
fn load_table(cpu: &mut Cpu, op: &Op) -> Result<DescriptorTable, Trap> {
    privileged(cpu)?;
    let wide = cpu.key.is_64();
    let len = if wide { 8 } else { 4 };
    let linear = Legacy::linear(cpu, op, 0, 2 + len, Use::Read)?;
    let limit: u16 = Slow::load(cpu, linear, op.seg)?;
    let linear = Legacy::linear(cpu, op, 2, len, Use::Read)?;
    let base = if wide {
        Slow::load::<u64>(cpu, linear, op.seg)?
    } else {
        let base: u32 = Slow::load(cpu, linear, op.seg)?;
        (if op.aux == 2 { base & 0xff_ffff } else { base }) as u64
    };
    // Whatever outlives a change of paging mode is judged by the width the processor has, not by CR4.LA57.
    if wide && !cpu.model.is_canonical_in_msr(base) {
        return Err(gp0());
    }
    Ok(DescriptorTable { base: Gva::new(base), limit })
}

/// Writes the pseudo-descriptor of SGDT and SIDT.
fn store_table(cpu: &mut Cpu, op: &Op, table: DescriptorTable) -> Result<(), Trap> {
    check_umip(cpu)?;
    let wide = cpu.key.is_64();
    let len: u64 = if wide { 8 } else { 4 };
    let linear = Legacy::linear(cpu, op, 0, 2 + len, Use::Write)?;
    Slow::probe_store(cpu, linear, op.seg, 2 + len)?;
    Slow::store(cpu, linear, op.seg, table.limit)?;
    let linear = Legacy::linear(cpu, op, 2, len, Use::Write)?;
    if wide {
        Slow::store(cpu, linear, op.seg, table.base.raw())
    } else {
        Slow::store(cpu, linear, op.seg, table.base.raw() as u32)
    }
}

/// LGDT
pub(crate) struct Lgdt;
impl Act for Lgdt {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.segments.gdtr = load_table(cpu, op)?;
        Ok(())
    }
}

/// LIDT
pub(crate) struct Lidt;
impl Act for Lidt {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.segments.idtr = load_table(cpu, op)?;
        Ok(())
    }
}

/// SGDT
pub(crate) struct Sgdt;
impl Act for Sgdt {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        store_table(cpu, op, cpu.segments.gdtr)
    }
}

/// SIDT
pub(crate) struct Sidt;
impl Act for Sidt {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        store_table(cpu, op, cpu.segments.idtr)
    }
}

/// Refuses instructions that only protected mode has.
pub(crate) fn protected(cpu: &Cpu) -> Result<(), Trap> {
    if cpu.key.is_protected() { Ok(()) } else { Err(ud()) }
}

/// SLDT
pub(crate) struct Sldt;
impl Act for Sldt {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        protected(cpu)?;
        check_umip(cpu)?;
        super::store_operand(cpu, op, cpu.segments.ldtr.selector as u64)
    }
}

/// STR
pub(crate) struct Str;
impl Act for Str {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        protected(cpu)?;
        check_umip(cpu)?;
        super::store_operand(cpu, op, cpu.segments.tr.selector as u64)
    }
}

/// The LDT or TSS that `selector` names, with the upper half of its base in long mode.
fn system_segment(cpu: &mut Cpu, selector: Selector, fits: fn(SystemKind) -> bool) -> Result<Segment, Trap> {
    if selector.is_local() {
        return Err(gp(selector));
    }
    let (descriptor, upper) = cpu.wide_descriptor(selector, gp)?;
    if !descriptor.system().is_some_and(fits) || cpu.is_long() && upper >> 40 & 0x1f != 0 {
        return Err(gp(selector));
    }
    if !descriptor.attributes().p() {
        return Err(np(selector));
    }
    let segment = descriptor.segment(selector);
    let base = segment.base | upper << 32;
    if cpu.is_long() && !cpu.model.is_canonical_in_msr(base) {
        return Err(gp(selector));
    }
    Ok(Segment { base, ..segment })
}

/// LLDT
pub(crate) struct Lldt;
impl Act for Lldt {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        protected(cpu)?;
        privileged(cpu)?;
        let selector = Selector(super::operand(cpu, op, 2)? as u16);
        cpu.segments.ldtr = if selector.is_null() {
            Segment { selector: selector.0, ..Segment::NULL }
        } else {
            system_segment(cpu, selector, |kind| kind == SystemKind::Ldt)?
        };
        Ok(())
    }
}

/// LTR
pub(crate) struct Ltr;
impl Ender for Ltr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        protected(cpu)?;
        privileged(cpu)?;
        let selector = Selector(super::operand(cpu, op, 2)? as u16);
        if selector.is_null() {
            return Err(gp0());
        }
        let long = cpu.is_long();
        let fits: fn(SystemKind) -> bool = if long {
            |kind| kind == SystemKind::Tss { busy: false }
        } else {
            |kind| matches!(kind, SystemKind::Tss { busy: false } | SystemKind::Tss16 { busy: false })
        };
        let mut segment = system_segment(cpu, selector, fits)?;
        cpu.mark_busy(selector, true)?;
        segment.attributes.set_kind(segment.attributes.kind() | 2);
        cpu.segments.tr = segment;
        Ok(Flow::Next)
    }
}
