//! Who looks at a process's memory beside its own page table (`include/linux/mmu_notifier.h`).

use emu_core::sync::Task;

use super::{HvaRange, MmId};

/// Why entries change (`enum mmu_notifier_event`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotifyReason {
    /// `munmap`, or the end of the process.
    Unmap,
    /// Pages are replaced, dropped or moved; the mapping stays.
    Clear,
    /// `mprotect`.
    Protection,
}

/// A secondary MMU: it maps what a process maps, holds no references for that, and so must be told before an entry of
/// the process goes.
///
/// Start and end are one call, so that no end can be missing: between them the entries change.
pub trait MmuNotifier: Sync {
    /// Entries of `range` of address space `mm` change while `change` runs, which must be called exactly once. Before it
    /// runs nothing of the secondary MMU may map the range, and nothing may come to map it from what was looked up before
    /// this call has returned (`invalidate_range_start`, `invalidate_range_end`).
    fn invalidate(
        &self,
        mm: MmId,
        range: HvaRange,
        reason: NotifyReason,
        task: &Task<'_>,
        change: &mut dyn FnMut(&Task<'_>),
    );

    /// Whether the secondary MMU has used pages of the range since it was last asked, and forgets that it has
    /// (`clear_flush_young`, `clear_young`).
    fn clear_young(&self, mm: MmId, range: HvaRange, task: &Task<'_>) -> bool;

    /// The same, and it forgets nothing.
    fn test_young(&self, mm: MmId, range: HvaRange, task: &Task<'_>) -> bool;
}

/// Nobody looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNotifier;

impl MmuNotifier for NoNotifier {
    fn invalidate(&self, _: MmId, _: HvaRange, _: NotifyReason, task: &Task<'_>, change: &mut dyn FnMut(&Task<'_>)) {
        change(task);
    }

    fn clear_young(&self, _: MmId, _: HvaRange, _: &Task<'_>) -> bool {
        false
    }

    fn test_young(&self, _: MmId, _: HvaRange, _: &Task<'_>) -> bool {
        false
    }
}
