//! What each device does to guest memory, counted: how much it moved, and how often it was refused.
//!
//! The bus lends every device the machine's [`DmaPort`] through a counting one, so that no device has to count and none
//! can forget to. A device that was never refused has touched nothing but memory that it may reach; for a confidential
//! guest that is what the guest shares.

use emu_core::addr::Gpa;

use crate::bus::{DmaError, DmaPort};

/// What one device did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DmaCounters {
    /// Bytes that it read.
    pub read_bytes: u64,
    /// Bytes that it wrote.
    pub written_bytes: u64,
    /// Accesses that were refused: no memory there, or the guest's private memory.
    pub refused: u64,
}

/// The machine's port, as one device sees it.
pub(crate) struct Counted<'a> {
    /// The port.
    pub(crate) memory: &'a mut dyn DmaPort,
    /// The device's counters.
    pub(crate) counters: &'a mut DmaCounters,
}

impl DmaPort for Counted<'_> {
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), DmaError> {
        match self.memory.read(gpa, bytes) {
            Ok(()) => self.counters.read_bytes += bytes.len() as u64,
            Err(error) => {
                self.counters.refused += 1;
                return Err(error);
            }
        }
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), DmaError> {
        match self.memory.write(gpa, bytes) {
            Ok(()) => self.counters.written_bytes += bytes.len() as u64,
            Err(error) => {
                self.counters.refused += 1;
                return Err(error);
            }
        }
        Ok(())
    }
}
