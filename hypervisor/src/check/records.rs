//! What memslots remember about huge pages (group D).

use std::collections::BTreeSet;

use emu_core::sync::Task;
use emu_core::{Gfn, PageSize};

use super::scene::Scene;
use crate::attributes::{AttributeTree, Mixture};
use crate::memslot::{AddressSpaceId, Slot};

type Found = Result<(), String>;
type Pages = BTreeSet<(PageSize, Gfn)>;

/// D7.
pub(super) fn mixed_pages_are_marked(scene: &Scene<'_>) -> Found {
    let (true, Some(slots), Some(tree)) = (scene.slots_settled, &scene.slots, &scene.attributes) else { return Ok(()) };
    for slot in slots.slots().filter(|slot| slot.info().space == AddressSpaceId::Normal) {
        let (are, marked) = (mixed(slot, tree), marked(slot));
        if let Some((size, gfn)) = are.symmetric_difference(&marked).next() {
            let (is, said) = match are.contains(&(*size, *gfn)) {
                true => ("differ", "uniform"),
                false => ("are one", "mixed"),
            };
            return Err(format!("the attributes of the {size} page at {:#x} {is}, and it is marked {said}", gfn.raw()));
        }
    }
    Ok(())
}

/// The huge pages that the slot contains and in which attributes change from one frame to the next.
fn mixed(slot: &Slot, tree: &AttributeTree) -> Pages {
    let (first, end) = (slot.info().first.raw(), slot.info().end().raw());
    let changes = tree.map().runs_in(first, end).map(|(at, ..)| at).filter(|&at| at > first);
    let around = |at: u64| [PageSize::Size2M, PageSize::Size1G].map(|size| (size, Gfn::new(at)));
    let inside =
        changes.flat_map(around).filter(|(size, at)| !at.is_aligned(*size) && slot.lpage().contains(*at, *size));
    inside.map(|(size, at)| (size, at.align_down(size))).collect()
}

fn marked(slot: &Slot) -> Pages {
    let list = slot.lpage().list(&Task::QUIET);
    let mixed = list.into_iter().filter(|&(.., mixture)| mixture == Mixture::Mixed);
    mixed.map(|(size, gfn, ..)| (size, gfn)).collect()
}
