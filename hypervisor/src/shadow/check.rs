//! What must hold of the shadow MMU, recomputed from the tables themselves. One function for each invariant; each may be
//! asked whenever nobody holds `mmu_lock` for writing. What needs the reverse map is not looked at while somebody walks it.
//!
//! That an unsync page agrees with its guest table once the guest has flushed (J3) is no state but a change of state: it
//! is J2 after the flush, and the tests ask it there.

use std::collections::{BTreeMap, BTreeSet};

use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Gfn, Sfn};
use mmu::{GuestPaging, PagingFeatures, PagingState};
use thiserror::Error;

use super::pages::{Following, Page, PageId, ShadowMmu, Slot, Standing};
use super::role::{Origin, Role, RoleControls, TableFormat, frames};
use super::spte::{HostWrite, ShadowEntry};
use super::sync::{Wanted, wanted};

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{rule} does not hold: {what}")]
pub struct Broken {
    /// Which one.
    pub rule: &'static str,
    /// Where it does not.
    pub what: String,
}

/// What a check says.
pub type Verdict = Result<(), Broken>;

fn broken<T>(rule: &'static str, what: impl core::fmt::Debug) -> Result<T, Broken> {
    Err(Broken { rule, what: format!("{what:x?}") })
}

/// Registers that read tables as `role` was made to read them.
fn paging_of(features: &PagingFeatures, role: Role) -> GuestPaging {
    let mut state = PagingState { cr0: Cr0::PG | Cr0::PE | Cr0::ET, ..PagingState::default() };
    state.cr0.set(Cr0::WP, role.controls.contains(RoleControls::WP));
    state.efer.set(Efer::NXE, role.controls.contains(RoleControls::NX));
    state.cr4.set(Cr4::PSE, role.controls.contains(RoleControls::PSE));
    match role.format {
        TableFormat::None => state.cr0 -= Cr0::PG,
        TableFormat::Legacy => {}
        TableFormat::Pae => state.cr4 |= Cr4::PAE,
        TableFormat::Long => {
            state.cr4 |= Cr4::PAE;
            state.efer |= Efer::LME | Efer::LMA;
        }
    }
    GuestPaging::new(features, &state)
}

/// The present entries of a page.
fn entries<'p>(mmu: &'p ShadowMmu, id: PageId, page: &'p Page) -> impl Iterator<Item = (Slot, ShadowEntry)> + 'p {
    (0..512).filter_map(move |index| {
        let slot = Slot { page: id, index };
        let entry = mmu.load(slot).read(page.role.level);
        (entry != ShadowEntry::Absent).then_some((slot, entry))
    })
}

/// Every invariant, in order; the first that does not hold.
pub fn all(mmu: &ShadowMmu, features: &PagingFeatures) -> Verdict {
    reverse_map(mmu)?;
    synced_pages_follow(mmu, features)?;
    upper_tables_are_never_writable(mmu)?;
    unsync_marks_lead_to_unsync_pages(mmu)?;
    guest_tables_are_counted(mmu)?;
    a_key_has_one_page(mmu)?;
    obsolete_pages_are_unreachable(mmu)?;
    huge_leaves_cover_no_guest_table(mmu)?;
    leaves_allow_what_both_allow(mmu, features)
}

/// J1: the reverse map holds every present leaf, and nothing else.
pub fn reverse_map(mmu: &ShadowMmu) -> Verdict {
    let mut leaves = BTreeSet::new();
    for (id, page) in mmu.pages() {
        for (slot, entry) in entries(mmu, id, page) {
            if let ShadowEntry::Leaf { .. } = entry {
                leaves.insert((page.role.level, page.target(slot.index).gfn, slot));
            }
        }
    }
    let Some(mapped) = mmu.rmaps.look(|heads| heads.iter().collect::<BTreeSet<_>>()) else { return Ok(()) };
    match leaves.symmetric_difference(&mapped).next() {
        Some(odd) => broken("J1", odd),
        None => Ok(()),
    }
}

/// J2: the leaves of a page that follows its guest table are what the table's entries ask for, and nothing lets the guest
/// write that table.
pub fn synced_pages_follow(mmu: &ShadowMmu, features: &PagingFeatures) -> Verdict {
    for (id, page) in mmu.pages() {
        let follows = page.following == Following::Synced && page.standing == Standing::Valid;
        if !follows || page.role.origin == Origin::Direct || page.role.level != 1 {
            continue;
        }
        no_writer(mmu, "J2", page.gfn)?;
        let paging = paging_of(features, page.role);
        let Some(source) = page.source else { return broken("J2", (id, "no guest table")) };
        for (slot, _) in entries(mmu, id, page) {
            let at = source.base().wrapping_add(page.role.guest_offset(slot.index));
            let raw = match page.role.format.entry_bytes() {
                4 => mmu.memory.load::<u32>(at).map(u64::from),
                _ => mmu.memory.load::<u64>(at),
            };
            let target = page.target(slot.index);
            match raw.map(|raw| wanted(&paging, page.role, raw)) {
                Ok(Wanted::Leaf(asked)) if asked.gfn == target.gfn => {}
                other => return broken("J2", (slot, target, other)),
            }
        }
    }
    Ok(())
}

fn no_writer(mmu: &ShadowMmu, rule: &'static str, gfn: Gfn) -> Verdict {
    for slot in mmu.rmaps.look(|heads| heads.of(1, gfn).collect::<Vec<_>>()).unwrap_or_default() {
        if mmu.load(slot).is_writable() {
            return broken(rule, (gfn, slot));
        }
    }
    Ok(())
}

/// E7: `sfn`, which processor `vcpu` can write, is no guest table that a valid page follows.
pub fn table_is_not_written(mmu: &ShadowMmu, sfn: Sfn, vcpu: usize) -> Verdict {
    let follows = |page: &Page| page.following == Following::Synced && page.standing == Standing::Valid;
    match mmu.pages().find(|(_, page)| page.source == Some(sfn) && follows(page)) {
        Some((_, page)) => broken("E7", (vcpu, "can write the guest table", page.gfn)),
        None => Ok(()),
    }
}

/// J4: nothing lets the guest write a table above the lowest level.
pub fn upper_tables_are_never_writable(mmu: &ShadowMmu) -> Verdict {
    mmu.shadowed.iter().filter(|(_, shadowed)| shadowed.tracked > 0).try_for_each(|(gfn, _)| no_writer(mmu, "J4", *gfn))
}

/// J5: a page's marks are exactly the entries below which something is unsync.
pub fn unsync_marks_lead_to_unsync_pages(mmu: &ShadowMmu) -> Verdict {
    for (id, page) in mmu.pages() {
        let mut marks = [0_u64; 8];
        for (slot, entry) in entries(mmu, id, page) {
            if let ShadowEntry::Table(table) = entry {
                let Some(child) = mmu.page_at(table) else { return broken("J5", (slot, "no page")) };
                let child = mmu.page(child);
                if !child.parents.contains(&slot) {
                    return broken("J5", (slot, "not a parent"));
                }
                if child.is_unsync_tree() {
                    marks[usize::from(slot.index) / 64] |= 1 << (slot.index % 64);
                }
            }
        }
        if marks != page.unsync_children {
            return broken("J5", (id, marks, page.unsync_children));
        }
        for &parent in &page.parents {
            if mmu.entry(parent) != ShadowEntry::Table(page.table) {
                return broken("J5", (id, parent));
            }
        }
    }
    Ok(())
}

/// J6: the pages of guest tables are counted, in all and for each guest frame.
pub fn guest_tables_are_counted(mmu: &ShadowMmu) -> Verdict {
    let mut counts: BTreeMap<Gfn, (u32, u32)> = BTreeMap::new();
    for (_, page) in mmu.pages() {
        if page.role.origin == Origin::Guest && page.standing == Standing::Valid {
            let count = counts.entry(page.gfn).or_default();
            count.0 += 1;
            count.1 += u32::from(page.role.level > 1);
        }
    }
    let kept: BTreeMap<Gfn, (u32, u32)> =
        mmu.shadowed.iter().map(|(&gfn, one)| (gfn, (one.pages, one.tracked))).collect();
    let total: u64 = counts.values().map(|(pages, _)| u64::from(*pages)).sum();
    if counts != kept || total != mmu.indirect {
        return broken("J6", (counts, kept, mmu.indirect));
    }
    Ok(())
}

/// J7: there is at most one valid page for a guest frame and a role, and it is found.
pub fn a_key_has_one_page(mmu: &ShadowMmu) -> Verdict {
    let mut keys = BTreeSet::new();
    for (id, page) in mmu.pages().filter(|(_, page)| page.standing == Standing::Valid) {
        if !keys.insert((page.gfn, page.role.word())) {
            return broken("J7", (page.gfn, page.role));
        }
        if !mmu.by_gfn.get(&page.gfn).is_some_and(|list| list.contains(&id)) {
            return broken("J7", (id, "cannot be found"));
        }
    }
    Ok(())
}

/// J8: a valid page is of the current generation; an invalid one is some vCPU's root still, and holds nothing.
pub fn obsolete_pages_are_unreachable(mmu: &ShadowMmu) -> Verdict {
    for (id, page) in mmu.pages() {
        match page.standing {
            Standing::Valid if page.generation == mmu.generation => {}
            Standing::Invalid
                if page.roots > 0 && page.parents.is_empty() && entries(mmu, id, page).next().is_none() => {}
            _ => return broken("J8", (id, page.standing, page.generation, page.roots)),
        }
    }
    Ok(())
}

/// J9: no leaf above the lowest level covers a shadowed guest table.
pub fn huge_leaves_cover_no_guest_table(mmu: &ShadowMmu) -> Verdict {
    let Some(mapped) = mmu.rmaps.look(|heads| heads.iter().collect::<Vec<_>>()) else { return Ok(()) };
    for (level, gfn, slot) in mapped {
        if level > 1 && mmu.covers_shadowed(gfn, frames(level)) {
            return broken("J9", (gfn, slot));
        }
    }
    Ok(())
}

/// J10: a leaf allows no more than what it was made from, nor writes that the host refuses; what it was made from is no
/// more than the guest's entries above it allow, but for a supervisor's override of R/W without CR0.WP, which takes the
/// page from the user.
pub fn leaves_allow_what_both_allow(mmu: &ShadowMmu, _: &PagingFeatures) -> Verdict {
    use mmu::GuestRights;
    for (id, page) in mmu.pages() {
        for (slot, entry) in entries(mmu, id, page) {
            let ShadowEntry::Leaf { rights, .. } = entry else { continue };
            let access = page.target(slot.index).access;
            let host = mmu.load(slot).host_write();
            if !access.contains(rights) || rights.contains(GuestRights::WRITE) && host == HostWrite::Refused {
                return broken("J10", (slot, rights, access, host));
            }
            let overridden = !access.contains(GuestRights::USER) && !page.role.controls.contains(RoleControls::WP);
            let beyond = access.difference(page.role.access);
            let excused = beyond.is_empty() || overridden && beyond == GuestRights::WRITE;
            if !excused {
                return broken("J10", (slot, access, page.role.access));
            }
        }
    }
    Ok(())
}
