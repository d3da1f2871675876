//! Known bugs of the pipeline that can be put back in.
//!
//! Each [`Defect`] is a mistake that a real kernel had, or could have: a check that is left out, a step in the wrong
//! place. With its switch on, exploration must find the invariant that breaks; with it off, nothing. The code asks
//! [`crate::sync::Task::has`] at the one place that the defect changes.

macro_rules! defects {
    ($($(#[$doc:meta])* $defect:ident $name:literal $what:literal;)*) => {
        /// One mistake. The number is that of its race in the project's catalogue.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Defect {
            $($(#[$doc])* $defect,)*
        }

        impl Defect {
            /// Every one.
            pub const ALL: &'static [Defect] = &[$(Defect::$defect),*];

            /// Its name on a command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Defect::$defect => $name,)*
                }
            }

            /// What is wrong with a pipeline that has it.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Defect::$defect => $what,)*
                }
            }
        }
    };
}

defects! {
    /// a fault installs its entry without asking whether it is stale.
    SkipStaleCheck "skip-stale-check"
        "a fault installs its entry without asking whether it is stale";
    /// the sequence is sampled after the page was looked up.
    SampleAfterLookup "sample-after-lookup"
        "a fault samples the sequence after it looked its page up";
    /// the stale check looks at the sequence alone and not at the range in progress.
    IgnoreRangeInProgress "ignore-range-in-progress"
        "a fault asks for the sequence alone, not for the range in progress";
    /// every begin forgets the ranges of invalidations that are still in progress.
    ResetRangeOnBegin "reset-range-on-begin"
        "every begin forgets the ranges of invalidations still in progress";
    /// entries are zapped and the flush is forgotten.
    SkipFlush "skip-flush"
        "entries are zapped and the flush is forgotten";
    /// a conversion ends its invalidation before it stores the attribute.
    StoreAttributeAfterEnd "store-attribute-after-end"
        "a conversion ends its invalidation before it stores the attribute";
    /// a binding may change between the begin and the end of an invalidation.
    UnlockDuringInvalidation "unlock-during-invalidation"
        "bindings may change between the begin and the end of an invalidation";
    /// a conversion lets faults on neighbours through that may put a huge leaf over what it changes.
    NarrowConversion "narrow-conversion"
        "a conversion lets a neighbour's fault put a huge leaf over what it changes";
    /// a hole lets faults on neighbours through that may put a huge leaf over what it splits.
    NarrowHole "narrow-hole"
        "a hole lets a neighbour's fault put a huge leaf over what it splits";
    /// two faults on one huge page both allocate it.
    AllocateTwice "allocate-twice"
        "two faults on one huge page both allocate it, one more than was reserved";
    /// a slot is deleted and its binding stays.
    KeepBinding "keep-binding"
        "a slot is deleted and its binding stays";
    /// a leaf is as large as its folio, wherever the slot lies.
    OrderWithoutCongruence "order-without-congruence"
        "a leaf is as large as its folio, wherever the slot lies";
    /// a conversion to private that fails makes all of its range usable by the host.
    RollbackSharesAll "rollback-shares-all"
        "a conversion to private that fails makes all of its range usable by the host";
    /// a conversion that runs out of memory in its bookkeeping says that it succeeded.
    SilentPartial "silent-partial"
        "a conversion that runs out of memory in its bookkeeping says that it succeeded";
    /// nodes of the tree of attributes are freed at once although lookups are going on.
    ReadFreedNode "read-freed-node"
        "attributes are looked up in nodes of their tree that a store has freed";
    /// a hole inside a huge page clears all of it.
    HoleClearsHugePage "hole-clears-huge-page"
        "a hole inside a huge page clears all of it";
    /// a hole in the upper part of a huge page clears it from its first byte.
    HoleClearsFromHead "hole-clears-from-head"
        "a hole in the upper part of a huge page clears it from its first byte";
    /// both ends of a range to be populated are rounded down to huge pages.
    AllocationRoundsDown "allocation-rounds-down"
        "both ends of a range to be populated are rounded down to huge pages";
    /// only the first 4K of a fresh huge page is cleared.
    ClearFirst4K "clear-first-4k"
        "only the first 4K of a fresh huge page is cleared";
    /// only huge pages that lie in the converted range as a whole are merged.
    MergeInsideRangeOnly "merge-inside-range-only"
        "only huge pages that lie in the converted range as a whole are merged";
    /// attributes are published, and which huge pages are mixed is found out after the end of the invalidation.
    RecordMixedAfterEnd "record-mixed-after-end"
        "which huge pages have mixed attributes is recorded after the end of the invalidation";
    /// huge pages that reach out of their slot are looked at when huge leaves are put together again.
    RecoverAroundSlot "recover-around-slot"
        "huge leaves are put together again around the first page of a slot, not inside it";
    /// entries that are reserved and empty count as attributes.
    CountReservedEntries "count-reserved-entries"
        "entries that are reserved and empty count as attributes";
    /// a conversion splits the folio while a leaf still maps it whole.
    SplitBeforeZap "split-before-zap"
        "a conversion splits the folio while a leaf still maps it whole";
    /// a fresh huge page is in the page cache before it is split.
    PublishBeforeSplit "publish-before-split"
        "a fresh huge page is seen by others before it is split";
    /// a conversion that cannot split all of its folios leaves those split that it could.
    LeaveSplitOnError "leave-split-on-error"
        "a conversion that cannot split all of its folios leaves those split that it could";
    /// a split forgets which of the pieces has failed.
    ForgetPoisonInSplit "forget-poison-in-split"
        "a split forgets which of the pieces has failed";
    /// a page that is reserved comes from any node, whatever the policy says.
    ReservationOverridesPolicy "reservation-overrides-policy"
        "a page that is reserved comes from any node, whatever the policy says";
    /// references are counted before user mappings are taken away.
    CountBeforeUnmap "count-before-unmap"
        "a conversion counts references before it takes user mappings away";
    /// references of a processor's batch count as somebody's.
    CountBatches "count-batches"
        "a conversion takes the reference of a processor's own batch for somebody's";
    /// a split gives up where a reference is in the way that would soon be gone.
    FreezeGivesUp "freeze-gives-up"
        "a split gives up where a reference is in the way that would soon be gone";
    /// a conversion waits for a page to be let go, however long that takes.
    WaitForPins "wait-for-pins"
        "a conversion waits for a page to be let go, however long that takes";
    /// a reference is taken on a page that counts none.
    ReferenceDevicePages "reference-device-pages"
        "a reference is taken on a page that counts none";
    /// a fault marks its page as used after it let go of the lock and the page.
    MarkAfterRelease "mark-after-release"
        "a fault marks its page as used after it let go of the lock and the page";
    /// memory of a device is mapped for long although nothing tells when it moves.
    MapDeviceForLong "map-device-for-long"
        "memory of a device is mapped for long although nothing tells when it moves";
    /// a user fault looks its page up under the inode's lock and maps it after.
    MapAfterUnlock "map-after-unlock"
        "a user fault looks its page up under the inode's lock and maps it after";
    /// the active set of memslots is exchanged between the start and the end of a notification.
    ExchangeDuringNotification "exchange-during-notification"
        "the active set of memslots is exchanged between the start and the end of a notification";
    /// pages that users still map become private.
    ConvertMappedPages "convert-mapped-pages"
        "pages that users still map become private";
    /// pages are taken from one of the processes that map them.
    UnmapOneProcess "unmap-one-process"
        "pages are taken from one of the processes that map them";
    /// what the hypervisor does for the guest goes to the user address, whatever that shows.
    OwnAccessToUserMemory "own-access-to-user-memory"
        "what the hypervisor does for the guest goes to the user address, whatever that shows";
    /// the neighbours of a fault are mapped whatever became of them since they were looked up.
    PrefetchStale "prefetch-stale"
        "neighbours of a fault are mapped whatever became of them since they were looked up";
    /// a page of a launch image is read with the inode locked.
    PopulateUnderLock "populate-under-lock"
        "the source of a launch image is faulted in with the inode locked";
    /// the inode is unlocked between the lookup of a folio and the copy to it.
    PopulateUnlocked "populate-unlocked"
        "a launch image is copied to a folio after the inode was unlocked";
    /// a guest table becomes writable before anybody can know that its shadow does not follow.
    UnsyncAfterWritable "unsync-after-writable"
        "a guest table becomes writable before its shadow is known not to follow it";
    /// an emulated write asks whether tables are shadowed before it writes.
    CountBeforeWrite "count-before-write"
        "an emulated write asks whether any table is shadowed before it writes";
    /// mapping ahead tries again where a slot is going, whose deletion waits for it.
    PrefaultWaitsForSlot "prefault-waits-for-slot"
        "mapping ahead tries again while a slot goes, and the slot waits for it";
    /// the fast path answers an access to the other side of memory.
    FastPathIgnoresPrivacy "fast-path-ignores-privacy"
        "the fast path answers an access that means the other side of memory";
    /// faults over shadow tables have a fast path too, where an entry's place does not say which page it maps.
    FastPathOnShadow "fast-path-on-shadow"
        "the fast path serves shadow tables, where an equal entry may be of another guest page";
    /// an entry is stored plainly although others may change it without the lock.
    PlainStore "plain-store"
        "an entry is stored plainly although a processor may be setting its flags";
    /// a harvest clears its marks after it has armed the leaves.
    ClearAfterArming "clear-after-arming"
        "a harvest clears its marks after it has armed the leaves";
    /// a long zap lets go of the lock and flushes at its end.
    YieldWithoutFlush "yield-without-flush"
        "a long zap lets go of its lock between zapping and flushing";
    /// a harvest arms leaves and forgets the flush.
    HarvestWithoutFlush "harvest-without-flush"
        "a harvest of the dirty log arms leaves and forgets the flush";
    /// a harvest flushes for what it changed itself alone.
    FlushOnlyOwed "flush-only-owed"
        "a harvest flushes only where it found a writable leaf";
    /// who takes a page away does not look under roots that were given up.
    ForgetInvalidRoots "forget-invalid-roots"
        "who takes a page away does not look under roots that were given up";
    /// who protects a guest table flushes only if the leaf still says that it can be written.
    FlushByHardwareWrite "flush-by-hardware-write"
        "protecting a guest table flushes only where the processor's own bit says that it can be written";
    /// aging walks the reverse map of a guest frame without locking it.
    AgeUnlocked "age-unlocked"
        "aging walks the reverse map of a guest frame without locking it";
    /// recovery empties the entry that led to a table without looking at it again.
    RecoverBlindly "recover-blindly"
        "NX recovery empties an entry that no longer leads to its table";
    /// what says that no memory is somewhere is believed in every generation.
    IgnoreMmioGeneration "ignore-mmio-generation"
        "an entry for a device is believed whatever became of the memslots since";
    /// the write that fills a dirty ring is not pushed.
    RingForgetsLastEntry "ring-forgets-last-entry"
        "the write that fills a dirty ring is left to be found after the exit";
    /// an inode whose file is gone serves whoever still has it at hand.
    ReviveFile "revive-file"
        "an inode whose last file was closed serves whoever still has it at hand";
    /// a fault takes memslot and file for those that it looked up, because they lie where those lay.
    TrustReusedFile "trust-reused-file"
        "a fault takes a memslot and a file for those that it looked up, because they lie where those lay";
    /// a slot deleted while its file goes leaves its binding behind.
    SkipDyingFile "skip-dying-file"
        "a slot that is deleted while its file goes leaves its binding behind";
    /// a slot moves and its binding stays where it was.
    MoveWithoutUnbind "move-without-unbind"
        "a slot moves and its binding stays where it was";
    /// a refused binding keeps its reference on the file.
    LeakFileOnError "leak-file-on-error"
        "a refused binding keeps its reference on the file";
    /// a file holds no reference on its VM.
    FileWithoutVm "file-without-vm"
        "a file of guest_memfd holds no reference on its VM";
    /// an inode takes its subpool with it although pieces of its huge pages are still held.
    EndSubpoolWithInode "end-subpool-with-inode"
        "an inode takes its subpool with it although pieces of its huge pages are still held";
    /// a memory failure neither zaps nor invalidates.
    FailureTellsNobody "failure-tells-nobody"
        "a memory failure neither zaps nor invalidates";
    /// a page counts as prepared if its frame is assigned, to whatever guest address.
    AssignAnywhere "assign-anywhere"
        "a page whose frame is assigned to another guest address counts as prepared";
    /// a hole does not tell a processor that its save area is in it.
    ForgetSaveArea "forget-save-area"
        "a hole tells no processor that its save area goes";
    /// a frame that its guest's hardware keeps goes back to the allocator.
    UseKeptFrames "use-kept-frames"
        "a frame that did not come back from its guest is handed out again";
    /// a processor whose PSMASH comes second takes that for an error.
    SecondPsmashFails "second-psmash-fails"
        "who finds that another processor has split the entry gives up";
    /// an entry of the reverse map is split under the leaf that shows it whole.
    PsmashWithoutZap "psmash-without-zap"
        "an entry is split by PSMASH while a leaf shows it whole";
    /// an entry of the reverse map is split after the leaf went and others may fault again.
    PsmashAfterUnlock "psmash-after-unlock"
        "an entry is split by PSMASH when faults may put its leaf back already";
    /// translations of a leaf survive the change of its entry's size.
    ResizeWithoutFlush "resize-without-flush"
        "the leaf of an entry that is split goes without a flush";
    /// entries are merged by giving them back and assigning them anew.
    MergeAnew "merge-anew"
        "entries are merged by assigning their 2M anew, and what the guest accepted is forgotten";
    /// the host's own map is split after the page in it was assigned.
    SplitDirectMapLate "split-direct-map-late"
        "the host's map is split around a page after it was assigned to a guest";
    /// the host takes a page back that it cannot write.
    TakeBackOnHostFault "take-back-on-host-fault"
        "the host takes a page from its guest because a write to it faulted";
    /// a scanner of the host writes to a page that it does not hold.
    ScanWithoutReference "scan-without-reference"
        "a scanner of the host writes to a page that it holds no reference on";
    /// a host that reads ciphertext leaves it to the guest.
    ScanBehindTranslations "scan-behind-translations"
        "a guest goes on by translations to a page that the host made ciphertext of";
    /// a launch reads the state of processors that may run meanwhile.
    LaunchBesideProcessors "launch-beside-processors"
        "a launch takes the state of processors that it does not stop";
    /// the deletion of a slot takes the private pages of all slots from the guest.
    DeletionTakesAll "deletion-takes-all"
        "the deletion of a memslot drops what is private in all others";
    /// frames are taken from the guest while leaves show them.
    ReclaimBeforeZap "reclaim-before-zap"
        "a conversion takes frames from the guest while leaves show them";
    /// frames are assigned to the guest while leaves of shared memory show them.
    AssignBeforeZap "assign-before-zap"
        "a conversion assigns frames while leaves of shared memory show them";
    /// frames are freed that are the guest's still.
    FreeAssigned "free-assigned"
        "frames are freed before the guest's hardware gave them back";
    /// a hole inside a huge page clears a page that is the guest's still.
    ClearAssigned "clear-assigned"
        "a hole clears a page in place and does not take it from the guest";
    /// of a 2M entry more is taken back than becomes shared.
    TakeBackWhole "take-back-whole"
        "one shared page takes all of the 2M entry around it from the guest";
}

impl Defect {
    /// The defect of this name.
    pub fn named(name: &str) -> Option<Defect> {
        Defect::ALL.iter().copied().find(|defect| defect.name() == name)
    }

    const fn bit(self) -> u128 {
        1 << self as u8
    }
}

/// A set of defects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Defects(u128);

impl Defects {
    /// A correct pipeline.
    pub const NONE: Defects = Defects(0);

    /// This one alone.
    pub const fn only(defect: Defect) -> Defects {
        Defects(defect.bit())
    }

    /// These and another.
    #[must_use]
    pub const fn and(self, defect: Defect) -> Defects {
        Defects(self.0 | defect.bit())
    }

    /// Whether `defect` is among them.
    #[inline]
    pub const fn contains(self, defect: Defect) -> bool {
        self.0 & defect.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_defect_is_its_own() {
        for &one in Defect::ALL {
            assert_eq!(Defect::named(one.name()), Some(one));
            for &other in Defect::ALL {
                assert_eq!(Defects::only(one).contains(other), one == other);
                assert!(Defects::only(one).and(other).contains(other));
            }
            assert!(!Defects::NONE.contains(one));
        }
    }
}
