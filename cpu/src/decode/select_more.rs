//! The other general-purpose instructions: shifts, multiplication, bits, exchange, strings, decimal.

use iced_x86::{Mnemonic, OpKind};

use super::operand::{
    address_bits, by_address, by_wide, by_width, gpr, immediate, is_memory, memory, operand_segment, size,
    slow_by_address,
};
use super::{ALL_FLAGS, Context, Lowered};
use crate::dispatch::{cold, pure, slow};
use crate::int::arith::{self, Mem, Reg};
use crate::int::bits::{self, BitMem, BitReg, BmiOp, ScanOp};
use crate::int::shift::{self, ByCl, ByImm, DoubleMem, DoubleReg, FlaglessMem, FlaglessReg, ShiftMem, ShiftReg};
use crate::int::string::{self, StringInsn};
use crate::int::{atomic, decimal, port_string};
use crate::op::Handler;

/// Both instances of a meaning that takes its source from a register or from memory.
macro_rules! sourced {
    ($context:expr, $op:ident, $n:expr, $picker:ident, $width:expr, |$S:ident| $Sem:ty) => {
        if is_memory($context, $n) {
            let form = memory($context, &mut $op);
            $picker!(
                $width,
                match form {
                    super::operand::AddressForm::Base64 => {
                        type $S = Mem<crate::address::Base64>;
                        crate::dispatch::hot::<$Sem> as Handler
                    }
                    super::operand::AddressForm::Full64 => {
                        type $S = Mem<crate::address::Full64>;
                        crate::dispatch::hot::<$Sem> as Handler
                    }
                    super::operand::AddressForm::Legacy => {
                        type $S = Mem<crate::address::Legacy>;
                        cold::<$Sem> as Handler
                    }
                }
            )
        } else {
            type $S = Reg;
            $op.src = gpr($context.insn.op_register($n));
            $picker!($width, crate::dispatch::hot::<$Sem> as Handler)
        }
    };
}

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let insn = context.insn;
    match insn.mnemonic() {
        M::Shl | M::Sal => shift_op::<shift::Shl>(context),
        M::Shr => shift_op::<shift::Shr>(context),
        M::Sar => shift_op::<shift::Sar>(context),
        M::Rol => shift_op::<shift::Rol>(context),
        M::Ror => shift_op::<shift::Ror>(context),
        M::Rcl => shift_op::<shift::Rcl>(context),
        M::Rcr => shift_op::<shift::Rcr>(context),
        M::Shld => double_shift::<shift::Shld>(context),
        M::Shrd => double_shift::<shift::Shrd>(context),
        M::Shlx => flagless::<shift::Shl>(context),
        M::Shrx => flagless::<shift::Shr>(context),
        M::Sarx => flagless::<shift::Sar>(context),
        M::Rorx => flagless::<shift::Ror>(context),
        M::Inc => unary::<arith::Inc>(context, ALL_FLAGS & !iced_x86::RflagsBits::CF, iced_x86::RflagsBits::CF),
        M::Dec => unary::<arith::Dec>(context, ALL_FLAGS & !iced_x86::RflagsBits::CF, iced_x86::RflagsBits::CF),
        M::Neg => unary::<arith::Neg>(context, ALL_FLAGS, 0),
        M::Not => unary::<arith::Not>(context, 0, 0),
        M::Mul | M::Imul | M::Div | M::Idiv => multiply(context),
        M::Mulx => {
            let mut op = context.op(cold::<arith::Mulx<u64, Reg>>);
            op.dst = gpr(insn.op0_register());
            op.aux = gpr(insn.op1_register()) as u16;
            let width = size(context, 0);
            op.run = sourced!(context, op, 2, by_wide, width, |S| arith::Mulx<T, S>)?;
            Some(Lowered::new(op))
        }
        M::Adcx => add_through::<false>(context),
        M::Adox => add_through::<true>(context),
        M::Cbw => implied(context, pure::<arith::ExtendAx<u8>>),
        M::Cwde => implied(context, pure::<arith::ExtendAx<u16>>),
        M::Cdqe => implied(context, pure::<arith::ExtendAx<u32>>),
        M::Cwd => implied(context, pure::<arith::SignToDx<u16>>),
        M::Cdq => implied(context, pure::<arith::SignToDx<u32>>),
        M::Cqo => implied(context, pure::<arith::SignToDx<u64>>),
        M::Bt => bit_test::<bits::Bt>(context),
        M::Bts => bit_test::<bits::Bts>(context),
        M::Btr => bit_test::<bits::Btr>(context),
        M::Btc => bit_test::<bits::Btc>(context),
        M::Bsf => scan::<bits::Bsf>(context),
        M::Bsr => scan::<bits::Bsr>(context),
        M::Tzcnt => scan::<bits::Tzcnt>(context),
        M::Lzcnt => scan::<bits::Lzcnt>(context),
        M::Popcnt => scan::<bits::Popcnt>(context),
        M::Andn => bmi::<bits::Andn>(context, 2, Some(1)),
        M::Bextr => bmi::<bits::Bextr>(context, 1, Some(2)),
        M::Bzhi => bmi::<bits::Bzhi>(context, 1, Some(2)),
        M::Blsi => bmi::<bits::Blsi>(context, 1, None),
        M::Blsmsk => bmi::<bits::Blsmsk>(context, 1, None),
        M::Blsr => bmi::<bits::Blsr>(context, 1, None),
        M::Pdep => bmi::<bits::Pdep>(context, 2, Some(1)),
        M::Pext => bmi::<bits::Pext>(context, 2, Some(1)),
        M::Movbe => {
            let mut op = context.op(cold::<bits::LoadSwapped<u64, crate::address::Full64>>);
            let form = memory(context, &mut op);
            op.run = if is_memory(context, 0) {
                op.src = gpr(insn.op1_register());
                by_wide!(size(context, 0), by_address!(form, bits::StoreSwapped<T, A>))?
            } else {
                op.dst = gpr(insn.op0_register());
                by_wide!(size(context, 1), by_address!(form, bits::LoadSwapped<T, A>))?
            };
            Some(Lowered::new(op))
        }
        M::Crc32 => {
            let mut op = context.op(cold::<bits::Crc32<u64, Reg>>);
            op.dst = gpr(insn.op0_register());
            let width = size(context, 1);
            op.run = sourced!(context, op, 1, by_width, width, |S| bits::Crc32<T, S>)?;
            Some(Lowered::new(op))
        }
        M::Xadd => exchange_add(context),
        M::Cmpxchg => compare_exchange(context),
        M::Cmpxchg8b => {
            let mut op = context.op(cold::<atomic::Cmpxchg8b<crate::address::Full64>>);
            let form = memory(context, &mut op);
            op.run = by_address!(form, atomic::Cmpxchg8b<A>);
            Some(Lowered::new(op))
        }
        M::Cmpxchg16b => {
            let mut op = context.op(slow::<atomic::Cmpxchg16b<crate::address::Full64>>);
            let form = memory(context, &mut op);
            op.run = slow_by_address!(form, atomic::Cmpxchg16b<A>);
            Some(Lowered::new(op))
        }
        M::Clc => implied(context, pure::<decimal::Clc>),
        M::Stc => implied(context, pure::<decimal::Stc>),
        M::Cmc => implied(context, pure::<decimal::Cmc>),
        M::Cld => implied(context, pure::<decimal::Cld>),
        M::Std => implied(context, pure::<decimal::Std>),
        M::Lahf => implied(context, pure::<decimal::Lahf>),
        M::Sahf => implied(context, pure::<decimal::Sahf>),
        M::Salc => implied(context, pure::<decimal::Salc>),
        M::Daa => implied(context, pure::<decimal::Daa>),
        M::Das => implied(context, pure::<decimal::Das>),
        M::Aaa => implied(context, pure::<decimal::Aaa>),
        M::Aas => implied(context, pure::<decimal::Aas>),
        M::Aad | M::Aam => {
            let run: Handler = if insn.mnemonic() == M::Aad { pure::<decimal::Aad> } else { slow::<decimal::Aam> };
            let op = context.op(run);
            op.imm.set(insn.immediate8() as u64);
            Some(Lowered::new(op))
        }
        M::Movsb | M::Movsw | M::Movsq => string_op::<string::Movs>(context),
        M::Movsd if insn.is_string_instruction() => string_op::<string::Movs>(context),
        M::Cmpsb | M::Cmpsw | M::Cmpsq => string_op::<string::Cmps>(context),
        M::Cmpsd if insn.is_string_instruction() => string_op::<string::Cmps>(context),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => string_op::<string::Stos>(context),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => string_op::<string::Lods>(context),
        M::Insb | M::Insw | M::Insd => string_op::<port_string::Ins>(context),
        M::Outsb | M::Outsw | M::Outsd => string_op::<port_string::Outs>(context),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => string_op::<string::Scas>(context),
        _ => None,
    }
}

/// An instruction whose operands are implied. Nothing is assumed about its flags.
fn implied(context: &Context<'_>, run: Handler) -> Option<Lowered> {
    Some(Lowered::new(context.op(run)))
}

fn shift_op<S: shift::Shift>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    let by_register = insn.op1_kind() == OpKind::Register;
    if !by_register {
        op.imm.set(immediate(context, 1)?);
    }
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = match by_register {
            true => by_width!(width, by_address!(form, ShiftMem<S, T, ByCl, A>))?,
            false => by_width!(width, by_address!(form, ShiftMem<S, T, ByImm, A>))?,
        };
        return Some(Lowered::new(op));
    }
    op.dst = gpr(insn.op0_register());
    if by_register {
        op.run = by_width!(width, pure::<ShiftReg<S, T, ByCl, false>> as Handler)?;
        // CL may be zero: every flag may survive.
        return Some(Lowered { reads: ALL_FLAGS, ..Lowered::pure(op, insn) });
    }
    let (run, quiet) = by_width!(
        width,
        (pure::<ShiftReg<S, T, ByImm, false>> as Handler, pure::<ShiftReg<S, T, ByImm, true>> as Handler,)
    )?;
    op.run = run;
    let count = op.imm.get() & if width == 8 { 63 } else { 31 };
    let rotates = matches!(insn.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr);
    if count == 0 || rotates {
        return Some(Lowered { reads: ALL_FLAGS, ..Lowered::pure(op, insn) });
    }
    Some(Lowered { sets: ALL_FLAGS, quiet: Some(quiet), ..Lowered::pure(op, insn) })
}

fn double_shift<S: shift::DoubleShift>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.src = gpr(insn.op1_register());
    let by_register = insn.op2_kind() == OpKind::Register;
    if !by_register {
        op.imm.set(immediate(context, 2)?);
    }
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = match by_register {
            true => by_wide!(width, by_address!(form, DoubleMem<S, T, ByCl, A>))?,
            false => by_wide!(width, by_address!(form, DoubleMem<S, T, ByImm, A>))?,
        };
    } else {
        op.dst = gpr(insn.op0_register());
        op.run = match by_register {
            true => by_wide!(width, pure::<DoubleReg<S, T, ByCl>> as Handler)?,
            false => by_wide!(width, pure::<DoubleReg<S, T, ByImm>> as Handler)?,
        };
    }
    Some(Lowered::new(op))
}

fn flagless<S: shift::Shift>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.dst = gpr(insn.op0_register());
    let imm = immediate(context, 2);
    match imm {
        Some(value) => op.imm.set(value),
        None => op.aux = gpr(insn.op2_register()) as u16,
    }
    if is_memory(context, 1) {
        let form = memory(context, &mut op);
        op.run = match imm {
            Some(_) => by_wide!(width, by_address!(form, FlaglessMem<S, T, A, true>))?,
            None => by_wide!(width, by_address!(form, FlaglessMem<S, T, A, false>))?,
        };
        return Some(Lowered::new(op));
    }
    op.src = gpr(insn.op1_register());
    op.run = match imm {
        Some(_) => by_wide!(width, pure::<FlaglessReg<S, T, true>> as Handler)?,
        None => by_wide!(width, pure::<FlaglessReg<S, T, false>> as Handler)?,
    };
    Some(Lowered::pure(op, insn))
}

fn unary<U: arith::Unary>(context: &Context<'_>, sets: u32, reads: u32) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = by_width!(width, by_address!(form, arith::UnaryMem<U, T, A>))?;
        return Some(Lowered::new(op));
    }
    op.dst = gpr(context.insn.op0_register());
    let (run, quiet) = by_width!(
        width,
        (pure::<arith::UnaryReg<U, T, false>> as Handler, pure::<arith::UnaryReg<U, T, true>> as Handler,)
    )?;
    op.run = run;
    Some(Lowered { sets, reads, quiet: Some(quiet), ..Lowered::pure(op, context.insn) })
}

fn multiply(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let insn = context.insn;
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.run = match (insn.mnemonic(), insn.op_count()) {
        (M::Mul, _) => sourced!(context, op, 0, by_width, width, |S| arith::Mul<T, S>)?,
        (M::Imul, 1) => sourced!(context, op, 0, by_width, width, |S| arith::Imul1<T, S>)?,
        (M::Div, _) => sourced!(context, op, 0, by_width, width, |S| arith::Div<T, S>)?,
        (M::Idiv, _) => sourced!(context, op, 0, by_width, width, |S| arith::Idiv<T, S>)?,
        (M::Imul, 2) => {
            op.dst = gpr(insn.op0_register());
            sourced!(context, op, 1, by_wide, width, |S| arith::Imul2<T, S>)?
        }
        (M::Imul, _) => {
            op.dst = gpr(insn.op0_register());
            op.imm.set(immediate(context, 2)?);
            sourced!(context, op, 1, by_wide, width, |S| arith::Imul3<T, S>)?
        }
        _ => return None,
    };
    Some(Lowered::new(op))
}

fn add_through<const OF: bool>(context: &Context<'_>) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.dst = gpr(context.insn.op0_register());
    op.run = sourced!(context, op, 1, by_wide, width, |S| arith::AddThrough<T, S, OF>)?;
    Some(Lowered::new(op))
}

fn bit_test<B: bits::BitOp>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    let imm = immediate(context, 1);
    match imm {
        Some(value) => op.imm.set(value),
        None => op.src = gpr(insn.op1_register()),
    }
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = match imm {
            Some(_) => by_wide!(width, by_address!(form, BitMem<B, T, A, true>))?,
            None => by_wide!(width, by_address!(form, BitMem<B, T, A, false>))?,
        };
    } else {
        op.dst = gpr(insn.op0_register());
        op.run = match imm {
            Some(_) => by_wide!(width, pure::<BitReg<B, T, true>> as Handler)?,
            None => by_wide!(width, pure::<BitReg<B, T, false>> as Handler)?,
        };
    }
    Some(Lowered::new(op))
}

fn scan<C: bits::Scan>(context: &Context<'_>) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.dst = gpr(context.insn.op0_register());
    op.run = sourced!(context, op, 1, by_wide, width, |S| ScanOp<C, T, S>)?;
    Some(Lowered::new(op))
}

/// A BMI instruction with its r/m operand at `source` and its other register at `other`.
fn bmi<B: bits::Bmi>(context: &Context<'_>, source: u32, other: Option<u32>) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.dst = gpr(context.insn.op0_register());
    if let Some(n) = other {
        op.aux = gpr(context.insn.op_register(n)) as u16;
    }
    op.run = sourced!(context, op, source, by_wide, width, |S| BmiOp<B, T, S>)?;
    Some(Lowered::new(op))
}

fn exchange_add(context: &Context<'_>) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.src = gpr(context.insn.op1_register());
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = by_width!(width, by_address!(form, atomic::XaddMem<T, A>))?;
    } else {
        op.dst = gpr(context.insn.op0_register());
        op.run = by_width!(width, pure::<atomic::XaddReg<T>> as Handler)?;
    }
    Some(Lowered::new(op))
}

fn compare_exchange(context: &Context<'_>) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<decimal::Clc>);
    op.src = gpr(context.insn.op1_register());
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = by_width!(width, by_address!(form, atomic::CmpxchgMem<T, A>))?;
    } else {
        op.dst = gpr(context.insn.op0_register());
        op.run = by_width!(width, pure::<atomic::CmpxchgReg<T>> as Handler)?;
    }
    Some(Lowered::new(op))
}

pub(crate) fn string_op<S: string::StringOp>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = context.op(pure::<decimal::Clc>);
    op.run = by_width!(insn.memory_size().size(), slow::<StringInsn<S, T>> as Handler)?;
    op.scale = string_address_bits(context);
    op.seg = operand_segment(context);
    op.aux = if insn.has_repne_prefix() {
        string::REPNE
    } else if insn.has_rep_prefix() {
        string::REP
    } else {
        string::ONCE
    };
    Some(Lowered::new(op))
}

/// Width of the address registers a string instruction uses, from its operand kinds.
fn string_address_bits(context: &Context<'_>) -> u8 {
    for n in 0..context.insn.op_count() {
        match context.insn.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 64,
            _ => {}
        }
    }
    address_bits(context) as u8
}
