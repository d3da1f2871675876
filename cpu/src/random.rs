//! RDRAND and RDSEED: a stream of the run's seed, one a processor.

use emu_core::rng::Stream;

pub(crate) struct Random(Stream);

impl Random {
    pub fn new(stream: Stream) -> Random {
        Random(stream)
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}
