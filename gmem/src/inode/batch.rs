//! Folios that a processor collects before it puts them on a list (`lru_add` of `struct cpu_fbatches`, mm/swap.c).
//!
//! Each holds a reference that is nobody's: it goes when the batch is full, or when somebody drains all batches because a
//! reference is in his way. With [`LruBatches::Off`] there are none.
//!
//! Always true: a lane holds less than a full batch of folios, each with one reference.
//!
//! Left out: the lists themselves, batches for anything but what a process touched first, and per-processor batches that
//! outlive the inode.

use emu_core::Sfn;
use emu_core::sync::{Mutex, Sharded, Task};

use crate::Host;
use crate::policy::LruBatches;

/// `FOLIO_BATCH_SIZE`.
const FULL: usize = 31;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    mode: LruBatches,
    lanes: Sharded<Mutex<Vec<Sfn>>>,
}

impl Batches {
    pub(super) fn new(mode: LruBatches) -> Batches {
        Batches { mode, lanes: Sharded::default() }
    }

    /// A folio that is in use comes to the batch of the task's processor (`folio_add_lru`).
    pub(crate) fn add(&self, sfn: Sfn, host: &Host, task: &Task<'_>) {
        if self.mode == LruBatches::Off {
            return;
        }
        let mut batch = self.lanes.lane(task.lane()).lock(task);
        let mut host = host.lock(task);
        if host.get_page(sfn).is_ok() {
            batch.push(sfn);
        }
        if batch.len() >= FULL {
            batch.drain(..).for_each(|sfn| host.put_page(sfn, 1));
        }
    }

    /// Empties the batches of all processors (`lru_add_drain_all`); whether there can be any.
    pub(super) fn drain(&self, host: &Host, task: &Task<'_>) -> bool {
        if self.mode == LruBatches::Off {
            return false;
        }
        for lane in self.lanes.iter() {
            let mut batch = lane.lock(task);
            let mut host = host.lock(task);
            batch.drain(..).for_each(|sfn| host.put_page(sfn, 1));
        }
        true
    }
}
