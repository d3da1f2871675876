//! The guest's console between the machine and the host's terminal or files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;

use super::args::Report;
use super::escape::{EscapeKey, HELP, Key};
use super::terminal::RawTerminal;
use crate::machine::Machine;

/// Where the guest's output goes and its input comes from.
pub(super) struct Console {
    output: Box<dyn Write>,
    input: Option<Receiver<Vec<u8>>>,
    escape: EscapeKey,
    /// Held for as long as the console is; its presence says that input is a keyboard.
    raw: Option<RawTerminal>,
    /// Where the virtio console's output goes, if not to the same place.
    pub(super) second: Option<File>,
}

/// What the keyboard wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Go on.
    Continue,
    /// End the run.
    Quit,
}

impl Console {
    /// Output to `serial` if given, else to standard output, or to standard error when that is taken by a report.
    pub(super) fn open(serial: Option<&Path>, report: Report) -> io::Result<Console> {
        let output: Box<dyn Write> = match (serial, report) {
            (Some(path), _) => Box::new(File::create(path)?),
            (None, Report::Text) => Box::new(io::stdout()),
            (None, Report::Json) => Box::new(io::stderr()),
        };
        let raw = RawTerminal::enter()?;
        let (sender, receiver) = channel();
        // Reading blocks, and nothing can interrupt it: the thread is left behind when the process ends.
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(len @ 1..) = io::stdin().read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let escape = EscapeKey::default();
        Ok(Console { output, input: Some(receiver), escape, raw, second: None })
    }

    /// Writes what the guest sent, by its serial port and by its virtio console.
    pub(super) fn write(&mut self, serial: &[u8], virtio: &[u8]) -> io::Result<()> {
        self.print(serial)?;
        match &mut self.second {
            Some(file) => file.write_all(virtio),
            None => self.print(virtio),
        }
    }

    fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.output.write_all(bytes)?;
        self.output.flush()
    }

    /// Gives the guest what was typed: to its virtio console when that writes here, else to its serial port.
    pub(super) fn give(&self, machine: &mut Machine, bytes: &[u8]) {
        if self.second.is_some() || !machine.console_input(bytes) {
            machine.serial_input(bytes);
        }
    }

    /// What was typed since the last call, for the guest.
    pub(super) fn typed(&mut self) -> (Vec<u8>, Wish) {
        let mut typed = Vec::new();
        loop {
            match self.input.as_ref().map(Receiver::try_recv) {
                Some(Ok(bytes)) => typed.extend(bytes),
                Some(Err(TryRecvError::Empty)) | None => break,
                Some(Err(TryRecvError::Disconnected)) => self.input = None,
            }
        }
        self.interpret(&typed)
    }

    /// Waits until something is typed. `None`: nothing ever will be.
    pub(super) fn wait(&mut self, at_most: Duration) -> Option<(Vec<u8>, Wish)> {
        match self.input.as_ref()?.recv_timeout(at_most) {
            Ok(bytes) => Some(self.interpret(&bytes)),
            Err(RecvTimeoutError::Timeout) => Some((Vec::new(), Wish::Continue)),
            Err(RecvTimeoutError::Disconnected) => {
                self.input = None;
                None
            }
        }
    }

    fn interpret(&mut self, typed: &[u8]) -> (Vec<u8>, Wish) {
        // Without a terminal there is no escape key: every byte is the guest's.
        if self.raw.is_none() {
            return (typed.to_vec(), Wish::Continue);
        }
        let mut bytes = Vec::new();
        for &byte in typed {
            match self.escape.feed(byte) {
                Some(Key::Send(byte)) => bytes.push(byte),
                Some(Key::Quit) => return (bytes, Wish::Quit),
                Some(Key::Help | Key::Unknown(_)) => eprint!("\n{HELP}"),
                None => {}
            }
        }
        (bytes, Wish::Continue)
    }
}
