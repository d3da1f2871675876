//! INS and OUTS: string instructions with a port at one end.

use crate::address::Use;
use crate::cpu::Cpu;
use crate::exit::{Completion, Exit, IoAccess, Trap};
use crate::int::string::{StringOp, destination, source};
use crate::latch::Question;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::segment::SegReg;
use crate::width::Width;

const ES: u8 = SegReg::Es as u8;

pub(crate) struct Ins;
pub(crate) struct Outs;

impl StringOp for Ins {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    fn step<T: Width>(cpu: &mut Cpu, _op: &Op, _from: u64, to: u64) -> Result<(), Trap> {
        let port = cpu.reg::<u16>(2);
        cpu.check_io_permission(port, T::BYTES as u8)?;
        let to = destination::<T>(cpu, to, Use::Write)?;
        Slow::probe_store(cpu, to, ES, T::BYTES)?;
        let value = cpu.ask_port(port, T::BYTES as u8, None)?;
        Slow::store(cpu, to, ES, T::truncate(value as u64))
    }
}

impl StringOp for Outs {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;
    fn step<T: Width>(cpu: &mut Cpu, op: &Op, from: u64, _to: u64) -> Result<(), Trap> {
        let port = cpu.reg::<u16>(2);
        cpu.check_io_permission(port, T::BYTES as u8)?;
        let from = source::<T>(cpu, op, from)?;
        let value: T = Slow::load(cpu, from, op.seg)?;
        cpu.ask_port(port, T::BYTES as u8, Some(value.zero_extend() as u32))?;
        Ok(())
    }
}

impl Cpu {
    /// Asks the machine for a port access, or takes the answer it gave.
    pub fn ask_port(&mut self, port: u16, len_bytes: u8, write: Option<u32>) -> Result<u32, Trap> {
        match self.latch.ask(Question::Port { port, write: write.is_some() }) {
            Some(Completion::Done(bytes)) => Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            Some(Completion::Refused) => Err(emu_core::Exception::GP0.into()),
            None => Err(Exit::Io(IoAccess { port, len_bytes, write }).into()),
        }
    }
}
