//! Where guest RAM lies, and how much system memory a guest needs.
//!
//! A PC has RAM from zero up, a hole below 4 GiB for devices, and the rest of RAM above. [`RamLayout`] makes this one
//! guest_memfd with a memslot for each part, at offsets congruent with their addresses so that 2M and 1G leaves fit.
//! [`SystemMemoryPlan`] sizes the flat, sparse system memory below: too much costs nothing.

use emu_core::{Gpa, PageSize, Sfn, Spa};
use gmem::{FolioPolicy, HostConfig};
use mmu::Rmp;
use mmu::rmp::RmpPlace;
use thiserror::Error;

use crate::config::PagePolicy;

/// Where RAM ends below 4 GiB.
pub const LOW_RAM_END: Gpa = Gpa::new(3 << 30);
/// Where the rest of RAM starts.
pub const HIGH_RAM: Gpa = Gpa::new(4 << 30);
/// Frames below this one stay unused, so that no table or page has system address zero.
const FIRST_FRAME: Sfn = Sfn::new(PageSize::Size2M.frames());
/// What the host may use for anything that does not grow with the guest.
const SLACK_BYTES: u64 = 64 << 20;

/// A contiguous part of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First address.
    pub gpa: Gpa,
    /// Length.
    pub len_bytes: u64,
    /// Where in the guest_memfd it starts.
    pub offset_bytes: u64,
}

/// Guest RAM: one guest_memfd and the parts of the address space that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamLayout {
    /// Size of the guest_memfd.
    pub inode_bytes: u64,
    /// The parts, ascending and disjoint.
    pub ranges: Vec<RamRange>,
}

/// A layout that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Too little, or more than the address space holds.
    #[error("guest memory of {memory_bytes:#x} bytes is not between 1 byte and {most_bytes:#x}")]
    Size {
        /// What was asked for.
        memory_bytes: u64,
        /// The most there can be.
        most_bytes: u64,
    },
    /// What is to be left out is not whole pages.
    #[error("{len_bytes:#x} bytes at {gpa} are not whole 4 KiB pages")]
    Misaligned {
        /// Its start.
        gpa: Gpa,
        /// Its length.
        len_bytes: u64,
    },
}

impl RamLayout {
    /// The layout of a PC with `memory_bytes`, rounded up to whole pages of `page`.
    ///
    /// 0xa0000 to 0xfffff is plain RAM; [`RamLayout::without`] makes room for a ROM there.
    pub fn pc(memory_bytes: u64, page: PageSize) -> Result<RamLayout, LayoutError> {
        let most_bytes = (1_u64 << 48) - (HIGH_RAM.raw() - LOW_RAM_END.raw());
        if memory_bytes == 0 || memory_bytes > most_bytes {
            return Err(LayoutError::Size { memory_bytes, most_bytes });
        }
        let inode_bytes = memory_bytes.next_multiple_of(page.bytes());
        let low = inode_bytes.min(LOW_RAM_END.raw());
        let mut ranges = vec![RamRange { gpa: Gpa::new(0), len_bytes: low, offset_bytes: 0 }];
        if inode_bytes > low {
            ranges.push(RamRange { gpa: HIGH_RAM, len_bytes: inode_bytes - low, offset_bytes: low });
        }
        Ok(RamLayout { inode_bytes, ranges })
    }

    /// The same layout with a gap where something else will be. The inode keeps its size, so offsets stay congruent.
    pub fn without(mut self, gpa: Gpa, len_bytes: u64) -> Result<RamLayout, LayoutError> {
        let end = gpa.checked_add(len_bytes).ok_or(LayoutError::Misaligned { gpa, len_bytes })?;
        if !gpa.is_aligned(PageSize::Size4K) || !end.is_aligned(PageSize::Size4K) {
            return Err(LayoutError::Misaligned { gpa, len_bytes });
        }
        let (from, to) = (gpa.raw(), end.raw());
        let around = |range: RamRange| {
            let (start, stop) = (range.gpa.raw(), range.gpa.raw() + range.len_bytes);
            let part = move |a: u64, b: u64| {
                let (a, b) = (a.max(start), b.min(stop));
                (a < b).then(|| RamRange {
                    gpa: Gpa::new(a),
                    len_bytes: b - a,
                    offset_bytes: range.offset_bytes + (a - start),
                })
            };
            [part(0, from), part(to, u64::MAX)]
        };
        self.ranges = self.ranges.into_iter().flat_map(around).flatten().collect();
        Ok(self)
    }

    /// Bytes of RAM the guest sees.
    pub fn ram_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len_bytes).sum()
    }
}

/// Size and division of system memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemMemoryPlan {
    /// Length of the flat system memory.
    pub arena_bytes: u64,
    /// The host's share of it, pools included.
    pub host: HostConfig,
}

impl SystemMemoryPlan {
    /// What a guest with inodes of `inode_bytes` in all needs under `pages`, if every page of it is used and mapped by
    /// the smallest leaves.
    pub fn for_guest(inode_bytes: u64, pages: PagePolicy) -> SystemMemoryPlan {
        let unit = pages.folios.folio_size().bytes();
        let memory = inode_bytes.next_multiple_of(unit);
        // A table entry of 8 bytes for each 4 KiB, one for each table of those, and so on: less than 1/500. Twice, for
        // a second tree or shadow pages.
        let tables = (memory / 250).next_multiple_of(PageSize::Size2M.bytes());
        let kernel = FIRST_FRAME.base().raw() + tables + SLACK_BYTES;
        // The pool's pages are naturally aligned, so they start at the next multiple behind the rest.
        let arena_bytes = kernel.next_multiple_of(unit) + memory;
        let pools = match pages.folios {
            FolioPolicy::Buddy { .. } | FolioPolicy::Cma { .. } => Vec::new(),
            FolioPolicy::Pool { size } => vec![(size, memory / unit)],
        };
        let nr_frames = arena_bytes / PageSize::Size4K.bytes() - FIRST_FRAME.raw();
        SystemMemoryPlan { arena_bytes, host: HostConfig { first: FIRST_FRAME, nr_frames, pools } }
    }
}

impl SystemMemoryPlan {
    /// The same with room for a reverse map behind the host's memory, which covers all of it. It starts and ends on a
    /// boundary of 2M, so that no page of memory shares a 2M page with the table.
    pub fn with_rmp(self) -> (SystemMemoryPlan, RmpPlace) {
        let unit = PageSize::Size2M.bytes();
        let base = self.arena_bytes.next_multiple_of(unit);
        // The table covers itself too: an entry of 16 bytes for each 4 KiB of it is far less than what rounding leaves.
        let mut len_bytes = 0;
        while Rmp::bytes_for(base + len_bytes) > len_bytes {
            len_bytes += unit;
        }
        let arena_bytes = base + len_bytes;
        (
            SystemMemoryPlan { arena_bytes, ..self },
            RmpPlace::Contiguous { base: Spa::new(base), last: Spa::new(arena_bytes - 1) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu_core::memory::SystemMemory;
    use gmem::{HostMemory, HugeSize};

    #[test]
    fn parts_are_congruent_and_cover_what_was_asked() {
        for page in PageSize::ALL {
            for memory in [1, 512 << 20, 3 << 30, (3 << 30) + 1, 10 << 30, 1 << 40] {
                let layout = RamLayout::pc(memory, page).unwrap();
                assert!(layout.ram_bytes() >= memory && layout.ram_bytes() - memory < page.bytes());
                for range in &layout.ranges {
                    assert_eq!(range.gpa.offset_in(PageSize::Size1G), range.offset_bytes % (1 << 30));
                    assert!(range.gpa >= HIGH_RAM || range.gpa.raw() + range.len_bytes <= LOW_RAM_END.raw());
                }
            }
        }
        assert!(RamLayout::pc(0, PageSize::Size4K).is_err());
        assert!(RamLayout::pc(1 << 48, PageSize::Size4K).is_err());
    }

    #[test]
    fn a_gap_splits_a_part_and_keeps_offsets() {
        let layout = RamLayout::pc(2 << 20, PageSize::Size4K).unwrap();
        let holed = layout.without(Gpa::new(0xc_0000), 0x4_0000).unwrap();
        let parts: Vec<_> = holed.ranges.iter().map(|r| (r.gpa.raw(), r.len_bytes, r.offset_bytes)).collect();
        assert_eq!(parts, [(0, 0xc_0000, 0), (0x10_0000, 0x10_0000, 0x10_0000)]);
        assert_eq!(holed.inode_bytes, 2 << 20);
        assert!(holed.clone().without(Gpa::new(1), 0x1000).is_err());
        assert_eq!(holed.clone().without(Gpa::new(0xc_0000), 0x1000).unwrap(), holed);
    }

    #[test]
    fn a_reverse_map_covers_the_host_and_shares_no_2m_page_with_it() {
        for page in PageSize::ALL {
            for inode_bytes in [1 << 20, 1 << 30, 1 << 40] {
                let plan = SystemMemoryPlan::for_guest(inode_bytes, PagePolicy::of(page));
                let host_end = (plan.host.first.raw() + plan.host.nr_frames) * PageSize::Size4K.bytes();
                let (with, place) = plan.with_rmp();
                let RmpPlace::Contiguous { base, last } = place else { panic!("one piece") };
                assert!(base.raw() >= host_end && base.is_aligned(PageSize::Size2M));
                assert!(last.wrapping_add(1).is_aligned(PageSize::Size2M) && last.raw() < with.arena_bytes);
                let rmp = Rmp::new(SystemMemory::flat(with.arena_bytes).unwrap(), place).unwrap();
                assert!(rmp.entry(last.frame()).is_some(), "the table covers itself");
            }
        }
    }

    #[test]
    fn a_terabyte_starts_at_once_for_every_page_size() {
        for page in PageSize::ALL {
            let pages = PagePolicy::of(page);
            let plan = SystemMemoryPlan::for_guest(1 << 40, pages);
            let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
            let host = HostMemory::new(memory, &plan.host).unwrap();
            let pooled: u64 =
                HugeSize::ALL.iter().map(|&size| host.pool(size).available() * size.page_size().frames()).sum();
            let wanted = if page == PageSize::Size4K { 0 } else { 1 << 28 };
            assert_eq!(pooled, wanted);
            assert!(host.stats().free_frames + pooled >= 1 << 28);
        }
    }
}
