//! The 16550A UART (PC16550D data sheet, "Registers"; the IBM PC's wiring of OUT2).
//!
//! [`Uart`] is the door. Bytes go out through a [`ByteSink`] the moment they are written: the transmitter is always
//! empty, so THRE and TEMT are always set, and the transmit interrupt is an event that a write or an IER change
//! raises and an IIR read clears. Bytes come in through [`Uart::receive`] into a backlog from which the FIFO (or the
//! single holding register) refills as the guest reads; nothing from the host is ever lost.
//!
//! The interrupt is a function of state: [`Uart::interrupt`]. On a PC it reaches the interrupt controller through
//! OUT2, which loop-back mode forces off.
//!
//! Left out: baud timing, so the character timeout is immediate; parity, framing and break errors; DMA mode.

use std::collections::VecDeque;

use crate::bus::{ByteSink, Port};

/// The first serial port: I/O 0x3f8, IRQ 4.
pub const COM1: (Port, u8) = (Port(0x3f8), 4);
/// The second serial port: I/O 0x2f8, IRQ 3.
pub const COM2: (Port, u8) = (Port(0x2f8), 3);

/// Depth of the receive FIFO in bytes.
pub const FIFO_DEPTH: usize = 16;

/// Read or write, where the two reach different registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// The guest reads.
    Read,
    /// The guest writes.
    Write,
}

/// The registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// Receiver buffer.
    Rbr,
    /// Transmitter holding.
    Thr,
    /// Divisor latch, low byte.
    Dll,
    /// Divisor latch, high byte.
    Dlm,
    /// Interrupt enable.
    Ier,
    /// Interrupt identification.
    Iir,
    /// FIFO control.
    Fcr,
    /// Line control.
    Lcr,
    /// Modem control.
    Mcr,
    /// Line status.
    Lsr,
    /// Modem status.
    Msr,
    /// Scratch.
    Scr,
}

/// Which register a port offset reaches; `None` for writes to the two status registers, which are not for the
/// guest, and past the eighth port.
pub const fn decode(offset: u16, dlab: bool, dir: Dir) -> Option<Reg> {
    Some(match (offset, dlab, dir) {
        (0, true, _) => Reg::Dll,
        (1, true, _) => Reg::Dlm,
        (0, false, Dir::Read) => Reg::Rbr,
        (0, false, Dir::Write) => Reg::Thr,
        (1, false, _) => Reg::Ier,
        (2, _, Dir::Read) => Reg::Iir,
        (2, _, Dir::Write) => Reg::Fcr,
        (3, _, _) => Reg::Lcr,
        (4, _, _) => Reg::Mcr,
        (5, _, Dir::Read) => Reg::Lsr,
        (6, _, Dir::Read) => Reg::Msr,
        (7, _, _) => Reg::Scr,
        _ => return None,
    })
}

const IER_RDA: u8 = 1 << 0;
const IER_THRE: u8 = 1 << 1;
const IER_RLS: u8 = 1 << 2;
const IER_MS: u8 = 1 << 3;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const LSR_DR: u8 = 1 << 0;
const LSR_OE: u8 = 1 << 1;
const LSR_THRE_TEMT: u8 = 0b0110_0000;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

/// What IIR reports, in the data sheet's order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Receiver line status (an overrun in loop-back).
    LineStatus,
    /// The FIFO has reached its trigger level, or a byte is there in 16450 mode.
    Received,
    /// Bytes below the trigger level.
    Timeout,
    /// The transmitter ran empty.
    TransmitEmpty,
    /// A modem line changed.
    ModemStatus,
}

impl Source {
    const fn iir(self) -> u8 {
        match self {
            Source::LineStatus => 0x6,
            Source::Received => 0x4,
            Source::Timeout => 0xc,
            Source::TransmitEmpty => 0x2,
            Source::ModemStatus => 0x0,
        }
    }
}

/// A 16550A.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Deltas of the modem lines, bits 3:0 of MSR.
    msr_delta: u8,
    scr: u8,
    divisor: u16,
    overrun: bool,
    /// The transmit-empty event that IIR has not yet reported.
    thre_event: bool,
    fifo: VecDeque<u8>,
    backlog: VecDeque<u8>,
}

impl Default for Uart {
    fn default() -> Uart {
        Uart::new()
    }
}

impl Uart {
    /// A UART just out of reset, with a terminal attached (DSR, CTS and DCD asserted).
    pub fn new() -> Uart {
        Uart {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr_delta: 0,
            scr: 0,
            divisor: 12,
            overrun: false,
            thre_event: false,
            fifo: VecDeque::with_capacity(FIFO_DEPTH),
            backlog: VecDeque::new(),
        }
    }

    /// The level of the interrupt line as the interrupt controller sees it, behind OUT2.
    pub fn interrupt(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.source().is_some()
    }

    /// The highest-priority enabled interrupt source.
    pub fn source(&self) -> Option<Source> {
        let trigger = match self.fcr >> 6 {
            _ if !self.fifo_enabled() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        };
        if self.ier & IER_RLS != 0 && self.overrun {
            Some(Source::LineStatus)
        } else if self.ier & IER_RDA != 0 && self.fifo.len() >= trigger {
            Some(Source::Received)
        } else if self.ier & IER_RDA != 0 && !self.fifo.is_empty() {
            Some(Source::Timeout)
        } else if self.ier & IER_THRE != 0 && self.thre_event {
            Some(Source::TransmitEmpty)
        } else if self.ier & IER_MS != 0 && self.msr_delta != 0 {
            Some(Source::ModemStatus)
        } else {
            None
        }
    }

    /// Bytes from outside. They queue without limit; the caller decides how much to give.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.backlog.extend(bytes);
        self.refill();
    }

    /// Bytes given that the guest has not read yet.
    pub fn unread(&self) -> usize {
        self.fifo.len() + self.backlog.len()
    }

    /// Reads the register at `offset` (0 to 7). Write-only places read as all ones.
    pub fn read(&mut self, offset: u16) -> u8 {
        let Some(reg) = decode(offset, self.lcr & LCR_DLAB != 0, Dir::Read) else { return 0xff };
        match reg {
            Reg::Rbr => {
                let byte = self.fifo.pop_front().unwrap_or(0);
                self.refill();
                byte
            }
            Reg::Dll => self.divisor as u8,
            Reg::Dlm => (self.divisor >> 8) as u8,
            Reg::Ier => self.ier,
            Reg::Iir => {
                let fifo = if self.fifo_enabled() { 0xc0 } else { 0 };
                match self.source() {
                    Some(source) => {
                        if source == Source::TransmitEmpty {
                            self.thre_event = false;
                        }
                        fifo | source.iir()
                    }
                    None => fifo | 1,
                }
            }
            Reg::Lcr => self.lcr,
            Reg::Mcr => self.mcr,
            Reg::Lsr => {
                let overrun = if core::mem::take(&mut self.overrun) { LSR_OE } else { 0 };
                let ready = if self.fifo.is_empty() { 0 } else { LSR_DR };
                LSR_THRE_TEMT | overrun | ready
            }
            Reg::Msr => self.modem_lines() | core::mem::take(&mut self.msr_delta),
            Reg::Scr => self.scr,
            Reg::Thr | Reg::Fcr => 0xff,
        }
    }

    /// Writes the register at `offset` (0 to 7); a transmitted byte goes to `out`.
    pub fn write(&mut self, offset: u16, value: u8, out: &mut impl ByteSink) {
        let Some(reg) = decode(offset, self.lcr & LCR_DLAB != 0, Dir::Write) else { return };
        match reg {
            Reg::Thr => {
                if self.mcr & MCR_LOOP != 0 {
                    self.loop_back(value);
                } else {
                    out.put(value);
                }
                self.thre_event = true;
            }
            Reg::Dll => self.divisor = self.divisor & 0xff00 | value as u16,
            Reg::Dlm => self.divisor = self.divisor & 0x00ff | (value as u16) << 8,
            Reg::Ier => {
                let newly = value & !self.ier;
                self.ier = value & 0x0f;
                // The transmitter is empty, so enabling its interrupt raises one at once.
                if newly & IER_THRE != 0 {
                    self.thre_event = true;
                }
            }
            Reg::Fcr => {
                let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
                if toggled || value & FCR_CLEAR_RX != 0 {
                    self.fifo.clear();
                }
                self.fcr = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
                self.refill();
            }
            Reg::Lcr => self.lcr = value,
            Reg::Mcr => {
                let before = self.modem_lines();
                self.mcr = value & 0x1f;
                let after = self.modem_lines();
                let changed = (before ^ after) >> 4;
                // The ring indicator reports its trailing edge only.
                let ring = if before & MSR_RI != 0 && after & MSR_RI == 0 { 1 << 2 } else { 0 };
                self.msr_delta |= changed & 0b1011 | ring;
                self.refill();
            }
            Reg::Scr => self.scr = value,
            Reg::Rbr | Reg::Iir | Reg::Lsr | Reg::Msr => {}
        }
    }

    const fn fifo_enabled(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    const fn capacity(&self) -> usize {
        if self.fifo_enabled() { FIFO_DEPTH } else { 1 }
    }

    /// Moves waiting bytes into the FIFO. In loop-back the line is disconnected.
    fn refill(&mut self) {
        if self.mcr & MCR_LOOP != 0 {
            return;
        }
        while self.fifo.len() < self.capacity() {
            let Some(byte) = self.backlog.pop_front() else { return };
            self.fifo.push_back(byte);
        }
    }

    fn loop_back(&mut self, byte: u8) {
        if self.fifo.len() < self.capacity() {
            self.fifo.push_back(byte);
        } else {
            self.overrun = true;
        }
    }

    /// Bits 7:4 of MSR: the terminal's lines, or our own outputs in loop-back.
    const fn modem_lines(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let mut lines = 0;
        if self.mcr & MCR_RTS != 0 {
            lines |= MSR_CTS;
        }
        if self.mcr & MCR_DTR != 0 {
            lines |= MSR_DSR;
        }
        if self.mcr & MCR_OUT1 != 0 {
            lines |= MSR_RI;
        }
        if self.mcr & MCR_OUT2 != 0 {
            lines |= MSR_DCD;
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn irq_uart() -> (Uart, Vec<u8>) {
        let mut out = Vec::new();
        let mut uart = Uart::new();
        uart.write(4, MCR_OUT2 | MCR_DTR | MCR_RTS, &mut out);
        (uart, out)
    }

    #[test]
    fn every_offset_decodes_as_the_register_map_says() {
        use Reg::*;
        let read = [Rbr, Ier, Iir, Lcr, Mcr, Lsr, Msr, Scr];
        let write = [Some(Thr), Some(Ier), Some(Fcr), Some(Lcr), Some(Mcr), None, None, Some(Scr)];
        for offset in 0..16_u16 {
            for dlab in [false, true] {
                let latch = if dlab { [Dll, Dlm].get(offset as usize).copied() } else { None };
                let at = offset as usize;
                assert_eq!(decode(offset, dlab, Dir::Read), latch.or(read.get(at).copied()));
                assert_eq!(decode(offset, dlab, Dir::Write), latch.or(write.get(at).copied().flatten()));
            }
        }
    }

    #[test]
    fn transmit_interrupt_is_raised_by_enable_and_by_each_write_and_cleared_by_iir() {
        let (mut uart, mut out) = irq_uart();
        assert!(!uart.interrupt());
        uart.write(1, IER_THRE, &mut out);
        assert!(uart.interrupt());
        assert_eq!(uart.read(2), 0x02);
        assert!(!uart.interrupt());
        assert_eq!(uart.read(2), 0x01);
        uart.write(0, b'x', &mut out);
        assert!(uart.interrupt());
        // Disabling and enabling again raises it again: Linux's probe for the THRE bug relies on it.
        assert_eq!(uart.read(2), 0x02);
        uart.write(1, 0, &mut out);
        uart.write(1, IER_THRE, &mut out);
        assert_eq!(uart.read(2), 0x02);
        assert_eq!(out, b"x");
    }

    #[test]
    fn receive_reports_trigger_level_then_timeout_then_nothing() {
        let (mut uart, mut out) = irq_uart();
        uart.write(2, 0x81, &mut out);
        uart.write(1, IER_RDA, &mut out);
        uart.receive(b"0123456789");
        assert_eq!(uart.read(2), 0xc4);
        for expected in b"012" {
            assert_eq!(uart.read(0), *expected);
        }
        assert_eq!(uart.read(2), 0xcc);
        for expected in b"3456789" {
            assert!(uart.interrupt());
            assert_eq!(uart.read(5) & LSR_DR, LSR_DR);
            assert_eq!(uart.read(0), *expected);
        }
        assert!(!uart.interrupt());
        assert_eq!(uart.read(5), LSR_THRE_TEMT);
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole() {
        for fcr in [0, 1] {
            let (mut uart, mut out) = irq_uart();
            uart.write(2, fcr, &mut out);
            let sent: Vec<u8> = (0..100).collect();
            uart.receive(&sent);
            let mut got = Vec::new();
            while uart.read(5) & LSR_DR != 0 {
                got.push(uart.read(0));
            }
            assert_eq!(got, sent);
            assert_eq!(uart.unread(), 0);
        }
    }

    #[test]
    fn loopback_mirrors_outputs_and_data_and_keeps_the_line_quiet() {
        let (mut uart, mut out) = irq_uart();
        uart.write(1, 0x0f, &mut out);
        uart.write(4, MCR_LOOP | MCR_OUT2 | MCR_RTS, &mut out);
        assert_eq!(uart.read(6) & 0xf0, MSR_DCD | MSR_CTS);
        uart.write(0, 0x5a, &mut out);
        assert!(!uart.interrupt());
        assert_eq!(uart.read(0), 0x5a);
        uart.write(0, 1, &mut out);
        uart.write(0, 2, &mut out);
        assert_eq!(uart.read(5) & LSR_OE, LSR_OE);
        assert_eq!(uart.read(5) & LSR_OE, 0);
        assert!(out.is_empty());
    }

    #[test]
    fn modem_deltas_clear_on_read() {
        let (mut uart, mut out) = irq_uart();
        uart.write(1, IER_MS, &mut out);
        uart.write(4, MCR_LOOP | MCR_OUT1, &mut out);
        assert_eq!(uart.read(6), MSR_RI | 0b1011);
        uart.write(4, MCR_OUT2, &mut out);
        // RI fell (trailing edge), the three terminal lines came back.
        assert_eq!(uart.source(), Some(Source::ModemStatus));
        assert_eq!(uart.read(6), MSR_CTS | MSR_DSR | MSR_DCD | 0b1111);
        assert_eq!(uart.read(6) & 0x0f, 0);
        assert!(!uart.interrupt());
    }

    #[test]
    fn scratch_and_divisor_hold_any_value() {
        let (mut uart, mut out) = irq_uart();
        for value in 0..=255 {
            uart.write(7, value, &mut out);
            assert_eq!(uart.read(7), value);
            uart.write(3, 0x83, &mut out);
            uart.write(0, value, &mut out);
            uart.write(1, !value, &mut out);
            assert_eq!((uart.read(0), uart.read(1)), (value, !value));
            uart.write(3, 0x03, &mut out);
            assert_eq!(uart.read(1), 0);
        }
        assert!(out.is_empty());
    }
}
