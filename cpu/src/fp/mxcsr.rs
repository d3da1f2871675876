//! LDMXCSR and STMXCSR (Intel SDM vol. 1, 10.2.3 "MXCSR Control and Status Register").

use emu_core::Exception;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;

/// The bits of MXCSR that exist, DAZ among them. AMD's misaligned exception mask (bit 17) is not modelled.
pub(crate) const MXCSR_MASK: u32 = 0xffff;

/// #GP(0) if `value` has a reserved bit set.
pub(crate) fn check(value: u32) -> Result<u32, Exception> {
    if value & !MXCSR_MASK != 0 { Err(Exception::GP0) } else { Ok(value) }
}

/// LDMXCSR, VLDMXCSR
pub(crate) struct Ldmxcsr;
impl Act for Ldmxcsr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, 4, Use::Read)?;
        let value = Slow::load(cpu, linear, op.seg)?;
        cpu.vector.mxcsr = check(value)?;
        Ok(())
    }
}

/// STMXCSR, VSTMXCSR
pub(crate) struct Stmxcsr;
impl Act for Stmxcsr {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, 4, Use::Write)?;
        Slow::store(cpu, linear, op.seg, cpu.vector.mxcsr)
    }
}
