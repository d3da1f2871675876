//! One counter of the 8254: the counting element, the count register, latches, and the six modes.

/// Which bytes of a count the ports move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    Low,
    High,
    LowThenHigh,
}

/// The six modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 0: interrupt on terminal count.
    TerminalCount = 0,
    /// 1: hardware retriggerable one-shot.
    OneShot = 1,
    /// 2: rate generator.
    Rate = 2,
    /// 3: square wave.
    Square = 3,
    /// 4: software triggered strobe.
    SoftwareStrobe = 4,
    /// 5: hardware triggered strobe.
    HardwareStrobe = 5,
}

impl Mode {
    /// From bits 3:1 of a control word; 6 and 7 are 2 and 3.
    pub const fn from_bits(bits: u8) -> Mode {
        match bits & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::Rate,
            3 | 7 => Mode::Square,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        }
    }
    /// Whether the gate starts the counter rather than letting it count.
    const fn triggered(self) -> bool {
        matches!(self, Mode::OneShot | Mode::HardwareStrobe)
    }
    const fn repeats(self) -> bool {
        matches!(self, Mode::Rate | Mode::Square)
    }
}

/// A counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    mode: Mode,
    bytes: Bytes,
    bcd: bool,
    gate: bool,
    out: bool,
    /// CR: the count as written, 1 to the modulus.
    register: u32,
    /// CE: the counting element, 0 to the modulus.
    element: u32,
    /// A count has been written since the control word.
    counted: bool,
    /// CR goes to CE at the next clock pulse.
    load: bool,
    /// CE has been loaded since the control word.
    running: bool,
    /// The terminal count has not been reached since the last load.
    armed: bool,
    /// Mode 3: CE was loaded from an odd count.
    odd: bool,
    /// The first byte of a two-byte count.
    first_byte: Option<u8>,
    null_count: bool,
    read_high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    /// A counter that was never programmed.
    pub const fn new(gate: bool) -> Counter {
        Counter {
            mode: Mode::TerminalCount,
            bytes: Bytes::LowThenHigh,
            bcd: false,
            gate,
            out: false,
            register: 0x10000,
            element: 0,
            counted: false,
            load: false,
            running: false,
            armed: false,
            odd: false,
            first_byte: None,
            null_count: true,
            read_high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// The output pin.
    pub const fn out(&self) -> bool {
        self.out
    }

    const fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x10000 }
    }

    // ----- ports -----

    /// A control word for this counter (bits 7:6 not 3): a mode, or the latch command.
    pub const fn control(&mut self, word: u8) {
        self.bytes = match word >> 4 & 3 {
            0 => {
                self.read_back(true, false);
                return;
            }
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::LowThenHigh,
        };
        self.mode = Mode::from_bits(word >> 1);
        self.bcd = word & 1 != 0;
        self.out = !matches!(self.mode, Mode::TerminalCount);
        self.counted = false;
        self.load = false;
        self.running = false;
        self.armed = false;
        self.first_byte = None;
        self.null_count = true;
        self.read_high_next = false;
        self.latched_count = None;
        self.latched_status = None;
    }

    /// Latches the count, the status, or both; what is latched already stays.
    pub const fn read_back(&mut self, count: bool, status: bool) {
        if count && self.latched_count.is_none() {
            self.latched_count = Some(self.shown());
        }
        if status && self.latched_status.is_none() {
            let bytes = match self.bytes {
                Bytes::Low => 1,
                Bytes::High => 2,
                Bytes::LowThenHigh => 3,
            };
            self.latched_status = Some(
                (self.out as u8) << 7
                    | (self.null_count as u8) << 6
                    | bytes << 4
                    | (self.mode as u8) << 1
                    | self.bcd as u8,
            );
        }
    }

    /// CE as the ports show it.
    const fn shown(&self) -> u16 {
        let value = self.element % self.modulus();
        if self.bcd {
            (value % 10 + value / 10 % 10 * 0x10 + value / 100 % 10 * 0x100 + value / 1000 * 0x1000) as u16
        } else {
            value as u16
        }
    }

    /// Reads the count port: latched status, then the latched count, then the running count.
    pub const fn read(&mut self) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = match self.latched_count {
            Some(value) => value,
            None => self.shown(),
        };
        let high = match self.bytes {
            Bytes::Low => false,
            Bytes::High => true,
            Bytes::LowThenHigh => {
                self.read_high_next = !self.read_high_next;
                !self.read_high_next
            }
        };
        // A two-byte latch is spent with its second byte.
        if !matches!(self.bytes, Bytes::LowThenHigh) || high {
            self.latched_count = None;
        }
        if high { (value >> 8) as u8 } else { value as u8 }
    }

    /// Writes the count port.
    pub const fn write(&mut self, byte: u8) {
        let raw = match (self.bytes, self.first_byte) {
            (Bytes::Low, _) => byte as u16,
            (Bytes::High, _) => (byte as u16) << 8,
            (Bytes::LowThenHigh, None) => {
                self.first_byte = Some(byte);
                if matches!(self.mode, Mode::TerminalCount) {
                    self.out = false;
                }
                return;
            }
            (Bytes::LowThenHigh, Some(low)) => {
                self.first_byte = None;
                low as u16 | (byte as u16) << 8
            }
        } as u32;
        let value = if self.bcd {
            ((raw & 0xf) + (raw >> 4 & 0xf) * 10 + (raw >> 8 & 0xf) * 100 + (raw >> 12) * 1000) % 10_000
        } else {
            raw
        };
        let value = if value == 0 { self.modulus() } else { value };
        self.register = if value == 1 && self.mode.repeats() { 2 } else { value };
        self.counted = true;
        self.null_count = true;
        match self.mode {
            Mode::TerminalCount => {
                self.out = false;
                self.load = true;
            }
            Mode::SoftwareStrobe => self.load = true,
            // A running rate or square wave takes the new count at the end of its (half) cycle.
            Mode::Rate | Mode::Square => self.load |= !self.running,
            Mode::OneShot | Mode::HardwareStrobe => {}
        }
    }

    /// The gate input.
    pub const fn set_gate(&mut self, level: bool) {
        let rose = level && !self.gate;
        self.gate = level;
        if rose && self.counted && (self.mode.triggered() || self.mode.repeats()) {
            self.load = true;
        }
        if !level && self.mode.repeats() {
            self.out = true;
        }
    }

    // ----- the clock -----

    /// Whether a clock pulse that loads nothing would count.
    const fn counts(&self) -> bool {
        self.running
            && match self.mode {
                Mode::TerminalCount => self.gate && self.first_byte.is_none(),
                Mode::OneShot | Mode::HardwareStrobe => true,
                Mode::Rate | Mode::Square | Mode::SoftwareStrobe => self.gate,
            }
    }

    const fn strobing(&self) -> bool {
        matches!(self.mode, Mode::SoftwareStrobe | Mode::HardwareStrobe) && !self.out
    }

    const fn reload(&mut self) {
        self.odd = matches!(self.mode, Mode::Square) && self.register & 1 != 0;
        self.element = self.register - self.odd as u32;
        self.null_count = false;
    }

    /// One clock pulse.
    const fn tick(&mut self) {
        if self.strobing() {
            self.out = true;
        }
        if self.load {
            self.load = false;
            self.reload();
            self.running = true;
            self.armed = true;
            match self.mode {
                Mode::OneShot => self.out = false,
                Mode::Rate | Mode::Square => self.out = true,
                _ => {}
            }
            return;
        }
        if !self.counts() {
            return;
        }
        match self.mode {
            Mode::Rate => {
                if self.element <= 1 {
                    self.reload();
                    self.out = true;
                } else {
                    self.element -= 1;
                    if self.element == 1 {
                        self.out = false;
                    }
                }
            }
            Mode::Square => {
                // With an odd count the high half lasts one pulse longer, spent at zero.
                let rest = self.odd && self.out;
                if self.element >= 2 {
                    self.element -= 2;
                    if self.element > 0 || rest {
                        return;
                    }
                }
                self.reload();
                self.out = !self.out;
            }
            _ => {
                self.element = if self.element == 0 { self.modulus() - 1 } else { self.element - 1 };
                if self.element == 0 && self.armed {
                    self.armed = false;
                    self.out = matches!(self.mode, Mode::TerminalCount | Mode::OneShot);
                }
            }
        }
    }

    /// `pulses` clock pulses.
    pub fn step(&mut self, mut pulses: u64) {
        while pulses > 0 {
            if self.load || self.strobing() {
                self.tick();
                pulses -= 1;
                continue;
            }
            if !self.counts() {
                return;
            }
            let skip = match self.mode {
                Mode::Rate => {
                    if self.element == self.register {
                        pulses %= self.register as u64;
                    }
                    (self.element as u64).saturating_sub(2)
                }
                Mode::Square => {
                    let whole = self.register - (self.register & 1);
                    if self.out && self.element == whole && self.odd == (self.register & 1 != 0) {
                        pulses %= self.register as u64;
                    }
                    (self.element as u64 / 2).saturating_sub(1)
                }
                _ if self.armed => self.element as u64 - 1,
                _ => {
                    let modulus = self.modulus() as u64;
                    let back = pulses % modulus;
                    self.element = ((self.element as u64 % modulus + modulus - back) % modulus) as u32;
                    return;
                }
            };
            let skip = skip.min(pulses);
            self.element -= skip as u32 * if self.mode == Mode::Square { 2 } else { 1 };
            pulses -= skip;
            if pulses > 0 {
                self.tick();
                pulses -= 1;
            }
        }
    }

    /// Pulses until something other than plain counting happens.
    const fn next_moment(&self) -> Option<u64> {
        if self.load || self.strobing() {
            return Some(1);
        }
        if !self.counts() {
            return None;
        }
        let element = self.element as u64;
        match self.mode {
            Mode::Rate => Some(if element > 1 { element - 1 } else { 1 }),
            Mode::Square => {
                let pulses = element / 2 + (self.odd && self.out) as u64;
                Some(if pulses == 0 { 1 } else { pulses })
            }
            _ if self.armed => Some(element),
            _ => None,
        }
    }

    /// Pulses until the output changes, if it will without further writes.
    pub fn next_change(&self) -> Option<u64> {
        let mut ahead = *self;
        let mut pulses = 0;
        // A load, a rest of a cycle and a whole cycle at most lie before the change.
        for _ in 0..4 {
            let moment = ahead.next_moment()?;
            ahead.step(moment);
            pulses += moment;
            if ahead.out != self.out {
                return Some(pulses);
            }
        }
        None
    }
}
