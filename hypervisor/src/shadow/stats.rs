//! Counters of the shadow MMU.

/// See the module. Sizes are indexed by [`emu_core::PageSize::index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ShadowStats {
    /// Shadow pages there are.
    pub pages: u64,
    /// Of these, valid ones of guest tables (`indirect_shadow_pages`).
    pub indirect: u64,
    /// Shadow pages made so far.
    pub created: u64,
    /// Shadow pages zapped so far.
    pub zapped_pages: u64,
    /// Of these, to stay below the limit.
    pub recycled: u64,
    /// Leaves installed so far.
    pub installed: [u64; 3],
    /// Of these, before an access asked for them.
    pub prefetched: u64,
    /// Leaves removed so far.
    pub zapped: [u64; 3],
    /// Leaves that lost the right to write because they map a guest table.
    pub write_protected: u64,
    /// Times a page was let go its own way.
    pub unsync: u64,
    /// Times one was made to follow again.
    pub synced: u64,
    /// Writes to guest tables that were emulated.
    pub emulated: u64,
    /// Pages zapped because they were written too often or oddly.
    pub flooded: u64,
    /// Roots that were found in a vCPU's cache.
    pub roots_reused: u64,
    /// Roots that had to be looked up.
    pub roots_loaded: u64,
    /// Page faults that went to the guest.
    pub reflected: u64,
}
