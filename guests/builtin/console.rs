//! COM1, polled, and the two ways out: ACPI power-off and the debug-exit port.

use core::fmt;

use crate::cpu::{halt, in8, out8, out16, out32};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
const DEBUG_EXIT: u16 = 0xf4;
/// PM1a control, where the machine's FADT says it is.
const PM1A_CNT: u16 = 0x604;
/// SLP_EN with the sleep type of S5 that the machine's \_S5 object gives (0).
const S5: u16 = 1 << 13;

pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

fn send(byte: u8) {
    while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
    out8(COM1, byte);
}

/// 115200 baud, 8N1, no interrupts.
pub fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 0x03), (2, 0x07), (4, 0x03)] {
        out8(COM1 + register, value);
    }
}

#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => {{
        // The console never fails.
        let _ = core::fmt::Write::write_fmt(&mut $crate::console::Console, format_args!($($arg)*));
    }};
}

#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)+) => {{
        $crate::print!($($arg)+);
        $crate::print!("\n");
    }};
}

/// How the guest ends: by powering off when all is well, else by telling the debug-exit port what is not.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Verdict {
    Passed = 0,
    ChecksFailed = 1,
    Panicked = 2,
    UnexpectedTrap = 3,
    TooLittleMemory = 4,
}

pub fn exit(verdict: Verdict) -> ! {
    if let Verdict::Passed = verdict {
        out16(PM1A_CNT, S5);
    }
    out32(DEBUG_EXIT, verdict as u32);
    println!("no way to power off or exit; halting");
    halt()
}
