//! Where a task of the pipeline may be interrupted by another.

/// A place between two steps of the pipeline at which what was read may have changed when the next step runs. The
/// names and meanings are the project's for KVM's fault path, invalidation, conversion and allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// A fault was taken; its memslot is not looked up yet.
    F0,
    /// The invalidation sequence is sampled; the attribute is not read yet.
    F1,
    /// The attribute is checked; slot and invalidation are not looked at yet.
    F2,
    /// The first check for a retry is passed; the page is not looked up yet.
    F3,
    /// Inside the lookup: the inode is found.
    F3a,
    /// Inside the lookup: the folio is found or allocated.
    F3b,
    /// Inside the lookup: the folio is zeroed and up to date.
    F3c,
    /// The page is known; the second check for a retry is ahead.
    F4,
    /// About to take `mmu_lock`.
    F5,
    /// `mmu_lock` is held and the fault is not stale; the entry is not written yet.
    F6,
    /// The entry is written; `mmu_lock` is still held.
    F7,
    /// `mmu_lock` is released; the guest is not entered yet.
    F8,
    /// The fast path has read a leaf.
    FF1,
    /// It is about to exchange it.
    FF2,
    /// An entry of the reverse map is found without `mmu_lock`; it is not aged yet.
    R1,
    /// An invalidation is begun.
    I1,
    /// Its entries are zapped.
    I2,
    /// Translations are flushed.
    I3,
    /// Backing is removed, or the attribute stored.
    I4,
    /// The invalidation is ended.
    I5,
    /// A conversion holds its lock.
    C1,
    /// Memory for its bookkeeping is there.
    C2,
    /// User mappings are gone.
    C3,
    /// References are checked.
    C4,
    /// What the hardware must know of shared pages is done.
    C5,
    /// The attributes are stored.
    C6,
    /// An allocation has its reservation.
    A1,
    /// A folio is taken from its provider.
    A2,
    /// It is in the page cache.
    A3,
    /// A split has frozen its folio.
    A4,
    /// A split or a reconstruction is finished.
    A5,
    /// The last reference on a file is gone; it is not released yet.
    L1,
    /// A fault has looked memslot and file up and holds neither.
    L2,
    /// The VM's descriptor is closed.
    L3,
    /// The node of an attribute is found; it is not read yet.
    M1,
    /// A processor fills its TLB from what a walk found.
    T1,
    /// A harvest of the dirty log has taken marks and armed their leaves; nothing is flushed yet.
    D1,
    /// Recovery has taken a table from the list of those that stand for huge leaves.
    N1,
    /// A long zap has let go of `mmu_lock` and has more to do.
    Z1,
    /// Populating a launch image is about to lock the inode.
    P1,
    /// The folio for a page of a launch image is found.
    P2,
    /// The page is copied.
    P3,
    /// A shadow page goes its own way; the entry that lets the guest write its table is not written yet.
    S1,
    /// Who owns a frame was looked up in the RMP; that is not changed yet.
    O1,
    /// It was changed.
    O2,
    /// A save area is found; nothing is noted of it yet.
    V1,
    /// The state of a processor is read for its launch.
    V2,
}

impl core::fmt::Display for Point {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}
