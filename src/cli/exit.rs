//! Exit codes. Odd ones are the guest's, even ones are ours, so that none can be mistaken for another.

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// The guest wrote this to the debug-exit port: `(value << 1) | 1`, of which the host keeps eight bits.
    Guest(u32),
    /// The guest powered off, or asked for a reset under `--no-reboot`: 0. `bifold check` that found nothing wrong, too.
    Done,
    /// Bad usage, configuration or image: 2.
    Usage,
    /// The guest died: triple fault, termination request, unhandled private fault: 4.
    GuestDied,
    /// An invariant of the emulator broke: 6.
    Invariant,
    /// A limit was reached: 8.
    Limit,
    /// The host refused something, memory or a file: 10.
    HostRefused,
    /// `bifold explore` found an order of steps that breaks an invariant: 12.
    Broke,
}

impl ExitCode {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            ExitCode::Guest(value) => (value << 1) as u8 | 1,
            ExitCode::Done => 0,
            ExitCode::Usage => 2,
            ExitCode::GuestDied => 4,
            ExitCode::Invariant => 6,
            ExitCode::Limit => 8,
            ExitCode::HostRefused => 10,
            ExitCode::Broke => 12,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_has_the_odd_codes() {
        for (value, code) in [(0, 1), (1, 3), (0x10, 0x21), (0x7f, 0xff), (0x80, 1), (u32::MAX, 0xff)] {
            assert_eq!(ExitCode::Guest(value).code(), code);
        }
        let ours = [ExitCode::Done, ExitCode::Usage, ExitCode::GuestDied, ExitCode::Invariant, ExitCode::Limit];
        assert_eq!(ours.map(ExitCode::code), [0, 2, 4, 6, 8]);
        assert_eq!([ExitCode::HostRefused, ExitCode::Broke].map(ExitCode::code), [10, 12]);
    }
}
