//! The sparse arena: a reserved, uncommitted range of the host's address space, and the raw accesses to it.
//!
//! One of the few modules with `unsafe`. What makes it sound: an [`Arena`] owns its mapping from `mmap` to `munmap`,
//! hands out page pointers only inside it, and every accessor here checks that it stays within one page. Contents are
//! shared, plain bytes: any bit pattern is a value of every [`Scalar`].
#![expect(unsafe_code, reason = "guest memory is a host mapping; this module is the only owner of it")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use thiserror::Error;

use super::{Bank, HostPage};
use crate::page::PAGE_SIZE;

/// The host refused address space.
#[derive(Debug, Error)]
#[error("the host refused to reserve {len_bytes:#x} bytes of address space: {cause}")]
pub struct HostError {
    /// How much was asked for.
    pub len_bytes: u64,
    /// What the host said.
    pub cause: std::io::Error,
}

/// Values that memory holds as they are: every bit pattern is valid, no padding, little-endian as the guest sees it.
pub trait Scalar: Copy + sealed::Sealed + 'static {
    /// The value whose bytes, lowest address first, these are; bytes past its size do not count.
    fn from_bytes(bytes: &[u8; 32]) -> Self;
    /// Its bytes, lowest address first, zero-padded.
    fn to_bytes(self) -> [u8; 32];
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! integers {
    ($($T:ty),*) => {$(
        impl sealed::Sealed for $T {}
        impl Scalar for $T {
            #[inline]
            fn from_bytes(bytes: &[u8; 32]) -> $T {
                let mut own = [0; size_of::<$T>()];
                own.copy_from_slice(&bytes[..size_of::<$T>()]);
                <$T>::from_le_bytes(own)
            }
            #[inline]
            fn to_bytes(self) -> [u8; 32] {
                let mut bytes = [0; 32];
                bytes[..size_of::<$T>()].copy_from_slice(&self.to_le_bytes());
                bytes
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, u128);

impl<const N: usize> sealed::Sealed for [u64; N] {}
impl<const N: usize> Scalar for [u64; N] {
    #[inline]
    fn from_bytes(bytes: &[u8; 32]) -> [u64; N] {
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |w, &b| w << 8 | b as u64);
        }
        words
    }
    #[inline]
    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl sealed::Sealed for [u8; 10] {}
impl Scalar for [u8; 10] {
    #[inline]
    fn from_bytes(bytes: &[u8; 32]) -> [u8; 10] {
        let mut own = [0; 10];
        own.copy_from_slice(&bytes[..10]);
        own
    }
    #[inline]
    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..10].copy_from_slice(&self);
        bytes
    }
}

/// A sparse range of memory.
pub(super) struct Arena {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; access goes through raw pointers and atomics.
unsafe impl Send for Arena {}
// SAFETY: as above; contents are shared memory in the sense of the machine being modelled.
unsafe impl Sync for Arena {}

impl Arena {
    pub(super) fn reserve(len_bytes: u64) -> Result<Arena, HostError> {
        let refused = |cause| HostError { len_bytes, cause };
        let len = usize::try_from(len_bytes).map_err(|_| refused(std::io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: a new private anonymous mapping touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(refused(std::io::Error::last_os_error()));
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| refused(std::io::ErrorKind::Other.into()))?;
        Ok(Arena { base, len })
    }

    /// The arena as 64-bit cells, for bookkeeping that grows with what is touched.
    pub(super) fn cell(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.len / 8 {
            return None;
        }
        // SAFETY: inside the mapping (checked), 8-aligned (page-aligned base), zero-initialised by the kernel, and
        // arenas used through `cell` are never handed out as pages.
        Some(unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u64>().add(index)) })
    }
}

impl Bank for Arena {
    #[inline]
    fn host_page(&self, offset_bytes: u64) -> Option<HostPage> {
        let offset = offset_bytes as usize & !(PAGE_SIZE - 1);
        if offset >= self.len {
            return None;
        }
        // SAFETY: `offset` is inside the mapping.
        Some(HostPage(unsafe { self.base.add(offset) }))
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) {
        let (offset, len) = (offset_bytes as usize, len_bytes as usize);
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "discard stays inside the bank");
        // SAFETY: the range is inside our own anonymous mapping; MADV_DONTNEED makes it read as zero.
        let rc = unsafe { libc::madvise(self.base.as_ptr().add(offset).cast(), len, libc::MADV_DONTNEED) };
        assert_eq!(rc, 0, "MADV_DONTNEED on our own anonymous mapping cannot fail");
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody may use a page of it after its bank (`HostPage`'s contract).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[inline]
fn fits<T>(offset: usize) -> bool {
    offset <= PAGE_SIZE - size_of::<T>()
}

#[inline]
pub(super) fn load<T: Scalar>(page: HostPage, offset: usize) -> Option<T> {
    if !fits::<T>(offset) {
        return None;
    }
    // SAFETY: inside one live page (checked); any bits are a `T`; alignment is not assumed.
    Some(unsafe { page.as_ptr().add(offset).cast::<T>().read_unaligned() })
}

#[inline]
pub(super) fn store<T: Scalar>(page: HostPage, offset: usize, value: T) -> Option<()> {
    if !fits::<T>(offset) {
        return None;
    }
    // SAFETY: inside one live, writable page (checked); alignment is not assumed.
    unsafe { page.as_ptr().add(offset).cast::<T>().write_unaligned(value) };
    Some(())
}

pub(super) fn update<T: Scalar, R>(page: HostPage, offset: usize, change: impl Fn(T) -> (T, R)) -> Option<R> {
    if !fits::<T>(offset) {
        return None;
    }
    // SAFETY: inside one live, writable page (checked).
    Some(unsafe { super::atomic::update(page.as_ptr().add(offset).cast::<T>(), change) })
}

#[inline]
pub(super) fn compare_exchange_u64(page: HostPage, offset: usize, current: u64, new: u64) -> Option<Result<u64, u64>> {
    if !fits::<u64>(offset) || !offset.is_multiple_of(8) {
        return None;
    }
    // SAFETY: inside one live page and aligned (checked).
    let cell = unsafe { AtomicU64::from_ptr(page.as_ptr().add(offset).cast()) };
    Some(cell.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst))
}

#[inline]
pub(super) fn compare_exchange_u32(page: HostPage, offset: usize, current: u32, new: u32) -> Option<Result<u32, u32>> {
    if !fits::<u32>(offset) || !offset.is_multiple_of(4) {
        return None;
    }
    // SAFETY: inside one live page and aligned (checked).
    let cell = unsafe { AtomicU32::from_ptr(page.as_ptr().add(offset).cast()) };
    Some(cell.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst))
}

#[inline]
pub(super) fn read(page: HostPage, offset: usize, into: &mut [u8]) {
    assert!(offset + into.len() <= PAGE_SIZE, "a copy stays inside its page");
    // SAFETY: inside one live page (checked); a Rust slice cannot overlap guest memory.
    unsafe { core::ptr::copy_nonoverlapping(page.as_ptr().add(offset), into.as_mut_ptr(), into.len()) };
}

#[inline]
pub(super) fn write(page: HostPage, offset: usize, from: &[u8]) {
    assert!(offset + from.len() <= PAGE_SIZE, "a copy stays inside its page");
    // SAFETY: as for `read`, in the other direction.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), page.as_ptr().add(offset), from.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_at_the_edge_of_a_page() {
        let arena = Arena::reserve(0x2000).unwrap();
        let page = arena.host_page(0x1000).unwrap();
        assert_eq!(store(page, 0xff8, u64::MAX), Some(()));
        assert_eq!(store(page, 0xff9, u64::MAX), None);
        assert_eq!(load::<u32>(page, 0xffc), Some(u32::MAX));
        assert_eq!(load::<u128>(page, 0xff8), None);
        assert!(arena.host_page(0x2000).is_none());
        assert!(arena.cell(0x400).is_none());
        assert!(arena.cell(0x3ff).is_some());
    }

    #[test]
    fn scalars_and_bytes_agree() {
        let bytes: [u8; 32] = core::array::from_fn(|i| i as u8 + 1);
        assert_eq!(u32::from_bytes(&bytes), 0x0403_0201);
        assert_eq!(<[u64; 2]>::from_bytes(&bytes), [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09]);
        assert_eq!(<[u64; 4]>::from_bytes(&bytes).to_bytes(), bytes);
        assert_eq!(<[u8; 10]>::from_bytes(&bytes).to_bytes()[9..12], [10, 0, 0]);
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Arena::reserve(!0xfff).is_err());
    }
}
