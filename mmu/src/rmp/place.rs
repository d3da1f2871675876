//! Where the table is: which entry belongs to which page, and where the counters of the ASIDs are.
//!
//! Source: APM vol. 2, "Reverse Map Table" (RMP_BASE, RMP_END) and "Segmented RMP" (RMP_CFG, the segment table). The first
//! 16 KiB are the processor's own: a counter for each ASID, as AMD's firmware reads them. [`RmpPlace`] is the door.
//!
//! Always true: what a [`Layout`] covers is a whole number of 2 MiB regions, and the entries of one region follow each
//! other in memory.

use emu_core::memory::{BusError, SystemMemory};
use emu_core::{PageSize, Sfn, Spa};
use thiserror::Error;

use super::entry::REGION_FRAMES;
use crate::stage2::Asid;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: u64 = 16;
/// Bytes the processor keeps for itself.
const BOOKKEEPING_BYTES: u64 = 0x4000;
/// Segments of a segmented table.
const SEGMENTS: usize = 512;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Bytes of entries for 1 GiB.
const ENTRIES_BYTES_OF_GIB: u64 = GIB / PageSize::Size4K.bytes() * ENTRY_BYTES;

/// Where the table is, as the registers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RmpPlace {
    /// One piece of memory.
    Contiguous {
        /// RMP_BASE.
        base: Spa,
        /// RMP_END: the last byte.
        last: Spa,
    },
    /// A piece for each segment of the address space; they are named by the table that follows the bookkeeping.
    Segmented {
        /// RMP_BASE.
        base: Spa,
        /// RMP_CFG, RmpSegSize: log2 of the bytes of address space in a segment.
        segment_shift: u8,
    },
}

/// A table that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RmpSetupError {
    /// RMP_BASE, or the byte after RMP_END, is not where the processor wants it.
    #[error("{at} is not a multiple of {align_bytes:#x}, where the RMP begins or ends")]
    Misaligned {
        /// The address.
        at: Spa,
        /// What it must be a multiple of.
        align_bytes: u64,
    },
    /// The table has no room for an entry.
    #[error("an RMP from {base} to {last} has no room for an entry")]
    Empty {
        /// RMP_BASE.
        base: Spa,
        /// RMP_END.
        last: Spa,
    },
    /// The table is where no memory is.
    #[error("the RMP is not in memory: {0}")]
    NoMemory(#[from] BusError),
    /// A segment has another size than 2^30 to 2^51 bytes.
    #[error("segments of 2^{shift} bytes")]
    SegmentSize {
        /// log2 of the bytes.
        shift: u8,
    },
    /// An entry of the segment table has reserved bits set.
    #[error("entry {index} of the segment table, {entry:#x}, has reserved bits")]
    Segment {
        /// Which.
        index: usize,
        /// What it is.
        entry: u64,
    },
}

/// Where the entries of some address space are.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// The entry of the first frame.
    entries: Spa,
    /// Frames that have one.
    frames: u64,
}

/// A place that was looked at and is sound.
#[derive(Debug)]
pub(super) struct Layout {
    base: Spa,
    /// log2 of the frames in a segment.
    segment_shift: u32,
    segments: Box<[Segment]>,
}

/// Length of a contiguous table for system memory below `covered_bytes`.
pub(super) const fn bytes_for(covered_bytes: u64) -> u64 {
    BOOKKEEPING_BYTES + covered_bytes.div_ceil(PageSize::Size2M.bytes()) * (REGION_FRAMES * ENTRY_BYTES)
}

fn aligned(at: Spa, align_bytes: u64) -> Result<(), RmpSetupError> {
    if at.raw().is_multiple_of(align_bytes) { Ok(()) } else { Err(RmpSetupError::Misaligned { at, align_bytes }) }
}

/// Whether every page of the range is there.
fn answered(memory: &SystemMemory, first: Spa, len_bytes: u64) -> Result<(), RmpSetupError> {
    let refused = |spa| BusError { spa, len_bytes: PageSize::Size4K.bytes() as usize };
    let end = first.checked_add(len_bytes).ok_or(refused(first))?;
    let mut sfn = first.frame();
    while sfn.base() < end {
        memory.page(sfn).ok_or(refused(sfn.base()))?;
        sfn = Sfn::new(sfn.raw() + 1);
    }
    Ok(())
}

impl Layout {
    pub(super) fn new(memory: &SystemMemory, place: RmpPlace) -> Result<Layout, RmpSetupError> {
        match place {
            RmpPlace::Contiguous { base, last } => Layout::contiguous(memory, base, last),
            RmpPlace::Segmented { base, segment_shift } => Layout::segmented(memory, base, segment_shift),
        }
    }

    fn contiguous(memory: &SystemMemory, base: Spa, last: Spa) -> Result<Layout, RmpSetupError> {
        let align_bytes = REGION_FRAMES * ENTRY_BYTES;
        let empty = RmpSetupError::Empty { base, last };
        let end = last.checked_add(1).ok_or(empty)?;
        aligned(base, align_bytes)?;
        aligned(end, align_bytes)?;
        let len = end.offset_from(base).ok_or(empty)?;
        let entries_bytes = len.checked_sub(BOOKKEEPING_BYTES).filter(|&bytes| bytes > 0).ok_or(empty)?;
        answered(memory, base, len)?;
        let segment = Segment { entries: base.wrapping_add(BOOKKEEPING_BYTES), frames: entries_bytes / ENTRY_BYTES };
        // One segment that is the whole space.
        Ok(Layout { base, segment_shift: 52, segments: Box::new([segment]) })
    }

    fn segmented(memory: &SystemMemory, base: Spa, shift: u8) -> Result<Layout, RmpSetupError> {
        /// Bits 51:20 of an entry, and CoveredSize.
        const SEGMENT_BASE: u64 = 0x000f_ffff_fff0_0000;
        const COVERED_GIB: u64 = 0x000f_ffff;
        if !(30..=51).contains(&shift) {
            return Err(RmpSetupError::SegmentSize { shift });
        }
        aligned(base, MIB)?;
        let table = base.wrapping_add(BOOKKEEPING_BYTES);
        answered(memory, base, BOOKKEEPING_BYTES + (SEGMENTS * 8) as u64)?;
        let mut segments = vec![Segment::default(); SEGMENTS];
        for (index, segment) in segments.iter_mut().enumerate() {
            let entry: u64 = memory.load(table.wrapping_add(index as u64 * 8))?;
            if entry & !(SEGMENT_BASE | COVERED_GIB) != 0 {
                return Err(RmpSetupError::Segment { index, entry });
            }
            let gib = (entry & COVERED_GIB).min((1 << shift) / GIB);
            let entries = Spa::new(entry & SEGMENT_BASE);
            answered(memory, entries, gib * ENTRIES_BYTES_OF_GIB)?;
            *segment = Segment { entries, frames: gib * (GIB / PageSize::Size4K.bytes()) };
        }
        Ok(Layout { base, segment_shift: u32::from(shift) - PageSize::Size4K.shift(), segments: segments.into() })
    }

    /// Where the entry of `sfn` is; `None`: it has none.
    #[inline]
    pub(super) fn slot(&self, sfn: Sfn) -> Option<Spa> {
        let segment = match &*self.segments {
            [only] => only,
            many => many.get((sfn.raw() >> self.segment_shift) as usize)?,
        };
        let within = sfn.raw() & ((1 << self.segment_shift) - 1);
        let covered = within < segment.frames && sfn.raw() >> (52 - PageSize::Size4K.shift()) == 0;
        covered.then(|| segment.entries.wrapping_add(within * ENTRY_BYTES))
    }

    /// The counter of `asid`: how many 4 KiB pages carry it.
    pub(super) fn counter(&self, asid: Asid) -> Spa {
        self.base.wrapping_add(u64::from(asid.0) * 8 % BOOKKEEPING_BYTES)
    }

    /// The pages the table itself lies in, as ranges of first frame and number of frames.
    pub(super) fn own_frames(&self) -> impl Iterator<Item = (Sfn, u64)> + '_ {
        let page = PageSize::Size4K.bytes();
        let head_bytes = match &*self.segments {
            [_] => BOOKKEEPING_BYTES,
            many => BOOKKEEPING_BYTES + (many.len() * 8) as u64,
        };
        let entries = self.segments.iter().filter(|segment| segment.frames > 0);
        core::iter::once((self.base.frame(), head_bytes / page))
            .chain(entries.map(move |segment| (segment.entries.frame(), (segment.frames * ENTRY_BYTES).div_ceil(page))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manuals_example_covers_4_gib() {
        let memory = SystemMemory::flat(0x200_0000).unwrap();
        let place = RmpPlace::Contiguous { base: Spa::new(0x10_0000), last: Spa::new(0x110_3fff) };
        let layout = Layout::new(&memory, place).unwrap();
        assert_eq!(layout.slot(Sfn::new(0)), Some(Spa::new(0x10_4000)));
        assert_eq!(layout.slot(Sfn::new(0xf_ffff)), Some(Spa::new(0x110_3ff0)));
        assert_eq!(layout.slot(Sfn::new(0x10_0000)), None);
        assert_eq!(bytes_for(1 << 32), 0x100_4000);
        assert_eq!(layout.counter(Asid(3)), Spa::new(0x10_0018));
        assert_eq!(
            layout.own_frames().collect::<Vec<_>>(),
            [(Sfn::new(0x100), 4), (Sfn::new(0x104), 0x1000)],
            "bookkeeping and entries"
        );
    }

    #[test]
    fn a_table_that_cannot_be_is_refused_by_name() {
        let memory = SystemMemory::flat(0x200_0000).unwrap();
        let refused = |base, last| {
            let place = RmpPlace::Contiguous { base: Spa::new(base), last: Spa::new(last) };
            Layout::new(&memory, place).map(|_| ()).unwrap_err()
        };
        assert!(matches!(refused(0x1000, 0x1f_ffff), RmpSetupError::Misaligned { .. }));
        assert!(matches!(refused(0x2000, 0x1f_0fff), RmpSetupError::Misaligned { .. }));
        assert!(matches!(refused(0x2000, 0x5fff), RmpSetupError::Empty { .. }), "bookkeeping alone");
        assert!(matches!(refused(0x2000, 0x1fff), RmpSetupError::Empty { .. }));
        assert!(matches!(refused(0, u64::MAX), RmpSetupError::Empty { .. }));
        assert!(matches!(refused(0x2000, 0x1_0000_1fff), RmpSetupError::NoMemory(_)));
    }

    #[test]
    fn segments_have_their_own_entries_and_may_be_missing() {
        let memory = SystemMemory::flat(0x400_0000).unwrap();
        let base = Spa::new(0x10_0000);
        let place = RmpPlace::Segmented { base, segment_shift: 31 };
        // 2 GiB a segment. The first is covered by half, the third wholly though its entry claims more.
        memory.store(Spa::new(0x10_4000), 0x80_0000_u64 | 1).unwrap();
        memory.store(Spa::new(0x10_4010), 0x100_0000_u64 | 9).unwrap();
        let layout = Layout::new(&memory, place).unwrap();
        let of = |gib: u64| layout.slot(Spa::new(gib * GIB).frame());
        assert_eq!(of(0), Some(Spa::new(0x80_0000)));
        assert_eq!(of(1), None);
        assert_eq!(of(2), None);
        assert_eq!(of(4), Some(Spa::new(0x100_0000)));
        assert_eq!(of(5), Some(Spa::new(0x140_0000)));
        assert_eq!(of(6), None);
        assert_eq!(of(1 << 21), None, "past the last segment");
        let own: Vec<_> = layout.own_frames().collect();
        assert_eq!(own, [(Sfn::new(0x100), 5), (Sfn::new(0x800), 0x400), (Sfn::new(0x1000), 0x800)]);

        memory.store(Spa::new(0x10_4018), 1_u64 << 52).unwrap();
        let refused = Layout::new(&memory, place).map(|_| ()).unwrap_err();
        assert_eq!(refused, RmpSetupError::Segment { index: 3, entry: 1 << 52 });
        for (base, segment_shift) in [(0x10_2000, 31), (0x10_0000, 29), (0x10_0000, 52)] {
            assert!(Layout::new(&memory, RmpPlace::Segmented { base: Spa::new(base), segment_shift }).is_err());
        }
    }
}
