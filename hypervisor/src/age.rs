//! Which guest pages were used since they were last asked about (`kvm_age_gfn`, `kvm_test_age_gfn`).
//!
//! No lock keeps faults out: a leaf that changes meanwhile is young or is asked about again. Nothing is flushed, so a
//! processor that still holds the translation does not set the flag again; the answer is a hint for reclaim.

use emu_core::Gfn;
use emu_core::sync::Task;

use crate::config::VmError;
use crate::vm::Vm;

/// What becomes of what says that a page was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aging {
    /// It is cleared (`clear_young`).
    Clear,
    /// It stays (`test_young`).
    Test,
}

impl Vm {
    /// Whether any leaf that reaches into the range was used.
    pub fn age_range(&self, first: Gfn, nr_pages: u64, aging: Aging, task: &Task<'_>) -> Result<bool, VmError> {
        let end = Gfn::new(first.raw().saturating_add(nr_pages));
        let shadowed = self.age_shadowed((first, end), aging, task)?;
        let _walking = self.tdp.lockless(task);
        Ok(self.tdp.age(first, nr_pages, aging, task)? | shadowed)
    }

    /// Splits leaves that would reach over either end of the range, so that what happens to the range happens to no page
    /// beside it (`kvm_split_cross_boundary_leafs`).
    pub fn split_at_ends(&self, first: Gfn, nr_pages: u64, task: &Task<'_>) -> Result<(), VmError> {
        let mut cache = crate::vcpu::TableCache::default();
        let ends = [first, Gfn::new(first.raw().saturating_add(nr_pages))];
        let split = ends.into_iter().try_for_each(|end| {
            // One size less each time: at most twice.
            loop {
                cache.top_up(&self.host, task)?;
                if !self.mmu.read(task).split_across(end, &mut cache, task)? {
                    return Ok(());
                }
            }
        });
        cache.empty(&self.host, task);
        split
    }
}
