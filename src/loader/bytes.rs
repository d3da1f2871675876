//! Little-endian reads from untrusted bytes: past the end is `None`, never a panic.

fn array<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn u8_at(bytes: &[u8], at: u64) -> Option<u8> {
    array::<1>(bytes, at).map(|[byte]| byte)
}

pub(super) fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// `len` bytes from `at`, when all of them are in the file.
pub(super) fn range(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    let end = at.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(at..end)
}

/// A record under construction: fields are put at the offsets their specification prints.
pub(super) struct Record<const N: usize>([u8; N]);

impl<const N: usize> Record<N> {
    pub(super) const fn zeroed() -> Self {
        Record([0; N])
    }
    /// Puts `field` at `offset`. The offsets are ours, not the file's: one that does not fit is our mistake.
    pub(super) fn put(&mut self, offset: usize, field: &[u8]) {
        self.0[offset..offset + field.len()].copy_from_slice(field);
    }
    pub(super) fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }
    pub(super) fn put_u64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
