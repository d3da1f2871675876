//! The tree and the one function that changes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event};
use emu_core::memory::{BusError, SystemMemory};
use emu_core::sync::{Mutex, Sharded, ShardedLock, Task};
use emu_core::{Gfn, PageSize, Sfn, Spa};
use gmem::{Host, OutOfMemory};

use super::leaf::{AdType, WriteState};
use super::nx::NxTables;
use super::spte::{Entry, Kind, Level, Rights, Spte, TdpFormat};
use crate::flush::Owed;
use crate::shadow::ShadowMmu;

/// Counters of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TablesStats {
    /// Leaves present, by [`PageSize::index`] (`pages_4k`, `pages_2m`, `pages_1g`).
    pub mapped: [u64; 3],
    /// Leaves installed so far.
    pub installed: [u64; 3],
    /// Leaves removed so far.
    pub zapped: [u64; 3],
    /// Tables in use, by [`Level::index`]; the root included.
    pub tables: [u64; Level::COUNT],
}

/// Where an entry stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) at: Spa,
    pub(super) level: Level,
    /// First guest frame under the entry.
    pub(super) gfn: Gfn,
}

impl Place {
    #[inline]
    pub(super) fn in_table(table: Spa, level: Level, gfn: Gfn) -> Place {
        // A table is one frame, so the sum stays inside it.
        Place { at: table.wrapping_add(8 * level.slot(gfn)), level, gfn: level.base(gfn) }
    }
}

/// Where a walk ended, for the next walk that ends in the same table: what a paging-structure cache is to a processor. A
/// table that has left the tree since is known by its frozen entries, and one that was freed by the burials.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastTable {
    root: Spa,
    table: Spa,
    level: Level,
    /// Of the guest frames under the table, what its own slots do not tell.
    above: u64,
    burials: u64,
}

/// Another writer changed the entry since it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// A present leaf, as [`Tables::leaves`] lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafView {
    /// First guest frame.
    pub gfn: Gfn,
    /// First system frame.
    pub sfn: Sfn,
    /// Its size.
    pub size: PageSize,
    /// What it allows.
    pub rights: Rights,
    /// The entry. Accessed and dirty flags may have changed since.
    pub spte: Spte,
}

/// What one lane of tasks added up.
#[derive(Debug, Default)]
struct Counters {
    installed: [AtomicU64; 3],
    zapped: [AtomicU64; 3],
    linked: [AtomicU64; Level::COUNT],
    unlinked: [AtomicU64; Level::COUNT],
    /// Changes that neither installed nor removed a leaf.
    changes: AtomicU64,
}

/// What is known of tables beside what stands in them.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Tables that are out of the tree and may still be walked by who held `mmu_lock` for reading when they went.
    graveyard: Vec<Spa>,
    pub(super) nx: NxTables,
    /// Roots that were given up and still hold entries.
    pub(super) invalid_roots: Vec<Spa>,
}

/// See [`crate::tdp`].
pub struct Tables {
    pub(super) memory: Arc<SystemMemory>,
    pub(super) format: TdpFormat,
    /// How leaves record accesses.
    pub(super) ad: AdType,
    pub(super) current_root: AtomicU64,
    counters: Sharded<Counters>,
    pub(super) kept: Mutex<Kept>,
    /// How often tables were freed; changes with `mmu_lock` held for writing.
    burials: AtomicU64,
    /// Tables that were made for entries of devices.
    mmio_tables: AtomicU64,
    /// Who removes with `mmu_lock` held for reading and has not flushed yet.
    shared_zaps: AtomicU64,
    /// Who walks without `mmu_lock`.
    pub(super) walkers: ShardedLock<()>,
    /// What `mmu_lock`, held for writing, guards besides, in a VM without nested paging.
    pub(crate) shadow: Mutex<Option<Box<ShadowMmu>>>,
}

/// Somebody removes what processors may have cached, with `mmu_lock` held for reading, and flushes before this goes.
pub(crate) struct SharedZap<'a>(&'a AtomicU64);

impl Drop for SharedZap<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Tables {
    /// An empty tree.
    pub fn new(host: &Host, format: TdpFormat, ad: AdType, task: &Task<'_>) -> Result<Tables, OutOfMemory> {
        let mut host = host.lock(task);
        let root = host.alloc_table()?;
        let tables = Tables {
            memory: Arc::clone(host.memory()),
            format,
            ad,
            current_root: AtomicU64::new(root.raw()),
            counters: Sharded::default(),
            kept: Mutex::default(),
            burials: AtomicU64::new(0),
            mmio_tables: AtomicU64::new(0),
            shared_zaps: AtomicU64::new(0),
            walkers: ShardedLock::default(),
            shadow: Mutex::default(),
        };
        tables.count_linked(Level::ROOT, task);
        Ok(tables)
    }

    /// What `look` says of the shadow pages of a VM without nested paging.
    pub fn with_shadow<R>(&self, task: &Task<'_>, look: impl FnOnce(&ShadowMmu) -> R) -> Option<R> {
        self.shadow.lock(task).as_deref().map(look)
    }

    /// The same, unless somebody is using them.
    pub(crate) fn try_shadow<R>(&self, task: &Task<'_>, look: impl FnOnce(&ShadowMmu) -> R) -> Option<R> {
        self.shadow.try_lock(task)?.as_deref().map(look)
    }

    /// The format.
    pub const fn format(&self) -> TdpFormat {
        self.format
    }

    /// How leaves record accesses.
    pub const fn ad(&self) -> AdType {
        self.ad
    }

    /// What nCR3 (NPT) or the EPTP (EPT) holds.
    pub fn root_register(&self) -> u64 {
        self.format.root_register(self.root(), self.ad)
    }

    /// The counters. Exact while nothing changes the tree.
    pub fn stats(&self) -> TablesStats {
        let lanes = || self.counters.iter();
        let sum = |counter: &dyn Fn(&Counters) -> &AtomicU64| -> u64 {
            lanes().map(|lane| counter(lane).load(Ordering::Relaxed)).sum()
        };
        let installed: [u64; 3] = core::array::from_fn(|n| sum(&|lane| &lane.installed[n]));
        let zapped: [u64; 3] = core::array::from_fn(|n| sum(&|lane| &lane.zapped[n]));
        TablesStats {
            mapped: core::array::from_fn(|n| installed[n].saturating_sub(zapped[n])),
            installed,
            zapped,
            tables: core::array::from_fn(|n| {
                sum(&|lane| &lane.linked[n]).saturating_sub(sum(&|lane| &lane.unlinked[n]))
            }),
        }
    }

    /// Entries written so far. Who sees the same number twice has seen the same tree, but for accessed and dirty flags.
    pub fn version(&self) -> u64 {
        // Every change adds to one of these, and none of them ever falls.
        let of = |lane: &Counters| -> u64 {
            let all = lane.installed.iter().chain(&lane.zapped).chain([&lane.changes]);
            all.map(|counter| counter.load(Ordering::Acquire)).sum()
        };
        self.counters.iter().map(of).sum()
    }

    #[inline]
    pub(super) fn load(&self, place: Place) -> Result<Spte, BusError> {
        Ok(Spte::from_raw(self.memory.load(place.at)?))
    }

    /// The table in which the entry of `gfn` at `level` stands, if that is `last` and the walk is to start at `root`.
    /// `mmu_lock` is held: it is not freed meanwhile. It may be out of the tree, and then its entries are frozen.
    #[inline]
    pub(super) fn walked(&self, last: Option<LastTable>, root: Spa, gfn: Gfn, level: Level) -> Option<Spa> {
        let last = last?;
        let same = last.level == level && last.above == level.above(gfn) && last.root == root;
        (same && last.burials == self.burials.load(Ordering::Acquire)).then_some(last.table)
    }

    /// That a walk for `gfn` from `root` ended in `table`.
    #[inline]
    pub(super) fn note_walk(&self, root: Spa, table: Spa, level: Level, gfn: Gfn) -> LastTable {
        LastTable { root, table, level, above: level.above(gfn), burials: self.burials.load(Ordering::Acquire) }
    }

    /// Takes note of a change to the tree that is no change of an entry.
    pub(super) fn count_change(&self, task: &Task<'_>) {
        self.counters.lane(task.lane()).changes.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn count_linked(&self, level: Level, task: &Task<'_>) {
        self.counters.lane(task.lane()).linked[level.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Announces a removal with `mmu_lock` held for reading: what processors have cached and what the tables say may differ
    /// until it is flushed.
    pub(crate) fn shared_zap(&self) -> SharedZap<'_> {
        self.shared_zaps.fetch_add(1, Ordering::AcqRel);
        SharedZap(&self.shared_zaps)
    }

    /// Whether such a removal is under way.
    pub(crate) fn is_zapped_shared(&self) -> bool {
        self.shared_zaps.load(Ordering::Acquire) != 0
    }

    /// Tables that were made for entries of devices since everything was last zapped.
    pub(crate) fn mmio_tables(&self) -> u64 {
        self.mmio_tables.load(Ordering::Relaxed)
    }

    pub(super) fn count_mmio_table(&self) {
        self.mmio_tables.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn forget_mmio_tables(&self) {
        self.mmio_tables.store(0, Ordering::Relaxed);
    }

    /// Takes note of the 512 leaves of a table that a split has put in the tree.
    pub(super) fn count_parts(&self, level: Level, task: &Task<'_>) {
        if let Some(size) = level.leaf_size() {
            self.counters.lane(task.lane()).installed[size.index()].fetch_add(512, Ordering::Relaxed);
        }
    }

    /// Takes note of a table that left the tree. It is freed by the next [`Tables::bury`].
    pub(super) fn unlink(&self, table: Spa, level: Level, task: &Task<'_>) {
        self.counters.lane(task.lane()).unlinked[level.index()].fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept.lock(task);
        kept.nx.forget(table);
        kept.graveyard.push(table);
    }

    /// Frees what left the tree. Only with `mmu_lock` held for writing, when nobody can be walking, and after a flush,
    /// when no processor can. Waits for those who walk without the lock (`synchronize_rcu`).
    pub(crate) fn bury(&self, host: &Host, task: &Task<'_>) {
        let mut kept = self.kept.lock(task);
        if !kept.graveyard.is_empty() {
            drop(self.walkers.write(task));
            self.burials.fetch_add(1, Ordering::Release);
            let mut host = host.lock(task);
            kept.graveyard.drain(..).for_each(|table| host.free_table(table));
        }
        drop(kept);
        if let Some(shadow) = self.shadow.lock(task).as_mut() {
            shadow.bury(host, task);
        }
    }

    /// The funnel: replaces `old` by `new` (`tdp_mmu_set_spte_atomic`, `handle_changed_spte`). Accessed and dirty flags that
    /// a processor set meanwhile do not count as a change; the value really replaced is returned.
    ///
    /// It is a compare-exchange whoever calls. Linux stores plainly where `mmu_lock` is held for writing and the old entry
    /// is not volatile ([`TdpFormat::is_volatile`]); the exchange that it needs otherwise costs nothing more here.
    ///
    /// # Panics
    /// When the change is one that must never happen: a leaf not aligned, in no legal row of writability, or of another
    /// frame than the one it replaces; a table put where a leaf of something else is.
    pub(super) fn change(
        &self,
        place: Place,
        old: Spte,
        new: Spte,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<Result<Spte, Lost>, BusError> {
        let Place { at, level, gfn } = place;
        let (before, after) = (self.format.kind(old, level), self.format.kind(new, level));
        if after == Kind::Leaf {
            let sfn = new.sfn();
            let aligned = level.leaf_size().is_some_and(|size| sfn.is_aligned(size));
            assert!(aligned, "a leaf of level {level:?} at {gfn:?} cannot start at {sfn:?}");
            assert!(self.format.write_state(new).is_some(), "the leaf {new:x?} at {gfn:?} is in no legal row");
            if before == Kind::Leaf {
                assert_eq!(old.sfn(), sfn, "the leaf at {gfn:?} changes its frame while present");
            }
        }
        assert_ne!((before, after), (Kind::Absent, Kind::Absent), "nothing at {gfn:?} becomes nothing");
        let (mut current, mut target) = (old, new);
        if task.has(Defect::PlainStore) && (before, after) == (Kind::Leaf, Kind::Leaf) {
            self.memory.store(at, new.raw())?;
            current = new;
        }
        while let Err(seen) = self.memory.compare_exchange_u64(at, current.raw(), target.raw())? {
            let seen = Spte::from_raw(seen);
            if !self.format.same_but_ad(seen, current) {
                return Ok(Err(Lost));
            }
            current = seen;
            if after == Kind::Leaf {
                // A dirty flag that a processor set meanwhile must survive into the new leaf.
                target = self.format.inheriting(new, old, seen);
            }
        }
        task.report_with(|| Event::SpteChanged {
            gfn,
            level: level.index() as u8 + 1,
            old_spte: Bits(current.raw()),
            new_spte: Bits(target.raw()),
        });
        self.account(place, before, after, target, task);
        if self.owes_flush((before, after), level, current, target) {
            owed.range(gfn, level.frames());
        }
        Ok(Ok(current))
    }

    #[inline]
    fn owes_flush(&self, kinds: (Kind, Kind), level: Level, old: Spte, new: Spte) -> bool {
        match kinds {
            // Only what is present is cached. A leaf gives way to a table by being split, which translates the same.
            (Kind::Absent | Kind::Frozen | Kind::Mmio, _) | (Kind::Leaf, Kind::Table) => false,
            (Kind::Leaf, Kind::Leaf) => self.loses_anything(level, old, new),
            (Kind::Table | Kind::Leaf, _) => true,
        }
    }

    /// Whether a leaf allows or says less than the one it takes the place of.
    fn loses_anything(&self, level: Level, old: Spte, new: Spte) -> bool {
        let format = self.format;
        let rights = |leaf| match format.read(leaf, level) {
            Entry::Leaf { rights, .. } => rights,
            _ => Rights::empty(),
        };
        // By MMU-writable and not by W: who withheld W may not have flushed yet.
        let may_write = |leaf| matches!(format.write_state(leaf), Some(WriteState::Writable | WriteState::Withheld));
        !rights(new).contains(rights(old))
            || may_write(old) && !may_write(new)
            || format.is_accessed(old) && !format.is_accessed(new)
            || format.is_dirty(old) && !format.is_dirty(new)
    }

    #[inline]
    fn account(&self, place: Place, before: Kind, after: Kind, new: Spte, task: &Task<'_>) {
        let gfn = place.gfn;
        let counters = self.counters.lane(task.lane());
        match (before == Kind::Leaf, after == Kind::Leaf, place.level.leaf_size()) {
            (true, false, Some(size)) => {
                counters.zapped[size.index()].fetch_add(1, Ordering::AcqRel);
                task.report(Event::Zapped { gfn, size });
            }
            (false, true, Some(size)) => {
                counters.installed[size.index()].fetch_add(1, Ordering::AcqRel);
                task.report(Event::Mapped { gfn, sfn: new.sfn(), size });
            }
            _ => self.count_change(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gmem::{HostConfig, HostMemory};

    const QUIET: Task<'static> = Task::QUIET;

    fn tables() -> (Tables, Place) {
        let memory = SystemMemory::flat(1 << 20).unwrap();
        let config = HostConfig { first: Sfn::new(1), nr_frames: 255, pools: vec![] };
        let host = Host::new(HostMemory::new(memory, &config).unwrap());
        let tables = Tables::new(&host, TdpFormat::Npt, AdType::Enabled, &QUIET).unwrap();
        let table = host.lock(&QUIET).alloc_table().unwrap();
        (tables, Place::in_table(table, Level::of_leaf(PageSize::Size2M), Gfn::new(512)))
    }

    fn leaf(sfn: u64) -> Spte {
        TdpFormat::Npt.leaf(Sfn::new(sfn), PageSize::Size2M, Rights::all())
    }

    #[test]
    fn a_dirty_flag_that_a_processor_sets_meanwhile_survives() {
        let (tables, place) = tables();
        let format = tables.format();
        let clean = format.without(leaf(1024), format.dirty());
        tables.change(place, Spte::ABSENT, clean, &mut Owed::default(), &QUIET).unwrap().unwrap();
        tables.memory.store(place.at, leaf(1024).raw()).unwrap();
        let aged = format.without(clean, format.accessed());
        assert_eq!(
            tables.change(place, clean, aged, &mut Owed::default(), &QUIET),
            Ok(Ok(leaf(1024))),
            "what was really replaced"
        );
        assert_eq!(tables.load(place), Ok(format.without(leaf(1024), format.accessed())));
        assert_eq!(
            tables.change(place, aged, Spte::ABSENT, &mut Owed::default(), &QUIET).map(|seen| seen.is_ok()),
            Ok(true)
        );
        assert_eq!(tables.load(place), Ok(Spte::ABSENT), "a flag does not keep a leaf alive");
    }

    #[test]
    fn a_change_that_lost_to_another_writer_changes_nothing() {
        let (tables, place) = tables();
        tables.change(place, Spte::ABSENT, leaf(1024), &mut Owed::default(), &QUIET).unwrap().unwrap();
        assert_eq!(tables.change(place, Spte::ABSENT, leaf(2048), &mut Owed::default(), &QUIET), Ok(Err(Lost)));
        assert_eq!((tables.load(place), tables.stats().mapped), (Ok(leaf(1024)), [0, 1, 0]));
    }

    #[test]
    #[should_panic(expected = "changes its frame while present")]
    fn a_leaf_never_moves_while_present() {
        let (tables, place) = tables();
        tables.change(place, Spte::ABSENT, leaf(1024), &mut Owed::default(), &QUIET).unwrap().unwrap();
        let _ = tables.change(place, leaf(1024), leaf(2048), &mut Owed::default(), &QUIET);
    }

    #[test]
    #[should_panic(expected = "cannot start at")]
    fn a_leaf_is_aligned() {
        let (tables, place) = tables();
        let _ = tables.change(place, Spte::ABSENT, leaf(1025), &mut Owed::default(), &QUIET);
    }
}
