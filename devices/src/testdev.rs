//! Ports for test programs: the debug exit, the scratch and interrupt-line ports that kvm-unit-tests expects of QEMU's
//! `pc-testdev` with the memory behind them, and debug consoles.
//!
//! With the test ports in place 0xe8 to 0xeb belong to them, so the console at 0xe9 exists only without them; the one at
//! 0x402 always does.

use emu_core::addr::Gpa;

use crate::bus::{Width, extract32, merge32};

/// A port of the test devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// 0xf4 to 0xf7 and 0xf1: a write ends the run with its value.
    DebugExit,
    /// 0xe0 to 0xe3: a 32-bit scratch register, byte `0` to 3 of it.
    Scratch(u16),
    /// 0xe8 to 0xeb: the same register through single-byte accesses.
    ScratchBytes(u16),
    /// 0xe4 to 0xe7: drop the translation of the written address.
    Flush,
    /// 0x2000 to 0x2017: the level of one interrupt line.
    Line(u8),
    /// 0xe9 without the test ports, and 0x402: a debug console.
    Console,
}

/// Where the test device's memory lies: bytes that keep what was written, reached as device registers are.
pub const MEMORY_BASE: Gpa = Gpa::new(0xff00_0000);
/// How much of it there is.
pub const MEMORY_BYTES: u64 = 0x1_0000;

/// Which test register a port reaches; `test_ports` says whether the board has the `pc-testdev` ones.
pub const fn decode(port: u16, test_ports: bool) -> Option<Reg> {
    Some(match port {
        0xf4..=0xf7 => Reg::DebugExit,
        0x402 => Reg::Console,
        0xe9 if !test_ports => Reg::Console,
        0xf1 if test_ports => Reg::DebugExit,
        0xe0..=0xe3 if test_ports => Reg::Scratch(port & 3),
        0xe4..=0xe7 if test_ports => Reg::Flush,
        0xe8..=0xeb if test_ports => Reg::ScratchBytes(port & 3),
        0x2000..=0x2017 if test_ports => Reg::Line((port - 0x2000) as u8),
        _ => return None,
    })
}

/// What a write asked of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// End the run with this value.
    Exit(u32),
    /// Drop the nested translation of this page.
    FlushPage(Gpa),
    /// A byte for the debug console.
    Console(u8),
    /// An interrupt line changed.
    Lines,
}

/// The state behind the test ports.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TestDevice {
    scratch: u32,
    lines: u32,
    /// Empty until it is first written.
    memory: Vec<u8>,
}

impl TestDevice {
    /// The interrupt lines that are held high, one bit each global interrupt.
    pub const fn lines(&self) -> u32 {
        self.lines
    }

    /// Reads the device's memory at byte `offset`; what lies behind its end reads 0.
    pub fn memory_read(&self, offset: u64, width: Width) -> u64 {
        let byte = |n| self.memory.get((offset + n) as usize).copied().unwrap_or(0);
        (0..width.bytes() as u64).rev().fold(0, |value, n| value << 8 | byte(n) as u64)
    }

    /// Writes the device's memory at byte `offset`; what lies behind its end is lost.
    pub fn memory_write(&mut self, offset: u64, width: Width, value: u64) {
        if self.memory.is_empty() {
            self.memory = vec![0; MEMORY_BYTES as usize];
        }
        for (n, byte) in value.to_le_bytes().into_iter().take(width.bytes() as usize).enumerate() {
            if let Some(place) = self.memory.get_mut(offset as usize + n) {
                *place = byte;
            }
        }
    }

    /// Reads a register.
    pub const fn read(&self, reg: Reg, width: Width) -> u32 {
        match reg {
            Reg::Scratch(offset) | Reg::ScratchBytes(offset) => extract32(self.scratch, offset, width),
            // The value by which programs find out that there is a console.
            Reg::Console => 0xe9,
            Reg::Line(line) => self.lines >> line & 1,
            Reg::DebugExit | Reg::Flush => 0,
        }
    }

    /// Writes a register.
    pub const fn write(&mut self, reg: Reg, width: Width, value: u32) -> Effect {
        match reg {
            Reg::DebugExit => return Effect::Exit(value & width.mask32()),
            Reg::Scratch(offset) | Reg::ScratchBytes(offset) => {
                self.scratch = merge32(self.scratch, offset, width, value);
            }
            Reg::Flush => return Effect::FlushPage(Gpa::new((value & !0xfff) as u64)),
            Reg::Line(line) => {
                let bit = 1 << line;
                self.lines = if value != 0 { self.lines | bit } else { self.lines & !bit };
                return Effect::Lines;
            }
            Reg::Console => return Effect::Console(value as u8),
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_decodes_to_at_most_what_is_documented() {
        let counted = |test_ports| (0..=0xffff).filter(|&port| decode(port, test_ports).is_some()).count();
        // Exit and console alone, or those less 0xe9 plus 0xf1, three groups of four, and 24 lines.
        assert_eq!(counted(false), 4 + 2);
        assert_eq!(counted(true), 4 + 1 + 1 + 12 + 24);
    }

    #[test]
    fn scratch_takes_every_width_at_every_offset() {
        for offset in 0..4_u16 {
            for width in [Width::Byte, Width::Word, Width::Dword] {
                let mut dev = TestDevice::default();
                dev.write(Reg::Scratch(0), Width::Dword, 0x1122_3344);
                dev.write(Reg::Scratch(offset), width, 0xaabb_ccdd);
                let mut bytes = 0x1122_3344_u32.to_le_bytes();
                for (i, byte) in 0xaabb_ccdd_u32.to_le_bytes().iter().enumerate().take(width.bytes() as usize) {
                    if let Some(place) = bytes.get_mut(offset as usize + i) {
                        *place = *byte;
                    }
                }
                assert_eq!(dev.read(Reg::Scratch(0), Width::Dword), u32::from_le_bytes(bytes));
            }
        }
    }

    #[test]
    fn memory_keeps_bytes_of_every_width() {
        let mut dev = TestDevice::default();
        assert_eq!(dev.memory_read(8, Width::Qword), 0);
        dev.memory_write(8, Width::Qword, 0x0123_4567_89ab_cdef);
        dev.memory_write(9, Width::Byte, 0x55);
        assert_eq!(dev.memory_read(8, Width::Dword), 0x89ab_55ef);
        assert_eq!(dev.memory_read(12, Width::Word), 0x4567);
        dev.memory_write(MEMORY_BYTES - 1, Width::Word, 0xaabb);
        assert_eq!(dev.memory_read(MEMORY_BYTES - 1, Width::Word), 0xbb);
    }

    #[test]
    fn lines_are_levels() {
        let mut dev = TestDevice::default();
        for line in 0..24 {
            assert_eq!(dev.write(Reg::Line(line), Width::Byte, 1), Effect::Lines);
            assert_eq!(dev.lines(), 1 << line);
            dev.write(Reg::Line(line), Width::Byte, 0);
        }
        assert_eq!(dev.lines(), 0);
        assert_eq!(dev.write(Reg::DebugExit, Width::Byte, 0x1ff), Effect::Exit(0xff));
        assert_eq!(dev.write(Reg::Flush, Width::Dword, 0x1234_5678), Effect::FlushPage(Gpa::new(0x1234_5000)));
    }
}
