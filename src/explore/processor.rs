//! A virtual processor of the explored VM: its nested root, its TLB, its walks and its stores.
//!
//! It does what hardware does and no more. A walk sets the accessed flag, and the dirty flag when it is for a store, in
//! one step with the look at the entry; what it found is used one step later. A translation serves stores only if the
//! dirty flag was set when it was cached, or the entry has none. Translations stay over exits until a flush names them.
//! Whoever kicks the processor waits until it has left the guest; it uses nothing that it found before the kick.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use emu_core::sync::{Point, Task};
use emu_core::{AccessKind, Gfn, PageSize, Sfn, Spa};
use hypervisor::tdp::{Entry, Level, Rights, Spte};
use hypervisor::{EntryState, FlushRequest, PML_ENTRIES, Shareability, VcpuId};

use super::world::World;

/// What is cached of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Translation {
    pub(super) sfn: Sfn,
    /// What goes through without a walk.
    pub(super) rights: Rights,
}

/// See the module.
#[derive(Default)]
pub(super) struct Processor {
    pub(super) tlb: RefCell<BTreeMap<u64, Translation>>,
    pub(super) in_guest: Cell<bool>,
    /// The nested root it has loaded; the VM's until it is told to load another.
    root: Cell<Option<Spa>>,
    /// Where it logs the pages whose dirty flag it sets, and the index.
    pub(super) pml: Cell<Option<(Spa, u16)>>,
}

/// How an attempt at an access ended.
pub(super) enum Attempt {
    /// The access is done.
    Done,
    /// The processor was kicked before it was.
    Kicked,
    /// It faulted on an entry in this state.
    Faulted(EntryState),
}

/// An access of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) kind: AccessKind,
    pub(super) gfn: u64,
    /// Which side of memory it means.
    pub(super) meaning: Shareability,
}

impl Processor {
    /// Enters the guest, tries the access once and leaves.
    pub(super) fn attempt(&self, world: &World, id: VcpuId, access: Access, task: &Task<'_>) -> Attempt {
        let attempt = {
            let (inside, flush) = world.vm.enter_guest(id, task).expect("the vCPU exists");
            self.serve(flush);
            if let Some(register) = world.vm.take_root(id).expect("the vCPU exists") {
                self.root.set(Some(Spa::new(register).align_down(PageSize::Size4K)));
                self.tlb.borrow_mut().clear();
            }
            self.in_guest.set(true);
            let cached = self.tlb.borrow().get(&access.gfn).copied();
            let found = match cached.filter(|cached| cached.rights.allow(access.kind)) {
                Some(cached) => Ok(cached),
                None => self.walk(world, access),
            };
            task.at(Point::T1);
            let attempt = match found {
                Err(state) => Attempt::Faulted(state),
                Ok(_) if inside.is_kicked() => Attempt::Kicked,
                Ok(translation) => {
                    // The walk may be old by now; the processor fills its TLB from it all the same.
                    self.tlb.borrow_mut().insert(access.gfn, translation);
                    if access.kind == AccessKind::Write {
                        world.store(access.gfn, translation.sfn);
                    }
                    task.at(Point::T1);
                    Attempt::Done
                }
            };
            self.in_guest.set(false);
            attempt
        };
        self.write_log_down(world, id, task);
        attempt
    }

    fn serve(&self, flush: Option<FlushRequest>) {
        match flush {
            None => {}
            Some(FlushRequest::All) => self.tlb.borrow_mut().clear(),
            Some(FlushRequest::Range { first, nr_pages }) => {
                self.tlb.borrow_mut().retain(|&gfn, _| gfn.wrapping_sub(first.raw()) >= nr_pages);
            }
        }
    }

    /// What the VM does with the buffer of page-modification logging when the processor has left the guest.
    pub(super) fn write_log_down(&self, world: &World, id: VcpuId, task: &Task<'_>) {
        if let Some((page, index)) = self.pml.get() {
            world.vm.flush_pml_buffer(id, page, index, task).expect("the buffer is memory");
            self.pml.set(Some((page, PML_ENTRIES - 1)));
        }
    }

    /// Walks the nested tables without any lock.
    fn walk(&self, world: &World, access: Access) -> Result<Translation, EntryState> {
        let (vm, gfn) = (&world.vm, Gfn::new(access.gfn));
        let format = vm.format();
        let (mut table, mut level) = (self.root.get().unwrap_or_else(|| vm.root()), Level::ROOT);
        loop {
            let place = table.wrapping_add(8 * level.slot(gfn));
            let spte = Spte::from_raw(vm.memory().load(place).expect("tables lie in memory"));
            match format.read(spte, level) {
                Entry::Table(next) => (table, level) = (next, level.below().expect("a PTE leads to no table")),
                Entry::Absent | Entry::Frozen => return Err(EntryState::NotPresent),
                Entry::Mmio(_) => return Err(EntryState::Reserved),
                Entry::Leaf { .. } if format.is_access_tracked(spte) => return Err(EntryState::NotPresent),
                Entry::Leaf { sfn, mut rights } => {
                    // A page of the other side of memory is denied as the reverse map denies it.
                    let other_side = world.meant_at(level.base(gfn)).is_some_and(|meant| meant != access.meaning);
                    if !rights.allow(access.kind) || other_side {
                        return Err(EntryState::Denied);
                    }
                    let sets = if access.kind == AccessKind::Write { format.dirty() } else { 0 } | format.accessed();
                    let marked = spte.raw() | sets & format.ad_bits(spte);
                    if marked != spte.raw() {
                        vm.memory().store(place, marked).expect("tables lie in memory");
                        self.log(world, (marked ^ spte.raw()) & format.dirty() != 0, gfn);
                    }
                    if format.ad_bits(spte) != 0 && marked & format.dirty() == 0 {
                        rights.remove(Rights::WRITE);
                    }
                    return Ok(Translation { sfn: Sfn::new(sfn.raw() + gfn.raw() - level.base(gfn).raw()), rights });
                }
            }
        }
    }

    /// Logs a page whose dirty flag was set just now. The buffer is emptied at every exit, so it never fills up.
    fn log(&self, world: &World, is_dirtied: bool, gfn: Gfn) {
        if let (true, Some((page, index))) = (is_dirtied, self.pml.get()) {
            let entry = page.wrapping_add(8 * u64::from(index));
            world.vm.memory().store(entry, gfn.base().raw()).expect("the buffer is memory");
            self.pml.set(Some((page, index.wrapping_sub(1))));
        }
    }
}
