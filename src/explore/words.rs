//! What a step means.

use emu_core::sync::Point;
use interleave::Pause;

/// What a task has done when it gives way there.
pub const fn of(pause: &Pause) -> &'static str {
    match pause {
        Pause::Waiting => "waits for a lock",
        Pause::GaveWay => "will try again",
        Pause::At(point) => at(*point),
    }
}

const fn at(point: Point) -> &'static str {
    match point {
        Point::F0 => "F0 fault taken",
        Point::F1 => "F1 sequence sampled",
        Point::F2 => "F2 attribute read",
        Point::F3 => "F3 not stale, going on",
        Point::F3a => "F3a invalidate_lock taken",
        Point::F3b => "F3b folio found",
        Point::F3c => "F3c folio zeroed",
        Point::F4 => "F4 page known, lock released",
        Point::F5 => "F5 about to take mmu_lock",
        Point::F6 => "F6 mmu_lock taken, going on",
        Point::F7 => "F7 entry written",
        Point::F8 => "F8 mmu_lock released",
        Point::FF1 => "FF1 leaf read without a lock",
        Point::FF2 => "FF2 about to exchange it",
        Point::R1 => "R1 entry found in the reverse map",
        Point::I1 => "I1 invalidation begun",
        Point::I2 => "I2 entries zapped",
        Point::I3 => "I3 flushed, mmu_lock released",
        Point::I4 => "I4 backing removed",
        Point::I5 => "I5 invalidation ended",
        Point::C1 => "C1 conversion has its lock",
        Point::C2 => "C2 memory for bookkeeping",
        Point::C3 => "C3 user mappings gone",
        Point::C4 => "C4 references checked",
        Point::C5 => "C5 made shared",
        Point::C6 => "C6 attributes stored",
        Point::A1 => "A1 about to allocate",
        Point::A2 => "A2 folio allocated",
        Point::A3 => "A3 folio in page cache",
        Point::A4 => "A4 folio frozen",
        Point::A5 => "A5 folio split or merged",
        Point::L1 => "L1 last reference on the file gone",
        Point::L2 => "L2 memslot and file looked up",
        Point::L3 => "L3 the VM's descriptor closed",
        Point::M1 => "M1 attribute's node found",
        Point::T1 => "T1 in the guest",
        Point::D1 => "D1 marks taken, leaves armed",
        Point::N1 => "N1 table taken from the list",
        Point::Z1 => "Z1 mmu_lock released in between",
        Point::P1 => "P1 about to lock the inode",
        Point::P2 => "P2 folio found",
        Point::P3 => "P3 page copied",
        Point::S1 => "S1 shadow page unsync",
        Point::O1 => "O1 RMP entry looked at",
        Point::O2 => "O2 RMP entry changed",
        Point::V1 => "V1 save area found",
        Point::V2 => "V2 state read for its launch",
    }
}
