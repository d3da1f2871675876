//! What becomes of the host's own map when pages of an inode become private or shared (`adjust_direct_map`).
//!
//! Under [`HostMapping::FollowsPrivacy`] a private folio is a change of its size, and a page that is converted is one of
//! 4K or 2M, whatever lets it be done at once. Merging settles a block, and freeing releases it: those two are the host's
//! own, in [`crate::provider::unit`] and [`crate::host`]. A policy that does not split refuses conversions of less than
//! 2M before anything is changed.

use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};

use super::GuestMemfd;
use super::reshape::Books;
use super::tree::Run;
use crate::Host;
use crate::directmap::{DirectMapPolicy, Event, Refused};
use crate::host::HostMemory;
use crate::policy::HostMapping;
use crate::shareability::Shareability;

const M2: u64 = PageSize::Size2M.frames();

impl HostMemory {
    /// A block is on the other side from now on; nothing without a map.
    pub(crate) fn becomes(&mut self, to: Shareability, block: Sfn, size: PageSize) {
        let Some(map) = &mut self.direct_map else { return };
        let event = match (map.policy(), to.is_private()) {
            (DirectMapPolicy::Unmap, false) => Event::Release { first: block, nr_frames: size.frames() },
            _ => Event::Change { block, size },
        };
        // Refusals were asked for before; a fresh 4K page of an inode has nothing to be refused for.
        let _ = map.on(event);
    }
}

impl GuestMemfd {
    /// Whether the host takes a conversion of `[first, end)`.
    pub(super) fn host_map_takes(&self, host: &Host, (first, end): (u64, u64), task: &Task<'_>) -> Result<(), Refused> {
        if self.policy.host_mapping == HostMapping::Untouched || first.is_multiple_of(M2) && end.is_multiple_of(M2) {
            return Ok(());
        }
        let (cache, host) = (self.cache.read(task), host.lock(task));
        let Some(map) = host.direct_map() else { return Ok(()) };
        let mut refused = Ok(());
        cache.each_run(first, end, |run| refused = refused.and(map.takes(run.sfn, PageSize::Size4K)));
        refused
    }

    /// Pages of `[first, end)` are `to` from now on.
    pub(super) fn host_map_changes(&self, books: &mut Books<'_>, (first, end): (u64, u64), to: Shareability) {
        if self.policy.host_mapping == HostMapping::Untouched || books.host.direct_map.is_none() {
            return;
        }
        let Books { cache, host, .. } = books;
        cache.each_run(first, end, |Run { first: at, nr_pages, sfn, .. }| {
            let (from, to_end) = (at.max(first), (at + nr_pages).min(end));
            let mut page = from;
            while page < to_end {
                let block = Sfn::new(sfn.raw() + (page - at));
                let size = match page.is_multiple_of(M2) && page + M2 <= to_end {
                    true => PageSize::Size2M,
                    false => PageSize::Size4K,
                };
                host.becomes(to, block, size);
                page += size.frames();
            }
        });
    }
}
