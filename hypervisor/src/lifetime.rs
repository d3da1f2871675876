//! How a VM ends, and where its files lie.
//!
//! A VM lives as long as somebody refers to it (`kvm->users_count`): its descriptor, and each file of guest_memfd from its
//! creation to its release (`kvm_get_kvm` in `__kvm_gmem_create`, `kvm_put_kvm` in `kvm_gmem_release`). So a VMM may close
//! the VM before its guest_memfd, and what it does to the file then still finds memslots and tables to take pages from.
//! The last reference ends the VM (`kvm_destroy_vm`): its memslots go, and with them every mapping.
//!
//! [`FilePlaces`] is the slab of `struct file`: a file that ends leaves its place to the next one at once
//! (`SLAB_TYPESAFE_BY_RCU`). A place is no identity, but for who keeps the file or its memslot from going.
//!
//! Always true: a file that is not released has a VM that lives (A6).
//! Left out: descriptors of vCPUs and devices, which go with the VM's.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use emu_core::Gfn;
use emu_core::defect::Defect;
use emu_core::sync::{Mutex, Point, ReadGuard, Task};

use crate::config::VmError;
use crate::memslot::{MemSlots, Slot, SlotState};
use crate::vm::{GmemId, Vm};

/// Who refers to a VM.
#[derive(Debug)]
pub(crate) struct Lifetime {
    users: AtomicU32,
    /// The descriptor is there.
    descriptor: AtomicBool,
    destroyed: AtomicBool,
}

impl Default for Lifetime {
    /// A VM that its descriptor refers to.
    fn default() -> Lifetime {
        Lifetime { users: AtomicU32::new(1), descriptor: AtomicBool::new(true), destroyed: AtomicBool::new(false) }
    }
}

/// Where a file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FilePlace(u32);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FilePlaces {
    /// Of each file so far, by its number.
    of: Vec<FilePlace>,
    vacant: Vec<FilePlace>,
    nr_places: u32,
}

impl FilePlaces {
    /// A place for the next file.
    fn take(&mut self) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.nr_places += 1;
            FilePlace(self.nr_places - 1)
        });
        self.of.push(place);
    }

    /// A file ends.
    fn give_back(&mut self, id: GmemId) {
        self.vacant.extend(self.of(id));
    }

    fn of(&self, id: GmemId) -> Option<FilePlace> {
        self.of.get(id.0 as usize).copied()
    }
}

/// [`Lifetime`] and [`FilePlaces`] of a VM.
#[derive(Debug, Default)]
pub(crate) struct Life {
    users: Lifetime,
    places: Mutex<FilePlaces>,
}

impl Vm {
    /// Whether calls on the VM's descriptor can be made.
    pub(crate) fn check_open(&self) -> Result<(), VmError> {
        if self.life.users.descriptor.load(Ordering::Acquire) { Ok(()) } else { Err(VmError::Closed) }
    }

    /// Whether nobody refers to the VM any more.
    pub fn is_destroyed(&self) -> bool {
        self.life.users.destroyed.load(Ordering::Acquire)
    }

    /// `close` of the VM's descriptor, and of its vCPUs', which execute the guest no more. Files of guest_memfd that are
    /// open keep the VM.
    ///
    /// # Errors
    /// [`VmError::Closed`] when it was closed before.
    pub fn close_vm_descriptor(&self, task: &Task<'_>) -> Result<(), VmError> {
        if !self.life.users.descriptor.swap(false, Ordering::AcqRel) {
            return Err(VmError::Closed);
        }
        task.at(Point::L3);
        self.put_vm(task)
    }

    /// A file begins: it refers to the VM.
    pub(crate) fn file_begins(&self, task: &Task<'_>) {
        self.life.users.users.fetch_add(1, Ordering::AcqRel);
        self.life.places.lock(task).take();
    }

    /// A file has ended. No lock may be held: this may end the VM.
    pub(crate) fn file_ends(&self, id: GmemId, task: &Task<'_>) -> Result<(), VmError> {
        self.life.places.lock(task).give_back(id);
        if task.has(Defect::FileWithoutVm) { Ok(()) } else { self.put_vm(task) }
    }

    /// Drops a reference (`kvm_put_kvm`).
    fn put_vm(&self, task: &Task<'_>) -> Result<(), VmError> {
        let users = self.life.users.users.fetch_sub(1, Ordering::AcqRel);
        assert!(users > 0, "a VM without references is put");
        if users > 1 && !task.has(Defect::FileWithoutVm) {
            return Ok(());
        }
        let gone = self.remove_all_memslots(task);
        let zapped = self.zap_all(task);
        self.life.users.destroyed.store(true, Ordering::Release);
        gone.and(zapped)
    }

    /// What a fault finds that gives up what keeps its memslot (`srcu_read_unlock`) and comes back to the same addresses:
    /// the memslot and the file that lie there now. `None` unless both places were there before and are in use.
    #[cold]
    pub(crate) fn look_up_again<'a>(
        &'a self,
        slots: ReadGuard<'a, MemSlots>,
        gfn: Gfn,
        task: &Task<'a>,
    ) -> (ReadGuard<'a, MemSlots>, Option<Slot>) {
        let place_of = |slot: &Slot| self.life.places.lock(task).of(slot.info().gmem?.gmem);
        let before = slots.place_of(gfn).and_then(|(place, slot)| Some((place, *slot.info(), place_of(slot)?)));
        drop(slots);
        task.at(Point::L2);
        let slots = self.slots.read(task);
        let found = before.and_then(|(place, info, file)| {
            let now = slots.at(place).filter(|slot| slot.state() == SlotState::Active)?;
            (place_of(now) == Some(file)).then(|| now.instead_of(info))
        });
        (slots, found)
    }
}
