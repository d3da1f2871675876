//! System memory: the bytes behind every system physical address.
//!
//! Memory is a map of banks. The usual bank is one sparse arena of the host's address space, reserved but not
//! committed, so that a terabyte costs nothing until touched. The [`Bank`] trait leaves room for memory that somebody
//! else owns and may take away: such a bank refuses, and the refusal is a [`BusError`], never a crash.
//!
//! A TLB asks for a page's host address once, when an entry is filled ([`SystemMemory::page`]); everything else goes
//! through the checked accessors here. Page tables (guest, nested, shadow), guest pages and the RMP all live here in
//! their architectural format.
//!
//! Always true:
//! - every write through this type to a line that holds translated code is recorded in the [`code`] log;
//! - the bytes of a frame are what the owner of its [`Key`] reads; nobody changes the key but [`SystemMemory::rekey`] and
//!   [`SystemMemory::set_key`];
//! - a host page handed out stays mapped as long as the `SystemMemory` it came from.

mod arena;
pub mod atomic;
pub mod code;
mod key;

use core::ptr::NonNull;
use std::sync::Arc;

use arena::Arena;
pub use arena::{HostError, Scalar};
use code::{CodeWatch, LineMask};
use key::Keys;
pub use key::{Key, SeedIsFixed};
use thiserror::Error;

use crate::addr::{Sfn, Spa};
use crate::page::PAGE_SIZE;
use crate::rng::Seed;

/// No bank answers (part of) an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no memory answers {len_bytes} bytes at {spa}")]
pub struct BusError {
    /// First byte of the access.
    pub spa: Spa,
    /// Its length.
    pub len_bytes: usize,
}

/// A layout of banks that cannot be built.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// A bank does not start and end on a 4 KiB boundary, or is empty, or wraps.
    #[error("bank at {base} of {len_bytes:#x} bytes is not a whole number of 4 KiB frames below 2^52")]
    Misaligned {
        /// Where it was to start.
        base: Spa,
        /// Its length.
        len_bytes: u64,
    },
    /// Two banks claim the same address.
    #[error("banks overlap at {at}")]
    Overlap {
        /// First address claimed twice.
        at: Spa,
    },
    /// The host would not reserve the address space.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Host address of one 4 KiB page of system memory, valid while its [`SystemMemory`] lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage(NonNull<u8>);

impl HostPage {
    /// The address of its first byte.
    #[inline]
    pub const fn as_ptr(self) -> *mut u8 {
        self.0.as_ptr()
    }
}

/// Whether ordinary stores change a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writability {
    /// RAM.
    Ram,
    /// ROM: stores of processors and devices are dropped by the board; [`SystemMemory::load_rom`] fills it.
    Rom,
}

/// A page as a TLB needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageView {
    /// Where it is in the host.
    pub host: HostPage,
    /// Whether stores may go there.
    pub writability: Writability,
}

/// A range of system memory. Offsets are from the bank's own base and whole 4 KiB pages.
pub trait Bank: Send + Sync {
    /// Host address of the page at `offset_bytes`, or `None` while its owner has it unmapped. What is handed out must
    /// stay mapped as long as the bank lives.
    fn host_page(&self, offset_bytes: u64) -> Option<HostPage>;
    /// Gives the host memory behind whole pages back; they read as zero afterwards.
    fn discard(&self, offset_bytes: u64, len_bytes: u64);
}

struct Slot {
    base: u64,
    len: u64,
    writability: Writability,
    bank: Box<dyn Bank>,
}

/// The whole of system memory. Shared by reference: contents change through `&self`, as memory does.
pub struct SystemMemory {
    slots: Vec<Slot>,
    code: CodeWatch,
    keys: Keys,
}

impl core::fmt::Debug for SystemMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|s| (Spa::new(s.base), s.len, s.writability))).finish()
    }
}

/// What a bank is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankSpec {
    /// First address.
    pub base: Spa,
    /// Length, a multiple of 4 KiB.
    pub len_bytes: u64,
    /// RAM or ROM.
    pub writability: Writability,
}

impl SystemMemory {
    /// One bank of RAM of `len_bytes` from address zero: what a hosted machine runs on.
    pub fn flat(len_bytes: u64) -> Result<Arc<SystemMemory>, LayoutError> {
        Self::new(&[BankSpec { base: Spa::new(0), len_bytes, writability: Writability::Ram }])
    }

    /// Sparse banks of our own.
    pub fn new(specs: &[BankSpec]) -> Result<Arc<SystemMemory>, LayoutError> {
        let mut banks: Vec<(BankSpec, Box<dyn Bank>)> = Vec::new();
        for spec in specs {
            Self::check(spec)?;
            banks.push((*spec, Box::new(Arena::reserve(spec.len_bytes)?)));
        }
        Self::with_banks(banks)
    }

    /// Banks of any kind.
    pub fn with_banks(banks: Vec<(BankSpec, Box<dyn Bank>)>) -> Result<Arc<SystemMemory>, LayoutError> {
        let mut slots = Vec::new();
        for (spec, bank) in banks {
            Self::check(&spec)?;
            slots.push(Slot { base: spec.base.raw(), len: spec.len_bytes, writability: spec.writability, bank });
        }
        slots.sort_by_key(|s| s.base);
        if let Some(pair) = slots.windows(2).find(|w| w[0].base + w[0].len > w[1].base) {
            return Err(LayoutError::Overlap { at: Spa::new(pair[1].base) });
        }
        let frames = slots.last().map_or(0, |s| (s.base + s.len) / PAGE_SIZE as u64);
        Ok(Arc::new(SystemMemory { slots, code: CodeWatch::reserve(frames)?, keys: Keys::reserve(frames)? }))
    }

    fn check(spec: &BankSpec) -> Result<(), LayoutError> {
        let (base, len) = (spec.base.raw(), spec.len_bytes);
        let page = PAGE_SIZE as u64;
        let sound = base.is_multiple_of(page)
            && len.is_multiple_of(page)
            && len > 0
            && base.checked_add(len).is_some_and(|end| end <= 1 << 52);
        if sound { Ok(()) } else { Err(LayoutError::Misaligned { base: spec.base, len_bytes: len }) }
    }

    #[inline]
    fn slot(&self, spa: u64) -> Option<&Slot> {
        let slot = match self.slots.as_slice() {
            [only] => only,
            many => many.get(many.partition_point(|s| s.base <= spa).checked_sub(1)?)?,
        };
        (spa.wrapping_sub(slot.base) < slot.len).then_some(slot)
    }

    /// The page of `sfn`, for a TLB entry; `None` where no memory answers.
    #[inline]
    pub fn page(&self, sfn: Sfn) -> Option<PageView> {
        let spa = sfn.raw().checked_mul(PAGE_SIZE as u64)?;
        let slot = self.slot(spa)?;
        let host = slot.bank.host_page(spa - slot.base)?;
        Some(PageView { host, writability: slot.writability })
    }

    /// Loads a value that does not leave its 4 KiB page.
    #[inline]
    pub fn load<T: Scalar>(&self, spa: Spa) -> Result<T, BusError> {
        let refused = BusError { spa, len_bytes: size_of::<T>() };
        let view = self.page(spa.frame()).ok_or(refused)?;
        arena::load(view.host, spa.page_offset()).ok_or(refused)
    }

    /// Stores a value that does not leave its 4 KiB page. A store to ROM is dropped, as the bus drops it.
    #[inline]
    pub fn store<T: Scalar>(&self, spa: Spa, value: T) -> Result<(), BusError> {
        let refused = BusError { spa, len_bytes: size_of::<T>() };
        let view = self.page(spa.frame()).ok_or(refused)?;
        if view.writability == Writability::Ram {
            arena::store(view.host, spa.page_offset(), value).ok_or(refused)?;
            self.code.note_write(spa.frame(), LineMask::covering(spa.page_offset(), size_of::<T>()));
        }
        Ok(())
    }

    /// Replaces a value that does not leave its 4 KiB page by what `change` makes of it, as one step for every processor:
    /// see [`atomic::update`]. ROM keeps its contents, and `change` its result.
    pub fn update<T: Scalar, R>(&self, spa: Spa, change: impl Fn(T) -> (T, R)) -> Result<R, BusError> {
        let refused = BusError { spa, len_bytes: size_of::<T>() };
        let view = self.page(spa.frame()).ok_or(refused)?;
        if view.writability == Writability::Rom {
            return Ok(change(self.load(spa)?).1);
        }
        let result = arena::update(view.host, spa.page_offset(), change).ok_or(refused)?;
        self.code.note_write(spa.frame(), LineMask::covering(spa.page_offset(), size_of::<T>()));
        Ok(result)
    }

    /// Atomically replaces an aligned 8-byte value: how a walker sets A and D bits. `Ok(Err(seen))` when another
    /// writer was first.
    #[inline]
    pub fn compare_exchange_u64(&self, spa: Spa, current: u64, new: u64) -> Result<Result<u64, u64>, BusError> {
        let refused = BusError { spa, len_bytes: 8 };
        let view = self.page(spa.frame()).ok_or(refused)?;
        if view.writability == Writability::Rom {
            return Err(refused);
        }
        let done = arena::compare_exchange_u64(view.host, spa.page_offset(), current, new).ok_or(refused)?;
        if done.is_ok() {
            self.code.note_write(spa.frame(), LineMask::covering(spa.page_offset(), 8));
        }
        Ok(done)
    }

    /// The same for an aligned 4-byte value (legacy 32-bit entries).
    #[inline]
    pub fn compare_exchange_u32(&self, spa: Spa, current: u32, new: u32) -> Result<Result<u32, u32>, BusError> {
        let refused = BusError { spa, len_bytes: 4 };
        let view = self.page(spa.frame()).ok_or(refused)?;
        if view.writability == Writability::Rom {
            return Err(refused);
        }
        let done = arena::compare_exchange_u32(view.host, spa.page_offset(), current, new).ok_or(refused)?;
        if done.is_ok() {
            self.code.note_write(spa.frame(), LineMask::covering(spa.page_offset(), 4));
        }
        Ok(done)
    }

    /// Copies out of memory; the range may span pages and banks.
    pub fn read(&self, spa: Spa, into: &mut [u8]) -> Result<(), BusError> {
        self.for_each_page(spa, into.len(), |page, offset, range| {
            arena::read(page.host, offset, &mut into[range]);
        })
    }

    /// Copies into memory; ROM keeps its contents.
    pub fn write(&self, spa: Spa, from: &[u8]) -> Result<(), BusError> {
        self.write_where(spa, from, |w| w == Writability::Ram)
    }

    /// Copies into memory, ROM included: for loaders.
    pub fn load_rom(&self, spa: Spa, from: &[u8]) -> Result<(), BusError> {
        self.write_where(spa, from, |_| true)
    }

    fn write_where(&self, spa: Spa, from: &[u8], may: impl Fn(Writability) -> bool) -> Result<(), BusError> {
        let mut at = spa.raw();
        self.for_each_page(spa, from.len(), |page, offset, range| {
            let len = range.len();
            if may(page.writability) {
                arena::write(page.host, offset, &from[range]);
                self.code.note_write(Spa::new(at).frame(), LineMask::covering(offset, len));
            }
            at = at.wrapping_add(len as u64);
        })
    }

    /// Makes whole pages read as zero and gives their host memory back. `spa` and `len_bytes` are page-aligned. The pages
    /// are under [`Key::HOST`] afterwards.
    pub fn discard(&self, spa: Spa, len_bytes: u64) -> Result<(), BusError> {
        let refused = BusError { spa, len_bytes: len_bytes as usize };
        let slot = self.slot(spa.raw()).ok_or(refused)?;
        let offset = spa.raw() - slot.base;
        let page = PAGE_SIZE as u64;
        let inside = offset.checked_add(len_bytes).is_some_and(|end| end <= slot.len);
        if !spa.raw().is_multiple_of(page) || !len_bytes.is_multiple_of(page) || !inside {
            return Err(refused);
        }
        slot.bank.discard(offset, len_bytes);
        self.keys.clear(spa.frame(), len_bytes / page);
        self.code.note_discard(spa.frame(), len_bytes / page);
        Ok(())
    }

    /// Under which key the bytes of `sfn` are plain. What is no memory is the host's.
    #[inline]
    pub fn key(&self, sfn: Sfn) -> Key {
        self.keys.tag(sfn)
    }

    /// Makes the bytes of `sfn` what the owner of `key` reads there: encrypts them with the key they are under, decrypts that
    /// with `key`, and notes it. Says whether they changed: whoever cached the page or what is in it must look again. ROM
    /// and what is no memory stay as they are.
    pub fn rekey(&self, sfn: Sfn, key: Key) -> bool {
        if self.keys.tag(sfn) == key {
            return false;
        }
        let Some(view) = self.page(sfn).filter(|view| view.writability == Writability::Ram) else { return false };
        let changed = self.keys.rekey(sfn, view.host, key);
        if changed {
            self.code.note_write(sfn, LineMask::ALL);
        }
        changed
    }

    /// Declares that the bytes of `sfn` are plain under `key` as they are: the firmware encrypts a page in place. ROM and
    /// what is no memory stay as they are.
    pub fn set_key(&self, sfn: Sfn, key: Key) {
        if self.page(sfn).is_some_and(|view| view.writability == Writability::Ram) {
            self.keys.set(sfn, key);
        }
    }

    /// Chooses what the keys are derived from; seed 0 unless somebody does.
    ///
    /// # Errors
    /// [`SeedIsFixed`] once a frame was encrypted, or the seed chosen.
    pub fn seed_keys(&self, seed: Seed) -> Result<(), SeedIsFixed> {
        self.keys.seed(seed)
    }

    /// Translated-code bookkeeping: who holds code where, and which code was overwritten.
    #[inline]
    pub fn code(&self) -> &CodeWatch {
        &self.code
    }

    fn for_each_page(
        &self,
        spa: Spa,
        len_bytes: usize,
        mut visit: impl FnMut(PageView, usize, core::ops::Range<usize>),
    ) -> Result<(), BusError> {
        let refused = BusError { spa, len_bytes };
        // Nothing is touched unless the whole range answers.
        for pass in [Pass::Probe, Pass::Visit] {
            let mut done = 0;
            while done < len_bytes {
                let at = spa.checked_add(done as u64).ok_or(refused)?;
                let offset = at.page_offset();
                let len = (PAGE_SIZE - offset).min(len_bytes - done);
                let page = self.page(at.frame()).ok_or(refused)?;
                if pass == Pass::Visit {
                    visit(page, offset, done..done + len);
                }
                done += len;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Probe,
    Visit,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_banks() -> Arc<SystemMemory> {
        SystemMemory::new(&[
            BankSpec { base: Spa::new(0), len_bytes: 0x3000, writability: Writability::Ram },
            BankSpec { base: Spa::new(0x10_0000), len_bytes: 0x2000, writability: Writability::Rom },
        ])
        .expect("a sound layout")
    }

    #[test]
    fn values_come_back_and_holes_refuse() {
        let memory = two_banks();
        memory.store(Spa::new(0x1ff8), 0x1122_3344_5566_7788_u64).unwrap();
        assert_eq!(memory.load::<u64>(Spa::new(0x1ff8)), Ok(0x1122_3344_5566_7788));
        assert_eq!(memory.load::<u8>(Spa::new(0x1fff)), Ok(0x11));
        assert_eq!(memory.load::<u8>(Spa::new(0x3000)), Err(BusError { spa: Spa::new(0x3000), len_bytes: 1 }));
        assert!(memory.load::<u64>(Spa::new(0x1ffc)).is_err(), "a value that leaves its page is not a single access");
    }

    #[test]
    fn ranges_span_pages_and_are_all_or_nothing() {
        let memory = two_banks();
        let bytes: Vec<u8> = (0..0x1800).map(|i| i as u8).collect();
        memory.write(Spa::new(0x800), &bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        memory.read(Spa::new(0x800), &mut back).unwrap();
        assert_eq!(back, bytes);
        assert!(memory.write(Spa::new(0x2fff), &[1, 2]).is_err());
        assert_eq!(memory.load::<u8>(Spa::new(0x2fff)), Ok(0), "the part that fits was not written either");
    }

    #[test]
    fn rom_drops_stores_but_loads_images() {
        let memory = two_banks();
        let rom = Spa::new(0x10_0010);
        memory.load_rom(rom, b"bios").unwrap();
        memory.store(rom, 0_u8).unwrap();
        memory.write(rom, b"xxxx").unwrap();
        assert_eq!(memory.load::<u32>(rom), Ok(u32::from_le_bytes(*b"bios")));
        assert!(memory.compare_exchange_u64(Spa::new(0x10_0010), 0, 1).is_err());
    }

    #[test]
    fn compare_exchange_reports_what_it_saw() {
        let memory = two_banks();
        let at = Spa::new(0x40);
        assert_eq!(memory.compare_exchange_u64(at, 0, 5), Ok(Ok(0)));
        assert_eq!(memory.compare_exchange_u64(at, 0, 6), Ok(Err(5)));
        assert_eq!(memory.compare_exchange_u32(at, 5, 7), Ok(Ok(5)));
        assert!(memory.compare_exchange_u64(Spa::new(0x44), 0, 1).is_err(), "misaligned");
    }

    #[test]
    fn discard_zeroes_and_bad_layouts_are_refused() {
        let memory = two_banks();
        memory.store(Spa::new(0x1000), 9_u8).unwrap();
        memory.discard(Spa::new(0x1000), 0x1000).unwrap();
        assert_eq!(memory.load::<u8>(Spa::new(0x1000)), Ok(0));
        assert!(memory.discard(Spa::new(0x1000), 0x9000).is_err());
        let ram = |base, len_bytes| BankSpec { base: Spa::new(base), len_bytes, writability: Writability::Ram };
        assert!(matches!(SystemMemory::new(&[ram(0, 0x2000), ram(0x1000, 0x1000)]), Err(LayoutError::Overlap { .. })));
        assert!(matches!(SystemMemory::new(&[ram(1, 0x1000)]), Err(LayoutError::Misaligned { .. })));
        assert!(matches!(SystemMemory::new(&[ram(0, 0)]), Err(LayoutError::Misaligned { .. })));
    }

    fn key(asid: u32) -> Key {
        Key::of_asid(asid).unwrap()
    }

    fn page_of(memory: &SystemMemory, sfn: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        memory.read(Sfn::new(sfn).base(), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_page_comes_back_whatever_keys_it_went_through() {
        let memory = SystemMemory::flat(0x4000).unwrap();
        memory.seed_keys(Seed(7)).unwrap();
        let plain: Vec<u8> = (0..PAGE_SIZE).map(|i| (i / 3) as u8).collect();
        memory.write(Spa::new(0x1000), &plain).unwrap();
        let sfn = Sfn::new(1);
        let mut seen = vec![page_of(&memory, 1), vec![0; PAGE_SIZE]];
        for asid in [1, 2, 1023] {
            assert!(memory.rekey(sfn, key(asid)));
            assert_eq!(memory.key(sfn), key(asid));
            let now = page_of(&memory, 1);
            assert!(!seen.contains(&now), "neither plain nor zero nor what another key reads");
            seen.push(now);
        }
        assert!(!memory.rekey(sfn, key(1023)), "there already");
        assert!(memory.rekey(sfn, Key::HOST));
        assert_eq!(page_of(&memory, 1), plain);
        assert_eq!(memory.seed_keys(Seed(8)), Err(SeedIsFixed));
    }

    #[test]
    fn ciphertext_depends_on_the_place() {
        let memory = SystemMemory::flat(0x4000).unwrap();
        for sfn in [1, 2] {
            memory.set_key(Sfn::new(sfn), key(3));
            memory.rekey(Sfn::new(sfn), Key::HOST);
        }
        let (one, two) = (page_of(&memory, 1), page_of(&memory, 2));
        assert_ne!(one, two);
        let blocks: std::collections::BTreeSet<&[u8]> = one.chunks(16).chain(two.chunks(16)).collect();
        assert_eq!(blocks.len(), 512, "no two blocks of two zero pages are alike");
    }

    #[test]
    fn what_the_firmware_encrypts_in_place_the_guest_reads_in_plain() {
        let memory = SystemMemory::flat(0x4000).unwrap();
        memory.store(Spa::new(0x2000), 0x1234_u64).unwrap();
        memory.set_key(Sfn::new(2), key(9));
        assert_eq!(memory.load(Spa::new(0x2000)), Ok(0x1234_u64));
        memory.rekey(Sfn::new(2), Key::HOST);
        assert_ne!(memory.load(Spa::new(0x2000)), Ok(0x1234_u64), "the host reads noise");
        memory.rekey(Sfn::new(2), key(9));
        assert_eq!(memory.load(Spa::new(0x2000)), Ok(0x1234_u64));
    }

    #[test]
    fn a_new_key_overwrites_translated_code() {
        let memory = SystemMemory::flat(0x4000).unwrap();
        memory.code().watch(Sfn::new(1), LineMask(0b101));
        let mut cursor = code::Cursor::default();
        memory.code().catch_up(&mut cursor);
        memory.set_key(Sfn::new(1), key(1));
        assert!(!memory.code().is_behind(cursor), "the same bytes");
        memory.rekey(Sfn::new(1), key(2));
        let written = code::CodeEvent::Written { sfn: Sfn::new(1), lines: LineMask(0b101) };
        assert_eq!(memory.code().catch_up(&mut cursor), code::Backlog::Events(vec![written]));
    }

    #[test]
    fn rom_holes_and_discarded_pages_are_the_hosts() {
        let memory = two_banks();
        memory.load_rom(Spa::new(0x10_0000), b"bios").unwrap();
        for sfn in [Sfn::new(0x100), Sfn::new(0x50), Sfn::new(u64::MAX)] {
            assert!(!memory.rekey(sfn, key(1)));
            memory.set_key(sfn, key(1));
            assert_eq!(memory.key(sfn), Key::HOST);
        }
        assert_eq!(memory.load(Spa::new(0x10_0000)), Ok(u32::from_le_bytes(*b"bios")));
        memory.rekey(Sfn::new(1), key(1));
        memory.discard(Spa::new(0x1000), 0x1000).unwrap();
        assert_eq!((memory.key(Sfn::new(1)), page_of(&memory, 1)), (Key::HOST, vec![0; PAGE_SIZE]));
    }

    #[test]
    fn threads_that_fight_for_a_frame_lose_nothing() {
        let memory = SystemMemory::flat(0x4000).unwrap();
        memory.write(Spa::new(0x1000), &[0x5a; PAGE_SIZE]).unwrap();
        std::thread::scope(|scope| {
            for asid in 1..4 {
                let memory = &memory;
                scope.spawn(move || (0..200).filter(|_| memory.rekey(Sfn::new(1), key(asid))).count());
            }
        });
        memory.rekey(Sfn::new(1), Key::HOST);
        assert_eq!(page_of(&memory, 1), [0x5a; PAGE_SIZE]);
    }

    #[test]
    fn a_terabyte_costs_nothing() {
        let memory = SystemMemory::flat(1 << 40).expect("address space is cheap");
        memory.store(Spa::new((1 << 40) - 8), 1_u64).unwrap();
        assert_eq!(memory.load::<u64>(Spa::new((1 << 40) - 8)), Ok(1));
    }
}
