//! Folios and their references (group B).

use std::collections::BTreeMap;

use gmem::folio::FolioKind;

use super::scene::Scene;

type Found = Result<(), String>;

/// B1.
pub(super) fn folios_are_aligned_and_disjoint(scene: &Scene<'_>) -> Found {
    for (id, inode) in scene.inodes.iter().flatten() {
        let mut end = 0;
        for folio in inode.folios.iter().flatten() {
            let aligned = folio.index.0.is_multiple_of(folio.size.frames()) && folio.head.is_aligned(folio.size);
            if !aligned || folio.index.0 < end {
                return Err(format!("{folio:?} of guest_memfd {} is misaligned or overlaps another", id.0));
            }
            end = folio.index.0 + folio.size.frames();
            if end > inode.nr_pages {
                return Err(format!("{folio:?} lies behind the end of guest_memfd {}", id.0));
            }
        }
    }
    Ok(())
}

/// B2.
pub(super) fn frames_belong_to_one_page(scene: &Scene<'_>) -> Found {
    let Some(caches) = scene.caches() else { return Ok(()) };
    let mut all: Vec<_> =
        caches.iter().flat_map(|(id, folios)| folios.iter().map(move |f| (f.head, f.size, *id))).collect();
    all.sort();
    for pair in all.windows(2) {
        if pair[0].0.raw() + pair[0].1.frames() > pair[1].0.raw() {
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
    for (id, folios) in caches {
        for folio in folios {
            let Some((unit, _)) = host.units().unit_of(folio.head) else { continue };
            let place = (id, folio.index.0.wrapping_sub(folio.head.raw() - unit.raw()));
            if *places.entry(unit).or_insert(place) != place {
                return Err(format!("{folio:?} does not stand where the other pieces of its unit at {unit:?} do"));
            }
        }
    }
    Ok(())
}

/// B5 and B6: a mapping by a leaf is no reference, or there would be more than the page cache and the holders have.
pub(super) fn references_are_accounted_for(scene: &Scene<'_>) -> Found {
    let (Some(caches), Some(host)) = (scene.caches(), &scene.host) else { return Ok(()) };
    for (id, folios) in caches {
        for folio in folios {
            let Some(meta) = host.folios().get(folio.head).filter(|found| found.head == folio.head) else {
                return Err(format!("{folio:?} of guest_memfd {} is not in use", id.0));
            };
            if (meta.size, meta.meta.kind) != (folio.size, FolioKind::Gmem) {
                return Err(format!("{folio:?} of guest_memfd {} is in use as {meta:?}", id.0));
            }
            let (refs, own) = (meta.meta.refs, folio.size.frames() as u32);
            let extra = scene.witness.extra_references(folio.head);
            if refs < own || extra.is_some_and(|extra| refs != own + extra) {
                let extra = extra.unwrap_or(0);
                return Err(format!("{folio:?} has {refs} references, the cache holds {own} and the host {extra}"));
            }
        }
    }
    Ok(())
}
