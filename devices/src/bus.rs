//! What devices share: port numbers, access widths, processor numbers, and the ports through which a device reaches
//! anything outside itself.

use emu_core::addr::Gpa;
use thiserror::Error;

/// A port of the 64 KiB I/O space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

impl Port {
    /// The port `n` further on, modulo the I/O space.
    pub const fn plus(self, n: u16) -> Port {
        Port(self.0.wrapping_add(n))
    }
}

/// How many bytes one bus access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    Byte = 1,
    /// Two bytes.
    Word = 2,
    /// Four bytes.
    Dword = 4,
    /// Eight bytes: memory only, there is no such port access.
    Qword = 8,
}

impl Width {
    /// Every width, narrow to wide.
    pub const ALL: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

    /// The length in bytes.
    pub const fn bytes(self) -> u16 {
        self as u16
    }
    /// The length in bits.
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }
    /// Ones in every bit an access of this width moves.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
    /// The same for a port access, where [`Width::Qword`] counts as four bytes.
    pub const fn mask32(self) -> u32 {
        (self.mask() & 0xffff_ffff) as u32
    }
    /// The width of `bytes` bytes, if the bus has it.
    pub const fn from_bytes(bytes: usize) -> Option<Width> {
        match bytes {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            8 => Some(Width::Qword),
            _ => None,
        }
    }
}

/// Replaces the bytes that an access of `width` at byte `offset` covers within the 32-bit register `old`.
///
/// Bytes past the register's end are dropped.
pub const fn merge32(old: u32, offset: u16, width: Width, value: u32) -> u32 {
    let shift = (offset & 3) as u32 * 8;
    let mask = width.mask32() << shift;
    old & !mask | value << shift & mask
}

/// The bytes an access of `width` at byte `offset` reads from the 32-bit register `register`.
pub const fn extract32(register: u32, offset: u16, width: Width) -> u32 {
    register >> ((offset & 3) as u32 * 8) & width.mask32()
}

/// Number of a processor on the board, from 0. Not its APIC ID, though the two are equal by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CpuIndex(pub u16);

impl CpuIndex {
    /// The bootstrap processor.
    pub const BSP: CpuIndex = CpuIndex(0);

    /// As an index into per-processor arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The most processors a board takes.
pub const MAX_CPUS: usize = 64;

/// A set of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CpuSet(u64);

impl CpuSet {
    /// No processor.
    pub const EMPTY: CpuSet = CpuSet(0);

    /// The first `count` processors.
    pub const fn first(count: usize) -> CpuSet {
        CpuSet(if count >= MAX_CPUS { u64::MAX } else { (1 << count) - 1 })
    }
    /// Adds `cpu`. Numbers from [`MAX_CPUS`] on name no processor and are ignored.
    pub const fn insert(&mut self, cpu: CpuIndex) {
        if cpu.index() < MAX_CPUS {
            self.0 |= 1 << cpu.0;
        }
    }
    /// Whether `cpu` is in the set.
    pub const fn contains(self, cpu: CpuIndex) -> bool {
        cpu.index() < MAX_CPUS && self.0 >> cpu.0 & 1 != 0
    }
    /// Adds every processor of `other`.
    pub const fn union(self, other: CpuSet) -> CpuSet {
        CpuSet(self.0 | other.0)
    }
    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Removes and returns the lowest-numbered processor.
    pub const fn pop(&mut self) -> Option<CpuIndex> {
        if self.0 == 0 {
            return None;
        }
        let cpu = self.0.trailing_zeros() as u16;
        self.0 &= self.0 - 1;
        Some(CpuIndex(cpu))
    }
}

impl Iterator for CpuSet {
    type Item = CpuIndex;
    fn next(&mut self) -> Option<CpuIndex> {
        self.pop()
    }
}

/// Where a device's output bytes go.
pub trait ByteSink {
    /// Takes one byte.
    fn put(&mut self, byte: u8);
}

impl ByteSink for Vec<u8> {
    fn put(&mut self, byte: u8) {
        self.push(byte);
    }
}

/// The address a device gave is not memory it may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no memory a device may reach at {gpa} for {len} bytes")]
pub struct DmaError {
    /// First byte of the access that failed.
    pub gpa: Gpa,
    /// Its length in bytes.
    pub len: usize,
}

/// A device's way into guest memory. The machine implements it, with whatever checks stand between.
pub trait DmaPort {
    /// Fills `bytes` from guest memory at `gpa`.
    ///
    /// # Errors
    /// When any byte is not reachable; `bytes` is then unspecified.
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), DmaError>;
    /// Stores `bytes` to guest memory at `gpa`.
    ///
    /// # Errors
    /// When any byte is not reachable; a prefix may have been stored.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), DmaError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_exactly_the_width() {
        for width in Width::ALL {
            assert_eq!(width.mask().count_ones(), width.bits());
            assert_eq!(Width::from_bytes(width.bytes() as usize), Some(width));
        }
        assert_eq!(Width::from_bytes(3), None);
    }

    #[test]
    fn what_is_merged_is_what_is_extracted() {
        for offset in 0..4 {
            for width in [Width::Byte, Width::Word, Width::Dword] {
                let merged = merge32(0, offset, width, u32::MAX);
                let kept = width.bytes().min(4 - offset) as u32 * 8;
                assert_eq!(merged.count_ones(), kept);
                assert_eq!(extract32(merged, offset, width).count_ones(), kept);
                assert_eq!(merge32(u32::MAX, offset, width, 0), !merged);
            }
        }
    }

    #[test]
    fn a_set_gives_back_its_members_in_order() {
        let mut set = CpuSet::EMPTY;
        for cpu in [63, 5, 64, 5, 0] {
            set.insert(CpuIndex(cpu));
        }
        assert_eq!(set.map(|cpu| cpu.0).collect::<Vec<_>>(), [0, 5, 63]);
        assert!(!set.contains(CpuIndex(64)));
        assert_eq!(CpuSet::first(64).count(), 64);
        assert_eq!(CpuSet::first(3).count(), 3);
    }
}
