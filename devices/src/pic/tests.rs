use proptest::prelude::*;

use super::*;

/// One chip in the data sheet's words: eight inputs in a list ordered by priority.
#[derive(Clone, Debug)]
struct Naive {
    order: Vec<usize>,
    high: [bool; 8],
    unserved_edge: [bool; 8],
    level: [bool; 8],
    masked: [bool; 8],
    serving: [bool; 8],
    auto_eoi: bool,
    rotate_auto: bool,
    special_mask: bool,
    nested_slave: Option<usize>,
    base: u8,
}

impl Naive {
    fn new(base: u8, icw4: u8, master: bool) -> Naive {
        Naive {
            order: (0..8).collect(),
            high: [false; 8],
            unserved_edge: [false; 8],
            level: [false; 8],
            masked: [false; 8],
            serving: [false; 8],
            auto_eoi: icw4 & 2 != 0,
            rotate_auto: false,
            special_mask: false,
            nested_slave: (master && icw4 & 0x10 != 0).then_some(2),
            base,
        }
    }
    fn line(&mut self, input: usize, high: bool) {
        if high && !self.high[input] {
            self.unserved_edge[input] = true;
        }
        if !high {
            self.unserved_edge[input] = false;
        }
        self.high[input] = high;
    }
    fn requests(&self, input: usize) -> bool {
        self.high[input] && (self.level[input] || self.unserved_edge[input])
    }
    fn winner(&self) -> Option<usize> {
        for &input in &self.order {
            let blocks = self.serving[input] && !(self.special_mask && self.masked[input]);
            let wants = self.requests(input) && !self.masked[input];
            if wants && (!blocks || self.nested_slave == Some(input)) {
                return Some(input);
            }
            if blocks {
                return None;
            }
        }
        None
    }
    /// Makes `input` the lowest.
    fn rotate(&mut self, input: usize) {
        while self.order[7] != input {
            self.order.rotate_left(1);
        }
    }
    fn take(&mut self) -> Option<usize> {
        let input = self.winner()?;
        self.unserved_edge[input] = false;
        if !self.auto_eoi {
            self.serving[input] = true;
        } else if self.rotate_auto {
            self.rotate(input);
        }
        Some(input)
    }
    fn ocw2(&mut self, value: u8) {
        let named = (value & 7) as usize;
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        match (rotate, specific, eoi) {
            (_, false, true) => {
                let ended = self
                    .order
                    .iter()
                    .copied()
                    .find(|&input| self.serving[input] && !(self.special_mask && self.masked[input]));
                if let Some(input) = ended {
                    self.serving[input] = false;
                    if rotate {
                        self.rotate(input);
                    }
                }
            }
            (_, true, true) => {
                self.serving[named] = false;
                if rotate {
                    self.rotate(named);
                }
            }
            (true, true, false) => self.rotate(named),
            (rotate, false, false) => self.rotate_auto = rotate,
            (false, true, false) => {}
        }
    }
    fn bits(of: [bool; 8]) -> u8 {
        (0..8).filter(|&i| of[i]).map(|i| 1 << i).sum()
    }
}

struct NaivePair {
    master: Naive,
    slave: Naive,
}

impl NaivePair {
    fn settle(&mut self) {
        let wants = self.slave.winner().is_some();
        self.master.line(2, wants);
    }
    fn lines(&mut self, lines: u16) {
        for input in 0..8 {
            self.slave.line(input, lines >> (8 + input) & 1 != 0);
            if input != 2 {
                self.master.line(input, lines >> input & 1 != 0);
            }
        }
        self.settle();
    }
    fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.take() {
            Some(2) => {
                self.master.line(2, false);
                self.slave.base + self.slave.take().unwrap_or(7) as u8
            }
            input => self.master.base + input.unwrap_or(7) as u8,
        };
        self.settle();
        vector
    }
}

#[derive(Clone, Debug)]
enum Op {
    Lines(u16),
    Toggle(u8),
    Mask(bool, u8),
    Ocw2(bool, u8),
    SpecialMask(bool, bool),
    Level(bool, u8),
    Poll(bool),
    Acknowledge,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => any::<u16>().prop_map(Op::Lines),
        6 => (0..16_u8).prop_map(Op::Toggle),
        2 => (any::<bool>(), any::<u8>()).prop_map(|(slave, mask)| Op::Mask(slave, mask)),
        6 => (any::<bool>(), any::<u8>()).prop_map(|(slave, word)| Op::Ocw2(slave, word & 0xe7)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(slave, on)| Op::SpecialMask(slave, on)),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(slave, set)| Op::Level(slave, set)),
        1 => any::<bool>().prop_map(Op::Poll),
        6 => Just(Op::Acknowledge),
    ]
}

fn initialised(icw4: u8) -> PicPair {
    let mut pair = PicPair::new();
    for (reg, value) in [
        (Reg::MasterCommand, 0x11),
        (Reg::MasterData, 0x20),
        (Reg::MasterData, 0x04),
        (Reg::MasterData, icw4),
        (Reg::SlaveCommand, 0x11),
        (Reg::SlaveData, 0x28),
        (Reg::SlaveData, 0x02),
        (Reg::SlaveData, icw4),
    ] {
        pair.write(reg, value);
    }
    pair
}

const fn pick(slave: bool, of_master: Reg, of_slave: Reg) -> Reg {
    if slave { of_slave } else { of_master }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_pair_agrees_with_a_naive_model(
        icw4 in prop_oneof![4 => Just(1_u8), 1 => Just(3), 2 => Just(0x11), 1 => Just(0x13)],
        ops in prop::collection::vec(op(), 0..80),
    ) {
        let mut real = initialised(icw4);
        let mut naive =
            NaivePair { master: Naive::new(0x20, icw4, true), slave: Naive::new(0x28, icw4, false) };
        let mut lines = 0;
        for op in ops {
            match op {
                Op::Lines(new) => lines = new,
                Op::Toggle(line) => lines ^= 1 << line,
                Op::Mask(slave, mask) => {
                    real.write(pick(slave, Reg::MasterData, Reg::SlaveData), mask);
                    let chip = if slave { &mut naive.slave } else { &mut naive.master };
                    chip.masked = core::array::from_fn(|input| mask >> input & 1 != 0);
                }
                Op::Ocw2(slave, word) => {
                    real.write(pick(slave, Reg::MasterCommand, Reg::SlaveCommand), word);
                    if slave { naive.slave.ocw2(word) } else { naive.master.ocw2(word) }
                }
                Op::SpecialMask(slave, on) => {
                    let word = if on { 0x68 } else { 0x48 };
                    real.write(pick(slave, Reg::MasterCommand, Reg::SlaveCommand), word);
                    if slave { naive.slave.special_mask = on } else { naive.master.special_mask = on }
                }
                Op::Level(slave, set) => {
                    real.write(pick(slave, Reg::MasterElcr, Reg::SlaveElcr), set);
                    let allowed = if slave { 0xde } else { 0xf8 };
                    let chip = if slave { &mut naive.slave } else { &mut naive.master };
                    chip.level = core::array::from_fn(|input| set & allowed & 1 << input != 0);
                }
                Op::Poll(slave) => {
                    let reg = pick(slave, Reg::MasterCommand, Reg::SlaveCommand);
                    real.write(reg, 0x0c);
                    let chip = if slave { &mut naive.slave } else { &mut naive.master };
                    let expected = chip.take().map_or(0, |input| 0x80 | input as u8);
                    if slave {
                        naive.master.line(2, false);
                    }
                    prop_assert_eq!(real.read(reg), expected);
                }
                Op::Acknowledge => {
                    let expected = naive.acknowledge();
                    prop_assert_eq!(real.acknowledge(), expected);
                }
            }
            real.set_lines(lines);
            naive.lines(lines);
            prop_assert_eq!(real.intr(), naive.master.winner().is_some());
            for (chip, model) in [(real.master(), &naive.master), (real.slave(), &naive.slave)] {
                prop_assert_eq!(chip.isr(), Naive::bits(model.serving));
                let requests: [bool; 8] = core::array::from_fn(|input| model.requests(input));
                prop_assert_eq!(chip.irr(), Naive::bits(requests));
            }
        }
    }
}

#[test]
fn exactly_six_ports_decode() {
    let ports: Vec<u16> = (0..=0xffff).filter(|&port| decode(port).is_some()).collect();
    assert_eq!(ports, [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]);
}

#[test]
fn a_request_that_went_away_is_a_spurious_seven_and_not_in_service() {
    let mut pair = initialised(1);
    pair.set_lines(1 << 4);
    pair.set_lines(0);
    assert_eq!(pair.acknowledge(), 0x27);
    assert_eq!(pair.master().isr(), 0);
    // The slave's own: the master took its input 2 in earnest.
    pair.set_lines(1 << 12);
    assert!(pair.intr());
    pair.write(Reg::SlaveData, 0xff);
    assert_eq!(pair.acknowledge(), 0x27);
}

#[test]
fn a_slave_interrupt_is_in_service_on_both_until_both_are_ended() {
    let mut pair = initialised(1);
    pair.set_lines(1 << 8 | 1 << 3);
    assert_eq!(pair.acknowledge(), 0x28);
    assert_eq!((pair.master().isr(), pair.slave().isr()), (1 << 2, 1));
    assert!(!pair.intr());
    pair.write(Reg::SlaveCommand, 0x20);
    assert!(!pair.intr());
    pair.write(Reg::MasterCommand, 0x20);
    assert_eq!(pair.acknowledge(), 0x23);
}

#[test]
fn an_edge_counts_once_and_a_level_until_it_falls() {
    let mut pair = initialised(1);
    pair.set_lines(1 << 5);
    assert_eq!(pair.acknowledge(), 0x25);
    pair.write(Reg::MasterCommand, 0x20);
    assert!(!pair.intr());
    pair.write(Reg::MasterElcr, 1 << 5);
    assert_eq!(pair.acknowledge(), 0x25);
    pair.write(Reg::MasterCommand, 0x20);
    assert!(pair.intr());
    pair.set_lines(0);
    assert!(!pair.intr());
}

#[test]
fn icw1_forgets_edges_and_mask() {
    let mut pair = initialised(1);
    pair.write(Reg::MasterData, 0xff);
    pair.set_lines(1);
    pair.write(Reg::MasterCommand, 0x11);
    for value in [0x40, 4, 1] {
        pair.write(Reg::MasterData, value);
    }
    assert_eq!(pair.read(Reg::MasterData), 0);
    assert!(!pair.intr());
    pair.set_lines(0);
    pair.set_lines(1);
    assert_eq!(pair.acknowledge(), 0x40);
}

#[test]
fn ocw3_chooses_what_the_command_port_reads() {
    let mut pair = initialised(1);
    pair.set_lines(0b1010);
    assert_eq!(pair.acknowledge(), 0x21);
    assert_eq!(pair.read(Reg::MasterCommand), 0b1000);
    pair.write(Reg::MasterCommand, 0x0b);
    assert_eq!(pair.read(Reg::MasterCommand), 0b0010);
    pair.write(Reg::MasterCommand, 0x0a);
    assert_eq!(pair.read(Reg::MasterCommand), 0b1000);
}
