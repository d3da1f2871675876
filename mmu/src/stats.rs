//! What an [`crate::Mmu`] did.

/// Counters since construction. They wrap silently after 2^64 events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MmuStats {
    /// Calls of `translate`: accesses that the fast TLB did not answer.
    pub fast_misses: u64,
    /// Of those, answered by the TLB.
    pub tlb_hits: u64,
    /// Walks of the guest's tables where guest physical is system physical.
    pub walks_1d: u64,
    /// Walks of the guest's tables under nested tables.
    pub walks_2d: u64,
    /// Walks of nested tables, on behalf of a guest walk or of a physical address.
    pub nested_walks: u64,
    /// Table entries read, guest and nested.
    pub table_loads: u64,
    /// Table entries in which A or D was set.
    pub ad_updates: u64,
    /// Walks begun anew because another writer changed an entry before A or D could be set.
    pub restarts: u64,
    /// Invalidation operations that dropped more than one page.
    pub flushes: u64,
}
