//! The ROM at the top of the first 4 GiB, with what a processor finds at its reset vector.
//!
//! Images are loaded by the machine itself, so this firmware boots nothing. It does what a PC's does for a processor that
//! comes back to it (Intel SDM vol. 3, "First Instruction Executed"): it reads the shutdown status byte of the CMOS, and
//! either resumes at the far pointer that the guest left in the BIOS data area or asks for a reset.

use emu_core::Gpa;

/// Where the ROM lies: the last 64 KiB below 4 GiB.
pub(super) const ROM: Gpa = Gpa::new(0xffff_0000);
/// Its length.
pub(super) const ROM_BYTES: u64 = 0x1_0000;

/// Offset of the reset vector in the ROM.
const RESET_VECTOR: usize = 0xfff0;
/// Offset of the program the vector jumps to.
const PROGRAM: usize = 0xff80;

/// 16-bit code, CS based at [`ROM`], every other segment at zero.
#[rustfmt::skip]
const CODE: [u8; 42] = [
    0xfa,                         //       cli
    0xb0, 0x8f, 0xe6, 0x70,       //       mov al, 0x8f; out 0x70, al   ; shutdown status, NMI off
    0xe4, 0x71, 0x88, 0xc4,       //       in al, 0x71; mov ah, al
    0xb0, 0x8f, 0xe6, 0x70,       //       mov al, 0x8f; out 0x70, al
    0x30, 0xc0, 0xe6, 0x71,       //       xor al, al; out 0x71, al     ; it counts once
    0x80, 0xfc, 0x05, 0x74, 0x0c, //       cmp ah, 5; je eoi
    0x80, 0xfc, 0x0a, 0x74, 0x0b, //       cmp ah, 10; je resume
    0xb0, 0xfe, 0xe6, 0x64,       //       mov al, 0xfe; out 0x64, al   ; pulse the reset line
    0xf4, 0xeb, 0xfd,             // wait: hlt; jmp wait
    0xb0, 0x20, 0xe6, 0x20,       // eoi:  mov al, 0x20; out 0x20, al
    0xff, 0x2e, 0x67, 0x04,       // resume: jmp far [0x467]
];

/// The bytes of the ROM: ones, as an erased flash part, around the program.
pub(super) fn rom() -> Vec<u8> {
    let mut bytes = vec![0xff; ROM_BYTES as usize];
    bytes[PROGRAM..PROGRAM + CODE.len()].copy_from_slice(&CODE);
    // jmp short to the program; what follows is where a PC's firmware has its date.
    let distance = (PROGRAM as i64 - (RESET_VECTOR as i64 + 2)) as i8;
    bytes[RESET_VECTOR..RESET_VECTOR + 2].copy_from_slice(&[0xeb, distance as u8]);
    bytes
}
