//! The escape key of the console: Ctrl-a, then a letter.
//!
//! [`EscapeKey`] is a state machine from typed bytes to bytes for the guest and actions for us. It reads nothing and
//! knows no terminal.

/// Ctrl-a.
const ESCAPE: u8 = 0x01;

/// What the keys mean, for people; one line each.
pub const HELP: &str = "Ctrl-a x  end the run\nCtrl-a h  this help\nCtrl-a Ctrl-a  send Ctrl-a to the guest\n";

/// What one typed byte leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The guest's console receives this byte.
    Send(u8),
    /// The run ends.
    Quit,
    /// [`HELP`] is shown.
    Help,
    /// An escape followed by a key without a meaning: nothing is sent, and help is due.
    Unknown(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum State {
    #[default]
    Plain,
    Escaped,
}

/// Watches what is typed for the escape key.
#[derive(Clone, Debug, Default)]
pub struct EscapeKey {
    state: State,
}

impl EscapeKey {
    /// Takes one typed byte. `None`: the escape key itself, whose meaning the next byte decides.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        let state = core::mem::take(&mut self.state);
        match (state, byte) {
            (State::Plain, ESCAPE) => {
                self.state = State::Escaped;
                None
            }
            (State::Plain, byte) => Some(Key::Send(byte)),
            (State::Escaped, ESCAPE) => Some(Key::Send(ESCAPE)),
            (State::Escaped, b'x' | b'X') => Some(Key::Quit),
            (State::Escaped, b'h' | b'H' | b'?') => Some(Key::Help),
            (State::Escaped, byte) => Some(Key::Unknown(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> Vec<Key> {
        let mut escape = EscapeKey::default();
        bytes.iter().filter_map(|&byte| escape.feed(byte)).collect()
    }

    #[test]
    fn every_plain_byte_but_one_reaches_the_guest() {
        for byte in (0..=u8::MAX).filter(|&byte| byte != ESCAPE) {
            assert_eq!(typed(&[byte]), [Key::Send(byte)]);
        }
        assert_eq!(typed(&[ESCAPE]), []);
    }

    #[test]
    fn escaped_keys_act_once() {
        assert_eq!(typed(b"a\x01hb"), [Key::Send(b'a'), Key::Help, Key::Send(b'b')]);
        assert_eq!(typed(b"\x01x"), [Key::Quit]);
        assert_eq!(typed(b"\x01\x01x"), [Key::Send(ESCAPE), Key::Send(b'x')]);
        assert_eq!(typed(b"\x01\x01\x01x"), [Key::Send(ESCAPE), Key::Quit]);
        assert_eq!(typed(b"\x01qq"), [Key::Unknown(b'q'), Key::Send(b'q')]);
    }

    #[test]
    fn the_state_survives_between_reads() {
        let mut escape = EscapeKey::default();
        assert_eq!(escape.feed(ESCAPE), None);
        assert_eq!(escape.clone().feed(b'x'), Some(Key::Quit));
    }
}
