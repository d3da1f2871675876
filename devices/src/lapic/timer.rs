//! The APIC timer (Intel SDM vol. 3, "APIC Timer").
//!
//! Counts are computed from the instant at which they began, never stepped. [`Timer`] knows nothing of vectors; its
//! owner delivers when [`Timer::advance`] says that the timer fired.

use emu_core::time::{Duration, Instant};

/// LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    /// Count down once.
    OneShot,
    /// Count down and start over.
    Periodic,
    /// Fire when the TSC reaches IA32_TSC_DEADLINE.
    TscDeadline,
    /// Encoding 3: the timer stands still.
    Reserved,
}

impl TimerMode {
    /// From an LVT timer value.
    pub const fn from_lvt(lvt: u32) -> TimerMode {
        match lvt >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
}

/// The processor's time-stamp counter as a function of virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscClock {
    /// Ticks per virtual second; not zero.
    pub hertz: u64,
    /// What is added, modulo 2^64: what a write of the TSC changes.
    pub offset: u64,
}

impl TscClock {
    /// The counter at `now`.
    pub const fn read(self, now: Instant) -> u64 {
        now.ticks(self.hertz).wrapping_add(self.offset)
    }
    /// When the counter reaches `value`; `now` when it has.
    pub const fn reaches(self, value: u64, now: Instant) -> Instant {
        let current = self.read(now);
        if value <= current {
            return now;
        }
        Instant::of_tick(now.ticks(self.hertz).saturating_add(value - current), self.hertz)
    }
}

/// A running count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    since: Instant,
    from: u32,
}

/// The timer of one local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    hertz: u64,
    mode: TimerMode,
    divide: u32,
    initial: u32,
    count: Option<Count>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    deadline: u64,
    fires_at: Option<Instant>,
}

impl Timer {
    /// A stopped timer whose undivided clock runs at `hertz` (at least 1).
    pub const fn new(hertz: u64) -> Timer {
        let hertz = if hertz == 0 { 1 } else { hertz };
        Timer { hertz, mode: TimerMode::OneShot, divide: 0, initial: 0, count: None, deadline: 0, fires_at: None }
    }

    /// Back to the state after INIT.
    pub const fn reset(&mut self) {
        *self = Timer::new(self.hertz);
    }

    /// The mode in force.
    pub const fn mode(&self) -> TimerMode {
        self.mode
    }

    const fn divisor(&self) -> u64 {
        // Bits 3, 1 and 0: 2, 4, .. 128, and 1 for 0b111.
        match self.divide & 3 | self.divide >> 1 & 4 {
            7 => 1,
            n => 2 << n,
        }
    }

    /// How long `count` ticks last, in whole units rounded up, at least one.
    const fn span(&self, count: u32) -> u64 {
        let nanos = (count as u128 * self.divisor() as u128 * 1_000_000_000).div_ceil(self.hertz as u128);
        if nanos == 0 {
            1
        } else if nanos > u64::MAX as u128 {
            u64::MAX
        } else {
            nanos as u64
        }
    }

    /// A change of mode (an LVT write). Entering or leaving TSC-deadline mode disarms the timer.
    pub fn set_mode(&mut self, mode: TimerMode, now: Instant) {
        if mode == self.mode {
            return;
        }
        let counts = |m| matches!(m, TimerMode::OneShot | TimerMode::Periodic);
        if !(counts(mode) && counts(self.mode)) {
            self.count = None;
            self.deadline = 0;
        }
        self.mode = mode;
        self.schedule(now);
    }

    /// The divide configuration register.
    pub const fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; a running count goes on from where it is.
    pub fn set_divide(&mut self, value: u32, now: Instant) {
        let current = self.current(now);
        self.divide = value & 0b1011;
        if self.count.is_some() {
            self.count = Some(Count { since: now, from: current });
        }
        self.schedule(now);
    }

    /// The initial count register.
    pub const fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial count: starts the count, or stops it with 0. Ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, value: u32, now: Instant) {
        if self.mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = value;
        self.count = if value == 0 { None } else { Some(Count { since: now, from: value }) };
        self.schedule(now);
    }

    /// The current count register.
    pub const fn current(&self, now: Instant) -> u32 {
        let Some(count) = self.count else { return 0 };
        let elapsed = now.saturating_since(count.since).units() as u128;
        let ticks = elapsed * self.hertz as u128 / (self.divisor() as u128 * 1_000_000_000);
        if ticks >= count.from as u128 { 0 } else { count.from - ticks as u32 }
    }

    /// IA32_TSC_DEADLINE: zero outside its mode.
    pub const fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Writes IA32_TSC_DEADLINE; ignored outside its mode.
    pub fn set_deadline(&mut self, value: u64, tsc: TscClock, now: Instant) {
        if self.mode == TimerMode::TscDeadline {
            self.deadline = value;
            self.retime(tsc, now);
        }
    }

    /// The TSC was written: an armed deadline moves.
    pub fn retime(&mut self, tsc: TscClock, now: Instant) {
        if self.mode == TimerMode::TscDeadline {
            self.fires_at = if self.deadline == 0 { None } else { Some(tsc.reaches(self.deadline, now)) };
        }
    }

    fn schedule(&mut self, now: Instant) {
        self.fires_at = match (self.mode, self.count) {
            (TimerMode::OneShot | TimerMode::Periodic, Some(count)) => {
                Some((count.since + Duration::new(self.span(count.from))).max(now))
            }
            _ => None,
        };
    }

    /// When it fires next.
    #[inline]
    pub const fn next_event(&self) -> Option<Instant> {
        self.fires_at
    }

    /// Goes on to `now`; whether it fired. Several periods that passed unseen count as one.
    pub fn advance(&mut self, now: Instant) -> bool {
        let Some(due) = self.fires_at else { return false };
        if now < due {
            return false;
        }
        match self.mode {
            TimerMode::Periodic => {
                let period = self.span(self.initial);
                let missed = now.saturating_since(due).units() / period;
                let since = due + Duration::new(missed.saturating_mul(period));
                self.count = Some(Count { since, from: self.initial });
                self.fires_at = Some(since + Duration::new(period));
            }
            TimerMode::OneShot => {
                self.count = None;
                self.fires_at = None;
            }
            TimerMode::TscDeadline | TimerMode::Reserved => {
                self.deadline = 0;
                self.fires_at = None;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GHZ: u64 = 1_000_000_000;

    #[test]
    fn the_eight_divisors() {
        let divisors: Vec<u64> = [0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010, 0b1011]
            .into_iter()
            .map(|divide| Timer { divide, ..Timer::new(GHZ) }.divisor())
            .collect();
        assert_eq!(divisors, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn one_shot_fires_once_when_the_count_reaches_zero() {
        for hertz in [GHZ, 24_000_000, 3_000_000_000] {
            let mut timer = Timer::new(hertz);
            timer.set_initial(1000, Instant::new(7));
            let due = timer.next_event().expect("armed");
            assert_eq!(timer.current(due), 0);
            assert_eq!(timer.current(due - Duration::new(1)), 1);
            assert!(!timer.advance(due - Duration::new(1)));
            assert!(timer.advance(due));
            assert!(!timer.advance(due + Duration::new(5000)));
            assert_eq!(timer.current(due), 0);
        }
    }

    #[test]
    fn periodic_keeps_its_phase_when_advanced_late() {
        let mut timer = Timer::new(GHZ);
        timer.set_mode(TimerMode::Periodic, Instant::ZERO);
        timer.set_divide(0b1011, Instant::ZERO);
        timer.set_initial(100, Instant::ZERO);
        assert!(timer.advance(Instant::new(350)));
        assert_eq!(timer.next_event(), Some(Instant::new(400)));
        assert_eq!(timer.current(Instant::new(375)), 25);
    }

    #[test]
    fn a_new_divisor_keeps_the_current_count() {
        let mut timer = Timer::new(GHZ);
        timer.set_divide(0b1011, Instant::ZERO);
        timer.set_initial(100, Instant::ZERO);
        timer.set_divide(0b0000, Instant::new(60));
        assert_eq!(timer.current(Instant::new(60)), 40);
        assert_eq!(timer.next_event(), Some(Instant::new(140)));
    }

    #[test]
    fn deadline_fires_at_its_tick_and_follows_tsc_writes() {
        let tsc = TscClock { hertz: 2 * GHZ, offset: 0 };
        let mut timer = Timer::new(GHZ);
        timer.set_deadline(100, tsc, Instant::ZERO);
        assert_eq!((timer.deadline(), timer.next_event()), (0, None));
        timer.set_mode(TimerMode::TscDeadline, Instant::ZERO);
        timer.set_deadline(100, tsc, Instant::ZERO);
        assert_eq!(timer.next_event(), Some(Instant::new(50)));
        timer.retime(TscClock { offset: 40, ..tsc }, Instant::ZERO);
        assert_eq!(timer.next_event(), Some(Instant::new(30)));
        timer.set_initial(5, Instant::ZERO);
        assert!(timer.advance(Instant::new(30)));
        assert_eq!((timer.deadline(), timer.next_event()), (0, None));
        timer.set_deadline(1, tsc, Instant::new(1000));
        assert_eq!(timer.next_event(), Some(Instant::new(1000)));
        timer.set_mode(TimerMode::Periodic, Instant::new(1000));
        assert_eq!((timer.deadline(), timer.next_event()), (0, None));
    }
}
