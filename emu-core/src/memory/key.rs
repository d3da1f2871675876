//! Memory encryption: the key under which each frame is written.
//!
//! Modelled: the encryption engine of the memory controller (APM vol. 2, "Secure Memory Encryption" and "Secure Encrypted
//! Virtualization"): each guest has a key, chosen by its ASID; the host's memory is not encrypted. On silicon the bytes in
//! memory are ciphertext and every access names a key. Here a frame holds plaintext of the one key that was used last, its
//! *tag*, so that an access under the same key costs nothing. An access under another key finds the frame [re-keyed]: the
//! bytes become what that key reads of the ciphertext, which is noise unless it comes back to the key that wrote them.
//!
//! The cipher is AES-128 in XTS form, a key pair for each [`Key`] and the system address as tweak, so that equal pages at
//! different places differ. The pairs follow from the key's number and a seed: a run that is repeated reads the same noise.
//!
//! Always true: a frame that goes from one key to others and back, unwritten, holds what it held; ROM and what is no memory
//! stay under [`Key::HOST`]; a memory without encrypted frames reserves address space for tags and nothing else.
//!
//! Left out: integrity (the RMP keeps others from writing), and several mappings of one frame under different keys at once,
//! each with a cached view of its own.
//!
//! [re-keyed]: super::SystemMemory::rekey

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use parking_lot::Mutex;
use thiserror::Error;

use super::arena::{Arena, HostError};
use super::{Bank, HostPage, arena};
use crate::addr::Sfn;
use crate::page::PAGE_SIZE;
use crate::rng::{Consumer, Seed};

/// Who reads and writes a frame in plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(u16);

impl Key {
    /// The host, its devices, and guests without encryption: no cipher.
    pub const HOST: Key = Key(0);
    /// One more than the largest number of a key.
    pub const COUNT: usize = 1024;

    /// The key of the guest with this ASID; `None` for 0, which is the host, and past what an RMP entry can name.
    #[inline]
    pub const fn of_asid(asid: u32) -> Option<Key> {
        if asid > 0 && (asid as usize) < Key::COUNT { Some(Key(asid as u16)) } else { None }
    }
    /// The ASID, 0 for the host.
    #[inline]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// The seed comes too late: frames are encrypted already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("keys were derived already, so their seed is fixed")]
pub struct SeedIsFixed;

/// The tags, the keys, and who changes them.
pub(super) struct Keys {
    /// Four tags to a cell.
    tags: Option<Arena>,
    /// Whether a tag was ever set: until then nothing here costs anything.
    touched: AtomicBool,
    seed: OnceLock<Seed>,
    ciphers: OnceLock<Box<[OnceLock<Box<Cipher>>]>>,
    /// Held while a frame changes its key, by frame number.
    shards: [Mutex<()>; SHARDS],
}

const SHARDS: usize = 64;
const TAGS_PER_CELL: u64 = 4;
/// Frames whose tags fill one page of the arena.
const FRAMES_PER_TAG_PAGE: u64 = PAGE_SIZE as u64 / 2;

impl Keys {
    pub(super) fn reserve(frames: u64) -> Result<Keys, HostError> {
        let tags = match frames {
            0 => None,
            n => Some(Arena::reserve(n.next_multiple_of(FRAMES_PER_TAG_PAGE) * 2)?),
        };
        Ok(Keys {
            tags,
            touched: AtomicBool::new(false),
            seed: OnceLock::new(),
            ciphers: OnceLock::new(),
            shards: [const { Mutex::new(()) }; SHARDS],
        })
    }

    pub(super) fn seed(&self, seed: Seed) -> Result<(), SeedIsFixed> {
        self.seed.set(seed).map_err(|_| SeedIsFixed)
    }

    #[inline]
    pub(super) fn tag(&self, sfn: Sfn) -> Key {
        let cell = self.tags.as_ref().and_then(|tags| tags.cell((sfn.raw() / TAGS_PER_CELL) as usize));
        Key(cell.map_or(0, |cell| (cell.load(Ordering::Acquire) >> shift(sfn)) as u16))
    }

    fn set_tag(&self, sfn: Sfn, key: Key) {
        let Some(cell) = self.tags.as_ref().and_then(|tags| tags.cell((sfn.raw() / TAGS_PER_CELL) as usize)) else {
            return;
        };
        self.touched.store(true, Ordering::Relaxed);
        let shift = shift(sfn);
        let with = |cell: u64| Some(cell & !(0xffff << shift) | u64::from(key.0) << shift);
        // The closure never refuses, so there is no error.
        let _ = cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, with);
    }

    /// Retags a frame whose bytes stay.
    pub(super) fn set(&self, sfn: Sfn, key: Key) {
        let _alone = self.shards[sfn.raw() as usize % SHARDS].lock();
        if self.tag(sfn) != key {
            self.set_tag(sfn, key);
        }
    }

    /// Changes key and bytes of a frame; whether there was anything to do.
    pub(super) fn rekey(&self, sfn: Sfn, page: HostPage, key: Key) -> bool {
        let _alone = self.shards[sfn.raw() as usize % SHARDS].lock();
        let old = self.tag(sfn);
        if old == key {
            return false;
        }
        let mut bytes = [0; PAGE_SIZE];
        arena::read(page, 0, &mut bytes);
        if let Some(cipher) = self.cipher(old) {
            cipher.encrypt(sfn, &mut bytes);
        }
        if let Some(cipher) = self.cipher(key) {
            cipher.decrypt(sfn, &mut bytes);
        }
        arena::write(page, 0, &bytes);
        self.set_tag(sfn, key);
        true
    }

    /// Frames that read as zero for everybody from now on are the host's.
    pub(super) fn clear(&self, first: Sfn, frames: u64) {
        let Some(tags) = self.tags.as_ref().filter(|_| self.touched.load(Ordering::Relaxed)) else { return };
        let (mut at, end) = (first.raw(), first.raw().saturating_add(frames));
        while at < end {
            let whole = (end - at) / FRAMES_PER_TAG_PAGE * FRAMES_PER_TAG_PAGE;
            if at.is_multiple_of(FRAMES_PER_TAG_PAGE) && whole > 0 {
                tags.discard(at * 2, whole * 2);
                at += whole;
            } else {
                self.set(Sfn::new(at), Key::HOST);
                at += 1;
            }
        }
    }

    fn cipher(&self, key: Key) -> Option<&Cipher> {
        if key == Key::HOST {
            return None;
        }
        let ciphers = self.ciphers.get_or_init(|| (0..Key::COUNT).map(|_| OnceLock::new()).collect());
        let seed = *self.seed.get_or_init(|| Seed(0));
        Some(ciphers.get(usize::from(key.0))?.get_or_init(|| Box::new(Cipher::new(seed, key))))
    }
}

const fn shift(sfn: Sfn) -> u32 {
    (sfn.raw() % TAGS_PER_CELL) as u32 * 16
}

/// AES-128 in XTS form (IEEE 1619), with the number of a frame as the number of the data unit.
struct Cipher {
    data: Aes128,
    tweak: Aes128,
}

type Block = Array<u8, aes::cipher::consts::U16>;
const BLOCKS: usize = PAGE_SIZE / 16;

impl Cipher {
    fn new(seed: Seed, key: Key) -> Cipher {
        let mut random = seed.numbered_stream(Consumer::MemoryKeys, u32::from(key.0));
        let mut secret = || {
            let halves = [random.next_u64(), random.next_u64()];
            Aes128::new(&(u128::from(halves[0]) | u128::from(halves[1]) << 64).to_le_bytes().into())
        };
        Cipher { data: secret(), tweak: secret() }
    }

    fn encrypt(&self, sfn: Sfn, page: &mut [u8; PAGE_SIZE]) {
        self.whitened(sfn, page, |data, blocks| data.encrypt_blocks(blocks));
    }

    fn decrypt(&self, sfn: Sfn, page: &mut [u8; PAGE_SIZE]) {
        self.whitened(sfn, page, |data, blocks| data.decrypt_blocks(blocks));
    }

    /// The tweak of a frame is its number, encrypted; that of each block after the first is the one before times x.
    fn whitened(&self, sfn: Sfn, page: &mut [u8; PAGE_SIZE], cipher: impl Fn(&Aes128, &mut [Block])) {
        let mut first = Block::from(u128::from(sfn.raw()).to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        let mut tweaks = [0; BLOCKS];
        for place in &mut tweaks {
            *place = tweak;
            tweak = tweak << 1 ^ (tweak >> 127) * 0x87;
        }
        let mut blocks = [Block::default(); BLOCKS];
        for ((block, bytes), tweak) in blocks.iter_mut().zip(page.as_chunks::<16>().0).zip(tweaks) {
            *block = (u128::from_le_bytes(*bytes) ^ tweak).to_le_bytes().into();
        }
        cipher(&self.data, &mut blocks);
        for ((block, bytes), tweak) in blocks.into_iter().zip(page.as_chunks_mut::<16>().0).zip(tweaks) {
            *bytes = (u128::from_le_bytes(block.into()) ^ tweak).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE 1619, "XTS-AES-128" vector 1 ends after two blocks: keys and data unit number zero, plaintext zero.
    #[test]
    fn the_first_blocks_of_a_page_are_the_standards() {
        let zero = || Aes128::new(&[0; 16].into());
        let cipher = Cipher { data: zero(), tweak: zero() };
        let mut page = [0; PAGE_SIZE];
        cipher.encrypt(Sfn::new(0), &mut page);
        let expected: [u8; 32] = [
            0x91, 0x7c, 0xf6, 0x9e, 0xbd, 0x68, 0xb2, 0xec, 0x9b, 0x9f, 0xe9, 0xa3, 0xea, 0xdd, 0xa6, 0x92, 0xcd, 0x43,
            0xd2, 0xf5, 0x95, 0x98, 0xed, 0x85, 0x8c, 0x02, 0xc2, 0x65, 0x2f, 0xbf, 0x92, 0x2e,
        ];
        assert_eq!(page[..32], expected);
        cipher.decrypt(Sfn::new(0), &mut page);
        assert_eq!(page, [0; PAGE_SIZE]);
    }

    #[test]
    fn keys_follow_from_number_and_seed_alone() {
        let of = |seed, key| {
            let mut page = [0; PAGE_SIZE];
            Cipher::new(Seed(seed), Key(key)).encrypt(Sfn::new(1), &mut page);
            page
        };
        assert_eq!(of(1, 1), of(1, 1));
        assert_ne!(of(1, 1), of(2, 1));
        assert_ne!(of(1, 1), of(1, 2));
    }

    #[test]
    fn tags_of_neighbours_are_apart_and_ranges_are_cleared() {
        let keys = Keys::reserve(3 * FRAMES_PER_TAG_PAGE).unwrap();
        let all = || (0..3 * FRAMES_PER_TAG_PAGE).map(Sfn::new);
        for sfn in all() {
            keys.set(sfn, Key(sfn.raw() as u16 % 1000 + 1));
        }
        for sfn in all() {
            assert_eq!(keys.tag(sfn), Key(sfn.raw() as u16 % 1000 + 1));
        }
        keys.clear(Sfn::new(5), 2 * FRAMES_PER_TAG_PAGE + 3);
        let kept = |sfn: &Sfn| sfn.raw() < 5 || sfn.raw() >= 2 * FRAMES_PER_TAG_PAGE + 8;
        for sfn in all() {
            assert_eq!(keys.tag(sfn) != Key::HOST, kept(&sfn), "{sfn:?}");
        }
        assert_eq!(keys.tag(Sfn::new(u64::MAX)), Key::HOST, "no memory");
        keys.set(Sfn::new(u64::MAX), Key(1));
    }

    #[test]
    fn an_asid_is_a_key_unless_it_is_the_hosts_or_too_wide() {
        assert_eq!(Key::of_asid(0), None);
        assert_eq!(Key::of_asid(1).map(Key::raw), Some(1));
        assert_eq!(Key::of_asid(1024), None);
    }
}
