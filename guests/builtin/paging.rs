//! Page tables of 4-level long mode: APM vol. 2, "Long-Mode Page Translation".

use crate::cpu;
use crate::memory::{load, store, take_zeroed};

pub const P: u64 = 1 << 0;
pub const W: u64 = 1 << 1;
pub const U: u64 = 1 << 2;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const G: u64 = 1 << 8;
pub const NX: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page sizes, and the columns of the report.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    K4,
    M2,
    G1,
}

impl Size {
    pub const ALL: [Size; 3] = [Size::K4, Size::M2, Size::G1];

    /// The level of its leaf: 1 is a PTE.
    pub const fn level(self) -> u32 {
        match self {
            Size::K4 => 1,
            Size::M2 => 2,
            Size::G1 => 3,
        }
    }
    pub const fn bytes(self) -> u64 {
        1 << (3 + 9 * self.level())
    }
    pub const fn name(self) -> &'static str {
        match self {
            Size::K4 => "4K",
            Size::M2 => "2M",
            Size::G1 => "1G",
        }
    }
    /// PS, at the levels that have it.
    const fn leaf_bit(self) -> u64 {
        match self {
            Size::K4 => 0,
            Size::M2 | Size::G1 => PS,
        }
    }
}

/// The physical address of an entry.
#[derive(Clone, Copy)]
pub struct Slot(u64);

impl Slot {
    pub fn get(self) -> u64 {
        load(self.0)
    }
    pub fn set(self, entry: u64) {
        store(self.0, entry);
    }
}

/// An address space, by its root table.
#[derive(Clone, Copy)]
pub struct Space(u64);

impl Space {
    pub fn new() -> Space {
        Space(take_zeroed())
    }
    pub fn current() -> Space {
        Space(cpu::cr3() & ADDRESS)
    }
    pub fn activate(self) {
        cpu::set_cr3(self.0);
    }

    /// The entry for `address` at `level`. Tables above it are made where they are missing, with all rights, so that
    /// the leaf alone decides. A large page on the way is replaced by a table: the caller wants it gone.
    pub fn slot(self, address: u64, level: u32) -> Slot {
        let mut table = self.0;
        let mut at = 4;
        loop {
            let slot = Slot(table + 8 * (address >> (3 + 9 * at) & 511));
            if at == level {
                return slot;
            }
            if slot.get() & P == 0 || slot.get() & PS != 0 {
                slot.set(take_zeroed() | P | W | U);
            }
            table = slot.get() & ADDRESS;
            at -= 1;
        }
    }

    pub fn leaf(self, address: u64, size: Size) -> Slot {
        self.slot(address, size.level())
    }

    /// Writes the leaf. The caller owes the flush when something was there.
    pub fn map(self, address: u64, physical: u64, size: Size, flags: u64) -> Slot {
        let slot = self.leaf(address, size);
        slot.set(physical | size.leaf_bit() | flags | P);
        slot
    }

    /// Removes the leaf and its translation.
    pub fn unmap(self, address: u64, size: Size) {
        self.leaf(address, size).set(0);
        cpu::invlpg(address);
    }
}

/// The guest's own space: the first 2 MiB in 4 KiB pages, up to 1 GiB in 2 MiB pages, up to 4 GiB in 1 GiB pages where
/// the processor has them, all one to one.
pub fn identity(pages_1g: bool) -> Space {
    let space = Space::new();
    let mut address = 0;
    while address < 1 << 32 {
        let size = match address {
            0..0x20_0000 => Size::K4,
            0x4000_0000.. if pages_1g => Size::G1,
            _ => Size::M2,
        };
        space.map(address, address, size, W);
        address += size.bytes();
    }
    space
}
