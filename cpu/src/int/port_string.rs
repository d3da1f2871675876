//! INS and OUTS: string instructions with a port at one end.

use emu_core::sev::ExitCode;

use crate::address::Use;
use crate::cpu::Cpu;
use crate::exit::Trap;
use crate::int::string::{StringOp, destination, source};
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::segment::SegReg;
use crate::system::io::{check_io_permission, read_port, write_port};
use crate::width::Width;

const ES: u8 = SegReg::Es as u8;

pub(crate) struct Ins;
pub(crate) struct Outs;

impl StringOp for Ins {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    fn step<T: Width>(cpu: &mut Cpu, _op: &Op, _from: u64, to: u64) -> Result<(), Trap> {
        let port = cpu.reg::<u16>(2);
        check_io_permission(cpu, port, T::BYTES as u8)?;
        cpu.intercept(ExitCode::IOIO)?;
        let to = destination::<T>(cpu, to, Use::Write)?;
        Slow::probe_store(cpu, to, ES, T::BYTES)?;
        let value = read_port(cpu, port, T::BYTES as u8)?;
        Slow::store(cpu, to, ES, T::truncate(value as u64))
    }
}

impl StringOp for Outs {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;
    fn step<T: Width>(cpu: &mut Cpu, op: &Op, from: u64, _to: u64) -> Result<(), Trap> {
        let port = cpu.reg::<u16>(2);
        check_io_permission(cpu, port, T::BYTES as u8)?;
        cpu.intercept(ExitCode::IOIO)?;
        let from = source::<T>(cpu, op, from)?;
        let value: T = Slow::load(cpu, from, op.seg)?;
        write_port(cpu, port, T::BYTES as u8, value.zero_extend() as u32)
    }
}
