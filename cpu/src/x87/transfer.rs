//! FLD, FST, FILD, FIST, FBLD, FBSTP, constants, FXCH and FCMOVcc (SDM vol. 1, 8.3.3 and 8.3.4).

use core::marker::PhantomData;

use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::op::Op;
use crate::softfloat::x87::{self as soft87, Constant};
use crate::softfloat::{self as soft, Destination, Env, F32, F64, F80, IntWidth, Rounding};
use crate::x87::C1;
use crate::x87::stack::{I16, I32, Image, M32, M64, Reach, Second, St, integer, load, load80, note};

/// What a load pushes.
pub(crate) trait Loaded {
    const REACH: Reach;
    /// `None` if it is an empty register.
    fn fetch(cpu: &mut Cpu, op: &Op, env: &mut Env) -> Result<Option<F80>, Trap>;
}

macro_rules! loaded {
    ($($Name:ty, $reach:ident: |$cpu:ident, $op:ident, $env:ident| $body:expr;)*) => {$(
        impl Loaded for $Name {
            const REACH: Reach = Reach::$reach;
            fn fetch($cpu: &mut Cpu, $op: &Op, $env: &mut Env) -> Result<Option<F80>, Trap> {
                $body
            }
        }
    )*};
}

/// m80fp
pub(crate) struct M80;
/// m64int
pub(crate) struct I64;
/// m80bcd
pub(crate) struct Bcd;
/// 1.0
pub(crate) struct One;
/// The constant whose number is in `src`.
pub(crate) struct Irrational;

loaded! {
    St, Stack: |cpu, op, _env| <St as Second>::fetch(cpu, op);
    M32, Memory: |cpu, op, env| Ok(Some(soft::convert::<F32, F80>(load(cpu, op)?, env)));
    M64, Memory: |cpu, op, env| Ok(Some(soft::convert::<F64, F80>(load(cpu, op)?, env)));
    M80, Memory: |cpu, op, _env| Ok(Some(F80::from_bytes(load80(cpu, op)?)));
    I16, Memory: |cpu, op, _env| <I16 as Second>::fetch(cpu, op);
    I32, Memory: |cpu, op, _env| <I32 as Second>::fetch(cpu, op);
    I64, Memory: |cpu, op, _env| Ok(Some(integer(load::<u64>(cpu, op)? as i64)));
    Bcd, Memory: |cpu, op, _env| Ok(Some(soft87::fbld(load80(cpu, op)?)));
    One, Stack: |_cpu, _op, _env| Ok(Some(F80::ONE));
    crate::x87::stack::Zero, Stack: |_cpu, _op, _env| Ok(Some(F80::ZERO));
    Irrational, Stack: |_cpu, op, env| {
        const ALL: [Constant; 5] =
            [Constant::Pi, Constant::Log2Of10, Constant::Log2OfE, Constant::Log10Of2, Constant::LnOf2];
        Ok(Some(soft87::constant(ALL[op.src as usize % ALL.len()], env.rounding)))
    };
}

/// Pushes a value.
pub(crate) struct Push<L>(PhantomData<L>);
impl<L: Loaded> Act for Push<L> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let mut env = cpu.x87.env();
        let value = L::fetch(cpu, op, &mut env)?;
        note(cpu, op, L::REACH);
        let x87 = &mut cpu.x87;
        // ST(7) becomes ST(0).
        let masked = match value {
            None => x87.underflow().then_some(F80::INDEFINITE),
            _ if !x87.is_empty(7) => x87.overflow().then_some(F80::INDEFINITE),
            Some(value) => x87.settle(&env, Destination::Push).then_some(value),
        };
        if let Some(value) = masked {
            x87.push(value);
        }
        Ok(())
    }
}

/// What a store writes to memory.
pub(crate) trait Stored {
    type Bits: Image;
    fn convert(value: F80, env: &mut Env) -> Self::Bits;
}

macro_rules! stored {
    ($($(#[$doc:meta])* $Name:ident: $bits:ty, |$value:ident, $env:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $Name;
        impl Stored for $Name {
            type Bits = $bits;
            fn convert($value: F80, $env: &mut Env) -> $bits {
                $body
            }
        }
    )*};
}

stored! {
    /// FST m32fp
    ToM32: u32, |value, env| soft::convert::store::<F32>(value, env);
    /// FST m64fp
    ToM64: u64, |value, env| soft::convert::store::<F64>(value, env);
    /// FSTP m80fp
    ToM80: [u8; 10], |value, _env| value.to_bytes();
    /// FIST m16int
    ToI16: u16, |value, env| soft::to_signed::<F80>(value, IntWidth::Bits16, env.rounding, env) as u16;
    /// FIST m32int
    ToI32: u32, |value, env| soft::to_signed::<F80>(value, IntWidth::Bits32, env.rounding, env) as u32;
    /// FISTP m64int
    ToI64: u64, |value, env| soft::to_signed::<F80>(value, IntWidth::Bits64, env.rounding, env) as u64;
    /// FISTTP m16int
    ToI16Truncated: u16, |value, env| soft::to_signed::<F80>(value, IntWidth::Bits16, Rounding::Zero, env) as u16;
    /// FISTTP m32int
    ToI32Truncated: u32, |value, env| soft::to_signed::<F80>(value, IntWidth::Bits32, Rounding::Zero, env) as u32;
    /// FISTTP m64int
    ToI64Truncated: u64, |value, env| soft::to_signed::<F80>(value, IntWidth::Bits64, Rounding::Zero, env) as u64;
    /// FBSTP
    ToBcd: [u8; 10], |value, env| soft87::fbstp(value, env);
}

/// Stores ST(0) to memory, and pops if `POP`.
pub(crate) struct StoreMem<T, const POP: bool>(PhantomData<T>);
impl<T: Stored, const POP: bool> Act for StoreMem<T, POP> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let empty = cpu.x87.is_empty(0);
        let mut env = cpu.x87.env();
        let value = T::convert(if empty { F80::INDEFINITE } else { cpu.x87.st(0) }, &mut env);
        let masked = if empty { cpu.x87.fcw & crate::x87::IE != 0 } else { env.x87_outcome(Destination::Memory).write };
        if masked {
            // The last thing that can fail.
            value.store(cpu, op)?;
        } else {
            <T::Bits as Image>::probe(cpu, op)?;
        }
        note(cpu, op, Reach::Memory);
        if empty {
            cpu.x87.underflow();
        } else {
            cpu.x87.settle(&env, Destination::Memory);
        }
        if POP && masked {
            cpu.x87.pop();
        }
        Ok(())
    }
}

/// FST ST(i), and FSTP ST(i) if `POP`: to register `dst`.
pub(crate) struct StoreReg<const POP: bool>;
impl<const POP: bool> Act for StoreReg<POP> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        let value = if x87.is_empty(0) {
            x87.underflow().then_some(F80::INDEFINITE)
        } else {
            x87.fsw &= !C1;
            Some(x87.st(0))
        };
        if let Some(value) = value {
            x87.set_st(op.dst, value);
            if POP {
                x87.pop();
            }
        }
        Ok(())
    }
}

/// FSTPNCE: FSTP that does not check for an empty register, in which case it only pops.
pub(crate) struct Fstpnce;
impl Act for Fstpnce {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        x87.fsw &= !C1;
        if !x87.is_empty(0) {
            x87.set_st(op.dst, x87.st(0));
        }
        x87.pop();
        Ok(())
    }
}

/// FXCH ST(i)
pub(crate) struct Fxch;
impl Act for Fxch {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        x87.fsw &= !C1;
        let (a, b) = (x87.is_empty(0), x87.is_empty(op.src));
        if (a || b) && !x87.underflow() {
            return Ok(());
        }
        let first = if a { F80::INDEFINITE } else { x87.st(0) };
        let second = if b { F80::INDEFINITE } else { x87.st(op.src) };
        x87.set_st(0, second);
        x87.set_st(op.src, first);
        Ok(())
    }
}

/// FCMOVcc ST(0), ST(i): `imm` is the condition's number: B, E, BE, U, and 4 more for the opposite.
pub(crate) struct Fcmov;
impl Act for Fcmov {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let flags = &cpu.flags;
        let kind = op.imm.get();
        let holds = match kind & 3 {
            0 => flags.cf(),
            1 => flags.zf(),
            2 => flags.cf() || flags.zf(),
            _ => flags.pf(),
        } != (kind & 4 != 0);
        let x87 = &mut cpu.x87;
        if x87.is_empty(0) || x87.is_empty(op.src) {
            if x87.underflow() {
                x87.set_st(0, F80::INDEFINITE);
            }
        } else if holds {
            x87.set_st(0, x87.st(op.src));
        }
        Ok(())
    }
}
