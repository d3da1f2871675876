//! Cases from a seed: every case is a pure function of (catalogue, seed, index).
//!
//! [`Generator`] makes cases that execute: an encoding of the [`Catalogue`], operand values from [`crate::values`],
//! memory operands aimed at the window. [`ByteGenerator`] makes byte strings for tests of the decoder, of instruction
//! lengths and of #UD.

pub mod catalogue;
pub mod encode;

mod aim;

use iced_x86::{Code as Opcode, FlowControl, Mnemonic, OpKind};

pub use catalogue::Catalogue;
use encode::{Encoded, encode};

use crate::case::{CODE_ADDRESS, Case, Code, Placement, Scope};
use crate::reach::astray;
use crate::rng::SplitMix;
use crate::state::{AC, DF, RFLAGS_FIXED, RSP, X87State};
use crate::values::{self, Style};
use crate::window::{PAGE, Window};

/// Makes cases that execute one instruction.
#[derive(Clone, Debug)]
pub struct Generator {
    catalogue: Catalogue,
    seed: u64,
}

impl Generator {
    /// Draws from `catalogue`; the same seed gives the same cases.
    pub fn new(catalogue: Catalogue, seed: u64) -> Generator {
        Generator { catalogue, seed }
    }

    /// Case `index`.
    pub fn case(&self, index: u64) -> Case {
        let rng = &mut SplitMix::of_item(self.seed, index);
        let codes = self.catalogue.codes();
        if !codes.is_empty() {
            for _ in 0..64 {
                let opcode = rng.pick(codes);
                let Some(mut encoded) = encode(opcode, rng, 64) else { continue };
                constants(&mut encoded, rng);
                let mut case = state(opcode, rng);
                aim::aim(&mut encoded, &mut case, rng);
                // A constant can have changed what the bytes mean (an immediate that is part of the opcode).
                if encoded.instruction.is_invalid() {
                    continue;
                }
                let Ok(code) = Code::admit(encoded.code()) else { continue };
                case.code = code;
                if astray(&case) {
                    continue;
                }
                case.scope = code.scope().max(if rng.percent(6) { Scope::Full } else { Scope::Registers });
                if case.scope == Scope::Full {
                    vectors(&mut case, rng);
                    aim::gather(&encoded.instruction, &mut case, rng);
                }
                return case;
            }
        }
        Case::new(nop())
    }
}

/// NOP, for when nothing else can be made.
fn nop() -> Code {
    match Code::admit(&[0x90]) {
        Ok(code) => code,
        Err(refused) => unreachable!("NOP refused: {refused}"),
    }
}

/// Boundary values for immediates, and targets in reach for branches.
fn constants(encoded: &mut Encoded, rng: &mut SplitMix) {
    let (offset, size) = (encoded.offsets.immediate_offset(), encoded.offsets.immediate_size());
    if size == 0 {
        return;
    }
    let branch = matches!(encoded.instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch64);
    if branch {
        // Land in the filling of the code page, on either side of the code.
        let reach = if size == 1 { 0x50 } else { 0x700 };
        let distance = (48 + rng.below(reach)) as i64;
        let distance = if rng.percent(50) { -distance - 16 } else { distance };
        if size == 1 || rng.percent(85) {
            encoded.set(offset, size, distance as u64);
        }
    } else if encoded.instruction.mnemonic() == Mnemonic::Enter {
        encoded.set(offset, 2, rng.below(256));
    } else if rng.percent(60) {
        encoded.set(offset, size, values::integer(rng));
    }
}

/// Registers, flags and protections; vectors only when they are needed.
fn state(opcode: Opcode, rng: &mut SplitMix) -> Case {
    let mut case = Case::new(nop());
    if rng.percent(12) {
        case.window = Window::new(Window::protections_of(rng.below(27) as usize));
    }
    for register in &mut case.state.gpr {
        *register = values::integer(rng);
    }
    case.state.gpr[RSP] = case.window.base() + PAGE / 2 + rng.below(2 * PAGE) / 8 * 8;
    if rng.percent(5) {
        case.state.gpr[RSP] += rng.below(8);
    }
    case.state.rflags = RFLAGS_FIXED | rng.next_u64() & 0x8d5;
    if rng.percent(10) {
        case.state.rflags |= DF;
    }
    if rng.percent(2) || opcode.mnemonic() == Mnemonic::Pushfq && rng.percent(50) {
        case.state.rflags |= AC;
    }
    case
}

fn vectors(case: &mut Case, rng: &mut SplitMix) {
    let style = Style::vector(rng);
    for register in &mut case.state.vec {
        *register = style.vec(rng);
    }
    case.state.mxcsr = match rng.below(10) {
        0..7 => 0x1f80,
        // Rounding, DAZ and FTZ, everything masked.
        7 | 8 => 0x1f80 | (rng.next_u64() as u32 & 0xe07f),
        _ => rng.next_u64() as u32 & 0xffff,
    };
    let x87 = &mut case.state.x87;
    *x87 = X87State::default();
    x87.fcw = match rng.below(10) {
        0..6 => 0x37f,
        6..9 => 0x7f | (rng.next_u64() as u16 & 0x0f00),
        _ => 0x40 | (rng.next_u64() as u16 & 0x0f3f),
    };
    if rng.percent(50) {
        x87.fsw = rng.next_u64() as u16 & 0x7f00;
    }
    if rng.percent(10) {
        x87.fsw |= rng.next_u64() as u16 & 0x7f;
    }
    // ES and B summarise the unmasked exceptions (APM vol. 1, "x87 Status Word Register").
    if x87.fsw & !x87.fcw & 0x3f != 0 {
        x87.fsw |= 0x8080;
    }
    x87.ftw = match rng.below(4) {
        0 | 1 => 0xff,
        2 => 0,
        _ => rng.next_u64() as u8,
    };
    for register in &mut x87.st {
        *register = values::f80(rng);
    }
    if x87.ftw == 0xff && rng.percent(30) {
        // Something to push onto.
        x87.ftw = !(1 << ((x87.fsw >> 11).wrapping_sub(1) % 8));
    }
}

/// Makes byte strings.
#[derive(Clone, Copy, Debug)]
pub struct ByteGenerator {
    seed: u64,
}

impl ByteGenerator {
    /// The same seed gives the same strings.
    pub fn new(seed: u64) -> ByteGenerator {
        ByteGenerator { seed }
    }

    /// String `index`: random, but with prefixes, escapes and VEX leads more often than chance gives.
    pub fn bytes(&self, index: u64) -> [u8; 15] {
        const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x48, 0x41];
        let rng = &mut SplitMix::of_item(self.seed ^ 0x6279_7465, index);
        let mut bytes = [0; 15];
        for byte in &mut bytes {
            *byte = rng.next_u64() as u8;
        }
        let mut at = 0;
        while at < 14 && rng.percent(35) {
            bytes[at] = rng.pick(&PREFIXES);
            at += 1;
        }
        if at < 12 {
            match rng.below(8) {
                0..3 => bytes[at] = 0x0f,
                3 => bytes[at..at + 2].copy_from_slice(&[0x0f, 0x38]),
                4 => bytes[at..at + 2].copy_from_slice(&[0x0f, 0x3a]),
                5 => bytes[at] = rng.pick(&[0xc4, 0xc5]),
                _ => {}
            }
        }
        bytes
    }

    /// The case that shows whether string `index` is an instruction, and how long it is: its first `present` bytes
    /// lie before a page that is not present. None when it must not run natively.
    pub fn length_case(&self, index: u64, present: u8) -> Option<Case> {
        let bytes = self.bytes(index);
        let instruction = crate::admit::decode(&bytes, CODE_ADDRESS);
        let whole = if instruction.is_invalid() { &bytes[..] } else { &bytes[..instruction.len()] };
        if instruction.flow_control() != FlowControl::Next && !instruction.is_invalid() {
            return None;
        }
        let rng = &mut SplitMix::of_item(self.seed, index);
        let mut case = state(instruction.code(), rng);
        case.code = Code::admit(whole).ok()?;
        case.scope = case.code.scope();
        case.placement = Placement::PageEnd(present.clamp(1, 15));
        Some(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_an_index_stands_alone() {
        let make = |seed| Generator::new(Catalogue::exact(), seed);
        let (a, b, c) = (make(1), make(1), make(2));
        let forward: Vec<Case> = (0..500).map(|n| a.case(n)).collect();
        for n in (0..500).rev() {
            assert_eq!(forward[n as usize], b.case(n));
        }
        assert!((0..500).filter(|&n| c.case(n) == forward[n as usize]).count() < 5);
    }

    #[test]
    fn bytes_repeat() {
        let (a, b) = (ByteGenerator::new(5), ByteGenerator::new(5));
        assert!((0..100).all(|n| a.bytes(n) == b.bytes(n)));
        assert_ne!(a.bytes(0), a.bytes(1));
    }

    #[test]
    fn most_of_the_catalogue_is_drawn() {
        let generator = Generator::new(Catalogue::all(), 3);
        let mut seen: Vec<Opcode> =
            (0..40_000).map(|n| crate::admit::decode(generator.case(n).code.bytes(), CODE_ADDRESS).code()).collect();
        seen.sort_unstable();
        seen.dedup();
        let missing: Vec<_> =
            generator.catalogue.codes().iter().filter(|code| seen.binary_search(code).is_err()).collect();
        assert!(missing.len() < 5, "{missing:?}");
    }
}
