//! Memory failure under an inode (`kvm_gmem_error_folio`, `mm/memory-failure.c`).
//!
//! The hypervisor zaps what shows the frame, then says [`Exclusive::error`], between begin and end of an invalidation. Only
//! the 4 KiB that failed are lost: the folio is split around them where it can be, and where it cannot, faults are told
//! a size that leaves them out. Nothing is truncated; the next use of the page is `EHWPOISON`, and a conversion to
//! private of a page that the failure found shared is `EAGAIN` for good, because the handler keeps a reference.
//!
//! Left out: signals, which are the machine's to deliver.

use core::sync::atomic::Ordering;

use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};

use super::lock::Exclusive;
use super::tree::Place;
use super::{Backed, GetError, GuestMemfd, PageIndex};
use crate::Host;
use crate::provider::{PoisonError, Poisoned};

impl GuestMemfd {
    /// A folio, or the part of it around `index` that is sound.
    #[inline]
    pub(super) fn around_poison(
        &self,
        host: &Host,
        index: PageIndex,
        backed: Backed,
        task: &Task<'_>,
    ) -> Result<Backed, GetError> {
        match self.nr_poisoned.load(Ordering::Acquire) {
            0 => Ok(backed),
            _ => sound_part(host, index, backed, task),
        }
    }
}

#[cold]
fn sound_part(host: &Host, index: PageIndex, backed: Backed, task: &Task<'_>) -> Result<Backed, GetError> {
    let host = host.lock(task);
    if host.is_poisoned(backed.sfn) {
        return Err(GetError::Poisoned { index, sfn: backed.sfn });
    }
    let sound = |size: &PageSize| host.poisoned_in(backed.sfn.align_down(*size), *size).next().is_none();
    let size = PageSize::ALL[..=backed.size.index()].iter().copied().rfind(sound).unwrap_or(PageSize::Size4K);
    Ok(Backed { size, ..backed })
}

/// What a memory failure did to an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The frame that is lost.
    pub sfn: Sfn,
    /// Whether it was lost before.
    pub known: bool,
}

impl Exclusive<'_> {
    /// The memory behind `index` failed; `None` where there is none.
    pub fn error(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Option<Failure>, PoisonError> {
        let inode = self.inode;
        let held = !inode.attribute(index, task).is_private();
        let mut books = inode.books(host, task);
        let Place::Folio(Backed { sfn, size }) = books.cache.at(index.0) else { return Ok(None) };
        if books.provider.error(&mut books.host, sfn)? == Poisoned::Already {
            return Ok(Some(Failure { sfn, known: true }));
        }
        inode.nr_poisoned.fetch_add(1, Ordering::AcqRel);
        if size > PageSize::Size4K {
            // Best effort: without memory for it, or held by somebody, the folio stays as it is.
            let granule = inode.granule();
            let around = |base: u64, size: PageSize| base <= index.0 && index.0 < base + size.frames();
            let mut cuts = Vec::new();
            if books.split((index.0, index.0 + 1), granule, &around, &mut cuts).is_err() {
                books.undo(&cuts);
            }
        }
        if held {
            // The handler's reference (`HWPOISON` of a page in use).
            let taken = books.host.get_page(sfn);
            debug_assert!(taken.is_ok(), "the page cache holds it: {taken:?}");
        }
        Ok(Some(Failure { sfn, known: false }))
    }
}
