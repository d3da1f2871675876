//! Memory for the tests of devices: a range that answers, and within it one that does not.

use core::ops::Range;

use emu_core::addr::Gpa;

use crate::bus::{DmaError, DmaPort};

/// Memory from 0 on.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) bytes: Vec<u8>,
    /// What devices may not reach.
    pub(crate) private: Range<u64>,
    /// Bytes that were moved, to see that work is bounded.
    pub(crate) moved: u64,
}

impl Ram {
    pub(crate) fn new(len: usize) -> Ram {
        Ram { bytes: vec![0; len], private: 0..0, moved: 0 }
    }

    fn range(&mut self, gpa: Gpa, len: usize) -> Result<Range<usize>, DmaError> {
        let (first, refused) = (gpa.raw(), DmaError { gpa, len });
        let end = first.checked_add(len as u64).filter(|&end| end <= self.bytes.len() as u64).ok_or(refused)?;
        if first < self.private.end && self.private.start < end {
            return Err(refused);
        }
        self.moved += len as u64;
        Ok(first as usize..end as usize)
    }

    pub(crate) fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        self.bytes[at as usize..at as usize + N].try_into().expect("as long as asked for")
    }
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
}

impl DmaPort for Ram {
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), DmaError> {
        let range = self.range(gpa, bytes.len())?;
        bytes.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), DmaError> {
        let range = self.range(gpa, bytes.len())?;
        self.bytes[range].copy_from_slice(bytes);
        Ok(())
    }
}
