//! From an iced `Code` to bytes that decode to it, with everything the encoding leaves open drawn at random.
//!
//! Bytes are put together from the opcode table's facts and then decoded; what decodes to something else is thrown
//! away. That also makes the encodings no assembler would choose: prefixes without effect, displacements longer than
//! needed, either VEX form.

use iced_x86::{
    Code, ConstantOffsets, Decoder, EncodingKind, Instruction, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind,
    OpCodeTableKind,
};

use crate::admit::DECODER_OPTIONS;
use crate::case::CODE_ADDRESS;
use crate::rng::SplitMix;

/// An instruction as bytes and decoded.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    /// The bytes; those behind the instruction are random.
    pub bytes: [u8; 15],
    /// Decoded at [`CODE_ADDRESS`].
    pub instruction: Instruction,
    /// Where displacement and immediate lie.
    pub offsets: ConstantOffsets,
}

impl Encoded {
    /// Decodes `bytes`.
    pub fn decode(bytes: [u8; 15]) -> Encoded {
        let mut decoder = Decoder::with_ip(64, &bytes, CODE_ADDRESS, DECODER_OPTIONS);
        let instruction = decoder.decode();
        let offsets = decoder.get_constant_offsets(&instruction);
        Encoded { bytes, instruction, offsets }
    }
    /// The instruction's own bytes.
    pub fn code(&self) -> &[u8] {
        &self.bytes[..self.instruction.len()]
    }
    /// Replaces `size` bytes at `offset` by the low ones of `value`.
    pub fn set(&mut self, offset: usize, size: usize, value: u64) {
        let end = (offset + size).min(15);
        self.bytes[offset..end].copy_from_slice(&value.to_le_bytes()[..end - offset]);
        *self = Encoded::decode(self.bytes);
    }
}

/// Tries up to `attempts` times to encode `code`.
pub fn encode(code: Code, rng: &mut SplitMix, attempts: u32) -> Option<Encoded> {
    let op_code = code.op_code();
    (0..attempts).find_map(|_| {
        let bytes = match op_code.encoding() {
            EncodingKind::Legacy => legacy(op_code, rng),
            EncodingKind::VEX => vex(op_code, rng),
            _ => return None,
        };
        let encoded = Encoded::decode(bytes);
        (encoded.instruction.code() == code).then_some(encoded)
    })
}

/// Bytes under construction.
struct Bytes {
    bytes: [u8; 15],
    len: usize,
}

impl Bytes {
    fn random(rng: &mut SplitMix) -> Bytes {
        let mut bytes = [0; 15];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
        }
        Bytes { bytes, len: 0 }
    }
    fn push(&mut self, byte: u8) {
        if let Some(at) = self.bytes.get_mut(self.len) {
            *at = byte;
            self.len += 1;
        }
    }
}

fn legacy(op_code: &OpCodeInfo, rng: &mut SplitMix) -> [u8; 15] {
    let mut out = Bytes::random(rng);
    if op_code.address_size() == 32 || rng.percent(8) {
        out.push(0x67);
    }
    if op_code.can_use_lock_prefix() && rng.percent(30) {
        out.push(0xf0);
    }
    match op_code.mandatory_prefix() {
        MandatoryPrefix::P66 => out.push(0x66),
        MandatoryPrefix::PF3 => out.push(0xf3),
        MandatoryPrefix::PF2 => out.push(0xf2),
        MandatoryPrefix::None => {
            if op_code.can_use_rep_prefix() && rng.percent(40) {
                out.push(0xf3);
            } else if op_code.can_use_repne_prefix() && rng.percent(20) {
                out.push(0xf2);
            } else if rng.percent(2) {
                out.push(rng.pick(&[0xf2, 0xf3, 0x2e, 0x3e]));
            }
        }
        MandatoryPrefix::PNP => {}
    }
    let fixed_64 = op_code.default_op_size64() || op_code.force_op_size64();
    if op_code.operand_size() == 16 && op_code.mandatory_prefix() != MandatoryPrefix::P66 {
        out.push(0x66);
    }
    let wide = op_code.operand_size() == 64 && !fixed_64 || rng.percent(5);
    let rex = (wide as u8) << 3 | if rng.percent(60) { rng.below(8) as u8 } else { 0 };
    if rex != 0 || rng.percent(10) {
        out.push(0x40 | rex);
    }
    match op_code.table() {
        OpCodeTableKind::T0F => out.push(0x0f),
        OpCodeTableKind::T0F38 => [0x0f, 0x38].into_iter().for_each(|byte| out.push(byte)),
        OpCodeTableKind::T0F3A => [0x0f, 0x3a].into_iter().for_each(|byte| out.push(byte)),
        _ => {}
    }
    opcode_and_modrm(op_code, out, rng)
}

fn vex(op_code: &OpCodeInfo, rng: &mut SplitMix) -> [u8; 15] {
    let mut out = Bytes::random(rng);
    if op_code.address_size() == 32 || rng.percent(5) {
        out.push(0x67);
    }
    let map = match op_code.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let pp = match op_code.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let l = if op_code.is_lig() { rng.below(2) } else { op_code.l() as u64 } as u8;
    let w = if op_code.is_wig() { rng.below(2) } else { op_code.w() as u64 } as u8;
    let has_vvvv = op_code.op_kinds().iter().any(|kind| {
        use OpCodeOperandKind::*;
        matches!(kind, xmm_vvvv | ymm_vvvv | r32_vvvv | r64_vvvv)
    });
    // Stored inverted: all ones when there is no such operand.
    let vvvv = if has_vvvv { rng.below(16) as u8 } else { 15 };
    let rxb = rng.below(8) as u8;
    if map == 1 && w == 0 && rng.percent(50) {
        out.push(0xc5);
        out.push((rxb & 1) << 7 | vvvv << 3 | l << 2 | pp);
    } else {
        out.push(0xc4);
        out.push(rxb << 5 | map);
        out.push(w << 7 | vvvv << 3 | l << 2 | pp);
    }
    opcode_and_modrm(op_code, out, rng)
}

fn opcode_and_modrm(op_code: &OpCodeInfo, mut out: Bytes, rng: &mut SplitMix) -> [u8; 15] {
    let in_opcode = op_code.op_kinds().iter().any(|kind| {
        use OpCodeOperandKind::*;
        matches!(kind, r8_opcode | r16_opcode | r32_opcode | r64_opcode | sti_opcode)
    });
    let low = if in_opcode { rng.below(8) as u8 } else { 0 };
    if op_code.op_code_len() == 2 {
        out.push((op_code.op_code() >> 8) as u8);
    }
    out.push(op_code.op_code() as u8 | low);
    // What follows is ModRM in most encodings; in the others these bits belong to something random anyway.
    if let Some(modrm) = out.bytes.get_mut(out.len) {
        if rng.percent(25) {
            *modrm |= 0xc0;
        }
        if op_code.group_index() >= 0 {
            *modrm = *modrm & 0xc7 | (op_code.group_index() as u8) << 3;
        }
        if op_code.rm_group_index() >= 0 {
            *modrm = *modrm & 0xf8 | op_code.rm_group_index() as u8;
        }
    }
    out.bytes
}
