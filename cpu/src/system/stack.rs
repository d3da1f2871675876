//! A stack that is not, or not yet, the program's own: what event delivery, gates and far returns push to and pop from.
//!
//! Nothing of the processor changes by a push or a pop; [`Stack::commit`] makes the stack current at the end.

use emu_core::exception::SelectorError;
use emu_core::{Exception, Privilege};

use crate::cpu::Cpu;
use crate::exit::Trap;
use crate::segment::{SegReg, Segment};
use crate::system::descriptor::Selector;

const RSP: u8 = 4;

/// How wide the stack pointer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackWidth {
    Bits16,
    Bits32,
    /// No base and no limit.
    Bits64,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub segment: Segment,
    pub sp: u64,
    pub width: StackWidth,
    privilege: Privilege,
    /// What a stack fault reports.
    error: SelectorError,
}

impl Stack {
    /// The program's stack as it is.
    pub fn current(cpu: &Cpu) -> Stack {
        let width = match cpu.key.stack_bytes() {
            8 => StackWidth::Bits64,
            4 => StackWidth::Bits32,
            _ => StackWidth::Bits16,
        };
        Stack {
            segment: *cpu.segments.get(SegReg::Ss),
            sp: cpu.stack_pointer(),
            width,
            privilege: cpu.privilege(),
            error: SelectorError::NONE,
        }
    }

    /// The stack at `sp` of 64-bit code at `cpl`; `segment` is what SS will hold.
    pub fn long(segment: Segment, sp: u64, cpl: u8) -> Stack {
        Stack { segment, sp, width: StackWidth::Bits64, privilege: privilege(cpl), error: SelectorError::NONE }
    }

    /// The stack at `sp` of an inner ring in legacy mode.
    pub fn inner(segment: Segment, sp: u64, cpl: u8) -> Stack {
        let width = if segment.attributes.db() { StackWidth::Bits32 } else { StackWidth::Bits16 };
        Stack { segment, sp, width, privilege: privilege(cpl), error: Selector(segment.selector).error() }
    }

    const fn mask(&self) -> u64 {
        match self.width {
            StackWidth::Bits16 => 0xffff,
            StackWidth::Bits32 => 0xffff_ffff,
            StackWidth::Bits64 => u64::MAX,
        }
    }

    fn linear(&self, cpu: &Cpu, offset: u64, bytes: u64) -> Result<u64, Trap> {
        let refused = Exception::StackFault(self.error);
        if self.width == StackWidth::Bits64 {
            let last = offset.wrapping_add(bytes - 1);
            let sound = cpu.is_canonical(offset) && cpu.is_canonical(last);
            return if sound { Ok(offset) } else { Err(refused.into()) };
        }
        let real = cpu.mode.is_real_addressing();
        if !self.segment.contains(offset, bytes) || !real && !self.segment.attributes.is_writable() {
            return Err(refused.into());
        }
        Ok(self.segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Pushes the low `bytes` bytes of `value`.
    pub fn push(&mut self, cpu: &mut Cpu, value: u64, bytes: u8) -> Result<(), Trap> {
        let sp = self.sp.wrapping_sub(bytes as u64) & self.mask();
        let linear = self.linear(cpu, sp, bytes as u64)?;
        match bytes {
            2 => cpu.store_as(linear, self.privilege, value as u16)?,
            4 => cpu.store_as(linear, self.privilege, value as u32)?,
            _ => cpu.store_as(linear, self.privilege, value)?,
        }
        self.sp = sp;
        Ok(())
    }

    /// Pops `bytes` bytes.
    pub fn pop(&mut self, cpu: &mut Cpu, bytes: u8) -> Result<u64, Trap> {
        let linear = self.linear(cpu, self.sp, bytes as u64)?;
        let value = match bytes {
            2 => cpu.load_as::<u16>(linear, self.privilege)? as u64,
            4 => cpu.load_as::<u32>(linear, self.privilege)? as u64,
            _ => cpu.load_as::<u64>(linear, self.privilege)?,
        };
        self.sp = self.sp.wrapping_add(bytes as u64) & self.mask();
        Ok(value)
    }

    /// Gives up `bytes` bytes.
    pub fn release(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & self.mask();
    }

    /// Writes RSP, as much of it as this stack is wide. SS is the caller's.
    pub fn commit(&self, cpu: &mut Cpu) {
        match self.width {
            StackWidth::Bits64 => cpu.gpr[RSP as usize] = self.sp,
            StackWidth::Bits32 => cpu.set_reg(RSP, self.sp as u32),
            StackWidth::Bits16 => cpu.set_reg(RSP, self.sp as u16),
        }
    }
}

const fn privilege(cpl: u8) -> Privilege {
    if cpl == 3 { Privilege::User } else { Privilege::Supervisor }
}
