//! Inodes, their bindings and attributes (groups A and C).

use gmem::{GuestMemfd, PageIndex};

use super::scene::Scene;
use crate::memslot::SlotState;

type Found = Result<(), String>;

/// A1.
pub(super) fn bindings_are_disjoint(scene: &Scene<'_>) -> Found {
    for (id, inode) in scene.inodes.iter().flatten() {
        let mut end = 0;
        for (first, bound) in inode.bindings.iter().flatten() {
            if first.0 < end {
                return Err(format!("page {} of guest_memfd {} is bound twice", first.0, id.0));
            }
            end = first.0 + bound.nr_pages;
        }
    }
    Ok(())
}

/// A2.
pub(super) fn bindings_are_the_slots(scene: &Scene<'_>) -> Found {
    let (true, Some(slots), Some(inodes)) = (scene.slots_settled, &scene.slots, &scene.inodes) else { return Ok(()) };
    for slot in slots.slots().filter(|slot| slot.state() == SlotState::Active) {
        let info = slot.info();
        let Some(view) = info.gmem else { continue };
        let Some(bindings) = inodes.get(&view.gmem).and_then(|inode| inode.bindings.as_ref()) else { continue };
        let bound = bindings.iter().any(|(first, bound)| {
            (*first, bound.slot, bound.first, bound.nr_pages)
                == (view.first_index, info.binding_id(), info.first, info.nr_pages)
        });
        if !bound {
            return Err(format!("memslot {} is not bound where it says", info.id.0));
        }
    }
    for (id, inode) in inodes {
        for (first, bound) in inode.bindings.iter().flatten() {
            let known = slots.iter().any(|slot| {
                slot.binding_id() == bound.slot
                    && slot.gmem.is_some_and(|view| (view.gmem, view.first_index) == (*id, *first))
            });
            if !known {
                return Err(format!(
                    "page {} of guest_memfd {} is bound to memslot {}, which is not there",
                    first.0, id.0, bound.slot.0
                ));
            }
        }
    }
    Ok(())
}

/// A3.
pub(super) fn slots_lie_inside(scene: &Scene<'_>) -> Found {
    let (Some(slots), Some(inodes)) = (&scene.slots, &scene.inodes) else { return Ok(()) };
    for slot in slots.iter() {
        let Some(inode) = slot.gmem.and_then(|view| inodes.get(&view.gmem)) else { continue };
        if slot.range().is_some_and(|range| range.end() > PageIndex(inode.nr_pages)) {
            return Err(format!("memslot {} reaches behind the {:#x} pages of its inode", slot.id.0, inode.nr_pages));
        }
    }
    Ok(())
}

/// A4.
pub(super) fn slots_have_live_inodes(scene: &Scene<'_>) -> Found {
    let (true, Some(slots), Some(inodes)) = (scene.slots_settled, &scene.slots, &scene.inodes) else { return Ok(()) };
    for slot in slots.slots() {
        let (info, released) = (slot.info(), slot.inode().is_some_and(GuestMemfd::is_released));
        if let Some(view) = info.gmem.filter(|view| !released && !inodes.contains_key(&view.gmem)) {
            return Err(format!("memslot {} shows guest_memfd {}, which is closed", info.id.0, view.gmem.0));
        }
    }
    Ok(())
}

/// A5.
pub(super) fn inodes_stay_what_they_are(scene: &Scene<'_>) -> Found {
    for (id, inode) in scene.inodes.iter().flatten() {
        let now = (inode.nr_pages, inode.flags);
        if let Some(was) = scene.history.inodes.get(id).filter(|was| **was != now) {
            return Err(format!("guest_memfd {} was {was:?} and is {now:?}", id.0));
        }
    }
    Ok(())
}

/// A6.
pub(super) fn live_inodes_have_a_live_vm(scene: &Scene<'_>) -> Found {
    match scene.inodes.iter().flatten().next().filter(|_| scene.vm.is_destroyed()) {
        Some((id, _)) => Err(format!("guest_memfd {} is open, and its VM is destroyed", id.0)),
        None => Ok(()),
    }
}

/// A11.
pub(super) fn slots_change_with_their_generation(scene: &Scene<'_>) -> Found {
    let (Some(slots), Some((generation, were))) = (&scene.slots, &scene.history.slots) else { return Ok(()) };
    if slots.generation() != *generation {
        return Ok(());
    }
    let changed = slots.iter().find(|slot| were.get(&(slot.space, slot.id)) != Some(slot));
    match changed {
        Some(slot) => Err(format!("{slot:?} was {:?} in the same generation", were.get(&(slot.space, slot.id)))),
        None if slots.iter().count() != were.len() => Err("a memslot went without a new generation".to_owned()),
        None => Ok(()),
    }
}

/// C1.
pub(super) fn attributes_cover_every_page(scene: &Scene<'_>) -> Found {
    for (id, inode) in scene.inodes.iter().flatten() {
        let Some(runs) = &inode.attributes else { continue };
        let starts = runs.first().is_some_and(|run| run.0 == 0);
        let ascends = runs.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1);
        let ends = runs.last().is_some_and(|run| run.0 < inode.nr_pages);
        if !(starts && ascends && ends) {
            return Err(format!("the attributes of guest_memfd {} are not maximal runs: {runs:?}", id.0));
        }
    }
    Ok(())
}
