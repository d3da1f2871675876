//! What leaves show (groups B, C and D).

use emu_core::PageSize;
use gmem::GuestMemfd;
use gmem::folio::{FolioFlags, FolioKind};

use super::scene::Scene;
use crate::tdp::Rights;

type Found = Result<(), String>;

/// B4. All pages of a leaf that fits one folio stand behind it when its first does.
pub(super) fn leaves_show_the_inodes_pages(scene: &Scene<'_>) -> Found {
    for placed in scene.settled_leaves() {
        let leaf = placed.leaf;
        if placed.folio.map(|folio| folio.frame_of(placed.index)) != Some(leaf.sfn) {
            let (slot, index) = (placed.slot.info().id.0, placed.index.0);
            return Err(format!(
                "guest frame {:#x} is mapped to {:?}, which is not page {index} behind memslot {slot}",
                leaf.gfn.raw(),
                leaf.sfn
            ));
        }
    }
    Ok(())
}

/// E11: B4 under roots that were given up and are not empty yet.
pub(super) fn given_up_leaves_show_the_inodes_pages(scene: &Scene<'_>) -> Found {
    for placed in scene.placed(&scene.history.given_up) {
        if placed.folio.map(|folio| folio.frame_of(placed.index)) != Some(placed.leaf.sfn) {
            let leaf = placed.leaf;
            return Err(format!(
                "under a root that was given up, guest frame {:#x} is mapped to {:?}, which is not its page",
                leaf.gfn.raw(),
                leaf.sfn
            ));
        }
    }
    Ok(())
}

/// A8.
pub(super) fn closed_files_are_not_shown(scene: &Scene<'_>) -> Found {
    let (true, Some(slots)) = (scene.slots_settled, &scene.slots) else { return Ok(()) };
    for slot in slots.slots().filter(|slot| slot.info().is_gmem_only()) {
        let closed = slot.inode().is_some_and(GuestMemfd::is_released);
        let shown = || scene.leaves().iter().find(|leaf| slot.info().contains(leaf.gfn));
        if closed && let Some(leaf) = shown() {
            let (gfn, id) = (leaf.gfn.raw(), slot.info().id.0);
            return Err(format!("guest frame {gfn:#x} is mapped, and the file behind memslot {id} was released"));
        }
    }
    Ok(())
}

/// B8, of what is mapped.
pub(super) fn mapped_frames_are_in_use(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for leaf in scene.settled_leaves().map(|placed| placed.leaf) {
        if host.folios().get(leaf.sfn).is_none_or(|folio| folio.meta.kind != FolioKind::Gmem) {
            return Err(format!("guest frame {:#x} is mapped to {:?}, which is free", leaf.gfn.raw(), leaf.sfn));
        }
    }
    Ok(())
}

/// B10.
pub(super) fn mapped_folios_are_uptodate(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for placed in scene.settled_leaves() {
        let defined = host.folios().get(placed.leaf.sfn).is_none_or(|f| f.meta.flags.contains(FolioFlags::UPTODATE));
        if !defined {
            return Err(format!("guest frame {:#x} shows a folio whose contents are stale", placed.leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// B18.
pub(super) fn poisoned_frames_are_not_mapped(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for leaf in scene.leaves().iter().filter(|leaf| !scene.is_covered(leaf.gfn, leaf.size.frames())) {
        if let Some(sfn) = host.poisoned_in(leaf.sfn, leaf.size).next() {
            return Err(format!("guest frame {:#x} is mapped to {sfn:?}, whose memory failed", leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// C8.
pub(super) fn leaves_are_what_the_guest_meant(scene: &Scene<'_>) -> Found {
    for placed in scene.settled_leaves() {
        let (Some(meant), Some(is)) =
            (scene.witness.meant(placed.leaf.gfn), scene.attribute(placed.slot, placed.leaf.gfn))
        else {
            continue;
        };
        if meant != is {
            return Err(format!("guest frame {:#x} is mapped as {meant:?} and is {is:?}", placed.leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// D1.
pub(super) fn leaves_cover_one_attribute(scene: &Scene<'_>) -> Found {
    for placed in scene.settled_leaves().filter(|placed| placed.leaf.size > PageSize::Size4K) {
        if scene.is_uniform(&placed) == Some(false) {
            let leaf = placed.leaf;
            return Err(format!("the {} leaf at {:#x} covers private and shared pages", leaf.size, leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// D2.
pub(super) fn leaves_fit_their_folios(scene: &Scene<'_>) -> Found {
    for placed in scene.settled_leaves() {
        let leaf = placed.leaf;
        if let Some(folio) = placed.folio.filter(|folio| folio.size < leaf.size) {
            return Err(format!("the {} leaf at {:#x} shows a {} folio", leaf.size, leaf.gfn.raw(), folio.size));
        }
    }
    Ok(())
}

/// D3.
pub(super) fn leaves_lie_in_one_slot(scene: &Scene<'_>) -> Found {
    let Some(slots) = &scene.slots else { return Ok(()) };
    for leaf in scene.leaves() {
        let last = leaf.gfn.raw() + leaf.size.frames() - 1;
        if slots.lookup(leaf.gfn).is_none_or(|slot| slot.info().end().raw() <= last) {
            return Err(format!("the {} leaf at {:#x} does not lie in a memslot", leaf.size, leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// D4.
pub(super) fn leaves_are_congruent(scene: &Scene<'_>) -> Found {
    for leaf in scene.leaves() {
        if !leaf.gfn.is_aligned(leaf.size) || !leaf.sfn.is_aligned(leaf.size) {
            return Err(format!("the {} leaf at {:#x} starts at {:?}", leaf.size, leaf.gfn.raw(), leaf.sfn));
        }
    }
    Ok(())
}

/// D14.
pub(super) fn leaves_are_counted(scene: &Scene<'_>) -> Found {
    let Some(tables) = &scene.tables else { return Ok(()) };
    let mut mapped = [0; 3];
    scene.leaves().iter().for_each(|leaf| mapped[leaf.size.index()] += 1);
    let counted = tables.stats().mapped;
    if mapped != counted {
        return Err(format!("{mapped:?} leaves are present, {counted:?} are counted"));
    }
    Ok(())
}

/// D10. A log that starts with every page dirty leaves large leaves alone until their marks are cleared.
pub(super) fn logged_leaves_are_small(scene: &Scene<'_>) -> Found {
    let (true, Some(slots)) = (scene.slots_settled, &scene.slots) else { return Ok(()) };
    for leaf in scene.leaves().iter().filter(|leaf| leaf.size > PageSize::Size4K) {
        let Some(slot) = slots.lookup(leaf.gfn).filter(|_| leaf.rights.contains(Rights::WRITE)) else { continue };
        let Some(log) = slot.log() else { continue };
        let first = leaf.gfn.raw() - slot.info().first.raw();
        let is_told = |page: u64| log.bitmap().is_some_and(|bitmap| bitmap.is_dirty(page));
        if !(first..first + leaf.size.frames()).all(is_told) {
            return Err(format!("the {} leaf at {:#x} is writable and its slot is logged", leaf.size, leaf.gfn.raw()));
        }
    }
    Ok(())
}
