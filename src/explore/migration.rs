//! What a log of writes is for: a VMM that copies the guest's memory while the guest runs.
//!
//! It copies a page whenever it is told that the page was written. In the end, with every processor stopped, it asks once
//! more and copies what it is told; then the copy is the memory, or a write was lost.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use emu_core::sync::Task;
use emu_core::{Gfn, Sfn};
use hypervisor::dirty::DirtyLogging;
use hypervisor::tdp::AdBit;
use hypervisor::{SlotId, VcpuId};

use super::world::{PAGE, QUIET, TOUCHED, World};

/// How the VMM is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    /// By the bitmap of the first memslot.
    Bitmap,
    /// By the processors' rings.
    Rings,
    /// By the dirty flags of leaves.
    Flags,
}

/// The VMM's side.
#[derive(Default)]
pub(super) struct Migration {
    log: Cell<Option<Log>>,
    /// The first bytes of each page as they were copied; zero where none was.
    copy: RefCell<BTreeMap<u64, u64>>,
    /// What the guest has written.
    written: RefCell<BTreeSet<u64>>,
    stores: Cell<u64>,
}

const FIRST: SlotId = SlotId(0);

impl World {
    /// The guest writes a value that was nowhere before.
    pub(super) fn store(&self, gfn: u64, sfn: Sfn) {
        let value = self.migration.stores.get() + 1;
        self.migration.stores.set(value);
        self.migration.written.borrow_mut().insert(gfn);
        self.vm.memory().store(sfn.base(), value).expect("guest pages are memory");
    }

    /// Starts to log the first memslot, whose pages are all zero or are copied now.
    pub(super) fn migrate(&self, log: Log) {
        self.migration.log.set(Some(log));
        match log {
            Log::Bitmap | Log::Rings => {
                self.vm.set_dirty_logging(FIRST, DirtyLogging::On, QUIET).expect("the slot is there");
            }
            Log::Flags => drop(self.ask(QUIET)),
        }
        let written = self.migration.written.borrow().clone();
        self.copy_pages(written, QUIET);
    }

    /// One pass of the VMM: it asks what was written and copies that.
    pub(super) fn pass(&self, task: &Task<'_>) {
        let told = self.ask(task);
        self.copy_pages(told, task);
    }

    /// What was written since it was last asked.
    fn ask(&self, task: &Task<'_>) -> BTreeSet<u64> {
        let mut told = BTreeSet::new();
        match self.migration.log.get() {
            None => {}
            Some(Log::Bitmap) => {
                let mut note = |word: u64, bits: u64| {
                    told.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| 64 * word + bit));
                };
                self.vm.get_dirty_log(FIRST, &mut note, task).expect("the slot is logged");
            }
            Some(Log::Rings) => {
                let mut entries = Vec::new();
                for vcpu in 0..2 {
                    self.vm.collect_dirty_ring(VcpuId(vcpu), usize::MAX, &mut entries, task).expect("it exists");
                }
                self.vm.reset_dirty_rings(task).expect("leaves can be armed");
                told.extend(entries.iter().filter(|entry| entry.slot == FIRST).map(|entry| entry.page));
            }
            Some(Log::Flags) => {
                let mut note = |gfn: Gfn, _| told.extend([gfn.raw()]);
                self.vm.harvest(Gfn::new(0), TOUCHED, AdBit::Dirty, &mut note, task).expect("tables lie in memory");
            }
        }
        told
    }

    fn bytes_of(&self, gfn: u64, task: &Task<'_>) -> u64 {
        let mut bytes = [0; 8];
        self.vm.guest_read(Gfn::new(gfn).base(), &mut bytes, task).expect("the page is shared");
        u64::from_le_bytes(bytes)
    }

    fn copy_pages(&self, pages: BTreeSet<u64>, task: &Task<'_>) {
        for gfn in pages {
            let bytes = self.bytes_of(gfn, task);
            self.migration.copy.borrow_mut().insert(gfn, bytes);
        }
    }

    /// I1: with the guest stopped and asked about once more, the copy is the memory.
    pub(super) fn copy_is_complete(&self) -> Result<(), String> {
        if self.migration.log.get().is_none() {
            return Ok(());
        }
        for (n, cpu) in self.cpus.iter().enumerate() {
            cpu.write_log_down(self, VcpuId(n as u16), QUIET);
        }
        self.pass(QUIET);
        for &gfn in self.migration.written.borrow().iter() {
            let (is, copied) = (self.bytes_of(gfn, QUIET), self.migration.copy.borrow().get(&gfn).copied());
            if copied.unwrap_or(0) != is {
                return Err(format!("I1: guest frame {gfn:#x} of {PAGE:#x} bytes was written and nobody was told"));
            }
        }
        Ok(())
    }
}
