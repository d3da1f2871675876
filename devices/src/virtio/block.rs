//! The block device (section 5.2) over a [`Disk`].
//!
//! One queue; each request is carried out and answered when it is taken. Memory that the device may not reach fails the
//! request (VIRTIO_BLK_S_IOERR); where even the status cannot be stored, the device asks for its reset.

use emu_core::time::Instant;

use super::chain::{Broken, Chain};
use super::queue::Queue;
use super::{VirtioDevice, config_bytes};
use crate::block::{Disk, DiskAccess, SECTOR};
use crate::bus::DmaPort;

/// Features (section 5.2.3).
mod feature {
    pub(super) const SIZE_MAX: u64 = 1 << 1;
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Most bytes of a piece of data, and most pieces.
const SIZE_MAX: u32 = 64 << 10;
const SEG_MAX: u32 = 126;
/// Most data of a request.
const MAX_DATA: u64 = SIZE_MAX as u64 * SEG_MAX as u64;
/// Most sectors that one request discards or makes zero: 32 MiB.
const MAX_ZEROES: u32 = 65_536;
const HEADER: u64 = 16;

/// Request types.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// Why a request failed, as its status byte says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Failure {
    InputOutput = 1,
    Unsupported = 2,
}

impl<E: core::error::Error> From<E> for Failure {
    fn from(_: E) -> Failure {
        Failure::InputOutput
    }
}

/// The device.
#[derive(Debug)]
pub struct VirtioBlock {
    disk: Disk,
}

impl VirtioBlock {
    /// A device over `disk`.
    pub fn new(disk: Disk) -> VirtioBlock {
        VirtioBlock { disk }
    }
    /// What it holds.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Carries a request out; how many bytes of its answer were stored.
    fn carry_out(&mut self, chain: &Chain, memory: &mut dyn DmaPort) -> Result<u64, Failure> {
        if chain.readable() < HEADER {
            return Err(Failure::InputOutput);
        }
        let mut header = [0; HEADER as usize];
        chain.get(0, &mut header, memory)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
        // The last writable byte is the status.
        let (given, room) = (chain.readable() - HEADER, chain.writable() - 1);
        match kind {
            kind::IN => {
                let mut bytes = vec![0; whole_sectors(room)?];
                self.disk.read(sector, &mut bytes)?;
                chain.put(0, &bytes, memory)?;
                Ok(room)
            }
            kind::OUT => {
                let mut bytes = vec![0; whole_sectors(given)?];
                self.disk.check_write(sector, given / SECTOR)?;
                chain.get(HEADER, &mut bytes, memory)?;
                self.disk.write(sector, &bytes)?;
                Ok(0)
            }
            // What was written is in the overlay already.
            kind::FLUSH => Ok(0),
            kind::GET_ID => {
                let mut id = [0; 20];
                let serial = self.disk.serial().as_bytes();
                id[..serial.len()].copy_from_slice(serial);
                let len = room.min(20);
                chain.put(0, &id[..len as usize], memory)?;
                Ok(len)
            }
            kind::DISCARD | kind::WRITE_ZEROES => {
                let mut range = [0; 16];
                if given != 16 {
                    return Err(Failure::Unsupported);
                }
                chain.get(HEADER, &mut range, memory)?;
                let [first @ .., a, b, c, d, e, f, g, h] = range;
                let (first, count) = (u64::from_le_bytes(first), u32::from_le_bytes([a, b, c, d]));
                let flags = u32::from_le_bytes([e, f, g, h]);
                // Bit 0 allows deallocation, which is up to the device; no other exists.
                if flags & !1 != 0 || count > MAX_ZEROES || kind == kind::DISCARD && flags != 0 {
                    return Err(Failure::Unsupported);
                }
                self.disk.zero(first, u64::from(count))?;
                Ok(0)
            }
            _ => Err(Failure::Unsupported),
        }
    }
}

/// `len`, if it is whole sectors and no more than a request may have.
fn whole_sectors(len: u64) -> Result<usize, Failure> {
    if len > MAX_DATA || !len.is_multiple_of(SECTOR) { Err(Failure::InputOutput) } else { Ok(len as usize) }
}

impl VirtioDevice for VirtioBlock {
    const TYPE: u16 = 2;
    const CLASS: u32 = 0x01_8000;
    const QUEUES: u16 = 1;

    fn features(&self) -> u64 {
        let always = feature::SIZE_MAX | feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        match self.disk.access() {
            DiskAccess::ReadOnly => always | feature::RO,
            DiskAccess::ReadWrite => always | feature::DISCARD | feature::WRITE_ZEROES,
        }
    }

    fn read_config(&self, offset: usize, bytes: &mut [u8]) {
        let mut config = [0; 60];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &self.disk.sectors().to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // Discarding: at most, in how many ranges, aligned to; making zero: at most, in how many ranges, may deallocate.
        for (n, value) in [MAX_ZEROES, 1, 1, MAX_ZEROES, 1, 1].iter().enumerate() {
            put(36 + 4 * n, &value.to_le_bytes());
        }
        config_bytes(&config, offset, bytes);
    }

    fn work(
        &mut self,
        _number: u16,
        queue: &mut Queue,
        memory: &mut dyn DmaPort,
        _now: Instant,
    ) -> Result<bool, Broken> {
        let Some(chain) = queue.next(memory)? else { return Ok(false) };
        let place = chain.writable().checked_sub(1).ok_or(Broken::NoRoom)?;
        let (status, written) = match self.carry_out(&chain, memory) {
            Ok(written) => (0, written),
            Err(failure) => (failure as u8, 0),
        };
        chain.put(place, &[status], memory)?;
        queue.give_back(&chain, written as u32 + 1, memory)?;
        Ok(true)
    }
}
