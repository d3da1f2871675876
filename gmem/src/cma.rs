//! A contiguous-memory area: a range kept for large blocks, whose free part is lent out meanwhile (Linux `mm/cma.c`).
//!
//! [`CmaArea`] is the door. A [claim](CmaArea::claim) sets whole 2M or 1G blocks aside for one inode;
//! [`CmaArea::take`] and [`CmaArea::give`] move blocks out of and into a claim. What no claim has may be
//! [lent](CmaArea::lend) for what can be dropped, as clean page cache can; a claim calls loans back, and the borrower is
//! told through [`Claimed::recalled`]. A [pinned](Hold::Pinned) loan cannot be called back, as `alloc_contig_range` cannot move a pinned page.
//!
//! Always true: claimed blocks, loans and free blocks are disjoint and together are the area; a claim is all or
//! nothing; a claim's free blocks plus those handed out are its size; it lives until its last block is back.
//!
//! Left out: moving the borrower's contents elsewhere (`migrate_pages`), vmemmap optimisation: a block must be returnable
//! to borrowers, who need its descriptions.

use std::collections::BTreeMap;

use emu_core::{Order, PageSize, Sfn};
use thiserror::Error;

use crate::buddy::Buddy;
use crate::extent::ExtentSet;
use crate::numa::NodeId;
use crate::pool::HugeSize;

/// A claim on one area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(u32);

/// Blocks cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CmaError {
    /// `ENOMEM`: too few blocks are neither claimed nor pinned.
    #[error("{asked} blocks of {size} do not fit in the contiguous area, {found} do")]
    NoRoom {
        /// The block size.
        size: PageSize,
        /// Blocks asked for.
        asked: u64,
        /// Blocks found.
        found: u64,
    },
    /// The claim has handed out all its blocks.
    #[error("the claim of {blocks} blocks of {size} is used up")]
    UsedUp {
        /// The block size.
        size: PageSize,
        /// Blocks of the claim.
        blocks: u64,
    },
}

/// Whether a loan can be called back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// What it holds can be dropped: it can.
    Droppable,
    /// Somebody holds its frames where they are: it cannot.
    Pinned,
}

/// A block lent out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loan {
    /// First frame.
    pub first: Sfn,
    /// Its size.
    pub order: Order,
}

/// A new claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The claim.
    pub id: ClaimId,
    /// Loans called back for it, ascending: the borrower has them no longer.
    pub recalled: Vec<Loan>,
}

#[derive(Clone, Debug)]
struct Claim {
    size: HugeSize,
    blocks: u64,
    /// Blocks not handed out, by frame number divided by the frames of a block.
    free: ExtentSet,
    out: u64,
    open: bool,
}

/// Counters of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CmaStats {
    /// Frames of the area, retired ones not counted.
    pub nr_frames: u64,
    /// Neither claimed nor lent.
    pub free: u64,
    /// Lent out.
    pub lent: u64,
    /// Claimed, handed out or not.
    pub claimed: u64,
    /// Of these, handed out.
    pub out: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct CmaArea {
    node: NodeId,
    buddy: Buddy,
    loans: BTreeMap<u64, (Order, Hold)>,
    claims: Vec<Option<Claim>>,
    lent: u64,
    claimed: u64,
    retired: u64,
}

impl CmaArea {
    /// An area of `node` over `nr_frames` free frames from `first`.
    pub fn new(node: NodeId, first: Sfn, nr_frames: u64) -> CmaArea {
        let buddy = Buddy::new(first, nr_frames);
        CmaArea { node, buddy, loans: BTreeMap::new(), claims: Vec::new(), lent: 0, claimed: 0, retired: 0 }
    }

    /// The node whose memory it is.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The counters.
    pub fn stats(&self) -> CmaStats {
        CmaStats {
            nr_frames: self.buddy.nr_frames() - self.retired,
            free: self.buddy.free_frames(),
            lent: self.lent,
            claimed: self.claimed,
            out: self.claims.iter().flatten().map(|claim| claim.out * claim.size.page_size().frames()).sum(),
        }
    }

    /// Whether `sfn` lies in the area.
    pub fn contains(&self, sfn: Sfn) -> bool {
        self.buddy.contains(sfn)
    }

    /// Lends a block of `order` that nobody has claimed.
    pub fn lend(&mut self, order: Order) -> Option<Loan> {
        let first = self.buddy.alloc(order)?;
        self.loans.insert(first.raw(), (order, Hold::Droppable));
        self.lent += order.frames();
        Some(Loan { first, order })
    }

    /// Says whether a loan can be called back; whether there is such a loan.
    pub fn hold(&mut self, loan: Loan, hold: Hold) -> bool {
        match self.loans.get_mut(&loan.first.raw()) {
            Some((order, now)) if *order == loan.order => {
                *now = hold;
                true
            }
            _ => false,
        }
    }

    /// Takes a loan back from its borrower; whether it was still lent.
    pub fn take_back(&mut self, loan: Loan) -> bool {
        if self.loans.get(&loan.first.raw()).is_none_or(|&(order, _)| order != loan.order) {
            return false;
        }
        self.loans.remove(&loan.first.raw());
        self.lent -= loan.order.frames();
        self.buddy.free(loan.first, loan.order);
        true
    }

    /// Sets `nr_blocks` blocks aside (`cma_alloc`, without handing them out). Free blocks come first, then blocks with
    /// droppable loans.
    pub fn claim(&mut self, size: HugeSize, nr_blocks: u64) -> Result<Claimed, CmaError> {
        let frames = size.page_size().frames();
        let mut free = ExtentSet::default();
        let mut left = nr_blocks;
        let mut above = 30_u8;
        while left > 0 {
            above = above.min(left.ilog2() as u8);
            match Order::new(size.page_size().order().raw() + above).and_then(|order| self.buddy.alloc(order)) {
                Some(first) => {
                    free.insert(first.raw() / frames, 1 << above);
                    left -= 1 << above;
                }
                None if above == 0 => break,
                None => above -= 1,
            }
        }
        let mut recalled = Vec::new();
        while left > 0 {
            if let Some(first) = self.buddy.alloc(size.page_size().order()) {
                free.insert(first.raw() / frames, 1);
                left -= 1;
                continue;
            }
            let Some((start, end)) = self.find_recallable(frames) else {
                // All or nothing: blocks go back, and loans called back for nothing are lent again where they were.
                for (start, count) in free.runs() {
                    self.buddy.free_frames_from(Sfn::new(start * frames), count * frames);
                }
                for Loan { first, order } in recalled {
                    let taken = self.buddy.take_block(first, order);
                    assert!(taken, "a loan called back was free");
                    self.loans.insert(first.raw(), (order, Hold::Droppable));
                    self.lent += order.frames();
                }
                return Err(CmaError::NoRoom { size: size.page_size(), asked: nr_blocks, found: nr_blocks - left });
            };
            let inside: Vec<(u64, Order)> =
                self.loans.range(start..end).map(|(&at, &(order, _))| (at, order)).collect();
            for (at, order) in inside {
                let loan = Loan { first: Sfn::new(at), order };
                self.take_back(loan);
                recalled.push(loan);
            }
        }
        recalled.sort_by_key(|loan| loan.first);
        self.claimed += nr_blocks * frames;
        let claim = Claim { size, blocks: nr_blocks, free, out: 0, open: true };
        let at = match self.claims.iter().position(Option::is_none) {
            Some(at) => at,
            None => {
                self.claims.push(None);
                self.claims.len() - 1
            }
        };
        self.claims[at] = Some(claim);
        Ok(Claimed { id: ClaimId(at as u32), recalled })
    }

    /// The aligned block, or larger loan, that is free but for droppable loans, with the fewest frames lent; of equals the
    /// lowest. Looked for only where loans are.
    fn find_recallable(&self, frames: u64) -> Option<(u64, u64)> {
        let first = self.buddy.first().raw();
        let area_end = first + self.buddy.nr_frames();
        let mut best: Option<(u64, u64, u64)> = None;
        let mut at = first;
        while let Some((&loan, &(order, _))) = self.loans.range(at..).next() {
            let start = loan & !(frames - 1);
            let end = (start + frames).max(loan + order.frames());
            at = end;
            if start < first || end > area_end {
                continue;
            }
            let inside = || self.loans.range(start..end).map(|(_, loan)| loan);
            let lent: u64 = inside().map(|(order, _)| order.frames()).sum();
            if inside().all(|&(_, hold)| hold == Hold::Droppable)
                && lent + self.buddy.free_in(start, end) == end - start
                && best.is_none_or(|(least, ..)| lent < least)
            {
                best = Some((lent, start, end));
            }
        }
        best.map(|(_, start, end)| (start, end))
    }

    fn claim_mut(&mut self, id: ClaimId) -> &mut Claim {
        match self.claims.get_mut(id.0 as usize) {
            Some(Some(claim)) => claim,
            _ => panic!("{id:?} is not a claim of the area"),
        }
    }

    /// Hands out a block of the claim.
    pub fn take(&mut self, id: ClaimId) -> Result<Sfn, CmaError> {
        let claim = self.claim_mut(id);
        let size = claim.size.page_size();
        let block = claim.free.pop_first().ok_or(CmaError::UsedUp { size, blocks: claim.blocks })?;
        claim.out += 1;
        Ok(Sfn::new(block * size.frames()))
    }

    /// Takes a block of the claim back.
    ///
    /// # Panics
    /// When the claim handed out nothing that could come back.
    pub fn give(&mut self, id: ClaimId, block: Sfn) {
        let claim = self.claim_mut(id);
        assert!(claim.out > 0, "{id:?} handed out nothing that could come back");
        claim.out -= 1;
        claim.free.insert(block.raw() / claim.size.page_size().frames(), 1);
        self.release_if_done(id);
    }

    /// A block of the claim will not come back whole: its sound frames, as `(first, frames)`, are the area's again, the
    /// claim shrinks by one.
    pub(crate) fn lose(&mut self, id: ClaimId, sound: &[(Sfn, u64)]) {
        let claim = self.claim_mut(id);
        assert!(claim.out > 0, "{id:?} handed out nothing that could be lost");
        claim.out -= 1;
        claim.blocks -= 1;
        let frames = claim.size.page_size().frames();
        self.claimed -= frames;
        self.retired += frames;
        for &(first, nr) in sound {
            self.buddy.free_frames_from(first, nr);
            self.retired -= nr;
        }
        self.release_if_done(id);
    }

    /// Takes a frame that is free out of the area for good, after a memory failure; whether it was free.
    pub(crate) fn retire_free(&mut self, sfn: Sfn) -> bool {
        let done = self.buddy.take_block(sfn, Order::ZERO);
        self.retired += u64::from(done);
        done
    }

    /// Ends the claim. Blocks still out stay claimed until they are back.
    pub fn unclaim(&mut self, id: ClaimId) {
        self.claim_mut(id).open = false;
        self.release_if_done(id);
    }

    fn release_if_done(&mut self, id: ClaimId) {
        let Some(slot) = self.claims.get_mut(id.0 as usize) else { return };
        let Some(claim) = slot.take_if(|claim| !claim.open && claim.out == 0) else { return };
        let frames = claim.size.page_size().frames();
        for (start, count) in claim.free.runs() {
            self.buddy.free_frames_from(Sfn::new(start * frames), count * frames);
        }
        self.claimed -= claim.blocks * frames;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const M2: u64 = PageSize::Size2M.frames();
    const G1: u64 = PageSize::Size1G.frames();

    fn order(raw: u8) -> Order {
        Order::new(raw).unwrap()
    }

    #[test]
    fn a_claim_calls_droppable_loans_back() {
        let mut area = CmaArea::new(NodeId::ZERO, Sfn::new(0), 2 * M2);
        let a = area.lend(order(3)).unwrap();
        let b = area.lend(order(9)).unwrap();
        assert!(area.hold(b, Hold::Pinned));
        assert_eq!(
            area.claim(HugeSize::Size2M, 2),
            Err(CmaError::NoRoom { size: PageSize::Size2M, asked: 2, found: 1 })
        );
        assert_eq!(area.stats(), CmaStats { nr_frames: 2 * M2, free: M2 - 8, lent: M2 + 8, ..CmaStats::default() });
        let claimed = area.claim(HugeSize::Size2M, 1).unwrap();
        assert_eq!(claimed.recalled, [a]);
        assert!(!area.take_back(a), "the borrower has it no longer");
        assert!(area.hold(b, Hold::Droppable) && area.take_back(b));
        let block = area.take(claimed.id).unwrap();
        assert_eq!(area.take(claimed.id), Err(CmaError::UsedUp { size: PageSize::Size2M, blocks: 1 }));
        area.unclaim(claimed.id);
        assert_eq!(area.stats().claimed, M2, "the block is out");
        area.give(claimed.id, block);
        assert_eq!(area.stats(), CmaStats { nr_frames: 2 * M2, free: 2 * M2, ..CmaStats::default() });
    }

    #[test]
    fn a_terabyte_is_claimed_at_once() {
        let mut area = CmaArea::new(NodeId::ZERO, Sfn::new(0), 1024 * G1);
        let claimed = area.claim(HugeSize::Size2M, 1 << 19).unwrap();
        assert_eq!(area.stats().free, 0);
        area.unclaim(claimed.id);
        assert_eq!(
            area.claim(HugeSize::Size1G, 1025),
            Err(CmaError::NoRoom { size: PageSize::Size1G, asked: 1025, found: 1024 })
        );
        assert_eq!(area.stats().free, 1024 * G1);
    }

    proptest! {
        #[test]
        fn claims_loans_and_free_blocks_are_the_area(
            steps in prop::collection::vec((0_u8..7, any::<prop::sample::Index>(), 0_u8..11), 1..80),
        ) {
            let nr_frames = 8 * M2 + 3;
            let mut area = CmaArea::new(NodeId::ZERO, Sfn::new(M2 - 1), nr_frames);
            let fresh = area.stats();
            let mut loans: Vec<Loan> = Vec::new();
            let mut claims: Vec<(ClaimId, u64, Vec<Sfn>)> = Vec::new();
            for (what, pick, n) in steps {
                match what {
                    0 => loans.extend(area.lend(order(n))),
                    1 if !loans.is_empty() => {
                        let loan = loans.swap_remove(pick.index(loans.len()));
                        prop_assert!(area.take_back(loan));
                    }
                    2 if !loans.is_empty() => {
                        let hold = if n % 2 == 0 { Hold::Pinned } else { Hold::Droppable };
                        let loan = loans[pick.index(loans.len())];
                        prop_assert!(area.hold(loan, hold));
                    }
                    3 => {
                        let before = (area.stats(), area.loans.clone());
                        match area.claim(HugeSize::Size2M, u64::from(n % 4)) {
                            Ok(claimed) => {
                                loans.retain(|loan| !claimed.recalled.contains(loan));
                                claims.push((claimed.id, u64::from(n % 4), Vec::new()));
                            }
                            Err(_) => prop_assert_eq!((area.stats(), area.loans.clone()), before, "no trace"),
                        }
                    }
                    4 if !claims.is_empty() => {
                        let at = pick.index(claims.len());
                        let (id, blocks, held) = &mut claims[at];
                        let got = area.take(*id);
                        prop_assert_eq!(got.is_ok(), (held.len() as u64) < *blocks);
                        held.extend(got.ok());
                    }
                    5 if !claims.is_empty() => {
                        let at = pick.index(claims.len());
                        let (id, _, held) = &mut claims[at];
                        if let Some(block) = held.pop() {
                            area.give(*id, block);
                        }
                    }
                    6 if !claims.is_empty() => {
                        let (id, _, held) = claims.swap_remove(pick.index(claims.len()));
                        area.unclaim(id);
                        held.into_iter().for_each(|block| area.give(id, block));
                    }
                    _ => {}
                }
                let stats = area.stats();
                prop_assert_eq!(stats.free + stats.lent + stats.claimed, nr_frames);
                prop_assert_eq!(stats.lent, loans.iter().map(|loan| loan.order.frames()).sum::<u64>());
                prop_assert_eq!(stats.out, claims.iter().map(|claim| claim.2.len() as u64 * M2).sum::<u64>());
                prop_assert_eq!(stats.claimed, claims.iter().map(|claim| claim.1 * M2).sum::<u64>());
            }
            for (id, _, held) in claims {
                area.unclaim(id);
                held.into_iter().for_each(|block| area.give(id, block));
            }
            for loan in loans {
                area.take_back(loan);
            }
            prop_assert_eq!(area.stats(), fresh);
        }
    }
}
