//! The i8042 keyboard controller with nothing plugged in (IBM PC/AT Technical Reference, "Keyboard Controller").
//!
//! Enough for probing to come to an end at once: every command that expects an answer gets one, a byte for the
//! keyboard is answered with "resend" and the time-out bit, and the auxiliary port fails its test. The output
//! port's two useful pins, A20 and the processor's reset, appear as values.

/// What a write asked of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The reset pin was pulled low.
    Reset,
    /// The A20 pin was driven.
    A20(bool),
}

/// A port of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// 0x60.
    Data,
    /// 0x64: status when read, command when written.
    Command,
}

/// Which of the two a port is.
pub const fn decode(port: u16) -> Option<Reg> {
    match port {
        0x60 => Some(Reg::Data),
        0x64 => Some(Reg::Command),
        _ => None,
    }
}

const STATUS_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_TIMEOUT: u8 = 1 << 6;
const CTR_KEYBOARD_IRQ: u8 = 1 << 0;

/// What the next byte at 0x60 is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Keyboard,
    CommandByte,
    OutputPort,
    Echo,
    Aux,
}

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I8042 {
    command_byte: u8,
    output_port: u8,
    output: Option<u8>,
    last_data: u8,
    timeout: bool,
    last_was_command: bool,
    expect: Expect,
}

impl Default for I8042 {
    fn default() -> I8042 {
        I8042::new()
    }
}

impl I8042 {
    /// After firmware's self-test: A20 on.
    pub const fn new() -> I8042 {
        I8042 {
            command_byte: 0x74,
            output_port: 0xcf,
            output: None,
            last_data: 0,
            timeout: false,
            last_was_command: false,
            expect: Expect::Keyboard,
        }
    }

    /// The level of IRQ 1.
    pub const fn interrupt(&self) -> bool {
        self.output.is_some() && self.command_byte & CTR_KEYBOARD_IRQ != 0
    }

    const fn answer(&mut self, byte: u8) -> Effect {
        self.output = Some(byte);
        self.timeout = false;
        Effect::None
    }

    /// Reads a port. An empty output buffer repeats its last byte.
    pub const fn read(&mut self, reg: Reg) -> u8 {
        match reg {
            Reg::Data => {
                if let Some(byte) = self.output.take() {
                    self.last_data = byte;
                }
                self.timeout = false;
                self.last_data
            }
            Reg::Command => {
                STATUS_SYSTEM
                    | STATUS_UNLOCKED
                    | if self.output.is_some() { STATUS_FULL } else { 0 }
                    | if self.last_was_command { STATUS_COMMAND } else { 0 }
                    | if self.timeout { STATUS_TIMEOUT } else { 0 }
            }
        }
    }

    /// Writes a port.
    pub const fn write(&mut self, reg: Reg, value: u8) -> Effect {
        match reg {
            Reg::Data => {
                self.last_was_command = false;
                self.data(value)
            }
            Reg::Command => {
                self.last_was_command = true;
                self.expect = Expect::Keyboard;
                self.command(value)
            }
        }
    }

    const fn command(&mut self, command: u8) -> Effect {
        match command {
            0x20 => return self.answer(self.command_byte),
            0x60 => self.expect = Expect::CommandByte,
            0xa7 => self.command_byte |= 1 << 5,
            0xa8 => self.command_byte &= !(1 << 5),
            // Interface tests: the auxiliary clock line is stuck low, the keyboard's is fine.
            0xa9 => return self.answer(0x01),
            0xab => return self.answer(0x00),
            0xaa => {
                self.command_byte |= 1 << 4;
                return self.answer(0x55);
            }
            0xad => self.command_byte |= 1 << 4,
            0xae => self.command_byte &= !(1 << 4),
            0xc0 => return self.answer(0x80),
            0xd0 => return self.answer(self.output_port),
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 | 0xd3 => self.expect = Expect::Echo,
            0xd4 => self.expect = Expect::Aux,
            0xdd => return self.drive(self.output_port & !2),
            0xdf => return self.drive(self.output_port | 2),
            // Pulse the output port's low four bits where the command has zeros; bit 0 is the reset pin.
            0xf0..=0xff if command & 1 == 0 => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }

    const fn data(&mut self, value: u8) -> Effect {
        match core::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::CommandByte => self.command_byte = value,
            Expect::OutputPort => return self.drive(value),
            // Both loop-backs arrive as keyboard data: there is no auxiliary port to mark them as its own.
            Expect::Echo => return self.answer(value),
            Expect::Keyboard | Expect::Aux => {
                self.output = Some(0xfe);
                self.timeout = true;
            }
        }
        Effect::None
    }

    const fn drive(&mut self, value: u8) -> Effect {
        self.output_port = value;
        if value & 1 == 0 { Effect::Reset } else { Effect::A20(value & 2 != 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(controller: &mut I8042, command: u8) -> Option<u8> {
        controller.write(Reg::Command, command);
        (controller.read(Reg::Command) & STATUS_FULL != 0).then(|| controller.read(Reg::Data))
    }

    #[test]
    fn self_tests_answer_and_the_aux_port_is_absent() {
        let mut c = I8042::new();
        assert_eq!(ask(&mut c, 0xaa), Some(0x55));
        assert_eq!(ask(&mut c, 0xab), Some(0x00));
        assert_eq!(ask(&mut c, 0xa9), Some(0x01));
        // Loop-back comes without the auxiliary mark, which ends Linux's probe.
        c.write(Reg::Command, 0xd3);
        c.write(Reg::Data, 0x5a);
        assert_eq!(c.read(Reg::Command) & 0x21, 0x01);
        assert_eq!(c.read(Reg::Data), 0x5a);
    }

    #[test]
    fn command_byte_is_kept_and_gates_the_interrupt() {
        let mut c = I8042::new();
        for value in [0x00, 0x45, 0xff] {
            c.write(Reg::Command, 0x60);
            c.write(Reg::Data, value);
            assert_eq!(ask(&mut c, 0x20), Some(value));
            c.write(Reg::Data, 0xf2);
            assert_eq!(c.interrupt(), value & 1 != 0);
            assert_eq!(c.read(Reg::Command) & STATUS_TIMEOUT, STATUS_TIMEOUT);
            assert_eq!(c.read(Reg::Data), 0xfe);
            assert!(!c.interrupt());
        }
    }

    #[test]
    fn of_all_commands_exactly_the_pulses_of_pin_zero_reset() {
        for command in 0..=255 {
            let effect = I8042::new().write(Reg::Command, command);
            assert_eq!(effect == Effect::Reset, command >= 0xf0 && command & 1 == 0, "{command:#x}");
        }
    }

    #[test]
    fn output_port_drives_a20() {
        let mut c = I8042::new();
        c.write(Reg::Command, 0xd1);
        assert_eq!(c.write(Reg::Data, 0xdd), Effect::A20(false));
        assert_eq!(ask(&mut c, 0xd0), Some(0xdd));
        assert_eq!(c.write(Reg::Command, 0xdf), Effect::A20(true));
        c.write(Reg::Command, 0xd1);
        assert_eq!(c.write(Reg::Data, 0xde), Effect::Reset);
    }
}
