//! What shadow pages map at one moment, for checks.

use super::pages::ShadowMmu;
use super::spte::{ShadowEntry, leaf_size};
use crate::tdp::{LeafView, Rights, Spte};
use mmu::GuestRights;

/// What a look at shadow pages tells.
pub(crate) enum ShadowSurvey {
    /// Nothing changed.
    Same,
    /// The number of changes so far, and every leaf by its guest frame.
    Leaves(u64, Vec<LeafView>),
    /// Somebody walks the reverse map without `mmu_lock`: look later.
    Walked,
}

impl ShadowMmu {
    /// Looks unless nothing changed since there were `seen` changes.
    pub(crate) fn survey(&self, seen: Option<u64>) -> ShadowSurvey {
        if seen == Some(self.changes) {
            return ShadowSurvey::Same;
        }
        let mut leaves = Vec::new();
        let mapped = self.rmaps.look(|heads| heads.iter().collect::<Vec<_>>());
        let Some(mapped) = mapped else { return ShadowSurvey::Walked };
        for (level, gfn, slot) in mapped {
            if let (ShadowEntry::Leaf { sfn, rights }, Some(size)) = (self.entry(slot), leaf_size(level)) {
                let mut allowed = Rights::empty();
                allowed.set(Rights::WRITE, rights.contains(GuestRights::WRITE));
                allowed.set(Rights::EXECUTE, rights.contains(GuestRights::EXECUTE));
                let spte = Spte::from_raw(self.load(slot).raw());
                leaves.push(LeafView { gfn, sfn, size, rights: allowed, spte });
            }
        }
        ShadowSurvey::Leaves(self.changes, leaves)
    }
}
