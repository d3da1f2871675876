//! What must hold of shadow pages (group J): [`crate::shadow::check`] says it, here it is asked.

use emu_core::Gfn;
use emu_core::sync::Task;
use mmu::PagingFeatures;

use super::scene::Scene;
use crate::shadow::ShadowMmu;
use crate::shadow::check::{self, Verdict};
use crate::vcpu::VcpuId;

type Found = Result<(), String>;

fn ask(scene: &Scene<'_>, rule: impl Fn(&ShadowMmu, &PagingFeatures) -> Verdict) -> Found {
    let (Some(shadow), Some(tables)) = (&scene.vm.shadow, &scene.tables) else { return Ok(()) };
    let verdict = tables.try_shadow(&Task::QUIET, |pages| rule(pages, &shadow.features));
    verdict.unwrap_or(Ok(())).map_err(|broken| broken.what)
}

/// For what depends on shadow pages alone: looked at when one of them changed.
fn ask_if_changed(scene: &Scene<'_>, rule: fn(&ShadowMmu) -> Verdict) -> Found {
    if scene.history.shadow_changed { ask(scene, |pages, _| rule(pages)) } else { Ok(()) }
}

/// E7. Nobody can write a guest table that its shadow follows, by a translation either.
pub(super) fn followed_tables_are_not_cached_writable(scene: &Scene<'_>) -> Found {
    ask(scene, |pages, _| {
        for (n, vcpu) in scene.vm.vcpus.iter().enumerate() {
            let id = VcpuId(n as u16);
            let inside = scene.witness.in_guest(id);
            let mut verdict = Ok(());
            scene.witness.writable_frames(id, &mut |sfn| {
                // What is owed over shadow tables is owed by system frames.
                let usable = inside || !vcpu.owes(Gfn::new(sfn.raw()), 1, &Task::QUIET);
                if verdict.is_ok() && usable {
                    verdict = check::table_is_not_written(pages, sfn, n);
                }
            });
            verdict?;
        }
        Ok(())
    })
}

/// J1.
pub(super) fn the_reverse_map_is_the_leaves(scene: &Scene<'_>) -> Found {
    ask_if_changed(scene, check::reverse_map)
}

/// J2, unless an emulated write has changed a table and not dropped what was made from it.
pub(super) fn synced_pages_follow(scene: &Scene<'_>) -> Found {
    if scene.vm.is_emulating() { Ok(()) } else { ask(scene, check::synced_pages_follow) }
}

/// J4.
pub(super) fn upper_tables_are_never_writable(scene: &Scene<'_>) -> Found {
    ask_if_changed(scene, check::upper_tables_are_never_writable)
}

/// J5.
pub(super) fn unsync_marks_lead_to_unsync_pages(scene: &Scene<'_>) -> Found {
    ask_if_changed(scene, check::unsync_marks_lead_to_unsync_pages)
}

/// J6.
pub(super) fn guest_tables_are_counted(scene: &Scene<'_>) -> Found {
    ask_if_changed(scene, check::guest_tables_are_counted)
}

/// J7.
pub(super) fn a_key_has_one_page(scene: &Scene<'_>) -> Found {
    ask_if_changed(scene, check::a_key_has_one_page)
}

/// J8.
pub(super) fn obsolete_pages_are_unreachable(scene: &Scene<'_>) -> Found {
    ask_if_changed(scene, check::obsolete_pages_are_unreachable)
}

/// J9.
pub(super) fn huge_leaves_cover_no_guest_table(scene: &Scene<'_>) -> Found {
    ask_if_changed(scene, check::huge_leaves_cover_no_guest_table)
}

/// J10.
pub(super) fn leaves_allow_what_both_allow(scene: &Scene<'_>) -> Found {
    if scene.history.shadow_changed { ask(scene, check::leaves_allow_what_both_allow) } else { Ok(()) }
}
