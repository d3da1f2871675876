//! Making and altering leaves (`arch/x86/kvm/mmu/spte.c`: `make_spte`, `make_small_spte`, `make_huge_spte`,
//! `mark_spte_for_access_track`).
//!
//! A leaf's writability has three parts: what hardware sees (W), what the MMU would grant (MMU-writable) and what the
//! host grants (Host-writable). Each implies the next, which leaves four legal rows: [`WriteState`]. Whether accesses are
//! recorded by the processor or by making the leaf unreadable is a property of the leaf too: [`AdType`].
//!
//! Always true of what is made here: the writable state is a legal row; a leaf above 4K that the NX workaround forbids
//! to execute has no X; a leaf that nobody has touched yet is not marked accessed.

use emu_core::{AccessKind, MemoryType, PageSize, Sfn};

use super::spte::{Entry, HUGE, Level, PRESENT, READ, Rights, Spte, TdpFormat, WRITE, ept, npt};

/// How accesses and stores through a leaf are recorded (`SPTE_TDP_AD_*`, bits 61:60 of an EPT entry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum AdType {
    /// By the processor, in the entry.
    #[default]
    Enabled,
    /// Not by the processor: a leaf is aged by taking its rights away until it is used again, and whatever may be written
    /// counts as written.
    Disabled,
    /// By the processor, but what was written is found by write protection alone: page-modification logging would log
    /// addresses of another address space here.
    WriteProtectOnly,
}

/// The legal rows of W, MMU-writable and Host-writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteState {
    /// 1 1 1: stores go through.
    Writable,
    /// 0 1 1: withheld to learn of the next store or access; the fast path may grant it.
    Withheld,
    /// 0 0 1: something depends on the page's bytes; stores must be emulated or the dependence undone first.
    Tracked,
    /// 0 0 0: the host lets nobody write.
    HostReadOnly,
}

/// Whether the host lets the page be written at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostAccess {
    /// It does.
    Writable,
    /// A read-only memslot, or a mapping that the host may not write.
    ReadOnly,
}

/// Why a leaf is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Touch {
    /// The access that faulted is about to happen.
    Demand,
    /// Nobody asked yet (`fault->prefetch`): not accessed.
    Ahead,
}

/// What a leaf is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewLeaf {
    /// First frame, a multiple of the size.
    pub sfn: Sfn,
    /// Its size.
    pub size: PageSize,
    /// What it allows. W is granted only if the host does too.
    pub rights: Rights,
    /// What the host allows.
    pub host: HostAccess,
    /// Why it is made.
    pub touch: Touch,
    /// How its accesses are recorded.
    pub ad: AdType,
}

impl TdpFormat {
    #[inline]
    const fn host_writable(self) -> u64 {
        match self {
            TdpFormat::Npt => npt::HOST_WRITABLE,
            TdpFormat::Ept => ept::HOST_WRITABLE,
        }
    }

    #[inline]
    const fn mmu_writable(self) -> u64 {
        match self {
            TdpFormat::Npt => npt::MMU_WRITABLE,
            TdpFormat::Ept => ept::MMU_WRITABLE,
        }
    }

    /// How accesses through `spte` are recorded. NPT always has accessed and dirty flags.
    #[inline]
    pub const fn ad_type(self, spte: Spte) -> AdType {
        match (self, spte.raw() >> ept::AD_TYPE_SHIFT & 3) {
            (TdpFormat::Npt, _) | (_, 0) => AdType::Enabled,
            (_, 1) => AdType::Disabled,
            _ => AdType::WriteProtectOnly,
        }
    }

    /// The flags that a processor may set in `spte`.
    #[inline]
    pub const fn ad_bits(self, spte: Spte) -> u64 {
        match self.ad_type(spte) {
            AdType::Disabled => 0,
            AdType::Enabled | AdType::WriteProtectOnly => self.accessed() | self.dirty(),
        }
    }

    /// `make_spte`: the one maker of leaves.
    #[inline]
    pub const fn make(self, new: &NewLeaf) -> Spte {
        let host = matches!(new.host, HostAccess::Writable);
        let writable = host && new.rights.contains(Rights::WRITE);
        let executable = new.rights.contains(Rights::EXECUTE);
        let mut raw = new.sfn.base().raw() & super::spte::FRAME | READ | PRESENT;
        if !matches!(new.size, PageSize::Size4K) {
            raw |= HUGE;
        }
        if host {
            raw |= self.host_writable();
        }
        if writable {
            raw |= self.mmu_writable() | WRITE;
        }
        let records = match self {
            TdpFormat::Npt => {
                raw |= npt::USER | if executable { 0 } else { npt::NX };
                true
            }
            TdpFormat::Ept => {
                raw |= (MemoryType::WriteBack as u64) << ept::MEMTYPE_SHIFT | ept::IGNORE_PAT;
                raw |= if executable { ept::EXECUTE } else { 0 } | (new.ad as u64) << ept::AD_TYPE_SHIFT;
                !matches!(new.ad, AdType::Disabled)
            }
        };
        if records {
            raw |= match new.touch {
                Touch::Demand => self.accessed(),
                Touch::Ahead => 0,
            } | if writable { self.dirty() } else { 0 };
        }
        match new.touch {
            Touch::Ahead if !records => self.track_access(Spte::from_raw(raw)),
            _ => Spte::from_raw(raw),
        }
    }

    /// A leaf of `size` for an access that is about to happen, with the processor's flags.
    pub const fn leaf(self, sfn: Sfn, size: PageSize, rights: Rights) -> Spte {
        let host = if rights.contains(Rights::WRITE) { HostAccess::Writable } else { HostAccess::ReadOnly };
        self.make(&NewLeaf { sfn, size, rights, host, touch: Touch::Demand, ad: AdType::Enabled })
    }

    /// The row that a leaf is in; `None` for what may not be.
    #[inline]
    pub const fn write_state(self, leaf: Spte) -> Option<WriteState> {
        let raw = leaf.raw();
        match (raw & WRITE != 0, raw & self.mmu_writable() != 0, raw & self.host_writable() != 0) {
            (true, true, true) => Some(WriteState::Writable),
            (false, true, true) => Some(WriteState::Withheld),
            (false, false, true) => Some(WriteState::Tracked),
            (false, false, false) => Some(WriteState::HostReadOnly),
            _ => None,
        }
    }

    /// Whether a leaf lost its rights so that its next use is noticed (`is_access_track_spte`).
    #[inline]
    pub const fn is_access_tracked(self, leaf: Spte) -> bool {
        matches!(self.ad_type(leaf), AdType::Disabled) && leaf.raw() & (READ | WRITE | ept::EXECUTE) == 0
    }

    /// Whether an access of `kind` goes through a leaf.
    #[inline]
    pub fn allows(self, leaf: Spte, level: Level, kind: AccessKind) -> bool {
        match self.read(leaf, level) {
            Entry::Leaf { rights, .. } => rights.allow(kind) && !self.is_access_tracked(leaf),
            _ => false,
        }
    }

    /// Whether a leaf was used since it was made or aged.
    #[inline]
    pub const fn is_accessed(self, leaf: Spte) -> bool {
        match self.ad_type(leaf) {
            AdType::Disabled => !self.is_access_tracked(leaf),
            AdType::Enabled | AdType::WriteProtectOnly => leaf.raw() & self.accessed() != 0,
        }
    }

    /// Whether a leaf may have been written since it was made or harvested.
    #[inline]
    pub const fn is_dirty(self, leaf: Spte) -> bool {
        match self.ad_type(leaf) {
            AdType::Enabled => leaf.raw() & self.dirty() != 0,
            AdType::Disabled | AdType::WriteProtectOnly => leaf.raw() & WRITE != 0,
        }
    }

    /// Whether another writer may change a leaf without `mmu_lock`, so that only an exchange may replace it: the fast path
    /// may grant W, or give tracked rights back; the processor may set D. A lost A is tolerated (`spte_needs_atomic_update`).
    pub const fn is_volatile(self, leaf: Spte) -> bool {
        let writable = leaf.raw() & WRITE != 0;
        let withheld = matches!(self.write_state(leaf), Some(WriteState::Withheld));
        withheld || matches!(self.ad_type(leaf), AdType::Disabled) || writable && leaf.raw() & self.dirty() == 0
    }

    /// Ages a leaf: the accessed flag goes, or the rights do, kept aside for [`TdpFormat::restore_access`]. W is not kept:
    /// MMU-writable says whether it may come back.
    pub const fn age(self, leaf: Spte) -> Spte {
        match self.ad_type(leaf) {
            AdType::Disabled => self.track_access(leaf),
            AdType::Enabled | AdType::WriteProtectOnly => Spte::from_raw(leaf.raw() & !self.accessed()),
        }
    }

    /// `mark_spte_for_access_track`.
    const fn track_access(self, leaf: Spte) -> Spte {
        if self.is_access_tracked(leaf) {
            return leaf;
        }
        let raw = leaf.raw();
        let saved = (raw & (READ | ept::EXECUTE)) << ept::SAVED_SHIFT;
        Spte::from_raw(raw & !(READ | WRITE | ept::EXECUTE) | saved)
    }

    /// Gives an access-tracked leaf its R and X back (`restore_acc_track_spte`); any other leaf is left as it is.
    pub const fn restore_access(self, leaf: Spte) -> Spte {
        if !self.is_access_tracked(leaf) {
            return leaf;
        }
        let saved = (READ | ept::EXECUTE) << ept::SAVED_SHIFT;
        Spte::from_raw(leaf.raw() & !saved | (leaf.raw() & saved) >> ept::SAVED_SHIFT)
    }

    /// Grants what is withheld: W on top of [`WriteState::Withheld`]; any other leaf is left as it is.
    pub const fn grant_write(self, leaf: Spte) -> Spte {
        match self.write_state(leaf) {
            Some(WriteState::Withheld) => Spte::from_raw(leaf.raw() | WRITE),
            _ => leaf,
        }
    }

    /// Withholds stores so that the next one is noticed: the fast path may grant them again.
    pub const fn withhold_write(self, leaf: Spte) -> Spte {
        Spte::from_raw(leaf.raw() & !WRITE)
    }

    /// Forbids stores because something depends on the page's bytes.
    pub const fn track_write(self, leaf: Spte) -> Spte {
        Spte::from_raw(leaf.raw() & !(WRITE | self.mmu_writable()))
    }

    /// The `n`th part of a leaf of `level`, one level down, with everything the whole has (`make_small_spte`). `execute`
    /// says that parts of 4K may be executed although the whole may not.
    pub fn part(self, whole: Spte, level: Level, n: u64, execute: SplitExecute) -> Spte {
        let Some(below) = level.below() else { return whole };
        let mut raw = whole.raw() + n * below.frames() * PageSize::Size4K.bytes();
        if below.below().is_none() {
            raw &= !HUGE;
            if execute == SplitExecute::Grant {
                raw = match self {
                    TdpFormat::Npt => raw & !npt::NX,
                    TdpFormat::Ept if self.is_access_tracked(whole) => raw | ept::EXECUTE << ept::SAVED_SHIFT,
                    TdpFormat::Ept => raw | ept::EXECUTE,
                };
            }
        }
        Spte::from_raw(raw)
    }

    /// The leaf of `level` that covers a leaf one level down (`make_huge_spte`), without X when the NX workaround says so.
    pub fn whole(self, part: Spte, level: Level, execute: WholeExecute) -> Spte {
        let mask = (level.frames() - 1) * PageSize::Size4K.bytes();
        let mut raw = part.raw() & !(mask & super::spte::FRAME) | HUGE;
        if execute == WholeExecute::Forbid {
            raw = match self {
                TdpFormat::Npt => raw | npt::NX,
                TdpFormat::Ept => raw & !(ept::EXECUTE | ept::EXECUTE << ept::SAVED_SHIFT),
            };
        }
        Spte::from_raw(raw)
    }
}

/// Whether 4K parts of a leaf that may not be executed may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitExecute {
    /// They may: the NX workaround withheld X because of the size alone.
    Grant,
    /// They have what the whole has.
    Keep,
}

/// Whether a leaf put together from parts may be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WholeExecute {
    /// As its parts.
    Keep,
    /// The NX workaround forbids it.
    Forbid,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMATS: [TdpFormat; 2] = [TdpFormat::Npt, TdpFormat::Ept];
    const AD: [AdType; 3] = [AdType::Enabled, AdType::Disabled, AdType::WriteProtectOnly];

    /// Every leaf that can be made.
    fn every_leaf() -> impl Iterator<Item = (TdpFormat, NewLeaf)> {
        FORMATS.into_iter().flat_map(|format| {
            PageSize::ALL.into_iter().flat_map(move |size| {
                (0..4).flat_map(move |rights| {
                    [HostAccess::Writable, HostAccess::ReadOnly].into_iter().flat_map(move |host| {
                        [Touch::Demand, Touch::Ahead].into_iter().flat_map(move |touch| {
                            AD.into_iter().map(move |ad| {
                                let sfn = Sfn::new(0xff_c000_0000 >> 4).align_down(PageSize::Size1G);
                                let rights = Rights::from_bits_truncate(rights);
                                (format, NewLeaf { sfn, size, rights, host, touch, ad })
                            })
                        })
                    })
                })
            })
        })
    }

    #[test]
    fn every_leaf_and_what_becomes_of_it_is_in_a_legal_row() {
        for (format, new) in every_leaf() {
            let leaf = format.make(&new);
            let granted = new.host == HostAccess::Writable && new.rights.contains(Rights::WRITE);
            let expected = match (granted, new.host) {
                (true, _) if format.is_access_tracked(leaf) => WriteState::Withheld,
                (true, _) => WriteState::Writable,
                (false, HostAccess::Writable) => WriteState::Tracked,
                (false, HostAccess::ReadOnly) => WriteState::HostReadOnly,
            };
            assert_eq!(format.write_state(leaf), Some(expected), "{new:?}");
            for altered in [
                format.age(leaf),
                format.restore_access(format.age(leaf)),
                format.withhold_write(leaf),
                format.grant_write(format.withhold_write(leaf)),
                format.track_write(leaf),
                format.without(leaf, u64::MAX),
            ] {
                assert!(format.write_state(altered).is_some(), "{altered:?}");
            }
            assert_ne!(format.write_state(format.track_write(leaf)), Some(WriteState::Writable));
        }
    }

    #[test]
    fn what_nobody_touched_is_not_accessed_and_tracking_gives_back_what_it_took() {
        for (format, new) in every_leaf() {
            let leaf = format.make(&new);
            assert_eq!(format.is_accessed(leaf), new.touch == Touch::Demand, "{new:?}");
            let aged = format.age(leaf);
            assert!(!format.is_accessed(aged));
            assert_eq!(format.age(aged), aged, "aging twice is aging once");
            let used = NewLeaf { touch: Touch::Demand, ..new };
            if format.ad_type(leaf) == AdType::Disabled {
                let restored = format.grant_write(format.restore_access(aged));
                assert_eq!(restored, format.make(&used), "R and X come back from their place, W from MMU-writable");
                let level = Level::of_leaf(new.size);
                assert!(
                    !format.allows(aged, level, AccessKind::Read) && format.allows(restored, level, AccessKind::Read)
                );
            }
        }
    }

    #[test]
    fn software_bits_are_where_linux_has_them() {
        let new = NewLeaf {
            sfn: Sfn::new(0x12345),
            size: PageSize::Size4K,
            rights: Rights::all(),
            host: HostAccess::Writable,
            touch: Touch::Demand,
            ad: AdType::Enabled,
        };
        assert_eq!(TdpFormat::Npt.make(&new).raw(), 0x1234_5000 | 1 << 11 | 1 << 10 | 1 << 9 | 1 << 6 | 1 << 5 | 7);
        let ept = 0x1234_5000 | 1 << 55 | 1 << 53 | 1 << 11 | 1 << 6 | 6 << 3 | 7;
        assert_eq!(TdpFormat::Ept.make(&new).raw(), ept | 3 << 8);
        let disabled = NewLeaf { ad: AdType::Disabled, ..new };
        assert_eq!(TdpFormat::Ept.make(&disabled).raw(), ept | 1 << 60);
        let untouched = NewLeaf { touch: Touch::Ahead, ..disabled };
        assert_eq!(TdpFormat::Ept.make(&untouched).raw(), ept & !7 | 1 << 60 | 1 << 52 | 1 << 54);
        let nested = NewLeaf { ad: AdType::WriteProtectOnly, ..new };
        assert_eq!(TdpFormat::Ept.make(&nested).raw(), ept | 2 << 60 | 3 << 8);
    }

    proptest! {
        #[test]
        fn parts_have_all_that_the_whole_has(
            ept in any::<bool>(), level in 1_usize..3, rights in 0_u8..4, n in 0_u64..512,
            ahead in any::<bool>(), disabled in any::<bool>(), withheld in any::<bool>(),
        ) {
            let format = FORMATS[usize::from(ept)];
            let level = Level::of_leaf(PageSize::ALL[level]);
            let new = NewLeaf {
                sfn: Sfn::new(7 << 18),
                size: level.leaf_size().unwrap(),
                rights: Rights::from_bits_truncate(rights),
                host: HostAccess::Writable,
                touch: if ahead { Touch::Ahead } else { Touch::Demand },
                ad: if disabled { AdType::Disabled } else { AdType::Enabled },
            };
            let mut whole = format.make(&new);
            if withheld {
                whole = format.withhold_write(whole);
            }
            let below = level.below().unwrap();
            let part = format.part(whole, level, n, SplitExecute::Keep);
            let expected = Entry::Leaf {
                sfn: Sfn::new((7 << 18) + n * below.frames()),
                rights: match format.read(whole, level) {
                    Entry::Leaf { rights, .. } => rights,
                    other => panic!("{other:?}"),
                },
            };
            prop_assert_eq!(format.read(part, below), expected);
            prop_assert_eq!(format.write_state(part), format.write_state(whole));
            prop_assert_eq!(
                (format.is_accessed(part), format.is_dirty(part), format.ad_type(part), format.is_access_tracked(part)),
                (format.is_accessed(whole), format.is_dirty(whole), format.ad_type(whole), format.is_access_tracked(whole))
            );
            prop_assert_eq!(format.whole(part, level, WholeExecute::Keep), whole, "and back");
        }
    }
}
