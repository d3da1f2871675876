//! Changes of registers, and the operations that drop cached translations.
//!
//! Intel SDM vol. 3, "Invalidation of TLBs and Paging-Structure Caches" and "Invalidating Cached Translation
//! Information" (VMX); APM vol. 2, "TLB Management" and "TLB Control". What must survive an operation survives it (global
//! pages, other PCIDs, other guests); paging-structure caches are always dropped whole, which the manuals allow.
//!
//! The fast TLB has no tags: it holds the current identity only, and is dropped when that or the rules change.

use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Gfn, Gva, Sfn};

use crate::caches::CachedPage;
use crate::context::Context;
use crate::invalidate::{Globals, Invept, Invpcid, Invvpid};
use crate::mmu::{FastFacts, Mmu};
use crate::paging::{PagingChange, PagingState};
use crate::rights::{Controls, Rules};
use crate::stage2::{Asid, SpaceTag, Stage2, Vpid};
use crate::tlb::{Space, SpaceId, SpaceSet};

/// What a change of registers does to the fast TLB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum FastDrop {
    Nothing,
    NonGlobal,
    All,
}

impl Stage2 {
    /// The identity under which its translations are cached; `None` for the host's, which ASID 0 and VPID 0 also name.
    const fn owner(&self) -> Option<SpaceTag> {
        let tag = match self {
            Stage2::None => return None,
            Stage2::Untranslated(tag) => *tag,
            Stage2::Npt(npt) => SpaceTag::Asid(npt.asid),
            Stage2::Ept(ept) => SpaceTag::Vpid(ept.vpid),
        };
        match tag {
            SpaceTag::Asid(Asid(0)) | SpaceTag::Vpid(Vpid(0)) => None,
            tag => Some(tag),
        }
    }
    const fn is_nested(&self) -> bool {
        matches!(self, Stage2::Npt(_) | Stage2::Ept(_))
    }
}

impl Mmu {
    /// Puts new first-stage registers in force; `change` decides which cached translations go.
    pub fn set_paging(&mut self, new: PagingState, change: PagingChange) {
        let old = core::mem::replace(&mut self.paging, new);
        let old_rules = self.context.rules;
        let stage2 = *self.stage2();
        self.context = Context::new(&self.features, &new, &stage2, self.context.id, self.view.mode());

        let mine = self.same_owner();
        let changed = |bit: Cr4| (old.cr4 ^ new.cr4).intersects(bit);
        match change {
            PagingChange::MovCr0 => {
                if old.cr0.contains(Cr0::PG) && !new.cr0.contains(Cr0::PG) {
                    self.drop_linear(|space| space.is_in(mine));
                }
            }
            PagingChange::MovCr3 => {
                let pcid = new.pcid();
                self.drop_linear(|space| space.is_in(mine) && space.has_pcid(pcid));
            }
            PagingChange::MovCr4 => {
                let pcide_cleared = changed(Cr4::PCIDE) && !new.cr4.contains(Cr4::PCIDE);
                let smep_set = changed(Cr4::SMEP) && new.cr4.contains(Cr4::SMEP);
                if changed(Cr4::PGE | Cr4::PAE | Cr4::PSE | Cr4::LA57) || pcide_cleared {
                    self.drop_linear(|space| space.is_in(mine));
                } else if smep_set {
                    let pcid = new.pcid();
                    self.drop_linear(|space| space.is_in(mine) && (space.has_pcid(pcid) || space.is_global()));
                }
            }
            PagingChange::WriteEfer => {
                if (old.efer ^ new.efer).intersects(Efer::NXE | Efer::LMA) {
                    self.drop_linear(|space| space.is_in(mine));
                }
            }
            PagingChange::Reset => self.flush_all(),
            PagingChange::MovCr3NoFlush | PagingChange::ProtectionKeys | PagingChange::WorldSwitch => {}
        }
        match self.fast_drop(&old, &old_rules, change) {
            FastDrop::Nothing => {}
            FastDrop::NonGlobal => self.fast.flush_non_global(),
            FastDrop::All => self.drop_fast(),
        }
    }

    fn fast_drop(&self, old: &PagingState, old_rules: &Rules, change: PagingChange) -> FastDrop {
        let (new, rules) = (&self.paging, &self.context.rules);
        let by_change = match change {
            PagingChange::MovCr3 => FastDrop::NonGlobal,
            PagingChange::MovCr3NoFlush if (old.cr3, old.pdptes) != (new.cr3, new.pdptes) => FastDrop::NonGlobal,
            PagingChange::WorldSwitch | PagingChange::Reset => FastDrop::All,
            _ if (old.cr3, old.pdptes) != (new.cr3, new.pdptes) => FastDrop::All,
            _ => FastDrop::Nothing,
        };
        let keys =
            |old: u32, new: u32, seen: u16| (0..16).any(|k| seen >> k & 1 != 0 && (old ^ new) >> (2 * k) & 3 != 0);
        let keys_changed = rules.controls.contains(Controls::PKE)
            && keys(old_rules.pkru, rules.pkru, self.fast_facts.user_keys)
            || rules.controls.contains(Controls::PKS)
                && keys(old_rules.pkrs, rules.pkrs, self.fast_facts.supervisor_keys);
        let nxe = (old.efer ^ new.efer).contains(Efer::NXE);
        let pse = (old.cr4 ^ new.cr4).contains(Cr4::PSE);
        let rules_changed = old.mode() != new.mode()
            || nxe
            || pse
            || old_rules.controls != rules.controls
            || old.pcid() != new.pcid() && by_change == FastDrop::Nothing;
        if keys_changed || rules_changed { FastDrop::All } else { by_change }
    }

    /// Puts another second stage in force. Cached translations stay under their tags.
    pub fn set_stage2(&mut self, stage2: Stage2) {
        if stage2 == *self.stage2() {
            return;
        }
        let known = self.spaces.iter().position(|&space| space == stage2);
        let index = known.unwrap_or_else(|| {
            if self.spaces.len() == SpaceId::LIMIT {
                self.spaces.truncate(1);
                self.caches.drop_all();
            }
            self.spaces.push(stage2);
            self.spaces.len() - 1
        });
        self.context = Context::new(&self.features, &self.paging, &stage2, SpaceId::new(index), self.view.mode());
        self.drop_fast();
    }

    /// INVLPG: the page of `gva` under the current identity, global or not, whole even when it was cached in pieces.
    pub fn invlpg(&mut self, gva: Gva) {
        let gva = self.context.linear(gva);
        let pcid = self.paging.pcid();
        for id in self.same_owner().iter() {
            self.caches.linear.drop_page(gva.raw(), Space::new(id, pcid));
            self.caches.linear.drop_page(gva.raw(), Space::global(id));
        }
        self.caches.guest_tables.flush();
        self.drop_fast_page(gva);
    }

    /// INVPCID.
    pub fn invpcid(&mut self, what: Invpcid) {
        let mine = self.same_owner();
        match what {
            Invpcid::Address { pcid, gva } => {
                for id in mine.iter() {
                    self.caches.linear.drop_page(gva.raw(), Space::new(id, pcid));
                }
                self.caches.guest_tables.flush();
                if pcid == self.paging.pcid() {
                    self.drop_fast_page(gva);
                }
            }
            Invpcid::Single { pcid } => {
                self.drop_linear(|space| space.is_in(mine) && space.has_pcid(pcid));
                if pcid == self.paging.pcid() {
                    self.fast.flush_non_global();
                }
            }
            Invpcid::AllWithGlobals => {
                self.drop_linear(|space| space.is_in(mine));
                self.drop_fast();
            }
            Invpcid::All => {
                self.drop_linear(|space| space.is_in(mine) && !space.is_global());
                self.fast.flush_non_global();
            }
        }
    }

    /// INVLPGA: the page of `gva` under `asid`, for every PCID, global or not.
    pub fn invlpga(&mut self, gva: Gva, asid: Asid) {
        self.drop_address(self.owned_by(SpaceTag::Asid(asid)), gva);
    }

    /// INVEPT.
    pub fn invept(&mut self, what: Invept) {
        let made_with = self.spaces_where(|stage2| match (stage2, what) {
            (Stage2::Ept(_), Invept::All) => true,
            (Stage2::Ept(ept), Invept::Single { eptp }) => ept.eptp.root() == eptp.root(),
            _ => false,
        });
        self.drop_linear(|space| space.is_in(made_with));
        self.caches.drop_nested(made_with);
        if made_with.holds(self.context.id) {
            self.drop_fast();
        }
    }

    /// INVVPID. Cached nested translations stay.
    pub fn invvpid(&mut self, what: Invvpid) {
        let set = match what {
            Invvpid::Address { vpid, .. } | Invvpid::Single { vpid } | Invvpid::SingleRetainingGlobals { vpid } => {
                self.owned_by(SpaceTag::Vpid(vpid))
            }
            Invvpid::All => self.spaces_where(|stage2| matches!(stage2.owner(), Some(SpaceTag::Vpid(_)))),
        };
        match what {
            Invvpid::Address { gva, .. } => self.drop_address(set, gva),
            Invvpid::Single { .. } | Invvpid::All => {
                self.drop_linear(|space| space.is_in(set));
                if set.holds(self.context.id) {
                    self.drop_fast();
                }
            }
            Invvpid::SingleRetainingGlobals { .. } => {
                self.drop_linear(|space| space.is_in(set) && !space.is_global());
                if set.holds(self.context.id) {
                    self.fast.flush_non_global();
                }
            }
        }
    }

    /// TLB_CONTROL 3 and 7 of VMRUN: the translations of `asid`, nested ones included.
    pub fn flush_asid(&mut self, asid: Asid, globals: Globals) {
        let set = self.owned_by(SpaceTag::Asid(asid));
        self.drop_linear(|space| space.is_in(set) && (globals == Globals::Drop || !space.is_global()));
        self.caches.drop_nested(set);
        if set.holds(self.context.id) {
            match globals {
                Globals::Drop => self.drop_fast(),
                Globals::Keep => self.fast.flush_non_global(),
            }
        }
    }

    /// Everything, every identity, global or not.
    pub fn flush_all(&mut self) {
        self.stats.flushes += 1;
        self.caches.drop_all();
        self.drop_fast();
    }

    /// Every place of guest physical memory that is remembered under nested paging: what must agree with the nested tables
    /// once the flushes that are owed are done. For whoever checks that.
    pub fn cached_guest_pages(&self) -> impl Iterator<Item = CachedPage> {
        self.caches.guest_pages(self.spaces_where(Stage2::is_nested))
    }

    /// What a hypervisor's remote flush asks after it changed nested entries for these guest frames. Cached nested
    /// translations of the frames go, and every cached table pointer. All linear translations of nested guests go too: a
    /// frame may hold a guest table, and what was translated through it would otherwise survive. To a guest without nested
    /// paging these are system frames, its tables are the hypervisor's, and only what leads to the frames goes.
    pub fn flush_gpa_range(&mut self, first: Gfn, frames: u64) {
        self.stats.flushes += 1;
        let nested = self.spaces_where(Stage2::is_nested);
        let plain = self.spaces_where(|stage2| matches!(stage2, Stage2::Untranslated(_)));
        let end = first.raw().saturating_add(frames);
        let hit = |gpa: u64, frames: u64| gpa >> 12 < end && (gpa >> 12) + frames > first.raw();
        self.caches.linear.drop_where(|entry| {
            entry.space.is_in(nested) || entry.space.is_in(plain) && hit(entry.gpa, entry.size.frames())
        });
        self.caches.guest_tables.flush();
        self.caches.nested.drop_where(|entry| hit(entry.gpa, entry.size.frames()));
        self.caches.nested_tables.flush();
        if nested.holds(self.context.id) {
            self.drop_fast();
        } else if plain.holds(self.context.id) {
            self.fast.flush_frames(Sfn::new(first.raw()), frames);
        }
    }

    fn drop_linear(&mut self, gone: impl FnMut(Space) -> bool) {
        self.stats.flushes += 1;
        self.caches.drop_linear(gone);
    }

    fn drop_address(&mut self, set: SpaceSet, gva: Gva) {
        let covers = |base: u64, shift: u8| base >> shift == gva.raw() >> shift;
        self.caches.linear.drop_where(|entry| entry.space.is_in(set) && covers(entry.base, entry.page_shift));
        self.caches.guest_tables.flush();
        if set.holds(self.context.id) {
            self.drop_fast_page(gva);
        }
    }

    fn drop_fast(&mut self) {
        self.fast.flush_all();
        self.fast_facts = FastFacts::NONE;
    }

    /// Fast entries are 4 KiB each; a large page has many.
    fn drop_fast_page(&mut self, gva: Gva) {
        let large = self.fast_facts.large;
        if large.holds(gva.raw()) {
            let bytes = 1_u64 << large.shift();
            self.fast.flush_range(Gva::new(gva.raw() & !(bytes - 1)), bytes);
        } else {
            self.fast.flush_page(gva);
        }
    }

    fn spaces_where(&self, wanted: impl Fn(&Stage2) -> bool) -> SpaceSet {
        let ids = self.spaces.iter().enumerate().filter(|(_, stage2)| wanted(stage2));
        ids.fold(SpaceSet::NONE, |set, (index, _)| set.with(SpaceId::new(index)))
    }
    fn owned_by(&self, tag: SpaceTag) -> SpaceSet {
        let owner = Stage2::Untranslated(tag).owner();
        self.spaces_where(|stage2| stage2.owner() == owner)
    }
    /// The spaces that share the current identity: other nested tables under the same ASID or VPID.
    fn same_owner(&self) -> SpaceSet {
        let owner = self.stage2().owner();
        self.spaces_where(|stage2| stage2.owner() == owner)
    }
}
