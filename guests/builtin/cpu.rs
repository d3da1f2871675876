//! The processor's registers and instructions that Rust has no words for.
#![expect(unsafe_code, reason = "privileged instructions; this is a kernel")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};

pub const CR0_WP: u64 = 1 << 16;
pub const CR4_PGE: u64 = 1 << 7;
pub const CR4_SMEP: u64 = 1 << 20;
pub const CR4_SMAP: u64 = 1 << 21;
const EFER: u32 = 0xc000_0080;
const EFER_NXE: u64 = 1 << 11;

/// What CPUID offers of what is checked here.
#[derive(Clone, Copy)]
pub struct Features {
    pub vendor: [u8; 12],
    pub no_execute: bool,
    pub pages_1g: bool,
    pub smep: bool,
    pub smap: bool,
    pub physical_bits: u32,
}

impl Features {
    pub fn read() -> Features {
        let basic = __cpuid(0);
        let mut vendor = [0; 12];
        for (part, word) in vendor.chunks_exact_mut(4).zip([basic.ebx, basic.edx, basic.ecx]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        let structured = if basic.eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
        let highest = __cpuid(0x8000_0000).eax;
        let extended = __cpuid(0x8000_0001).edx;
        let physical_bits = if highest >= 0x8000_0008 { __cpuid(0x8000_0008).eax & 0xff } else { 36 };
        Features {
            vendor,
            no_execute: extended >> 20 & 1 != 0,
            pages_1g: extended >> 26 & 1 != 0,
            smep: structured >> 7 & 1 != 0,
            smap: structured >> 20 & 1 != 0,
            physical_bits,
        }
    }
}

macro_rules! control_registers {
    ($($read:ident $write:ident $name:literal;)*) => {$(
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: reading a control register has no effect.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
        /// The caller keeps the code that runs, its stack and its data mapped as they are.
        pub fn $write(value: u64) {
            // SAFETY: by the caller's promise nothing that the compiler knows of changes its meaning.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

control_registers! {
    cr0 set_cr0 "cr0";
    cr3 set_cr3 "cr3";
    cr4 set_cr4 "cr4";
}

/// The address of the last page fault.
pub fn cr2() -> u64 {
    let value: u64;
    // SAFETY: reading a control register has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Turns on EFER.NXE.
pub fn enable_no_execute() {
    let (low, high): (u32, u32);
    // SAFETY: EFER exists on every processor with long mode.
    unsafe { asm!("rdmsr", in("ecx") EFER, out("eax") low, out("edx") high, options(nomem, nostack)) };
    // SAFETY: NXE gives bit 63 of entries its meaning, and no entry has it set yet.
    unsafe { asm!("wrmsr", in("ecx") EFER, in("eax") low | EFER_NXE as u32, in("edx") high, options(nostack)) };
}

/// Drops the translation of the page that holds `address`.
pub fn invlpg(address: u64) {
    // SAFETY: losing a translation costs a walk, nothing else.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Drops every translation that is not global.
pub fn reload_cr3() {
    set_cr3(cr3());
}

/// Lifts (or restores) SMAP by RFLAGS.AC.
pub fn set_ac(on: bool) {
    // SAFETY: AC at CPL 0 concerns SMAP alone; both instructions exist with the feature, which the caller has seen.
    unsafe {
        if on {
            asm!("stac", options(nostack));
        } else {
            asm!("clac", options(nostack));
        }
    }
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: the ports used here are the UART's and the debug exit's.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as for `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Waits for an interrupt that never comes.
pub fn halt() -> ! {
    loop {
        // SAFETY: stopping is safe.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
