//! I/O commands of the NVM command set (NVM Express 1.4, section 6).

use super::command::{Command, Outcome, Status};
use super::identify::NAMESPACE;
use super::{MAX_TRANSFER, Nvme, prp};
use crate::block::{DiskError, SECTOR};
use crate::bus::DmaPort;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;
/// Every namespace, where a command takes that.
const ALL_NAMESPACES: u32 = 0xffff_ffff;

impl From<DiskError> for Status {
    fn from(error: DiskError) -> Status {
        match error {
            DiskError::OutOfRange { .. } => Status::LbaOutOfRange,
            DiskError::ReadOnly => Status::WriteProtected,
            DiskError::Image { .. } => Status::InternalError,
        }
    }
}

impl Nvme {
    /// Carries out a command of an I/O queue; each completes at once.
    pub(super) fn input_output(&mut self, command: &Command, memory: &mut dyn DmaPort) -> Option<Outcome> {
        Some(self.transfer(command, memory).map(|()| 0))
    }

    fn transfer(&mut self, command: &Command, memory: &mut dyn DmaPort) -> Result<(), Status> {
        if command.fused_or_sgl() {
            return Err(Status::InvalidField);
        }
        let everything = command.opcode() == FLUSH && command.namespace() == ALL_NAMESPACES;
        if command.namespace() != NAMESPACE && !everything {
            return Err(Status::InvalidNamespace);
        }
        let (first, count) = (command.first_block(), command.blocks());
        match command.opcode() {
            // What was written is in the overlay already; deallocation is a hint.
            FLUSH | DATASET_MANAGEMENT => Ok(()),
            READ => {
                self.disk.check(first, count)?;
                let (pieces, mut bytes) = data(command, memory)?;
                self.disk.read(first, &mut bytes)?;
                prp::scatter(&pieces, &bytes, memory)
            }
            WRITE => {
                self.disk.check_write(first, count)?;
                let (pieces, mut bytes) = data(command, memory)?;
                prp::gather(&pieces, &mut bytes, memory)?;
                Ok(self.disk.write(first, &bytes)?)
            }
            // At most 65536 blocks, 32 MiB.
            WRITE_ZEROES => Ok(self.disk.zero(first, count)?),
            _ => Err(Status::InvalidOpcode),
        }
    }
}

/// Where the command's data lies, and room for it.
fn data(command: &Command, memory: &mut dyn DmaPort) -> Result<(prp::Pieces, Vec<u8>), Status> {
    let len = command.blocks() * SECTOR;
    if len > MAX_TRANSFER {
        return Err(Status::InvalidField);
    }
    Ok((prp::pieces(command, len, memory)?, vec![0; len as usize]))
}
