//! Page sizes, folio orders, memory types.

use core::fmt;

/// log2 of the smallest page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in the smallest page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// The page sizes of long mode, nested tables, the RMP and host folios.
///
/// The 4 MiB page of legacy 32-bit paging is not here: it exists only inside the walker, and reaches TLBs as two
/// 2 MiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, a PTE leaf.
    Size4K,
    /// 2 MiB, a PDE leaf.
    Size2M,
    /// 1 GiB, a PDPTE leaf.
    Size1G,
}

impl PageSize {
    /// Every size, ascending.
    pub const ALL: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

    /// log2 of the size in bytes.
    #[inline]
    pub const fn shift(self) -> u32 {
        match self {
            PageSize::Size4K => 12,
            PageSize::Size2M => 21,
            PageSize::Size1G => 30,
        }
    }
    /// Bytes in a page of this size.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
    /// 4 KiB frames in a page of this size.
    #[inline]
    pub const fn frames(self) -> u64 {
        1 << (self.shift() - PAGE_SHIFT)
    }
    /// The order of a folio of this size.
    #[inline]
    pub const fn order(self) -> Order {
        Order((self.shift() - PAGE_SHIFT) as u8)
    }
    /// Position in [`PageSize::ALL`], for counters by level.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Size4K => "4K",
            PageSize::Size2M => "2M",
            PageSize::Size1G => "1G",
        })
    }
}

/// log2 of a number of 4 KiB frames, as Linux counts folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Order(u8);

impl Order {
    /// One frame.
    pub const ZERO: Order = Order(0);

    /// The order `raw`, or `None` above 40 (2^52 bytes, the whole physical space).
    pub const fn new(raw: u8) -> Option<Order> {
        if raw <= 40 { Some(Order(raw)) } else { None }
    }
    /// The exponent.
    #[inline]
    pub const fn raw(self) -> u8 {
        self.0
    }
    /// 4 KiB frames in a folio of this order.
    #[inline]
    pub const fn frames(self) -> u64 {
        1 << self.0
    }
    /// Bytes in a folio of this order.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << (self.0 as u32 + PAGE_SHIFT)
    }
    /// The largest page that fits in a folio of this order.
    #[inline]
    pub const fn largest_page(self) -> PageSize {
        match self.0 {
            0..=8 => PageSize::Size4K,
            9..=17 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }
}

/// Memory types with the encoding of MTRRs, PAT entries and EPT leaves (Intel SDM vol. 3, "Memory Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable (strong).
    Uncacheable = 0,
    /// Write combining.
    WriteCombining = 1,
    /// Write through.
    WriteThrough = 4,
    /// Write protected.
    WriteProtected = 5,
    /// Write back.
    #[default]
    WriteBack = 6,
    /// Uncacheable, overridable by an MTRR (PAT only).
    UncacheableMinus = 7,
}

impl MemoryType {
    /// The type with this encoding; 2 and 3 are reserved.
    pub const fn from_encoding(raw: u8) -> Option<MemoryType> {
        Some(match raw {
            0 => MemoryType::Uncacheable,
            1 => MemoryType::WriteCombining,
            4 => MemoryType::WriteThrough,
            5 => MemoryType::WriteProtected,
            6 => MemoryType::WriteBack,
            7 => MemoryType::UncacheableMinus,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_orders_agree() {
        for size in PageSize::ALL {
            assert_eq!(size.order().bytes(), size.bytes());
            assert_eq!(size.order().largest_page(), size);
            assert_eq!(PageSize::ALL[size.index()], size);
        }
        assert_eq!(Order::new(41), None);
        assert_eq!(Order::new(8).map(Order::largest_page), Some(PageSize::Size4K));
    }
}
