//! The CMOS real-time clock (MC146818A data sheet; the PC's use of its RAM).
//!
//! [`Rtc`] is the door. The clock starts at a configured date and runs in virtual time; setting it moves an offset.
//! Flags PF, AF and UF are found out when somebody looks, from the interval since the last look, so a sleeping guest
//! costs nothing. UIP is set for the last 2228 us of each second, as long as the data sheet's update with its warning.
//!
//! Left out: daylight saving, the square-wave pin, time bases other than 32.768 kHz (the divider bits are stored).

use emu_core::time::{Duration, Instant};

mod calendar;

pub use calendar::Date;

/// Bytes of RAM, the clock's registers included.
pub const SIZE: usize = 128;
const SECOND: u64 = 1_000_000_000;
const UPDATE: u64 = 244_000 + 1_984_000;
const CENTURY: u8 = 0x32;

/// A register of the clock, or plain RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// A field of the time.
    Time(Field),
    /// A field of the alarm: second, minute, hour.
    Alarm(u8),
    /// Register A: update in progress, divider, rate.
    A,
    /// Register B: set, interrupt enables, format.
    B,
    /// Register C: interrupt flags.
    C,
    /// Register D: valid RAM and time.
    D,
    /// RAM.
    Ram(u8),
}

/// A field of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// 0 to 59.
    Second,
    /// 0 to 59.
    Minute,
    /// 0 to 23, or 1 to 12 with bit 7 for PM.
    Hour,
    /// 1 (Sunday) to 7.
    Weekday,
    /// 1 to 31.
    Day,
    /// 1 to 12.
    Month,
    /// 0 to 99.
    Year,
    /// 19, 20: where the PC keeps it.
    Century,
}

/// What an index (bits 6:0 of port 0x70) names.
pub const fn decode(index: u8) -> Reg {
    match index & 0x7f {
        0x0 => Reg::Time(Field::Second),
        0x2 => Reg::Time(Field::Minute),
        0x4 => Reg::Time(Field::Hour),
        0x6 => Reg::Time(Field::Weekday),
        0x7 => Reg::Time(Field::Day),
        0x8 => Reg::Time(Field::Month),
        0x9 => Reg::Time(Field::Year),
        CENTURY => Reg::Time(Field::Century),
        0x1 => Reg::Alarm(0),
        0x3 => Reg::Alarm(1),
        0x5 => Reg::Alarm(2),
        0xa => Reg::A,
        0xb => Reg::B,
        0xc => Reg::C,
        0xd => Reg::D,
        index => Reg::Ram(index),
    }
}

const B_SET: u8 = 1 << 7;
const B_PIE: u8 = 1 << 6;
const B_AIE: u8 = 1 << 5;
const B_UIE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24H: u8 = 1 << 1;
const C_PF: u8 = 1 << 6;
const C_AF: u8 = 1 << 5;
const C_UF: u8 = 1 << 4;

/// The clock and its RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rtc {
    index: u8,
    ram: [u8; SIZE],
    a: u8,
    b: u8,
    flags: u8,
    alarm: [u8; 3],
    /// Seconds since 1970 at `since`, whose sub-second part is zero by definition.
    seconds: u64,
    since: Instant,
    /// The fields as they stand while SET holds the clock.
    held: Date,
    /// Up to where flags are known.
    seen: Instant,
}

impl Rtc {
    /// A clock that shows `start` (seconds since 1970) at reset, and the size of memory in the places where firmware
    /// of the PC leaves it.
    pub fn new(start: u64, low_memory: u64, high_memory: u64) -> Rtc {
        let mut ram = [0; SIZE];
        let mut word = |at: usize, value: u64| {
            ram[at] = value as u8;
            ram[at + 1] = (value >> 8) as u8;
        };
        word(0x15, 640);
        let extended = (low_memory >> 10).saturating_sub(1024);
        word(0x17, extended.min(0xfc00));
        word(0x30, extended.min(0xfc00));
        word(0x34, (low_memory.saturating_sub(16 << 20) >> 16).min(0xffff));
        let high = high_memory >> 16;
        word(0x5b, high & 0xffff);
        ram[0x5d] = (high >> 16) as u8;
        Rtc {
            index: 0,
            ram,
            a: 0x26,
            b: B_24H,
            flags: 0,
            alarm: [0; 3],
            seconds: start,
            since: Instant::ZERO,
            held: Date::from_unix(start),
            seen: Instant::ZERO,
        }
    }

    /// Port 0x70: the index, and in bit 7 whether NMI is blocked.
    pub const fn write_index(&mut self, value: u8) {
        self.index = value;
    }
    /// Port 0x70 read back.
    pub const fn index(&self) -> u8 {
        self.index
    }
    /// Whether port 0x70 blocks NMI.
    pub const fn nmi_blocked(&self) -> bool {
        self.index & 0x80 != 0
    }

    /// The level of IRQ 8.
    pub const fn interrupt(&self) -> bool {
        self.flags & self.b & (C_PF | C_AF | C_UF) != 0
    }

    /// Seconds since 1970 at `now`, while the clock runs.
    pub const fn unix(&self, now: Instant) -> u64 {
        self.seconds.saturating_add(now.saturating_since(self.since).units() / SECOND)
    }

    const fn running(&self) -> bool {
        self.b & B_SET == 0
    }

    /// Length of a periodic interval in ticks of the 32.768 kHz base, as a shift; `None` when off.
    const fn periodic_shift(&self) -> Option<u32> {
        match self.a & 0xf {
            0 => None,
            rate @ (1 | 2) => Some(rate as u32 + 6),
            rate => Some(rate as u32 - 1),
        }
    }

    /// Finds the flags of the interval since the last look.
    pub fn sync(&mut self, now: Instant) {
        if now <= self.seen {
            return;
        }
        let last = core::mem::replace(&mut self.seen, now);
        if let Some(shift) = self.periodic_shift()
            && now.ticks(32_768) >> shift != last.ticks(32_768) >> shift
        {
            self.flags |= C_PF;
        }
        if self.running() {
            let (from, to) = (self.unix(last), self.unix(now));
            if from != to {
                self.flags |= C_UF;
            }
            // The alarm repeats daily at the latest, so older seconds show nothing new.
            if (to.saturating_sub(86_400).max(from)..to).any(|second| self.alarm_matches(second + 1)) {
                self.flags |= C_AF;
            }
        }
    }

    fn alarm_matches(&self, unix: u64) -> bool {
        let date = Date::from_unix(unix);
        let fields = [Field::Second, Field::Minute, Field::Hour];
        // The two top bits set: any value matches.
        fields.iter().zip(self.alarm).all(|(&field, alarm)| alarm >= 0xc0 || alarm == self.encode(field, &date))
    }

    /// When IRQ 8 may rise next.
    pub fn next_event(&self) -> Option<Instant> {
        let periodic = match self.periodic_shift() {
            Some(shift) if self.b & B_PIE != 0 && self.flags & C_PF == 0 => {
                let next = (self.seen.ticks(32_768) >> shift) + 1;
                Some(Instant::of_tick(next << shift, 32_768))
            }
            _ => None,
        };
        let wants = |enable, flag| self.b & enable != 0 && self.flags & flag == 0;
        let update = if self.running() && (wants(B_AIE, C_AF) || wants(B_UIE, C_UF)) {
            let whole = self.seen.saturating_since(self.since).units() / SECOND;
            Some(self.since + Duration::new((whole + 1).saturating_mul(SECOND)))
        } else {
            None
        };
        periodic.into_iter().chain(update).min()
    }

    /// The date the registers show at `now`.
    pub fn date(&self, now: Instant) -> Date {
        if self.running() { Date::from_unix(self.unix(now)) } else { self.held }
    }

    const fn number(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 { value } else { value / 10 * 0x10 + value % 10 }
    }
    const fn parse(&self, raw: u8) -> u8 {
        if self.b & B_BINARY != 0 { raw } else { (raw >> 4) * 10 + (raw & 0xf) }
    }

    fn encode(&self, field: Field, date: &Date) -> u8 {
        match field {
            Field::Second => self.number(date.second),
            Field::Minute => self.number(date.minute),
            Field::Hour if self.b & B_24H != 0 => self.number(date.hour),
            Field::Hour => {
                let twelve = (date.hour + 11) % 12 + 1;
                self.number(twelve) | if date.hour >= 12 { 0x80 } else { 0 }
            }
            Field::Weekday => self.number(date.weekday),
            Field::Day => self.number(date.day),
            Field::Month => self.number(date.month),
            Field::Year => self.number((date.year % 100) as u8),
            // The PC's firmware keeps the century in BCD whatever the format.
            Field::Century => (date.year / 1000 % 10 * 0x10 + date.year / 100 % 10) as u8,
        }
    }

    fn store(&self, field: Field, raw: u8, date: &mut Date) {
        let value = self.parse(raw);
        match field {
            Field::Second => date.second = value,
            Field::Minute => date.minute = value,
            Field::Hour if self.b & B_24H != 0 => date.hour = value,
            Field::Hour => date.hour = self.parse(raw & 0x7f) % 12 + if raw & 0x80 != 0 { 12 } else { 0 },
            Field::Weekday => date.weekday = value,
            Field::Day => date.day = value,
            Field::Month => date.month = value,
            Field::Year => date.year = date.year / 100 * 100 + (value % 100) as u16,
            Field::Century => {
                let century = (raw >> 4) as u16 % 10 * 10 + (raw & 0xf) as u16 % 10;
                date.year = century * 100 + date.year % 100;
            }
        }
    }

    /// Reads port 0x71. Reading C clears the flags.
    pub fn read(&mut self, now: Instant) -> u8 {
        self.sync(now);
        match decode(self.index) {
            Reg::Time(field) => self.encode(field, &self.date(now)),
            Reg::Alarm(n) => self.alarm[n as usize],
            Reg::A => {
                let part = now.saturating_since(self.since).units() % SECOND;
                let updating = self.running() && part >= SECOND - UPDATE;
                self.a | if updating { 0x80 } else { 0 }
            }
            Reg::B => self.b,
            Reg::C => {
                let irqf = if self.interrupt() { 0x80 } else { 0 };
                irqf | core::mem::take(&mut self.flags)
            }
            Reg::D => 0x80,
            Reg::Ram(at) => self.ram[at as usize],
        }
    }

    /// Writes port 0x71.
    pub fn write(&mut self, value: u8, now: Instant) {
        self.sync(now);
        match decode(self.index) {
            Reg::Time(field) => {
                let mut date = self.date(now);
                self.store(field, value, &mut date);
                self.held = date;
                if self.running() {
                    // A write without SET takes effect at once and keeps the phase of the second.
                    let whole = now.saturating_since(self.since).units() / SECOND;
                    self.seconds = date.to_unix().saturating_sub(whole);
                }
            }
            Reg::Alarm(n) => self.alarm[n as usize] = value,
            Reg::A => self.a = value & 0x7f,
            Reg::B => {
                let was_running = self.running();
                if was_running && value & B_SET != 0 {
                    self.held = self.date(now);
                }
                // SET clears UIE.
                self.b = if value & B_SET != 0 { value & !B_UIE } else { value };
                if !was_running && self.running() {
                    self.seconds = self.held.to_unix();
                    self.since = now;
                }
            }
            Reg::C | Reg::D => {}
            Reg::Ram(at) => self.ram[at as usize] = value,
        }
    }
}

#[cfg(test)]
mod tests;
