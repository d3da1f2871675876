//! The network device (section 5.1): one pair of queues, no offloads.
//!
//! What is on the wire is a [`Backend`]: it takes the frames that the guest sends and has frames for it. Frames that find
//! no room are lost, as on a wire.

mod user;

use std::collections::VecDeque;

use emu_core::time::Instant;

use super::chain::{Broken, Chain};
use super::queue::Queue;
use super::{VirtioDevice, config_bytes};
use crate::bus::DmaPort;

pub use user::{GATEWAY, GUEST, UserNetwork};

/// Features (section 5.1.3).
mod feature {
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const STATUS: u64 = 1 << 16;
}

const RECEIVE: u16 = 0;
/// Bytes of the header before each frame (VIRTIO_F_VERSION_1).
const HEADER: u64 = 12;
/// Longest frame: 1500 bytes and an Ethernet header.
pub const MAX_FRAME: u64 = 1514;
/// Most frames that wait for the guest.
const MAX_WAITING: usize = 256;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of the `n`-th device of a machine: locally administered, the same in every run.
    pub const fn of_device(n: u8) -> Mac {
        Mac([0x52, 0x54, 0x00, 0xbf, 0x00, n])
    }
}

/// What a network device is connected to.
pub trait Backend: core::fmt::Debug + Send {
    /// The guest sends a frame.
    fn send(&mut self, frame: &[u8], now: Instant);
    /// The next frame for the guest.
    fn receive(&mut self) -> Option<Vec<u8>>;
    /// When it has something to do of its own.
    fn next_event(&self) -> Option<Instant> {
        None
    }
    /// Goes on to `now`.
    fn advance(&mut self, now: Instant) {
        let _ = now;
    }
}

/// Every frame comes back as it was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loopback(VecDeque<Vec<u8>>);

impl Backend for Loopback {
    fn send(&mut self, frame: &[u8], _now: Instant) {
        if self.0.len() < MAX_WAITING {
            self.0.push_back(frame.to_vec());
        }
    }
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.0.pop_front()
    }
}

/// The device.
#[derive(Debug)]
pub struct VirtioNet {
    mac: Mac,
    backend: Box<dyn Backend>,
    /// A frame that found no buffer yet.
    next: Option<Vec<u8>>,
}

impl VirtioNet {
    /// A device of address `mac` on `backend`.
    pub fn new(mac: Mac, backend: Box<dyn Backend>) -> VirtioNet {
        VirtioNet { mac, backend, next: None }
    }

    fn transmit(&mut self, chain: &Chain, memory: &mut dyn DmaPort, now: Instant) -> Result<(), Broken> {
        let len = chain.readable().checked_sub(HEADER).ok_or(Broken::NoRoom)?;
        // Longer than the device said it takes: lost.
        if (1..=MAX_FRAME).contains(&len) {
            let mut frame = vec![0; len as usize];
            chain.get(HEADER, &mut frame, memory)?;
            self.backend.send(&frame, now);
        }
        Ok(())
    }

    /// Stores `frame` with its header; how many bytes.
    fn deliver(frame: &[u8], chain: &Chain, memory: &mut dyn DmaPort) -> Result<u32, Broken> {
        let len = HEADER + frame.len() as u64;
        if chain.writable() < len {
            // The driver has to give buffers that hold a frame.
            return Err(Broken::NoRoom);
        }
        let mut header = [0; HEADER as usize];
        // num_buffers.
        header[10] = 1;
        chain.put(0, &header, memory)?;
        chain.put(HEADER, frame, memory)?;
        Ok(len as u32)
    }
}

impl VirtioDevice for VirtioNet {
    const TYPE: u16 = 1;
    const CLASS: u32 = 0x02_0000;
    const QUEUES: u16 = 2;

    fn features(&self) -> u64 {
        feature::MAC | feature::STATUS
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) {
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.mac.0);
        // VIRTIO_NET_S_LINK_UP.
        config[6] = 1;
        config_bytes(&config, offset, bytes);
    }

    fn work(&mut self, number: u16, queue: &mut Queue, memory: &mut dyn DmaPort, now: Instant) -> Result<bool, Broken> {
        if number != RECEIVE {
            let Some(chain) = queue.next(memory)? else { return Ok(false) };
            self.transmit(&chain, memory, now)?;
            queue.give_back(&chain, 0, memory)?;
            return Ok(true);
        }
        if self.next.is_none() {
            self.next = self.backend.receive();
        }
        if self.next.is_none() {
            return Ok(false);
        }
        let Some(chain) = queue.next(memory)? else { return Ok(false) };
        let frame = self.next.take().unwrap_or_default();
        let written = VirtioNet::deliver(&frame, &chain, memory)?;
        queue.give_back(&chain, written, memory)?;
        Ok(true)
    }

    fn reset(&mut self) {
        self.next = None;
    }
    fn next_event(&self) -> Option<Instant> {
        self.backend.next_event()
    }
    fn advance(&mut self, now: Instant) {
        self.backend.advance(now);
    }
}
