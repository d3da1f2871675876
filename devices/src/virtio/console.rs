//! The console (section 5.3): port 0 alone, bytes both ways.

use std::collections::VecDeque;

use emu_core::time::Instant;

use super::VirtioDevice;
use super::chain::Broken;
use super::queue::Queue;
use crate::bus::DmaPort;

const RECEIVE: u16 = 0;
/// Most bytes of one transmission; a driver sends pages at the most.
const MOST: u64 = 1 << 20;

/// The device. What the host has for the guest and what the guest sent lie here until either takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtioConsole {
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl VirtioConsole {
    /// Bytes for the guest.
    pub fn input(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
    }
    /// Takes what the guest sent since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.output)
    }
    /// Whether [`VirtioConsole::take_output`] has anything.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }
}

impl VirtioDevice for VirtioConsole {
    const TYPE: u16 = 3;
    const CLASS: u32 = 0x07_8000;
    const QUEUES: u16 = 2;

    fn work(
        &mut self,
        number: u16,
        queue: &mut Queue,
        memory: &mut dyn DmaPort,
        _now: Instant,
    ) -> Result<bool, Broken> {
        if number == RECEIVE && self.input.is_empty() {
            return Ok(false);
        }
        let Some(chain) = queue.next(memory)? else { return Ok(false) };
        let mut written = 0;
        if number == RECEIVE {
            let len = chain.writable().min(self.input.len() as u64) as usize;
            let bytes: Vec<u8> = self.input.iter().take(len).copied().collect();
            chain.put(0, &bytes, memory)?;
            self.input.drain(..len);
            written = len as u32;
        } else {
            let len = chain.readable();
            if len > MOST {
                return Err(Broken::TooMuch(len));
            }
            let mut bytes = vec![0; len as usize];
            chain.get(0, &mut bytes, memory)?;
            self.output.extend(bytes);
        }
        queue.give_back(&chain, written, memory)?;
        Ok(true)
    }
}
