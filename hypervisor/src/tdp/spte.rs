//! What an entry of the nested tables means (AMD APM vol. 2, "Nested Paging"; Intel SDM vol. 3, "EPT Paging-Structure
//! Entries", "Accessed and Dirty Flags for EPT"; Linux 7.3 `arch/x86/kvm/mmu/spte.h`).
//!
//! | field | NPT | EPT |
//! |---|---|---|
//! | readable, writable, executable | P 0, R/W 1, not NX 63 | R 0, W 1, X 2 |
//! | user | U/S 2: nested walks are user accesses | - |
//! | leaf above 4K | PS 7 | 7 |
//! | accessed, dirty | 5, 6 | 8, 9 |
//! | memory type | PAT index 0 | 5:3 write-back, 6 ignore PAT |
//! | frame | 51:12 | 51:12 |
//! | ours: present at all | 11 | 11 |
//! | ours: host-writable, MMU-writable | 9, 10 | 53, 55 |
//! | ours: how accesses are recorded | - | 61:60 |
//! | ours: R and X while accesses are tracked | - | 52, 54 |
//!
//! The software bits are where Linux 7.3 has them; hardware ignores them. An absent entry is zero, where Linux sets
//! bit 63 to keep EPT violations from becoming #VE: no guest of ours has #VE enabled, and a fresh table is zero already.
//!
//! [`TdpFormat`] makes and reads [`Spte`]s; nothing else looks at their bits. Leaves are made and altered in
//! [`super::leaf`], entries for devices in [`super::mmio`].

use bitflags::bitflags;
use emu_core::{AccessKind, Gfn, MemoryType, PageSize, Sfn, Spa};

use super::leaf::AdType;
use super::mmio::MmioSpte;

/// Format of the nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TdpFormat {
    /// AMD's: the format of long-mode page tables.
    Npt,
    /// Intel's extended page tables, with accessed and dirty flags.
    Ept,
}

bitflags! {
    /// What an entry allows; reading always.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// Stores.
        const WRITE = 1 << 0;
        /// Instruction fetches.
        const EXECUTE = 1 << 1;
    }
}

impl Rights {
    /// Whether an access of `kind` is among them.
    #[inline]
    pub const fn allow(self, kind: AccessKind) -> bool {
        match kind {
            AccessKind::Read => true,
            AccessKind::Write => self.contains(Rights::WRITE),
            AccessKind::Execute => self.contains(Rights::EXECUTE),
        }
    }
}

/// A level of the tree: 0 holds PTEs, 3 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The level of the root.
    pub const ROOT: Level = Level(3);
    /// Levels in all.
    pub const COUNT: usize = 4;

    /// The level whose leaves have this size.
    #[inline]
    pub const fn of_leaf(size: PageSize) -> Level {
        Level(size.index() as u8)
    }
    /// The size of a leaf at this level; there is none at the root.
    #[inline]
    pub fn leaf_size(self) -> Option<PageSize> {
        PageSize::ALL.get(usize::from(self.0)).copied()
    }
    /// The level below.
    #[inline]
    pub const fn below(self) -> Option<Level> {
        match self.0 {
            0 => None,
            n => Some(Level(n - 1)),
        }
    }
    /// Position from the leaves up, for counters.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
    /// Guest frames under one entry.
    #[inline]
    pub const fn frames(self) -> u64 {
        1 << (9 * self.0 as u32)
    }
    /// The entry of `gfn` in a table of this level.
    #[inline]
    pub const fn slot(self, gfn: Gfn) -> u64 {
        gfn.raw() >> (9 * self.0 as u32) & 511
    }
    /// Which of all tables of this level has the entry of `gfn`.
    #[inline]
    pub(super) const fn above(self, gfn: Gfn) -> u64 {
        gfn.raw() >> (9 * self.0 as u32 + 9)
    }
    /// The first guest frame under the entry of `gfn`.
    #[inline]
    pub const fn base(self, gfn: Gfn) -> Gfn {
        Gfn::new(gfn.raw() & !(self.frames() - 1))
    }
}

/// An entry as it stands in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Spte(u64);

impl Spte {
    /// No entry.
    pub const ABSENT: Spte = Spte(0);
    /// An entry of a table that is being removed, with the value that Linux 7.3 uses (`FROZEN_SPTE`). Not present in
    /// either format.
    pub const FROZEN: Spte = Spte(1 << 63 | 0x1a0);

    /// The entry with these bits.
    pub const fn from_raw(raw: u64) -> Spte {
        Spte(raw)
    }
    /// The bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The first frame of a leaf.
    pub(super) const fn sfn(self) -> Sfn {
        Spa::new(self.0 & FRAME).frame()
    }
}

/// An entry, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Absent,
    /// Nothing, and nothing may be put there: the table it stands in is being removed.
    Frozen,
    /// No memory is there: the processor faults on a reserved bit, and the entry says so without a look at memslots.
    Mmio(MmioSpte),
    /// A table below.
    Table(Spa),
    /// A page.
    Leaf {
        /// First frame.
        sfn: Sfn,
        /// What it allows.
        rights: Rights,
    },
}

/// What an entry is, without what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Absent,
    Frozen,
    Mmio,
    Table,
    Leaf,
}

pub(super) const FRAME: u64 = 0x000f_ffff_ffff_f000;
pub(super) const PRESENT: u64 = 1 << 11;
pub(super) const READ: u64 = 1 << 0;
pub(super) const WRITE: u64 = 1 << 1;
pub(super) const HUGE: u64 = 1 << 7;

pub(super) mod npt {
    pub(crate) const USER: u64 = 1 << 2;
    pub(crate) const ACCESSED: u64 = 1 << 5;
    pub(crate) const DIRTY: u64 = 1 << 6;
    pub(crate) const NX: u64 = 1 << 63;
    pub(crate) const HOST_WRITABLE: u64 = 1 << 9;
    pub(crate) const MMU_WRITABLE: u64 = 1 << 10;
}

pub(super) mod ept {
    pub(crate) const EXECUTE: u64 = 1 << 2;
    pub(crate) const MEMTYPE_SHIFT: u32 = 3;
    pub(crate) const IGNORE_PAT: u64 = 1 << 6;
    pub(crate) const ACCESSED: u64 = 1 << 8;
    pub(crate) const DIRTY: u64 = 1 << 9;
    pub(crate) const HOST_WRITABLE: u64 = 1 << 53;
    pub(crate) const MMU_WRITABLE: u64 = 1 << 55;
    pub(crate) const AD_TYPE_SHIFT: u32 = 60;
    /// R (bit 0) and X (bit 2) are kept this far above.
    pub(crate) const SAVED_SHIFT: u32 = 52;
}

impl TdpFormat {
    /// The accessed flag.
    #[inline]
    pub const fn accessed(self) -> u64 {
        match self {
            TdpFormat::Npt => npt::ACCESSED,
            TdpFormat::Ept => ept::ACCESSED,
        }
    }

    /// The dirty flag.
    #[inline]
    pub const fn dirty(self) -> u64 {
        match self {
            TdpFormat::Npt => npt::DIRTY,
            TdpFormat::Ept => ept::DIRTY,
        }
    }

    /// An entry that leads to a table. It allows everything: rights are the leaf's business.
    #[inline]
    pub const fn table(self, table: Spa) -> Spte {
        let allow = match self {
            TdpFormat::Npt => READ | WRITE | npt::USER | npt::ACCESSED,
            TdpFormat::Ept => READ | WRITE | ept::EXECUTE | ept::ACCESSED,
        };
        Spte(table.raw() & FRAME | allow | PRESENT)
    }

    /// The table that an entry of a table of `level` leads to, if it is no leaf and not the end: all that most steps of
    /// a walk ask.
    #[inline]
    pub(super) const fn next_table(self, spte: Spte, level: Level) -> Option<Spa> {
        if level.0 > 0 && spte.0 & (PRESENT | HUGE) == PRESENT { Some(Spa::new(spte.0 & FRAME)) } else { None }
    }

    /// What an entry of a table of `level` is.
    #[inline]
    pub(super) fn kind(self, spte: Spte, level: Level) -> Kind {
        match spte.0 {
            0 => Kind::Absent,
            raw if raw & PRESENT != 0 => {
                if level.0 == 0 || raw & HUGE != 0 {
                    Kind::Leaf
                } else {
                    Kind::Table
                }
            }
            _ => match self.read_not_present(spte) {
                Entry::Frozen => Kind::Frozen,
                Entry::Mmio(_) => Kind::Mmio,
                _ => Kind::Absent,
            },
        }
    }

    /// Reads an entry of a table of `level`.
    #[inline]
    pub fn read(self, spte: Spte, level: Level) -> Entry {
        let raw = spte.0;
        if raw == Spte::ABSENT.0 {
            return Entry::Absent;
        }
        if raw & PRESENT == 0 {
            return self.read_not_present(spte);
        }
        let is_leaf = level.below().is_none() || raw & HUGE != 0;
        if !is_leaf {
            return Entry::Table(Spa::new(raw & FRAME));
        }
        let executable = match self {
            TdpFormat::Npt => raw & npt::NX == 0,
            TdpFormat::Ept => raw & ept::EXECUTE != 0,
        };
        let mut rights = Rights::empty();
        rights.set(Rights::WRITE, raw & WRITE != 0);
        rights.set(Rights::EXECUTE, executable);
        Entry::Leaf { sfn: Spa::new(raw & FRAME).frame(), rights }
    }

    #[cold]
    fn read_not_present(self, spte: Spte) -> Entry {
        match self.read_mmio(spte) {
            _ if spte == Spte::FROZEN => Entry::Frozen,
            Some(mmio) => Entry::Mmio(mmio),
            None => Entry::Absent,
        }
    }

    /// Whether two entries differ in nothing that a walking processor could not have changed.
    #[inline]
    pub const fn same_but_ad(self, a: Spte, b: Spte) -> bool {
        (a.0 ^ b.0) & !self.ad_bits(a) == 0
    }

    /// The entry with some of its accessed and dirty flags cleared.
    pub(crate) const fn without(self, spte: Spte, flags: u64) -> Spte {
        Spte(spte.0 & !(flags & (self.accessed() | self.dirty())))
    }

    /// `new` with the accessed and dirty flags that `seen` has and `old` had not.
    #[inline]
    pub(crate) const fn inheriting(self, new: Spte, old: Spte, seen: Spte) -> Spte {
        Spte(new.0 | seen.0 & !old.0 & self.ad_bits(new))
    }

    /// What the processor's nested root register holds: nCR3, or the EPTP with write-back walks of four levels and
    /// accessed and dirty flags on unless entries do without them.
    pub const fn root_register(self, root: Spa, ad: AdType) -> u64 {
        let flags = match ad {
            AdType::Disabled => 0,
            AdType::Enabled | AdType::WriteProtectOnly => 1 << 6,
        };
        match self {
            TdpFormat::Npt => root.raw(),
            TdpFormat::Ept => root.raw() | MemoryType::WriteBack as u64 | (Level::COUNT as u64 - 1) << 3 | flags,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_reads_back_as_it_was_made() {
        for format in [TdpFormat::Npt, TdpFormat::Ept] {
            assert_eq!(format.read(Spte::ABSENT, Level(0)), Entry::Absent);
            assert_eq!(format.read(Spte::FROZEN, Level(0)), Entry::Frozen);
            assert_eq!(
                [Spte::ABSENT, Spte::FROZEN].map(|spte| format.kind(spte, Level(0))),
                [Kind::Absent, Kind::Frozen]
            );
            for level in 1..4 {
                let table = Spa::new(0x000f_1234_5678_9000);
                assert_eq!(format.read(format.table(table), Level(level)), Entry::Table(table));
                assert_eq!(format.kind(format.table(table), Level(level)), Kind::Table);
                assert_eq!(format.next_table(format.table(table), Level(level)), Some(table));
            }
            for size in PageSize::ALL {
                for bits in 0..4 {
                    let rights = Rights::from_bits_truncate(bits);
                    let sfn = Sfn::new(0xff_c000_0000).align_down(size);
                    let leaf = format.leaf(sfn, size, rights);
                    assert_eq!(format.read(leaf, Level::of_leaf(size)), Entry::Leaf { sfn, rights });
                    assert_eq!((format.kind(leaf, Level::of_leaf(size)), leaf.sfn()), (Kind::Leaf, sfn));
                    let cleared = format.without(leaf, u64::MAX);
                    assert!(format.same_but_ad(leaf, cleared) && leaf != cleared);
                }
            }
        }
    }

    #[test]
    fn levels_cut_a_frame_number_into_nine_bits_each() {
        let gfn = Gfn::new(0o123_456_701_234);
        let slots: Vec<u64> = (0..4).map(|n| Level(n).slot(gfn)).collect();
        assert_eq!(slots, [0o234, 0o701, 0o456, 0o123]);
        assert_eq!(Level::ROOT.leaf_size(), None);
        assert_eq!(Level::of_leaf(PageSize::Size2M).base(gfn), gfn.align_down(PageSize::Size2M));
    }
}
