//! What is particular to one generation's conversions, mistakes included: see [`Generation`] and [`Quirks`].
//!
//! - [`Generation::V1`] wants users to have unmapped pages themselves, does not see references that are neither mappings
//!   nor pins, and makes all of a range shared when its way to private fails.
//! - [`Generation::V2`] makes a list of what changes; when it has no memory for the second entry, it forgets to say so.
//! - [`Generation::Wip`] converts one huge page at a time: those before an error stay converted.
//!
//! The hypervisor converts [`Exclusive::steps`] one after the other.

use core::ops::ControlFlow;

use emu_core::Sfn;
use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::sync::Task;

use super::convert::ConvertError;
use super::lock::Exclusive;
use super::{PageIndex, PageRange};
use crate::Host;
use crate::policy::{Generation, Quirks};
use crate::shareability::Shareability;

impl Exclusive<'_> {
    /// The parts of a conversion of `range` that are atomic each.
    pub fn steps(&self, range: PageRange) -> impl Iterator<Item = PageRange> + use<> {
        let step = match self.inode.policy.generation {
            Generation::Wip => self.inode.unit.frames(),
            _ => u64::MAX,
        };
        let end = range.end().0;
        let mut at = Some(range.first.0);
        core::iter::from_fn(move || {
            let first = at?;
            let next = (first - first % step).saturating_add(step).min(end).max(first);
            at = Some(next).filter(|&next| next < end);
            Some(PageRange { first: PageIndex(first), nr_pages: next - first })
        })
    }

    /// Whether the kernel takes pages out of user page tables before it makes them private.
    pub fn unmaps_users(&self) -> bool {
        self.inode.policy.generation != Generation::V1
    }

    /// Whether the invalidation ends before folios are split and attributes stored.
    pub fn stores_after_end(&self) -> bool {
        self.inode.policy.has(Quirks::STORE_AFTER_END)
    }

    /// The first page of `range` that users map or may have pinned: all that the first series looked at.
    pub(super) fn first_mapped(&self, host: &Host, range: PageRange, task: &Task<'_>) -> Option<PageIndex> {
        let books = self.inode.books(host, task);
        let (first, end) = (range.first.0, range.end().0);
        let found = books.cache.runs(first, end, |run| {
            for n in (0..run.nr_pages).step_by(run.size.frames() as usize) {
                let folio = books.host.folios().get(Sfn::new(run.sfn.raw() + n));
                let mapped = |maps: u32| maps > 0 && !task.has(Defect::ConvertMappedPages);
                if folio.is_some_and(|folio| mapped(folio.meta.maps) || folio.maybe_pinned()) {
                    return ControlFlow::Break((run.first + n).max(first));
                }
            }
            ControlFlow::Continue(())
        });
        found.break_value().map(PageIndex)
    }

    /// A conversion to private was refused: the first series gives all of the range back to the host.
    pub(super) fn roll_back(&self, range: PageRange, task: &Task<'_>) {
        if self.inode.policy.has(Quirks::ROLLBACK_SHARES_ALL) {
            self.inode.set_attributes(range, Shareability::SHARED, task);
            let (ino, index) = (self.inode.ino, range.first.0);
            task.report(Event::Converted { ino, index, nr_pages: range.nr_pages, to: Shareability::SHARED.into() });
        }
    }

    /// What of `range` is converted, for want of memory for the list of its parts that change.
    pub(super) fn listed(
        &self,
        host: &Host,
        range: PageRange,
        to: Shareability,
        task: &Task<'_>,
    ) -> Result<PageRange, ConvertError> {
        if self.inode.policy.generation != Generation::V2 || host.lock(task).stats().free_frames > 0 {
            return Ok(range);
        }
        let attributes = self.inode.attributes(task);
        let mut parts = attributes.runs_in(range.first.0, range.end().0).filter(|run| run.2 != to);
        match (parts.next(), parts.next()) {
            (Some((first, nr_pages, _)), Some((second, ..))) => match self.inode.policy.has(Quirks::SILENT_PARTIAL) {
                true => Ok(PageRange { first: PageIndex(first), nr_pages }),
                false => Err(ConvertError::NoMemory { index: PageIndex(second) }),
            },
            _ => Ok(range),
        }
    }
}
