//! Virtio devices over PCI (Virtual I/O Device specification 1.2).
//!
//! [`VirtioPci`] is the transport; what is behind it implements [`VirtioDevice`]: [`block`], [`console`], [`net`] and
//! [`rng`]. Every device offers VIRTIO_F_ACCESS_PLATFORM: all it reaches of guest memory goes through the [`DmaPort`]
//! that the machine lends, and a guest with private memory has to place its queues and buffers in shared memory.
//!
//! Always true: what a driver puts into its queues costs bounded work and memory; see [`chain`] and [`transport`].

pub mod block;
pub mod chain;
pub mod console;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;

use core::fmt;

use emu_core::time::Instant;

use crate::bus::DmaPort;
use chain::Broken;
use queue::Queue;

pub use transport::VirtioPci;

/// Features that are not of one device (section 6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event indices instead of flags.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// Memory is reached as the platform says, not past it.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// What every device offers.
    pub const EVERY: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM;
}

/// What is behind the transport.
pub trait VirtioDevice: fmt::Debug + Send + 'static {
    /// Its type (section 5).
    const TYPE: u16;
    /// PCI class code.
    const CLASS: u32;
    /// Number of its queues.
    const QUEUES: u16;

    /// Features of its own that it offers.
    fn features(&self) -> u64 {
        0
    }
    /// Fills `bytes` from byte `offset` of its configuration on, with zeros past its end.
    fn read_config(&self, offset: usize, bytes: &mut [u8]) {
        let _ = offset;
        bytes.fill(0);
    }
    /// Does one step on an enabled queue; whether there was one to do.
    ///
    /// # Errors
    /// [`Broken`]: the driver broke the rules, and the device asks for its reset.
    fn work(&mut self, number: u16, queue: &mut Queue, memory: &mut dyn DmaPort, now: Instant) -> Result<bool, Broken>;
    /// The driver resets it. What belongs to the host's side stays.
    fn reset(&mut self) {}
    /// When it has something to do of its own.
    fn next_event(&self) -> Option<Instant> {
        None
    }
    /// Goes on to `now`.
    fn advance(&mut self, now: Instant) {
        let _ = now;
    }
}

/// Fills `into` from byte `offset` of `config` on, with zeros past its end.
fn config_bytes(config: &[u8], offset: usize, into: &mut [u8]) {
    for (n, byte) in into.iter_mut().enumerate() {
        *byte = config.get(offset + n).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests;
