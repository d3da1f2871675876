//! The 8259A pair of a PC with its ELCR (8259A data sheet, "Programming the 8259A"; PIIX data sheet, "Edge/Level
//! Control Registers").
//!
//! [`PicPair`] is the door: lines in, INTR out, [`PicPair::acknowledge`] is the processor's INTA cycle. A request is a
//! function of state: an input that is high and either level-triggered or not yet acknowledged since its rising edge.
//! So a line that falls before the acknowledge withdraws its request, and the acknowledge yields the default IR7,
//! the spurious interrupt, as the data sheet says.
//!
//! Left out: the MCS-80 mode, and ICW1's LTIM bit and buffered mode, which the PC's chipsets ignore in favour of ELCR.

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pic {
    /// Input levels.
    lines: u8,
    /// Rising edges not yet acknowledged.
    edges: u8,
    /// Inputs that are level-triggered.
    elcr: u8,
    /// ELCR bits that can be set.
    elcr_mask: u8,
    imr: u8,
    isr: u8,
    vector_base: u8,
    /// The input with the lowest priority; the next one has the highest.
    lowest: u8,
    /// Master: inputs with a slave. Zero for the slave.
    cascade: u8,
    init: InitStep,
    /// ICW1.IC4: an ICW4 will follow.
    wants_icw4: bool,
    /// ICW1.SNGL: no ICW3 will follow.
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

/// Which initialisation word comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InitStep {
    Ready,
    Icw2,
    Icw3,
    Icw4,
}

impl Pic {
    const fn new(cascade: u8, elcr_mask: u8) -> Pic {
        Pic {
            lines: 0,
            edges: 0,
            elcr: 0,
            elcr_mask,
            imr: 0,
            isr: 0,
            vector_base: 0,
            lowest: 7,
            cascade,
            init: InitStep::Ready,
            wants_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    /// The interrupt request register.
    pub const fn irr(&self) -> u8 {
        self.lines & (self.edges | self.elcr)
    }
    /// The in-service register.
    pub const fn isr(&self) -> u8 {
        self.isr
    }
    /// The interrupt mask register.
    pub const fn imr(&self) -> u8 {
        self.imr
    }

    /// Sets all eight inputs.
    pub const fn set_lines(&mut self, lines: u8) {
        self.edges = (self.edges | lines & !self.lines) & lines;
        self.lines = lines;
    }

    /// The input of highest priority in `set`, priorities counted from the one after `lowest`.
    const fn highest(&self, set: u8) -> Option<u8> {
        if set == 0 {
            return None;
        }
        let first = (self.lowest + 1) & 7;
        let distance = set.rotate_right(first as u32).trailing_zeros() as u8;
        Some((first + distance) & 7)
    }

    const fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest + 1) & 7
    }

    /// The input that INTR stands for, if it is asserted.
    pub const fn pending(&self) -> Option<u8> {
        let requests = self.irr() & !self.imr;
        // In special mask mode an input that is in service and masked blocks nobody.
        let blocking = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let Some(input) = self.highest(requests) else { return None };
        match self.highest(blocking) {
            Some(served) if self.rank(served) < self.rank(input) => None,
            // Special fully nested: a slave in service may interrupt again, on behalf of a higher input of its own.
            Some(served) if served == input => {
                if self.special_fully_nested && self.cascade & 1 << input != 0 {
                    Some(input)
                } else {
                    None
                }
            }
            _ => Some(input),
        }
    }

    /// The INTA cycle: the input now in service, or `None` when the request has gone.
    const fn acknowledge(&mut self) -> Option<u8> {
        let Some(input) = self.pending() else { return None };
        let bit = 1 << input;
        self.edges &= !bit;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= bit;
        }
        Some(input)
    }

    const fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1 clears the mask, the in-service bits and the edge sense, and restores fixed priority.
            self.edges = 0;
            self.imr = 0;
            self.isr = 0;
            self.lowest = 7;
            self.wants_icw4 = value & 0x01 != 0;
            self.single = value & 0x02 != 0;
            self.auto_eoi = false;
            self.rotate_on_auto_eoi = false;
            self.special_fully_nested = false;
            self.special_mask = false;
            self.read_isr = false;
            self.poll = false;
            self.init = InitStep::Icw2;
        } else if value & 0x08 != 0 {
            // OCW3
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
            self.poll = value & 0x04 != 0;
            if value & 0x02 != 0 {
                self.read_isr = value & 0x01 != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    const fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            // Non-specific EOI, without and with rotation. In special mask mode a masked input is not ended.
            command @ (1 | 5) => {
                let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(input) = self.highest(candidates) {
                    self.isr &= !(1 << input);
                    if command == 5 {
                        self.lowest = input;
                    }
                }
            }
            3 => self.isr &= !(1 << level),
            7 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            6 => self.lowest = level,
            4 => self.rotate_on_auto_eoi = true,
            0 => self.rotate_on_auto_eoi = false,
            _ => {}
        }
    }

    const fn write_data(&mut self, value: u8) {
        self.init = match self.init {
            InitStep::Ready => {
                self.imr = value;
                InitStep::Ready
            }
            InitStep::Icw2 => {
                self.vector_base = value & 0xf8;
                if !self.single {
                    InitStep::Icw3
                } else if self.wants_icw4 {
                    InitStep::Icw4
                } else {
                    InitStep::Ready
                }
            }
            // The cascade is wired; what the guest says about it changes nothing.
            InitStep::Icw3 => {
                if self.wants_icw4 {
                    InitStep::Icw4
                } else {
                    InitStep::Ready
                }
            }
            InitStep::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                InitStep::Ready
            }
        };
    }

    /// Reads port 0 (`a0` clear) or 1. In poll mode the read is an acknowledge.
    const fn read(&mut self, a0: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.acknowledge() {
                Some(input) => 0x80 | input,
                None => 0,
            };
        }
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr(),
        }
    }
}

/// A register of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// Command port of the master (ICW1, OCW2, OCW3; reads IRR, ISR or the poll word).
    MasterCommand,
    /// Data port of the master (ICW2 to 4, OCW1; reads the mask).
    MasterData,
    /// Command port of the slave.
    SlaveCommand,
    /// Data port of the slave.
    SlaveData,
    /// Edge/level control of inputs 0 to 7.
    MasterElcr,
    /// Edge/level control of inputs 8 to 15.
    SlaveElcr,
}

/// Which register a port reaches.
pub const fn decode(port: u16) -> Option<Reg> {
    Some(match port {
        0x20 => Reg::MasterCommand,
        0x21 => Reg::MasterData,
        0xa0 => Reg::SlaveCommand,
        0xa1 => Reg::SlaveData,
        0x4d0 => Reg::MasterElcr,
        0x4d1 => Reg::SlaveElcr,
        _ => return None,
    })
}

/// The master's input that the slave's INTR drives.
const CASCADE: u8 = 2;

/// The two 8259As of a PC, inputs IRQ 0 to 15, the slave on IRQ 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PicPair {
    master: Pic,
    slave: Pic,
    lines: u16,
}

impl Default for PicPair {
    fn default() -> PicPair {
        PicPair::new()
    }
}

impl PicPair {
    /// After reset: uninitialised, vector base 0, all unmasked, all inputs low.
    pub const fn new() -> PicPair {
        // IRQ 0, 1, 2, 8 and 13 are edge-triggered by definition.
        PicPair { master: Pic::new(1 << CASCADE, 0xf8), slave: Pic::new(0, 0xde), lines: 0 }
    }

    /// What firmware leaves behind: vectors 0x08 and 0x70, all masked but the cascade, `level` inputs level-triggered.
    pub fn firmware_init(&mut self, level: u16) {
        for (reg, value) in [
            (Reg::MasterCommand, 0x11),
            (Reg::MasterData, 0x08),
            (Reg::MasterData, 1 << CASCADE),
            (Reg::MasterData, 0x01),
            (Reg::SlaveCommand, 0x11),
            (Reg::SlaveData, 0x70),
            (Reg::SlaveData, CASCADE),
            (Reg::SlaveData, 0x01),
            (Reg::MasterData, !(1 << CASCADE)),
            (Reg::SlaveData, 0xff),
            (Reg::MasterElcr, level as u8),
            (Reg::SlaveElcr, (level >> 8) as u8),
        ] {
            self.write(reg, value);
        }
    }

    /// The chip of IRQ 0 to 7.
    pub const fn master(&self) -> &Pic {
        &self.master
    }
    /// The chip of IRQ 8 to 15.
    pub const fn slave(&self) -> &Pic {
        &self.slave
    }

    /// Sets all sixteen inputs; bit 2 is the cascade and is ignored.
    pub const fn set_lines(&mut self, lines: u16) {
        self.lines = lines;
        self.slave.set_lines((lines >> 8) as u8);
        self.settle();
    }

    /// Carries the slave's INTR to the master's input.
    const fn settle(&mut self) {
        let cascade = if self.slave.pending().is_some() { 1 << CASCADE } else { 0 };
        self.master.set_lines(self.lines as u8 & !(1 << CASCADE) | cascade);
    }

    /// The level of INTR at the processor.
    pub const fn intr(&self) -> bool {
        self.master.pending().is_some()
    }

    /// The INTA cycle: the vector. Without a request it is input 7 of the chip that was asked, not in service.
    pub const fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.acknowledge() {
            None => self.master.vector_base | 7,
            Some(CASCADE) => {
                let input = match self.slave.acknowledge() {
                    Some(input) => input,
                    None => 7,
                };
                // The slave's request line falls between two acknowledges, so that each further request is an edge.
                self.master.set_lines(self.master.lines & !(1 << CASCADE));
                self.slave.vector_base | input
            }
            Some(input) => self.master.vector_base | input,
        };
        self.settle();
        vector
    }

    /// Reads a register.
    pub const fn read(&mut self, reg: Reg) -> u8 {
        let polled = self.slave.poll;
        let value = match reg {
            Reg::MasterCommand => self.master.read(false),
            Reg::MasterData => self.master.read(true),
            Reg::SlaveCommand => self.slave.read(false),
            Reg::SlaveData => self.slave.read(true),
            Reg::MasterElcr => self.master.elcr,
            Reg::SlaveElcr => self.slave.elcr,
        };
        if matches!(reg, Reg::SlaveCommand | Reg::SlaveData) && polled {
            self.master.set_lines(self.master.lines & !(1 << CASCADE));
        }
        self.settle();
        value
    }

    /// Writes a register.
    pub const fn write(&mut self, reg: Reg, value: u8) {
        match reg {
            Reg::MasterCommand => self.master.write_command(value),
            Reg::MasterData => self.master.write_data(value),
            Reg::SlaveCommand => self.slave.write_command(value),
            Reg::SlaveData => self.slave.write_data(value),
            Reg::MasterElcr => self.master.elcr = value & self.master.elcr_mask,
            Reg::SlaveElcr => self.slave.elcr = value & self.slave.elcr_mask,
        }
        self.settle();
    }
}

#[cfg(test)]
mod tests;
