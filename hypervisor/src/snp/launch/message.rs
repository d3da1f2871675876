//! Messages between a guest and the firmware: a header, and a payload under AES-256-GCM.
//!
//! Source: SEV-SNP firmware ABI, "Guest Messages", "SNP_GUEST_REQUEST"; Linux `struct snp_guest_msg_hdr`. The nonce is the
//! sequence number, and the header from 30h to 5Fh is authenticated with the payload.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use core::ops::Range;
use emu_core::page::PAGE_SIZE;

use super::bytes::{get, get_u64, put};
use super::secrets::Vmpck;
use super::status::FirmwareStatus;

/// Length of a header.
pub const MESSAGE_HEADER_BYTES: usize = 0x60;
/// Longest payload that fits into a page.
pub const MESSAGE_PAYLOAD_MAX: usize = PAGE_SIZE - MESSAGE_HEADER_BYTES;

/// Places in a header.
mod offset {
    pub(super) const TAG: usize = 0x00;
    pub(super) const SEQUENCE: usize = 0x20;
    pub(super) const ALGORITHM: usize = 0x30;
    pub(super) const HEADER_VERSION: usize = 0x31;
    pub(super) const HEADER_SIZE: usize = 0x32;
    pub(super) const KIND: usize = 0x34;
    pub(super) const VERSION: usize = 0x35;
    pub(super) const SIZE: usize = 0x36;
    pub(super) const VMPCK: usize = 0x3c;
}
/// What is authenticated, and not encrypted.
const AUTHENTICATED: Range<usize> = 0x30..MESSAGE_HEADER_BYTES;
/// AES-256-GCM.
const ALGORITHM: u8 = 1;
const HEADER_VERSION: u8 = 1;
const TAG_BYTES: usize = 16;

/// A message that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number in the sequence of its key: requests are odd, each response is the next.
    pub sequence: u64,
    /// What it is: [`super::request::kind`].
    pub kind: u8,
    /// Version of its payload.
    pub version: u8,
    /// Which of the four keys it is under.
    pub vmpck: u8,
    /// What it says.
    pub payload: Vec<u8>,
}

fn nonce(sequence: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    put(&mut nonce, 0, &sequence.to_le_bytes());
    nonce.into()
}

impl Message {
    /// The kind that a header names, without any check.
    pub(super) fn kind_of(page: &[u8; PAGE_SIZE]) -> u8 {
        page[offset::KIND]
    }

    /// Opens the message in a page with the key that it names.
    pub fn open(page: &[u8; PAGE_SIZE], keys: &[Vmpck; 4]) -> Result<Message, FirmwareStatus> {
        let size = usize::from(u16::from_le_bytes(get(page, offset::SIZE)));
        let header_fits = page[offset::ALGORITHM] == ALGORITHM
            && page[offset::HEADER_VERSION] == HEADER_VERSION
            && get::<2>(page, offset::HEADER_SIZE) == (MESSAGE_HEADER_BYTES as u16).to_le_bytes();
        if !header_fits || size == 0 || !size.is_multiple_of(16) || size > MESSAGE_PAYLOAD_MAX {
            return Err(FirmwareStatus::InvalidParam);
        }
        let vmpck = page[offset::VMPCK];
        let key = keys.get(usize::from(vmpck)).ok_or(FirmwareStatus::InvalidParam)?;
        let sequence = get_u64(page, offset::SEQUENCE);
        let mut payload = page[MESSAGE_HEADER_BYTES..][..size].to_vec();
        let tag: Tag = get::<TAG_BYTES>(page, offset::TAG).into();
        Aes256Gcm::new(&key.0.into())
            .decrypt_inout_detached(&nonce(sequence), &page[AUTHENTICATED], payload.as_mut_slice().into(), &tag)
            .map_err(|_| FirmwareStatus::BadMeasurement)?;
        Ok(Message { sequence, kind: page[offset::KIND], version: page[offset::VERSION], vmpck, payload })
    }

    /// The page that carries the message under `key`. A payload that is too long or not a multiple of 16 bytes is refused as
    /// the other side would refuse it.
    pub fn seal(&self, key: &Vmpck) -> Result<Box<[u8; PAGE_SIZE]>, FirmwareStatus> {
        let size = self.payload.len();
        if size == 0 || !size.is_multiple_of(16) || size > MESSAGE_PAYLOAD_MAX {
            return Err(FirmwareStatus::InvalidParam);
        }
        let mut page = Box::new([0; PAGE_SIZE]);
        put(&mut page[..], offset::SEQUENCE, &self.sequence.to_le_bytes());
        page[offset::ALGORITHM] = ALGORITHM;
        page[offset::HEADER_VERSION] = HEADER_VERSION;
        put(&mut page[..], offset::HEADER_SIZE, &(MESSAGE_HEADER_BYTES as u16).to_le_bytes());
        page[offset::KIND] = self.kind;
        page[offset::VERSION] = self.version;
        put(&mut page[..], offset::SIZE, &(size as u16).to_le_bytes());
        page[offset::VMPCK] = self.vmpck;
        let mut payload = self.payload.clone();
        let tag = Aes256Gcm::new(&key.0.into())
            .encrypt_inout_detached(&nonce(self.sequence), &page[AUTHENTICATED], payload.as_mut_slice().into())
            .map_err(|_| FirmwareStatus::InvalidParam)?;
        put(&mut page[..], offset::TAG, &tag);
        put(&mut page[..], MESSAGE_HEADER_BYTES, &payload);
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [Vmpck; 4] {
        [1, 2, 3, 4].map(|byte| Vmpck([byte; 32]))
    }

    fn message() -> Message {
        Message { sequence: 1, kind: 5, version: 1, vmpck: 2, payload: vec![0x5a; 96] }
    }

    #[test]
    fn what_is_sealed_is_opened_with_the_key_that_it_names() {
        let page = message().seal(&keys()[2]).unwrap();
        assert_eq!(page[0x30..0x38], [1, 1, 0x60, 0, 5, 1, 96, 0]);
        assert_eq!((page[0x20], page[0x3c]), (1, 2));
        assert_eq!(Message::open(&page, &keys()), Ok(message()));
    }

    #[test]
    fn a_changed_byte_is_found_wherever_it_is() {
        let page = message().seal(&keys()[2]).unwrap();
        for at in 0..MESSAGE_HEADER_BYTES + 96 {
            let mut changed = page.clone();
            changed[at] ^= 0x80;
            // Bytes behind the tag's 16, and reserved ones before the authenticated part, are nobody's.
            let nobodys = (TAG_BYTES..0x20).contains(&at) || (0x28..0x30).contains(&at);
            let opened = Message::open(&changed, &keys());
            assert_eq!(opened.is_ok(), nobodys, "{at:#x}: {opened:?}");
        }
    }

    #[test]
    fn headers_that_make_no_sense_are_refused_before_the_tag_is_looked_at() {
        let page = message().seal(&keys()[2]).unwrap();
        let wrong = [(0x30, 0), (0x30, 2), (0x31, 2), (0x32, 0x61), (0x36, 0), (0x36, 97), (0x37, 0x10), (0x3c, 4)];
        for (at, value) in wrong {
            let mut changed = page.clone();
            changed[at] = value;
            assert_eq!(Message::open(&changed, &keys()), Err(FirmwareStatus::InvalidParam), "{at:#x}");
        }
    }

    #[test]
    fn payloads_of_other_lengths_are_not_sealed() {
        for len in [0, 15, 17, MESSAGE_PAYLOAD_MAX + 16] {
            let message = Message { payload: vec![0; len], ..message() };
            assert_eq!(message.seal(&keys()[0]).err(), Some(FirmwareStatus::InvalidParam));
        }
        let longest = Message { payload: vec![1; MESSAGE_PAYLOAD_MAX], vmpck: 0, ..message() };
        assert_eq!(Message::open(&longest.seal(&keys()[0]).unwrap(), &keys()), Ok(longest));
    }
}
