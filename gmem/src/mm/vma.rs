//! Mappings of an address space (`struct vm_area_struct`), disjoint and ascending.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitflags::bitflags;
use emu_core::{Hvn, Sfn};

use super::{HvaRange, MmError, UserAccess};
use crate::{GuestMemfd, PageIndex};

bitflags! {
    /// What a mapping allows, with the values of `PROT_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u32 {
        /// `PROT_READ`.
        const READ = 1;
        /// `PROT_WRITE`, which on x86 reads too.
        const WRITE = 2;
        /// `PROT_EXEC`.
        const EXEC = 4;
    }
}

impl Prot {
    /// The usual mapping.
    pub const READ_WRITE: Prot = Prot::READ.union(Prot::WRITE);

    /// Whether an access of this kind is allowed.
    pub const fn allows(self, access: UserAccess) -> bool {
        match access {
            UserAccess::Read => !self.is_empty(),
            UserAccess::Write => self.contains(Prot::WRITE),
        }
    }
}

/// Whether anonymous memory may come as 2 MiB folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThpChoice {
    /// Never (`MADV_NOHUGEPAGE`, or transparent huge pages are off).
    Never,
    /// Where 2 MiB lie inside the mapping (`MADV_HUGEPAGE`, or `always`).
    Huge,
}

/// What is mapped.
#[derive(Clone)]
pub enum What {
    /// Anonymous memory.
    Anonymous {
        /// Its page size.
        thp: ThpChoice,
    },
    /// A file of guest_memfd, from an index on.
    Gmem {
        /// The inode.
        inode: Arc<GuestMemfd>,
        /// Its page behind the first page of the mapping.
        first: PageIndex,
    },
    /// Memory of a device that a driver hands out (`VM_IO | VM_PFNMAP`): frames whose `struct page` must not be
    /// touched.
    Device {
        /// The frame behind the first page of the mapping.
        first: Sfn,
    },
}

impl core::fmt::Debug for What {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            What::Anonymous { thp } => write!(f, "anonymous ({thp:?})"),
            What::Gmem { first, .. } => write!(f, "guest_memfd from page {}", first.0),
            What::Device { first } => write!(f, "device memory from {first:?}"),
        }
    }
}

/// A mapping.
#[derive(Clone, Debug)]
pub struct Vma {
    range: HvaRange,
    prot: Prot,
    what: What,
}

impl Vma {
    pub(super) const fn new(range: HvaRange, prot: Prot, what: What) -> Vma {
        Vma { range, prot, what }
    }
    /// Its pages.
    pub const fn range(&self) -> HvaRange {
        self.range
    }
    /// What it allows.
    pub const fn prot(&self) -> Prot {
        self.prot
    }
    /// What is mapped.
    pub const fn what(&self) -> &What {
        &self.what
    }

    /// The page of the inode behind its first page, if this maps one.
    pub const fn first_index(&self) -> Option<PageIndex> {
        match &self.what {
            What::Gmem { first, .. } => Some(*first),
            _ => None,
        }
    }

    /// The page of the inode behind `page`, if this maps one.
    pub fn index_of(&self, page: Hvn) -> Option<(&Arc<GuestMemfd>, PageIndex)> {
        let What::Gmem { inode, first } = &self.what else { return None };
        Some((inode, PageIndex(first.0 + page.offset_from(self.range.first)?)))
    }

    /// The part of it in `part`, which lies inside.
    fn cut(&self, part: HvaRange) -> Vma {
        let skipped = part.first.raw() - self.range.first.raw();
        let what = match &self.what {
            What::Anonymous { thp } => What::Anonymous { thp: *thp },
            What::Gmem { inode, first } => What::Gmem { inode: Arc::clone(inode), first: PageIndex(first.0 + skipped) },
            What::Device { first } => What::Device { first: Sfn::new(first.raw() + skipped) },
        };
        Vma { range: part, prot: self.prot, what }
    }

    /// What is left of it without `gone`.
    fn without(&self, gone: HvaRange) -> impl Iterator<Item = Vma> + '_ {
        let (first, end) = (self.range.first, self.range.end());
        let parts = [(first, gone.first.min(end)), (gone.end().max(first), end)];
        parts.into_iter().filter_map(move |(from, to)| {
            let nr_pages = to.offset_from(from).filter(|&nr| nr > 0)?;
            Some(self.cut(HvaRange { first: from, nr_pages }))
        })
    }

    pub(super) fn set_prot(&mut self, prot: Prot) {
        self.prot = prot;
    }

    /// Points a mapping of device memory elsewhere; others stay.
    pub(super) fn set_device(&mut self, to: Sfn) {
        if let What::Device { first } = &mut self.what {
            *first = to;
        }
    }

    pub(super) fn set_thp(&mut self, choice: ThpChoice) {
        if let What::Anonymous { thp } = &mut self.what {
            *thp = choice;
        }
    }
}

/// The mappings, by their first page.
#[derive(Default)]
pub(super) struct Vmas {
    by_first: BTreeMap<u64, Vma>,
}

impl Vmas {
    pub(super) fn find(&self, page: Hvn) -> Option<&Vma> {
        let (_, vma) = self.by_first.range(..=page.raw()).next_back()?;
        vma.range.contains(page).then_some(vma)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.by_first.values()
    }

    /// Those that have pages of `range`, ascending.
    pub(super) fn reaching_into(&self, range: HvaRange) -> impl Iterator<Item = &Vma> {
        let (first, end) = (range.first.raw(), range.end().raw());
        let before = self.by_first.range(..first).next_back().filter(|(_, vma)| vma.range.end().raw() > first);
        before.into_iter().chain(self.by_first.range(first..end)).map(|(_, vma)| vma)
    }

    /// Whether every page of `range` is mapped.
    pub(super) fn must_cover(&self, range: HvaRange) -> Result<(), MmError> {
        let mut at = range.first;
        for vma in self.reaching_into(range) {
            if vma.range.first > at {
                break;
            }
            at = vma.range.end();
        }
        if at < range.end() { Err(MmError::NotMapped { at: at.base() }) } else { Ok(()) }
    }

    pub(super) fn insert(&mut self, vma: Vma) {
        self.by_first.insert(vma.range.first.raw(), vma);
    }

    /// Takes the parts in `range` out, cutting the mappings at its edges. Returns what was taken, and for each mapping
    /// that was cut the old one with what is left of it.
    pub(super) fn take(&mut self, range: HvaRange) -> Vec<Taken> {
        let starts: Vec<u64> = self.reaching_into(range).map(|vma| vma.range.first.raw()).collect();
        let mut taken = Vec::with_capacity(starts.len());
        for start in starts {
            let Some(old) = self.by_first.remove(&start) else { continue };
            let Some(part) = old.range.intersection(range) else { continue };
            let left: Vec<Vma> = old.without(range).collect();
            for vma in &left {
                self.insert(vma.clone());
            }
            taken.push(Taken { part: old.cut(part), old, left });
        }
        taken
    }
}

/// A mapping that was cut out.
pub(super) struct Taken {
    /// The mapping as it was.
    pub(super) old: Vma,
    /// What was taken of it.
    pub(super) part: Vma,
    /// What is left.
    pub(super) left: Vec<Vma>,
}
