//! What the checks remember from one look to the next.

use std::collections::BTreeMap;

use emu_core::sync::Task;
use emu_core::{Gfn, Spa};
use gmem::{GmemFlags, SlotId};

use super::{Invariant, Violation};
use crate::memslot::{AddressSpaceId, MemSlot};
use crate::shadow::ShadowSurvey;
use crate::tdp::{LeafView, Survey};
use crate::vm::{GmemId, Vm};

/// The state of the invalidation protocol at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Protocol {
    pub(super) seq: u64,
    pub(super) range: Option<(Gfn, Gfn)>,
}

type KnownSlots = BTreeMap<(AddressSpaceId, SlotId), MemSlot>;

/// The past of one VM as far as a rule needs it. Make one for each VM and hand it to every check.
#[derive(Debug, Default)]
pub struct CheckHistory {
    /// The tree's version, and all of it then.
    pub(super) tree: Option<(u64, Survey)>,
    /// The leaves that were left under roots that were given up by then.
    pub(super) given_up: Vec<LeafView>,
    /// What shadow pages map, and what had been changed in them by then.
    pub(super) shadow_leaves: Vec<LeafView>,
    shadow_changes: Option<u64>,
    /// Whether that was since the look before.
    pub(super) shadow_changed: bool,
    /// The root then.
    root: Option<Spa>,
    /// The leaves before, while nothing has been removed and no root given up since.
    pub(super) before: Option<Vec<LeafView>>,
    zapped: u64,
    pub(super) protocol: Protocol,
    pub(super) inodes: BTreeMap<GmemId, (u64, GmemFlags)>,
    /// The memslots at their generation.
    pub(super) slots: Option<(u64, KnownSlots)>,
}

impl CheckHistory {
    /// No past.
    pub fn new() -> CheckHistory {
        CheckHistory::default()
    }

    /// What the nested tables were when they were last looked at.
    pub fn tree(&self) -> Option<&Survey> {
        self.tree.as_ref().map(|(_, survey)| survey)
    }

    /// Reads the tables again if they changed.
    pub(super) fn look(&mut self, vm: &Vm, task: &Task<'_>) -> Result<(), Violation> {
        self.before = None;
        self.shadow_changed = false;
        let Some(tables) = vm.try_tables(task) else { return Ok(()) };
        match tables.try_shadow(task, |pages| pages.survey(self.shadow_changes)) {
            None | Some(ShadowSurvey::Same) => {}
            Some(ShadowSurvey::Leaves(changes, leaves)) => {
                (self.shadow_changes, self.shadow_leaves) = (Some(changes), leaves);
                self.shadow_changed = true;
            }
            // What is not known is left out.
            Some(ShadowSurvey::Walked) => (self.shadow_changes, self.shadow_leaves) = (None, Vec::new()),
        }
        let version = tables.version();
        if self.tree.as_ref().is_some_and(|(seen, _)| *seen == version) {
            return Ok(());
        }
        let outside =
            |cause| Violation { invariant: Invariant::E12, found: format!("the tables lead out of memory: {cause}") };
        let survey = tables.survey().map_err(outside)?;
        self.given_up = tables.given_up_leaves(task).map_err(outside)?;
        let zapped = tables.stats().zapped.iter().sum();
        let before = self.tree.replace((version, survey));
        if zapped == self.zapped && self.root == Some(tables.root()) {
            self.before = before.map(|(_, survey)| survey.leaves);
        }
        self.root = Some(tables.root());
        self.zapped = zapped;
        Ok(())
    }

    /// Keeps what the next look is compared with.
    pub(super) fn remember(&mut self, vm: &Vm, task: &Task<'_>) {
        let invalidation = vm.invalidation();
        self.protocol = Protocol { seq: invalidation.seq(), range: invalidation.range() };
        if let Some(live) = vm.live_inodes(task) {
            let now = live.into_iter().map(|(id, inode)| (id, (inode.nr_pages(), inode.flags())));
            self.inodes = now.collect();
        }
        if let Some(slots) = vm.slots.try_read(task) {
            let generation = slots.generation();
            if self.slots.as_ref().is_none_or(|(seen, _)| *seen != generation) {
                self.slots = Some((generation, slots.iter().map(|slot| ((slot.space, slot.id), *slot)).collect()));
            }
        }
    }
}
