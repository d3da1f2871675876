use proptest::prelude::*;

use super::counter::Mode;
use super::*;

/// The data sheet's text a clock pulse at a time, with a state of its own.
#[derive(Clone, Debug)]
struct Naive {
    mode: u8,
    bcd: bool,
    gate: bool,
    out: bool,
    count: u32,
    value: Option<u32>,
    waiting: bool,
    expired: bool,
    low_half: bool,
    odd: bool,
}

impl Naive {
    fn new(mode: u8, bcd: bool, gate: bool) -> Naive {
        Naive {
            mode,
            bcd,
            gate,
            out: mode != 0,
            count: 0,
            value: None,
            waiting: false,
            expired: false,
            low_half: false,
            odd: false,
        }
    }
    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x10000 }
    }
    fn write(&mut self, count: u32) {
        let count = if count == 0 { self.modulus() } else { count };
        let first = self.count == 0;
        self.count = if count == 1 && matches!(self.mode, 2 | 3) { 2 } else { count };
        match self.mode {
            0 => {
                self.out = false;
                self.waiting = true;
            }
            4 => self.waiting = true,
            2 | 3 if first || self.value.is_none() => self.waiting = true,
            _ => {}
        }
    }
    fn gate(&mut self, level: bool) {
        if level && !self.gate && self.count != 0 && matches!(self.mode, 1 | 2 | 3 | 5) {
            self.waiting = true;
        }
        if !level && matches!(self.mode, 2 | 3) {
            self.out = true;
        }
        self.gate = level;
    }
    fn pulse(&mut self) {
        if matches!(self.mode, 4 | 5) {
            self.out = true;
        }
        if self.waiting {
            self.waiting = false;
            self.expired = false;
            self.start();
            self.low_half = false;
            self.out = match self.mode {
                1 => false,
                2 | 3 => true,
                _ => self.out,
            };
            return;
        }
        let Some(value) = self.value else { return };
        let level_gated = matches!(self.mode, 0 | 2 | 3 | 4);
        if level_gated && !self.gate {
            return;
        }
        match self.mode {
            2 => {
                if value <= 1 {
                    self.start();
                    self.out = true;
                } else {
                    self.value = Some(value - 1);
                    self.out = value - 1 != 1;
                }
            }
            3 => {
                // The high half of an odd count spends one pulse more, after having reached zero.
                let left = if value == 0 { 0 } else { value - 2 };
                let done = if self.odd && self.out { value == 0 } else { left == 0 };
                if done {
                    self.start();
                    self.out = !self.out;
                } else {
                    self.value = Some(left);
                }
            }
            _ => {
                let left = (value + self.modulus() - 1) % self.modulus();
                self.value = Some(left);
                if left == 0 && !self.expired {
                    self.expired = true;
                    self.out = matches!(self.mode, 0 | 1);
                }
            }
        }
    }
    fn start(&mut self) {
        self.odd = self.mode == 3 && self.count % 2 == 1;
        self.value = Some(self.count - self.odd as u32);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u32),
    Gate(bool),
    Run(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => prop_oneof![0..12_u32, 0..10_000_u32].prop_map(Op::Write),
        1 => any::<bool>().prop_map(Op::Gate),
        3 => prop_oneof![0..20_u64, 0..40_000_u64].prop_map(Op::Run),
    ]
}

fn to_bcd(value: u32) -> u16 {
    u16::from_str_radix(&value.to_string(), 16).expect("four decimal digits")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn closed_form_is_the_same_as_stepping(
        mode in 0..6_u8,
        bcd in any::<bool>(),
        gate in any::<bool>(),
        ops in prop::collection::vec(op(), 1..12),
    ) {
        let mut real = counter::Counter::new(gate);
        real.control(0x30 | mode << 1 | bcd as u8);
        let mut naive = Naive::new(mode, bcd, gate);
        for op in ops {
            match op {
                Op::Write(count) => {
                    let raw = if bcd { to_bcd(count % 10_000) } else { count as u16 };
                    real.write(raw as u8);
                    real.write((raw >> 8) as u8);
                    naive.write(count);
                }
                Op::Gate(level) => {
                    real.set_gate(level);
                    naive.gate(level);
                }
                Op::Run(pulses) => {
                    let promised = real.next_change();
                    let before = real.out();
                    let mut first_change = None;
                    for pulse in 1..=pulses {
                        naive.pulse();
                        if first_change.is_none() && naive.out != before {
                            first_change = Some(pulse);
                        }
                    }
                    prop_assert_eq!(promised.filter(|&at| at <= pulses), first_change);
                    real.step(pulses);
                }
            }
            prop_assert_eq!(real.out(), naive.out);
            if let Some(value) = naive.value {
                real.read_back(true, false);
                let shown = u16::from_le_bytes([real.read(), real.read()]);
                let value = value % naive.modulus();
                prop_assert_eq!(shown, if bcd { to_bcd(value) } else { value as u16 });
            }
        }
    }

    #[test]
    fn time_may_come_in_any_slices(
        writes in prop::collection::vec((0..4_u8, any::<u8>()), 0..20),
        slices in prop::collection::vec(1..2_000_000_u64, 1..20),
    ) {
        let mut at_once = Pit::new();
        for (port, value) in writes {
            at_once.write(decode(0x40 + port as u16).expect("a port of the chip"), value, Instant::ZERO);
        }
        let mut sliced = at_once.clone();
        let mut now = 0;
        for slice in slices {
            now += slice;
            sliced.sync(Instant::new(now));
        }
        at_once.sync(Instant::new(now));
        prop_assert_eq!(at_once, sliced);
    }
}

/// The output after each of `pulses` pulses.
fn wave(mode: u8, count: u8, pulses: usize) -> String {
    let mut c = counter::Counter::new(true);
    c.control(0x10 | mode << 1);
    c.write(count);
    if Mode::from_bits(mode) == Mode::OneShot || Mode::from_bits(mode) == Mode::HardwareStrobe {
        c.set_gate(false);
        c.set_gate(true);
    }
    (0..pulses)
        .map(|_| {
            c.step(1);
            if c.out() { '-' } else { '_' }
        })
        .collect()
}

#[test]
fn waveforms_of_the_data_sheet() {
    assert_eq!(wave(0, 4, 7), "____---");
    assert_eq!(wave(1, 3, 6), "___---");
    assert_eq!(wave(2, 3, 9), "--_--_--_");
    assert_eq!(wave(3, 4, 9), "--__--__-");
    assert_eq!(wave(3, 5, 11), "---__---__-");
    assert_eq!(wave(4, 3, 6), "---_--");
    assert_eq!(wave(5, 3, 6), "---_--");
}

#[test]
fn the_ports_decode() {
    for port in 0..=0xffff {
        let expected = match port {
            0x40 => Some(Reg::Counter(0)),
            0x41 => Some(Reg::Counter(1)),
            0x42 => Some(Reg::Counter(2)),
            0x43 => Some(Reg::Control),
            _ => None,
        };
        assert_eq!(decode(port), expected);
    }
}

#[test]
fn read_back_latches_status_and_count_once() {
    let mut pit = Pit::new();
    pit.write(Reg::Control, 0x34, Instant::ZERO);
    pit.write(Reg::Control, 0xe2, Instant::ZERO);
    // OUT high, null count, both bytes, mode 2.
    assert_eq!(pit.read(Reg::Counter(0), Instant::ZERO), 0b1111_0100);
    pit.write(Reg::Counter(0), 0x00, Instant::ZERO);
    pit.write(Reg::Counter(0), 0x10, Instant::ZERO);
    let at = |tick| Instant::of_tick(tick, HERTZ);
    pit.write(Reg::Control, 0xc2, at(0x101));
    // A second latch before the read changes nothing.
    pit.write(Reg::Control, 0xc2, at(0x201));
    assert_eq!(pit.read(Reg::Counter(0), at(0x201)), 0b1011_0100);
    assert_eq!(pit.read(Reg::Counter(0), at(0x201)), 0x00);
    assert_eq!(pit.read(Reg::Counter(0), at(0x201)), 0x0f);
    pit.write(Reg::Control, 0x00, at(0x301));
    assert_eq!(pit.read(Reg::Counter(0), at(0x400)), 0x00);
    assert_eq!(pit.read(Reg::Counter(0), at(0x400)), 0x0d);
}

#[test]
fn a_rise_is_seen_even_when_the_output_fell_again() {
    let mut pit = Pit::new();
    pit.write(Reg::Control, 0x36, Instant::ZERO);
    // Leaving the power-up low for mode 3's high is a rise.
    assert!(pit.take_rise());
    pit.write(Reg::Counter(0), 100, Instant::ZERO);
    pit.write(Reg::Counter(0), 0, Instant::ZERO);
    let fall = pit.next_event().expect("square wave");
    assert_eq!(fall, Instant::of_tick(51, HERTZ));
    pit.sync(fall);
    assert!(!pit.out(0) && !pit.take_rise());
    pit.sync(Instant::of_tick(1 + 50 * 1001, HERTZ));
    assert!(!pit.out(0) && pit.take_rise());
}

#[test]
fn counter_two_follows_its_gate() {
    let mut pit = Pit::new();
    pit.write(Reg::Control, 0xb0, Instant::ZERO);
    pit.write(Reg::Counter(2), 10, Instant::ZERO);
    pit.write(Reg::Counter(2), 0, Instant::ZERO);
    let at = |tick| Instant::of_tick(tick, HERTZ);
    pit.sync(at(100));
    assert!(!pit.out(2));
    pit.set_gate2(true, at(100));
    pit.sync(at(109));
    assert!(!pit.out(2));
    pit.sync(at(110));
    assert!(pit.out(2));
}
