//! Instructions that raise an event by themselves: INT n, INT3, INTO, INT1, BOUND.

use emu_core::Exception;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::event::{Event, SoftwareKind};
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;

/// The instruction retires and `vector` is delivered before the next one.
fn raise(cpu: &mut Cpu, op: &Op, vector: u8, kind: SoftwareKind) -> Flow {
    cpu.event = Some(Event::Software { vector, rip: cpu.rip_of(op), kind });
    cpu.set_rip(cpu.rip_after(op));
    Flow::Leave
}

/// INT n (vector in `aux`)
pub(crate) struct Int;
impl Ender for Int {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        cpu.check_vm86_iopl()?;
        Ok(raise(cpu, op, op.aux as u8, SoftwareKind::Int))
    }
}

/// INT3
pub(crate) struct Int3;
impl Ender for Int3 {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        Ok(raise(cpu, op, 3, SoftwareKind::Breakpoint))
    }
}

/// INT1 (ICEBP): #DB without a bit in DR6.
pub(crate) struct Int1;
impl Ender for Int1 {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        Ok(raise(cpu, op, 1, SoftwareKind::Icebp))
    }
}

/// INTO
pub(crate) struct Into;
impl Ender for Into {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        if cpu.flags.of() { Ok(raise(cpu, op, 4, SoftwareKind::Breakpoint)) } else { Ok(Flow::Next) }
    }
}

/// BOUND r, m (operand size in `aux`, index in `dst`)
pub(crate) struct Bound;
impl Act for Bound {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let bytes = op.aux as u64;
        let low = Legacy::linear(cpu, op, 0, bytes * 2, Use::Read)?;
        let high = Legacy::linear(cpu, op, bytes, bytes, Use::Read)?;
        let (index, low, high) = if bytes == 2 {
            let low: u16 = Slow::load(cpu, low, op.seg)?;
            let high: u16 = Slow::load(cpu, high, op.seg)?;
            (cpu.reg::<u16>(op.dst) as i16 as i32, low as i16 as i32, high as i16 as i32)
        } else {
            let low: u32 = Slow::load(cpu, low, op.seg)?;
            let high: u32 = Slow::load(cpu, high, op.seg)?;
            (cpu.reg::<u32>(op.dst) as i32, low as i32, high as i32)
        };
        if index < low || index > high { Err(Exception::BoundRange.into()) } else { Ok(()) }
    }
}
