//! The machine's memory: the map that PVH passes, a frame allocator, and the functions that the compiler calls.
#![expect(unsafe_code, reason = "physical memory, identity-mapped below 4 GiB")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::paging::Size;

const START_MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const MAX_REGIONS: usize = 32;

#[derive(Clone, Copy, Default)]
pub struct Region {
    pub base: u64,
    pub end: u64,
}

pub struct Map {
    regions: [Region; MAX_REGIONS],
    count: usize,
}

impl Map {
    /// RAM, as `hvm_start_info` at `start_info` tells it; empty when the structure is not one.
    pub fn read(start_info: u64) -> Map {
        let mut map = Map { regions: [Region::default(); MAX_REGIONS], count: 0 };
        if load::<u32>(start_info) != START_MAGIC || load::<u32>(start_info + 4) < 1 {
            return map;
        }
        let table = load::<u64>(start_info + 40);
        for n in 0..u64::from(load::<u32>(start_info + 48)) {
            let entry = table + 24 * n;
            let (base, len, kind) = (load::<u64>(entry), load::<u64>(entry + 8), load::<u32>(entry + 16));
            if kind == RAM && map.count < MAX_REGIONS {
                map.regions[map.count] = Region { base, end: base + len };
                map.count += 1;
            }
        }
        map
    }

    pub fn ram(&self) -> &[Region] {
        &self.regions[..self.count]
    }

    pub fn ram_bytes(&self) -> u64 {
        self.ram().iter().map(|r| r.end - r.base).sum()
    }
}

/// Reads from a mapped address; physical ones are, below 4 GiB.
pub fn load<T: Copy>(address: u64) -> T {
    // SAFETY: mapped; T is a plain integer and any bits are one.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes to a mapped address whose frame is no Rust object's.
pub fn store<T: Copy>(address: u64, value: T) {
    // SAFETY: by the sentence above.
    unsafe { (address as *mut T).write_volatile(value) };
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Hands out RAM from the end of the image to the end of its region, as far as that lies below 1 GiB.
pub fn init(map: &Map) {
    unsafe extern "C" {
        static image_end: u8;
    }
    let start = &raw const image_end as u64;
    let end = map.ram().iter().find(|r| r.base <= start && start < r.end).map_or(start, |r| r.end);
    NEXT.store(start, Relaxed);
    END.store(end.min(1 << 30), Relaxed);
}

/// A page of RAM of its own, 4 KiB or 2 MiB, contents undefined. There is no giving back.
pub fn take(size: Size) -> u64 {
    let start = NEXT.load(Relaxed).next_multiple_of(size.bytes());
    let end = start + size.bytes();
    assert!(end <= END.load(Relaxed), "out of memory");
    NEXT.store(end, Relaxed);
    start
}

/// Everything below is or may be in use; RAM above is not.
pub fn used_end() -> u64 {
    NEXT.load(Relaxed)
}

/// A 4 KiB frame of zeroes.
pub fn take_zeroed() -> u64 {
    let frame = take(Size::K4);
    // SAFETY: the frame is ours alone.
    unsafe { memset(frame as *mut u8, 0, 4096) };
    frame
}

/// # Safety
/// As C's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags))
    };
    to
}

/// # Safety
/// As C's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: forwards reads every byte before it is overwritten.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: by the caller's promise; backwards reads every byte before it is overwritten.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
             inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack))
    };
    to
}

/// # Safety
/// As C's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags))
    };
    to
}

/// # Safety
/// As C's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for n in 0..len {
        // SAFETY: by the caller's promise.
        let (x, y) = unsafe { (*a.add(n), *b.add(n)) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As C's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: by the caller's promise.
    unsafe { memcmp(a, b, len) }
}
