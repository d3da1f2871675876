//! FXSAVE, FXRSTOR, and the 512-byte image that the XSAVE area starts with (APM vol. 2, "FXSAVE and FXRSTOR
//! Instructions"; Intel SDM vol. 1, 10.5).
//!
//! AMD processors save and restore the error pointers and the opcode only while an exception is pending; Intel's always.
//! Fast FXSAVE (EFER.FFXSR) does not exist on the models.

use emu_core::cpu_model::Vendor;

use crate::address::Use;
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::fp::area::Area;
use crate::fp::mxcsr::{self, MXCSR_MASK};
use crate::op::Op;
use crate::softfloat::F80;
use crate::vector::V128;
use crate::x87::ES;

/// Length of the image.
pub(crate) const LEN: usize = 512;
/// Length of its x87 control part: words, opcode and pointers.
pub(crate) const CONTROL_LEN: usize = 24;
/// Offset of MXCSR and its mask.
pub(crate) const MXCSR_OFFSET: usize = 24;
/// Offset of ST(0).
pub(crate) const ST_OFFSET: usize = 32;
/// Offset of XMM0.
pub(crate) const XMM_OFFSET: usize = 160;
/// Offset of the error pointers, which AMD processors may leave alone; the opcode is in the two bytes before.
const POINTERS_OFFSET: usize = 8;
const FOP_OFFSET: usize = 6;

/// Width of the error pointers in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pointers {
    /// Offset and selector.
    Selectors,
    /// 64-bit offsets (REX.W).
    Wide,
}

impl Pointers {
    /// From the op's operand size in [`Op::dst`].
    pub fn of(op: &Op) -> Pointers {
        if op.dst == 8 { Pointers::Wide } else { Pointers::Selectors }
    }
}

/// How many XMM and YMM registers the mode has.
pub(crate) fn registers(cpu: &Cpu) -> usize {
    if cpu.key.is_64() { 16 } else { 8 }
}

/// Whether the opcode and the error pointers are part of the image of a status word.
fn has_pointers(cpu: &Cpu, fsw: u16) -> bool {
    match cpu.model.vendor() {
        Vendor::Intel => true,
        Vendor::Amd => fsw & ES != 0,
    }
}

/// Length of the x87 control part that an image of the present state has.
pub(crate) fn control_len(cpu: &Cpu) -> usize {
    if has_pointers(cpu, cpu.x87.fsw) { CONTROL_LEN } else { FOP_OFFSET }
}

/// Writes the x87 control part.
pub(crate) fn pack_control(cpu: &Cpu, pointers: Pointers, image: &mut [u8; LEN]) {
    let x87 = &cpu.x87;
    image[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
    image[4] = x87.valid;
    image[FOP_OFFSET..8].copy_from_slice(&x87.fop.to_le_bytes());
    let (fip, fdp) = match pointers {
        Pointers::Wide => (x87.fip, x87.fdp),
        Pointers::Selectors => {
            (x87.fip & 0xffff_ffff | (x87.fcs as u64) << 32, x87.fdp & 0xffff_ffff | (x87.fds as u64) << 32)
        }
    };
    image[POINTERS_OFFSET..16].copy_from_slice(&fip.to_le_bytes());
    image[16..24].copy_from_slice(&fdp.to_le_bytes());
}

/// Writes the x87 data registers.
pub(crate) fn pack_registers(cpu: &Cpu, image: &mut [u8; LEN]) {
    for i in 0..8 {
        image[ST_OFFSET + 16 * i as usize..][..10].copy_from_slice(&cpu.x87.st(i).to_bytes());
    }
}

/// Writes MXCSR and its mask.
pub(crate) fn pack_mxcsr(cpu: &Cpu, image: &mut [u8; LEN]) {
    image[MXCSR_OFFSET..][..4].copy_from_slice(&cpu.vector.mxcsr.to_le_bytes());
    image[MXCSR_OFFSET + 4..][..4].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

/// Writes the XMM registers.
pub(crate) fn pack_xmm(cpu: &Cpu, image: &mut [u8; LEN]) {
    for n in 0..registers(cpu) {
        image[XMM_OFFSET + 16 * n..][..16].copy_from_slice(cpu.vector.xmm(n as u8).as_bytes());
    }
}

fn word(image: &[u8; LEN], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn quadword(image: &[u8; LEN], at: usize) -> u64 {
    image[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | byte as u64)
}

/// MXCSR in an image.
pub(crate) fn mxcsr_of(image: &[u8; LEN]) -> u32 {
    quadword(image, MXCSR_OFFSET) as u32
}

/// Loads the x87 state from an image.
pub(crate) fn unpack_x87(cpu: &mut Cpu, pointers: Pointers, image: &[u8; LEN]) {
    let loads_pointers = has_pointers(cpu, word(image, 2));
    let x87 = &mut cpu.x87;
    x87.fsw = word(image, 2);
    x87.set_fcw(word(image, 0));
    x87.valid = image[4];
    if loads_pointers {
        x87.fop = word(image, FOP_OFFSET) & 0x7ff;
        let (fip, fdp) = (quadword(image, POINTERS_OFFSET), quadword(image, 16));
        match pointers {
            Pointers::Wide => {
                (x87.fip, x87.fdp) = (fip, fdp);
                (x87.fcs, x87.fds) = (0, 0);
            }
            Pointers::Selectors => {
                (x87.fip, x87.fdp) = (fip & 0xffff_ffff, fdp & 0xffff_ffff);
                (x87.fcs, x87.fds) = ((fip >> 32) as u16, (fdp >> 32) as u16);
            }
        }
    }
    for i in 0..8 {
        let mut bytes = [0; 10];
        bytes.copy_from_slice(&image[ST_OFFSET + 16 * i as usize..][..10]);
        let n = x87.physical(i);
        x87.regs[n] = F80::from_bytes(bytes);
    }
}

/// Loads the XMM registers from an image.
pub(crate) fn unpack_xmm(cpu: &mut Cpu, image: &[u8; LEN]) {
    for n in 0..registers(cpu) {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&image[XMM_OFFSET + 16 * n..][..16]);
        cpu.vector.set_xmm(n as u8, V128::from_bytes(bytes));
    }
}

/// FXSAVE, FXSAVE64. The bytes that no register has a place in keep their contents.
pub(crate) struct Fxsave;
impl Act for Fxsave {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let area = Area::of(cpu, op, LEN as u64, Use::Write)?.aligned(16)?;
        area.probe_store(cpu, 0, LEN as u64)?;
        let mut image = [0; LEN];
        pack_control(cpu, Pointers::of(op), &mut image);
        pack_mxcsr(cpu, &mut image);
        pack_registers(cpu, &mut image);
        pack_xmm(cpu, &mut image);
        let len = control_len(cpu);
        area.store::<u16>(cpu, 0, &image[..len])?;
        let end = XMM_OFFSET + 16 * registers(cpu);
        area.store::<u64>(cpu, MXCSR_OFFSET as u64, &image[MXCSR_OFFSET..end])
    }
}

/// FXRSTOR, FXRSTOR64
pub(crate) struct Fxrstor;
impl Act for Fxrstor {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let area = Area::of(cpu, op, LEN as u64, Use::Read)?.aligned(16)?;
        let mut image = [0; LEN];
        area.load::<u64>(cpu, 0, &mut image)?;
        let mxcsr = mxcsr::check(mxcsr_of(&image))?;
        unpack_x87(cpu, Pointers::of(op), &image);
        cpu.vector.mxcsr = mxcsr;
        unpack_xmm(cpu, &image);
        Ok(())
    }
}
