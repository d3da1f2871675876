//! Invalidation, translations and tables (group E).

use std::collections::BTreeMap;

use emu_core::{Gfn, Sfn, Spa};
use gmem::folio::FolioKind;

use super::Moment;
use super::scene::Scene;
use super::witness::Cached;
use crate::vcpu::VcpuId;

type Found = Result<(), String>;

/// E1.
pub(super) fn begins_and_ends_balance(scene: &Scene<'_>) -> Found {
    let invalidation = scene.vm.invalidation();
    let (begun, ended) = (invalidation.begun(), invalidation.seq());
    let in_progress = u64::from(invalidation.in_progress());
    if begun != ended + in_progress {
        return Err(format!("{begun} begins, {ended} ends, and {in_progress} in progress"));
    }
    if scene.moment == Moment::Quiescent && in_progress != 0 {
        return Err("an invalidation was begun and never ended".to_owned());
    }
    Ok(())
}

/// E2. While nothing ends, the range in progress only grows.
pub(super) fn the_range_in_progress_never_shrinks(scene: &Scene<'_>) -> Found {
    let was = scene.history.protocol;
    let Some((from, to)) = was.range.filter(|_| was.seq == scene.vm.invalidation().seq()) else { return Ok(()) };
    match scene.covered {
        Some((now_from, now_to)) if now_from <= from && to <= now_to => Ok(()),
        now => Err(format!("{from:?} to {to:?} is being invalidated and faults retry only in {now:?}")),
    }
}

/// E3.
pub(super) fn the_sequence_never_falls(scene: &Scene<'_>) -> Found {
    let (was, is) = (scene.history.protocol.seq, scene.vm.invalidation().seq());
    if is < was {
        return Err(format!("the sequence was {was} and is {is}"));
    }
    Ok(())
}

/// The translations that a processor may still use: it is in the guest, or no flush keeps it from them.
fn usable(scene: &Scene<'_>, each: &mut dyn FnMut(VcpuId, Cached) -> Found) -> Found {
    for (n, vcpu) in scene.vm.vcpus.iter().enumerate() {
        let id = VcpuId(n as u16);
        let inside = scene.witness.in_guest(id);
        let mut found = Ok(());
        scene.witness.translations(id, &mut |cached| {
            let owed = vcpu.owes(cached.gfn, cached.size.frames(), &emu_core::sync::Task::QUIET);
            if found.is_ok() && (inside || !owed) {
                found = each(id, cached);
            }
        });
        found?;
    }
    Ok(())
}

/// E5.
pub(super) fn translations_stand_in_the_tables(scene: &Scene<'_>) -> Found {
    if scene.tables.as_ref().is_none_or(|tables| tables.is_zapped_shared()) {
        return Ok(());
    }
    let leaves = scene.leaves();
    let shown = |gfn: Gfn| -> Option<Sfn> {
        let above = leaves.partition_point(|leaf| leaf.gfn <= gfn);
        let leaf = leaves.get(above.checked_sub(1)?)?;
        let into = gfn.raw() - leaf.gfn.raw();
        (into < leaf.size.frames()).then(|| Sfn::new(leaf.sfn.raw() + into))
    };
    usable(scene, &mut |vcpu, cached| {
        for into in [0, cached.size.frames() - 1] {
            let (gfn, sfn) = (Gfn::new(cached.gfn.raw() + into), Sfn::new(cached.sfn.raw() + into));
            if shown(gfn) != Some(sfn) {
                return Err(format!(
                    "vCPU {} may use guest frame {:#x} at {sfn:?}, which was removed from the tables",
                    vcpu.0,
                    gfn.raw()
                ));
            }
        }
        Ok(())
    })
}

/// E6.
pub(super) fn translations_show_the_inodes_pages(scene: &Scene<'_>) -> Found {
    let (Some(slots), Some(inodes)) = (&scene.slots, &scene.inodes) else { return Ok(()) };
    usable(scene, &mut |vcpu, cached| {
        for into in [0, cached.size.frames() - 1] {
            let (gfn, sfn) = (Gfn::new(cached.gfn.raw() + into), Sfn::new(cached.sfn.raw() + into));
            let Some(slot) = slots.lookup(gfn) else {
                return Err(format!("vCPU {} may use guest frame {:#x} outside of memslots", vcpu.0, gfn.raw()));
            };
            let Some((id, index)) = scene.served_by_gmem(slot, gfn) else { continue };
            let Some(inode) = inodes.get(&id).filter(|inode| inode.folios.is_some()) else { continue };
            if inode.folios_at(index).map(|folio| folio.frame_of(index)) != Some(sfn) {
                return Err(format!(
                    "vCPU {} may use guest frame {:#x} at {sfn:?}, which is not its page",
                    vcpu.0,
                    gfn.raw()
                ));
            }
        }
        Ok(())
    })
}

/// E9, of flushes: what is owed will be served at the next entry.
pub(super) fn owed_flushes_are_announced(scene: &Scene<'_>) -> Found {
    for (n, vcpu) in scene.vm.vcpus.iter().enumerate() {
        if !scene.witness.in_guest(VcpuId(n as u16)) && vcpu.forgets_a_flush(&emu_core::sync::Task::QUIET) == Some(true)
        {
            return Err(format!("vCPU {n} owes a flush that nothing reminds it of"));
        }
    }
    Ok(())
}

/// E12, of the tables that can be walked.
pub(super) fn walkable_tables_are_in_use(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    let mut seen: BTreeMap<Spa, ()> = BTreeMap::new();
    for &table in scene.history.tree().iter().flat_map(|survey| &survey.tables) {
        if host.folios().get(table.frame()).is_none_or(|folio| folio.meta.kind != FolioKind::PageTable) {
            return Err(format!("the table at {table:?} can be walked and is free"));
        }
        if seen.insert(table, ()).is_some() {
            return Err(format!("the table at {table:?} stands in two places"));
        }
    }
    Ok(())
}

/// E15.
pub(super) fn nothing_is_frozen(scene: &Scene<'_>) -> Found {
    match scene.history.tree().map_or(0, |survey| survey.frozen) {
        0 => Ok(()),
        frozen => Err(format!("{frozen} entries are frozen and nobody is at work")),
    }
}

/// E16. While nothing was removed, what was mapped is mapped, to the same frames.
pub(super) fn leaves_keep_their_frames(scene: &Scene<'_>) -> Found {
    let leaves = scene.leaves();
    for was in scene.history.before.iter().flatten() {
        let above = leaves.partition_point(|leaf| leaf.gfn <= was.gfn);
        let now = above.checked_sub(1).and_then(|at| leaves.get(at));
        let frame = now.map(|leaf| leaf.sfn.raw().wrapping_add(was.gfn.raw() - leaf.gfn.raw()));
        if frame != Some(was.sfn.raw()) {
            return Err(format!(
                "guest frame {:#x} was mapped to {:?} and is, without a removal, at {now:?}",
                was.gfn.raw(),
                was.sfn
            ));
        }
    }
    Ok(())
}
