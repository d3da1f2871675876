//! What the reverse map says of an SNP guest's memory (group H, and D12).

use core::sync::atomic::Ordering;

use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};
use gmem::{PageIndex, Shareability};
use mmu::rmp::RmpPageSize;

use super::scene::{Placed, Scene};
use crate::snp::memory::SnpMemory;
use crate::snp::memory::vmsa::Place;
use crate::vcpu::VcpuId;

type Found = Result<(), String>;

/// The leaves of guest_memfd that nobody is changing, with what their pages are.
fn leaves<'s>(scene: &'s Scene<'_>) -> impl Iterator<Item = (&'s SnpMemory, Placed<'s>, Shareability)> {
    let snp = scene.vm.snp.as_deref();
    snp.into_iter().flat_map(move |snp| {
        scene.settled_leaves().filter_map(move |placed| {
            let attribute = scene.attribute(placed.slot, placed.leaf.gfn)?;
            Some((snp, placed, attribute))
        })
    })
}

/// D12.
pub(super) fn private_leaves_fit_their_entries(scene: &Scene<'_>) -> Found {
    for (snp, placed, attribute) in leaves(scene) {
        let (leaf, most) = (placed.leaf, snp.max_mapping_size(placed.leaf.sfn));
        if attribute.is_private() && leaf.size > most {
            return Err(format!("the {} leaf at {:#x} shows an entry of {most}", leaf.size, leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// H2, of what is mapped.
pub(super) fn private_leaves_are_the_guests(scene: &Scene<'_>) -> Found {
    for (snp, placed, attribute) in leaves(scene) {
        let leaf = placed.leaf;
        let entry = snp.rmp().entry(leaf.sfn);
        if attribute.is_private() && !entry.is_some_and(|entry| snp.is_at(entry, leaf.gfn)) {
            return Err(format!(
                "guest frame {:#x} is mapped to {:?}, of which the RMP says {entry:?}",
                leaf.gfn.raw(),
                leaf.sfn
            ));
        }
    }
    Ok(())
}

/// H13.
pub(super) fn shared_leaves_show_nothing_assigned(scene: &Scene<'_>) -> Found {
    for (snp, placed, attribute) in leaves(scene) {
        let leaf = placed.leaf;
        if attribute.host_may_use() && snp.rmp().check_host_write(leaf.sfn.base(), leaf.size).is_err() {
            return Err(format!("guest frame {:#x} is shared, and {:?} is assigned", leaf.gfn.raw(), leaf.sfn));
        }
    }
    Ok(())
}

/// H1 and H3: what is assigned behind private pages, and the save areas, is all that carries the guest's ASID.
pub(super) fn what_is_assigned_is_private(scene: &Scene<'_>) -> Found {
    let (Some(snp), Some(inodes)) = (scene.vm.snp.as_deref(), &scene.inodes) else { return Ok(()) };
    let mut found = snp.nr_vmsas(&Task::QUIET);
    for (id, inode) in inodes {
        let Some(folios) = &inode.folios else { return Ok(()) };
        let says = scene.vm.gmem.generation.has_inode_attributes();
        for run in folios {
            for n in 0..run.nr_pages {
                let (index, sfn) = (PageIndex(run.first.0 + n), Sfn::new(run.sfn.raw() + n));
                let Some(entry) = snp.rmp().entry(sfn).filter(|entry| entry.assigned()) else { continue };
                let Some(attribute) = inode.attribute(index) else { return Ok(()) };
                if entry.asid() != snp.asid() {
                    return Err(format!("{sfn:?} behind page {} of guest_memfd {} is {entry:?}", index.0, id.0));
                }
                if says && attribute.host_may_use() {
                    return Err(format!("page {} of guest_memfd {} is shared, and {sfn:?} is assigned", index.0, id.0));
                }
                found += 1;
            }
        }
    }
    let leaked = scene.host.as_ref().map_or(0, |host| host.stats().leaked_frames);
    // Leaked frames carry it for ever.
    match snp.rmp().pages_of(snp.asid()) {
        carry if (found..=found + leaked).contains(&carry) => Ok(()),
        carry => Err(format!("{carry} pages carry the guest's ASID, {found} are private pages of it or save areas")),
    }
}

/// H4, of the folios of inodes.
pub(super) fn large_entries_are_aligned(scene: &Scene<'_>) -> Found {
    let (Some(snp), Some(inodes)) = (scene.vm.snp.as_deref(), &scene.inodes) else { return Ok(()) };
    for run in inodes.values().flat_map(|inode| inode.folios.iter().flatten()) {
        let first = run.sfn.align_down(PageSize::Size2M).raw();
        for head in (first..run.sfn.raw() + run.nr_pages).step_by(PageSize::Size2M.frames() as usize) {
            let entry = snp.rmp().entry(Sfn::new(head));
            let large = entry.filter(|entry| entry.page_size() == RmpPageSize::Size2M);
            if let Some(entry) = large.filter(|entry| !entry.gpa().is_aligned(PageSize::Size2M) || !entry.assigned()) {
                return Err(format!("the 2M entry of {:?} is {entry:?}", Sfn::new(head)));
            }
        }
    }
    Ok(())
}

/// H12.
pub(super) fn leaked_frames_are_used_by_nobody(scene: &Scene<'_>) -> Found {
    let Some(host) = &scene.host else { return Ok(()) };
    if host.stats().leaked_frames == 0 {
        return Ok(());
    }
    for leaf in scene.leaves().iter().filter(|leaf| !scene.is_covered(leaf.gfn, leaf.size.frames())) {
        let last = leaf.sfn.raw() + leaf.size.frames();
        if let Some(sfn) = (leaf.sfn.raw()..last).map(Sfn::new).find(|&sfn| host.is_leaked(sfn)) {
            return Err(format!("guest frame {:#x} shows {sfn:?}, which is leaked", leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// H11.
pub(super) fn save_areas_stay(scene: &Scene<'_>) -> Found {
    let (Some(_), Some(slots), Some(inodes)) = (scene.vm.snp.as_deref(), &scene.slots, &scene.inodes) else {
        return Ok(());
    };
    for (n, vcpu) in scene.vm.vcpus.iter().enumerate() {
        let Some(place) = vcpu.save_area.try_lock(&Task::QUIET).map(|place| *place) else { continue };
        // What was asked to look again does so before it enters; what is in the guest was asked to leave.
        if vcpu.area_stale.load(Ordering::Acquire) {
            continue;
        }
        let id = VcpuId(n as u16);
        let known = match place {
            Place::Unknown => None,
            Place::Kernel(sfn) => Some(sfn),
            Place::Guest { page, .. } => page,
        };
        let runs_from = scene.witness.save_area(id);
        if scene.witness.in_guest(id) && known.is_some() && runs_from != known {
            return Err(format!("vCPU {n} runs from {runs_from:?}, and its save area is in {known:?}"));
        }
        let Place::Guest { gfn, page: Some(sfn) } = place else { continue };
        let placed = slots.lookup(gfn).and_then(|slot| scene.served_by_gmem(slot, gfn));
        let Some((inode, index)) = placed.and_then(|(id, index)| Some((inodes.get(&id)?, index))) else {
            return Err(format!("the save area of vCPU {n} is at guest frame {:#x}, where no memory is", gfn.raw()));
        };
        let Some(folios) = inode.folios.as_ref().map(|_| inode.folios_at(index)) else { continue };
        if folios.map(|folio| folio.frame_of(index)) != Some(sfn) {
            return Err(format!("vCPU {n} is to run from {sfn:?}, which guest frame {:#x} has no longer", gfn.raw()));
        }
    }
    Ok(())
}
