//! FNSTENV, FLDENV, FNSAVE and FRSTOR (APM vol. 2, "x87 Environment", with its four layouts).
//!
//! The layout follows the operand size and whether addressing is that of real mode, where selectors are part of a
//! linear address. In 64-bit mode the layout is that of protected mode.

use crate::address::Use;
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::fp::area::Area;
use crate::op::Op;
use crate::softfloat::F80;
use crate::x87::{EXCEPTIONS, X87State};

/// Registers in the image of FNSAVE, after the environment.
const REGISTERS_LEN: usize = 80;
/// The longest image: FNSAVE with 32-bit operands.
const LONGEST: usize = 28 + REGISTERS_LEN;

/// The error pointers as one layout has them, from the third word on.
struct Pointers {
    words: [u32; 4],
}

fn pack_pointers(cpu: &Cpu, word: u64) -> Pointers {
    let x87 = &cpu.x87;
    let (fip, fdp) = (x87.fip as u32, x87.fdp as u32);
    let words = match (cpu.mode.is_real_addressing(), word) {
        (false, 2) => [fip & 0xffff, x87.fcs as u32, fdp & 0xffff, x87.fds as u32],
        (false, _) => [fip, (x87.fop as u32) << 16 | x87.fcs as u32, fdp, x87.fds as u32],
        (true, size) => {
            let fip = fip.wrapping_add((x87.fcs as u32) << 4);
            let fdp = fdp.wrapping_add((x87.fds as u32) << 4);
            let kept = if size == 2 { 0xf } else { 0xffff };
            let high = |address: u32| (address >> 16 & kept) << 12;
            [fip & 0xffff, high(fip) | x87.fop as u32, fdp & 0xffff, high(fdp)]
        }
    };
    Pointers { words }
}

fn unpack_pointers(into: &mut X87State, words: [u32; 4], real: bool, word: u64) {
    let [a, b, c, d] = words;
    if real {
        into.fip = ((b >> 12) << 16 | a & 0xffff) as u64;
        into.fdp = ((d >> 12) << 16 | c & 0xffff) as u64;
        (into.fcs, into.fds) = (0, 0);
        into.fop = b as u16 & 0x7ff;
    } else {
        (into.fip, into.fdp) = (a as u64, c as u64);
        (into.fcs, into.fds) = (b as u16, d as u16);
        into.fop = if word == 2 { 0 } else { (b >> 16) as u16 & 0x7ff };
    }
}

/// Writes the environment into an image; returns its length.
fn pack(cpu: &Cpu, word: u64, image: &mut [u8; LONGEST]) -> usize {
    let x87 = &cpu.x87;
    // With 32-bit operands the upper half of the first three words, and of the last, reads as ones.
    let wide = |value: u16| 0xffff_0000 | value as u32;
    let Pointers { words: [a, b, c, mut d] } = pack_pointers(cpu, word);
    if word == 4 && !cpu.mode.is_real_addressing() {
        d |= 0xffff_0000;
    }
    let words = [wide(x87.fcw), wide(x87.fsw), wide(x87.full_tags()), a, b, c, d];
    for (n, value) in words.into_iter().enumerate() {
        let at = n * word as usize;
        image[at..][..word as usize].copy_from_slice(&value.to_le_bytes()[..word as usize]);
    }
    7 * word as usize
}

/// Reads the environment from an image; returns its length.
fn unpack(cpu: &mut Cpu, word: u64, image: &[u8; LONGEST]) -> usize {
    let words: [u32; 7] = core::array::from_fn(|n| {
        let bytes = &image[n * word as usize..][..word as usize];
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | byte as u32)
    });
    let real = cpu.mode.is_real_addressing();
    let [fcw, fsw, tags, pointers @ ..] = words;
    let x87 = &mut cpu.x87;
    x87.fsw = fsw as u16;
    x87.set_fcw(fcw as u16);
    x87.set_full_tags(tags as u16);
    unpack_pointers(x87, pointers, real, word);
    7 * word as usize
}

/// FNSTENV: stores the environment and masks all exceptions.
pub(crate) struct Fnstenv;
impl Act for Fnstenv {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let word = Cpu::environment_word(op);
        let mut image = [0; LONGEST];
        let len = pack(cpu, word, &mut image);
        store(cpu, op, word, &image[..len])?;
        cpu.x87.set_fcw(cpu.x87.fcw | EXCEPTIONS);
        Ok(())
    }
}

/// FLDENV
pub(crate) struct Fldenv;
impl Act for Fldenv {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let word = Cpu::environment_word(op);
        let mut image = [0; LONGEST];
        load(cpu, op, word, &mut image[..7 * word as usize])?;
        unpack(cpu, word, &image);
        Ok(())
    }
}

/// FNSAVE: stores environment and registers, then does what FNINIT does.
pub(crate) struct Fnsave;
impl Act for Fnsave {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let word = Cpu::environment_word(op);
        let mut image = [0; LONGEST];
        let len = pack(cpu, word, &mut image);
        for i in 0..8 {
            let value = cpu.x87.st(i);
            image[len + 10 * i as usize..][..10].copy_from_slice(&value.to_bytes());
        }
        store(cpu, op, word, &image[..len + REGISTERS_LEN])?;
        cpu.x87 = X87State { regs: cpu.x87.regs, ..X87State::reset() };
        Ok(())
    }
}

/// FRSTOR
pub(crate) struct Frstor;
impl Act for Frstor {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let word = Cpu::environment_word(op);
        let mut image = [0; LONGEST];
        load(cpu, op, word, &mut image[..7 * word as usize + REGISTERS_LEN])?;
        let len = unpack(cpu, word, &image);
        for i in 0..8 {
            let mut bytes = [0; 10];
            bytes.copy_from_slice(&image[len + 10 * i as usize..][..10]);
            let n = cpu.x87.physical(i);
            cpu.x87.regs[n] = F80::from_bytes(bytes);
        }
        Ok(())
    }
}

fn store(cpu: &mut Cpu, op: &Op, word: u64, image: &[u8]) -> Result<(), Trap> {
    let area = Area::of(cpu, op, image.len() as u64, Use::Write)?;
    area.probe_store(cpu, 0, image.len() as u64)?;
    if word == 2 { area.store::<u16>(cpu, 0, image) } else { area.store::<u32>(cpu, 0, image) }
}

fn load(cpu: &mut Cpu, op: &Op, word: u64, image: &mut [u8]) -> Result<(), Trap> {
    let area = Area::of(cpu, op, image.len() as u64, Use::Read)?;
    if word == 2 { area.load::<u16>(cpu, 0, image) } else { area.load::<u32>(cpu, 0, image) }
}
