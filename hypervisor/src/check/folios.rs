//! Folios and their references (group B).

use std::collections::BTreeMap;

use gmem::Shareability;
use gmem::folio::{Folio, FolioKind};

use super::scene::Scene;

type Found = Result<(), String>;

/// B1.
pub(super) fn folios_are_aligned_and_disjoint(scene: &Scene<'_>) -> Found {
    for (id, inode) in scene.inodes.iter().flatten() {
        let mut end = 0;
        for run in inode.folios.iter().flatten() {
            let (first, frames) = (run.first.0, run.size.frames());
            let aligned = [first, run.nr_pages, run.sfn.raw()].iter().all(|v| v.is_multiple_of(frames));
            if !aligned || first < end {
                return Err(format!("{run:?} of guest_memfd {} is misaligned or overlaps another", id.0));
            }
            end = first + run.nr_pages;
            if end > inode.nr_pages {
                return Err(format!("{run:?} lies behind the end of guest_memfd {}", id.0));
            }
        }
    }
    Ok(())
}

/// B2.
pub(super) fn frames_belong_to_one_page(scene: &Scene<'_>) -> Found {
    let Some(caches) = scene.caches() else { return Ok(()) };
    let mut all: Vec<_> =
        caches.iter().flat_map(|(id, runs)| runs.iter().map(|run| (run.sfn, run.nr_pages, *id))).collect();
    all.sort();
    for pair in all.windows(2) {
        if pair[0].0.raw() + pair[0].1 > pair[1].0.raw() {
            return Err(format!("{:?} backs two pages, of guest_memfd {} and {}", pair[1].0, pair[0].2.0, pair[1].2.0));
        }
    }
    Ok(())
}

/// B3.
pub(super) fn pieces_keep_their_places(scene: &Scene<'_>) -> Found {
    let (Some(caches), Some(host)) = (scene.caches(), &scene.host) else { return Ok(()) };
    if host.units().is_empty() {
        return Ok(());
    }
    let mut places = BTreeMap::new();
    for (id, runs) in caches {
        for run in runs {
            let Some((unit, _)) = host.units().unit_of(run.sfn) else { continue };
            let place = (id, run.first.0.wrapping_sub(run.sfn.raw() - unit.raw()));
            if *places.entry(unit).or_insert(place) != place {
                return Err(format!("{run:?} does not stand where the other pieces of its unit at {unit:?} do"));
            }
        }
    }
    Ok(())
}

/// C3 and C4: what a private page may have of the host's.
fn private_folios(scene: &Scene<'_>, wrong: fn(&Folio) -> bool, what: &str) -> Found {
    let (Some(caches), Some(inodes), Some(host)) = (scene.caches(), &scene.inodes, &scene.host) else { return Ok(()) };
    for (id, runs) in caches {
        let Some(inode) = inodes.get(&id) else { continue };
        for (run, (index, head)) in runs.iter().flat_map(|run| run.folios().map(move |folio| (run, folio))) {
            let private = inode.attribute(index).is_some_and(Shareability::is_private)
                && inode.is_uniform(index, run.size.frames()) == Some(true);
            if private && host.folios().get(head).is_some_and(|folio| wrong(&folio)) {
                return Err(format!("page {} of guest_memfd {} is private and {what}", index.0, id.0));
            }
        }
    }
    Ok(())
}

/// C3.
pub(super) fn private_folios_are_not_mapped(scene: &Scene<'_>) -> Found {
    private_folios(scene, |folio| folio.meta.maps > 0, "a process maps it")
}

/// C4, of pins: a reference may be of somebody who looks at every page.
pub(super) fn private_folios_are_not_pinned(scene: &Scene<'_>) -> Found {
    private_folios(scene, Folio::maybe_pinned, "a device may have it")
}

/// B5 and B6: a mapping by a leaf is no reference, or there would be more than the page cache and the holders have.
pub(super) fn references_are_accounted_for(scene: &Scene<'_>) -> Found {
    let (Some(caches), Some(host)) = (scene.caches(), &scene.host) else { return Ok(()) };
    for (id, runs) in caches {
        for (run, (_, head)) in runs.iter().flat_map(|run| run.folios().map(move |folio| (run, folio))) {
            let Some(folio) = host.folios().get(head).filter(|found| found.head == head) else {
                return Err(format!("{head:?} of guest_memfd {} is not in use", id.0));
            };
            if (folio.size, folio.meta.kind) != (run.size, FolioKind::Gmem) {
                return Err(format!("{head:?} of {} in guest_memfd {} is in use as {folio:?}", run.size, id.0));
            }
            let (refs, own) = (folio.meta.refs, folio.cache_refs());
            let extra = scene.witness.extra_references(head);
            if refs < own || extra.is_some_and(|extra| refs != own + extra) {
                let extra = extra.unwrap_or(0);
                return Err(format!("{head:?} has {refs} references, the cache holds {own} and the host {extra}"));
            }
        }
    }
    Ok(())
}
