//! The small system ports: 0x61 (NMI status and control), 0x80 (POST code), 0x92 (fast A20 and reset), 0xcf9 (reset
//! control). Sources: PIIX3 data sheet, "NMI Status and Control Register", "Port 92h", "Reset Control Register".

use emu_core::time::Instant;

/// How often the refresh bit of port 0x61 toggles, in units.
const REFRESH: u64 = 15_085;

/// What a write asked of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Reset everything.
    Reset,
    /// A20 was switched.
    A20(bool),
    /// The gate of the timer's counter 2 was switched.
    SpeakerGate(bool),
}

/// One of these ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// 0x61.
    NmiStatus,
    /// 0x80.
    Post,
    /// 0x92.
    Port92,
    /// 0xcf9.
    ResetControl,
}

/// Which of them a port is.
pub const fn decode(port: u16) -> Option<Reg> {
    match port {
        0x61 => Some(Reg::NmiStatus),
        0x80 => Some(Reg::Post),
        0x92 => Some(Reg::Port92),
        0xcf9 => Some(Reg::ResetControl),
        _ => None,
    }
}

/// Their state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chipset {
    nmi_control: u8,
    post: u8,
    a20: bool,
    reset_control: u8,
}

impl Default for Chipset {
    fn default() -> Chipset {
        Chipset::new()
    }
}

impl Chipset {
    /// After firmware: A20 on.
    pub const fn new() -> Chipset {
        Chipset { nmi_control: 0, post: 0, a20: true, reset_control: 0 }
    }

    /// Whether address line 20 passes; port 0x92 and the keyboard controller share one gate.
    pub const fn a20(&self) -> bool {
        self.a20
    }
    /// Sets the gate on behalf of the keyboard controller.
    pub const fn set_a20(&mut self, on: bool) {
        self.a20 = on;
    }
    /// The last POST code.
    pub const fn post_code(&self) -> u8 {
        self.post
    }

    /// Reads a port; `out2` is the output of the timer's counter 2.
    pub const fn read(&self, reg: Reg, out2: bool, now: Instant) -> u8 {
        match reg {
            Reg::NmiStatus => {
                let refresh = ((now.units() / REFRESH) & 1) as u8;
                self.nmi_control | refresh << 4 | (out2 as u8) << 5
            }
            Reg::Post => self.post,
            Reg::Port92 => (self.a20 as u8) << 1,
            Reg::ResetControl => self.reset_control,
        }
    }

    /// Writes a port.
    pub const fn write(&mut self, reg: Reg, value: u8) -> Effect {
        match reg {
            Reg::NmiStatus => {
                self.nmi_control = value & 0x0f;
                Effect::SpeakerGate(value & 1 != 0)
            }
            Reg::Post => {
                self.post = value;
                Effect::None
            }
            Reg::Port92 => {
                self.a20 = value & 2 != 0;
                if value & 1 != 0 { Effect::Reset } else { Effect::A20(self.a20) }
            }
            Reg::ResetControl => {
                // The reset happens when bit 2 goes from 0 to 1.
                let rose = value & !self.reset_control & 4 != 0;
                self.reset_control = value & 0x0e;
                if rose { Effect::Reset } else { Effect::None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_control_resets_on_the_rise_of_bit_two_only() {
        for before in 0..=255_u8 {
            for value in [0x00, 0x02, 0x04, 0x06, 0x0e] {
                let mut chipset = Chipset::new();
                chipset.write(Reg::ResetControl, before);
                let effect = chipset.write(Reg::ResetControl, value);
                assert_eq!(effect == Effect::Reset, value & 4 != 0 && before & 4 == 0);
            }
        }
    }

    #[test]
    fn port_61_shows_gate_refresh_and_output() {
        let mut chipset = Chipset::new();
        assert_eq!(chipset.write(Reg::NmiStatus, 0xf1), Effect::SpeakerGate(true));
        let at = |units, out2| chipset.read(Reg::NmiStatus, out2, Instant::new(units));
        assert_eq!(at(0, false), 0x01);
        assert_eq!(at(REFRESH, false), 0x11);
        assert_eq!(at(2 * REFRESH, true), 0x21);
    }

    #[test]
    fn port_92_switches_a20_and_resets() {
        let mut chipset = Chipset::new();
        assert_eq!(chipset.write(Reg::Port92, 0), Effect::A20(false));
        assert!(!chipset.a20());
        assert_eq!(chipset.write(Reg::Port92, 3), Effect::Reset);
        assert_eq!(chipset.read(Reg::Port92, false, Instant::ZERO), 2);
    }
}
