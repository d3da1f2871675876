//! Arming leaves so that the next write is noticed (`kvm_tdp_mmu_clear_dirty_pt_masked`, `wrprot_gfn_range`).

use emu_core::memory::BusError;
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, PageSize};

use super::spte::{Entry, Level, Spte};
use super::tables::{Place, Tables};
use crate::flush::Owed;

/// How the next write to a leaf is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arm {
    /// It faults: W is withheld.
    WriteProtect,
    /// The processor logs it when it sets the dirty flag, which is cleared. Above 4K it faults all the same: a log entry
    /// names one page.
    ClearDirty,
}

impl Tables {
    /// Arms every leaf of at least `smallest` that reaches into the range. The flush that is owed may wait until
    /// `mmu_lock` is released.
    pub(crate) fn arm_range(
        &self,
        first: Gfn,
        nr_pages: u64,
        smallest: PageSize,
        arm: Arm,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), BusError> {
        if let Some(shadow) = self.shadow.lock(task).as_mut() {
            shadow.arm_range(first, nr_pages, owed, task);
        }
        let smallest = Level::of_leaf(smallest);
        self.for_each_leaf(first, nr_pages, &mut |place, spte| match place.level >= smallest {
            true => self.arm(place, spte, arm, owed, task),
            false => Ok(()),
        })
    }

    fn arm(&self, place: Place, spte: Spte, arm: Arm, owed: &mut Owed, task: &Task<'_>) -> Result<(), BusError> {
        let mut old = spte;
        loop {
            if !matches!(self.format.read(old, place.level), Entry::Leaf { .. }) {
                return Ok(());
            }
            let is_4k = place.level == Level::of_leaf(PageSize::Size4K);
            let new = match arm {
                Arm::ClearDirty if is_4k && self.format.ad_bits(old) != 0 => {
                    self.format.without(old, self.format.dirty())
                }
                _ => self.format.withhold_write(old),
            };
            if new != old {
                task.at(Point::FF2);
            }
            if new == old || self.change(place, old, new, owed, task)?.is_ok() {
                return Ok(());
            }
            old = self.load(place)?;
        }
    }
}
