//! The size of a pool: `nr_hugepages`, surplus, demotion (`set_max_huge_pages`, `demote_pool_huge_page`).
//!
//! Pages are added to and taken from the nodes in turn, as the kernel does page by page; here each turn moves a run, so
//! that the cost is the fragmentation met and not the number of pages.

use emu_core::{Order, Sfn};

use super::{HugePool, HugeSize};
use crate::numa::{NodeId, NodeMask, NodeOrder};
use crate::vmemmap::SystemFrames;

/// What a demotion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demotion {
    /// 1G pages taken apart.
    pub demoted: u64,
    /// 2M pages that the smaller pool got.
    pub gained: u64,
}

/// How many pages each node of a round is asked for: `nr` dealt in turn, from `next` on.
fn deal(nr: u64, nodes: NodeMask, next: NodeId) -> Vec<(NodeId, u64)> {
    let count = nodes.len() as u64;
    let mut shares = Vec::with_capacity(nodes.len());
    let mut node = nodes.next_from(next);
    for turn in 0..count {
        let Some(at) = node else { break };
        let share = nr / count + u64::from(turn < nr % count);
        if share > 0 {
            shares.push((at, share));
        }
        node = nodes.next_after(at);
    }
    shares
}

/// Where the turn is after `nr` more pages.
fn advance(nr: u64, nodes: NodeMask, next: NodeId) -> NodeId {
    let from = nodes.next_from(next).unwrap_or(next);
    let before = nodes.iter().take_while(|&node| node < from).count() as u64;
    nodes.nth(before + nr % nodes.len().max(1) as u64).unwrap_or(next)
}

impl HugePool {
    /// Sets the number of persistent pages (a write to `nr_hugepages`); how many there are now.
    ///
    /// Growing first makes surplus pages persistent, then takes new ones from the nodes in turn, as far as memory
    /// goes. Shrinking spares pages that are promised or handed out: those turn into surplus and leave as they come
    /// back.
    pub fn set_max(&mut self, frames: &mut SystemFrames, nr_pages: u64) -> u64 {
        self.set_max_of(frames, nr_pages, self.online())
    }

    /// Sets the number of persistent pages of one node (a write to the node's `nr_hugepages`); how many it has now.
    pub fn set_max_on(&mut self, frames: &mut SystemFrames, node: NodeId, nr_pages: u64) -> u64 {
        let persistent = |pool: &HugePool| pool.nodes.get(node.index()).map_or(0, |at| at.nr - at.surplus);
        let others = self.persistent() - persistent(self);
        self.set_max_of(frames, others.saturating_add(nr_pages), NodeMask::only(node).and(self.online()));
        persistent(self)
    }

    fn set_max_of(&mut self, frames: &mut SystemFrames, nr_pages: u64, nodes: NodeMask) -> u64 {
        let wanted = nr_pages.saturating_sub(self.persistent());
        let adopted = self.adjust_surplus(wanted.min(self.surplus()), Adjust::Persist, nodes);
        self.grow_of(frames, wanted - adopted, nodes);
        let needed = self.resv + self.stats().nr - self.stats().free;
        let floor = nr_pages.max(needed);
        let excess = self.persistent().saturating_sub(floor);
        self.shrink(frames, excess, nodes);
        let excess = self.persistent().saturating_sub(nr_pages);
        self.adjust_surplus(excess, Adjust::Surplus, nodes);
        self.max = self.persistent();
        self.max
    }

    /// Adds up to `nr_pages` persistent pages from the nodes in turn; the number added.
    pub fn grow(&mut self, frames: &mut SystemFrames, nr_pages: u64) -> u64 {
        self.grow_of(frames, nr_pages, self.online())
    }

    fn grow_of(&mut self, frames: &mut SystemFrames, nr_pages: u64, allowed: NodeMask) -> u64 {
        let mut nodes = allowed.and(frames.online());
        let mut left = nr_pages;
        while left > 0 && !nodes.is_empty() {
            for (node, share) in deal(left, nodes, self.next_nid_to_alloc) {
                let added = self.grow_on(frames, node, share);
                left -= added;
                if added < share {
                    nodes = nodes.without(node);
                }
            }
        }
        let added = nr_pages - left;
        self.next_nid_to_alloc = advance(added, allowed, self.next_nid_to_alloc);
        self.max = self.persistent();
        added
    }

    /// Blocks far larger than a page are taken whole, so that a pool of a terabyte is a few runs.
    fn grow_on(&mut self, frames: &mut SystemFrames, node: NodeId, nr_pages: u64) -> u64 {
        let unit_order = self.page_size().order().raw();
        let mut left = nr_pages;
        let mut above = 30_u8;
        while left > 0 {
            above = above.min(left.ilog2() as u8);
            let order = Order::new(unit_order + above);
            match order.and_then(|order| frames.pages.alloc(order, NodeOrder::only(node))) {
                Some(sfn) => {
                    let unit = self.unit(sfn);
                    self.nodes[node.index()].free.insert(unit, 1 << above);
                    self.nodes[node.index()].nr += 1 << above;
                    frames.optimise(self.size, 1 << above);
                    left -= 1 << above;
                }
                None if above == 0 => break,
                None => above -= 1,
            }
        }
        nr_pages - left
    }

    pub(super) fn grow_surplus(&mut self, frames: &mut SystemFrames, nr_pages: u64) -> u64 {
        let (nodes, max) = (self.nodes.iter().map(|node| node.nr).collect::<Vec<_>>(), self.max);
        let added = self.grow(frames, nr_pages);
        for (node, before) in self.nodes.iter_mut().zip(nodes) {
            node.surplus += node.nr - before;
        }
        self.max = max;
        added
    }

    /// Gives up to `nr_pages` persistent pages that are free and not promised back to the page allocator. Pages whose
    /// vmemmap cannot be restored stay; like promised ones they are surplus from then on.
    fn shrink(&mut self, frames: &mut SystemFrames, nr_pages: u64, allowed: NodeMask) {
        let wanted = nr_pages.min(self.available()).min(self.persistent());
        let mut left = wanted;
        let mut nodes = allowed;
        while left > 0 && !nodes.is_empty() {
            for (node, share) in deal(left, nodes, self.next_nid_to_free) {
                let at = &self.nodes[node.index()];
                let here = share.min(at.free.len()).min(at.nr - at.surplus);
                let released = self.release_run(frames, node, here);
                left -= released;
                if released < share {
                    nodes = nodes.without(node);
                }
            }
        }
        self.next_nid_to_free = advance(wanted - left, allowed, self.next_nid_to_free);
    }

    /// Gives free pages of a node to the page allocator, the highest first; how many, fewer when memory for their
    /// vmemmap runs out.
    fn release_run(&mut self, frames: &mut SystemFrames, node: NodeId, nr_pages: u64) -> u64 {
        let mut left = nr_pages;
        let mut most = nr_pages;
        while left > 0 {
            let Some((unit, run)) = self.nodes[node.index()].free.pop_last_run(left.min(most)) else { break };
            if frames.restore(self.size, run, self.sfn(unit)).is_err() {
                self.nodes[node.index()].free.insert(unit, run);
                if run == 1 {
                    break;
                }
                most = run / 2;
                continue;
            }
            frames.pages.free_frames_from(self.sfn(unit), run * self.page_size().frames());
            self.nodes[node.index()].nr -= run;
            left -= run;
            // Pages that went free are memory for the vmemmap of the next ones.
            most = most.saturating_mul(2);
        }
        nr_pages - left
    }

    /// Gives up to `nr_pages` free surplus pages back (`return_unused_surplus_pages`).
    pub(super) fn release_surplus(&mut self, frames: &mut SystemFrames, nr_pages: u64) {
        let mut left = nr_pages.min(self.surplus()).min(self.available());
        let mut nodes = self.online();
        while left > 0 && !nodes.is_empty() {
            for (node, share) in deal(left, nodes, self.next_nid_to_free) {
                let at = &self.nodes[node.index()];
                let here = share.min(at.free.len()).min(at.surplus);
                let released = self.release_run(frames, node, here);
                self.nodes[node.index()].surplus -= released;
                left -= released;
                if released < share {
                    nodes = nodes.without(node);
                }
            }
        }
    }

    /// `adjust_pool_surplus`, in turn over the nodes; how many pages changed sides.
    fn adjust_surplus(&mut self, nr_pages: u64, adjust: Adjust, allowed: NodeMask) -> u64 {
        let mut left = nr_pages;
        let mut nodes = allowed;
        let next = match adjust {
            Adjust::Persist => self.next_nid_to_alloc,
            Adjust::Surplus => self.next_nid_to_free,
        };
        while left > 0 && !nodes.is_empty() {
            for (node, share) in deal(left, nodes, next) {
                let at = &mut self.nodes[node.index()];
                let here = match adjust {
                    Adjust::Persist => share.min(at.surplus),
                    Adjust::Surplus => share.min(at.nr - at.surplus),
                };
                match adjust {
                    Adjust::Persist => at.surplus -= here,
                    Adjust::Surplus => at.surplus += here,
                }
                left -= here;
                if here < share {
                    nodes = nodes.without(node);
                }
            }
        }
        nr_pages - left
    }

    /// Takes up to `nr_pages` free 1G pages that are not promised apart into 2M pages of `into` (a write to `demote`).
    /// Stops where the vmemmap of a page cannot be restored.
    ///
    /// # Panics
    /// When this is not the 1G pool, or `into` not the 2M one.
    pub fn demote(&mut self, frames: &mut SystemFrames, into: &mut HugePool, nr_pages: u64) -> Demotion {
        assert_eq!((self.size, into.size), (HugeSize::Size1G, HugeSize::Size2M), "1G pages become 2M pages");
        let parts = self.page_size().frames() / into.page_size().frames();
        let mut demoted = 0;
        let mut nodes = self.online();
        let mut next = nodes.next_from(self.next_nid_to_free);
        while let Some(node) = next
            && demoted < nr_pages
            && self.available() > 0
        {
            let at = &mut self.nodes[node.index()];
            let Some((unit, _)) = (if at.nr > at.surplus { at.free.pop_last_run(1) } else { None }) else {
                nodes = nodes.without(node);
                next = nodes.next_after(node);
                continue;
            };
            if frames.restore(self.size, 1, self.sfn(unit)).is_err() {
                self.nodes[node.index()].free.insert(unit, 1);
                break;
            }
            self.nodes[node.index()].nr -= 1;
            frames.optimise(into.size, parts);
            let first = into.unit(Sfn::new(unit * self.page_size().frames()));
            into.nodes[node.index()].free.insert(first, parts);
            into.nodes[node.index()].nr += parts;
            demoted += 1;
            next = nodes.next_after(node);
        }
        self.next_nid_to_free = advance(demoted, self.online(), self.next_nid_to_free);
        self.max = self.persistent();
        into.max = into.persistent();
        Demotion { demoted, gained: demoted * parts }
    }
}

#[derive(Clone, Copy)]
enum Adjust {
    /// Surplus pages become persistent.
    Persist,
    /// Persistent pages become surplus.
    Surplus,
}
