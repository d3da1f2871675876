//! One entry of the RMP: sixteen bytes about one 4 KiB page of system memory, or about the 2 MiB page that starts there.
//!
//! The layout is not architectural: it is that of family 19h processors, which AMD publishes in the processor's reference
//! and in the sources of its firmware, and which Linux reads directly (`struct rmpentry` of arch/x86/virt/svm/sev.c). It is
//! declared here once; [`RmpEntry`] has getters and no public fields. What an entry means together with its neighbours is
//! `table`'s subject: all that leaves this crate is the *effective* entry of a page.

use bitflags::bitflags;
use emu_core::sev::Vmpl;
use emu_core::{Gpa, PageSize};

use crate::stage2::Asid;

/// Frames in a 2 MiB page, and slots in a region of the table.
pub(super) const REGION_FRAMES: u64 = PageSize::Size2M.frames();

/// Page size of an RMP entry, and of an operand of the instructions that change entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmpPageSize {
    /// 4 KiB, encoded as 0.
    Size4K,
    /// 2 MiB, encoded as 1.
    Size2M,
}

impl RmpPageSize {
    /// 4 KiB frames in a page of this size.
    #[inline]
    pub const fn frames(self) -> u64 {
        self.page_size().frames()
    }
    /// The same as a page size of tables.
    #[inline]
    pub const fn page_size(self) -> PageSize {
        match self {
            RmpPageSize::Size4K => PageSize::Size4K,
            RmpPageSize::Size2M => PageSize::Size2M,
        }
    }
    /// The size that a nested leaf of `mapped` must find in the RMP: for leaves of 1 GiB it is that of their 2 MiB parts.
    #[inline]
    pub const fn wanted_by(mapped: PageSize) -> RmpPageSize {
        match mapped {
            PageSize::Size4K => RmpPageSize::Size4K,
            PageSize::Size2M | PageSize::Size1G => RmpPageSize::Size2M,
        }
    }
}

bitflags! {
    /// What a privilege level may do with a page (APM vol. 2, "VMPL Permission Checks").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct VmplPermissions: u8 {
        /// Reads.
        const READ = 1 << 0;
        /// Writes. Without reads the combination is illegal, and no data access succeeds.
        const WRITE = 1 << 1;
        /// Fetches at CPL 3.
        const EXECUTE_USER = 1 << 2;
        /// Fetches at CPL 0 to 2.
        const EXECUTE_SUPERVISOR = 1 << 3;
        /// The page may be a supervisor shadow stack.
        const SSS = 1 << 4;
    }
}

/// States of a page, as the firmware names them (the sources of AMD's SEV firmware, RMP page states).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// The hypervisor's.
    Hypervisor,
    /// The hypervisor's until SNP ends: no instruction changes it.
    HvFixed,
    /// The firmware's.
    Firmware,
    /// Given back by the firmware, not yet taken by the hypervisor.
    Reclaim,
    /// The firmware keeps a guest's context in it.
    Context,
    /// The firmware keeps data about swapped pages in it.
    Metadata,
    /// A guest's, before launch or for the firmware to work on.
    PreGuest,
    /// A guest's, on its way out.
    PreSwap,
    /// A guest's, which has not validated it.
    GuestInvalid,
    /// A guest's, which has validated it.
    GuestValid,
}

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RmpEntry {
    /// Quadwords 0 and 1 as they are in memory.
    words: [u64; 2],
}

mod layout {
    pub(super) const ASSIGNED: u64 = 1 << 0;
    pub(super) const PAGE_SIZE: u64 = 1 << 1;
    pub(super) const IMMUTABLE: u64 = 1 << 2;
    /// In the slot of a 2 MiB boundary, unless its page is of 2 MiB: how many of the other 511 slots are assigned.
    pub(super) const SUBPAGE_COUNT: u64 = 0x1ff << SUBPAGE_COUNT_SHIFT;
    pub(super) const SUBPAGE_COUNT_SHIFT: u32 = 3;
    /// Bits 50:12, in place.
    pub(super) const GPA: u64 = 0x0007_ffff_ffff_f000;
    pub(super) const ASID: u64 = 0x3ff << ASID_SHIFT;
    pub(super) const ASID_SHIFT: u32 = 51;
    pub(super) const VMSA: u64 = 1 << 61;
    pub(super) const VALIDATED: u64 = 1 << 62;
    pub(super) const LOCK: u64 = 1 << 63;
}

/// The largest ASID an entry can carry. All ones is how the firmware marks a slot that fits nobody.
pub(super) const MAX_ASID: Asid = Asid(0x3fe);

macro_rules! flags {
    ($($(#[$meta:meta])* $get:ident, $with:ident = $BIT:ident;)*) => {$(
        $(#[$meta])*
        #[inline]
        pub const fn $get(self) -> bool {
            self.words[0] & layout::$BIT != 0
        }
        pub(super) const fn $with(self, set: bool) -> RmpEntry {
            let word = if set { self.words[0] | layout::$BIT } else { self.words[0] & !layout::$BIT };
            RmpEntry { words: [word, self.words[1]] }
        }
    )*};
}

impl RmpEntry {
    /// A page of the hypervisor.
    pub(super) const HYPERVISOR: RmpEntry = RmpEntry { words: [0, 0] };
    /// What is in the other 511 slots of a 2 MiB page.
    pub(super) const PART_OF_2M: RmpEntry = RmpEntry { words: [layout::ASSIGNED, 0] };
    /// What an entry reads as where no memory answers: it fits nobody.
    pub(super) const NO_MEMORY: RmpEntry = RmpEntry { words: [u64::MAX, u64::MAX] };

    flags! {
        /// The page is a guest's or the firmware's.
        assigned, with_assigned = ASSIGNED;
        /// The page may not be used by its guest, and no instruction changes its owner.
        immutable, with_immutable = IMMUTABLE;
        /// A virtual processor may run from the page.
        vmsa, with_vmsa = VMSA;
        /// The guest (or the firmware at launch) has accepted the page.
        validated, with_validated = VALIDATED;
        /// The firmware works on the page.
        locked, with_locked = LOCK;
    }

    pub(super) const fn from_words(words: [u64; 2]) -> RmpEntry {
        RmpEntry { words }
    }
    /// The sixteen bytes as two quadwords: what is in memory for a page whose entry this is, for dumps and messages.
    pub const fn words(self) -> [u64; 2] {
        self.words
    }

    /// Page_Size.
    #[inline]
    pub const fn page_size(self) -> RmpPageSize {
        if self.words[0] & layout::PAGE_SIZE != 0 { RmpPageSize::Size2M } else { RmpPageSize::Size4K }
    }
    pub(super) const fn with_page_size(self, size: RmpPageSize) -> RmpEntry {
        let rest = self.words[0] & !layout::PAGE_SIZE;
        let bit = match size {
            RmpPageSize::Size4K => 0,
            RmpPageSize::Size2M => layout::PAGE_SIZE,
        };
        RmpEntry { words: [rest | bit, self.words[1]] }
    }

    /// Subpage_Count.
    #[inline]
    pub(super) const fn subpage_count(self) -> u64 {
        (self.words[0] & layout::SUBPAGE_COUNT) >> layout::SUBPAGE_COUNT_SHIFT
    }
    pub(super) const fn with_subpage_count(self, count: u64) -> RmpEntry {
        let rest = self.words[0] & !layout::SUBPAGE_COUNT;
        RmpEntry { words: [rest | count << layout::SUBPAGE_COUNT_SHIFT & layout::SUBPAGE_COUNT, self.words[1]] }
    }

    /// Guest_Physical_Address: where the page is in its guest's memory.
    #[inline]
    pub const fn gpa(self) -> Gpa {
        Gpa::new(self.words[0] & layout::GPA)
    }
    /// Whether an entry can carry `gpa`: a page's first byte, below 2^51.
    pub(super) const fn carries_gpa(gpa: Gpa) -> bool {
        gpa.raw() & !layout::GPA == 0
    }
    /// `gpa` must be one that [`RmpEntry::carries_gpa`]; what is wider is cut off.
    pub(super) const fn with_gpa(self, gpa: Gpa) -> RmpEntry {
        RmpEntry { words: [self.words[0] & !layout::GPA | gpa.raw() & layout::GPA, self.words[1]] }
    }

    /// ASID: whose the page is; 0 unless a guest's.
    #[inline]
    pub const fn asid(self) -> Asid {
        Asid(((self.words[0] & layout::ASID) >> layout::ASID_SHIFT) as u32)
    }
    pub(super) const fn with_asid(self, asid: Asid) -> RmpEntry {
        let bits = (asid.0 as u64) << layout::ASID_SHIFT & layout::ASID;
        RmpEntry { words: [self.words[0] & !layout::ASID | bits, self.words[1]] }
    }

    /// The permissions of `vmpl`.
    #[inline]
    pub const fn permissions(self, vmpl: Vmpl) -> VmplPermissions {
        VmplPermissions::from_bits_truncate((self.words[1] >> (8 * vmpl.index())) as u8)
    }
    pub(super) const fn with_permissions(self, vmpl: Vmpl, permissions: VmplPermissions) -> RmpEntry {
        let shift = 8 * vmpl.index();
        let word = self.words[1] & !(0xff << shift) | (permissions.bits() as u64) << shift;
        RmpEntry { words: [self.words[0], word] }
    }
    /// VMPL 0 may do everything, the others nothing.
    pub(super) const fn with_first_permissions(self) -> RmpEntry {
        RmpEntry { words: [self.words[0], 0] }.with_permissions(Vmpl::Vmpl0, VmplPermissions::all())
    }

    /// The entry of the 4 KiB page with this number within a 2 MiB page, if it were on its own: what PSMASH stores.
    pub(super) const fn part(self, number: u64) -> RmpEntry {
        self.with_page_size(RmpPageSize::Size4K).with_gpa(self.gpa().wrapping_add(number * PageSize::Size4K.bytes()))
    }

    /// The firmware's name for what the entry says.
    pub const fn state(self) -> PageState {
        let guest = self.asid().0 != 0;
        match (self.assigned(), self.immutable()) {
            (false, false) => PageState::Hypervisor,
            (false, true) => PageState::HvFixed,
            (true, true) if guest && self.validated() => PageState::PreSwap,
            (true, true) if guest => PageState::PreGuest,
            (true, true) if self.vmsa() => PageState::Context,
            (true, true) if self.gpa().raw() != 0 => PageState::Metadata,
            (true, true) => PageState::Firmware,
            (true, false) if !guest => PageState::Reclaim,
            (true, false) if self.validated() => PageState::GuestValid,
            (true, false) => PageState::GuestInvalid,
        }
    }
}

impl core::fmt::Debug for RmpEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let permissions = Vmpl::ALL.map(|vmpl| self.permissions(vmpl).bits());
        write!(f, "{:?} {:?} asid {} {:?}", self.state(), self.page_size(), self.asid().0, self.gpa())?;
        for (set, name) in [(self.validated(), "validated"), (self.vmsa(), "VMSA"), (self.locked(), "locked")] {
            if set {
                write!(f, " {name}")?;
            }
        }
        write!(f, " permissions {permissions:x?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_bits_and_no_other() {
        let none = RmpEntry::HYPERVISOR;
        let gpa = Gpa::new(0x0007_ffff_ffff_f000);
        for (entry, words) in [
            (none.with_assigned(true), [1, 0]),
            (none.with_page_size(RmpPageSize::Size2M), [2, 0]),
            (none.with_immutable(true), [4, 0]),
            (none.with_subpage_count(511), [0xff8, 0]),
            (none.with_gpa(gpa), [0x0007_ffff_ffff_f000, 0]),
            (none.with_asid(Asid(0x3ff)), [0x1ff8_0000_0000_0000, 0]),
            (none.with_vmsa(true), [1 << 61, 0]),
            (none.with_validated(true), [1 << 62, 0]),
            (none.with_locked(true), [1 << 63, 0]),
            (none.with_permissions(Vmpl::Vmpl0, VmplPermissions::all()), [0, 0x1f]),
            (none.with_permissions(Vmpl::Vmpl3, VmplPermissions::WRITE), [0, 0x0200_0000]),
        ] {
            assert_eq!(entry.words(), words);
        }
        let all = RmpEntry::NO_MEMORY;
        assert_eq!(all.with_gpa(Gpa::new(0)).gpa(), Gpa::new(0));
        assert_eq!(all.with_asid(Asid(5)).asid(), Asid(5));
        assert_eq!(all.with_subpage_count(3).subpage_count(), 3);
        assert!(!RmpEntry::carries_gpa(Gpa::new(1 << 51)) && !RmpEntry::carries_gpa(Gpa::new(0x800)));
    }

    #[test]
    fn what_the_firmware_writes_at_the_start_reads_as_its_states() {
        assert_eq!(RmpEntry::from_words([0, 0]).state(), PageState::Hypervisor);
        assert_eq!(RmpEntry::from_words([4, 0]).state(), PageState::HvFixed);
        assert_eq!(RmpEntry::from_words([0x8000_0000_0000_0005, 0]).state(), PageState::Firmware);
    }

    #[test]
    fn a_part_of_a_large_page_differs_in_place_and_size_only() {
        let large = RmpEntry::HYPERVISOR
            .with_assigned(true)
            .with_page_size(RmpPageSize::Size2M)
            .with_gpa(Gpa::new(0x20_0000))
            .with_asid(Asid(7))
            .with_validated(true)
            .with_first_permissions();
        let part = large.part(511);
        assert_eq!(part.gpa(), Gpa::new(0x3f_f000));
        assert_eq!(part.page_size(), RmpPageSize::Size4K);
        assert_eq!(part.with_gpa(large.gpa()).with_page_size(RmpPageSize::Size2M), large);
    }
}
