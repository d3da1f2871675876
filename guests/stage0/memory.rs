//! Physical memory by its address, which is the identity map's too.
#![expect(unsafe_code, reason = "a program that owns the machine reaches memory by address")]

/// Clears a page.
pub fn zero_page(at: u64) {
    // SAFETY: the caller names a page of RAM that is set aside for what it builds there.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, 0x1000) };
}

/// Stores `value` at `at`.
pub fn put<T: Copy>(at: u64, value: T) {
    // SAFETY: as in `zero_page`.
    unsafe { (at as *mut T).write_unaligned(value) };
}

/// Loads a value.
pub fn get<T: Copy>(at: u64) -> T {
    // SAFETY: the loader put what is read there; any bits are an integer.
    unsafe { (at as *const T).read_unaligned() }
}

/// Copies bytes from one part of memory to another.
pub fn copy(from: u64, to: u64, len_bytes: u64) {
    // SAFETY: both are parts of memory that the loader set aside, apart from each other.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len_bytes as usize) };
}
