//! What dirty logs know (group I, and E8).
//!
//! Only while nobody starts, stops or harvests a log: in between marks and leaves do not agree.

use emu_core::Gfn;
use emu_core::sync::Task;

use super::scene::Scene;
use crate::dirty::{DirtyRing, RingWithBitmap};
use crate::memslot::Slot;
use crate::params::Pml;
use crate::tdp::{Rights, TdpFormat};
use crate::vcpu::VcpuId;

type Found = Result<(), String>;

/// Whether the page is in its slot's log already; `None` where that cannot be known now.
fn is_marked(scene: &Scene<'_>, slot: &Slot, gfn: Gfn) -> Option<bool> {
    let page = gfn.raw() - slot.info().first.raw();
    if scene.vm.params.dirty_ring.is_none_or(|ring| ring.bitmap == RingWithBitmap::Yes)
        && slot.log()?.bitmap().is_some_and(|bitmap| bitmap.is_dirty(page))
    {
        return Some(true);
    }
    if scene.vm.params.dirty_ring.is_none() {
        return Some(false);
    }
    let mut pushed = false;
    for vcpu in &scene.vm.vcpus {
        let own = vcpu.mmu.try_lock(&Task::QUIET)?;
        pushed |= own.ring.as_ref().is_some_and(|ring| ring.holds(slot.info().id, page));
    }
    Some(pushed)
}

/// The logged slots can be asked, and their leaves say what can be written: processors do not log by themselves.
fn logs_agree(scene: &Scene<'_>) -> bool {
    let processors_log = scene.vm.params.pml == Pml::On && scene.vm.format() == TdpFormat::Ept;
    scene.slots_settled && !processors_log
}

/// The slot that holds `gfn`, if it is logged and the page is not marked.
fn unmarked<'s>(scene: &'s Scene<'_>, gfn: Gfn) -> Option<&'s Slot> {
    let slot = scene.slots.as_ref()?.lookup(gfn).filter(|slot| slot.log().is_some())?;
    (is_marked(scene, slot, gfn) == Some(false)).then_some(slot)
}

/// Whether the leaf for `gfn` lets the guest write.
fn is_writable(scene: &Scene<'_>, gfn: Gfn) -> bool {
    let leaves = scene.leaves();
    let leaf = leaves.partition_point(|leaf| leaf.gfn <= gfn).checked_sub(1).and_then(|at| leaves.get(at));
    leaf.is_some_and(|leaf| gfn.raw() - leaf.gfn.raw() < leaf.size.frames() && leaf.rights.contains(Rights::WRITE))
}

/// E8. A processor that can write a page of a logged slot although its leaf says no finds it marked.
pub(super) fn who_can_write_is_in_the_log(scene: &Scene<'_>) -> Found {
    if !logs_agree(scene) {
        return Ok(());
    }
    for (n, vcpu) in scene.vm.vcpus.iter().enumerate() {
        let id = VcpuId(n as u16);
        let inside = scene.witness.in_guest(id);
        let mut found = Ok(());
        scene.witness.stores(id, &mut |gfn| {
            let usable = inside || !vcpu.owes(gfn, 1, &Task::QUIET);
            if found.is_ok()
                && usable
                && !is_writable(scene, gfn)
                && let Some(slot) = unmarked(scene, gfn)
            {
                let slot = slot.info().id.0;
                found = Err(format!("vCPU {n} can write guest frame {:#x} of memslot {slot} unnoticed", gfn.raw()));
            }
        });
        found?;
    }
    Ok(())
}

/// I2.
pub(super) fn writable_leaves_are_in_the_log(scene: &Scene<'_>) -> Found {
    if !logs_agree(scene) {
        return Ok(());
    }
    let leaves = scene.leaves().iter().chain(&scene.history.shadow_leaves);
    for leaf in leaves.filter(|leaf| leaf.rights.contains(Rights::WRITE)) {
        if let Some(slot) = unmarked(scene, leaf.gfn) {
            let slot = slot.info().id.0;
            return Err(format!("guest frame {:#x} is writable and not in the log of memslot {slot}", leaf.gfn.raw()));
        }
    }
    Ok(())
}

/// I4, of what a ring holds now.
pub(super) fn rings_keep_their_order(scene: &Scene<'_>) -> Found {
    for (n, vcpu) in scene.vm.vcpus.iter().enumerate() {
        let Some(own) = vcpu.mmu.try_lock(&Task::QUIET) else { continue };
        if own.ring.as_ref().is_some_and(|ring| !DirtyRing::is_in_order(ring)) {
            return Err(format!("the dirty ring of vCPU {n} holds entries that were read behind such that were not"));
        }
    }
    Ok(())
}
