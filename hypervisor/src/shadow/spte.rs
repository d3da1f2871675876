//! What an entry of a shadow table means (`make_spte` with legacy paging).
//!
//! The processor walks shadow tables as its own page tables: PAE for guests outside long mode, long mode otherwise, always
//! with NX and write protection of supervisor accesses in force. Bits are those of an NPT entry ([`crate::tdp::spte`])
//! but U/S and NX, which here say what the guest's entries say. A leaf is never global.
//!
//! | | W 1 | MMU-writable 10 | host-writable 9 |
//! |---|---|---|---|
//! | writable | 1 | 1 | 1 |
//! | write-protected for a shadowed table | 0 | 0 | 1 |
//! | the guest or the host does not allow writes | 0 | 0 | as the host |
//! | the next write is to be logged | 0 | 0 or 1 | 0 |
//!
//! MMU-writable without W says that somebody withheld W and may not have flushed yet: a processor may still write.

use emu_core::{PageSize, Sfn, Spa};
use mmu::GuestRights;

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const HOST_WRITABLE: u64 = 1 << 9;
const MMU_WRITABLE: u64 = 1 << 10;
const PRESENT: u64 = 1 << 11;
const NX: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Why an entry is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An access is about to use it.
    Demand,
    /// A neighbour of one that is: it is not accessed yet.
    Prefetch,
}

/// Whether the host lets the guest write a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostWrite {
    /// It does.
    Allowed,
    /// Read-only memslot.
    Refused,
}

/// An entry as it stands in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ShadowPte(u64);

/// An entry, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowEntry {
    /// Nothing.
    Absent,
    /// A shadow page of the level below.
    Table(Spa),
    /// A page.
    Leaf {
        /// First frame.
        sfn: Sfn,
        /// What it allows.
        rights: GuestRights,
    },
}

impl ShadowPte {
    /// No entry.
    pub const ABSENT: ShadowPte = ShadowPte(0);

    /// The entry with these bits.
    pub const fn from_raw(raw: u64) -> ShadowPte {
        ShadowPte(raw)
    }
    /// The bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// Whether anything is here.
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }
    /// Whether the processor may write through it.
    pub const fn is_writable(self) -> bool {
        self.0 & W != 0
    }
    /// Whether the host lets the guest write.
    pub const fn host_write(self) -> HostWrite {
        if self.0 & HOST_WRITABLE != 0 { HostWrite::Allowed } else { HostWrite::Refused }
    }

    /// An entry that leads to a shadow page. It allows everything: rights are the leaf's business.
    pub const fn table(table: Spa) -> ShadowPte {
        ShadowPte(table.raw() & FRAME | P | W | U | A | PRESENT)
    }

    /// A PDPTE register or entry of PAE paging that leads to a shadow page.
    pub const fn pdpte(table: Spa) -> u64 {
        table.raw() & FRAME | P
    }

    /// A leaf of `size`; `rights` include writing only where writing is to succeed.
    pub fn leaf(sfn: Sfn, size: PageSize, rights: GuestRights, host: HostWrite, purpose: Purpose) -> ShadowPte {
        let mut raw = sfn.base().raw() & FRAME | P | PRESENT;
        let mut set = |bits: u64, on: bool| raw |= if on { bits } else { 0 };
        set(PS, size != PageSize::Size4K);
        set(W | MMU_WRITABLE | D, rights.contains(GuestRights::WRITE));
        set(U, rights.contains(GuestRights::USER));
        set(NX, !rights.contains(GuestRights::EXECUTE));
        set(HOST_WRITABLE, host == HostWrite::Allowed);
        set(A, purpose == Purpose::Demand);
        ShadowPte(raw)
    }

    /// The entry without the right to write.
    pub const fn write_protected(self) -> ShadowPte {
        ShadowPte(self.0 & !(W | MMU_WRITABLE))
    }

    /// The entry as if the host did not let the guest write: what a page of a logged memslot has until it is marked.
    pub const fn host_write_withheld(self) -> ShadowPte {
        ShadowPte(self.0 & !(W | HOST_WRITABLE))
    }

    /// The entry with a write allowed that was withheld for a log; the same where nothing was.
    pub(super) const fn write_granted(self) -> ShadowPte {
        match self.0 & (W | MMU_WRITABLE) {
            MMU_WRITABLE => ShadowPte(self.0 | W | HOST_WRITABLE),
            _ => self,
        }
    }

    /// Whether a processor may be able to write by what it has cached, whatever the entry says now.
    pub const fn may_be_cached_writable(self) -> bool {
        self.0 & (W | MMU_WRITABLE) != 0
    }

    /// The entry with the accessed flag clear.
    pub const fn unaccessed(self) -> ShadowPte {
        ShadowPte(self.0 & !A)
    }

    /// Whether the accessed flag is set.
    pub const fn is_accessed(self) -> bool {
        self.0 & A != 0
    }

    /// Whether a processor could have changed nothing else between the two.
    pub const fn same_but_ad(self, other: ShadowPte) -> bool {
        (self.0 ^ other.0) & !(A | D) == 0
    }

    /// Reads an entry of a shadow page of `level`.
    pub fn read(self, level: u8) -> ShadowEntry {
        if !self.is_present() {
            return ShadowEntry::Absent;
        }
        if level > 1 && self.0 & PS == 0 {
            return ShadowEntry::Table(Spa::new(self.0 & FRAME));
        }
        let mut rights = GuestRights::empty();
        rights.set(GuestRights::WRITE, self.0 & W != 0);
        rights.set(GuestRights::USER, self.0 & U != 0);
        rights.set(GuestRights::EXECUTE, self.0 & NX == 0);
        ShadowEntry::Leaf { sfn: Spa::new(self.0 & FRAME).frame(), rights }
    }
}

/// The size of a leaf in a shadow page of `level`; none above the third.
pub fn leaf_size(level: u8) -> Option<PageSize> {
    PageSize::ALL.get(usize::from(level).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_reads_back_and_obeys_the_table_of_write_bits() {
        for size in PageSize::ALL {
            for bits in 0..8 {
                for host in [HostWrite::Allowed, HostWrite::Refused] {
                    let mut rights = GuestRights::from_bits_truncate(bits);
                    if host == HostWrite::Refused {
                        rights.remove(GuestRights::WRITE);
                    }
                    let sfn = Sfn::new(0x4_0000).align_down(size);
                    let level = size.index() as u8 + 1;
                    let leaf = ShadowPte::leaf(sfn, size, rights, host, Purpose::Demand);
                    assert_eq!(leaf.read(level), ShadowEntry::Leaf { sfn, rights });
                    let (w, mmu, host) = (leaf.0 & W != 0, leaf.0 & MMU_WRITABLE != 0, leaf.0 & HOST_WRITABLE != 0);
                    assert!(w == mmu && (!mmu || host));
                    rights.remove(GuestRights::WRITE);
                    assert_eq!(leaf.write_protected().read(level), ShadowEntry::Leaf { sfn, rights });
                    assert_eq!(leaf.write_protected().host_write(), leaf.host_write());
                    let withheld = leaf.host_write_withheld();
                    assert_eq!(withheld.read(level), ShadowEntry::Leaf { sfn, rights });
                    assert_eq!(withheld.host_write(), HostWrite::Refused);
                    assert!(leaf.is_accessed() && !leaf.unaccessed().is_accessed());
                }
            }
        }
        assert_eq!(ShadowPte::ABSENT.read(1), ShadowEntry::Absent);
        assert_eq!(ShadowPte::table(Spa::new(0x5000)).read(4), ShadowEntry::Table(Spa::new(0x5000)));
    }
}
