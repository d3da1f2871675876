//! Where the memory operand of a case's first instruction lies.
//!
//! Left out on purpose: the implicit operands of string and stack instructions, and gathers (which only read).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::admit::decode;
use crate::case::Case;
use crate::state::CpuState;
use crate::window::{JUDGE_RANGE, PAGE, PAGES};

/// Linear address of the memory operand under `state`; a vector index counts as 0.
pub fn effective(instruction: &Instruction, state: &CpuState) -> u64 {
    let value = |register: Register| match register.size() {
        _ if register == Register::None || register.is_vector_register() => 0,
        8 => state.gpr[register.full_register().number()],
        1 => state.gpr[register.full_register().number()] & 0xff,
        _ => state.gpr[register.full_register().number()] & 0xffff_ffff,
    };
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let sum = value(base)
        .wrapping_add(value(index).wrapping_mul(instruction.memory_index_scale() as u64))
        .wrapping_add(instruction.memory_displacement64());
    let narrow = base.size() == 4 && base != Register::None || index.size() == 4 && index != Register::None;
    if narrow { sum & 0xffff_ffff } else { sum }
}

/// Whether a memory operand lies among the judge's own pages or in another window, where a write would change the
/// answers to later cases.
pub fn astray(case: &Case) -> bool {
    let instruction = &decode(case.code.bytes(), case.rip());
    if !(0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory) {
        return false;
    }
    let mut address = effective(instruction, &case.state);
    let bit_string = matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if bit_string && instruction.op1_kind() == OpKind::Register {
        let register = instruction.op1_register();
        let value = case.state.gpr[register.full_register().number()];
        let offset = match register.size() {
            2 => value as i16 as i64,
            4 => value as i32 as i64,
            _ => value as i64,
        };
        address = address.wrapping_add((offset >> 3) as u64);
    }
    let own = case.window.base() - PAGE..case.window.base() + (PAGES as u64 + 1) * PAGE;
    JUDGE_RANGE.contains(&address) && !own.contains(&address)
}
