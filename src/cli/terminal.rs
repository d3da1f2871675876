//! The host's terminal in raw mode while a guest has the keyboard.
//!
//! [`RawTerminal`] restores the terminal when it is dropped, and a panic restores it before its message is printed.
//! A process that is killed by a signal does not: the shell's `reset` does.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

/// The settings to go back to while a terminal is raw. One process has one terminal.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// Standard input in raw mode: every key, Ctrl-c included, arrives as the byte it is.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw. `None` when it is not a terminal, or is raw already.
    pub fn enter() -> io::Result<Option<RawTerminal>> {
        let stdin = io::stdin();
        let mut original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner);
        if !stdin.is_terminal() || original.is_some() {
            return Ok(None);
        }
        let settings = tcgetattr(&stdin)?;
        let mut raw = settings.clone();
        raw.make_raw();
        // Our own lines end in a bare newline and should still start at the left.
        raw.output_modes |= OutputModes::OPOST;
        PANIC_HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                previous(info);
            }));
        });
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        *original = Some(settings);
        Ok(Some(RawTerminal(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts back what was there, once.
fn restore() {
    let original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(settings) = original {
        // A terminal that has gone away needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &settings);
    }
}
