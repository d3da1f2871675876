//! Pools of huge pages and the reservations on them (Linux `mm/hugetlb.c`: `struct hstate`, `struct hugepage_subpool`).
//!
//! [`HugePool`] holds the pages of one size; [`Subpool`] is what one inode may take of it. Always true, with the
//! kernel's names: `resv <= free`; `resv` is the sum of the subpools' `rsv`; `free` plus what is handed out is `nr`; a
//! subpool's `rsv` plus what it handed out is its size. So an allocation within a reservation cannot fail.
//!
//! Left out: NUMA nodes, vmemmap optimisation, demotion.

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::buddy::Buddy;
use crate::extent::ExtentSet;

/// The sizes a pool can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HugeSize {
    /// 2 MiB, order 9.
    Size2M,
    /// 1 GiB, order 18.
    Size1G,
}

impl HugeSize {
    /// Both.
    pub const ALL: [HugeSize; 2] = [HugeSize::Size2M, HugeSize::Size1G];

    /// The page size.
    pub const fn page_size(self) -> PageSize {
        match self {
            HugeSize::Size2M => PageSize::Size2M,
            HugeSize::Size1G => PageSize::Size1G,
        }
    }
}

/// What a reservation may lean on when the pool's own pages do not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// Nothing: guest_memfd must return every page to its reservation.
    Refused,
    /// Pages from the page allocator beyond the pool's persistent ones, up to the overcommit limit.
    Allowed,
}

/// A pool cannot promise that many pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the {size} pool has {available} unreserved pages, {asked} were asked for")]
pub struct PoolExhausted {
    /// The pool.
    pub size: PageSize,
    /// Pages asked for.
    pub asked: u64,
    /// Pages free and not promised to others.
    pub available: u64,
}

/// The counters of a pool, under the names of `/sys/kernel/mm/hugepages/*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// `nr_hugepages`: pages that belong to the pool, surplus ones included.
    pub nr: u64,
    /// `free_hugepages`: of these, not handed out.
    pub free: u64,
    /// `resv_hugepages`: of the free ones, promised.
    pub resv: u64,
    /// `surplus_hugepages`: of `nr`, those beyond the persistent pool.
    pub surplus: u64,
    /// `nr_overcommit_hugepages`: the most surplus pages there may be.
    pub overcommit: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct HugePool {
    size: HugeSize,
    /// Free pages by frame number divided by the frames of a page.
    free: ExtentSet,
    nr: u64,
    resv: u64,
    surplus: u64,
    overcommit: u64,
}

impl HugePool {
    /// An empty pool.
    pub fn new(size: HugeSize) -> HugePool {
        HugePool { size, free: ExtentSet::default(), nr: 0, resv: 0, surplus: 0, overcommit: 0 }
    }

    /// The size of its pages.
    pub const fn page_size(&self) -> PageSize {
        self.size.page_size()
    }

    /// The counters.
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            nr: self.nr,
            free: self.free.len(),
            resv: self.resv,
            surplus: self.surplus,
            overcommit: self.overcommit,
        }
    }

    /// Pages free and promised to nobody.
    pub fn available(&self) -> u64 {
        self.free.len() - self.resv
    }

    /// Sets how many surplus pages there may be.
    pub fn set_overcommit(&mut self, nr_pages: u64) {
        self.overcommit = nr_pages;
    }

    fn unit(&self, sfn: Sfn) -> u64 {
        sfn.raw() / self.page_size().frames()
    }

    fn sfn(&self, unit: u64) -> Sfn {
        Sfn::new(unit * self.page_size().frames())
    }

    /// Adds up to `nr_pages` persistent pages from the page allocator; the number added.
    ///
    /// Blocks far larger than a page are taken whole, so that a pool of a terabyte is a few runs.
    pub fn grow(&mut self, buddy: &mut Buddy, nr_pages: u64) -> u64 {
        let unit_order = self.page_size().order().raw();
        let mut left = nr_pages;
        let mut above = 30_u8;
        while left > 0 {
            above = above.min(left.ilog2() as u8);
            let block = loop {
                let found = emu_core::Order::new(unit_order + above).and_then(|order| buddy.alloc(order));
                match found {
                    Some(sfn) => break Some(sfn),
                    None if above == 0 => break None,
                    None => above -= 1,
                }
            };
            let Some(sfn) = block else { break };
            self.free.insert(self.unit(sfn), 1 << above);
            self.nr += 1 << above;
            left -= 1 << above;
        }
        nr_pages - left
    }

    /// Gives up to `nr_pages` unpromised persistent pages back to the page allocator; the number given.
    pub fn shrink(&mut self, buddy: &mut Buddy, nr_pages: u64) -> u64 {
        let mut given = 0;
        while given < nr_pages && self.available() > 0 && self.nr > self.surplus {
            let Some(unit) = self.free.pop_last() else { break };
            buddy.free(self.sfn(unit), self.page_size().order());
            self.nr -= 1;
            given += 1;
        }
        given
    }

    /// Promises `nr_pages`, all or nothing (`hugetlb_acct_memory` with a positive argument).
    pub fn reserve(&mut self, buddy: &mut Buddy, nr_pages: u64, surplus: Surplus) -> Result<(), PoolExhausted> {
        let refused = PoolExhausted { size: self.page_size(), asked: nr_pages, available: self.available() };
        let needed = nr_pages.saturating_sub(self.available());
        if needed > 0 {
            if surplus == Surplus::Refused || needed > self.overcommit.saturating_sub(self.surplus) {
                return Err(refused);
            }
            let added = self.grow(buddy, needed);
            self.surplus += added;
            if added < needed {
                self.drop_surplus(buddy);
                return Err(refused);
            }
        }
        self.resv += nr_pages;
        Ok(())
    }

    /// Takes a promise back (`hugetlb_acct_memory` with a negative argument); surplus pages it freed leave the pool.
    ///
    /// # Panics
    /// When more is taken back than was promised.
    pub fn unreserve(&mut self, buddy: &mut Buddy, nr_pages: u64) {
        assert!(nr_pages <= self.resv, "{nr_pages} pages were never promised");
        self.resv -= nr_pages;
        self.drop_surplus(buddy);
    }

    fn drop_surplus(&mut self, buddy: &mut Buddy) {
        while self.surplus > 0 && self.available() > 0 {
            let Some(unit) = self.free.pop_last() else { break };
            buddy.free(self.sfn(unit), self.page_size().order());
            self.nr -= 1;
            self.surplus -= 1;
        }
    }

    /// Hands out one promised page.
    fn dequeue_reserved(&mut self) -> Sfn {
        let unit = self.free.pop_first();
        let (Some(unit), 1..) = (unit, self.resv) else {
            panic!("a promise of the {} pool was not kept", self.page_size())
        };
        self.resv -= 1;
        self.sfn(unit)
    }

    /// Takes a page back and restores the promise it was handed out under.
    fn enqueue_reserved(&mut self, sfn: Sfn) {
        assert!(sfn.is_aligned(self.page_size()), "{sfn:?} is not the head of a {} page", self.page_size());
        self.free.insert(self.unit(sfn), 1);
        self.resv += 1;
    }
}

/// An inode's share of a pool: `max_hpages == min_hpages`, no surplus, as guest_memfd sets it up.
#[derive(Debug)]
pub struct Subpool {
    size: u64,
    rsv: u64,
}

impl Subpool {
    /// Promises `nr_pages` of `pool` to the new subpool.
    pub fn new(pool: &mut HugePool, buddy: &mut Buddy, nr_pages: u64) -> Result<Subpool, PoolExhausted> {
        pool.reserve(buddy, nr_pages, Surplus::Refused)?;
        Ok(Subpool { size: nr_pages, rsv: nr_pages })
    }

    /// Pages still promised and not handed out.
    pub const fn rsv(&self) -> u64 {
        self.rsv
    }

    /// Pages handed out.
    pub const fn used(&self) -> u64 {
        self.size - self.rsv
    }

    /// Hands out one page; refused when the subpool is used up.
    pub fn get(&mut self, pool: &mut HugePool) -> Result<Sfn, PoolExhausted> {
        if self.rsv == 0 {
            return Err(PoolExhausted { size: pool.page_size(), asked: 1, available: 0 });
        }
        self.rsv -= 1;
        Ok(pool.dequeue_reserved())
    }

    /// Takes one page back into the reservation.
    ///
    /// # Panics
    /// When nothing was handed out.
    pub fn put(&mut self, pool: &mut HugePool, sfn: Sfn) {
        assert!(self.rsv < self.size, "the subpool handed out nothing that could come back");
        self.rsv += 1;
        pool.enqueue_reserved(sfn);
    }

    /// Ends the reservation.
    ///
    /// # Panics
    /// When pages are still handed out.
    pub fn close(self, pool: &mut HugePool, buddy: &mut Buddy) {
        assert_eq!(self.used(), 0, "an inode returns its folios before its reservation");
        pool.unreserve(buddy, self.rsv);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const M2: u64 = PageSize::Size2M.frames();

    fn pool_of(nr: u64, spare: u64) -> (HugePool, Buddy) {
        let mut buddy = Buddy::new(Sfn::new(0), (nr + spare) * M2);
        let mut pool = HugePool::new(HugeSize::Size2M);
        assert_eq!(pool.grow(&mut buddy, nr), nr);
        (pool, buddy)
    }

    #[test]
    fn a_terabyte_of_2m_pages_is_reserved_at_once() {
        let (mut pool, mut buddy) = pool_of(1 << 19, 3);
        let sub = Subpool::new(&mut pool, &mut buddy, 1 << 19).unwrap();
        assert_eq!(pool.stats(), PoolStats { nr: 1 << 19, free: 1 << 19, resv: 1 << 19, surplus: 0, overcommit: 0 });
        sub.close(&mut pool, &mut buddy);
        assert_eq!(pool.available(), 1 << 19);
    }

    #[test]
    fn growth_stops_where_memory_does_and_shrinking_spares_promises() {
        let (mut pool, mut buddy) = pool_of(4, 2);
        assert_eq!(pool.grow(&mut buddy, 9), 2);
        pool.reserve(&mut buddy, 5, Surplus::Refused).unwrap();
        assert_eq!(pool.shrink(&mut buddy, 9), 1);
        assert_eq!(buddy.free_frames(), M2);
    }

    #[test]
    fn surplus_pages_come_and_go_with_their_promise() {
        let (mut pool, mut buddy) = pool_of(2, 4);
        assert!(pool.reserve(&mut buddy, 3, Surplus::Allowed).is_err(), "no overcommit");
        pool.set_overcommit(8);
        pool.reserve(&mut buddy, 5, Surplus::Allowed).unwrap();
        assert_eq!((pool.stats().nr, pool.stats().surplus), (5, 3));
        let before = pool.stats();
        assert!(pool.reserve(&mut buddy, 5, Surplus::Allowed).is_err(), "the allocator has one page left");
        assert_eq!(pool.stats(), before, "a refusal leaves no trace");
        pool.unreserve(&mut buddy, 5);
        assert_eq!((pool.stats().nr, pool.stats().surplus), (2, 0));
        assert_eq!(buddy.free_frames(), 4 * M2);
    }

    proptest! {
        /// The laws of the module's introduction, over random lives of several inodes.
        #[test]
        fn conservation(steps in prop::collection::vec((0_u8..4, any::<prop::sample::Index>(), 0_u64..8), 1..100)) {
            let (mut pool, mut buddy) = pool_of(16, 0);
            let mut inodes: Vec<(Subpool, Vec<Sfn>)> = Vec::new();
            for (what, pick, nr) in steps {
                let at = if inodes.is_empty() { None } else { Some(pick.index(inodes.len())) };
                match (what, at) {
                    (0, _) => {
                        let fits = nr <= pool.available();
                        let made = Subpool::new(&mut pool, &mut buddy, nr);
                        prop_assert_eq!(made.is_ok(), fits);
                        inodes.extend(made.ok().map(|sub| (sub, Vec::new())));
                    }
                    (1, Some(at)) => {
                        let (sub, held) = &mut inodes[at];
                        let promised = sub.rsv() > 0;
                        let got = sub.get(&mut pool);
                        prop_assert_eq!(got.is_ok(), promised);
                        held.extend(got.ok());
                    }
                    (2, Some(at)) => {
                        let (sub, held) = &mut inodes[at];
                        if let Some(sfn) = held.pop() {
                            sub.put(&mut pool, sfn);
                        }
                    }
                    (3, Some(at)) => {
                        let (mut sub, held) = inodes.swap_remove(at);
                        held.into_iter().for_each(|sfn| sub.put(&mut pool, sfn));
                        sub.close(&mut pool, &mut buddy);
                    }
                    _ => {}
                }
                let stats = pool.stats();
                let out: u64 = inodes.iter().map(|(_, held)| held.len() as u64).sum();
                prop_assert_eq!(stats.free + out, stats.nr);
                prop_assert_eq!(stats.resv, inodes.iter().map(|(sub, _)| sub.rsv()).sum::<u64>());
                prop_assert!(stats.resv <= stats.free);
                prop_assert!(inodes.iter().all(|(sub, held)| sub.used() == held.len() as u64));
            }
        }
    }
}
