//! Conversion in place: who may use a range changes, its folios and bytes stay.
//!
//! The order is that of the in-place conversion series for guest_memfd: under the exclusive lock ask whether anything
//! changes and whether it may ([`Exclusive::plan_conversion`], no effects), then between the begin and the end of an
//! invalidation store the attributes ([`Exclusive::convert`]). All or nothing. Folios are not split: a huge folio whose
//! parts differ is mapped by smaller leaves.

use emu_core::event::Event;
use emu_core::sync::Task;
use thiserror::Error;

use super::lock::Exclusive;
use super::{PageIndex, PageRange};
use crate::Host;
use crate::shareability::{Holders, Shareability, transition};

/// Why a conversion was refused; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// `EINVAL`.
    #[error("pages {:#x} to {:#x} are not pages of a guest_memfd of {nr_pages:#x} pages", range.first.0, range.end().0)]
    OutOfBounds {
        /// The range.
        range: PageRange,
        /// The inode's size.
        nr_pages: u64,
    },
    /// `EAGAIN`, with the page as `error_offset`: the host holds a reference that a private page must not have.
    #[error("page {} is held by the host and cannot become private", index.0)]
    Busy {
        /// First page of the range in the folio that is held.
        index: PageIndex,
    },
}

/// A conversion that changes something and may proceed.
#[derive(Debug)]
#[must_use = "nothing is converted yet"]
pub struct Conversion {
    range: PageRange,
    to: Shareability,
}

impl Conversion {
    /// What is to change.
    pub const fn range(&self) -> PageRange {
        self.range
    }
}

impl Exclusive<'_> {
    /// Whether `range` can become `to`; `None` when it is that already.
    pub fn plan_conversion(
        &self,
        host: &Host,
        range: PageRange,
        to: Shareability,
        task: &Task<'_>,
    ) -> Result<Option<Conversion>, ConvertError> {
        let inode = self.inode;
        if range.nr_pages == 0 || !range.lies_in(inode.nr_pages) {
            return Err(ConvertError::OutOfBounds { range, nr_pages: inode.nr_pages });
        }
        let (first, end) = (range.first.0, range.end().0);
        let attributes = inode.attributes(task);
        if attributes.is_uniform(first, range.nr_pages) && attributes.get(first) == to {
            return Ok(None);
        }
        if to.is_private() {
            let cache = inode.cache.lock(task);
            let host = host.lock(task);
            let mut at = first;
            while let Some(hit) = cache.next_from(at).filter(|hit| hit.base < end) {
                at = hit.end();
                let refs = host.folios().get(hit.value.head).map_or(0, |folio| u64::from(folio.meta.refs));
                let holders = if refs > hit.size.frames() { Holders::Others } else { Holders::CacheOnly };
                let start = hit.base.max(first);
                let some_shared = attributes.contains(start, at.min(end) - start, Shareability::SHARED);
                let from = if some_shared { Shareability::SHARED } else { Shareability::PRIVATE };
                if transition::to_private(from, holders).is_err() {
                    return Err(ConvertError::Busy { index: PageIndex(start) });
                }
            }
        }
        Ok(Some(Conversion { range, to }))
    }

    /// Stores what was planned. The caller zapped and flushed the range since, and has not ended the invalidation.
    pub fn convert(&self, conversion: Conversion, task: &Task<'_>) {
        let Conversion { range, to } = conversion;
        self.inode.attributes.write(task).set(range.first.0, range.nr_pages, to);
        let (ino, index) = (self.inode.ino, range.first.0);
        task.report(Event::Converted { ino, index, nr_pages: range.nr_pages, to: to.into() });
    }
}
