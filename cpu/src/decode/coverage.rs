//! Whether everything the models advertise is executed: every encoding, in every mode, that the guard lets pass must
//! find a group that has it.
//!
//! The bytes are tried in order: prefixes, opcode maps, opcodes, and a ModRM byte of each register and of memory.
//! iced says which instruction they are, so each of its codes counts once a mode.

use std::collections::BTreeMap;

use emu_core::cpu_model::CpuModel;
use emu_core::regs::{Cr0, Cr4, Efer, Rflags, Xcr0};
use iced_x86::{Code, Decoder};

use super::{Context, Request, decoder, guard, selected};
use crate::mode::{Mode, ModeKey};
use crate::segment::{SegReg, Segments};

/// The mode keys of 16-bit, 32-bit and 64-bit code with everything enabled.
fn keys() -> [ModeKey; 4] {
    let cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::PAE;
    let xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
    let mut segments = Segments::reset();
    let real = ModeKey::of(Mode::Real, Cr0::ET, cr4, xcr0, &segments);
    let pe = Cr0::PE | Cr0::ET;
    let code16 = ModeKey::of(Mode::of(pe, Efer::empty(), Rflags::empty(), &segments), pe, cr4, xcr0, &segments);
    segments.regs[SegReg::Cs as usize].attributes.set_db(true);
    let code32 = ModeKey::of(Mode::of(pe, Efer::empty(), Rflags::empty(), &segments), pe, cr4, xcr0, &segments);
    segments.regs[SegReg::Cs as usize].attributes.set_db(false);
    segments.regs[SegReg::Cs as usize].attributes.set_l(true);
    let long = pe | Cr0::PG;
    let code64 = ModeKey::of(Mode::of(long, Efer::LMA, Rflags::empty(), &segments), long, cr4, xcr0, &segments);
    [real, code16, code32, code64]
}

/// Beginnings of instructions, up to the opcode: legacy prefixes and maps, and the VEX prefixes of each map.
fn beginnings() -> Vec<Vec<u8>> {
    let prefixes: [&[u8]; 10] =
        [&[], &[0x66], &[0x67], &[0xf2], &[0xf3], &[0x66, 0xf2], &[0x66, 0xf3], &[0x48], &[0xf2, 0x48], &[0xf3, 0x48]];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let mut all: Vec<Vec<u8>> = prefixes.iter().flat_map(|p| maps.iter().map(|m| [*p, *m].concat())).collect();
    all.extend(maps.iter().map(|m| [&[0x66, 0x48], *m].concat()));
    for map in 1..=3 {
        // W, L and the implied prefix; all registers in their lower half.
        for tail in (0..16).map(|n| (n & 8) << 4 | (n & 4) | n & 3) {
            all.push(vec![0xc4, 0xe0 | map, 0x78 | tail]);
        }
    }
    all
}

#[test]
fn what_is_advertised_is_executed() {
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for model in [CpuModel::amd_v3(), CpuModel::amd_snp(), CpuModel::intel_v3()] {
        for key in keys() {
            for beginning in beginnings() {
                for opcode in 0..=255_u8 {
                    for modrm in (0..8).flat_map(|reg| [0x03 | reg << 3, 0xc3 | reg << 3]) {
                        try_one(&model, key, &[&beginning[..], &[opcode, modrm]].concat(), &mut missing);
                    }
                    if beginning.is_empty() && opcode >> 3 == 0x1b || beginning == [0x0f] && opcode < 2 {
                        for modrm in 0xc0..=0xff {
                            try_one(&model, key, &[&beginning[..], &[opcode, modrm]].concat(), &mut missing);
                        }
                    }
                }
            }
        }
    }
    for (code, bytes) in &missing {
        eprintln!("{code}: {} ({})", bytes[0], bytes.len());
    }
    assert!(missing.is_empty(), "{} codes without a meaning", missing.len());
}

fn try_one(model: &CpuModel, key: ModeKey, start: &[u8], missing: &mut BTreeMap<String, Vec<String>>) {
    let request = Request { key, rip: 0x1000, id: 0, model };
    let mut bytes = [0; 15];
    bytes[..start.len()].copy_from_slice(start);
    let mut decoder: Decoder<'_> = decoder(&request, &bytes);
    let insn = decoder.decode();
    if insn.code() == Code::INVALID {
        return;
    }
    let context = Context { insn: &insn, bytes: &bytes, request: &request, ip: decoder.position() as u16 };
    if guard::refuses(&context).is_none() && selected(&context).is_none() {
        let entry = missing.entry(format!("{:?}", insn.code())).or_default();
        entry.push(format!("{:?} {:?} {:02x?}", model.vendor(), key.code_size(), &bytes[..insn.len()]));
    }
}
