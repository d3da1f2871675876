//! The ACPI fixed hardware (ACPI 6.5, "ACPI Hardware Specification"): PM1a event and control blocks, the PM timer, GPE
//! block 0, and the system control interrupt.
//!
//! SCI_EN is always set: there is no SMI to hand the hardware over. Writing SLP_EN with the S5 type powers off, which
//! appears as a value; other sleep types do nothing.

use emu_core::time::{Duration, Instant};

use crate::bus::Port;

/// First port of the fixed hardware.
pub const BASE: Port = Port(0x600);
/// PM1a event block: status, enable.
pub const PM1A_EVT: Port = Port(0x600);
/// PM1a control block.
pub const PM1A_CNT: Port = Port(0x604);
/// PM timer.
pub const PM_TMR: Port = Port(0x608);
/// GPE block 0: two bytes of status, two of enable.
pub const GPE0: Port = Port(0x620);
/// The PM timer's clock.
pub const TIMER_HERTZ: u64 = 3_579_545;
/// The sleep type of S5 that \_S5 gives.
pub const SLP_TYP_S5: u16 = 0;
/// The interrupt line of the SCI.
pub const SCI: u8 = 9;

const TMR_STS: u16 = 1 << 0;
const PWRBTN_STS: u16 = 1 << 8;
const STATUS: u16 = TMR_STS | 1 << 4 | 1 << 5 | PWRBTN_STS | 1 << 9 | 1 << 10 | 1 << 15;
const ENABLE: u16 = TMR_STS | 1 << 5 | PWRBTN_STS | 1 << 9 | 1 << 10;
const SCI_EN: u16 = 1 << 0;
const SLP_EN: u16 = 1 << 13;

/// A byte of the fixed hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// PM1 status, byte 0 or 1.
    Status(u8),
    /// PM1 enable.
    Enable(u8),
    /// PM1 control.
    Control(u8),
    /// PM timer, byte 0 to 3.
    Timer(u8),
    /// GPE0 status.
    GpeStatus(u8),
    /// GPE0 enable.
    GpeEnable(u8),
}

/// Which byte a port is.
pub const fn decode(port: u16) -> Option<Reg> {
    let byte = (port & 3) as u8;
    Some(match port {
        0x600..=0x601 => Reg::Status(byte),
        0x602..=0x603 => Reg::Enable(byte & 1),
        0x604..=0x605 => Reg::Control(byte),
        0x608..=0x60b => Reg::Timer(byte),
        0x620..=0x621 => Reg::GpeStatus(byte),
        0x622..=0x623 => Reg::GpeEnable(byte & 1),
        _ => return None,
    })
}

/// Width of the PM timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TimerWidth {
    /// 24 bits: the FADT's TMR_VAL_EXT is clear.
    Bits24,
    /// 32 bits.
    #[default]
    Bits32,
}

impl TimerWidth {
    const fn bits(self) -> u32 {
        match self {
            TimerWidth::Bits24 => 24,
            TimerWidth::Bits32 => 32,
        }
    }
}

/// What a write asked of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest entered S5.
    PowerOff,
}

/// The fixed hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerManagement {
    width: TimerWidth,
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    seen: Instant,
}

const fn byte_of(value: u16, byte: u8) -> u8 {
    (value >> (byte * 8)) as u8
}
const fn spread(value: u8, byte: u8) -> u16 {
    (value as u16) << (byte * 8)
}
const fn replace(old: u16, value: u8, byte: u8) -> u16 {
    old & !spread(0xff, byte) | spread(value, byte)
}

impl PowerManagement {
    /// After reset.
    pub const fn new(width: TimerWidth) -> PowerManagement {
        PowerManagement {
            width,
            status: 0,
            enable: 0,
            control: SCI_EN,
            gpe_status: 0,
            gpe_enable: 0,
            seen: Instant::ZERO,
        }
    }

    /// The PM timer at `now`.
    pub const fn timer(&self, now: Instant) -> u32 {
        (now.ticks(TIMER_HERTZ) & ((1 << self.width.bits()) - 1)) as u32
    }

    /// Times the timer's top bit has toggled.
    const fn toggles(&self, now: Instant) -> u64 {
        now.ticks(TIMER_HERTZ) >> (self.width.bits() - 1)
    }

    /// Goes on to `now`: TMR_STS is set when the timer's top bit has toggled.
    pub const fn sync(&mut self, now: Instant) {
        if now.units() > self.seen.units() {
            if self.toggles(now) != self.toggles(self.seen) {
                self.status |= TMR_STS;
            }
            self.seen = now;
        }
    }

    /// When the SCI may rise next of its own.
    pub fn next_event(&self) -> Option<Instant> {
        if self.enable & TMR_STS == 0 || self.status & TMR_STS != 0 {
            return None;
        }
        let tick = (self.toggles(self.seen) + 1) << (self.width.bits() - 1);
        Some(Instant::of_tick(tick, TIMER_HERTZ).max(self.seen + Duration::new(1)))
    }

    /// The level of the SCI.
    pub const fn interrupt(&self) -> bool {
        self.status & self.enable & ENABLE != 0 || self.gpe_status & self.gpe_enable != 0
    }

    /// The power button is pressed.
    pub const fn press_power_button(&mut self) {
        self.status |= PWRBTN_STS;
    }
    /// A general-purpose event (0 to 15) comes in.
    pub const fn raise_gpe(&mut self, event: u8) {
        if event < 16 {
            self.gpe_status |= 1 << event;
        }
    }

    /// Reads a byte.
    pub const fn read(&mut self, reg: Reg, now: Instant) -> u8 {
        self.sync(now);
        match reg {
            Reg::Status(byte) => byte_of(self.status, byte),
            Reg::Enable(byte) => byte_of(self.enable, byte),
            Reg::Control(byte) => byte_of(self.control, byte),
            Reg::Timer(byte) => (self.timer(now) >> (byte * 8)) as u8,
            Reg::GpeStatus(byte) => byte_of(self.gpe_status, byte),
            Reg::GpeEnable(byte) => byte_of(self.gpe_enable, byte),
        }
    }

    /// Writes a byte. Status bits are cleared by writing ones.
    pub const fn write(&mut self, reg: Reg, value: u8, now: Instant) -> Effect {
        self.sync(now);
        match reg {
            Reg::Status(byte) => self.status &= !(spread(value, byte) & STATUS),
            Reg::Enable(byte) => self.enable = replace(self.enable, value, byte) & ENABLE,
            Reg::Control(byte) => {
                let written = replace(self.control, value, byte);
                // SLP_EN reads as zero.
                self.control = written & !SLP_EN | SCI_EN;
                if byte == 1 && written & SLP_EN != 0 && written >> 10 & 7 == SLP_TYP_S5 {
                    return Effect::PowerOff;
                }
            }
            Reg::GpeStatus(byte) => self.gpe_status &= !spread(value, byte),
            Reg::GpeEnable(byte) => self.gpe_enable = replace(self.gpe_enable, value, byte),
            Reg::Timer(_) => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_cover_their_ports_and_no_others() {
        let decoded: Vec<u16> = (0..=0xffff).filter(|&port| decode(port).is_some()).collect();
        let expected: Vec<u16> = (0x600..0x606).chain(0x608..0x60c).chain(0x620..0x624).collect();
        assert_eq!(decoded, expected);
    }

    #[test]
    fn the_timer_has_its_width_and_rate() {
        let at = Instant::of_tick(0x1_2345_6789, TIMER_HERTZ);
        assert_eq!(PowerManagement::new(TimerWidth::Bits32).timer(at), 0x2345_6789);
        assert_eq!(PowerManagement::new(TimerWidth::Bits24).timer(at), 0x45_6789);
    }

    #[test]
    fn carry_raises_the_sci_when_enabled_and_a_one_clears_it() {
        let mut pm = PowerManagement::new(TimerWidth::Bits24);
        pm.write(Reg::Enable(0), 1, Instant::ZERO);
        let due = pm.next_event().expect("enabled");
        assert_eq!(pm.timer(due), 1 << 23);
        pm.sync(due - Duration::new(1));
        assert!(!pm.interrupt());
        pm.sync(due);
        assert!(pm.interrupt());
        pm.write(Reg::Status(0), 1, due);
        assert!(!pm.interrupt());
        assert_eq!(pm.timer(pm.next_event().expect("again")), 0);
    }

    #[test]
    fn only_slp_en_with_the_s5_type_powers_off() {
        for value in 0..=255_u8 {
            let mut pm = PowerManagement::new(TimerWidth::Bits32);
            let effect = pm.write(Reg::Control(1), value, Instant::ZERO);
            assert_eq!(effect == Effect::PowerOff, value & 0x20 != 0 && value >> 2 & 7 == 0);
            assert_eq!(pm.read(Reg::Control(1), Instant::ZERO) & 0x20, 0);
            assert_eq!(pm.read(Reg::Control(0), Instant::ZERO) & 1, 1);
        }
    }

    #[test]
    fn button_and_gpe_interrupt_through_their_enables() {
        let mut pm = PowerManagement::new(TimerWidth::Bits32);
        pm.press_power_button();
        assert!(!pm.interrupt());
        pm.write(Reg::Enable(1), 1, Instant::ZERO);
        assert!(pm.interrupt());
        pm.write(Reg::Status(1), 1, Instant::ZERO);
        assert!(!pm.interrupt());
        pm.raise_gpe(9);
        pm.raise_gpe(16);
        pm.write(Reg::GpeEnable(1), 2, Instant::ZERO);
        assert!(pm.interrupt());
        assert_eq!(pm.read(Reg::GpeStatus(1), Instant::ZERO), 2);
    }
}
