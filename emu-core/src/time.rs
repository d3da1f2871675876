//! Virtual time: the count of retired units of work.
//!
//! One unit is a retired instruction; a REP string instruction costs one unit an iteration (at least one), and the
//! delivery of an exception, interrupt or exit costs one, so that a fault loop cannot freeze the clock. One unit
//! lasts one virtual nanosecond; every clock of the machine is integer arithmetic over it.

use core::ops::{Add, Sub};
use core::sync::atomic::{AtomicU64, Ordering};

/// A point in virtual time, in units (= virtual nanoseconds) since reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

/// A span of virtual time, in units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(u64);

impl Instant {
    /// Reset.
    pub const ZERO: Instant = Instant(0);
    /// Later than anything a run reaches.
    pub const FAR: Instant = Instant(u64::MAX);

    /// The point `units` after reset.
    pub const fn new(units: u64) -> Instant {
        Instant(units)
    }
    /// Units since reset.
    pub const fn units(self) -> u64 {
        self.0
    }
    /// The span since `earlier`; zero when `earlier` is later.
    pub const fn saturating_since(self, earlier: Instant) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }
    /// Ticks of a clock of `hertz` since reset.
    pub const fn ticks(self, hertz: u64) -> u64 {
        (self.0 as u128 * hertz as u128 / 1_000_000_000) as u64
    }
    /// The first point at which a clock of `hertz` shows at least `ticks`.
    pub const fn of_tick(ticks: u64, hertz: u64) -> Instant {
        let units = (ticks as u128 * 1_000_000_000).div_ceil(hertz as u128);
        if units > u64::MAX as u128 { Instant::FAR } else { Instant(units as u64) }
    }
}

impl Duration {
    /// A span of `units`.
    pub const fn new(units: u64) -> Duration {
        Duration(units)
    }
    /// Its length in units.
    pub const fn units(self) -> u64 {
        self.0
    }
}

/// Saturates at [`Instant::FAR`].
impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, span: Duration) -> Instant {
        Instant(self.0.saturating_add(span.0))
    }
}

/// Saturates at reset.
impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, span: Duration) -> Instant {
        Instant(self.0.saturating_sub(span.0))
    }
}

/// How far time has come for processors that run at the same time, each with a clock of its own.
///
/// Whoever reads the time meets the others here: it is never earlier for one than what another has seen before it. So a
/// counter read on two processors in turn does not run backwards, although their clocks differ.
#[derive(Debug, Default)]
pub struct MeetingPoint(AtomicU64);

impl MeetingPoint {
    /// The later of `own` and what anybody has come to so far.
    pub fn meet(&self, own: Instant) -> Instant {
        Instant(self.0.fetch_max(own.0, Ordering::AcqRel).max(own.0))
    }
    /// What anybody has come to so far.
    pub fn latest(&self) -> Instant {
        Instant(self.0.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_reached_exactly_when_it_is_due() {
        for hertz in [1, 32_768, 1_193_182, 3_579_545, 1_000_000_000] {
            for tick in [0, 1, 2, 1000, 123_456_789] {
                let due = Instant::of_tick(tick, hertz);
                assert!(due.ticks(hertz) >= tick);
                if due > Instant::ZERO {
                    assert!((due - Duration::new(1)).ticks(hertz) < tick);
                }
            }
        }
    }

    #[test]
    fn nobody_sees_time_before_what_another_has_seen() {
        let point = MeetingPoint::default();
        assert_eq!(point.meet(Instant::new(5)), Instant::new(5));
        assert_eq!(point.meet(Instant::new(3)), Instant::new(5), "another was there already");
        assert_eq!(point.meet(Instant::new(9)), Instant::new(9));
        assert_eq!(point.latest(), Instant::new(9));
    }
}
