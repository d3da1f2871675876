//! Huge-page pools and split units (group F).

use gmem::HugeSize;
use gmem::folio::{FolioFlags, Source};

use super::scene::Scene;

type Found = Result<(), String>;

/// F1.
pub(super) fn nodes_add_up(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for size in HugeSize::ALL {
        let (pool, mut nr, mut free, mut surplus) = (host.pool(size), 0, 0, 0);
        for node in pool.node_stats() {
            (nr, free, surplus) = (nr + node.nr, free + node.free, surplus + node.surplus);
        }
        let all = pool.stats();
        if (nr, free, surplus) != (all.nr, all.free, all.surplus) {
            return Err(format!(
                "the nodes of the {} pool add up to {nr}, {free}, {surplus}, not {all:?}",
                size.page_size()
            ));
        }
    }
    Ok(())
}

/// F2.
pub(super) fn promises_are_covered(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for size in HugeSize::ALL {
        let (pool, stats) = (host.pool(size), host.pool(size).stats());
        let promised: u64 = pool.subpools().map(|subpool| subpool.rsv()).sum();
        if stats.resv > stats.free || promised != stats.resv {
            return Err(format!("the {} pool promised {promised} pages: {stats:?}", size.page_size()));
        }
    }
    Ok(())
}

/// F3.
pub(super) fn subpools_keep_their_limits(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for subpool in HugeSize::ALL.iter().flat_map(|&size| host.pool(size).subpools()) {
        let limits = subpool.limits();
        let over = limits.max.is_some_and(|max| subpool.used() > max);
        let owed = limits.min.is_some_and(|min| subpool.rsv() + subpool.out().min(min) != min);
        if over || owed {
            return Err(format!("{subpool:?} is beyond its limits"));
        }
    }
    Ok(())
}

/// F4.
pub(super) fn pools_are_conserved(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for size in HugeSize::ALL {
        let of_pool = |source: Source| matches!(source, Source::Pool { size: of, .. } if of == size);
        let whole = |head, units: &gmem::provider::unit::UnitTable| units.unit_of(head).is_none();
        let out = match host.folios().count(size.page_size()) {
            0 => 0,
            _ => {
                let folios = host.folios().iter().filter(|f| f.size == size.page_size() && of_pool(f.source));
                folios.filter(|f| whole(f.head, host.units())).count() as u64
            }
        };
        let split = host.units().iter().filter(|unit| of_pool(unit.2)).count() as u64;
        let stats = host.pool(size).stats();
        if stats.free + out + split != stats.nr {
            return Err(format!(
                "of the {} pool {out} pages are out whole and {split} split: {stats:?}",
                size.page_size()
            ));
        }
    }
    Ok(())
}

/// F8 and F9.
pub(super) fn split_units_are_out(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    for (head, size, source, back) in host.units().iter() {
        if back >= size.frames() {
            return Err(format!("all of the {size} unit at {head:?} is back and it is not returned"));
        }
        if let Source::Pool { size: pool, .. } = source
            && host.pool(pool).is_free(head)
        {
            return Err(format!("the {size} unit at {head:?} is split and free in its pool"));
        }
    }
    Ok(())
}

/// F10, of what is split.
pub(super) fn small_pieces_are_described(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    let small = |f: &gmem::folio::Folio| HugeSize::of(f.size).is_none();
    let optimised = |f: &gmem::folio::Folio| f.meta.flags.contains(FolioFlags::VMEMMAP_OPTIMISED);
    match host.folios().iter().find(|folio| small(folio) && optimised(folio)) {
        Some(folio) => Err(format!("{folio:?} has no struct page of its own")),
        None => Ok(()),
    }
}
