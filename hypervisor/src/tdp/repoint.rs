//! A leaf that shows another frame: what no honest hypervisor does to a present leaf, and a lying one can.
//!
//! Not through `Tables::change`, which refuses it. Accessed and dirty flags stay, and the flush is owed.

use emu_core::Sfn;
use emu_core::event::{Bits, Event};
use emu_core::memory::BusError;
use emu_core::sync::Task;

use super::spte::Spte;
use super::tables::{LeafView, Tables};
use crate::flush::Owed;

impl Tables {
    /// Lets `leaf`, which stands in the tree, show the frames from `head` on. `mmu_lock` is held for writing.
    pub(crate) fn repoint(&self, leaf: &LeafView, head: Sfn, owed: &mut Owed, task: &Task<'_>) -> Result<(), BusError> {
        let (place, old) = self.last_entry(leaf.gfn)?;
        let new = Spte::from_raw(old.raw() ^ leaf.sfn.base().raw() ^ head.base().raw());
        self.memory.store(place.at, new.raw())?;
        self.count_change(task);
        owed.range(leaf.gfn, leaf.size.frames());
        task.report_with(|| Event::SpteChanged {
            gfn: leaf.gfn,
            level: place.level.index() as u8 + 1,
            old_spte: Bits(old.raw()),
            new_spte: Bits(new.raw()),
        });
        Ok(())
    }
}
