//! Operands: from iced's to the op's.

use iced_x86::{OpKind, Register};

use super::Context;
use crate::address::{ADDRESS16, ADDRESS32};
use crate::op::{HIGH_BYTE, Op, RIP, TWO_GIB, ZERO};
use crate::segment::FLAT;

/// How the address of a memory operand is formed; see [`crate::address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressForm {
    Base64,
    Full64,
    Legacy,
}

/// The number of a general register; AH, CH, DH and BH are marked.
pub(crate) fn gpr(register: Register) -> u8 {
    match register {
        Register::None => ZERO,
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE | 1,
        Register::DH => HIGH_BYTE | 2,
        Register::BH => HIGH_BYTE | 3,
        // An 8-bit register's own number counts the high bytes as well.
        other => other.full_register().number() as u8,
    }
}

/// The number of a segment register.
pub(crate) fn segment(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        Register::GS => 5,
        _ => FLAT,
    }
}

/// The segment of the memory operand. In 64-bit mode an override by ES, CS, SS or DS counts for nothing, not even for
/// whether an unusable address is #SS or #GP.
pub(crate) fn operand_segment(context: &Context<'_>) -> u8 {
    let named = context.insn.memory_segment();
    if !context.is_64() || matches!(named, Register::FS | Register::GS) {
        return segment(named);
    }
    let on_stack = matches!(context.insn.memory_base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP);
    segment(if on_stack { Register::SS } else { Register::DS })
}

/// Width of the address in bits.
pub(crate) fn address_bits(context: &Context<'_>) -> u32 {
    let insn = context.insn;
    for register in [insn.memory_base(), insn.memory_index()] {
        if register.is_vector_register() {
            continue;
        }
        match register.size() {
            2 => return 16,
            4 => return 32,
            8 => return 64,
            _ => {}
        }
    }
    match (insn.memory_displ_size(), context.is_64()) {
        (8, _) => 64,
        (2, _) => 16,
        (_, true) => 32,
        _ => 32,
    }
}

/// Fills in the memory operand and says how its address is formed.
pub(crate) fn memory(context: &Context<'_>, op: &mut Op) -> AddressForm {
    let insn = context.insn;
    let bits = address_bits(context);
    op.seg = operand_segment(context);
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    let base = insn.memory_base();
    let displacement = insn.memory_displacement64();
    if base == Register::RIP || base == Register::EIP {
        op.base = RIP;
        // iced gives the target; blocks are shared between mappings, so keep the distance from the block's start.
        // Counted from there it may just not fit.
        let distance = displacement.wrapping_sub(context.request.rip) as i64;
        let Ok(fits) = i32::try_from(distance) else {
            op.disp = distance.wrapping_sub(1 << 31) as i32;
            op.index = TWO_GIB;
            return if bits == 64 {
                AddressForm::Full64
            } else {
                op.scale = ADDRESS32;
                AddressForm::Legacy
            };
        };
        op.disp = fits;
    } else {
        op.base = if base == Register::None { ZERO } else { gpr(base) };
        op.disp = displacement as i32;
    }
    let index = insn.memory_index();
    op.index = if index == Register::None || index.is_vector_register() { ZERO } else { gpr(index) };
    if context.is_64() && bits == 64 {
        let has_base_segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
        if op.index == ZERO && !has_base_segment { AddressForm::Base64 } else { AddressForm::Full64 }
    } else {
        op.scale |= match bits {
            16 => ADDRESS16,
            32 => ADDRESS32,
            _ => 0,
        };
        AddressForm::Legacy
    }
}

/// Whether operand `n` is in memory.
pub(crate) fn is_memory(context: &Context<'_>, n: u32) -> bool {
    context.insn.op_count() > n && context.insn.op_kind(n) == OpKind::Memory
}

/// Size of operand `n` in bytes, for general registers and memory.
pub(crate) fn size(context: &Context<'_>, n: u32) -> usize {
    match context.insn.op_kind(n) {
        OpKind::Register => context.insn.op_register(n).size(),
        OpKind::Memory => context.insn.memory_size().size(),
        _ => 0,
    }
}

/// The immediate operand, sign-extended as its encoding says.
pub(crate) fn immediate(context: &Context<'_>, n: u32) -> Option<u64> {
    context.insn.try_immediate(n).ok()
}

/// Picks the handler of a meaning that depends on the address form. `$S` names the form `A`.
macro_rules! by_address {
    ($form:expr, $S:ty) => {
        match $form {
            $crate::decode::operand::AddressForm::Base64 => {
                type A = $crate::address::Base64;
                $crate::dispatch::hot::<$S> as $crate::op::Handler
            }
            $crate::decode::operand::AddressForm::Full64 => {
                type A = $crate::address::Full64;
                $crate::dispatch::hot::<$S> as $crate::op::Handler
            }
            $crate::decode::operand::AddressForm::Legacy => {
                type A = $crate::address::Legacy;
                $crate::dispatch::cold::<$S> as $crate::op::Handler
            }
        }
    };
}

/// The same for meanings that only have a slow instance ([`crate::dispatch::Act`]).
macro_rules! slow_by_address {
    ($form:expr, $S:ty) => {
        match $form {
            $crate::decode::operand::AddressForm::Base64 => {
                type A = $crate::address::Base64;
                $crate::dispatch::slow::<$S> as $crate::op::Handler
            }
            $crate::decode::operand::AddressForm::Full64 => {
                type A = $crate::address::Full64;
                $crate::dispatch::slow::<$S> as $crate::op::Handler
            }
            $crate::decode::operand::AddressForm::Legacy => {
                type A = $crate::address::Legacy;
                $crate::dispatch::slow::<$S> as $crate::op::Handler
            }
        }
    };
}

/// Picks by operand width in bytes; the expression names the width `T`. `None` for other widths.
macro_rules! by_width {
    ($bytes:expr, $value:expr) => {
        match $bytes {
            1 => {
                type T = u8;
                Some($value)
            }
            2 => {
                type T = u16;
                Some($value)
            }
            4 => {
                type T = u32;
                Some($value)
            }
            8 => {
                type T = u64;
                Some($value)
            }
            _ => None,
        }
    };
}

/// Picks by operand width without bytes.
macro_rules! by_wide {
    ($bytes:expr, $value:expr) => {
        match $bytes {
            2 => {
                type T = u16;
                Some($value)
            }
            4 => {
                type T = u32;
                Some($value)
            }
            8 => {
                type T = u64;
                Some($value)
            }
            _ => None,
        }
    };
}

/// Picks by condition number; the expression names the condition `C`.
macro_rules! by_condition {
    ($n:expr, $value:expr) => {
        match $n & 15 {
            0 => {
                type C = $crate::flags::O;
                $value
            }
            1 => {
                type C = $crate::flags::No;
                $value
            }
            2 => {
                type C = $crate::flags::B;
                $value
            }
            3 => {
                type C = $crate::flags::Nb;
                $value
            }
            4 => {
                type C = $crate::flags::Z;
                $value
            }
            5 => {
                type C = $crate::flags::Nz;
                $value
            }
            6 => {
                type C = $crate::flags::Be;
                $value
            }
            7 => {
                type C = $crate::flags::Nbe;
                $value
            }
            8 => {
                type C = $crate::flags::S;
                $value
            }
            9 => {
                type C = $crate::flags::Ns;
                $value
            }
            10 => {
                type C = $crate::flags::P;
                $value
            }
            11 => {
                type C = $crate::flags::Np;
                $value
            }
            12 => {
                type C = $crate::flags::L;
                $value
            }
            13 => {
                type C = $crate::flags::Nl;
                $value
            }
            14 => {
                type C = $crate::flags::Le;
                $value
            }
            _ => {
                type C = $crate::flags::Nle;
                $value
            }
        }
    };
}

pub(crate) use {by_address, by_condition, by_wide, by_width, slow_by_address};
