//! Port accesses of the processors.
//!
//! A device that has registers wider than a byte sees the access whole; for the others it is split into bytes at
//! consecutive ports, as the ISA bus does.

use emu_core::time::Instant;

use super::{Board, BoardEvents, BoardRequest, TestPorts};
use crate::acpi::pm;
use crate::bus::{Port, Width};
use crate::{chipset, fw_cfg, i8042, pic, pit, testdev};

/// A byte-wide register of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteReg {
    Pic(pic::Reg),
    Pit(pit::Reg),
    I8042(i8042::Reg),
    Chipset(chipset::Reg),
    RtcIndex,
    RtcData,
    Uart(u16),
    Power(pm::Reg),
}

/// Which byte-wide register a port is. Every range in the body is one device's own.
const fn decode_byte(port: u16) -> Option<ByteReg> {
    const UART: u16 = crate::uart::COM1.0.0;
    const UART_LAST: u16 = UART + 7;
    match port {
        0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => match pic::decode(port) {
            Some(reg) => Some(ByteReg::Pic(reg)),
            None => None,
        },
        0x40..=0x43 => match pit::decode(port) {
            Some(reg) => Some(ByteReg::Pit(reg)),
            None => None,
        },
        0x60 | 0x64 => match i8042::decode(port) {
            Some(reg) => Some(ByteReg::I8042(reg)),
            None => None,
        },
        0x61 | 0x80 | 0x92 | 0xcf9 => match chipset::decode(port) {
            Some(reg) => Some(ByteReg::Chipset(reg)),
            None => None,
        },
        0x70 => Some(ByteReg::RtcIndex),
        0x71 => Some(ByteReg::RtcData),
        UART..=UART_LAST => Some(ByteReg::Uart(port - UART)),
        0x600..=0x623 => match pm::decode(port) {
            Some(reg) => Some(ByteReg::Power(reg)),
            None => None,
        },
        _ => None,
    }
}

/// A register that takes accesses whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WideReg {
    PciAddress,
    PciData(u16),
    FwCfg(fw_cfg::Reg),
    Test(testdev::Reg),
}

/// Which wide register an access reaches.
const fn decode_wide(port: u16, width: Width, test_ports: TestPorts) -> Option<WideReg> {
    match port {
        // Only four bytes at once are the address register; 0xcf9 is a port of its own.
        0xcf8 if matches!(width, Width::Dword) => Some(WideReg::PciAddress),
        0xcfc..=0xcff => Some(WideReg::PciData(port & 3)),
        0x510..=0x51b => match fw_cfg::decode(port) {
            Some(reg) => Some(WideReg::FwCfg(reg)),
            None => None,
        },
        0xe0..=0xf7 | 0x402 | 0x2000..=0x2017 => {
            match testdev::decode(port, matches!(test_ports, TestPorts::Present)) {
                Some(reg) => Some(WideReg::Test(reg)),
                None => None,
            }
        }
        _ => None,
    }
}

impl Board {
    /// IN: reads `width` bytes at `port`.
    pub fn io_read(&mut self, port: Port, width: Width, now: Instant) -> u32 {
        if let Some(reg) = decode_wide(port.0, width, self.config.test_ports) {
            return match reg {
                WideReg::PciAddress => self.pci.address(),
                WideReg::PciData(byte) => self.pci.read_data(byte, width),
                WideReg::FwCfg(reg) => self.fw_cfg.read(reg, width),
                WideReg::Test(reg) => self.test.read(reg, width),
            };
        }
        if decode_byte(port.0).is_none()
            && let Some(value) = self.pci.io_read(port, width, now)
        {
            self.settle();
            return value;
        }
        let mut value = 0;
        for byte in 0..width.bytes().min(4) {
            value |= (self.read_byte(port.plus(byte), now) as u32) << (byte * 8);
        }
        value
    }

    fn read_byte(&mut self, port: Port, now: Instant) -> u8 {
        let Some(reg) = decode_byte(port.0) else { return 0xff };
        let value = match reg {
            // Free of effects on lines: no need to look at them.
            ByteReg::Power(pm::Reg::Timer(byte)) => return (self.power.timer(now) >> (byte * 8)) as u8,
            ByteReg::RtcIndex => return self.rtc.index(),
            ByteReg::Pic(reg) => self.pic.read(reg),
            ByteReg::Pit(reg) => self.pit.read(reg, now),
            ByteReg::I8042(reg) => self.i8042.read(reg),
            ByteReg::Chipset(reg) => {
                self.pit.sync(now);
                self.chipset.read(reg, self.pit.out(2), now)
            }
            ByteReg::RtcData => self.rtc.read(now),
            ByteReg::Uart(offset) => self.uart.read(offset),
            ByteReg::Power(reg) => self.power.read(reg, now),
        };
        self.settle();
        value
    }

    /// OUT: writes `width` bytes at `port`.
    pub fn io_write(&mut self, port: Port, width: Width, value: u32, now: Instant) -> BoardEvents {
        if let Some(reg) = decode_wide(port.0, width, self.config.test_ports) {
            match reg {
                WideReg::PciAddress => self.pci.set_address(value),
                WideReg::PciData(byte) => self.pci.write_data(byte, width, value),
                WideReg::FwCfg(reg) => self.dma_wanted |= self.fw_cfg.write(reg, width, value),
                WideReg::Test(reg) => self.write_test(reg, width, value),
            }
        } else if decode_byte(port.0).is_some() || !self.pci.io_write(port, width, value, now) {
            for byte in 0..width.bytes().min(4) {
                self.write_byte(port.plus(byte), (value >> (byte * 8)) as u8, now);
            }
        }
        self.settle() | BoardEvents::TIMERS
    }

    fn write_test(&mut self, reg: testdev::Reg, width: Width, value: u32) {
        match self.test.write(reg, width, value) {
            testdev::Effect::None | testdev::Effect::Lines => {}
            testdev::Effect::Exit(value) => self.requests.push_back(BoardRequest::DebugExit(value)),
            testdev::Effect::FlushPage(gpa) => self.requests.push_back(BoardRequest::FlushPage(gpa)),
            testdev::Effect::Console(byte) => self.console_out.push(byte),
        }
    }

    fn switch_a20(&mut self, on: bool, before: bool) {
        self.chipset.set_a20(on);
        if on != before {
            self.requests.push_back(BoardRequest::A20(on));
        }
    }

    fn write_byte(&mut self, port: Port, value: u8, now: Instant) {
        let Some(reg) = decode_byte(port.0) else { return };
        let a20 = self.chipset.a20();
        match reg {
            ByteReg::Pic(reg) => self.pic.write(reg, value),
            ByteReg::Pit(reg) => self.pit.write(reg, value, now),
            ByteReg::I8042(reg) => match self.i8042.write(reg, value) {
                i8042::Effect::None => {}
                i8042::Effect::Reset => self.requests.push_back(BoardRequest::Reset),
                i8042::Effect::A20(on) => self.switch_a20(on, a20),
            },
            ByteReg::Chipset(reg) => match self.chipset.write(reg, value) {
                chipset::Effect::None => {}
                chipset::Effect::Reset => self.requests.push_back(BoardRequest::Reset),
                chipset::Effect::A20(on) => self.switch_a20(on, a20),
                chipset::Effect::SpeakerGate(level) => self.pit.set_gate2(level, now),
            },
            ByteReg::RtcIndex => self.rtc.write_index(value),
            ByteReg::RtcData => self.rtc.write(value, now),
            ByteReg::Uart(offset) => self.uart.write(offset, value, &mut self.serial_out),
            ByteReg::Power(reg) => {
                if self.power.write(reg, value, now) == pm::Effect::PowerOff {
                    self.requests.push_back(BoardRequest::PowerOff);
                }
            }
        }
    }
}
