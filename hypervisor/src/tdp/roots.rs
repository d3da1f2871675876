//! Roots: the one that faults build under, and those that were given up and still hold entries
//! (`kvm_tdp_mmu_invalidate_roots`, `kvm_tdp_mmu_zap_invalidated_roots`).
//!
//! Everything is zapped fast by giving the root up: a new, empty one takes its place, and every processor must load it
//! before it enters the guest. What the old one holds is removed afterwards, piece by piece. Until then its entries are
//! real: whoever takes a page away must find them there too ([`Tables::zap`]), because a processor may still be using them.

use std::sync::atomic::Ordering;

use emu_core::defect::Defect;
use emu_core::memory::BusError;
use emu_core::sync::Task;
use emu_core::{Gfn, Spa};

use super::spte::{Entry, Level, Spte};
use super::tables::{Place, Tables};
use crate::flush::Owed;

/// Where the removal of a given-up root goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZapRoot {
    /// From this guest frame.
    From(Gfn),
    /// It is empty.
    Done,
}

impl Tables {
    /// The root that faults build under.
    pub fn root(&self) -> Spa {
        Spa::new(self.current_root.load(Ordering::Acquire))
    }

    /// Makes the empty table `fresh` the root and gives the old one up. `mmu_lock` is held for writing.
    pub(crate) fn invalidate_root(&self, fresh: Spa, task: &Task<'_>) -> Spa {
        let old = Spa::new(self.current_root.swap(fresh.raw(), Ordering::AcqRel));
        self.count_change(task);
        self.count_linked(Level::ROOT, task);
        self.forget_mmio_tables();
        self.kept.lock(task).invalid_roots.push(old);
        old
    }

    /// The current root and those that were given up and are not empty yet.
    pub(super) fn all_roots(&self, task: &Task<'_>) -> Vec<Spa> {
        if task.has(Defect::ForgetInvalidRoots) {
            return vec![self.root()];
        }
        let kept = self.kept.lock(task);
        core::iter::once(self.root()).chain(kept.invalid_roots.iter().copied()).collect()
    }

    /// Roots that were given up and are not empty yet.
    pub fn nr_invalid_roots(&self, task: &Task<'_>) -> usize {
        self.kept.lock(task).invalid_roots.len()
    }

    /// Removes what one entry of the second level of a given-up root holds, the first at or behind `from`. `mmu_lock` is held,
    /// for reading at least. No processor uses what goes: each has loaded another root by the time it enters the guest.
    pub(crate) fn zap_invalid_root(&self, root: Spa, from: Gfn, task: &Task<'_>) -> Result<ZapRoot, BusError> {
        let top = Level::ROOT.frames() * 512;
        let mut at = from.raw();
        while at < top {
            let place = Place::in_table(root, Level::ROOT, Gfn::new(at));
            let Entry::Table(table) = self.format.read(self.load(place)?, Level::ROOT) else {
                at = place.gfn.raw() + Level::ROOT.frames();
                continue;
            };
            let Some(second) = Level::ROOT.below() else { break };
            let place = Place::in_table(table, second, Gfn::new(at));
            at = place.gfn.raw() + second.frames();
            let mut spte = self.load(place)?;
            let mut owed = Owed::default();
            while !matches!(spte, Spte::ABSENT | Spte::FROZEN) {
                match self.change(place, spte, Spte::ABSENT, &mut owed, task)? {
                    Ok(replaced) => {
                        if let (Entry::Table(table), Some(below)) = (self.format.read(replaced, second), second.below())
                        {
                            self.drop_tree(table, below, place.gfn, &mut owed, task)?;
                        }
                        return Ok(ZapRoot::From(Gfn::new(at)));
                    }
                    Err(_) => spte = self.load(place)?,
                }
            }
        }
        self.drop_tree(root, Level::ROOT, Gfn::new(0), &mut Owed::default(), task)?;
        self.kept.lock(task).invalid_roots.retain(|other| *other != root);
        Ok(ZapRoot::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use emu_core::memory::SystemMemory;
    use emu_core::{PageSize, Sfn};
    use gmem::{Host, HostConfig, HostMemory};

    use super::*;
    use crate::tdp::{AdType, Rights, TdpFormat};

    const QUIET: Task<'static> = Task::QUIET;

    #[test]
    fn who_takes_a_page_away_finds_it_under_a_root_that_was_given_up() {
        let memory = SystemMemory::flat(1 << 20).unwrap();
        let config = HostConfig { first: Sfn::new(1), nr_frames: 255, pools: vec![] };
        let host = Host::new(HostMemory::new(memory, &config).unwrap());
        let tables = Arc::new(Tables::new(&host, TdpFormat::Npt, AdType::Enabled, &QUIET).unwrap());
        let mut table = tables.root();
        let gfn = Gfn::new(7);
        let mut owed = Owed::default();
        for size in [Level::ROOT, Level::of_leaf(PageSize::Size1G), Level::of_leaf(PageSize::Size2M)] {
            let next = host.lock(&QUIET).alloc_table().unwrap();
            let place = Place::in_table(table, size, gfn);
            tables.change(place, Spte::ABSENT, TdpFormat::Npt.table(next), &mut owed, &QUIET).unwrap().unwrap();
            tables.count_linked(size.below().unwrap(), &QUIET);
            table = next;
        }
        let place = Place::in_table(table, Level::of_leaf(PageSize::Size4K), gfn);
        let leaf = TdpFormat::Npt.leaf(Sfn::new(200), PageSize::Size4K, Rights::all());
        tables.change(place, Spte::ABSENT, leaf, &mut owed, &QUIET).unwrap().unwrap();
        let fresh = host.lock(&QUIET).alloc_table().unwrap();
        let old = tables.invalidate_root(fresh, &QUIET);
        assert!(tables.leaves().unwrap().is_empty() && owed.is_empty());
        tables.zap_valid(gfn, 1, &mut owed, &QUIET).unwrap();
        assert_eq!((tables.stats().mapped, owed.is_empty()), ([1, 0, 0], true), "only the mapping was to change");
        tables.zap(gfn, 1, &mut owed, &QUIET).unwrap();
        assert_eq!((tables.stats().mapped, owed.is_empty()), ([0, 0, 0], false));
        let mut from = Gfn::new(0);
        while let ZapRoot::From(next) = tables.zap_invalid_root(old, from, &QUIET).unwrap() {
            from = next;
        }
        tables.bury(&host, &QUIET);
        assert_eq!((tables.stats().tables, tables.nr_invalid_roots(&QUIET)), ([0, 0, 0, 1], 0));
    }
}
