use proptest::prelude::*;

use super::*;

/// An I/O APIC and the vectors it has sent.
struct Rig {
    ioapic: Ioapic,
    sent: Vec<u8>,
    accepting: bool,
}

impl Rig {
    fn new() -> Rig {
        Rig { ioapic: Ioapic::new(0), sent: Vec::new(), accepting: true }
    }
    fn program(&mut self, pin: u8, entry: u64) {
        self.write_indirect(0x11 + pin * 2, (entry >> 32) as u32);
        self.write_indirect(0x10 + pin * 2, entry as u32);
    }
    fn write_indirect(&mut self, index: u8, value: u32) {
        self.window(0x00, index as u32);
        self.window(0x10, value);
    }
    fn window(&mut self, offset: u16, value: u32) {
        let (sent, accepting) = (&mut self.sent, self.accepting);
        self.ioapic.write(offset, value, |message| {
            sent.push(message.vector);
            accepting
        });
    }
    fn lines(&mut self, lines: u32) {
        let (sent, accepting) = (&mut self.sent, self.accepting);
        self.ioapic.set_lines(lines, |message| {
            sent.push(message.vector);
            accepting
        });
    }
    fn read_indirect(&mut self, index: u8) -> u32 {
        self.window(0x00, index as u32);
        self.ioapic.read(0x10)
    }
}

#[test]
fn the_window_and_its_indices_decode_exhaustively() {
    let window: Vec<u16> = (0..0x1000).filter(|&offset| decode(offset).is_some()).collect();
    assert_eq!(window, [0x00, 0x10, 0x40]);
    let indices: Vec<u8> = (0..=255).filter(|&index| select(index).is_some()).collect();
    assert_eq!(indices, (0..3).chain(0x10..0x40).collect::<Vec<u8>>());
    for pin in 0..PINS as u8 {
        assert_eq!(select(0x10 + pin * 2), Some(Reg::Low(pin)));
        assert_eq!(select(0x11 + pin * 2), Some(Reg::High(pin)));
    }
    assert_eq!(Rig::new().read_indirect(1), 0x0017_0020);
}

#[test]
fn software_cannot_set_status_bits() {
    let mut rig = Rig::new();
    rig.program(5, u64::MAX);
    assert_eq!(rig.read_indirect(0x1a), 0x0001_afff);
    assert_eq!(rig.read_indirect(0x1b), 0xff00_0000);
    rig.write_indirect(0, u32::MAX);
    assert_eq!(rig.read_indirect(0), 0x0f00_0000);
}

#[test]
fn an_edge_is_sent_when_it_rises_unmasked_and_lost_when_masked() {
    let mut rig = Rig::new();
    rig.lines(1 << 3);
    rig.program(3, 0x33);
    assert!(rig.sent.is_empty());
    rig.lines(0);
    rig.lines(1 << 3);
    rig.lines(1 << 3);
    assert_eq!(rig.sent, [0x33]);
}

#[test]
fn a_level_is_sent_once_until_its_end_and_again_while_high() {
    let mut rig = Rig::new();
    rig.program(10, 0x8044);
    rig.lines(1 << 10);
    rig.lines(0);
    rig.lines(1 << 10);
    assert_eq!(rig.sent, [0x44]);
    assert!(rig.ioapic.entry(10).is_some_and(|entry| entry.is(REMOTE_IRR)));
    rig.window(0x40, 0x45);
    assert_eq!(rig.sent.len(), 1);
    rig.window(0x40, 0x44);
    assert_eq!(rig.sent.len(), 2);
    rig.lines(0);
    rig.window(0x40, 0x44);
    assert_eq!(rig.sent.len(), 2);
    assert!(rig.ioapic.entry(10).is_some_and(|entry| !entry.is(REMOTE_IRR)));
}

#[test]
fn a_level_that_nobody_took_waits_for_the_next_occasion() {
    let mut rig = Rig::new();
    rig.accepting = false;
    rig.program(10, 0x8044);
    rig.lines(1 << 10);
    rig.accepting = true;
    rig.program(10, 0x8044);
    assert_eq!(rig.sent.len(), 2);
    assert!(rig.ioapic.entry(10).is_some_and(|entry| entry.is(REMOTE_IRR)));
}

#[test]
fn making_an_entry_an_edge_clears_a_stuck_remote_irr() {
    let mut rig = Rig::new();
    rig.program(10, 0x8044);
    rig.lines(1 << 10);
    rig.program(10, 0x1_0044);
    rig.program(10, 0x1_8044);
    assert!(rig.ioapic.entry(10).is_some_and(|entry| !entry.is(REMOTE_IRR)));
}

#[test]
fn messages_carry_the_entry() {
    let mut rig = Rig::new();
    rig.program(4, 0x0300_0000_0001_0944);
    let message = rig.ioapic.entry(4).expect("pin").message();
    assert_eq!(message.delivery, DeliveryMode::LowestPriority);
    assert_eq!(message.destination, Destination::Logical(3));
    assert_eq!((message.vector, message.trigger), (0x44, Trigger::Edge));
    rig.program(4, 0xff00_0000_0001_8044);
    let message = rig.ioapic.entry(4).expect("pin").message();
    assert_eq!((message.destination, message.trigger), (Destination::Everyone, Trigger::Level));
}

proptest! {
    /// Whatever the history, an unmasked accepted level input is high only with remote IRR set.
    #[test]
    fn no_level_request_is_forgotten(
        steps in prop::collection::vec((0..4_u8, 0..4_u8, any::<bool>()), 0..60)
    ) {
        let mut rig = Rig::new();
        let mut lines = 0;
        for (what, pin, flag) in steps {
            match what {
                0 => {
                    lines ^= 1 << pin;
                    rig.lines(lines);
                }
                1 => rig.program(pin, 0x8040 | pin as u64 | (flag as u64) << 16),
                2 => rig.program(pin, 0x0040 | pin as u64 | (flag as u64) << 16),
                _ => rig.window(0x40, 0x40 | pin as u32),
            }
            for pin in 0..4 {
                let entry = rig.ioapic.entry(pin).expect("pin");
                if entry.is(LEVEL) && !entry.is(MASKED) && lines >> pin & 1 != 0 {
                    prop_assert!(entry.is(REMOTE_IRR));
                }
                prop_assert!(entry.is(LEVEL) || !entry.is(REMOTE_IRR));
            }
        }
    }
}
