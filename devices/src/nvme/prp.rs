//! Physical region pages: where a command's data lies (NVM Express 1.4, section 4.3).
//!
//! The first entry may begin within a page; the second is the second page, or points to a list of further ones, whose
//! last entry points to the next list when there is more. A list after the first begins on a page, so that every page
//! of entries brings the walk forward: its work is bounded by the data's length, whatever the entries say.

use emu_core::addr::Gpa;

use super::command::{Command, Status};
use crate::bus::DmaPort;

/// The memory page: CC.MPS is 0.
pub const PAGE: u64 = 4096;
/// Bytes of an entry.
const ENTRY: u64 = 8;

/// Pieces of memory, in order, each within a page.
pub type Pieces = Vec<(Gpa, usize)>;

const fn within(gpa: Gpa) -> u64 {
    gpa.raw() % PAGE
}

/// The pieces that `len` bytes of `command` lie in. The caller bounds `len`.
///
/// # Errors
/// [`Status::InvalidPrpOffset`]; [`Status::DataTransferError`] when a list is not memory.
pub fn pieces(command: &Command, len: u64, memory: &mut dyn DmaPort) -> Result<Pieces, Status> {
    let first = command.prp1();
    if !first.raw().is_multiple_of(4) {
        return Err(Status::InvalidPrpOffset);
    }
    let mut pieces = Pieces::new();
    let mut left = len;
    let mut add = |page: Gpa, left: &mut u64| {
        let size = (PAGE - within(page)).min(*left);
        pieces.push((page, size as usize));
        *left -= size;
    };
    add(first, &mut left);
    if left == 0 {
        return Ok(pieces);
    }
    let second = command.prp2();
    if left <= PAGE {
        if within(second) != 0 {
            return Err(Status::InvalidPrpOffset);
        }
        add(second, &mut left);
        return Ok(pieces);
    }
    if !second.raw().is_multiple_of(ENTRY) {
        return Err(Status::InvalidPrpOffset);
    }
    let mut list = second;
    while left > 0 {
        // As many entries as are needed, or as the page of the list holds.
        let room = (PAGE - within(list)) / ENTRY;
        let needed = left.div_ceil(PAGE);
        let mut bytes = [0; PAGE as usize];
        let bytes = &mut bytes[..(room.min(needed) * ENTRY) as usize];
        memory.read(list, bytes).map_err(|_| Status::DataTransferError)?;
        let entries = bytes.as_chunks::<8>().0.iter().map(|bytes| Gpa::new(u64::from_le_bytes(*bytes)));
        let chained = needed > room;
        for (n, entry) in (1..).zip(entries) {
            if within(entry) != 0 {
                return Err(Status::InvalidPrpOffset);
            }
            if chained && n == room {
                list = entry;
            } else {
                add(entry, &mut left);
            }
        }
    }
    Ok(pieces)
}

/// Stores `bytes` into `pieces`.
///
/// # Errors
/// [`Status::DataTransferError`]: part of it is no memory; what comes before may have been stored.
pub fn scatter(pieces: &Pieces, mut bytes: &[u8], memory: &mut dyn DmaPort) -> Result<(), Status> {
    for &(gpa, len) in pieces {
        let (piece, rest) = bytes.split_at(len.min(bytes.len()));
        memory.write(gpa, piece).map_err(|_| Status::DataTransferError)?;
        bytes = rest;
    }
    Ok(())
}

/// Fills `bytes` from `pieces`.
///
/// # Errors
/// [`Status::DataTransferError`]: part of it is no memory.
pub fn gather(pieces: &Pieces, mut bytes: &mut [u8], memory: &mut dyn DmaPort) -> Result<(), Status> {
    for &(gpa, len) in pieces {
        let (piece, rest) = bytes.split_at_mut(len.min(bytes.len()));
        memory.read(gpa, piece).map_err(|_| Status::DataTransferError)?;
        bytes = rest;
    }
    Ok(())
}
