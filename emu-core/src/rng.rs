//! Seeded randomness: one seed a run, one independent stream a consumer.
//!
//! Adding a consumer or drawing more in one never changes what another draws.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The seed of a run, as `--seed` takes it and every summary prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Seed(pub u64);

/// Who draws. The numbers are part of what a seed means: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Consumer {
    /// The order and length of vCPU turns.
    Scheduler = 1,
    /// RDRAND and RDSEED of vCPU `n` are streams `n << 8 | 2`.
    CpuRandom = 2,
    /// Device models.
    Devices = 3,
    /// Host-side policy choices.
    Hypervisor = 4,
    /// Faults on purpose.
    Injection = 5,
    /// The order in which an exploration lets threads run.
    Exploration = 6,
    /// What the VMM does at random.
    Vmm = 7,
    /// The memory key of ASID `n` is stream `n << 8 | 8`.
    MemoryKeys = 8,
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Seed {
    /// The stream of `consumer`.
    pub fn stream(self, consumer: Consumer) -> Stream {
        self.numbered_stream(consumer, 0)
    }
    /// The stream of the `n`-th of several equal consumers (a vCPU, a device instance).
    pub fn numbered_stream(self, consumer: Consumer, n: u32) -> Stream {
        let mut rng = ChaCha8Rng::seed_from_u64(self.0);
        rng.set_stream((n as u64) << 8 | consumer as u64);
        Stream(rng)
    }
}

impl Stream {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Multiply-shift; the bias is below 2^-32 for every bound a simulation uses.
        (self.0.next_u64() as u128 * bound as u128 >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_independent_and_repeat() {
        let draw = |consumer, n| {
            let mut s = Seed(7).numbered_stream(consumer, n);
            [s.next_u64(), s.next_u64()]
        };
        assert_eq!(draw(Consumer::CpuRandom, 1), draw(Consumer::CpuRandom, 1));
        assert_ne!(draw(Consumer::CpuRandom, 1), draw(Consumer::CpuRandom, 0));
        assert_ne!(draw(Consumer::CpuRandom, 0), draw(Consumer::Scheduler, 0));
    }

    #[test]
    fn bounded_draws_stay_below() {
        let mut s = Seed(1).stream(Consumer::Scheduler);
        assert!((0..1000).all(|_| s.below(7) < 7));
        assert_eq!(s.below(0), 0);
    }
}
