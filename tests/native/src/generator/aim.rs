//! Aims memory operands at the window, and shapes the operands without which an instruction would only ever fault.
//!
//! Registers are solved for, not the encoding: base, index, scale and displacement stay as drawn, and the registers
//! get the values that bring the sum to the target. Only an operand without registers has its displacement replaced.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};

use super::encode::Encoded;
use crate::admit::is_memory;
use crate::case::{CODE_PAGE, Case};
use crate::reach::effective;
use crate::rng::SplitMix;
use crate::state::{RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, TF};
use crate::values::{self, Style};
use crate::window::{PAGE, PAGES, Patch, WINDOW_BYTES, Window};

/// Aims the operands of `encoded` and fills what they point at.
pub fn aim(encoded: &mut Encoded, case: &mut Case, rng: &mut SplitMix) {
    shape(&encoded.instruction, case, rng);
    let kinds: Vec<OpKind> = (0..encoded.instruction.op_count()).map(|n| encoded.instruction.op_kind(n)).collect();
    for kind in kinds.into_iter().filter(|&kind| is_memory(kind)) {
        let size = operand_size(&encoded.instruction);
        let Some(target) = target(case, size, rng) else { continue };
        let target = match kind {
            OpKind::Memory => solve(encoded, case, target, rng),
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => pointer(case, RSI, target),
            _ => pointer(case, RDI, target),
        };
        fill(&encoded.instruction, case, target, size, rng);
    }
    stack(&encoded.instruction, case, rng);
}

fn operand_size(instruction: &Instruction) -> u64 {
    match instruction.memory_size().size() {
        // Sizes that iced does not tell: the x87 environment and state among them.
        0 => 32,
        size => size as u64,
    }
}

fn pointer(case: &mut Case, register: usize, target: u64) -> u64 {
    case.state.gpr[register] = target;
    target
}

/// Registers that are counts, divisors or offsets rather than data.
fn shape(instruction: &Instruction, case: &mut Case, rng: &mut SplitMix) {
    let gpr = &mut case.state.gpr;
    match instruction.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv if rng.percent(75) => {
            // A quotient that fits, as often as not: the upper half small or the sign of the lower.
            gpr[RDX] = if rng.percent(50) { rng.below(4) } else { ((gpr[RAX] as i64) >> 63) as u64 };
            if rng.percent(30) {
                gpr[RAX] = gpr[RAX] as i8 as u64 & 0xffff;
            }
        }
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register =>
        {
            let offset = rng.below(0x2000).wrapping_sub(0x1000);
            gpr[instruction.op1_register().full_register().number()] = offset;
        }
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz | Mnemonic::Jecxz if rng.percent(60) => {
            gpr[RCX] = rng.below(3);
        }
        _ => {}
    }
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        gpr[RCX] = match rng.below(20) {
            0 => gpr[RCX],
            1 => gpr[RCX] << 32 | rng.below(4),
            _ => rng.below(20),
        };
    }
}

/// Where an operand of `size` bytes goes; none for a wild one.
fn target(case: &Case, size: u64, rng: &mut SplitMix) -> Option<u64> {
    let bytes = WINDOW_BYTES as u64;
    let offset = match rng.below(100) {
        0..60 => {
            let align = size.next_power_of_two().min(64);
            rng.below(bytes - size) & !(align - 1)
        }
        60..80 => rng.below(bytes - size),
        80..92 => (1 + rng.below(PAGES as u64 - 1)) * PAGE - rng.below(size + 1),
        92..94 => 0u64.wrapping_sub(rng.below(size + 1)),
        94..96 => bytes - rng.below(size + 1),
        96..98 => return Some(0x8000_0000_0000u64.wrapping_sub(rng.below(2 * size))),
        _ => return None,
    };
    Some(case.window.base().wrapping_add(offset))
}

/// Sets registers (or the displacement) so that the operand lies at `target`; gives where it came to lie.
fn solve(encoded: &mut Encoded, case: &mut Case, target: u64, rng: &mut SplitMix) -> u64 {
    let instruction = &encoded.instruction;
    if vsib(instruction).is_some() {
        // The lanes of the index carry small offsets to either side.
        let target = case.window.base() + WINDOW_BYTES as u64 / 2 + rng.below(64);
        if instruction.memory_base() != Register::None {
            let base = target.wrapping_sub(instruction.memory_displacement64());
            set(case, instruction.memory_base(), base, rng);
        }
        return target;
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let scale = instruction.memory_index_scale() as u64;
    if instruction.is_ip_rel_memory_operand() {
        let distance = target.wrapping_sub(instruction.next_ip());
        encoded.set(encoded.offsets.displacement_offset(), encoded.offsets.displacement_size(), distance);
        return target;
    }
    let rest = target.wrapping_sub(instruction.memory_displacement64());
    match (base, index) {
        (Register::None, Register::None) => {
            encoded.set(encoded.offsets.displacement_offset(), encoded.offsets.displacement_size(), target);
        }
        (Register::None, index) => set(case, index, rest / scale, rng),
        (base, Register::None) => set(case, base, rest, rng),
        (base, Register::AL) => {
            let value = case.state.gpr[RAX] & 0xff;
            set(case, base, rest.wrapping_sub(value), rng);
        }
        (base, index) if base.full_register() == index.full_register() => {
            // (scale + 1) * x = rest: the factor is 2, or odd and so invertible.
            let value = match scale {
                1 => rest / 2,
                factor => rest.wrapping_mul(inverse(factor + 1)),
            };
            set(case, base, value, rng);
        }
        (base, index) => {
            if rng.percent(50) {
                set(case, index, rng.below(512), rng);
            }
            let value = case.state.gpr[index.full_register().number()];
            set(case, base, rest.wrapping_sub(value.wrapping_mul(scale)), rng);
        }
    }
    effective(&encoded.instruction, &case.state)
}

/// Inverse of an odd number modulo 2^64, by Newton's iteration.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |x, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x))))
}

/// Sets an address register; under 32-bit addressing what lies above is arbitrary.
fn set(case: &mut Case, register: Register, value: u64, rng: &mut SplitMix) {
    let to = &mut case.state.gpr[register.full_register().number()];
    *to = if register.size() == 4 { value & 0xffff_ffff | rng.next_u64() << 32 } else { value };
}

/// Bytes of an index lane, of an operand with a vector index.
fn vsib(instruction: &Instruction) -> Option<usize> {
    let op_code = instruction.op_code();
    op_code.op_kinds().iter().find_map(|kind| match kind {
        OpCodeOperandKind::mem_vsib32x | OpCodeOperandKind::mem_vsib32y => Some(4),
        OpCodeOperandKind::mem_vsib64x | OpCodeOperandKind::mem_vsib64y => Some(8),
        _ => None,
    })
}

/// Offsets in the index lanes of a gather, after the vectors have been drawn.
pub fn gather(instruction: &Instruction, case: &mut Case, rng: &mut SplitMix) {
    let Some(lane) = vsib(instruction) else { return };
    let limit = 0x1a00 / instruction.memory_index_scale() as u64;
    let offset = |rng: &mut SplitMix| rng.below(2 * limit).wrapping_sub(limit);
    for quad in &mut case.state.vec[instruction.memory_index().number()] {
        *quad = match lane {
            4 => offset(rng) & 0xffff_ffff | offset(rng) << 32,
            _ => offset(rng),
        };
    }
}

/// Puts a value at `target`, when it lies in the window.
fn fill(instruction: &Instruction, case: &mut Case, target: u64, size: u64, rng: &mut SplitMix) {
    let mut bytes = match instruction.memory_size().element_size() {
        _ if rng.percent(15) => Style::Random,
        10 => Style::Extended,
        4 if rng.percent(60) => Style::Single,
        8 if rng.percent(60) => Style::Double,
        _ => Style::Integer,
    }
    .bytes(rng);
    let low = |n: usize, value: u64, bytes: &mut [u8; 32]| bytes[n..n + 8].copy_from_slice(&value.to_le_bytes());
    match instruction.mnemonic() {
        Mnemonic::Cmpxchg if rng.percent(50) => low(0, case.state.gpr[RAX], &mut bytes),
        Mnemonic::Cmpxchg16b if rng.percent(50) => {
            low(0, case.state.gpr[RAX], &mut bytes);
            low(8, case.state.gpr[RDX], &mut bytes);
        }
        Mnemonic::Cmpxchg8b if rng.percent(50) => {
            low(0, case.state.gpr[RAX] & 0xffff_ffff | case.state.gpr[RDX] << 32, &mut bytes);
        }
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr if rng.percent(80) => low(0, rng.below(0x1_0000), &mut bytes),
        _ => {}
    }
    if matches!(instruction.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall) {
        low(0, landing(rng), &mut bytes);
    }
    patch(case, target, &bytes[..(size as usize).clamp(1, 32)]);
}

fn patch(case: &mut Case, target: u64, bytes: &[u8]) {
    let offset = target.wrapping_sub(case.window.base());
    if offset < WINDOW_BYTES as u64 {
        // A case holds more patches than an instruction has operands; one that is left out is background.
        case.window.patch(Patch::new(offset as u16, bytes));
    }
}

/// An address in the filling of the code page, mostly.
fn landing(rng: &mut SplitMix) -> u64 {
    match rng.below(20) {
        0 => values::integer(rng),
        1 => CODE_PAGE + 2 * PAGE + rng.below(PAGE),
        _ => CODE_PAGE + rng.below(0x700),
    }
}

/// What the stack and branch registers must hold.
fn stack(instruction: &Instruction, case: &mut Case, rng: &mut SplitMix) {
    let random_window = |window: &Window, rng: &mut SplitMix| window.base() + rng.below(WINDOW_BYTES as u64) / 8 * 8;
    let rsp = case.state.gpr[RSP];
    match instruction.mnemonic() {
        Mnemonic::Leave | Mnemonic::Enter => case.state.gpr[RBP] = random_window(&case.window, rng),
        Mnemonic::Ret => {
            let to = landing(rng);
            patch(case, rsp, &to.to_le_bytes());
        }
        Mnemonic::Popf | Mnemonic::Popfq => {
            let flags = rng.next_u64() & !TF;
            patch(case, rsp, &flags.to_le_bytes());
        }
        Mnemonic::Jmp | Mnemonic::Call if instruction.op0_kind() == OpKind::Register => {
            let register = instruction.op0_register().full_register().number();
            // A stack in the code page would have CALL write there.
            if register != RSP {
                case.state.gpr[register] = landing(rng);
            }
        }
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu if instruction.op_count() < 2 => {
            case.state.gpr[RDI] = random_window(&case.window, rng);
        }
        Mnemonic::Xlatb if rng.percent(10) => case.state.gpr[RBX] = values::integer(rng),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::{Catalogue, Generator};

    #[test]
    fn inverses() {
        assert!([3, 5, 9].into_iter().all(|n: u64| n.wrapping_mul(inverse(n)) == 1));
    }

    #[test]
    fn most_memory_operands_lie_in_the_window() {
        let generator = Generator::new(Catalogue::all(), 11);
        let (mut inside, mut all) = (0, 0);
        for n in 0..20_000 {
            let case = generator.case(n);
            let instruction = crate::admit::decode(case.code.bytes(), case.rip());
            let plain = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
            if plain && vsib(&instruction).is_none() && instruction.mnemonic() != Mnemonic::Lea {
                all += 1;
                let offset = effective(&instruction, &case.state).wrapping_sub(case.window.base());
                inside += (offset < WINDOW_BYTES as u64) as u32;
            }
        }
        assert!(all > 5000 && inside * 100 > all * 90, "{inside} of {all}");
    }
}
