//! Little-endian fields in byte structures.

/// Copies `value` to `at`. The structures are fixed, so that a place outside is a mistake in a layout.
pub(super) fn put(into: &mut [u8], at: usize, value: &[u8]) {
    into[at..at + value.len()].copy_from_slice(value);
}

/// The `N` bytes at `at`, 0 where the structure ends before them.
pub(super) fn get<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(found) = from.get(at..at + N) {
        bytes.copy_from_slice(found);
    }
    bytes
}

/// The 32 bits at `at`.
pub(super) fn get_u32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(from, at))
}

/// The 64 bits at `at`.
pub(super) fn get_u64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(from, at))
}

/// Whether every byte is 0.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
