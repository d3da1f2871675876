//! How code is cut into blocks changes nothing: random programs give the same state as whole blocks, in slices of time
//! of any length, with decoded code dropped between slices, and on a processor that takes over in the middle.
//!
//! This is what holds fusion of compares and jumps, flags left out, links between blocks and shortened runs to account.

#[expect(dead_code, reason = "its runner is for whole runs")]
mod common;

use std::sync::Arc;

use common::{CODE, STACK, long_mode};
use cpu::{Exit, UserRegisters, Vcpu, VcpuConfig, VcpuState};
use emu_core::Spa;
use emu_core::cpu_model::CpuModel;
use emu_core::memory::SystemMemory;
use emu_core::regs::Rflags;
use emu_core::rng::Seed;
use emu_core::time::Instant;
use native::rng::SplitMix;

/// What R15 points at.
const DATA: u64 = 0x40_0000;
/// Bytes around it that are compared.
const DATA_BYTES: u64 = 0x4000;

/// One piece of a program: bytes that are entered at their start only, and what is to be filled in afterwards.
struct Piece {
    bytes: Vec<u8>,
    /// A four-byte distance at this offset leads to another piece.
    branch: Option<usize>,
    /// A four-byte distance at this offset leads to the immediate byte of another piece, with this many bytes of
    /// instruction behind it.
    patch: Option<(usize, usize)>,
    /// Offset of an immediate byte that may be overwritten while the program runs.
    immediate: Option<usize>,
}

fn plain(bytes: Vec<u8>) -> Piece {
    Piece { bytes, branch: None, patch: None, immediate: None }
}

/// Any register but RSP and R15, which keep the program in its place.
fn register(rng: &mut SplitMix) -> u8 {
    rng.pick(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
}

/// Prefixes, opcode and operands of an instruction with ModRM: width by `opcode`'s low bit, REX.W and 66.
fn modrm(rng: &mut SplitMix, opcode: &[u8], reg: u8, memory: bool, immediate: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let wide = rng.below(3);
    if wide == 1 {
        bytes.push(0x66);
    }
    let w = if wide == 2 { 8 } else { 0 };
    let rm = if memory { 15 } else { register(rng) };
    bytes.push(0x40 | w | (reg >> 3) << 2 | rm >> 3);
    bytes.extend_from_slice(opcode);
    if memory {
        bytes.push(0x80 | (reg & 7) << 3 | rm & 7);
        // Some operands cross into another page.
        let offset = if rng.percent(10) { 0xff9 + rng.below(8) } else { rng.below(256) };
        bytes.extend((offset as u32).to_le_bytes());
    } else {
        bytes.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }
    // Four bytes where the instruction takes that many at 32 and 64 bits takes two at 16.
    let immediate = if immediate == 4 && wide == 1 { 2 } else { immediate };
    bytes.extend((0..immediate).map(|_| rng.next_u64() as u8));
    bytes
}

fn piece(rng: &mut SplitMix) -> Piece {
    let memory = rng.percent(35);
    let reg = register(rng);
    let condition = rng.below(16) as u8;
    match rng.below(32) {
        0..6 => {
            // ADD to CMP, all four directions and widths.
            let opcode = (rng.below(8) * 8 + rng.below(4)) as u8;
            plain(modrm(rng, &[opcode], reg, memory, 0))
        }
        6 => {
            let extension = rng.below(8) as u8;
            plain(modrm(rng, &[0x83], extension, memory, 1))
        }
        7 => {
            let extension = rng.below(8) as u8;
            plain(modrm(rng, &[0x81], extension, memory, 4))
        }
        8 => plain(modrm(rng, &[0x85], reg, memory, 0)),
        9 => plain(modrm(rng, &[0xf7], 0, memory, 4)),
        10 => {
            let extension = rng.below(2) as u8;
            plain(modrm(rng, &[0xff], extension, memory, 0))
        }
        11 => {
            let extension = 2 + rng.below(4) as u8;
            plain(modrm(rng, &[0xf7], extension, memory, 0))
        }
        12 | 13 => {
            let extension = rng.below(8) as u8;
            let (opcode, immediate) = rng.pick(&[(0xc1, 1), (0xd1, 0), (0xd3, 0), (0xc0, 1), (0xd2, 0)]);
            plain(modrm(rng, &[opcode], extension, memory, immediate))
        }
        14 => plain(modrm(rng, &[0x0f, 0x90 | condition], 0, memory, 0)),
        15 => plain(modrm(rng, &[0x0f, 0x40 | condition], reg, memory, 0)),
        16 => {
            let opcode = rng.pick(&[0x88, 0x89, 0x8a, 0x8b]);
            plain(modrm(rng, &[opcode], reg, memory, 0))
        }
        17 => {
            let opcode = rng.pick(&[0xb6, 0xb7, 0xbe, 0xbf, 0xaf, 0xbc, 0xbd, 0xa3, 0xab, 0xb3, 0xbb]);
            // Bit strings in memory reach anywhere: registers only.
            let memory = memory && !matches!(opcode, 0xa3 | 0xab | 0xb3 | 0xbb);
            plain(modrm(rng, &[0x0f, opcode], reg, memory, 0))
        }
        18 => {
            let opcode = rng.pick(&[0xc0, 0xc1, 0xb0, 0xb1]);
            plain(modrm(rng, &[0x0f, opcode], reg, memory, 0))
        }
        19 => plain(
            rng.pick(&[&[0xf8][..], &[0xf9], &[0xf5], &[0x9e], &[0x9f], &[0x48, 0x98], &[0x48, 0x99], &[0x9c, 0x58]])
                .to_vec(),
        ),
        20 => plain(vec![0x50 | rng.pick(&[0, 1, 2, 3, 5, 6, 7]), 0x58 | rng.pick(&[0, 1, 2, 3, 5, 6, 7])]),
        21 => {
            // mov ecx, n; lea rsi, [r15+a]; lea rdi, [r15+b]; rep movs or stos
            let mut bytes = vec![0xb9, rng.below(40) as u8, 0, 0, 0];
            for lea in [[0x49, 0x8d, 0xb7], [0x49, 0x8d, 0xbf]] {
                bytes.extend(lea);
                bytes.extend((0x800 + rng.below(0x800) as u32).to_le_bytes());
            }
            bytes.extend(rng.pick(&[[0xf3, 0xa4], [0xf3, 0xa5], [0xf3, 0xab], [0xf3, 0xa6], [0xf2, 0xae]]));
            plain(bytes)
        }
        22 => Piece { immediate: Some(1), ..plain(vec![0xb0, rng.next_u64() as u8]) },
        23 => {
            // mov byte [rip+?], n
            Piece { patch: Some((2, 1)), ..plain(vec![0xc6, 0x05, 0, 0, 0, 0, rng.next_u64() as u8]) }
        }
        24 => Piece { branch: Some(1), ..plain(vec![0xe9, 0, 0, 0, 0]) },
        25 => Piece { branch: Some(1), ..plain(vec![0xe8, 0, 0, 0, 0]) },
        26 => Piece { branch: Some(3), ..plain(vec![0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xff, 0xe0]) }, // lea rax; jmp rax
        // A compare right before its jump, the pair that is fused.
        27..29 => {
            let opcode = rng.pick(&[0x38, 0x39, 0x3a, 0x3b, 0x84, 0x85]);
            let mut bytes = modrm(rng, &[opcode], reg, memory, 0);
            bytes.extend([0x0f, 0x80 | condition, 0, 0, 0, 0]);
            Piece { branch: Some(bytes.len() - 4), ..plain(bytes) }
        }
        _ => Piece { branch: Some(2), ..plain(vec![0x0f, 0x80 | condition, 0, 0, 0, 0]) },
    }
}

fn program(rng: &mut SplitMix) -> Vec<u8> {
    let count = 5 + rng.below(26) as usize;
    let pieces: Vec<Piece> = (0..count).map(|_| piece(rng)).collect();
    let mut starts = vec![0];
    for piece in &pieces {
        starts.push(starts[starts.len() - 1] + piece.bytes.len());
    }
    let immediates: Vec<usize> =
        pieces.iter().zip(&starts).filter_map(|(piece, start)| piece.immediate.map(|at| start + at)).collect();
    let mut bytes = Vec::new();
    for (mut piece, &start) in pieces.into_iter().zip(&starts) {
        if let Some(at) = piece.branch {
            let target = starts[rng.below(count as u64) as usize] as i32;
            piece.bytes[at..at + 4].copy_from_slice(&(target - (start + at + 4) as i32).to_le_bytes());
        }
        if let Some((at, behind)) = piece.patch {
            // Without anything to overwrite the piece overwrites its own immediate.
            let own = start + at + 4;
            let target = if immediates.is_empty() { own } else { rng.pick(&immediates) } as i32;
            piece.bytes[at..at + 4].copy_from_slice(&(target - (start + at + 4 + behind) as i32).to_le_bytes());
        }
        bytes.extend(piece.bytes);
    }
    // And round again.
    let back = -(bytes.len() as i32 + 5);
    bytes.push(0xe9);
    bytes.extend(back.to_le_bytes());
    bytes
}

/// Everything a run may leave behind.
#[derive(PartialEq, Eq)]
struct Seen {
    exit: Exit,
    units: u64,
    state: VcpuState,
    memory: Vec<u8>,
}

impl Seen {
    fn of(vcpu: &Vcpu, memory: &SystemMemory, exit: Exit) -> Seen {
        let mut bytes = vec![0; DATA_BYTES as usize + 0x2000];
        memory.read(Spa::new(DATA - 0x1000), &mut bytes[..DATA_BYTES as usize]).unwrap();
        memory.read(Spa::new(STACK - 0x1000), &mut bytes[DATA_BYTES as usize..][..0x1000]).unwrap();
        memory.read(Spa::new(CODE), &mut bytes[DATA_BYTES as usize + 0x1000..]).unwrap();
        Seen { exit, units: vcpu.now().units(), state: vcpu.state(), memory: bytes }
    }

    fn assert_same(&self, other: &Seen, what: &str, programs: &[Vec<u8>]) {
        let hex = format!("{programs:02x?}");
        let end = |seen: &Seen| (seen.exit.clone(), seen.units, seen.state.rip);
        assert_eq!(end(self), end(other), "exit, time and RIP of {what}: {hex}");
        assert_eq!(self.state, other.state, "{what}: {hex}");
        let at = self.memory.iter().zip(&other.memory).position(|(a, b)| a != b);
        assert_eq!(at, None, "memory, {what}: {hex}");
    }
}

/// A machine before the run; the same for the same seed.
fn machine(code: &[u8], seed: u64) -> (Vcpu, Arc<SystemMemory>) {
    let rng = &mut SplitMix::new(seed);
    let (mut vcpu, memory) = long_mode(code);
    let mut state = vcpu.state();
    for n in 0..15 {
        if n != 4 {
            state.gpr[n] = native::values::integer(rng);
        }
    }
    state.gpr[15] = DATA;
    state.rflags = Rflags::from_bits_retain(2 | rng.next_u64() & 0x8d5);
    vcpu.set_state(&state);
    for offset in (0..0x2000).step_by(8) {
        memory.store(Spa::new(DATA + offset), rng.next_u64()).unwrap();
    }
    (vcpu, memory)
}

/// What happens between two slices.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    /// The code is written again, as it is.
    Rewritten,
    /// A new processor takes over.
    Replaced,
}

/// Runs to each of `points` in slices of at most `longest` units; at a point the code is replaced by the next program.
fn run(programs: &[Vec<u8>], points: &[u64], seed: u64, longest: u64, between: Between) -> Seen {
    let rng = &mut SplitMix::new(seed ^ longest);
    let (mut vcpu, memory) = machine(&programs[0], seed);
    let mut exit = Exit::TimeUp;
    for (n, &point) in points.iter().enumerate() {
        if n > 0 {
            memory.write(Spa::new(CODE), &programs[n]).unwrap();
            // From its first byte: in the middle of an instruction anything might be stored anywhere, page tables
            // included, which a processor with an empty TLB notices sooner.
            let registers = vcpu.user_registers();
            vcpu.set_user_registers(&UserRegisters { rip: CODE, ..registers });
        }
        while vcpu.now().units() < point {
            let slice = if longest == u64::MAX { u64::MAX } else { 1 + rng.below(longest) };
            let until = point.min(vcpu.now().units().saturating_add(slice));
            exit = vcpu.run(Instant::new(until));
            if exit != Exit::TimeUp {
                return Seen::of(&vcpu, &memory, exit);
            }
            match between {
                Between::Nothing => {}
                Between::Rewritten => {
                    let mut page = [0; 0x1000];
                    memory.read(Spa::new(CODE), &mut page).unwrap();
                    memory.write(Spa::new(CODE), &page).unwrap();
                }
                // An event that waits to be delivered is not part of the state.
                Between::Replaced if vcpu.has_event() => {}
                Between::Replaced => {
                    let (state, now) = (vcpu.state(), vcpu.now());
                    let config = VcpuConfig { model: CpuModel::amd_v3(), apic_id: 0, cpu_count: 1, seed: Seed(1) };
                    vcpu = Vcpu::new(memory.clone(), &config);
                    vcpu.set_state(&state);
                    vcpu.advance_clock(now);
                }
            }
        }
    }
    Seen::of(&vcpu, &memory, exit)
}

#[test]
fn cuts_change_nothing() {
    let mut ended_early = 0;
    const PROGRAMS: u64 = 3000;
    for seed in 0..PROGRAMS {
        let rng = &mut SplitMix::of_item(0x626c_6f63, seed);
        let programs = [program(rng), program(rng)];
        let first = 20 + rng.below(400);
        let points = [first, first + 20 + rng.below(400)];
        let whole = run(&programs, &points, seed, u64::MAX, Between::Nothing);
        ended_early += u64::from(whole.exit != Exit::TimeUp);
        for (longest, between) in [
            (1, Between::Nothing),
            (7, Between::Nothing),
            (60, Between::Nothing),
            (25, Between::Rewritten),
            (90, Between::Replaced),
        ] {
            let cut = run(&programs, &points, seed, longest, between);
            let what = format!("program {seed}, slices of {longest}, {between:?}");
            whole.assert_same(&cut, &what, &programs);
        }
    }
    // Programs are to run, not to fault.
    assert!(ended_early < PROGRAMS / 4, "{ended_early}");
}
