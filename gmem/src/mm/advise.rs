//! `madvise` and `mlock`.

use std::sync::Arc;

use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Hva, Hvn, PageSize};

use super::table::{PteFlags, UserPte};
use super::vma::{ThpChoice, Vma, What};
use super::{HvaRange, Kernel, Mm, MmError, NotifyReason};
use crate::{GuestMemfd, PageRange};

/// What a process says about its memory (`MADV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// `MADV_DONTNEED`: entries go; anonymous memory loses its contents, a file does not.
    DontNeed,
    /// `MADV_REMOVE`: the pages of the file go.
    Remove,
    /// `MADV_HUGEPAGE`.
    HugePage,
    /// `MADV_NOHUGEPAGE`.
    NoHugePage,
    /// `MADV_COLLAPSE`: 2 MiB folios now, with the present contents.
    Collapse,
    /// `MADV_PAGEOUT`: to the disk.
    PageOut,
}

/// What is left to do for whoever gave the advice.
#[derive(Clone)]
pub enum Advised {
    /// Nothing.
    Done,
    /// To punch these holes (`madvise_remove` calls `vfs_fallocate`), which a secondary MMU of the file takes part in.
    Punch(Vec<(Arc<GuestMemfd>, PageRange)>),
}

impl Mm {
    /// `madvise`. Advice that one of the mappings cannot take is refused before anything is done.
    pub fn madvise(&self, at: Hva, len_bytes: u64, advice: Advice, kernel: Kernel<'_>) -> Result<Advised, MmError> {
        let range = HvaRange::checked(at, len_bytes)?;
        let mut vmas = self.vmas.write(kernel.task);
        vmas.must_cover(range)?;
        if let Some(vma) = vmas.reaching_into(range).find(|vma| !takes(vma, advice)) {
            return Err(MmError::BadAdvice { at: vma.range().first.max(range.first).base(), advice });
        }
        let parts: Vec<(HvaRange, Option<Arc<GuestMemfd>>, u64)> = vmas
            .reaching_into(range)
            .filter_map(|vma| {
                let part = vma.range().intersection(range)?;
                let gmem = vma.index_of(part.first);
                Some((part, gmem.map(|(inode, _)| Arc::clone(inode)), gmem.map_or(0, |(_, index)| index.0)))
            })
            .collect();
        match advice {
            Advice::DontNeed => {
                for (part, ..) in parts {
                    kernel.notifier.invalidate(self.id, part, NotifyReason::Clear, kernel.task, &mut |task| {
                        self.table.zap(part, kernel.host, task);
                    });
                }
            }
            Advice::Remove => {
                let hole = |(part, inode, first): (HvaRange, Option<Arc<GuestMemfd>>, u64)| {
                    Some((inode?, PageRange { first: crate::PageIndex(first), nr_pages: part.nr_pages }))
                };
                return Ok(Advised::Punch(parts.into_iter().filter_map(hole).collect()));
            }
            Advice::HugePage | Advice::NoHugePage => {
                let choice = if advice == Advice::HugePage { ThpChoice::Huge } else { ThpChoice::Never };
                self.change_vmas(&mut vmas, range, &|vma| vma.set_thp(choice), kernel.task);
            }
            Advice::Collapse => {
                let huge = PageSize::Size2M.frames();
                for (part, ..) in parts {
                    let mut block = part.first.raw().next_multiple_of(huge);
                    while block + huge <= part.end().raw() {
                        self.collapse(Hvn::new(block), kernel)?;
                        block += huge;
                    }
                }
            }
            Advice::PageOut => {
                for (part, ..) in parts {
                    kernel.notifier.invalidate(self.id, part, NotifyReason::Clear, kernel.task, &mut |task| {
                        self.page_out(part, kernel.host, task);
                    });
                }
            }
        }
        Ok(Advised::Done)
    }

    /// `mlock`: everything here stays in memory anyway until somebody pages it out on purpose.
    pub fn mlock(&self, at: Hva, len_bytes: u64, task: &Task<'_>) -> Result<(), MmError> {
        self.vmas.read(task).must_cover(HvaRange::checked(at, len_bytes)?)
    }

    /// `collapse_huge_page`: a 2 MiB folio takes the place of the small ones, with their bytes.
    fn collapse(&self, first: Hvn, kernel: Kernel<'_>) -> Result<(), MmError> {
        let size = PageSize::Size2M;
        let range = HvaRange { first, nr_pages: size.frames() };
        let mut done = Ok(());
        kernel.notifier.invalidate(self.id, range, NotifyReason::Clear, kernel.task, &mut |task| {
            done = self.collapse_between(range, kernel.host, task);
        });
        done
    }

    fn collapse_between(&self, range: HvaRange, host: &crate::Host, task: &Task<'_>) -> Result<(), MmError> {
        let size = PageSize::Size2M;
        let memory = self.table.memory();
        let mut entries = self.table.lock(task);
        let mut host = host.lock(task);
        if entries.leaf(range.first).is_some_and(|leaf| leaf.size == size) {
            return Ok(());
        }
        let mut flags = PteFlags::empty();
        let mut pages = Vec::new();
        for n in 0..range.nr_pages {
            let page = Hvn::new(range.first.raw() + n);
            let Some(leaf) = entries.leaf(page) else { continue };
            let folio = host.folios().get(leaf.sfn);
            // Whoever else holds it would go on looking at the old page.
            if folio.is_none_or(|folio| folio.meta.refs != folio.meta.maps || folio.meta.maps > 1) {
                return Err(MmError::Held { at: page.base() });
            }
            flags |= leaf.flags;
            pages.push((n, leaf.sfn));
        }
        let head = host.alloc_anonymous(size)?;
        let mut bytes = [0; PAGE_SIZE];
        for (n, sfn) in pages {
            let to = head.base().wrapping_add(n * PAGE_SIZE as u64);
            let copied = memory.read(sfn.base(), &mut bytes).and_then(|()| memory.write(to, &bytes));
            assert!(copied.is_ok(), "the host's frames are system memory");
        }
        while let Some(hit) = entries.first_in(range) {
            entries.remove(&hit, &mut host);
        }
        for n in 0..range.nr_pages {
            if let Some(saved) = entries.swap_mut().remove(&(range.first.raw() + n)) {
                let written = memory.write(head.base().wrapping_add(n * PAGE_SIZE as u64), &saved[..]);
                assert!(written.is_ok(), "the host's frames are system memory");
            }
        }
        let entered = entries.enter(range.first, size, UserPte { sfn: head, flags }, &mut host);
        assert!(entered.is_ok(), "a fresh folio can be mapped: {entered:?}");
        host.put_page(head, 1);
        Ok(())
    }

    /// Saves and unmaps the small anonymous pages that nobody else holds (`reclaim_pages`).
    fn page_out(&self, range: HvaRange, host: &crate::Host, task: &Task<'_>) {
        let memory = self.table.memory();
        let mut entries = self.table.lock(task);
        let mut host = host.lock(task);
        let mut at = range.first;
        while let Some(hit) = entries.first_in(HvaRange { first: at, nr_pages: range.end().raw() - at.raw() }) {
            at = Hvn::new(hit.end());
            let alone = host
                .folios()
                .get(hit.value.sfn)
                .is_some_and(|folio| folio.size == PageSize::Size4K && folio.meta.refs == 1 && folio.meta.maps == 1);
            if alone && hit.size == PageSize::Size4K {
                let mut bytes = Box::new([0; PAGE_SIZE]);
                let read = memory.read(hit.value.sfn.base(), &mut bytes[..]);
                assert!(read.is_ok(), "the host's frames are system memory");
                entries.remove(&hit, &mut host);
                entries.swap_mut().insert(hit.base, bytes);
            }
            if at >= range.end() {
                break;
            }
        }
    }
}

/// Whether a mapping takes an advice; otherwise it is `EINVAL`.
const fn takes(vma: &Vma, advice: Advice) -> bool {
    match (vma.what(), advice) {
        (What::Anonymous { .. }, Advice::Remove) => false,
        (What::Anonymous { .. }, _) => true,
        (What::Gmem { .. }, Advice::Collapse | Advice::PageOut) => false,
        (What::Gmem { .. }, _) => true,
        (What::Device { .. }, _) => false,
    }
}
