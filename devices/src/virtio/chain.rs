//! Descriptor chains: what a driver hands to a device (Virtual I/O Device specification 1.2, section 2.7.5).
//!
//! A chain is read once, whole, into the pieces that the device may read and those that it may write. Whatever a driver
//! puts there, a chain has at most [`MAX_PIECES`] of them, or it is [`Broken`].

use emu_core::addr::Gpa;
use thiserror::Error;

use crate::bus::{DmaError, DmaPort};

/// Most descriptors of a chain, those of an indirect table included.
pub const MAX_PIECES: usize = 1024;

const NEXT: u16 = 1 << 0;
const WRITE: u16 = 1 << 1;
const INDIRECT: u16 = 1 << 2;
/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u64 = 16;

/// A driver did what no driver may: the device asks for its reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// A ring, a descriptor or a place for a result is no memory that the device may reach.
    #[error(transparent)]
    Memory(#[from] DmaError),
    /// A descriptor, or an entry of the available ring, names one beyond the table.
    #[error("descriptor {0} does not exist")]
    NoDescriptor(u16),
    /// A chain that is longer than any may be, or a loop.
    #[error("a descriptor chain has more than {MAX_PIECES} descriptors, or loops")]
    TooLong,
    /// An indirect table inside another, in the middle of a chain, or not whole descriptors.
    #[error("an indirect table of {0} bytes is not well formed")]
    Indirect(u32),
    /// A piece for the device to read follows one for it to write.
    #[error("a chain has a readable piece after a writable one")]
    Order,
    /// The driver claims to have made more chains available than the queue holds.
    #[error("{0} chains are available in a queue of {1}")]
    Overrun(u16, u16),
    /// A queue with a length or an address that it cannot have.
    #[error("queue {0} has no valid length or place")]
    Queue(u16),
    /// A request without a place for what must be answered.
    #[error("a request has no room for its answer")]
    NoRoom,
    /// More data than any request may have.
    #[error("a request has {0} bytes of data")]
    TooMuch(u64),
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    gpa: Gpa,
    len: u32,
}

/// What a driver made available: pieces to read, then pieces to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of the first descriptor: how the driver knows it.
    pub head: u16,
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

/// A descriptor as it lies in memory.
struct Descriptor {
    gpa: Gpa,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(table: Gpa, index: u16, memory: &mut dyn DmaPort) -> Result<Descriptor, Broken> {
        let mut b = [0; DESCRIPTOR as usize];
        memory.read(table.wrapping_add(u64::from(index) * DESCRIPTOR), &mut b)?;
        Ok(Descriptor {
            gpa: Gpa::new(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])),
            len: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            flags: u16::from_le_bytes([b[12], b[13]]),
            next: u16::from_le_bytes([b[14], b[15]]),
        })
    }
}

impl Chain {
    /// Reads the chain that begins at descriptor `head` of a table of `size`.
    ///
    /// # Errors
    /// See [`Broken`].
    pub(super) fn read(table: Gpa, size: u16, head: u16, memory: &mut dyn DmaPort) -> Result<Chain, Broken> {
        let mut chain = Chain { head, ..Chain::default() };
        chain.follow(table, size, head, true, memory)?;
        Ok(chain)
    }

    fn follow(
        &mut self,
        table: Gpa,
        size: u16,
        first: u16,
        indirect: bool,
        memory: &mut dyn DmaPort,
    ) -> Result<(), Broken> {
        let mut index = first;
        // A chain without a loop has no more descriptors than its table.
        for _ in 0..size {
            if index >= size {
                return Err(Broken::NoDescriptor(index));
            }
            let descriptor = Descriptor::read(table, index, memory)?;
            let Descriptor { gpa, len, flags, next } = descriptor;
            if flags & INDIRECT != 0 {
                let entries = u64::from(len) / DESCRIPTOR;
                let whole = u64::from(len).is_multiple_of(DESCRIPTOR) && (1..=MAX_PIECES as u64).contains(&entries);
                if !indirect || flags & NEXT != 0 || !whole {
                    return Err(Broken::Indirect(len));
                }
                return self.follow(gpa, entries as u16, 0, false, memory);
            }
            self.add(Piece { gpa, len }, flags & WRITE != 0)?;
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(Broken::TooLong)
    }

    fn add(&mut self, piece: Piece, writable: bool) -> Result<(), Broken> {
        if self.readable.len() + self.writable.len() >= MAX_PIECES {
            return Err(Broken::TooLong);
        }
        match writable {
            true => self.writable.push(piece),
            false if self.writable.is_empty() => self.readable.push(piece),
            false => return Err(Broken::Order),
        }
        Ok(())
    }

    /// Bytes that the device may read.
    pub fn readable(&self) -> u64 {
        self.readable.iter().map(|piece| u64::from(piece.len)).sum()
    }
    /// Bytes that the device may write.
    pub fn writable(&self) -> u64 {
        self.writable.iter().map(|piece| u64::from(piece.len)).sum()
    }

    /// Fills `bytes` from byte `at` of what may be read on; past its end nothing is filled.
    ///
    /// # Errors
    /// [`DmaError`]: part of it is no memory.
    pub fn get(&self, at: u64, bytes: &mut [u8], memory: &mut dyn DmaPort) -> Result<(), DmaError> {
        let mut rest = bytes;
        each(&self.readable, at, rest.len(), |gpa, len| {
            let (piece, more) = core::mem::take(&mut rest).split_at_mut(len);
            rest = more;
            memory.read(gpa, piece)
        })
    }

    /// Stores `bytes` from byte `at` of what may be written on; what lies past its end is dropped.
    ///
    /// # Errors
    /// [`DmaError`]: part of it is no memory; what comes before may have been stored.
    pub fn put(&self, at: u64, bytes: &[u8], memory: &mut dyn DmaPort) -> Result<(), DmaError> {
        let mut rest = bytes;
        each(&self.writable, at, rest.len(), |gpa, len| {
            let (piece, more) = rest.split_at(len);
            rest = more;
            memory.write(gpa, piece)
        })
    }
}

/// Calls `act` for the parts of `pieces` that `len` bytes from byte `at` on lie in.
fn each(
    pieces: &[Piece],
    at: u64,
    len: usize,
    mut act: impl FnMut(Gpa, usize) -> Result<(), DmaError>,
) -> Result<(), DmaError> {
    let (mut skip, mut left) = (at, len as u64);
    for piece in pieces {
        let size = u64::from(piece.len);
        if skip >= size {
            skip -= size;
            continue;
        }
        let now = (size - skip).min(left);
        if now == 0 {
            break;
        }
        act(piece.gpa.wrapping_add(skip), now as usize)?;
        (skip, left) = (0, left - now);
    }
    Ok(())
}
