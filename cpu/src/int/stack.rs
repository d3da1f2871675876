//! PUSH, POP and what they share with everything that uses the stack.
//!
//! The stack pointer has 64 bits in 64-bit mode, otherwise as many as SS.B says. RSP changes only after the access.

use core::marker::PhantomData;

use crate::address::{Addressing, Use, linear_in_segment};
use crate::cpu::Cpu;
use crate::dispatch::Sem;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::{Op, ZERO};
use crate::segment::SegReg;
use crate::system::stack::Stack;
use crate::width::Width;

const RSP: u8 = 4;
const SS: u8 = SegReg::Ss as u8;

impl Cpu {
    /// The stack pointer, as wide as the stack.
    #[inline]
    pub fn stack_pointer(&self) -> u64 {
        self.gpr[RSP as usize] & self.stack_mask()
    }

    /// Writes as much of RSP as the stack is wide.
    #[inline]
    pub fn set_stack_pointer(&mut self, value: u64) {
        match self.key.stack_bytes() {
            8 => self.gpr[RSP as usize] = value,
            4 => self.set_reg(RSP, value as u32),
            _ => self.set_reg(RSP, value as u16),
        }
    }

    fn stack_mask(&self) -> u64 {
        match self.key.stack_bytes() {
            8 => u64::MAX,
            4 => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    /// The linear address of `len` bytes at stack offset `offset`.
    pub fn stack_linear(&self, offset: u64, len: u64, usage: Use) -> Result<u64, emu_core::Exception> {
        linear_in_segment(self, SS, offset & self.stack_mask(), len, usage)
    }
}

/// Pushes a value in any mode.
#[inline]
pub(crate) fn push<P: Path, T: Width>(cpu: &mut Cpu, value: T) -> Result<(), P::Stop> {
    let sp = cpu.stack_pointer().wrapping_sub(T::BYTES);
    let linear = cpu.stack_linear(sp, T::BYTES, Use::Write)?;
    P::store(cpu, linear, SS, value)?;
    cpu.set_stack_pointer(sp);
    Ok(())
}

/// Pops a value in any mode.
#[inline]
pub(crate) fn pop<P: Path, T: Width>(cpu: &mut Cpu) -> Result<T, P::Stop> {
    let sp = cpu.stack_pointer();
    let linear = cpu.stack_linear(sp, T::BYTES, Use::Read)?;
    let value = P::load(cpu, linear, SS)?;
    cpu.set_stack_pointer(sp.wrapping_add(T::BYTES));
    Ok(value)
}

/// PUSH r64 in 64-bit mode
pub(crate) struct PushReg64;
impl Sem for PushReg64 {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let rsp = cpu.gpr[RSP as usize].wrapping_sub(8);
        let value: u64 = cpu.reg(op.dst);
        P::store(cpu, rsp, SS, value)?;
        cpu.gpr[RSP as usize] = rsp;
        Ok(())
    }
}

/// POP r64 in 64-bit mode. POP RSP: the loaded value wins.
pub(crate) struct PopReg64;
impl Sem for PopReg64 {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let rsp = cpu.gpr[RSP as usize];
        let value: u64 = P::load(cpu, rsp, SS)?;
        cpu.gpr[RSP as usize] = rsp.wrapping_add(8);
        cpu.set_reg(op.dst, value);
        Ok(())
    }
}

/// PUSH of a register (low part), any mode
pub(crate) struct PushReg<T>(PhantomData<T>);
impl<T: Width> Sem for PushReg<T> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        push::<P, T>(cpu, cpu.reg(op.dst))
    }
}

/// PUSH imm, any mode
pub(crate) struct PushImm<T>(PhantomData<T>);
impl<T: Width> Sem for PushImm<T> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        push::<P, T>(cpu, T::truncate(op.imm.get()))
    }
}

/// PUSH mem, any mode
pub(crate) struct PushMem<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for PushMem<T, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let value: T = P::load(cpu, linear, op.seg)?;
        push::<P, T>(cpu, value)
    }
}

/// POP of a register (low part), any mode
pub(crate) struct PopReg<T>(PhantomData<T>);
impl<T: Width> Sem for PopReg<T> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let value = pop::<P, T>(cpu)?;
        cpu.set_reg(op.dst, value);
        Ok(())
    }
}

/// POP mem, any mode: the address is formed with the incremented stack pointer.
pub(crate) struct PopMem<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for PopMem<T, A> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let before = cpu.gpr[RSP as usize];
        let value = pop::<P, T>(cpu)?;
        let stored = A::linear(cpu, op, 0, T::BYTES, Use::Write)
            .map_err(P::Stop::from)
            .and_then(|linear| P::store(cpu, linear, op.seg, value));
        if stored.is_err() {
            cpu.gpr[RSP as usize] = before;
        }
        stored
    }
}

/// LEAVE: rSP := rBP, then POP rBP
pub(crate) struct Leave<T>(PhantomData<T>);
impl<T: Width> Sem for Leave<T> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, _op: &Op) -> Result<(), P::Stop> {
        let sp = cpu.gpr[5] & cpu.stack_mask();
        let linear = cpu.stack_linear(sp, T::BYTES, Use::Read)?;
        let value: T = P::load(cpu, linear, SS)?;
        cpu.set_stack_pointer(sp.wrapping_add(T::BYTES));
        cpu.set_reg(5, value);
        Ok(())
    }
}

/// ENTER imm16, imm8 (frame size in `imm`, nesting level in `aux`)
pub(crate) struct Enter<T>(PhantomData<T>);
impl<T: Width> crate::dispatch::Act for Enter<T> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let level = op.aux & 31;
        let mask = cpu.stack_mask();
        let mut sp = cpu.stack_pointer().wrapping_sub(T::BYTES) & mask;
        let frame = sp;
        let linear = cpu.stack_linear(sp, T::BYTES, Use::Write)?;
        Slow::store(cpu, linear, SS, cpu.reg::<T>(5))?;
        let mut display = cpu.gpr[5] & mask;
        for n in 1..=level {
            let link: T = if n < level {
                display = display.wrapping_sub(T::BYTES) & mask;
                let linear = cpu.stack_linear(display, T::BYTES, Use::Read)?;
                Slow::load(cpu, linear, SS)?
            } else {
                T::truncate(frame)
            };
            sp = sp.wrapping_sub(T::BYTES) & mask;
            let linear = cpu.stack_linear(sp, T::BYTES, Use::Write)?;
            Slow::store(cpu, linear, SS, link)?;
        }
        sp = sp.wrapping_sub(op.imm.get() & 0xffff) & mask;
        // The new top must be writable, or the instruction faults as a whole.
        let linear = cpu.stack_linear(sp, T::BYTES, Use::Write)?;
        Slow::probe_store(cpu, linear, SS, T::BYTES)?;
        cpu.set_reg(5, T::truncate(frame));
        cpu.set_stack_pointer(sp);
        Ok(())
    }
}

/// PUSHA, PUSHAD: the eight registers in their order, RSP as it was
pub(crate) struct PushAll<T>(PhantomData<T>);
impl<T: Width> crate::dispatch::Act for PushAll<T> {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        let mut stack = Stack::current(cpu);
        for n in 0..8 {
            stack.push(cpu, cpu.reg::<T>(n).zero_extend(), T::BYTES as u8)?;
        }
        stack.commit(cpu);
        Ok(())
    }
}

/// POPA, POPAD: what PUSHA has pushed, RSP's place left out
pub(crate) struct PopAll<T>(PhantomData<T>);
impl<T: Width> crate::dispatch::Act for PopAll<T> {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        let mut stack = Stack::current(cpu);
        let mut popped = [T::truncate(0); 8];
        for n in (0..8_u8).rev() {
            if n == RSP {
                stack.release(T::BYTES);
            } else {
                popped[n as usize] = T::truncate(stack.pop(cpu, T::BYTES as u8)?);
            }
        }
        stack.commit(cpu);
        for n in (0..8).filter(|&n| n != RSP) {
            cpu.set_reg(n, popped[n as usize]);
        }
        Ok(())
    }
}

const _: () = assert!(ZERO != RSP);
