//! What a translation that succeeded says.

use bitflags::bitflags;
use emu_core::{Access, AccessKind, Gpa, MemoryType, PageSize, Spa};

use crate::fault::Stage2Rights;
use crate::format::Grants;

bitflags! {
    /// Properties of a translated page, folded over every entry on the way of both stages.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PageFlags: u16 {
        /// R/W of the guest's entries.
        const WRITABLE = 1 << 0;
        /// U/S of the guest's entries.
        const USER = 1 << 1;
        /// No guest entry has NX in force.
        const EXECUTABLE = 1 << 2;
        /// A global page (G with CR4.PGE).
        const GLOBAL = 1 << 3;
        /// D of the guest's leaf is set, or there is no leaf because paging is off.
        const DIRTY = 1 << 4;
        /// The nested entries and the RMP allow reads.
        const NESTED_READ = 1 << 5;
        /// The nested entries and the RMP allow writes.
        const NESTED_WRITE = 1 << 6;
        /// The nested entries allow the fetches of this page's mode, and the RMP those of CPL 0 to 2.
        const NESTED_EXECUTE = 1 << 7;
        /// D of the nested leaf is set, or nobody keeps it.
        const NESTED_DIRTY = 1 << 8;
        /// The nested entries allow the fetches of this page's mode, and the RMP those of CPL 3.
        const NESTED_EXECUTE_USER = 1 << 9;
        /// The page is mapped with the C-bit set, in an SNP guest: its data is private. Fetches are private in any case.
        const ENCRYPTED = 1 << 10;
    }
}

impl PageFlags {
    /// The part that belongs to the nested entries.
    pub const NESTED: PageFlags = PageFlags::NESTED_READ
        .union(PageFlags::NESTED_WRITE)
        .union(PageFlags::NESTED_EXECUTE)
        .union(PageFlags::NESTED_EXECUTE_USER)
        .union(PageFlags::NESTED_DIRTY);

    /// The rights of a guest's page from what its entries grant together.
    #[inline]
    pub(crate) fn of_grants(grants: Grants) -> PageFlags {
        let mut flags = PageFlags::empty();
        flags.set(PageFlags::WRITABLE, grants.contains(Grants::WRITE));
        flags.set(PageFlags::USER, grants.contains(Grants::USER));
        flags.set(PageFlags::EXECUTABLE, grants.contains(Grants::EXECUTE));
        flags
    }

    /// What the nested part allows, for a fault.
    pub(crate) fn nested_rights(self) -> Stage2Rights {
        let mut rights = Stage2Rights::empty();
        rights.set(Stage2Rights::READ, self.contains(PageFlags::NESTED_READ));
        rights.set(Stage2Rights::WRITE, self.contains(PageFlags::NESTED_WRITE));
        rights.set(Stage2Rights::EXECUTE, self.contains(PageFlags::NESTED_EXECUTE));
        rights
    }

    /// Whether the nested part allows `access` without another nested walk.
    #[inline]
    pub(crate) const fn nested_allows(self, access: Access) -> bool {
        match access.kind {
            AccessKind::Read => self.contains(PageFlags::NESTED_READ),
            AccessKind::Write => self.contains(PageFlags::NESTED_WRITE.union(PageFlags::NESTED_DIRTY)),
            AccessKind::Execute if access.privilege.is_user() => self.contains(PageFlags::NESTED_EXECUTE_USER),
            AccessKind::Execute => self.contains(PageFlags::NESTED_EXECUTE),
        }
    }
}

/// A translated address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where the access goes.
    pub spa: Spa,
    /// The guest physical address in between; equal to [`Translation::spa`] in number where nothing is nested.
    pub gpa: Gpa,
    /// How far the same translation reaches: the smaller of the guest's and the nested page.
    pub size: PageSize,
    /// The memory type of the EPT leaf; write-back where there is none.
    pub memory_type: MemoryType,
    /// The PAT entry that the guest's leaf selects, 0 to 7 (PAT, PCD, PWT).
    pub pat_index: u8,
    /// The protection key of the guest's leaf, 0 to 15.
    pub protection_key: u8,
    /// Rights and dirtiness.
    pub flags: PageFlags,
}

/// A guest physical address, translated by the nested tables alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaTranslation {
    /// Where it is.
    pub spa: Spa,
    /// The size of the nested page.
    pub size: PageSize,
    /// The memory type of the EPT leaf; write-back where there is none.
    pub memory_type: MemoryType,
    /// The members of [`PageFlags::NESTED`] that hold.
    pub flags: PageFlags,
}
