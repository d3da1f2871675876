//! The commonest general-purpose instructions: arithmetic, moves, stack.

use emu_core::cpu_model::Vendor;
use iced_x86::{Mnemonic, OpKind, Register};

use super::operand::{
    AddressForm, address_bits, by_address, by_condition, by_wide, by_width, gpr, immediate, is_memory, memory, size,
    slow_by_address,
};
use super::select_branch::condition_number;
use super::{ALL_FLAGS, Context, Lowered};
use crate::dispatch::{cold, hot, pure, slow};
use crate::int::alu::{self, FromImm, FromReg};
use crate::int::{mov, stack};
use crate::op::{Handler, Op};

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    macro_rules! binary {
        ($Op:ident) => {
            binary::<alu::$Op>(context)
        };
    }
    match context.insn.mnemonic() {
        M::Add => binary!(Add),
        M::Adc => binary!(Adc),
        M::Sub => binary!(Sub),
        M::Sbb => binary!(Sbb),
        M::And => binary!(And),
        M::Or => binary!(Or),
        M::Xor => binary!(Xor),
        M::Cmp => compare::<alu::Cmp>(context),
        M::Test => compare::<alu::Test>(context),
        M::Mov | M::Movnti => mov(context),
        M::Movzx => extend::<mov::Zero>(context),
        M::Movsx | M::Movsxd => extend::<mov::Sign>(context),
        M::Lea => lea(context),
        M::Xchg => xchg(context),
        M::Bswap => {
            let mut op = context.op(by_wide!(size(context, 0), pure::<mov::Bswap<T>> as Handler)?);
            op.dst = gpr(context.insn.op0_register());
            Some(Lowered::pure(op, context.insn))
        }
        M::Push => push(context),
        M::Pop => pop(context),
        M::Leave => {
            let run = by_wide!(
                stack_operand_bytes(context),
                match context.is_64() {
                    true => hot::<stack::Leave<T>> as Handler,
                    false => cold::<stack::Leave<T>> as Handler,
                }
            )?;
            Some(Lowered::new(context.op(run)))
        }
        M::Enter => {
            let mut op = context.op(by_wide!(stack_operand_bytes(context), slow::<stack::Enter<T>> as Handler)?);
            op.imm.set(context.insn.immediate16() as u64);
            op.aux = context.insn.immediate8_2nd() as u16;
            Some(Lowered::new(op))
        }
        M::Pusha => Some(Lowered::new(context.op(slow::<stack::PushAll<u16>>))),
        M::Pushad => Some(Lowered::new(context.op(slow::<stack::PushAll<u32>>))),
        M::Popa => Some(Lowered::new(context.op(slow::<stack::PopAll<u16>>))),
        M::Popad => Some(Lowered::new(context.op(slow::<stack::PopAll<u32>>))),
        M::Pause => pause(context),
        M::Nop
        | M::Endbr32
        | M::Endbr64
        | M::Rdsspd
        | M::Rdsspq
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Reservednop => Some(Lowered::pure(context.op(pure::<Nothing>), context.insn)),
        M::Xlatb => {
            let mut op = context.op(slow::<crate::int::branch::Xlat>);
            op.seg = super::operand::operand_segment(context);
            op.scale = address_bits(context) as u8;
            Some(Lowered::new(op))
        }
        _ if is_cmov(context) => cmov(context),
        _ if is_setcc(context) => setcc(context),
        _ => None,
    }
}

/// NOP and hints.
struct Nothing;
impl crate::dispatch::Pure for Nothing {
    #[inline(always)]
    fn exec(_cpu: &mut crate::cpu::Cpu, _op: &Op) {}
}

/// `op r/m, r|imm` and `op r, m` for operations that store.
fn binary<O: alu::Alu>(context: &Context<'_>) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<Nothing>);
    let imm = immediate(context, 1);
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = match imm {
            Some(value) => {
                op.imm.set(value);
                by_width!(width, by_address!(form, alu::ToMem<O, T, FromImm, A>))?
            }
            None => {
                op.src = gpr(context.insn.op1_register());
                by_width!(width, by_address!(form, alu::ToMem<O, T, FromReg, A>))?
            }
        };
        return Some(Lowered::new(op));
    }
    op.dst = gpr(context.insn.op0_register());
    if is_memory(context, 1) {
        let form = memory(context, &mut op);
        op.run = by_width!(width, by_address!(form, alu::RegMem<O, T, A>))?;
        return Some(Lowered::new(op));
    }
    let (loud, quiet) = match imm {
        Some(value) => {
            op.imm.set(value);
            by_width!(
                width,
                (
                    pure::<alu::ToReg<O, T, FromImm, false>> as Handler,
                    pure::<alu::ToReg<O, T, FromImm, true>> as Handler,
                )
            )?
        }
        None => {
            op.src = gpr(context.insn.op1_register());
            by_width!(
                width,
                (
                    pure::<alu::ToReg<O, T, FromReg, false>> as Handler,
                    pure::<alu::ToReg<O, T, FromReg, true>> as Handler,
                )
            )?
        }
    };
    op.run = loud;
    Some(Lowered { sets: ALL_FLAGS, quiet: Some(quiet), ..Lowered::pure(op, context.insn) })
}

macro_rules! fused {
    ($handler:ident, $($P:ty),+) => {
        |n: u8| by_condition!(n, fused_handler!($handler, C, $($P),+))
    };
}
macro_rules! fused_handler {
    (compare_jump, $C:ty, $K:ty, $T:ty, $S:ty) => {
        alu::compare_jump::<$K, $C, $T, $S> as Handler
    };
    (compare_mem_jump, $C:ty, $M:ty) => {
        alu::compare_mem_jump::<$M, $C> as Handler
    };
}

/// The fused forms of a comparison with memory; `$M` names the width `T`.
macro_rules! by_fused_width {
    ($width:expr, $M:ty) => {
        by_width!($width, fused!(compare_mem_jump, $M) as fn(u8) -> Handler)
    };
}

/// CMP and TEST, which store nothing and fuse with the jump after them.
fn compare<K: alu::Compare>(context: &Context<'_>) -> Option<Lowered> {
    let width = size(context, 0);
    let mut op = context.op(pure::<Nothing>);
    let imm = immediate(context, 1);
    if let Some(value) = imm {
        op.imm.set(value);
    }
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        let fuse: Option<fn(u8) -> Handler>;
        if imm.is_some() {
            op.run = by_width!(width, by_address!(form, alu::ToMem<K, T, FromImm, A>))?;
            fuse = match form {
                AddressForm::Base64 => by_fused_width!(width, alu::MemFirst<K, T, FromImm, crate::address::Base64>),
                AddressForm::Full64 => by_fused_width!(width, alu::MemFirst<K, T, FromImm, crate::address::Full64>),
                AddressForm::Legacy => None,
            };
        } else {
            op.src = gpr(context.insn.op1_register());
            op.run = by_width!(width, by_address!(form, alu::ToMem<K, T, FromReg, A>))?;
            fuse = match form {
                AddressForm::Base64 => by_fused_width!(width, alu::MemFirst<K, T, FromReg, crate::address::Base64>),
                AddressForm::Full64 => by_fused_width!(width, alu::MemFirst<K, T, FromReg, crate::address::Full64>),
                AddressForm::Legacy => None,
            };
        }
        return Some(Lowered { fuse, ..Lowered::new(op) });
    }
    op.dst = gpr(context.insn.op0_register());
    if is_memory(context, 1) {
        let form = memory(context, &mut op);
        op.run = by_width!(width, by_address!(form, alu::RegMem<K, T, A>))?;
        let fuse: Option<fn(u8) -> Handler> = match form {
            AddressForm::Base64 => by_fused_width!(width, alu::RegFirst<K, T, crate::address::Base64>),
            AddressForm::Full64 => by_fused_width!(width, alu::RegFirst<K, T, crate::address::Full64>),
            AddressForm::Legacy => None,
        };
        return Some(Lowered { fuse, ..Lowered::new(op) });
    }
    let (run, fuse): (Handler, fn(u8) -> Handler);
    if imm.is_some() {
        (run, fuse) = by_width!(
            width,
            (
                pure::<alu::ToReg<K, T, FromImm, false>> as Handler,
                fused!(compare_jump, K, T, FromImm) as fn(u8) -> Handler,
            )
        )?;
    } else {
        op.src = gpr(context.insn.op1_register());
        (run, fuse) = by_width!(
            width,
            (
                pure::<alu::ToReg<K, T, FromReg, false>> as Handler,
                fused!(compare_jump, K, T, FromReg) as fn(u8) -> Handler,
            )
        )?;
    }
    op.run = run;
    // No quiet form: a comparison nobody looks at is rare.
    Some(Lowered { sets: ALL_FLAGS, fuse: Some(fuse), ..Lowered::pure(op, context.insn) })
}

fn mov(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let is_gpr = |n: u32| insn.op_kind(n) != OpKind::Register || insn.op_register(n).is_gpr();
    if !is_gpr(0) || !is_gpr(1) {
        return None;
    }
    let mut op = context.op(pure::<Nothing>);
    if is_memory(context, 0) || is_memory(context, 1) {
        // MOV with a 64-bit absolute address: too wide for a displacement.
        let absolute = insn.memory_base() == Register::None && insn.memory_index() == Register::None;
        if absolute && insn.memory_displ_size() == 8 && i32::try_from(insn.memory_displacement64() as i64).is_err() {
            return absolute_mov(context);
        }
    }
    if is_memory(context, 0) {
        let width = size(context, 0);
        let form = memory(context, &mut op);
        op.run = match immediate(context, 1) {
            Some(value) => {
                op.imm.set(value);
                by_width!(width, by_address!(form, mov::Store<T, FromImm, A>))?
            }
            None => {
                op.src = gpr(insn.op1_register());
                by_width!(width, by_address!(form, mov::Store<T, FromReg, A>))?
            }
        };
        return Some(Lowered::new(op));
    }
    let width = size(context, 0);
    op.dst = gpr(insn.op0_register());
    if is_memory(context, 1) {
        let form = memory(context, &mut op);
        op.run = by_width!(width, by_address!(form, mov::Load<T, A>))?;
        return Some(Lowered::new(op));
    }
    op.run = match immediate(context, 1) {
        Some(value) => {
            op.imm.set(value);
            by_width!(width, pure::<mov::MovReg<T, FromImm>> as Handler)?
        }
        None => {
            op.src = gpr(insn.op1_register());
            by_width!(width, pure::<mov::MovReg<T, FromReg>> as Handler)?
        }
    };
    Some(Lowered::pure(op, insn))
}

/// MOV between rAX and a 64-bit absolute address, which goes in the immediate.
fn absolute_mov(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = context.op(pure::<Nothing>);
    op.seg = super::operand::operand_segment(context);
    op.imm.set(insn.memory_displacement64());
    op.run = if is_memory(context, 0) {
        op.src = gpr(insn.op1_register());
        by_width!(size(context, 0), cold::<mov::Store<T, FromReg, crate::address::Absolute>> as Handler)?
    } else {
        op.dst = gpr(insn.op0_register());
        by_width!(size(context, 0), cold::<mov::Load<T, crate::address::Absolute>> as Handler)?
    };
    Some(Lowered::new(op))
}

fn extend<E: mov::Extend>(context: &Context<'_>) -> Option<Lowered> {
    let (wide, mut narrow) = (size(context, 0), size(context, 1));
    // MOVSXD with a 16-bit operand size reads 32 bits of memory on AMD, of which 16 are used.
    if context.insn.code() == iced_x86::Code::Movsxd_r16_rm16 && context.request.model.vendor() == Vendor::Amd {
        narrow = 4;
    }
    let mut op = context.op(pure::<Nothing>);
    op.dst = gpr(context.insn.op0_register());
    macro_rules! by_pair {
        ($N:ident, $W:ident, $value:expr) => {
            match (narrow, wide) {
                (1, 2) => {
                    type $N = u8;
                    type $W = u16;
                    $value
                }
                (1, 4) => {
                    type $N = u8;
                    type $W = u32;
                    $value
                }
                (1, 8) => {
                    type $N = u8;
                    type $W = u64;
                    $value
                }
                (2, 2) => {
                    type $N = u16;
                    type $W = u16;
                    $value
                }
                (2, 4) => {
                    type $N = u16;
                    type $W = u32;
                    $value
                }
                (2, 8) => {
                    type $N = u16;
                    type $W = u64;
                    $value
                }
                (4, 2) => {
                    type $N = u32;
                    type $W = u16;
                    $value
                }
                (4, 4) => {
                    type $N = u32;
                    type $W = u32;
                    $value
                }
                (4, 8) => {
                    type $N = u32;
                    type $W = u64;
                    $value
                }
                _ => return None,
            }
        };
    }
    if is_memory(context, 1) {
        let form = memory(context, &mut op);
        op.run = by_pair!(N, W, by_address!(form, mov::ExtendMem<E, N, W, A>));
        return Some(Lowered::new(op));
    }
    op.src = gpr(context.insn.op1_register());
    op.run = by_pair!(N, W, pure::<mov::ExtendReg<E, N, W>> as Handler);
    Some(Lowered::pure(op, context.insn))
}

fn lea(context: &Context<'_>) -> Option<Lowered> {
    let mut op = context.op(pure::<Nothing>);
    op.dst = gpr(context.insn.op0_register());
    let form = memory(context, &mut op);
    op.aux = (64 - address_bits(context)) as u16;
    let width = size(context, 0);
    op.run = match form {
        AddressForm::Base64 => by_wide!(width, pure::<mov::LeaBase<T>> as Handler)?,
        _ => by_wide!(width, pure::<mov::Lea<T>> as Handler)?,
    };
    Some(Lowered::pure(op, context.insn))
}

/// F3 90. With REX.B it is no longer NOP's opcode but XCHG r8, rAX.
fn pause(context: &Context<'_>) -> Option<Lowered> {
    let bytes = &context.bytes[..context.insn.len()];
    let rex = match bytes {
        [.., rex @ 0x40..=0x4f, _] if context.is_64() => *rex,
        _ => 0x40,
    };
    if rex & 1 == 0 {
        return Some(Lowered::pure(context.op(pure::<Nothing>), context.insn));
    }
    let width = match rex & 8 != 0 {
        true => 8,
        false if bytes.contains(&0x66) => 2,
        false => 4,
    };
    let mut op = context.op(by_width!(width, pure::<mov::XchgReg<T>> as Handler)?);
    (op.dst, op.src) = (8, 0);
    Some(Lowered::pure(op, context.insn))
}

fn xchg(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let width = size(context, 0);
    let mut op = context.op(pure::<Nothing>);
    if is_memory(context, 0) {
        op.src = gpr(insn.op1_register());
        let form = memory(context, &mut op);
        op.run = by_width!(width, by_address!(form, mov::XchgMem<T, A>))?;
        return Some(Lowered::new(op));
    }
    op.dst = gpr(insn.op0_register());
    op.src = gpr(insn.op1_register());
    op.run = by_width!(width, pure::<mov::XchgReg<T>> as Handler)?;
    Some(Lowered::pure(op, insn))
}

fn is_cmov(context: &Context<'_>) -> bool {
    use iced_x86::ConditionCode;
    let insn = context.insn;
    insn.condition_code() != ConditionCode::None && insn.op_count() == 2 && insn.op0_register().is_gpr()
}

fn is_setcc(context: &Context<'_>) -> bool {
    use iced_x86::ConditionCode;
    let insn = context.insn;
    insn.condition_code() != ConditionCode::None
        && insn.op_count() == 1
        && !insn.is_jcc_short_or_near()
        && size(context, 0) == 1
}

fn cmov(context: &Context<'_>) -> Option<Lowered> {
    let n = condition_number(context);
    let width = size(context, 0);
    let mut op = context.op(pure::<Nothing>);
    op.dst = gpr(context.insn.op0_register());
    if is_memory(context, 1) {
        let form = memory(context, &mut op);
        op.run = by_condition!(n, by_wide!(width, by_address!(form, mov::CmovMem<C, T, A>)))?;
        return Some(Lowered::new(op));
    }
    op.src = gpr(context.insn.op1_register());
    op.run = by_condition!(n, by_wide!(width, pure::<mov::CmovReg<C, T>> as Handler))?;
    Some(Lowered::pure(op, context.insn))
}

fn setcc(context: &Context<'_>) -> Option<Lowered> {
    let n = condition_number(context);
    let mut op = context.op(pure::<Nothing>);
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = by_condition!(n, by_address!(form, mov::SetMem<C, A>));
        return Some(Lowered::new(op));
    }
    op.dst = gpr(context.insn.op0_register());
    op.run = by_condition!(n, pure::<mov::SetReg<C>> as Handler);
    Some(Lowered::pure(op, context.insn))
}

/// Operand size of PUSH, POP and LEAVE without a sized operand: from the encoding's stack pointer increment.
fn stack_operand_bytes(context: &Context<'_>) -> usize {
    use iced_x86::Code as K;
    match context.insn.code() {
        K::Leavew | K::Enterw_imm16_imm8 => 2,
        K::Leaved | K::Enterd_imm16_imm8 => 4,
        K::Leaveq | K::Enterq_imm16_imm8 => 8,
        _ => context.insn.stack_pointer_increment().unsigned_abs() as usize,
    }
}

fn push(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let width = stack_operand_bytes(context);
    let mut op = context.op(pure::<Nothing>);
    if let Some(value) = immediate(context, 0) {
        op.imm.set(value);
        op.run = by_wide!(
            width,
            match context.is_64() {
                true => hot::<stack::PushImm<T>> as Handler,
                false => cold::<stack::PushImm<T>> as Handler,
            }
        )?;
    } else if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = by_wide!(width, by_address!(form, stack::PushMem<T, A>))?;
    } else if insn.op0_register().is_gpr() {
        op.dst = gpr(insn.op0_register());
        op.run = match (context.is_64(), width) {
            (true, 8) => hot::<stack::PushReg64> as Handler,
            _ => by_wide!(width, cold::<stack::PushReg<T>> as Handler)?,
        };
    } else {
        return None;
    }
    Some(Lowered::new(op))
}

fn pop(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let width = stack_operand_bytes(context);
    let mut op = context.op(pure::<Nothing>);
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        op.run = by_wide!(width, slow_by_address!(form, PopMem<T, A>))?;
    } else if insn.op0_register().is_gpr() {
        op.dst = gpr(insn.op0_register());
        op.run = match (context.is_64(), width) {
            (true, 8) => hot::<stack::PopReg64> as Handler,
            _ => by_wide!(width, cold::<stack::PopReg<T>> as Handler)?,
        };
    } else {
        return None;
    }
    Some(Lowered::new(op))
}

/// POP mem changes RSP before its last access that can fail and puts it back: slow path only.
struct PopMem<T, A>(core::marker::PhantomData<(T, A)>);
impl<T: crate::width::Width, A: crate::address::Addressing> crate::dispatch::Act for PopMem<T, A> {
    fn exec(cpu: &mut crate::cpu::Cpu, op: &Op) -> Result<(), crate::exit::Trap> {
        <stack::PopMem<T, A> as crate::dispatch::Sem>::exec::<crate::mem::Slow>(cpu, op)
    }
}
