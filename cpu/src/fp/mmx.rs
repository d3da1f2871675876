//! Conversions between vector registers and MMX registers: CVTPI2PS and its kin (APM vol. 4).
//!
//! Like all MMX instructions they report a pending x87 exception first and leave TOP at 0 and every tag in use; those
//! that only read memory instead of an MMX register do not touch the x87 state. The transition happens even when the
//! conversion itself raises #XM, as on AMD processors.

use core::marker::PhantomData;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::fp::convert::Conversion;
use crate::fp::operand::REGISTER;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::simd::form::demand_alignment;
use crate::softfloat::F80;
use crate::vector::V128;

/// What retiring an MMX instruction does to the x87 state.
fn enter(cpu: &mut Cpu) {
    cpu.x87.set_top(0);
    cpu.x87.valid = 0xff;
}

/// CVTPI2PS and CVTPI2PD: two integers to two elements; CVTPI2PS keeps the upper half of the register.
pub(crate) struct FromMmx<C>(PhantomData<C>);
impl<C: Conversion> Act for FromMmx<C> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let register = op.aux & REGISTER != 0;
        let from = if register {
            cpu.check_x87_pending()?;
            cpu.x87.regs[op.src as usize % 8].significand
        } else {
            let linear = Legacy::linear(cpu, op, 0, 8, Use::Read)?;
            Slow::load(cpu, linear, op.seg)?
        };
        let mut env = cpu.sse_env();
        let (low, high) = (C::one(from & 0xffff_ffff, 0, &mut env), C::one(from >> 32, 0, &mut env));
        if register {
            enter(cpu);
        }
        cpu.settle(&env)?;
        let result = match C::TO {
            4 => cpu.vector.xmm(op.dst).to_u128() >> 64 << 64 | u128::from(high << 32 | low),
            _ => u128::from(high) << 64 | u128::from(low),
        };
        cpu.vector.set_xmm(op.dst, V128::from_u128(result));
        Ok(())
    }
}

/// CVTPS2PI, CVTPD2PI and their truncating forms: two elements to two integers.
pub(crate) struct ToMmx<C>(PhantomData<C>);
impl<C: Conversion> Act for ToMmx<C> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let from: u128 = if op.aux & REGISTER != 0 {
            cpu.vector.xmm(op.src).to_u128()
        } else {
            let linear = Legacy::linear(cpu, op, 0, 2 * C::FROM as u64, Use::Read)?;
            if C::FROM == 8 {
                demand_alignment::<true>(linear, 16)?;
                Slow::load(cpu, linear, op.seg)?
            } else {
                u128::from(Slow::load::<u64>(cpu, linear, op.seg)?)
            }
        };
        let bits = 8 * C::FROM as u32;
        let mut env = cpu.sse_env();
        let mask = u64::MAX >> (64 - bits);
        let low = C::one(from as u64 & mask, 0, &mut env);
        let high = C::one((from >> bits) as u64 & mask, 0, &mut env);
        enter(cpu);
        cpu.settle(&env)?;
        cpu.x87.regs[op.dst as usize % 8] = F80::new(0xffff, high << 32 | low);
        Ok(())
    }
}
