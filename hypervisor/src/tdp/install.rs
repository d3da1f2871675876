//! Stage 5: writing the entry (`kvm_tdp_mmu_map`, `tdp_mmu_map_handle_target_level`).

use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};

use super::leaf::{HostAccess, NewLeaf, SplitExecute, Touch};
use super::mmio::{MmioGeneration, MmioSpte};
use super::spte::{Entry, Level, Rights, Spte};
use super::tables::{LastTable, Lost, Place, Tables};
use crate::config::VmError;
use crate::fault::level::Sized;
use crate::flush::Owed;
use crate::params::NxHugePages;
use crate::vcpu::TableCache;

/// How an installation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The entry allows the access now.
    Fixed {
        /// Its level.
        size: PageSize,
    },
    /// It did already.
    Spurious,
    /// Another task changed the entry meanwhile; nothing was written.
    Retry,
}

/// What an installation may use and leaves behind.
pub(crate) struct Install<'a> {
    pub(crate) cache: &'a mut TableCache,
    /// Where the processor's last walk ended.
    pub(crate) walked: &'a mut Option<LastTable>,
    pub(crate) owed: &'a mut Owed,
    pub(crate) touch: Touch,
    pub(crate) nx: NxHugePages,
    pub(crate) task: &'a Task<'a>,
}

impl Tables {
    /// Puts the leaf that `fault` asks for into the tree. `mmu_lock` is held, for reading at least, and the fault was
    /// found not to be stale under it.
    ///
    /// # Panics
    /// When the page is mapped to another frame already: some removal did not zap.
    pub(crate) fn install(&self, fault: &Sized<'_>, with: &mut Install<'_>) -> Result<Outcome, VmError> {
        let gfn = fault.gfn();
        let mut goal = Level::of_leaf(fault.size());
        let root = self.root();
        let mut shortcut = self.walked(*with.walked, root, gfn, goal);
        let (mut table, mut level) = shortcut.map_or((root, Level::ROOT), |table| (table, goal));
        loop {
            let place = Place::in_table(table, level, gfn);
            let spte = self.load(place)?;
            if let (Some(next), Some(below)) = (self.format.next_table(spte, level), level.below())
                && level > goal
            {
                (table, level) = (next, below);
                continue;
            }
            let entry = self.format.read(spte, level);
            if entry == Entry::Frozen {
                if shortcut.take().is_none() {
                    return Ok(Outcome::Retry);
                }
                (table, level) = (root, Level::ROOT);
                continue;
            }
            if let Entry::Leaf { sfn, rights } = entry {
                if level <= goal || self.format.allows(spte, level, fault.kind()) {
                    return self.widen(place, spte, sfn, rights, fault, with);
                }
                // Larger than it may be now: logged, or to be executed under the NX workaround.
                let fresh = with.cache.take();
                let execute = match with.nx {
                    NxHugePages::On if fault.rights().contains(Rights::EXECUTE) => SplitExecute::Grant,
                    _ => SplitExecute::Keep,
                };
                if let Err(Lost) = self.split(place, spte, fresh, execute, with.owed, with.task)? {
                    with.cache.put(fresh);
                    return Ok(Outcome::Retry);
                }
                if let Some(below) = level.below() {
                    self.note_disallowed(fresh, place, below, goal, fault, with);
                }
                continue;
            }
            if let (Entry::Table(next), true) = (entry, level == goal)
                && self.is_nx_disallowed(next, with.task)
            {
                // Parts of it are executed: a huge leaf would take that away again (`disallowed_hugepage_adjust`).
                goal = level.below().unwrap_or(goal);
            }
            let below = level.below().filter(|_| level > goal);
            let Some(below) = below else {
                *with.walked = Some(self.note_walk(root, table, level, gfn));
                return self.put_leaf(place, spte, fault, with);
            };
            table = match entry {
                Entry::Table(next) => next,
                _ => {
                    let fresh = with.cache.take();
                    if let Err(Lost) = self.change(place, spte, self.format.table(fresh), with.owed, with.task)? {
                        with.cache.put(fresh);
                        return Ok(Outcome::Retry);
                    }
                    self.count_linked(below, with.task);
                    self.note_disallowed(fresh, place, below, goal, fault, with);
                    fresh
                }
            };
            level = below;
        }
    }

    /// Puts an entry that says that no memory is at `gfn`. `mmu_lock` is held, for reading at least. Where something else
    /// stands, or another task is at work, it leaves things alone.
    pub(crate) fn install_mmio(
        &self,
        gfn: emu_core::Gfn,
        generation: MmioGeneration,
        cache: &mut TableCache,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let (mut table, mut level) = (self.root(), Level::ROOT);
        loop {
            let place = Place::in_table(table, level, gfn);
            let spte = self.load(place)?;
            let next = match (self.format.read(spte, level), level.below()) {
                (Entry::Table(next), Some(below)) => (next, below),
                (Entry::Absent | Entry::Mmio(_), Some(below)) => {
                    let fresh = cache.take();
                    if self.change(place, spte, self.format.table(fresh), owed, task)?.is_err() {
                        cache.put(fresh);
                        return Ok(());
                    }
                    self.count_linked(below, task);
                    self.count_mmio_table();
                    (fresh, below)
                }
                (Entry::Absent | Entry::Mmio(_), None) => {
                    let mmio = MmioSpte { gfn, rights: Rights::all(), generation };
                    // Lost or not: somebody knows better, or says the same.
                    let _ = self.change(place, spte, self.format.mmio(mmio), owed, task)?;
                    return Ok(());
                }
                _ => return Ok(()),
            };
            (table, level) = next;
        }
    }

    /// Takes note of a table that stands where a huge leaf would, but for the NX workaround (`track_possible_nx_huge_page`).
    fn note_disallowed(
        &self,
        table: emu_core::Spa,
        parent: Place,
        below: Level,
        goal: Level,
        fault: &Sized<'_>,
        with: &Install<'_>,
    ) {
        let possible = Level::of_leaf(fault.requested());
        if with.nx == NxHugePages::On && goal < possible && possible >= parent.level && below >= goal {
            self.track_nx(table, parent, with.task);
        }
    }

    fn new_leaf(&self, head: Sfn, size: PageSize, rights: Rights, fault: &Sized<'_>, with: &Install<'_>) -> Spte {
        let host = match fault.rights().contains(Rights::WRITE) {
            true => HostAccess::Writable,
            false => HostAccess::ReadOnly,
        };
        let mut rights = rights;
        if with.nx == NxHugePages::On && size > PageSize::Size4K {
            rights.remove(Rights::EXECUTE);
        }
        self.format.make(&NewLeaf { sfn: head, size, rights, host, touch: with.touch, ad: self.ad })
    }

    fn put_leaf(&self, place: Place, old: Spte, fault: &Sized<'_>, with: &mut Install<'_>) -> Result<Outcome, VmError> {
        let Some(size) = place.level.leaf_size() else { return Ok(Outcome::Retry) };
        let leaf = self.new_leaf(fault.sfn().align_down(size), size, fault.rights(), fault, with);
        let replaced = match self.change(place, old, leaf, with.owed, with.task)? {
            Ok(replaced) => replaced,
            Err(Lost) => return Ok(Outcome::Retry),
        };
        // A table that stood here is left over from smaller pages.
        if let (Entry::Table(table), Some(below)) = (self.format.read(replaced, place.level), place.level.below()) {
            self.drop_tree(table, below, place.gfn, with.owed, with.task)?;
        }
        Ok(Outcome::Fixed { size })
    }

    /// The page is mapped, by a leaf of whatever size. If it does not allow the access it gets the rights it may have.
    fn widen(
        &self,
        place: Place,
        old: Spte,
        head: Sfn,
        had: Rights,
        fault: &Sized<'_>,
        with: &mut Install<'_>,
    ) -> Result<Outcome, VmError> {
        let Some(size) = place.level.leaf_size() else { return Ok(Outcome::Retry) };
        let mapped = head.raw() + (fault.gfn().raw() - place.gfn.raw());
        assert_eq!(mapped, fault.sfn().raw(), "{:?} is mapped to another frame than its folio's", fault.gfn());
        if with.touch == Touch::Ahead || self.format.allows(old, place.level, fault.kind()) {
            return Ok(Outcome::Spurious);
        }
        let wide = self.new_leaf(head, size, had | fault.rights(), fault, with);
        Ok(match self.change(place, old, wide, with.owed, with.task)? {
            Ok(_) => Outcome::Fixed { size },
            Err(Lost) => Outcome::Retry,
        })
    }
}

#[cfg(test)]
mod tests {
    use emu_core::memory::SystemMemory;
    use emu_core::{AccessKind, Gfn, Gpa};
    use gmem::{HostConfig, SlotId};

    use super::*;
    use crate::config::{PagePolicy, VmConfig};
    use crate::fault::{Action, FaultInput, Resumed};
    use crate::memslot::{MemSlotSpec, SlotFlags};
    use crate::vcpu::VcpuId;
    use crate::vm::Vm;

    const QUIET: &Task<'static> = &Task::QUIET;

    fn vm() -> Vm {
        let memory = SystemMemory::flat(256 << 12).unwrap();
        let host = HostConfig { first: Sfn::new(1), nr_frames: 255, pools: vec![] };
        let config = VmConfig { maxphyaddr: 36, nr_vcpus: 2, ..VmConfig::new(PagePolicy::of(PageSize::Size4K), host) };
        let vm = Vm::new(memory, &config).unwrap();
        let len_bytes = 16 << 12;
        let gmem = vm.create_guest_memfd(len_bytes, gmem::GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
        let (id, flags) = (SlotId(0), SlotFlags::empty());
        vm.add_memslot(&MemSlotSpec { id, gpa: Gpa::new(0), len_bytes, flags, gmem, offset_bytes: 0 }, QUIET).unwrap();
        vm
    }

    fn touch(vm: &Vm, vcpu: u16, gfn: u64) -> Action {
        vm.handle_fault(VcpuId(vcpu), FaultInput::new(Gpa::new(gfn << 12), AccessKind::Write), QUIET).unwrap()
    }

    const FIXED: Action = Action::Resume(Resumed::Fixed { size: PageSize::Size4K });

    /// The frames of the guest that a walk from the root finds.
    fn mapped(vm: &Vm) -> Vec<Gfn> {
        vm.tables(QUIET).leaves().unwrap().iter().map(|leaf| leaf.gfn).collect()
    }

    #[test]
    fn a_table_that_left_the_tree_is_walked_to_no_more_whether_or_not_it_is_freed() {
        let vm = vm();
        assert_eq!([touch(&vm, 0, 3), touch(&vm, 0, 4)], [FIXED; 2]);
        {
            // Out of the tree, and still there for who walks it.
            let tables = vm.mmu.read(QUIET);
            let level = Level::of_leaf(PageSize::Size2M);
            let (mut table, mut at) = (tables.root(), Level::ROOT);
            while at > level {
                let place = Place::in_table(table, at, Gfn::new(0));
                (table, at) = match (tables.format.read(tables.load(place).unwrap(), at), at.below()) {
                    (Entry::Table(next), Some(below)) => (next, below),
                    other => panic!("{other:?}"),
                };
            }
            let place = Place::in_table(table, level, Gfn::new(0));
            let entry = tables.load(place).unwrap();
            let mut owed = Owed::default();
            tables.change(place, entry, Spte::ABSENT, &mut owed, QUIET).unwrap().unwrap();
            let (Entry::Table(last), Some(below)) = (tables.format.read(entry, level), level.below()) else {
                panic!("{entry:?} leads to no table")
            };
            tables.drop_tree(last, below, Gfn::new(0), &mut owed, QUIET).unwrap();
        }
        assert_eq!((touch(&vm, 0, 5), mapped(&vm)), (FIXED, vec![Gfn::new(5)]));
        vm.mmu.write(QUIET).bury(&vm.host, QUIET);
        // Freed and used for something else by now.
        vm.zap_all(QUIET).unwrap();
        assert_eq!([touch(&vm, 1, 9), touch(&vm, 0, 6)], [FIXED; 2]);
        assert_eq!(mapped(&vm), [6, 9].map(Gfn::new));
    }
}
