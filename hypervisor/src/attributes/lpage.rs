//! Where a slot may have huge leaves (`struct kvm_lpage_info`).
//!
//! A huge page of a slot has a count of reasons against it and a flag that its attributes differ. Two reasons are
//! permanent and follow from the slot: it does not contain all of the page, or guest frames and what stands behind them
//! are not congruent. Others come and go: a shadowed guest page table, a page whose writes are tracked, and mixed
//! attributes. Only what comes and goes is stored, so the record grows with what deviates and not with the slot.
//!
//! Always true: no entry is stored that says nothing; a page that the slot does not contain as a whole is never huge, and
//! nothing is stored for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::sync::{ShardedLock, Task};
use emu_core::{Gfn, PageSize};

use crate::memslot::MemSlot;

/// Whether the attributes of a huge page are all the same (`KVM_LPAGE_MIXED_FLAG`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mixture {
    /// They are.
    #[default]
    Uniform,
    /// They differ.
    Mixed,
}

/// What is stored of a huge page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Deviation {
    reasons: u32,
    mixture: Mixture,
}

/// See the module.
#[derive(Debug)]
pub struct LpageInfo {
    first: u64,
    end: u64,
    /// What guest frames must be congruent with.
    behind: u64,
    /// By page size and number of the huge page.
    deviations: ShardedLock<BTreeMap<(PageSize, u64), Deviation>>,
    /// How many there are, to be read without the lock.
    nr_deviations: AtomicU64,
}

/// The sizes there is something to say about.
pub(super) const HUGE: [PageSize; 2] = [PageSize::Size2M, PageSize::Size1G];

impl LpageInfo {
    /// The record of a new slot (`kvm_alloc_memslot_metadata`).
    pub(crate) fn new(slot: &MemSlot) -> LpageInfo {
        // KVM compares with the user address even where that shows nothing; what a leaf translates to is the inode's page.
        let behind = match slot.gmem {
            Some(view) if slot.is_gmem_only() => view.first_index.0,
            _ => slot.hva.frame().raw(),
        };
        LpageInfo {
            first: slot.first.raw(),
            end: slot.end().raw(),
            behind,
            deviations: ShardedLock::default(),
            nr_deviations: AtomicU64::new(0),
        }
    }

    /// Whether the slot contains all of the page of `size` around `gfn`.
    pub fn contains(&self, gfn: Gfn, size: PageSize) -> bool {
        let base = gfn.align_down(size).raw();
        base >= self.first && base + size.frames() <= self.end
    }

    fn is_congruent(&self, size: PageSize) -> bool {
        (self.first ^ self.behind).is_multiple_of(size.frames())
    }

    #[inline]
    fn deviation(&self, gfn: Gfn, size: PageSize, task: &Task<'_>) -> Deviation {
        let base = gfn.align_down(size).raw();
        assert!(
            base < self.end && self.first < base + size.frames(),
            "D9: the record of the {size} page at {base:#x} is not one of the slot at {:#x}",
            self.first
        );
        if self.nr_deviations.load(Ordering::Acquire) == 0 {
            return Deviation::default();
        }
        let page = gfn.raw() / size.frames();
        self.deviations.read(task).get(&(size, page)).copied().unwrap_or_default()
    }

    /// Reasons against a leaf of `size` around `gfn`, mixed attributes not counted. A page that sticks out of the slot and
    /// one that is not congruent have one for either.
    ///
    /// # Panics
    /// When the slot shows nothing of the page: no record is its own.
    pub fn reasons(&self, gfn: Gfn, size: PageSize, task: &Task<'_>) -> u32 {
        u32::from(!self.contains(gfn, size) || !self.is_congruent(size)) + self.deviation(gfn, size, task).reasons
    }

    /// Whether the attributes of the page of `size` around `gfn` differ; only told of pages that the slot contains.
    ///
    /// # Panics
    /// As [`LpageInfo::reasons`].
    pub fn mixture(&self, gfn: Gfn, size: PageSize, task: &Task<'_>) -> Mixture {
        self.deviation(gfn, size, task).mixture
    }

    /// Whether a leaf of `size` may be around `gfn`, as far as the slot knows.
    pub fn allows(&self, gfn: Gfn, size: PageSize, task: &Task<'_>) -> bool {
        size == PageSize::Size4K
            || self.deviation(gfn, size, task) == Deviation::default()
                && self.contains(gfn, size)
                && self.is_congruent(size)
    }

    /// The largest leaf up to `limit` that may be around `gfn`.
    pub fn largest(&self, gfn: Gfn, limit: PageSize, task: &Task<'_>) -> PageSize {
        let sizes = PageSize::ALL[..=limit.index()].iter().copied();
        sizes.rev().find(|&size| self.allows(gfn, size, task)).unwrap_or(PageSize::Size4K)
    }

    /// There is one more reason against huge leaves over `gfn` (`kvm_mmu_gfn_disallow_lpage`).
    pub fn disallow(&self, gfn: Gfn, task: &Task<'_>) {
        self.change(gfn, task, |deviation| deviation.reasons += 1);
    }

    /// There is one less (`kvm_mmu_gfn_allow_lpage`).
    ///
    /// # Panics
    /// When there is none.
    pub fn allow(&self, gfn: Gfn, task: &Task<'_>) {
        self.change(gfn, task, |deviation| match deviation.reasons.checked_sub(1) {
            Some(left) => deviation.reasons = left,
            None => panic!("{gfn:?} has no reason against huge leaves to take back"),
        });
    }

    fn change(&self, gfn: Gfn, task: &Task<'_>, change: impl Fn(&mut Deviation)) {
        for size in HUGE {
            self.change_one(gfn, size, task, &change);
        }
    }

    fn change_one(&self, gfn: Gfn, size: PageSize, task: &Task<'_>, change: impl Fn(&mut Deviation)) {
        if !self.contains(gfn, size) {
            return;
        }
        let mut deviations = self.deviations.write(task);
        let key = (size, gfn.raw() / size.frames());
        let mut deviation = deviations.get(&key).copied().unwrap_or_default();
        change(&mut deviation);
        if deviation == Deviation::default() {
            deviations.remove(&key);
        } else {
            deviations.insert(key, deviation);
        }
        self.nr_deviations.store(deviations.len() as u64, Ordering::Release);
    }

    /// The page of `size` around `gfn`, which the slot contains, has uniform or mixed attributes from now on.
    pub(super) fn set_mixture(&self, gfn: Gfn, size: PageSize, mixture: Mixture, task: &Task<'_>) {
        self.change_one(gfn, size, task, |deviation| deviation.mixture = mixture);
    }

    /// Mixed pages of `size` in guest frames `[from, end)` become uniform.
    pub(super) fn make_uniform(&self, from: u64, end: u64, size: PageSize, task: &Task<'_>) {
        let frames = size.frames();
        let range = (size, from / frames)..(size, end.div_ceil(frames));
        let mut deviations = self.deviations.write(task);
        let mixed = deviations.range(range).filter(|(_, deviation)| deviation.mixture == Mixture::Mixed);
        let mixed: Vec<(PageSize, u64)> = mixed.map(|(&key, _)| key).collect();
        for key in mixed {
            match deviations.get_mut(&key) {
                Some(Deviation { reasons: 0, .. }) => drop(deviations.remove(&key)),
                Some(deviation) => deviation.mixture = Mixture::Uniform,
                None => {}
            }
        }
        self.nr_deviations.store(deviations.len() as u64, Ordering::Release);
    }

    /// What is stored, by size and first guest frame: reasons that come and go, and whether attributes differ.
    pub fn list(&self, task: &Task<'_>) -> Vec<(PageSize, Gfn, u32, Mixture)> {
        let deviations = self.deviations.read(task);
        let entry = |(&(size, page), deviation): (&(PageSize, u64), &Deviation)| {
            (size, Gfn::new(page * size.frames()), deviation.reasons, deviation.mixture)
        };
        deviations.iter().map(entry).collect()
    }

    /// Huge pages there is something stored about.
    pub fn nr_deviations(&self) -> u64 {
        self.nr_deviations.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memslot::{AddressSpaceId, SlotFlags};
    use emu_core::Hva;
    use gmem::SlotId;

    const QUIET: &Task<'static> = &Task::QUIET;
    const M2: u64 = PageSize::Size2M.frames();
    const G1: u64 = PageSize::Size1G.frames();

    fn slot(first: u64, nr_pages: u64, hva_page: u64) -> MemSlot {
        MemSlot {
            id: SlotId(0),
            space: AddressSpaceId::Normal,
            first: Gfn::new(first),
            nr_pages,
            flags: SlotFlags::empty(),
            hva: Hva::new(hva_page << 12),
            gmem: None,
        }
    }

    #[test]
    fn edges_and_incongruence_stand_against_huge_leaves_for_good() {
        let at_100 = LpageInfo::new(&slot(0x100, 8 * M2, 0x7000_0100));
        let huge = (0x100..0x100 + 8 * M2).filter(|&gfn| at_100.allows(Gfn::new(gfn), PageSize::Size2M, QUIET));
        assert_eq!(huge.count() as u64, 7 * M2);
        let skewed = LpageInfo::new(&slot(0, 2 * G1, M2));
        assert_eq!(skewed.largest(Gfn::new(5), PageSize::Size1G, QUIET), PageSize::Size2M, "congruent in 2M only");
        assert_eq!(skewed.reasons(Gfn::new(5), PageSize::Size1G, QUIET), 1);
        let odd = LpageInfo::new(&slot(0, 2 * G1, 1));
        assert_eq!(odd.largest(Gfn::new(5), PageSize::Size1G, QUIET), PageSize::Size4K);
    }

    #[test]
    fn reasons_are_counted_for_both_sizes_and_forgotten() {
        let info = LpageInfo::new(&slot(0, 2 * G1, 0));
        info.disallow(Gfn::new(7), QUIET);
        info.disallow(Gfn::new(8), QUIET);
        info.disallow(Gfn::new(M2), QUIET);
        assert_eq!(info.reasons(Gfn::new(0), PageSize::Size2M, QUIET), 2);
        assert_eq!(info.reasons(Gfn::new(0), PageSize::Size1G, QUIET), 3);
        assert_eq!(info.largest(Gfn::new(3 * M2), PageSize::Size1G, QUIET), PageSize::Size2M);
        for gfn in [7, M2, 8] {
            info.allow(Gfn::new(gfn), QUIET);
        }
        assert_eq!((info.nr_deviations(), info.largest(Gfn::new(7), PageSize::Size1G, QUIET)), (0, PageSize::Size1G));
    }

    #[test]
    #[should_panic(expected = "no reason against huge leaves")]
    fn a_reason_is_taken_back_once() {
        LpageInfo::new(&slot(0, 2 * G1, 0)).allow(Gfn::new(0), QUIET);
    }
}
