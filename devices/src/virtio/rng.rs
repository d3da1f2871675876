//! The entropy device (section 5.4): random bytes of the machine's own seed, so that a run repeats.

use emu_core::rng::Stream;
use emu_core::time::Instant;

use super::VirtioDevice;
use super::chain::Broken;
use super::queue::Queue;
use crate::bus::DmaPort;

/// Most bytes that one request is given; the driver asks again.
const MOST: u64 = 4096;

/// The device.
#[derive(Debug)]
pub struct VirtioRng {
    stream: Stream,
}

impl VirtioRng {
    /// A device that draws from `stream`.
    pub fn new(stream: Stream) -> VirtioRng {
        VirtioRng { stream }
    }
}

impl VirtioDevice for VirtioRng {
    const TYPE: u16 = 4;
    const CLASS: u32 = 0x10_0000;
    const QUEUES: u16 = 1;

    fn work(
        &mut self,
        _number: u16,
        queue: &mut Queue,
        memory: &mut dyn DmaPort,
        _now: Instant,
    ) -> Result<bool, Broken> {
        let Some(chain) = queue.next(memory)? else { return Ok(false) };
        let len = chain.writable().min(MOST) as usize;
        let mut bytes = vec![0; len.next_multiple_of(8)];
        for word in bytes.as_chunks_mut::<8>().0 {
            *word = self.stream.next_u64().to_le_bytes();
        }
        chain.put(0, &bytes[..len], memory)?;
        queue.give_back(&chain, len as u32, memory)?;
        Ok(true)
    }
}
