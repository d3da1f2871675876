//! What a disk holds: an image that is only read, and over it the blocks that the guest wrote.
//!
//! A [`Disk`] is the back end of every block device here. The image is a port ([`DiskImage`]): whoever builds the machine
//! says where the bytes come from, and nothing is ever written to it. What the guest made of the disk is read with
//! [`Disk::read`] when the run has ended.
//!
//! Always true: an operation is refused as a whole before any byte of it is done, unless the image itself fails.

use core::fmt;
use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

/// Bytes of a sector, the unit of every address here.
pub const SECTOR: u64 = 512;
/// Bytes of a block of the overlay.
const BLOCK: usize = 4096;
const SECTORS_A_BLOCK: u64 = BLOCK as u64 / SECTOR;

/// Where a disk's first contents come from. The same offset gives the same bytes throughout a run.
pub trait DiskImage: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    fn len_bytes(&self) -> u64;
    /// Fills `bytes` from `offset` on; the range lies within the image.
    ///
    /// # Errors
    /// What the host said, in words.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String>;
}

impl DiskImage for Vec<u8> {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or("past the end of the image")?);
        Ok(())
    }
}

/// An image of zeros, of this many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blank(pub u64);

impl DiskImage for Blank {
    fn len_bytes(&self) -> u64 {
        self.0
    }
    fn read_at(&self, _offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        bytes.fill(0);
        Ok(())
    }
}

/// What a guest may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DiskAccess {
    /// Read and write.
    #[default]
    ReadWrite,
    /// Read only.
    ReadOnly,
}

/// An operation a disk did not carry out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiskError {
    /// Beyond the last sector.
    #[error("{count} sectors at {first} do not lie on a disk of {sectors}")]
    OutOfRange {
        /// First sector of the operation.
        first: u64,
        /// How many.
        count: u64,
        /// How many the disk has.
        sectors: u64,
    },
    /// The disk may only be read.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The image failed.
    #[error("the image cannot be read at byte {offset}: {cause}")]
    Image {
        /// Where, in bytes.
        offset: u64,
        /// What the host said.
        cause: String,
    },
}

/// An image with an overlay of what was written. A clone shares the image and copies the overlay.
#[derive(Clone, Debug)]
pub struct Disk {
    image: Arc<dyn DiskImage>,
    access: DiskAccess,
    serial: String,
    /// Blocks that were written, by number.
    written: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl Disk {
    /// A disk over `image`, with a serial number of up to 20 ASCII characters. An image that is not whole sectors is
    /// followed by zeros to the end of its last one.
    pub fn new(image: Arc<dyn DiskImage>, access: DiskAccess, serial: &str) -> Disk {
        let serial = serial.chars().filter(char::is_ascii_graphic).take(20).collect();
        Disk { image, access, serial, written: BTreeMap::new() }
    }

    /// How many sectors it has.
    pub fn sectors(&self) -> u64 {
        self.image.len_bytes().div_ceil(SECTOR)
    }
    /// What the guest may do.
    pub fn access(&self) -> DiskAccess {
        self.access
    }
    /// Its serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Whether `count` sectors from `first` on lie on the disk.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`].
    pub fn check(&self, first: u64, count: u64) -> Result<(), DiskError> {
        let sectors = self.sectors();
        match first.checked_add(count) {
            Some(end) if end <= sectors => Ok(()),
            _ => Err(DiskError::OutOfRange { first, count, sectors }),
        }
    }
    /// The same for a write.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::ReadOnly`].
    pub fn check_write(&self, first: u64, count: u64) -> Result<(), DiskError> {
        match self.access {
            DiskAccess::ReadOnly => Err(DiskError::ReadOnly),
            DiskAccess::ReadWrite => self.check(first, count),
        }
    }

    /// Fills `bytes`, whole sectors, from sector `first` on.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`]; [`DiskError::Image`], `bytes` being unspecified then.
    pub fn read(&self, first: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        self.check(first, (bytes.len() as u64).div_ceil(SECTOR))?;
        let mut at = first * SECTOR;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let (piece, more) = rest.split_at_mut(rest.len().min(BLOCK - within));
            match self.written.get(&number) {
                Some(block) => piece.copy_from_slice(&block[within..within + piece.len()]),
                None => self.read_image(at, piece)?,
            }
            at += piece.len() as u64;
            rest = more;
        }
        Ok(())
    }

    fn read_image(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        let there = self.image.len_bytes().saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (from_image, beyond) = bytes.split_at_mut(there);
        beyond.fill(0);
        self.image.read_at(offset, from_image).map_err(|cause| DiskError::Image { offset, cause })
    }

    /// The block that holds byte `at`, to change: a copy of the image's at first.
    fn block(&mut self, number: u64, wholly_overwritten: bool) -> Result<&mut [u8; BLOCK], DiskError> {
        if !self.written.contains_key(&number) {
            let mut block = Box::new([0; BLOCK]);
            if !wholly_overwritten {
                self.read_image(number * BLOCK as u64, &mut block[..])?;
            }
            self.written.insert(number, block);
        }
        Ok(self.written.entry(number).or_insert_with(|| Box::new([0; BLOCK])))
    }

    /// Stores `bytes`, whole sectors, from sector `first` on.
    ///
    /// # Errors
    /// As [`Disk::check_write`]; [`DiskError::Image`] where a block is written in part and the image does not give the
    /// rest, what comes before it being stored.
    pub fn write(&mut self, first: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.check_write(first, (bytes.len() as u64).div_ceil(SECTOR))?;
        let mut at = first * SECTOR;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % BLOCK as u64) as usize;
            let (piece, more) = rest.split_at(rest.len().min(BLOCK - within));
            let block = self.block(at / BLOCK as u64, piece.len() == BLOCK)?;
            block[within..within + piece.len()].copy_from_slice(piece);
            at += piece.len() as u64;
            rest = more;
        }
        Ok(())
    }

    /// Makes `count` sectors zero. The caller bounds `count`: each block takes memory.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn zero(&mut self, first: u64, count: u64) -> Result<(), DiskError> {
        self.check_write(first, count)?;
        let (mut at, end) = (first, first + count);
        while at < end {
            let within = at % SECTORS_A_BLOCK;
            let piece = (SECTORS_A_BLOCK - within).min(end - at);
            let block = self.block(at / SECTORS_A_BLOCK, piece == SECTORS_A_BLOCK)?;
            block[(within * SECTOR) as usize..((within + piece) * SECTOR) as usize].fill(0);
            at += piece;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbered(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n / 512 + n % 7) as u8).collect()
    }

    #[test]
    fn an_image_that_is_not_whole_sectors_ends_in_zeros() {
        let disk = Disk::new(Arc::new(vec![7_u8; 700]), DiskAccess::ReadWrite, "serial number");
        assert_eq!((disk.sectors(), disk.serial()), (2, "serialnumber"));
        let mut bytes = [1; 1024];
        disk.read(0, &mut bytes).expect("on the disk");
        assert!(bytes[..700].iter().all(|&byte| byte == 7) && bytes[700..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn what_does_not_fit_or_may_not_be_written_is_refused_whole() {
        let mut disk = Disk::new(Arc::new(Blank(8192)), DiskAccess::ReadWrite, "");
        let refused = |first, count| Err(DiskError::OutOfRange { first, count, sectors: 16 });
        assert_eq!(disk.write(15, &[1; 1024]), refused(15, 2));
        assert_eq!(disk.zero(u64::MAX, 2), refused(u64::MAX, 2));
        assert_eq!(disk.read(16, &mut [0; 512]), refused(16, 1));
        assert!(disk.written.is_empty());
        let mut disk = Disk::new(Arc::new(Blank(8192)), DiskAccess::ReadOnly, "");
        assert_eq!(disk.write(0, &[1; 512]), Err(DiskError::ReadOnly));
        assert_eq!(disk.zero(0, 1), Err(DiskError::ReadOnly));
    }

    proptest! {
        /// Against a plain array.
        #[test]
        fn an_overlay_reads_as_if_the_image_had_been_written(
            writes in prop::collection::vec((0..60_u64, 0..20_usize, any::<u8>(), any::<bool>()), 0..24),
        ) {
            let mut model = numbered(64 * 512);
            let mut disk = Disk::new(Arc::new(model.clone()), DiskAccess::ReadWrite, "");
            for (first, count, value, zero) in writes {
                let range = first as usize * 512..(first as usize + count) * 512;
                let outcome = if zero {
                    disk.zero(first, count as u64)
                } else {
                    disk.write(first, &vec![value; count * 512])
                };
                prop_assert_eq!(outcome.is_ok(), range.end <= model.len());
                if let Some(part) = model.get_mut(range) {
                    part.fill(if zero { 0 } else { value });
                }
            }
            let mut bytes = vec![0; model.len()];
            disk.read(0, &mut bytes).expect("on the disk");
            prop_assert_eq!(bytes, model);
        }
    }
}
