//! NUMA nodes and the policies that choose among them (Linux `mm/mempolicy.c`, `include/linux/nodemask.h`).
//!
//! [`MemPolicy`] is the door: it turns a policy and an index into a [`NodeOrder`], the nodes to try in turn. Always
//! true: an order names each node at most once and only nodes of the machine; [`MemPolicy::Bind`] never names one
//! outside its mask, every other policy names all of them in the end.
//!
//! Left out: distances between nodes (the nearest is the next higher number), `MPOL_PREFERRED_MANY`, weighted
//! interleaving, cpusets.

/// Nodes a mask can name.
pub const MAX_NODES: usize = 64;

/// Number of a node (`nid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(u8);

impl NodeId {
    /// The node a machine always has.
    pub const ZERO: NodeId = NodeId(0);

    /// The node `raw`, or `None` from [`MAX_NODES`] on.
    pub const fn new(raw: u8) -> Option<NodeId> {
        if (raw as usize) < MAX_NODES { Some(NodeId(raw)) } else { None }
    }

    /// The number, as a position in arrays by node.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The node at a position in an array by node.
    ///
    /// # Panics
    /// From [`MAX_NODES`] on, which no such array reaches.
    pub(crate) const fn at(index: usize) -> NodeId {
        assert!(index < MAX_NODES);
        NodeId(index as u8)
    }
}

impl core::fmt::Display for NodeId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// A set of nodes (`nodemask_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct NodeMask(u64);

impl NodeMask {
    /// No node.
    pub const EMPTY: NodeMask = NodeMask(0);

    /// One node.
    pub const fn only(node: NodeId) -> NodeMask {
        NodeMask(1 << node.0)
    }

    /// The nodes below `nr_nodes`.
    pub const fn first(nr_nodes: usize) -> NodeMask {
        if nr_nodes >= MAX_NODES { NodeMask(u64::MAX) } else { NodeMask((1 << nr_nodes) - 1) }
    }

    /// With `node`.
    #[must_use]
    pub const fn with(self, node: NodeId) -> NodeMask {
        NodeMask(self.0 | 1 << node.0)
    }

    /// Without `node`.
    #[must_use]
    pub const fn without(self, node: NodeId) -> NodeMask {
        NodeMask(self.0 & !(1 << node.0))
    }

    /// What both have.
    #[must_use]
    pub const fn and(self, other: NodeMask) -> NodeMask {
        NodeMask(self.0 & other.0)
    }

    /// Whether `node` is in it.
    pub const fn contains(self, node: NodeId) -> bool {
        self.0 >> node.0 & 1 != 0
    }

    /// How many nodes.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first member at or after `node`, going round (`next_node_in`).
    pub const fn next_from(self, node: NodeId) -> Option<NodeId> {
        if self.0 == 0 {
            return None;
        }
        let above = self.0 >> node.0 << node.0;
        let from = if above != 0 { above } else { self.0 };
        Some(NodeId(from.trailing_zeros() as u8))
    }

    /// The member after `node`, going round; `node` itself when there is no other.
    pub const fn next_after(self, node: NodeId) -> Option<NodeId> {
        self.next_from(NodeId((node.0 + 1) % MAX_NODES as u8))
    }

    /// The `n`-th member, ascending, counted modulo their number.
    pub const fn nth(self, n: u64) -> Option<NodeId> {
        if self.0 == 0 {
            return None;
        }
        let mut left = n % self.len() as u64;
        let mut rest = self.0;
        while left > 0 {
            rest &= rest - 1;
            left -= 1;
        }
        Some(NodeId(rest.trailing_zeros() as u8))
    }

    /// The members, ascending.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        NodeOrder { first: None, rest: self }
    }
}

/// Where a range of an inode wants its folios (`mbind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MemPolicy {
    /// The task's own policy; the tasks of the model run on node 0 and fall back to the others.
    #[default]
    Any,
    /// `MPOL_BIND`: these nodes or an error.
    Bind(NodeMask),
    /// `MPOL_PREFERRED`: this node first, then the others.
    Preferred(NodeId),
    /// `MPOL_INTERLEAVE`: the nodes of the mask in turn, by the index of the huge page; then the others.
    Interleave(NodeMask),
}

impl MemPolicy {
    /// The nodes to try for page `index`, counted in pages of the size to allocate.
    pub fn order(self, index: u64, online: NodeMask) -> NodeOrder {
        let (first, all) = match self {
            MemPolicy::Any => (online.next_from(NodeId::ZERO), online),
            MemPolicy::Bind(mask) => (None, mask.and(online)),
            MemPolicy::Preferred(node) => (Some(node), online),
            MemPolicy::Interleave(mask) => (mask.and(online).nth(index), online),
        };
        let first = first.filter(|&node| all.contains(node));
        NodeOrder { first, rest: first.map_or(all, |node| all.without(node)) }
    }
}

/// Nodes in the order in which they are to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeOrder {
    first: Option<NodeId>,
    rest: NodeMask,
}

impl NodeOrder {
    /// `node` and no other (`__GFP_THISNODE`).
    pub const fn only(node: NodeId) -> NodeOrder {
        NodeOrder { first: Some(node), rest: NodeMask::EMPTY }
    }
}

impl Iterator for NodeOrder {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        if let Some(node) = self.first.take() {
            return Some(node);
        }
        let node = self.rest.next_from(NodeId::ZERO)?;
        self.rest = self.rest.without(node);
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(raw: u8) -> NodeId {
        NodeId::new(raw).unwrap()
    }

    #[test]
    fn policies_name_their_nodes_in_order() {
        let online = NodeMask::first(3);
        let two = NodeMask::EMPTY.with(node(0)).with(node(2));
        let order = |policy: MemPolicy, index| policy.order(index, online).map(|n| n.0).collect::<Vec<_>>();
        assert_eq!(order(MemPolicy::Any, 7), [0, 1, 2]);
        assert_eq!(order(MemPolicy::Preferred(node(1)), 0), [1, 0, 2]);
        assert_eq!(order(MemPolicy::Bind(two), 0), [0, 2]);
        assert_eq!(order(MemPolicy::Bind(NodeMask::only(node(9))), 0), [0_u8; 0]);
        assert_eq!(order(MemPolicy::Interleave(two), 0), [0, 1, 2]);
        assert_eq!(order(MemPolicy::Interleave(two), 5), [2, 0, 1]);
        assert_eq!(order(MemPolicy::Interleave(NodeMask::EMPTY), 5), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn an_order_is_the_policys_nodes_without_repetition(
            what in 0_u8..4, mask in any::<u64>(), raw in 0_u8..64, index in any::<u64>(), nr in 1_usize..65,
        ) {
            let (mask, online) = (NodeMask(mask), NodeMask::first(nr));
            let policy = match what {
                0 => MemPolicy::Any,
                1 => MemPolicy::Bind(mask),
                2 => MemPolicy::Preferred(node(raw)),
                _ => MemPolicy::Interleave(mask),
            };
            let named: Vec<NodeId> = policy.order(index, online).collect();
            let set = named.iter().fold(NodeMask::EMPTY, |set, &n| set.with(n));
            prop_assert_eq!(set.len(), named.len());
            prop_assert_eq!(set, if what == 1 { mask.and(online) } else { online });
            let members: Vec<NodeId> = mask.iter().collect();
            prop_assert_eq!(mask.nth(index), members.get((index % members.len().max(1) as u64) as usize).copied());
            let after = members.iter().copied().find(|&n| n > node(raw)).or(members.first().copied());
            prop_assert_eq!(mask.next_after(node(raw)), after);
        }
    }
}
