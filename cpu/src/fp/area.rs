//! Memory operands that are structures: resolved once, probed before they are stored, then moved piece by piece.

use emu_core::Exception;
use emu_core::memory::Scalar;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;

/// A memory operand of many bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    linear: u64,
    seg: u8,
}

impl Area {
    /// The op's memory operand, `len` bytes long.
    pub fn of(cpu: &Cpu, op: &Op, len: u64, usage: Use) -> Result<Area, Exception> {
        let linear = Legacy::linear(cpu, op, 0, len, usage)?;
        // The last byte must be addressable too where addresses may not wrap.
        if cpu.key.is_64() && !(cpu.is_canonical(linear) && cpu.is_canonical(linear.wrapping_add(len - 1))) {
            return Err(cpu.bad_address(op.seg));
        }
        Ok(Area { linear, seg: op.seg })
    }

    /// #GP(0) unless the area starts at a multiple of `bytes`.
    pub fn aligned(self, bytes: u64) -> Result<Area, Exception> {
        if self.linear & (bytes - 1) != 0 { Err(Exception::GP0) } else { Ok(self) }
    }

    fn at(self, cpu: &Cpu, offset: u64) -> u64 {
        let linear = self.linear.wrapping_add(offset);
        if cpu.key.is_64() { linear } else { linear & 0xffff_ffff }
    }

    /// Makes sure that a store of `len` bytes (a page at most) at `offset` would succeed.
    pub fn probe_store(self, cpu: &mut Cpu, offset: u64, len: u64) -> Result<(), Trap> {
        let linear = self.at(cpu, offset);
        Slow::probe_store(cpu, linear, self.seg, len)
    }

    /// Loads `into`, a whole number of `T`s.
    pub fn load<T: Scalar>(self, cpu: &mut Cpu, offset: u64, into: &mut [u8]) -> Result<(), Trap> {
        for (n, piece) in into.chunks_exact_mut(size_of::<T>()).enumerate() {
            let linear = self.at(cpu, offset + (n * size_of::<T>()) as u64);
            let value: T = Slow::load(cpu, linear, self.seg)?;
            piece.copy_from_slice(&value.to_bytes()[..size_of::<T>()]);
        }
        Ok(())
    }

    /// Stores `from`, a whole number of `T`s that [`Area::probe_store`] has covered.
    pub fn store<T: Scalar>(self, cpu: &mut Cpu, offset: u64, from: &[u8]) -> Result<(), Trap> {
        for (n, piece) in from.chunks_exact(size_of::<T>()).enumerate() {
            let mut bytes = [0; 32];
            bytes[..piece.len()].copy_from_slice(piece);
            let linear = self.at(cpu, offset + (n * size_of::<T>()) as u64);
            Slow::store(cpu, linear, self.seg, T::from_bytes(&bytes))?;
        }
        Ok(())
    }
}
