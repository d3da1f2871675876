//! What shadow pages map at one moment, for checks.

use super::pages::ShadowMmu;
use super::spte::{ShadowEntry, leaf_size};
use crate::tdp::{LeafView, Rights, Spte};
use mmu::GuestRights;

impl ShadowMmu {
    /// The number of changes so far and every leaf by its guest frame, unless nothing changed since there were `seen`.
    pub(crate) fn survey(&self, seen: Option<u64>) -> Option<(u64, Vec<LeafView>)> {
        if seen == Some(self.changes) {
            return None;
        }
        let mut leaves = Vec::new();
        for (level, gfn, slot) in self.rmaps.iter() {
            if let (ShadowEntry::Leaf { sfn, rights }, Some(size)) = (self.entry(slot), leaf_size(level)) {
                let mut allowed = Rights::empty();
                allowed.set(Rights::WRITE, rights.contains(GuestRights::WRITE));
                allowed.set(Rights::EXECUTE, rights.contains(GuestRights::EXECUTE));
                let spte = Spte::from_raw(self.load(slot).raw());
                leaves.push(LeafView { gfn, sfn, size, rights: allowed, spte });
            }
        }
        Some((self.changes, leaves))
    }
}
