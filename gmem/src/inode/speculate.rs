//! References of those who look at every page and find that most are none of theirs: the lookup of a page cache that
//! loses a race, compaction, memory failure (`folio_try_get`). They read nothing, and go at once.

use emu_core::Sfn;
use emu_core::sync::Task;

use super::tree::Place;
use super::{GuestMemfd, PageIndex};
use crate::Host;

impl GuestMemfd {
    /// A reference on the folio at `index`, whoever may use it and whatever is being done to it; [`GuestMemfd::put_page`]
    /// drops it. `None` where there is no folio.
    pub fn try_get_folio(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Option<Sfn> {
        let cache = self.cache.read(task);
        let Place::Folio(backed) = cache.at(index.0) else { return None };
        host.lock(task).get_page(backed.sfn).ok()?;
        Some(backed.sfn)
    }
}
