//! Levels of a table tree.

use core::fmt;

/// The level of a table: 1 is the page table (PT), 2 the page directory (PD), 3 the PDPT, 4 the PML4, 5 the PML5. The
/// same numbers serve nested tables, and 32-bit paging uses 1 and 2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// Page table.
    pub const PT: Level = Level(1);
    /// Page directory.
    pub const PD: Level = Level(2);
    /// Page-directory-pointer table.
    pub const PDPT: Level = Level(3);
    /// Page-map level 4.
    pub const PML4: Level = Level(4);
    /// Page-map level 5.
    pub const PML5: Level = Level(5);
    /// Tables in the deepest tree.
    pub(crate) const MAX: usize = 5;

    /// 1 to 5.
    #[inline]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The level an entry of this one points down to; `None` below the page table.
    #[inline]
    pub const fn below(self) -> Option<Level> {
        if self.0 > 1 { Some(Level(self.0 - 1)) } else { None }
    }

    /// The level `n` further down, not below the page table.
    #[inline]
    pub(crate) const fn down(self, n: usize) -> Level {
        let n = n as u8;
        if n < self.0 { Level(self.0 - n) } else { Level(1) }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Level({})", self.0)
    }
}
