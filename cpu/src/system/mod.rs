//! What belongs to the operating system: event delivery, segment loads, control registers, privileged instructions.

use crate::cpu::Cpu;
use crate::event::Event;
use crate::exit::{Exit, Trap};
use emu_core::Exception;

impl Cpu {
    /// What must happen before the next instruction: an NMI becomes the event, an open interrupt window an exit.
    pub fn take_pending(&mut self) -> Option<Exit> {
        None
    }

    /// Delivers `event` through the IDT. On an error nothing has changed but memory that delivery will write again.
    pub fn deliver_event(&mut self, _event: Event) -> Result<(), Trap> {
        Err(Trap::Exception(Exception::DoubleFault))
    }

    /// What becomes of `first` when its delivery raised `second`; `None` is a triple fault.
    pub fn combine(&self, _first: Event, _second: Exception) -> Option<Event> {
        None
    }
}
