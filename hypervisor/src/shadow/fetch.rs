//! From a walked guest address to a shadow leaf (`FNAME(fetch)`, `mmu_set_spte`, `FNAME(pte_prefetch)`).

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event, TableOrigin};
use emu_core::sync::Task;
use emu_core::{Gfn, Gva, PageSize, Sfn, Spa};
use mmu::{GuestPaging, GuestRights, GuestStep, GuestWalk};

use super::pages::{Following, PageId, ShadowMmu, Slot, Target};
use super::role::{Origin, Role, TableFormat, frames, index_at, run_base};
use super::spte::{HostWrite, ShadowEntry, leaf_size};
use super::sync::{Asking, Wanted, wanted};
use super::vcpus::Root;
use crate::flush::Owed;
use crate::tdp::Logged;

/// A and D of a guest's entry: other processors set them at any time.
const AD: u64 = 1 << 5 | 1 << 6;

/// A PTE beside the faulting one that is present in the guest and backed already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbour {
    /// Where it stands.
    pub(super) at: Spa,
    /// What it was when it was read.
    pub(super) raw: u64,
    /// Its page's frame.
    pub(super) sfn: Sfn,
    /// Whether the host lets the guest write it.
    pub(super) host: HostWrite,
}

/// What a fault wants.
pub(super) struct Plan<'p> {
    pub(super) gva: Gva,
    pub(super) walk: &'p GuestWalk,
    /// The faulting guest frame, and what the guest allows there.
    pub(super) target: Target,
    /// The frame behind it.
    pub(super) sfn: Sfn,
    /// The largest leaf that the host allows.
    pub(super) size: PageSize,
    pub(super) host: HostWrite,
    /// Whether what may be written is to be marked.
    pub(super) logged: Logged,
    pub(super) write: bool,
    pub(super) neighbours: &'p [Neighbour],
}

/// What a fetch may use.
pub(super) struct Means<'m> {
    pub(super) paging: &'m GuestPaging,
    pub(super) tables: &'m mut Vec<Spa>,
    /// Flushes at once.
    pub(super) flush: &'m dyn Fn(&Owed),
    /// Whether a change of backing since the fault began, or one in progress, reaches a guest frame.
    pub(super) is_stale: &'m dyn Fn(Gfn) -> bool,
    /// Marks a page of a logged memslot.
    pub(super) mark: &'m mut dyn FnMut(Gfn),
    pub(super) owed: &'m mut Owed,
    pub(super) task: &'m Task<'m>,
}

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The leaf allows the access now.
    Fixed(PageSize),
    /// It did already.
    Spurious,
    /// The guest's tables have changed meanwhile.
    Retry,
    /// The page is mapped, but writing it is the hypervisor's business: it is a guest table.
    WriteProtected,
}

fn report_page(gfn: Gfn, role: Role, origin: TableOrigin, task: &Task<'_>) {
    task.report(Event::GetPage { gfn, role: Bits(role.word().into()), origin });
}

impl ShadowMmu {
    /// Whether the guest's entry is another than the walk saw (`FNAME(gpte_changed)`).
    fn has_changed(&self, step: &GuestStep, format: TableFormat) -> bool {
        let now = match format.entry_bytes() {
            4 => self.memory.load::<u32>(step.spa).map(u64::from),
            _ => self.memory.load::<u64>(step.spa),
        };
        now.map_or(true, |raw| (raw ^ step.raw) & !AD != 0)
    }

    /// The valid page of `gfn` and `role`: one there is, brought up to date, or a new one
    /// (`kvm_mmu_get_shadow_page`).
    pub(super) fn get_page(&mut self, gfn: Gfn, role: Role, source: Option<Sfn>, with: &mut Means<'_>) -> PageId {
        let mut at = 0;
        while let Some(&id) = self.by_gfn.get(&gfn).and_then(|list| list.get(at)) {
            let page = self.page(id);
            if page.role != role {
                // The guest makes an upper-level table of what was a page of PTEs: the stale page goes.
                if role.level > 1 && page.following == Following::Unsync {
                    self.zap_page(id, with.owed, with.task);
                } else {
                    at += 1;
                }
                continue;
            }
            if page.following == Following::Unsync && !self.refresh(id, with.paging, with.owed, with.task) {
                continue;
            }
            debug_assert_eq!(self.page(id).source, source, "a guest table moved without a zap");
            self.page_mut(id).flooding = 0;
            report_page(gfn, role, TableOrigin::Existing, with.task);
            return id;
        }
        report_page(gfn, role, TableOrigin::New, with.task);
        let Some(table) = with.tables.pop() else { unreachable!("a fetch needs no more tables than it topped up") };
        let page = self.add_page(table, gfn, role, source, with.owed, with.task);
        if role.origin == Origin::Guest && !with.owed.is_empty() {
            // Before the guest's entry is looked at again: who could write the table cannot any more (`account_shadowed`).
            (with.flush)(with.owed);
            *with.owed = Owed::default();
        }
        page
    }

    /// Puts the leaf that `plan` asks for under `root`. `mmu_lock` is held for writing and the fault was found not to be
    /// stale under it.
    pub(super) fn fetch(&mut self, root: Root, plan: &Plan<'_>, with: &mut Means<'_>) -> Fetched {
        let Some(mut id) = self.root_page(root, plan.gva) else { return Fetched::Retry };
        let guest_leaf = plan.walk.level.number();
        let step_at = |level: u8| plan.walk.steps().find(|step| step.level.number() == level);
        loop {
            self.page_mut(id).flooding = 0;
            let role = self.page(id).role;
            let level = role.level;
            let slot = Slot { page: id, index: index_at(plan.gva.raw(), level) };
            if role.origin == Origin::Guest {
                match step_at(level) {
                    Some(step) if !self.has_changed(step, role.format) => {}
                    _ => return Fetched::Retry,
                }
            }
            let child = if role.origin == Origin::Guest && level > guest_leaf {
                let (Some(above), Some(step)) = (step_at(level), step_at(level - 1)) else { return Fetched::Retry };
                let quadrant = if role.format == TableFormat::Legacy { (slot.index & 1) as u8 } else { 0 };
                let role = Role { level: level - 1, quadrant, access: above.rights, ..role };
                match self.guest_child(slot, role, step, with) {
                    Some(child) => child,
                    None => return Fetched::Retry,
                }
            } else {
                if let Some(size) = leaf_size(level).filter(|size| *size <= self.goal(plan)) {
                    let fetched = self.set_leaf(slot, plan, size, with);
                    if size == PageSize::Size4K && self.page(id).role.origin == Origin::Guest {
                        self.prefetch(id, plan, with);
                    }
                    return fetched;
                }
                let access = if role.format == TableFormat::None { role.access } else { plan.target.access };
                let role = Role { level: level - 1, quadrant: 0, origin: Origin::Direct, access, ..role };
                self.direct_child(slot, run_base(plan.target.gfn, frames(level)), role, with)
            };
            id = child;
        }
    }

    /// The size of the leaf: what guest and host allow, smaller where it would cover a guest table.
    fn goal(&self, plan: &Plan<'_>) -> PageSize {
        let fits = |size: &PageSize| {
            size.shift() <= u32::from(plan.walk.page_shift)
                && (*size == PageSize::Size4K || !self.covers_shadowed(plan.target.gfn, size.frames()))
        };
        PageSize::ALL[..=plan.size.index()].iter().copied().rfind(fits).unwrap_or(PageSize::Size4K)
    }

    /// The page below `slot` that shadows the guest's table in which `step` stands. `None` when the guest has changed
    /// that table since it was walked: the page exists by now, so the next attempt sees what it writes.
    fn guest_child(&mut self, slot: Slot, role: Role, step: &GuestStep, with: &mut Means<'_>) -> Option<PageId> {
        let (gfn, source) = (step.slot.frame(), step.spa.frame());
        match self.entry(slot) {
            ShadowEntry::Table(table) => {
                if let Some(child) = self.page_at(table)
                    && self.page(child).shadows(gfn)
                    && self.page(child).role == role
                {
                    return Some(child);
                }
                self.drop_entry(slot, with.owed, with.task);
            }
            ShadowEntry::Leaf { .. } => self.drop_entry(slot, with.owed, with.task),
            ShadowEntry::Absent => {}
        }
        let child = self.get_page(gfn, role, Some(source), with);
        if self.page(child).role.level > 1 && self.page(child).is_unsync_tree() {
            // Going from not present to present asks no flush of the guest: what is linked must be current.
            self.sync_children(child, with.paging, with.flush, with.owed, with.task);
        }
        if self.has_changed(step, role.format) {
            return None;
        }
        self.link(slot, child, with.owed, with.task);
        Some(child)
    }

    /// The page below `slot` that maps the guest frames from `gfn` on one after the other.
    fn direct_child(&mut self, slot: Slot, gfn: Gfn, role: Role, with: &mut Means<'_>) -> PageId {
        if let ShadowEntry::Table(table) = self.entry(slot)
            && let Some(child) = self.page_at(table)
            && (self.page(child).gfn, self.page(child).role) == (gfn, role)
        {
            return child;
        }
        // A larger leaf, or a page with other rights (`validate_direct_spte`).
        self.drop_entry(slot, with.owed, with.task);
        let child = self.get_page(gfn, role, None, with);
        self.link(slot, child, with.owed, with.task);
        child
    }

    fn set_leaf(&mut self, slot: Slot, plan: &Plan<'_>, size: PageSize, with: &mut Means<'_>) -> Fetched {
        let level = size.index() as u8 + 1;
        let sfn = plan.sfn.align_down(size);
        let target = Target { gfn: plan.target.gfn.align_down(size), access: plan.target.access };
        let mut had_write = false;
        match self.entry(slot) {
            ShadowEntry::Leaf { sfn: mapped, rights }
                if mapped == sfn && self.page(slot.page).target(slot.index).gfn == target.gfn =>
            {
                had_write = rights.contains(GuestRights::WRITE);
            }
            ShadowEntry::Absent => {}
            _ => self.drop_entry(slot, with.owed, with.task),
        }
        let (mut leaf, protected) =
            self.make_leaf((sfn, level), target, plan.host, had_write, Asking::Fault, with.task);
        if plan.logged == Logged::Yes {
            if !leaf.is_writable() {
                leaf = leaf.host_write_withheld();
            } else if !had_write {
                // Whether or not this access writes, the next one may without being noticed.
                (with.mark)(target.gfn);
            }
        }
        let old = self.load(slot);
        let spurious = old.is_present() && old.same_but_ad(leaf);
        if !spurious {
            let entries = self.put_leaf(slot, target, leaf, with.owed, with.task);
            if ShadowMmu::is_too_many(entries) {
                let end = Gfn::new(target.gfn.raw() + size.frames());
                self.drop_mappings(target.gfn, end, with.owed, with.task);
                return Fetched::Retry;
            }
        }
        match (protected && plan.write, spurious) {
            (true, _) => Fetched::WriteProtected,
            (false, true) => Fetched::Spurious,
            (false, false) => Fetched::Fixed(size),
        }
    }

    /// Fills the empty entries around the faulting one from what the guest has there, unless a change of backing is under
    /// way.
    fn prefetch(&mut self, id: PageId, plan: &Plan<'_>, with: &mut Means<'_>) {
        let role = self.page(id).role;
        let Some(source) = self.page(id).source else { return };
        for neighbour in plan.neighbours {
            let Some(offset) = neighbour.at.offset_from(source.base()).filter(|offset| *offset < 4096) else {
                continue;
            };
            let Some((index, _)) = role.shadow_entries(offset) else { continue };
            let slot = Slot { page: id, index };
            let same = match role.format.entry_bytes() {
                4 => self.memory.load::<u32>(neighbour.at).map(u64::from),
                _ => self.memory.load::<u64>(neighbour.at),
            } == Ok(neighbour.raw);
            let Wanted::Leaf(target) = wanted(with.paging, role, neighbour.raw) else { continue };
            let stale = (with.is_stale)(target.gfn) && !with.task.has(Defect::PrefetchStale);
            if !same || self.load(slot).is_present() || stale {
                continue;
            }
            let (leaf, _) =
                self.make_leaf((neighbour.sfn, 1), target, neighbour.host, false, Asking::Prefetch, with.task);
            let entries = self.put_leaf(slot, target, leaf, with.owed, with.task);
            self.stats.prefetched += 1;
            if ShadowMmu::is_too_many(entries) {
                self.drop_entry(slot, with.owed, with.task);
            }
        }
    }
}
