//! The I/O APIC (82093AA data sheet; version 0x20 with the EOI register of later chipsets).
//!
//! [`Ioapic`] is the door: [`Ioapic::set_lines`] gives all 24 inputs, and whatever is due is handed to the
//! closure that carries messages. A level-triggered input is due while it is high, unmasked and without remote IRR;
//! an edge is delivered when it rises unmasked and is lost otherwise, as the data sheet says.
//!
//! Inputs are logical: high means asserted, so the polarity bit is stored and has no effect. Left out: the APIC bus
//! arbitration ID, which reads as the ID.

use crate::message::{DeliveryMode, Destination, IpiRequest, Trigger, physical8};

/// Number of inputs.
pub const PINS: usize = 24;
/// 24 entries, version 0x20: it has the EOI register.
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

/// A register of the memory window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Register select.
    Select,
    /// The selected register.
    Data,
    /// EOI: ends every entry with the written vector.
    Eoi,
}

/// Which register a byte offset of the window reaches.
pub const fn decode(offset: u16) -> Option<Window> {
    match offset {
        0x00 => Some(Window::Select),
        0x10 => Some(Window::Data),
        0x40 => Some(Window::Eoi),
        _ => None,
    }
}

/// An indirect register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// ID.
    Id,
    /// Version.
    Version,
    /// Arbitration ID.
    Arbitration,
    /// Low half of a redirection entry.
    Low(u8),
    /// High half of a redirection entry.
    High(u8),
}

/// Which indirect register a select value names.
pub const fn select(index: u8) -> Option<Reg> {
    match index {
        0 => Some(Reg::Id),
        1 => Some(Reg::Version),
        2 => Some(Reg::Arbitration),
        0x10..=0x3f => {
            let pin = (index - 0x10) / 2;
            Some(if index & 1 == 0 { Reg::Low(pin) } else { Reg::High(pin) })
        }
        _ => None,
    }
}

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Software sets everything but delivery status and remote IRR.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// An entry of the redirection table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirection(u64);

impl Redirection {
    /// All 64 bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
    const fn is(self, bits: u64) -> bool {
        self.0 & bits != 0
    }
    /// The message this entry sends.
    pub const fn message(self) -> IpiRequest {
        let id = (self.0 >> 56) as u32;
        IpiRequest {
            delivery: DeliveryMode::from_bits((self.0 >> 8) as u32),
            destination: if self.is(1 << 11) { Destination::Logical(id) } else { physical8(id) },
            vector: self.0 as u8,
            trigger: if self.is(LEVEL) { Trigger::Level } else { Trigger::Edge },
        }
    }
}

/// A 24-input I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ioapic {
    id: u8,
    selected: u8,
    entries: [Redirection; PINS],
    lines: u32,
}

impl Ioapic {
    /// After reset: all entries masked.
    pub const fn new(id: u8) -> Ioapic {
        Ioapic { id: id & 0xf, selected: 0, entries: [Redirection(MASKED); PINS], lines: 0 }
    }

    /// The entry of `pin`.
    pub fn entry(&self, pin: usize) -> Option<Redirection> {
        self.entries.get(pin).copied()
    }
    /// The levels of all inputs.
    pub const fn lines(&self) -> u32 {
        self.lines
    }

    /// Sets all inputs. `send` carries a message and says whether it was accepted.
    pub fn set_lines(&mut self, lines: u32, mut send: impl FnMut(&IpiRequest) -> bool) {
        let mut rising = lines & !self.lines;
        self.lines = lines & ((1 << PINS) - 1);
        while rising != 0 {
            let pin = rising.trailing_zeros() as usize;
            rising &= rising - 1;
            self.service(pin, true, &mut send);
        }
    }

    /// Delivers what `pin` is due.
    fn service(&mut self, pin: usize, rose: bool, send: &mut impl FnMut(&IpiRequest) -> bool) {
        let Some(entry) = self.entries.get_mut(pin) else { return };
        if entry.is(MASKED) {
            return;
        }
        if entry.is(LEVEL) {
            if self.lines & 1 << pin == 0 || entry.is(REMOTE_IRR) {
                return;
            }
            let message = entry.message();
            // Remote IRR stands for an EOI that will come, so only for what a local APIC put into its IRR.
            if send(&message) && message.delivery.uses_vector() {
                entry.0 |= REMOTE_IRR;
            }
        } else if rose {
            send(&entry.message());
        }
    }

    /// A local APIC ended a level-triggered interrupt of `vector`: entries still asserted deliver again.
    pub fn end_of_interrupt(&mut self, vector: u8, mut send: impl FnMut(&IpiRequest) -> bool) {
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if entry.0 as u8 == vector && entry.is(LEVEL) && entry.is(REMOTE_IRR) {
                entry.0 &= !REMOTE_IRR;
                self.service(pin, false, &mut send);
            }
        }
    }

    /// Reads the window; places without a register read 0.
    pub fn read(&self, offset: u16) -> u32 {
        match decode(offset) {
            Some(Window::Select) => self.selected as u32,
            Some(Window::Data) => match select(self.selected) {
                Some(Reg::Id | Reg::Arbitration) => (self.id as u32) << 24,
                Some(Reg::Version) => VERSION,
                Some(Reg::Low(pin)) => self.entries[pin as usize].0 as u32,
                Some(Reg::High(pin)) => (self.entries[pin as usize].0 >> 32) as u32,
                None => 0,
            },
            Some(Window::Eoi) | None => 0,
        }
    }

    /// Writes the window.
    pub fn write(&mut self, offset: u16, value: u32, mut send: impl FnMut(&IpiRequest) -> bool) {
        match decode(offset) {
            Some(Window::Select) => self.selected = value as u8,
            Some(Window::Data) => match select(self.selected) {
                Some(Reg::Id) => self.id = (value >> 24) as u8 & 0xf,
                Some(Reg::Low(pin)) => {
                    let old = self.entries[pin as usize].0;
                    self.rewrite(pin, old & !0xffff_ffff | value as u64, &mut send);
                }
                Some(Reg::High(pin)) => {
                    let old = self.entries[pin as usize].0;
                    self.rewrite(pin, old & 0xffff_ffff | (value as u64) << 32, &mut send);
                }
                Some(Reg::Version | Reg::Arbitration) | None => {}
            },
            Some(Window::Eoi) => self.end_of_interrupt(value as u8, send),
            None => {}
        }
    }

    fn rewrite(&mut self, pin: u8, value: u64, send: &mut impl FnMut(&IpiRequest) -> bool) {
        let entry = &mut self.entries[pin as usize];
        // An entry made edge-triggered forgets its remote IRR: the way kernels clear a stuck one.
        let remote = if value & LEVEL != 0 { entry.0 & REMOTE_IRR } else { 0 };
        entry.0 = value & WRITABLE | remote;
        self.service(pin as usize, false, send);
    }
}

#[cfg(test)]
mod tests;
