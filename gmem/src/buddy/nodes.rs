//! One buddy allocator per NUMA node (Linux `struct pglist_data`, with a single zone each).
//!
//! [`PageAllocator`] is the door. Always true: the nodes' ranges are disjoint, and a frame goes back to the node it lies
//! in, whoever gives it back.

use emu_core::{Order, Sfn};

use super::Buddy;
use crate::numa::{NodeId, NodeMask, NodeOrder};

/// See the module.
#[derive(Clone, Debug)]
pub struct PageAllocator {
    nodes: Vec<Buddy>,
}

impl PageAllocator {
    /// The nodes' ranges as `(first, frames)`, by node.
    ///
    /// # Panics
    /// Without a node, or when two ranges overlap.
    pub fn new(ranges: &[(Sfn, u64)]) -> PageAllocator {
        assert!(!ranges.is_empty() && ranges.len() <= crate::numa::MAX_NODES, "a machine has 1 to 64 nodes");
        for (n, &(first, nr)) in ranges.iter().enumerate() {
            let clash =
                ranges[..n].iter().any(|&(at, len)| first.raw() < at.raw() + len && at.raw() < first.raw() + nr);
            assert!(!clash, "the range of node {n} overlaps another");
        }
        PageAllocator { nodes: ranges.iter().map(|&(first, nr)| Buddy::new(first, nr)).collect() }
    }

    /// The nodes there are.
    pub fn online(&self) -> NodeMask {
        NodeMask::first(self.nodes.len())
    }

    /// How many nodes.
    pub fn nr_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// One node's allocator; `None` for a node the machine does not have.
    pub fn node(&self, node: NodeId) -> Option<&Buddy> {
        self.nodes.get(node.index())
    }

    /// The node a frame lies in.
    pub fn node_of(&self, sfn: Sfn) -> Option<NodeId> {
        self.nodes.iter().position(|buddy| buddy.contains(sfn)).map(NodeId::at)
    }

    /// Frames from `sfn` to the end of the node it lies in; none outside of them.
    pub fn nr_from(&self, sfn: Sfn) -> u64 {
        let node = self.nodes.iter().find(|buddy| buddy.contains(sfn));
        node.map_or(0, |buddy| buddy.first().raw() + buddy.nr_frames() - sfn.raw())
    }

    /// Free frames of all nodes.
    pub fn free_frames(&self) -> u64 {
        self.nodes.iter().map(Buddy::free_frames).sum()
    }

    /// Frames of all nodes.
    pub fn nr_frames(&self) -> u64 {
        self.nodes.iter().map(Buddy::nr_frames).sum()
    }

    /// A block from the first of the nodes that has one.
    pub fn alloc(&mut self, order: Order, nodes: NodeOrder) -> Option<Sfn> {
        let mut nodes = nodes;
        nodes.find_map(|node| self.nodes.get_mut(node.index())?.alloc(order))
    }

    /// `nr_frames` frames, from the first nodes that have some, all or nothing; as [`Buddy::alloc_frames`].
    pub fn alloc_frames(&mut self, nr_frames: u64, nodes: NodeOrder, mut taken: impl FnMut(Sfn, u64)) -> bool {
        let free = |node: NodeId| self.nodes.get(node.index()).map_or(0, Buddy::free_frames);
        if nodes.map(free).sum::<u64>() < nr_frames {
            return false;
        }
        let mut left = nr_frames;
        for node in nodes {
            let Some(buddy) = self.nodes.get_mut(node.index()) else { continue };
            let here = left.min(buddy.free_frames());
            buddy.alloc_frames(here, &mut taken);
            left -= here;
        }
        true
    }

    fn owner_mut(&mut self, sfn: Sfn) -> &mut Buddy {
        match self.nodes.iter_mut().find(|buddy| buddy.contains(sfn)) {
            Some(buddy) => buddy,
            None => panic!("{sfn:?} is in no node"),
        }
    }

    /// Gives a block back.
    ///
    /// # Panics
    /// As [`Buddy::free`].
    pub fn free(&mut self, block: Sfn, order: Order) {
        self.owner_mut(block).free(block, order);
    }

    /// Gives frames of one node back.
    ///
    /// # Panics
    /// As [`Buddy::free`].
    pub fn free_frames_from(&mut self, first: Sfn, nr_frames: u64) {
        if nr_frames > 0 {
            self.owner_mut(first).free_frames_from(first, nr_frames);
        }
    }

    /// Takes one particular frame out of the free ones (`take_page_off_buddy`); whether it was free.
    pub fn take_off(&mut self, sfn: Sfn) -> bool {
        self.nodes.iter_mut().find(|buddy| buddy.contains(sfn)).is_some_and(|buddy| buddy.take_block(sfn, Order::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numa::MemPolicy;

    #[test]
    fn nodes_are_tried_in_order_and_get_their_own_back() {
        let mut pages = PageAllocator::new(&[(Sfn::new(0), 4), (Sfn::new(100), 4)]);
        let one = NodeId::new(1).unwrap();
        let order = |policy: MemPolicy| policy.order(0, pages.online());
        let (preferred, strict, any) = (order(MemPolicy::Preferred(one)), NodeOrder::only(one), order(MemPolicy::Any));
        let block = pages.alloc(Order::new(2).unwrap(), preferred).unwrap();
        assert_eq!((block, pages.node_of(block)), (Sfn::new(100), Some(one)));
        assert_eq!(pages.alloc(Order::ZERO, strict), None, "strict does not go elsewhere");
        assert_eq!(pages.alloc(Order::ZERO, preferred), Some(Sfn::new(0)));
        pages.free(block, Order::new(2).unwrap());
        let mut taken = 0;
        assert!(!pages.alloc_frames(8, any, |_, _| panic!("all or nothing")));
        assert!(pages.alloc_frames(7, any, |_, nr| taken += nr));
        assert_eq!((taken, pages.free_frames()), (7, 0));
        assert_eq!(pages.node_of(Sfn::new(50)), None);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn ranges_are_disjoint() {
        PageAllocator::new(&[(Sfn::new(0), 8), (Sfn::new(7), 1)]);
    }
}
