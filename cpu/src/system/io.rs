//! IN and OUT, and who may execute them.
//!
//! APM vol. 2, "I/O-Permission Bitmap"; Intel SDM vol. 1, "I/O Privilege Level", "I/O Permission Bit Map".
//!
//! The door for string I/O: [`check_io_permission`], then the intercept, then [`read_port`] or [`write_port`].

use emu_core::sev::ExitCode;

use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::{Completion, Exit, IoAccess, Trap};
use crate::latch::Question;
use crate::mode::Mode;
use crate::op::Op;
use crate::system::descriptor::gp0;

/// Where a TSS says how far its bitmap is away.
const BITMAP_OFFSET: u64 = 0x66;

/// Refuses an access to `size` ports from `port` on with #GP(0), unless IOPL or the TSS's bitmap allow it.
pub(crate) fn check_io_permission(cpu: &mut Cpu, port: u16, size: u8) -> Result<(), Trap> {
    let vm86 = cpu.mode == Mode::Virtual8086;
    if cpu.mode == Mode::Real || !vm86 && cpu.cpl <= cpu.flags.other.iopl() {
        return Ok(());
    }
    let tr = cpu.segments.tr;
    // Only TSSs of the newer layout have a bitmap.
    if tr.attributes.kind() & 8 == 0 || BITMAP_OFFSET + 1 > tr.limit as u64 {
        return Err(gp0());
    }
    let linear = cpu.system_linear(tr.base, BITMAP_OFFSET);
    let bitmap: u16 = cpu.load_system(linear)?;
    // Two bytes are always read, so that a run of ports may cross from one into the next.
    let offset = bitmap as u64 + port as u64 / 8;
    if offset + 1 > tr.limit as u64 {
        return Err(gp0());
    }
    let bits: u16 = cpu.load_system(cpu.system_linear(tr.base, offset))?;
    let mask = ((1_u16 << size) - 1) << (port % 8);
    if bits & mask == 0 { Ok(()) } else { Err(gp0()) }
}

/// Reads `size` ports from `port` on: 1, 2 or 4.
pub(crate) fn read_port(cpu: &mut Cpu, port: u16, size: u8) -> Result<u32, Trap> {
    let bytes = ask(cpu, port, size, None)?;
    cpu.note_port_access(port, size);
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Writes `size` ports from `port` on.
pub(crate) fn write_port(cpu: &mut Cpu, port: u16, size: u8, value: u32) -> Result<(), Trap> {
    ask(cpu, port, size, Some(value))?;
    cpu.note_port_access(port, size);
    Ok(())
}

fn ask(cpu: &mut Cpu, port: u16, size: u8, write: Option<u32>) -> Result<[u8; 32], Trap> {
    match cpu.latch.ask(Question::Port { port, write: write.is_some() }) {
        Some(Completion::Done(bytes)) => Ok(bytes),
        Some(Completion::Refused | Completion::PageFault(_)) => Err(gp0()),
        None => Err(Exit::Io(IoAccess { port, len_bytes: size, write }).into()),
    }
}

/// Bit of [`Op::dst`]: the port is in DX, not in `imm`.
pub(crate) const PORT_IN_DX: u8 = 1;

fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.dst == PORT_IN_DX { cpu.reg::<u16>(2) } else { op.imm.get() as u16 }
}

/// IN (size in `aux`)
pub(crate) struct In;
impl Act for In {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let (port, size) = (port(cpu, op), op.aux as u8);
        check_io_permission(cpu, port, size)?;
        cpu.intercept(ExitCode::IOIO)?;
        let value = read_port(cpu, port, size)?;
        super::write_reg(cpu, 0, size, value as u64);
        Ok(())
    }
}

/// OUT
pub(crate) struct Out;
impl Act for Out {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let (port, size) = (port(cpu, op), op.aux as u8);
        check_io_permission(cpu, port, size)?;
        cpu.intercept(ExitCode::IOIO)?;
        let mask = u32::MAX >> (32 - 8 * size as u32);
        write_port(cpu, port, size, cpu.reg::<u32>(0) & mask)
    }
}
