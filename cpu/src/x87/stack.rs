//! What the instructions on the stack share: stack faults, flags, error pointers, second operands.

use emu_core::memory::Scalar;

use crate::address::{ADDRESS16, ADDRESS32, Addressing, Legacy, Use, effective};
use crate::cpu::Cpu;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::segment::SegReg;
use crate::softfloat::{self as soft, Destination, Env, F32, F64, F80, Format};
use crate::x87::{C1, IE, SF, X87State};

/// Whether an instruction finds its operand in memory; decides whether it sets the data pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Stack,
    Memory,
}

impl X87State {
    /// The environment of one instruction.
    pub fn env(&self) -> Env {
        Env::from_fcw(self.fcw)
    }

    /// Adds the flags of an instruction to FSW, C1 replaced; returns whether the destination is written.
    pub fn settle(&mut self, env: &Env, destination: Destination) -> bool {
        let outcome = env.x87_outcome(destination);
        self.fsw = self.fsw & !C1 | outcome.flags.bits();
        self.summarise();
        outcome.write
    }

    /// A register that should hold something is empty; returns whether the masked response is to be given.
    pub fn underflow(&mut self) -> bool {
        self.fault(0)
    }

    /// A register that should be empty is not; returns whether the masked response is to be given.
    pub fn overflow(&mut self) -> bool {
        self.fault(C1)
    }

    fn fault(&mut self, c1: u16) -> bool {
        self.fsw = self.fsw & !C1 | IE | SF | c1;
        self.summarise();
        self.fcw & IE != 0
    }
}

/// Records the instruction as the last one that was not a control instruction. [`Op::aux`] has its opcode.
pub(crate) fn note(cpu: &mut Cpu, op: &Op, reach: Reach) {
    cpu.x87.fop = op.aux;
    cpu.x87.fip = cpu.rip_of(op);
    cpu.x87.fcs = cpu.segments.get(SegReg::Cs).selector;
    if reach == Reach::Memory {
        let address = effective(cpu, op);
        cpu.x87.fdp = match op.scale {
            s if s & ADDRESS16 != 0 => address & 0xffff,
            s if s & ADDRESS32 != 0 => address & 0xffff_ffff,
            _ => address,
        };
        let segment = cpu.segments.regs.get(op.seg as usize).unwrap_or(cpu.segments.get(SegReg::Ds));
        cpu.x87.fds = segment.selector;
    }
}

/// Loads the op's memory operand.
pub(crate) fn load<T: Scalar>(cpu: &mut Cpu, op: &Op) -> Result<T, Trap> {
    let linear = Legacy::linear(cpu, op, 0, size_of::<T>() as u64, Use::Read)?;
    Slow::load(cpu, linear, op.seg)
}

/// Loads ten bytes, which the processor accesses in two pieces.
pub(crate) fn load80(cpu: &mut Cpu, op: &Op) -> Result<[u8; 10], Trap> {
    let linear = Legacy::linear(cpu, op, 0, 10, Use::Read)?;
    let significand = Slow::load(cpu, linear, op.seg)?;
    let upper = Legacy::linear(cpu, op, 8, 2, Use::Read)?;
    let sign_exp = Slow::load(cpu, upper, op.seg)?;
    Ok(F80::new(sign_exp, significand).to_bytes())
}

/// What a store writes: most values in one piece.
pub(crate) trait Image: Scalar {
    /// Makes sure that a store to the op's memory operand would succeed.
    fn probe(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, size_of::<Self>() as u64, Use::Write)?;
        Slow::probe_store(cpu, linear, op.seg, size_of::<Self>() as u64)
    }
    /// Stores to the op's memory operand.
    fn store(self, cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, size_of::<Self>() as u64, Use::Write)?;
        Slow::store(cpu, linear, op.seg, self)
    }
}
impl Image for u16 {}
impl Image for u32 {}
impl Image for u64 {}
impl Image for [u8; 10] {
    fn probe(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, 10, Use::Write)?;
        Slow::probe_store(cpu, linear, op.seg, 8)?;
        let upper = Legacy::linear(cpu, op, 8, 2, Use::Write)?;
        Slow::probe_store(cpu, upper, op.seg, 2)
    }
    fn store(self, cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        Self::probe(cpu, op)?;
        let F80 { sign_exp, significand } = F80::from_bytes(self);
        let linear = Legacy::linear(cpu, op, 0, 10, Use::Write)?;
        Slow::store(cpu, linear, op.seg, significand)?;
        let upper = Legacy::linear(cpu, op, 8, 2, Use::Write)?;
        Slow::store(cpu, upper, op.seg, sign_exp)
    }
}

/// The second operand of arithmetic and comparisons.
pub(crate) trait Second {
    /// Its format.
    type In: Format;
    const REACH: Reach;
    /// `None` if it is an empty register.
    fn fetch(cpu: &mut Cpu, op: &Op) -> Result<Option<<Self::In as Format>::Bits>, Trap>;
}

/// ST(src)
pub(crate) struct St;
/// m32fp
pub(crate) struct M32;
/// m64fp
pub(crate) struct M64;
/// m16int
pub(crate) struct I16;
/// m32int
pub(crate) struct I32;
/// Plus zero, for FTST.
pub(crate) struct Zero;

impl Second for St {
    type In = F80;
    const REACH: Reach = Reach::Stack;
    fn fetch(cpu: &mut Cpu, op: &Op) -> Result<Option<F80>, Trap> {
        Ok((!cpu.x87.is_empty(op.src)).then(|| cpu.x87.st(op.src)))
    }
}
impl Second for Zero {
    type In = F80;
    const REACH: Reach = Reach::Stack;
    fn fetch(_cpu: &mut Cpu, _op: &Op) -> Result<Option<F80>, Trap> {
        Ok(Some(F80::ZERO))
    }
}
impl Second for M32 {
    type In = F32;
    const REACH: Reach = Reach::Memory;
    fn fetch(cpu: &mut Cpu, op: &Op) -> Result<Option<u32>, Trap> {
        load(cpu, op).map(Some)
    }
}
impl Second for M64 {
    type In = F64;
    const REACH: Reach = Reach::Memory;
    fn fetch(cpu: &mut Cpu, op: &Op) -> Result<Option<u64>, Trap> {
        load(cpu, op).map(Some)
    }
}
impl Second for I16 {
    type In = F80;
    const REACH: Reach = Reach::Memory;
    fn fetch(cpu: &mut Cpu, op: &Op) -> Result<Option<F80>, Trap> {
        let value: u16 = load(cpu, op)?;
        Ok(Some(integer((value as i16).into())))
    }
}
impl Second for I32 {
    type In = F80;
    const REACH: Reach = Reach::Memory;
    fn fetch(cpu: &mut Cpu, op: &Op) -> Result<Option<F80>, Trap> {
        let value: u32 = load(cpu, op)?;
        Ok(Some(integer((value as i32).into())))
    }
}

/// An integer as an 80-bit number, which is always exact.
pub(crate) fn integer(value: i64) -> F80 {
    soft::from_i64::<F80>(value, &mut { Env::DEFAULT })
}
