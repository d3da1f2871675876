//! The page cache as a structure: which folios lie at which indices (`struct address_space`'s xarray).
//!
//! One entry stands for a whole folio, or for all the pieces of one: pieces keep the frames of their original, so its
//! head and their size say it all. Only where pieces of a 2M block are gone does a bitmap say which. So a folio of any
//! size costs 8 bytes, split or not, and 72 where holes were punched into it.
//!
//! Folios are looked up, and put where a node is for them, by many at once; the rest needs the cache alone.
//!
//! Always true: an entry is a naturally aligned part of one unit, and covers the unit alone or together with entries
//! beside it; a unit has entries as long as one of its pieces is in the cache, and none otherwise; a gone piece is
//! therefore one of a unit that is split.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};

use emu_core::sync::{Sharded, Task};
use emu_core::{PageSize, Sfn};

use super::Backed;
use crate::pagemap::{Claim, Hit, Packed, PageMap, Vacancy};

const M2: u64 = PageSize::Size2M.frames();

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Folios of this size, one of the entry's own or all of its pieces.
    Folios(PageSize),
    /// 4K pieces of a 2M entry, of which some are gone: the bitmap's number.
    Some(u32),
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cached {
    head: Sfn,
    /// Number of a bitmap, or [`NO_BITMAP`].
    bitmap: u32,
    /// Size of its folios.
    pieces: PageSize,
    /// What it was allocated as a part of.
    unit: PageSize,
}

const NO_BITMAP: u32 = u32::MAX;

impl Cached {
    const fn shape(&self) -> Shape {
        match self.bitmap {
            NO_BITMAP => Shape::Folios(self.pieces),
            id => Shape::Some(id),
        }
    }
}

/// From bit 0: two bits of the size of the folios, two of the unit's, whether there is a bitmap. Then the head, of 40 bits;
/// or, because what has a bitmap covers 2M, 31 bits of the head without its zeros below 26 of the bitmap's number.
impl Packed for Cached {
    #[inline]
    fn pack(self) -> u64 {
        let sizes = self.pieces.index() as u64 | (self.unit.index() as u64) << 2;
        match self.bitmap {
            NO_BITMAP => sizes | self.head.raw() << 5,
            id => sizes | 1 << 4 | u64::from(id) << 5 | self.head.raw() / M2 << 31,
        }
    }

    #[inline]
    fn unpack(bits: u64) -> Cached {
        let size = |at: u32| PageSize::ALL[(bits >> at & 3) as usize];
        let (bitmap, head) = match bits >> 4 & 1 {
            0 => (NO_BITMAP, bits >> 5),
            _ => ((bits >> 5) as u32 & (MOST_BITMAPS - 1), (bits >> 31) * M2),
        };
        Cached { head: Sfn::new(head), bitmap, pieces: size(0), unit: size(2) }
    }
}

/// As many as 128 TiB of 2M blocks with holes need.
const MOST_BITMAPS: u32 = 1 << 26;

/// What lies at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A folio.
    Folio(Backed),
    /// Nothing, in a unit of which other pieces are there. Nothing but its own frame may come here.
    Gone(Sfn),
    /// Nothing, in an aligned block of this size with nothing in it.
    Vacant(PageSize),
}

/// Folios of one size and one unit that follow one another in indices and frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First index.
    pub(super) first: u64,
    /// Pages.
    pub(super) nr_pages: u64,
    /// First frame.
    pub(super) sfn: Sfn,
    /// Size of each folio.
    pub(super) size: PageSize,
}

impl Run {
    /// Whether `next` goes on where this one ends, in indices and frames.
    pub(super) fn is_followed_by(&self, next: &Run) -> bool {
        let (index, frame) = (self.first + self.nr_pages, self.sfn.raw() + self.nr_pages);
        (index, frame, self.size) == (next.first, next.sfn.raw(), next.size)
    }
}

/// What was allocated as one, by the indices that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// First index.
    pub(super) base: u64,
    /// First frame.
    pub(super) head: Sfn,
    /// Size.
    pub(super) size: PageSize,
}

impl Unit {
    pub(super) const fn end(&self) -> u64 {
        self.base + self.size.frames()
    }
}

/// One bit for each page of 2M.
type Bitmap = [u64; 8];

/// See the module.
#[derive(Default)]
pub(super) struct PageCache {
    map: PageMap<Cached>,
    bitmaps: Vec<Bitmap>,
    unused: Vec<u32>,
    /// Folios by [`PageSize::index`]: what each lane put in, and in lane 0 what came of the rest.
    folios: Sharded<[AtomicU64; 3]>,
}

const fn align_down(index: u64, size: PageSize) -> u64 {
    index & !(size.frames() - 1)
}

fn bit(bitmap: &Bitmap, page: u64) -> bool {
    bitmap[(page / 64) as usize] >> (page % 64) & 1 != 0
}

fn set_bit(bitmap: &mut Bitmap, page: u64, on: bool) {
    let (word, bit) = (&mut bitmap[(page / 64) as usize], 1 << (page % 64));
    *word = if on { *word | bit } else { *word & !bit };
}

fn unit_of(hit: &Hit<Cached>) -> Unit {
    let Cached { head, unit, .. } = hit.value;
    Unit { base: align_down(hit.base, unit), head: head.align_down(unit), size: unit }
}

impl PageCache {
    /// Folios of `size`.
    pub(super) fn count(&self, size: PageSize) -> u64 {
        self.folios.iter().fold(0, |sum, lane| sum.wrapping_add(lane[size.index()].load(Ordering::Relaxed)))
    }

    fn add(&self, lane: usize, size: PageSize, nr: u64) {
        self.folios.lane(lane)[size.index()].fetch_add(nr, Ordering::Relaxed);
    }

    fn sub(&self, size: PageSize, nr: u64) {
        self.folios.lane(0)[size.index()].fetch_sub(nr, Ordering::Relaxed);
    }

    /// Bytes of real memory that it takes.
    pub(super) fn metadata_bytes(&self) -> usize {
        self.map.metadata_bytes() + self.bitmaps.len() * size_of::<Bitmap>()
    }

    /// What lies at `index`.
    #[inline]
    pub(super) fn at(&self, index: u64) -> Place {
        self.look(index).unwrap_or_else(|vacancy| Place::Vacant(vacancy.size()))
    }

    /// The same; of a vacant index, where an entry could come.
    #[inline]
    pub(super) fn look(&self, index: u64) -> Result<Place, Vacancy> {
        let hit = self.map.look(index)?;
        let sfn = Sfn::new(hit.value.head.raw() + (index - hit.base));
        Ok(match hit.value.shape() {
            Shape::Folios(size) => Place::Folio(Backed { sfn, size }),
            Shape::Some(id) if bit(&self.bitmaps[id as usize], index - hit.base) => {
                Place::Folio(Backed { sfn, size: PageSize::Size4K })
            }
            Shape::Some(_) => Place::Gone(sfn),
        })
    }

    /// The unit that has pieces around `index`, if there is one, or the first above it.
    pub(super) fn unit_from(&self, index: u64) -> Option<Unit> {
        self.map.next_from(index).map(|hit| unit_of(&hit))
    }

    /// The unit that has pieces around `index`.
    pub(super) fn unit_at(&self, index: u64) -> Option<Unit> {
        self.map.get(index).map(|hit| unit_of(&hit))
    }

    /// Puts a whole unit into vacant indices; `false` if they are not.
    pub(super) fn insert(&mut self, base: u64, head: Sfn, size: PageSize) -> bool {
        let inserted =
            self.map.insert(base, size, Cached { head, bitmap: NO_BITMAP, pieces: size, unit: size }).is_ok();
        self.add(0, size, u64::from(inserted));
        inserted
    }

    /// The same while others look; `None` where it takes a node that is not there yet.
    pub(super) fn try_insert(&self, base: u64, head: Sfn, size: PageSize, task: &Task<'_>) -> Option<bool> {
        match self.map.claim(base, size, Cached { head, bitmap: NO_BITMAP, pieces: size, unit: size }) {
            Claim::Entered => {
                self.add(task.lane(), size, 1);
                Some(true)
            }
            Claim::Occupied => Some(false),
            Claim::NoNode => None,
        }
    }

    /// Puts a whole unit of the size of the vacancy at `index`, which was found vacant while the cache was held as it is
    /// now; `false` if another task was faster.
    #[inline]
    pub(super) fn insert_at(&self, vacancy: Vacancy, index: u64, head: Sfn, size: PageSize, task: &Task<'_>) -> bool {
        debug_assert!(
            vacancy.size() == size && index.is_multiple_of(size.frames()),
            "{vacancy:?} for {size} at {index}"
        );
        let cached = Cached { head, bitmap: NO_BITMAP, pieces: size, unit: size };
        let entered = self.map.claim_at(vacancy, index, cached) == Claim::Entered;
        if entered {
            self.add(task.lane(), size, 1);
        }
        entered
    }

    /// Visits the folios that reach into `[first, end)`, ascending, as few runs.
    pub(super) fn runs<B>(&self, first: u64, end: u64, mut visit: impl FnMut(Run) -> ControlFlow<B>) -> ControlFlow<B> {
        self.map.visit(first, end, &mut |hit| {
            let run = |from: u64, to: u64, size| Run {
                first: from,
                nr_pages: to - from,
                sfn: Sfn::new(hit.value.head.raw() + (from - hit.base)),
                size,
            };
            match hit.value.shape() {
                Shape::Folios(size) => {
                    let from = align_down(first.max(hit.base), size);
                    let to = end.next_multiple_of(size.frames()).min(hit.end());
                    visit(run(from, to, size))?;
                }
                Shape::Some(id) => {
                    let bitmap = &self.bitmaps[id as usize];
                    let (mut from, to) = (first.max(hit.base), end.min(hit.end()));
                    while from < to {
                        let there = bit(bitmap, from - hit.base);
                        let mut next = from + 1;
                        while next < to && bit(bitmap, next - hit.base) == there {
                            next += 1;
                        }
                        if there {
                            visit(run(from, next, PageSize::Size4K))?;
                        }
                        from = next;
                    }
                }
            }
            ControlFlow::Continue(())
        })
    }

    /// The same, for visits that look at everything.
    pub(super) fn each_run(&self, first: u64, end: u64, mut visit: impl FnMut(Run)) {
        let _ = self.runs::<()>(first, end, |run| {
            visit(run);
            ControlFlow::Continue(())
        });
    }

    /// The folio around `index` became pieces of size `to`.
    pub(super) fn split(&mut self, index: u64, to: PageSize) {
        let Place::Folio(Backed { size, .. }) = self.at(index) else { return };
        if size <= to {
            return;
        }
        self.cut_down(index, size);
        self.map.update(index, |cached| cached.pieces = to);
        self.sub(size, 1);
        self.add(0, to, size.frames() / to.frames());
    }

    /// Makes the entry around `index` cover no more than `size`.
    fn cut_down(&mut self, index: u64, size: PageSize) {
        while let Some(hit) = self.map.get(index).filter(|hit| hit.size > size) {
            let smaller = PageSize::ALL[hit.size.index() - 1];
            let Shape::Folios(pieces) = hit.value.shape() else { return };
            let pieces = pieces.min(smaller);
            let head = |at: u64| Sfn::new(hit.value.head.raw() + (at - hit.base));
            self.map.divide(index, |at| Cached { head: head(at), pieces, ..hit.value });
        }
    }

    /// Whether all of the block of `size` at `base` is there, in pieces of one unit that is no smaller.
    pub(super) fn is_complete(&self, base: u64, size: PageSize) -> bool {
        let end = base + size.frames();
        let mut at = base;
        let all = self.map.visit(base, end, &mut |hit| {
            if hit.base > at || hit.value.unit < size || hit.value.bitmap != NO_BITMAP {
                return ControlFlow::Break(());
            }
            at = hit.end();
            ControlFlow::Continue(())
        });
        all.is_continue() && at >= end
    }

    /// The pieces of the complete block of `size` at `base` became one folio.
    pub(super) fn merge(&mut self, base: u64, size: PageSize) {
        let Some(hit) = self.map.get(base) else { return };
        let mut gone = [0; 3];
        self.each_run(base, base + size.frames(), |run| gone[run.size.index()] += run.nr_pages / run.size.frames());
        if hit.size > size {
            self.cut_down(base, size);
        }
        let head = Sfn::new(hit.value.head.raw() + (base - hit.base));
        let united = self.map.unite(base, size, Cached { head, bitmap: NO_BITMAP, pieces: size, unit: hit.value.unit });
        assert!(united.is_ok(), "entries of a unit are no larger than it");
        PageSize::ALL.into_iter().zip(gone).for_each(|(size, nr)| self.sub(size, nr));
        self.add(0, size, 1);
    }

    /// Forgets a unit, whatever is left of it.
    pub(super) fn remove_unit(&mut self, unit: Unit) {
        if unit.size == PageSize::Size4K {
            let removed = self.map.remove(unit.base).is_some();
            self.sub(unit.size, u64::from(removed));
            return;
        }
        let mut gone = [0; 3];
        self.each_run(unit.base, unit.end(), |run| gone[run.size.index()] += run.nr_pages / run.size.frames());
        PageSize::ALL.into_iter().zip(gone).for_each(|(size, nr)| self.sub(size, nr));
        let mut at = unit.base;
        while let Some(hit) = self.map.next_from(at).filter(|hit| hit.base < unit.end()) {
            at = hit.end();
            if let Shape::Some(id) = hit.value.shape() {
                self.unused.push(id);
            }
        }
        let cleared = self.map.clear_below(unit.base, unit.size);
        assert!(cleared.is_ok(), "entries of a unit are no larger than it");
    }

    /// Takes the 4K pieces at `[first, end)` out, all of which are there. The unit is forgotten when they were its last.
    pub(super) fn remove_pieces(&mut self, first: u64, end: u64) {
        let mut at = first;
        while at < end {
            let block_end = (align_down(at, PageSize::Size2M) + M2).min(end);
            self.cut_down(at, PageSize::Size2M);
            let Some(hit) = self.map.get(at) else { return };
            let id = match hit.value.shape() {
                Shape::Some(id) => id,
                Shape::Folios(_) => {
                    let id = self.unused.pop().unwrap_or_else(|| {
                        self.bitmaps.push([0; 8]);
                        assert!(self.bitmaps.len() < MOST_BITMAPS as usize, "no guest has as many 2M blocks");
                        (self.bitmaps.len() - 1) as u32
                    });
                    self.bitmaps[id as usize] = [u64::MAX; 8];
                    self.map.update(at, |cached| cached.bitmap = id);
                    id
                }
            };
            for page in at..block_end {
                set_bit(&mut self.bitmaps[id as usize], page - hit.base, false);
            }
            self.sub(PageSize::Size4K, block_end - at);
            at = block_end;
        }
        if let Some(unit) = self.unit_at(first) {
            let any = self.runs(unit.base, unit.end(), ControlFlow::Break);
            if any.is_continue() {
                self.remove_unit(unit);
            }
        }
    }

    /// A gone piece is there again.
    pub(super) fn restore_piece(&mut self, index: u64) {
        let Some(hit) = self.map.get(index) else { return };
        let Shape::Some(id) = hit.value.shape() else { return };
        let bitmap = &mut self.bitmaps[id as usize];
        set_bit(bitmap, index - hit.base, true);
        let whole = bitmap.iter().all(|&word| word == u64::MAX);
        self.add(0, PageSize::Size4K, 1);
        if whole {
            self.unused.push(id);
            self.map.update(index, |cached| cached.bitmap = NO_BITMAP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const G1: u64 = PageSize::Size1G.frames();

    #[test]
    fn an_entry_is_a_word_that_tells_all_of_it() {
        for (pieces, unit) in PageSize::ALL.into_iter().flat_map(|a| PageSize::ALL.map(|b| (a, b))) {
            for bitmap in [NO_BITMAP, 0, 5, MOST_BITMAPS - 1] {
                let cached = Cached { head: Sfn::new((1 << 40) - M2), bitmap, pieces, unit };
                assert_eq!((Cached::unpack(cached.pack()), cached.pack() >> 62), (cached, 0));
            }
        }
    }

    #[test]
    fn a_split_folio_is_one_entry() {
        let mut cache = PageCache::default();
        cache.insert(0, Sfn::new(G1), PageSize::Size1G);
        let whole = cache.metadata_bytes();
        cache.split(0, PageSize::Size4K);
        assert_eq!((cache.metadata_bytes(), cache.count(PageSize::Size4K)), (whole, G1));
        cache.remove_pieces(5, 6);
        assert!(cache.metadata_bytes() < whole + (32 << 10), "{}", cache.metadata_bytes() - whole);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert { base: u64, size: PageSize },
        Split { index: u64, to: PageSize },
        Merge { index: u64, size: PageSize },
        Remove { index: u64, nr: u64 },
        Restore { index: u64 },
        Drop { index: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        let size = || prop::sample::select(PageSize::ALL.to_vec());
        let index = || {
            let near = prop_oneof![Just(0), Just(1), Just(7), Just(M2 - 1)];
            (prop_oneof![0_u64..3, 510_u64..514], near).prop_map(|(block, near)| block * M2 + near)
        };
        prop_oneof![
            2 => (index(), size()).prop_map(|(at, size)| Op::Insert { base: align_down(at, size), size }),
            4 => (index(), size()).prop_map(|(index, to)| Op::Split { index, to }),
            2 => (index(), size()).prop_map(|(index, size)| Op::Merge { index, size }),
            3 => (index(), prop_oneof![Just(1_u64), Just(2), Just(M2)]).prop_map(|(index, nr)| Op::Remove { index, nr }),
            3 => index().prop_map(|index| Op::Restore { index }),
            1 => index().prop_map(|index| Op::Drop { index }),
        ]
    }

    /// A folio of the model: base, size, unit size. Frames are indices plus 4G.
    type Folio = (u64, PageSize, PageSize);
    const OFFSET: u64 = 4 * G1;

    proptest! {
        /// Against a list of folios and a list of gone pieces.
        #[test]
        fn agrees_with_a_list_of_folios(ops in prop::collection::vec(op(), 1..40)) {
            let mut cache = PageCache::default();
            let mut folios: Vec<Folio> = Vec::new();
            let mut gone: Vec<(u64, PageSize)> = Vec::new();
            for op in ops {
                let covering = |folios: &[Folio], at: u64| {
                    folios.iter().position(|&(base, size, _)| base <= at && at < base + size.frames())
                };
                match op {
                    Op::Insert { base, size } => {
                        let end = base + size.frames();
                        let free = folios.iter().all(|f| f.0 + f.1.frames() <= base || end <= f.0)
                            && gone.iter().all(|&(at, unit)| {
                                let unit_base = align_down(at, unit);
                                unit_base + unit.frames() <= base || end <= unit_base
                            })
                            && folios.iter().all(|f| {
                                let unit_base = align_down(f.0, f.2);
                                unit_base + f.2.frames() <= base || end <= unit_base
                            });
                        prop_assert_eq!(cache.insert(base, Sfn::new(base + OFFSET), size), free);
                        if free {
                            folios.push((base, size, size));
                        }
                    }
                    Op::Split { index, to } => {
                        cache.split(index, to);
                        if let Some(at) = covering(&folios, index).filter(|&at| folios[at].1 > to) {
                            let (base, size, unit) = folios.swap_remove(at);
                            let parts = (base..base + size.frames()).step_by(to.frames() as usize);
                            folios.extend(parts.map(|at| (at, to, unit)));
                        }
                    }
                    Op::Merge { index, size } => {
                        let base = align_down(index, size);
                        let end = base + size.frames();
                        let inside: Vec<Folio> = folios.iter().filter(|f| base <= f.0 && f.0 + f.1.frames() <= end).copied().collect();
                        let complete = inside.iter().map(|f| f.1.frames()).sum::<u64>() == size.frames()
                            && inside.iter().all(|f| f.2 >= size);
                        let larger = covering(&folios, index).is_some_and(|at| folios[at].1 > size);
                        if !larger && size > PageSize::Size4K {
                            prop_assert_eq!(cache.is_complete(base, size), complete);
                            if complete {
                                cache.merge(base, size);
                                let unit = inside[0].2;
                                folios.retain(|f| f.0 < base || end <= f.0);
                                folios.push((base, size, unit));
                            }
                        }
                    }
                    Op::Remove { index, nr } => {
                        let pieces: Vec<Folio> =
                            folios.iter().filter(|f| index <= f.0 && f.0 < index + nr && f.1 == PageSize::Size4K && f.2 > f.1).copied().collect();
                        let units: Vec<u64> = pieces.iter().map(|f| align_down(f.0, f.2)).collect();
                        if pieces.len() as u64 == nr && units.iter().all(|&unit| unit == units[0]) {
                            cache.remove_pieces(index, index + nr);
                            folios.retain(|f| f.0 < index || index + nr <= f.0);
                            gone.extend(pieces.iter().map(|f| (f.0, f.2)));
                            let unit_end = units[0] + pieces[0].2.frames();
                            if !folios.iter().any(|f| units[0] <= f.0 && f.0 < unit_end) {
                                gone.retain(|g| g.0 < units[0] || unit_end <= g.0);
                            }
                        }
                    }
                    Op::Restore { index } => {
                        if let Some(at) = gone.iter().position(|g| g.0 == index) {
                            prop_assert_eq!(cache.at(index), Place::Gone(Sfn::new(index + OFFSET)));
                            cache.restore_piece(index);
                            let (at, unit) = gone.swap_remove(at);
                            folios.push((at, PageSize::Size4K, unit));
                        }
                    }
                    Op::Drop { index } => {
                        if let Some(unit) = cache.unit_at(index) {
                            cache.remove_unit(unit);
                            folios.retain(|f| f.0 < unit.base || unit.end() <= f.0);
                            gone.retain(|g| g.0 < unit.base || unit.end() <= g.0);
                        }
                    }
                }
                for size in PageSize::ALL {
                    prop_assert_eq!(cache.count(size), folios.iter().filter(|f| f.1 == size).count() as u64);
                }
                for at in (0..3).chain(510..514).flat_map(|block| [0, 1, 7, 8, M2 - 1].map(|near| block * M2 + near)) {
                    match (cache.at(at), covering(&folios, at).map(|at| folios[at])) {
                        (Place::Folio(backed), Some((_, size, _))) => {
                            prop_assert_eq!(backed, Backed { sfn: Sfn::new(at + OFFSET), size });
                        }
                        (Place::Gone(sfn), None) => {
                            prop_assert_eq!(sfn, Sfn::new(at + OFFSET));
                            prop_assert!(gone.iter().any(|g| g.0 == at));
                        }
                        (Place::Vacant(_), None) => prop_assert!(!gone.iter().any(|g| g.0 == at)),
                        (place, folio) => prop_assert!(false, "{place:?} at {at} where {folio:?} is"),
                    }
                }
                let mut seen = 0;
                let mut last = 0;
                cache.each_run(0, 2 * G1, |run| {
                    assert!(run.first >= last, "runs ascend");
                    last = run.first + run.nr_pages;
                    seen += run.nr_pages;
                });
                prop_assert_eq!(seen, folios.iter().map(|f| f.1.frames()).sum::<u64>());
            }
        }
    }
}
