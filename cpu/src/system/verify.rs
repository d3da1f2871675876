//! Instructions that ask whether a selector could be used: LAR, LSL, VERR, VERW, ARPL.
//!
//! APM vol. 3, the instructions by name; which system types LAR and LSL accept depends on long mode.

use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::op::Op;
use crate::system::descriptor::{Descriptor, Selector, SystemKind, gp};
use crate::system::tables::protected;

/// The descriptor of `selector` if the selector lies in its table. Faults of the fetch itself are faults.
fn visible(cpu: &mut Cpu, selector: Selector) -> Result<Option<Descriptor>, Trap> {
    if selector.is_null() || cpu.descriptor_linear(selector, 8).is_none() {
        return Ok(None);
    }
    cpu.descriptor(selector, gp).map(Some)
}

/// Whether CPL and RPL may see the descriptor.
fn privilege_allows(cpu: &Cpu, selector: Selector, descriptor: Descriptor) -> bool {
    let a = descriptor.attributes();
    a.s() && a.is_conforming() || a.dpl() >= cpu.cpl && a.dpl() >= selector.rpl()
}

/// LAR and LSL: which system descriptors they accept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Rights,
    Limit,
}

fn accepts(asks: Asks, kind: SystemKind, long: bool) -> bool {
    match kind {
        SystemKind::Ldt | SystemKind::Tss { .. } => true,
        SystemKind::Tss16 { .. } => !long,
        SystemKind::CallGate => asks == Asks::Rights,
        SystemKind::CallGate16 | SystemKind::TaskGate => asks == Asks::Rights && !long,
        _ => false,
    }
}

fn ask(cpu: &mut Cpu, op: &Op, asks: Asks) -> Result<(), Trap> {
    protected(cpu)?;
    let selector = Selector(super::operand(cpu, op, 2)? as u16);
    let long = cpu.is_long();
    let found = visible(cpu, selector)?.filter(|&descriptor| {
        privilege_allows(cpu, selector, descriptor) && descriptor.system().is_none_or(|kind| accepts(asks, kind, long))
    });
    if let Some(descriptor) = found {
        let value = match asks {
            Asks::Rights => descriptor.0 >> 32 & 0x00f0_ff00,
            Asks::Limit => descriptor.limit() as u64,
        };
        super::write_reg(cpu, op.dst, op.aux as u8, value);
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

/// LAR (destination in `dst`, its width in `aux`)
pub(crate) struct Lar;
impl Act for Lar {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        ask(cpu, op, Asks::Rights)
    }
}

/// LSL
pub(crate) struct Lsl;
impl Act for Lsl {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        ask(cpu, op, Asks::Limit)
    }
}

/// VERR and VERW (1 in `aux` for VERW)
pub(crate) struct Verify;
impl Act for Verify {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        protected(cpu)?;
        let selector = Selector(super::operand(cpu, op, 2)? as u16);
        let usable = visible(cpu, selector)?.is_some_and(|descriptor| {
            let a = descriptor.attributes();
            let right = if op.aux == 1 { a.is_writable() } else { a.is_readable() };
            a.s() && right && privilege_allows(cpu, selector, descriptor)
        });
        cpu.flags.set_zf(usable);
        Ok(())
    }
}

/// ARPL (second selector in `dst`): raises the RPL of the first to that of the second.
pub(crate) struct Arpl;
impl Act for Arpl {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        protected(cpu)?;
        let to = Selector(super::operand(cpu, op, 2)? as u16);
        let rpl = Selector(cpu.reg::<u16>(op.dst)).rpl();
        let raised = to.rpl() < rpl;
        if raised {
            super::store_operand(cpu, op, to.with_rpl(rpl).0 as u64)?;
        }
        cpu.flags.set_zf(raised);
        Ok(())
    }
}
