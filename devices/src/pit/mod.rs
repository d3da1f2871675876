//! The 8254 programmable interval timer (8254 data sheet, "Operational Description").
//!
//! [`Pit`] is the door: three counters clocked at [`HERTZ`]; counter 0 drives IRQ 0, counter 2 the speaker, with its
//! gate at port 0x61. Time is brought in before each access ([`Pit::sync`]); the counters move in closed form
//! ([`counter::Counter::step`]), never tick by tick.
//!
//! Choices where the data sheet says "illegal" or nothing: a count of 1 in modes 2 and 3 counts as 2; digits above 9
//! in BCD counts keep their weight.

pub mod counter;

use emu_core::time::Instant;

use counter::Counter;

/// The input clock: 14.31818 MHz / 12.
pub const HERTZ: u64 = 1_193_182;

/// What a port of the chip reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// Count of a counter.
    Counter(u8),
    /// Control word, counter latch and read-back commands; not readable.
    Control,
}

/// Which register a port reaches.
pub const fn decode(port: u16) -> Option<Reg> {
    match port {
        0x40..=0x42 => Some(Reg::Counter((port & 3) as u8)),
        0x43 => Some(Reg::Control),
        _ => None,
    }
}

/// The chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pit {
    counters: [Counter; 3],
    /// Clock pulses seen.
    tick: u64,
    /// Counter 0's output rose since this was last taken.
    rose: bool,
}

impl Default for Pit {
    fn default() -> Pit {
        Pit::new()
    }
}

impl Pit {
    /// After power-up: nothing counts; gates 0 and 1 are tied high, gate 2 is low.
    pub const fn new() -> Pit {
        Pit { counters: [Counter::new(true), Counter::new(true), Counter::new(false)], tick: 0, rose: false }
    }

    /// The output of counter `n` (0 to 2) as of the last [`Pit::sync`].
    pub const fn out(&self, n: usize) -> bool {
        n < 3 && self.counters[n].out()
    }
    /// Whether counter 0's output rose since this was last asked, even if it has fallen again.
    pub const fn take_rise(&mut self) -> bool {
        core::mem::replace(&mut self.rose, false)
    }

    /// Brings the counters to `now`. Time never goes back: an earlier `now` does nothing.
    pub fn sync(&mut self, now: Instant) {
        let mut pulses = now.ticks(HERTZ).saturating_sub(self.tick);
        if pulses == 0 {
            return;
        }
        self.tick += pulses;
        for counter in &mut self.counters[1..] {
            counter.step(pulses);
        }
        // Two changes are enough to see a rise if there is one.
        let counter = &mut self.counters[0];
        for _ in 0..2 {
            match counter.next_change() {
                Some(change) if change <= pulses => {
                    counter.step(change);
                    pulses -= change;
                    self.rose |= counter.out();
                }
                _ => break,
            }
        }
        counter.step(pulses);
    }

    /// When counter 0's output changes next.
    pub fn next_event(&self) -> Option<Instant> {
        let change = self.counters[0].next_change()?;
        Some(Instant::of_tick(self.tick.saturating_add(change), HERTZ))
    }

    /// The gate of counter 2 (port 0x61, bit 0).
    pub fn set_gate2(&mut self, level: bool, now: Instant) {
        self.sync(now);
        self.counters[2].set_gate(level);
    }

    /// Reads a register. The control word reads as all ones.
    pub fn read(&mut self, reg: Reg, now: Instant) -> u8 {
        self.sync(now);
        match reg {
            Reg::Counter(n) => match self.counters.get_mut(n as usize) {
                Some(counter) => counter.read(),
                None => 0xff,
            },
            Reg::Control => 0xff,
        }
    }

    /// Writes a register.
    pub fn write(&mut self, reg: Reg, value: u8, now: Instant) {
        self.sync(now);
        let before = self.counters[0].out();
        match reg {
            Reg::Counter(n) => {
                if let Some(counter) = self.counters.get_mut(n as usize) {
                    counter.write(value);
                }
            }
            Reg::Control if value >> 6 == 3 => {
                for (n, counter) in self.counters.iter_mut().enumerate() {
                    if value & 2 << n != 0 {
                        counter.read_back(value & 0x20 == 0, value & 0x10 == 0);
                    }
                }
            }
            Reg::Control => self.counters[(value >> 6) as usize].control(value),
        }
        self.rose |= !before && self.counters[0].out();
    }
}

#[cfg(test)]
mod tests;
