//! The known races and mistakes of guest_memfd and KVM's MMU, by number, and which of them this program can show.
//!
//! [`RACES`] is the one list: `bifold explore --list` prints it, `docs/races.md` is made from it, and the numbers in
//! [`Defect`]'s docs are its numbers. A race is [`Shown::By`] its defects, each with the invariant that breaks, or
//! [`Shown::Not`] yet, with the reason. Races of TDX are left out.

use emu_core::defect::Defect;

use super::Scenario;

/// Whether a race can be shown.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    /// By each of these mistakes, which breaks the invariant of that name.
    By(&'static [(Defect, &'static str)]),
    /// Not yet, because of this.
    Not(&'static str),
}

/// A race or mistake.
#[derive(Clone, Copy, Debug)]
pub struct Race {
    /// Its number.
    pub number: u8,
    /// What it is, in a line.
    pub title: &'static str,
    /// Whether it can be shown.
    pub shown: Shown,
}

macro_rules! races {
    ($($number:literal $title:literal $how:ident($($what:tt)*);)*) => {
        &[$(Race { number: $number, title: $title, shown: races!(@ $how $($what)*) },)*]
    };
    (@ By $($defect:ident $breaks:literal),*) => { Shown::By(&[$((Defect::$defect, $breaks)),*]) };
    (@ Not $why:expr) => { Shown::Not($why) };
}

/// Every one, ascending.
pub const RACES: &[Race] = races! {
    1 "a fault against a hole" By(SkipStaleCheck "B4", SampleAfterLookup "B4");
    2 "a fault against a hole that is still in progress" By(IgnoreRangeInProgress "E6");
    3 "two holes at once, of which the second resets the range" By(ResetRangeOnBegin "E2");
    4 "a user fault against the removal of a huge folio" By(MapAfterUnlock "C9");
    5 "a neighbour's huge leaf over attributes that change" By(NarrowConversion "D1", NarrowHole "D12");
    6 "records of mixed attributes read before they are recomputed" By(RecordMixedAfterEnd "D1");
    7 "a conversion that stores its attribute after the end of its invalidation" By(StoreAttributeAfterEnd "C8");
    8 "a storm of faults against conversions" Not("holds without a defect of its own: faults-convert-empty");
    9 "an MMU notifier on the user address of a guest_memfd slot" Not("holds without a defect of its own: unmap-behind-slot");
    10 "an MMU notifier against an exchange of memslots" By(ExchangeDuringNotification "E1");
    11 "a prefetch during an invalidation" By(PrefetchStale "B4");
    12 "a prefault that keeps a slot from going" By(PrefaultWaitsForSlot "E14");
    13 "a fast page fault that answers for the other side of memory" By(FastPathIgnoresPrivacy "E14");
    14 "a fast page fault whose entry went and came back for another page" By(FastPathOnShadow "I2");
    15 "a dirty flag or a mark lost to a plain store" By(PlainStore "I1", ClearAfterArming "I2");
    16 "entries that go without a flush"
        By(SkipFlush "E5", YieldWithoutFlush "E5", HarvestWithoutFlush "E8", FlushOnlyOwed "E8");
    17 "a root that is invalid and cannot be found" By(ForgetInvalidRoots "E11");
    18 "a record of large pages looked up outside of its slot" By(RecoverAroundSlot "panic");
    19 "a lookup against the last close" By(ReviveFile "A8");
    20 "an inode at the address of the one before" By(TrustReusedFile "D3");
    21 "a slot deleted while its inode goes, whose binding stays" By(KeepBinding "A2", SkipDyingFile "A2");
    22 "a slot on guest_memfd that is changed in place" By(MoveWithoutUnbind "A2");
    23 "bindings that change between begin and end" By(UnlockDuringInvalidation "E1");
    24 "a refused binding that keeps its reference" By(LeakFileOnError "A7");
    25 "a VM that is closed before its inodes" By(FileWithoutVm "A6");
    26 "a private page shown at another guest address" By(AssignAnywhere "H2");
    27 "pieces of a huge page that outlive their inode" By(EndSubpoolWithInode "panic");
    28 "a pin against the check of references" By(CountBeforeUnmap "C4");
    29 "a reference of a batch that makes a conversion fail" By(CountBatches "C5");
    30 "a transient reference that a freeze waits for" By(FreezeGivesUp "C5");
    31 "a reference that never goes" By(WaitForPins "E14");
    32 "a VMM that forgot to unmap what it converts" By(ConvertMappedPages "C3");
    33 "a refused conversion that shares private pages" By(RollbackSharesAll "C3");
    34 "a conversion in part that says it succeeded" By(SilentPartial "C6");
    35 "attributes read while their tree is freed" By(ReadFreedNode "panic");
    36 "reserved entries that count as attributes" By(CountReservedEntries "D7");
    37 "a forked process that keeps its mappings" By(UnmapOneProcess "B13");
    38 "a conversion of pages that are not there" Not("holds without a defect of its own: faults-convert-empty");
    39 "a folio split under a huge leaf" By(SplitBeforeZap "D2");
    40 "two faults that allocate one huge page" By(AllocateTwice "panic");
    41 "a fresh folio seen before it is split" By(PublishBeforeSplit "panic");
    42 "a hole in a part of a huge page that clears its neighbours" By(HoleClearsHugePage "B12", HoleClearsFromHead "B12");
    43 "populating a part of a huge page that populates nothing" By(AllocationRoundsDown "B16");
    44 "a fresh huge page of which only the first 4K is cleared" By(ClearFirst4K "B9");
    45 "descriptions that cannot be restored in the middle of a conversion" By(LeaveSplitOnError "F12");
    46 "a huge page that is never merged again" By(MergeInsideRangeOnly "F13");
    47 "a slot out of step with huge pages" By(OrderWithoutCongruence "B4");
    48 "a reservation on the wrong node" By(ReservationOverridesPolicy "F18");
    49 "a memory failure in a piece of a huge folio" By(ForgetPoisonInSplit "B18");
    50 "a memory failure against a fault" By(FailureTellsNobody "B18");
    51 "populating a launch image against a user fault, each with the other's lock" By(PopulateUnderLock "deadlock");
    52 "populating a launch image against holes" By(PopulateUnlocked "B8");
    53 "a hole over a VMSA" By(ForgetSaveArea "H11", UseKeptFrames "H12");
    54 "two PSMASH at once"
        By(SecondPsmashFails "H6", PsmashWithoutZap "D12", PsmashAfterUnlock "D12", ResizeWithoutFlush "E5", MergeAnew "H6");
    55 "a host write beside a page that becomes private" By(SplitDirectMapLate "H9", TakeBackOnHostFault "H2");
    56 "a scanner that reads private pages" By(ScanWithoutReference "H9", ScanBehindTranslations "B9");
    57 "a reference on a page that counts none" By(ReferenceDevicePages "B8");
    58 "a page used after its reference was dropped" By(MarkAfterRelease "panic");
    59 "a long mapping of a driver's page" By(MapDeviceForLong "B8");
    60 "an unsynced page marked too late" By(UnsyncAfterWritable "J3");
    61 "a write to a guest table against its first shadow" By(CountBeforeWrite "J2");
    62 "write protection that finds its work done and skips the flush" By(FlushByHardwareWrite "E7");
    63 "recovery of an NX table that was replaced" By(RecoverBlindly "panic");
    64 "aging against a change of the reverse map" By(AgeUnlocked "panic");
    65 "a device entry of an old generation" By(IgnoreMmioGeneration "I5");
    66 "a dirty ring full at its last entry" By(RingForgetsLastEntry "I2");
    67 "native and emulated accesses that see different bytes" By(OwnAccessToUserMemory "K5");
    68 "a launch that finishes beside a running processor" By(LaunchBesideProcessors "H11");
    71 "a deletion that zaps private memory of other slots" By(DeletionTakesAll "A9");
    72 "a frame that changes hands while leaves show it" By(ReclaimBeforeZap "H2", AssignBeforeZap "H13");
    73 "a frame that is given up and stays its guest's" By(FreeAssigned "H1", ClearAssigned "H7");
    74 "a part of a 2M entry that leaves, and its neighbours with it" By(TakeBackWhole "H10");
};

impl Race {
    /// The race that `defect` belongs to, and the invariant that it breaks.
    pub fn of(defect: Defect) -> Option<(&'static Race, &'static str)> {
        RACES.iter().find_map(|race| match race.shown {
            Shown::By(defects) => defects.iter().find(|shown| shown.0 == defect).map(|shown| (race, shown.1)),
            Shown::Not(_) => None,
        })
    }
}

/// The list as a table, as `docs/races.md` has it.
pub fn table() -> String {
    let mut text = String::from("| race | what | defect | scenario | breaks |\n|---|---|---|---|---|\n");
    for race in RACES {
        let (number, title) = (race.number, race.title);
        match race.shown {
            Shown::By(defects) => {
                for (defect, breaks) in defects {
                    let scenario = Scenario::showing(*defect).map_or("-", |scenario| scenario.name);
                    let defect = defect.name();
                    text.push_str(&format!("| R-{number:02} | {title} | `{defect}` | `{scenario}` | {breaks} |\n"));
                }
            }
            Shown::Not(why) => text.push_str(&format!("| R-{number:02} | {title} | - | {why} | - |\n")),
        }
    }
    text
}
