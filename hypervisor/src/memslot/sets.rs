//! Publication: two sets of memslots of which one is active (`kvm->__memslots`, `kvm_swap_active_memslots`).
//!
//! A change is made in the inactive set, which then becomes the active one; who still uses the other is waited for before
//! the change is made there too. So readers never wait for a change, which matters to an MMU notifier: it may run under
//! an inode's lock that the very faults wait for that a change waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use emu_core::Gfn;
use emu_core::defect::Defect;
use emu_core::sync::{MutexGuard, ReadGuard, ShardedLock, Task};
use gmem::SlotId;

use super::{AddressSpaceId, MemSlots, Slot, UPDATE_IN_PROGRESS};

/// A change of a set.
pub(crate) enum Publication {
    /// This slot comes, or takes the place of the one with its number.
    Put(Slot),
    /// It goes.
    Remove(AddressSpaceId, SlotId),
}

/// See the module.
pub struct SlotSets {
    sets: [ShardedLock<MemSlots>; 2],
    active: AtomicUsize,
    /// Held for reading by MMU notifiers between their start and their end, for writing while the active set is
    /// exchanged (`mn_active_invalidate_count`).
    notifiers: ShardedLock<()>,
    /// What each publication adds to the generation: one for each address space.
    step: u64,
}

/// A notifier between its start and its end: the active set stays the active set.
pub struct Notifying<'a>(#[expect(dead_code, reason = "it holds off publications")] ReadGuard<'a, ()>);

impl SlotSets {
    pub(crate) fn new(last_gfn: Gfn, nr_spaces: u32) -> SlotSets {
        let set = || ShardedLock::new(MemSlots::new(last_gfn));
        SlotSets {
            sets: [set(), set()],
            active: AtomicUsize::new(0),
            notifiers: ShardedLock::default(),
            step: u64::from(nr_spaces),
        }
    }

    /// The active set, for as long as the guard is kept (`srcu_read_lock`). Never waits for a change.
    #[inline]
    pub fn read<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, MemSlots> {
        loop {
            // Only the inactive set is ever written, so this fails or gets the wrong one only around an exchange.
            let active = self.active.load(Ordering::Acquire);
            let set = self.sets[active].try_read(task);
            if let Some(set) = set.filter(|_| self.active.load(Ordering::Acquire) == active) {
                return set;
            }
            task.give_way();
        }
    }

    /// The active set, unless it is being exchanged: for checks between the steps of a schedule.
    pub(crate) fn try_read<'a>(&'a self, task: &Task<'a>) -> Option<ReadGuard<'a, MemSlots>> {
        let active = self.active.load(Ordering::Acquire);
        self.sets[active].try_read(task).filter(|_| self.active.load(Ordering::Acquire) == active)
    }

    /// A notifier starts.
    pub(crate) fn notifying<'a>(&'a self, task: &Task<'a>) -> Notifying<'a> {
        Notifying(self.notifiers.read(task))
    }

    /// Makes a change that readers see as a whole. When this returns nobody uses the slots as they were. `_slots_lock`
    /// proves that no other change is under way.
    pub(crate) fn publish(&self, change: Publication, _slots_lock: &MutexGuard<'_, ()>, task: &Task<'_>) {
        let old = self.active.load(Ordering::Acquire);
        let new = 1 - old;
        let change = match change {
            Publication::Put(slot) => Change::Put(Arc::new(slot)),
            Publication::Remove(space, id) => Change::Remove(space, id),
        };
        let generation = {
            let mut set = self.sets[new].write(task);
            change.apply(&mut set);
            let generation = self.sets[old].read(task).settled_generation();
            set.set_generation(generation | UPDATE_IN_PROGRESS);
            generation
        };
        {
            // An end must meet the slots that its start met.
            let waits = !task.has(Defect::ExchangeDuringNotification);
            let _no_notifier = waits.then(|| self.notifiers.write(task));
            self.active.store(new, Ordering::Release);
        }
        // The grace period: whoever is in the old set leaves it.
        change.apply(&mut self.sets[old].write(task));
        self.sets[new].read(task).set_generation(generation + self.step);
    }
}

enum Change {
    Put(Arc<Slot>),
    Remove(AddressSpaceId, SlotId),
}

impl Change {
    fn apply(&self, set: &mut MemSlots) {
        match self {
            Change::Put(slot) => set.put(Arc::clone(slot)),
            Change::Remove(space, id) => set.remove(*space, *id),
        }
    }
}
