//! What entries of the nested tables say (groups D and I).

use emu_core::PageSize;

use super::scene::Scene;
use crate::params::NxHugePages;
use crate::tdp::Rights;

type Found = Result<(), String>;

/// D11.
pub(super) fn huge_leaves_are_not_executable(scene: &Scene<'_>) -> Found {
    if !scene.slots_settled || scene.vm.nx_huge_pages() == NxHugePages::Off {
        return Ok(());
    }
    let odd = |leaf: &&crate::tdp::LeafView| leaf.size > PageSize::Size4K && leaf.rights.contains(Rights::EXECUTE);
    match scene.leaves().iter().find(odd) {
        Some(leaf) => Err(format!("the {} leaf at {:#x} may be executed", leaf.size, leaf.gfn.raw())),
        None => Ok(()),
    }
}

/// I6.
pub(super) fn writability_is_a_legal_row(scene: &Scene<'_>) -> Found {
    let format = scene.vm.format();
    match scene.leaves().iter().find(|leaf| format.write_state(leaf.spte).is_none()) {
        Some(leaf) => Err(format!("the leaf at {:#x} is {:x?}, in no legal row", leaf.gfn.raw(), leaf.spte)),
        None => Ok(()),
    }
}

/// I8: each table of the list stands where the list says, under the workaround, once.
pub(super) fn listed_tables_stand_for_huge_leaves(scene: &Scene<'_>) -> Found {
    let Some(tables) = &scene.tables else { return Ok(()) };
    let task = &emu_core::sync::Task::QUIET;
    match tables.misplaced_nx_table(task).map_err(|cause| cause.to_string())? {
        Some(gfn) => Err(format!("the NX table for {:#x} is listed and the tables do not lead to it", gfn.raw())),
        None => Ok(()),
    }
}
