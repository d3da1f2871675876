//! The facade: one [`Mmu`] for each virtual processor. What it holds and how it answers; the operations that drop cached
//! translations are in `flush`.

use std::sync::Arc;

use emu_core::memory::code::{Backlog, CodeEvent, Cursor};
use emu_core::memory::{SystemMemory, Writability};
use emu_core::{Access, AccessKind, Gpa, Gva, Privilege, Spa};

use crate::caches::{CacheStore, Caches};
use crate::context::{CacheRefs, Context, SnpMode, Work};
use crate::fast::{FastRights, FastTlb};
use crate::fault::{MmuFault, Stage2Rights};
use crate::nested::{Effects, Judge, Reached};
use crate::paging::{PagingFeatures, PagingState};
use crate::pml::ModificationLog;
use crate::snp::RmpView;
use crate::stage1::Outcome;
use crate::stage2::Stage2;
use crate::stats::MmuStats;
use crate::tlb::{Cover, Space, SpaceId, TlbEntry};
use crate::translation::{GpaTranslation, PageFlags, Translation};

/// The memory-management unit of one virtual processor.
pub struct Mmu {
    /// The front: what answers an access before anything here runs.
    pub fast: FastTlb,
    /// What is known of all fast entries since they were last dropped together.
    pub(crate) fast_facts: FastFacts,
    pub(crate) memory: Arc<SystemMemory>,
    pub(crate) features: PagingFeatures,
    pub(crate) paging: PagingState,
    pub(crate) context: Context,
    /// The second stages that tags name, by [`SpaceId`]; the first is [`Stage2::None`].
    pub(crate) spaces: Vec<Stage2>,
    pub(crate) caches: CacheStore,
    code: Cursor,
    pub(crate) view: RmpView,
    /// Absent while page-modification logging is off.
    log: Option<ModificationLog>,
    pub(crate) stats: MmuStats,
}

/// See [`Mmu::fast_facts`].
pub(crate) struct FastFacts {
    /// Covers the large pages.
    pub(crate) large: Cover,
    /// Protection keys of the user pages, a bit each.
    pub(crate) user_keys: u16,
    /// Protection keys of the supervisor pages.
    pub(crate) supervisor_keys: u16,
}

impl FastFacts {
    pub(crate) const NONE: FastFacts = FastFacts { large: Cover::EMPTY, user_keys: 0, supervisor_keys: 0 };
}

impl Mmu {
    /// Paging off, no guest, nothing cached, every cache on.
    pub fn new(memory: Arc<SystemMemory>, features: PagingFeatures) -> Mmu {
        let paging = PagingState::default();
        Mmu {
            fast: FastTlb::new(Arc::clone(&memory)),
            fast_facts: FastFacts::NONE,
            memory,
            features,
            paging,
            context: Context::new(&features, &paging, &Stage2::None, SpaceId::HOST, SnpMode::Off),
            spaces: vec![Stage2::None],
            caches: CacheStore::new(),
            code: Cursor::default(),
            view: RmpView::default(),
            log: None,
            stats: MmuStats::default(),
        }
    }

    /// Chooses what is cached from now on; nothing cached so far survives.
    pub fn set_caches(&mut self, caches: Caches) {
        self.caches.enabled = caches;
        self.flush_all();
    }

    /// System memory.
    pub fn memory(&self) -> &Arc<SystemMemory> {
        &self.memory
    }
    /// What the processor model says about paging.
    pub fn features(&self) -> &PagingFeatures {
        &self.features
    }
    /// The first-stage registers.
    pub fn paging(&self) -> &PagingState {
        &self.paging
    }
    /// The second stage.
    pub fn stage2(&self) -> &Stage2 {
        &self.spaces[self.context.id.index()]
    }
    /// Where pages are logged whose dirty flag for EPT is set; `None` while page-modification logging is off. Software reads
    /// it, and puts the index back, while the guest does not run.
    pub fn modification_log(&mut self) -> Option<&mut ModificationLog> {
        self.log.as_mut()
    }
    /// Sets or clears "enable PML" of a VM entry, with the PML address and index.
    pub fn set_modification_log(&mut self, log: Option<ModificationLog>) {
        self.log = log;
    }
    /// What was done so far.
    pub fn stats(&self) -> MmuStats {
        self.stats
    }

    /// Translates `gva` for `access` as the processor would: from the TLB or by a walk, which sets A and D bits and fills
    /// the TLBs. Outside long mode bits 63:32 of `gva` are ignored.
    pub fn translate(&mut self, gva: Gva, access: Access) -> Result<Translation, MmuFault> {
        self.stats.fast_misses += 1;
        let gva = self.context.linear(gva);
        if let Some(accessor) = self.context.accessor {
            return self.translate_guarded(accessor, gva, access);
        }
        let found = self.find(gva, access)?;
        self.keep(gva, access, &found);
        Ok(found.outcome.translation)
    }

    /// What the TLB says, or else the tables.
    #[inline]
    pub(crate) fn find(&mut self, gva: Gva, access: Access) -> Result<Found, MmuFault> {
        if self.uses_tlb()
            && let Some(outcome) = self.look_up(gva, access)
        {
            self.stats.tlb_hits += 1;
            return Ok(Found { outcome, source: Source::Tlb });
        }
        let outcome = self.walk(gva, access, Judge::Walk)?;
        Ok(Found { outcome, source: Source::Tables })
    }

    /// Enters what was found in the TLBs.
    #[inline]
    pub(crate) fn keep(&mut self, gva: Gva, access: Access, found: &Found) {
        if found.source == Source::Tables && self.uses_tlb() {
            self.fill_tlb(gva, &found.outcome);
        }
        self.fill_fast(gva, access.privilege, &found.outcome);
    }

    fn uses_tlb(&self) -> bool {
        self.caches.enabled.contains(Caches::TLB) && self.context.is_paged()
    }

    /// What the tables say.
    #[inline]
    pub(crate) fn walk(&mut self, gva: Gva, access: Access, judge: Judge) -> Result<Outcome, MmuFault> {
        let work = Work {
            memory: &self.memory,
            stats: &mut self.stats,
            caches: self.caches.refs(),
            log: self.log.as_mut(),
            effects: Effects::Live,
            rmp: self.view.rmp.as_deref(),
        };
        self.context.translate_for(gva, access, judge, work).inspect_err(|fault| {
            // A page fault invalidates what is cached for its page; the TLB's part went in `look_up`.
            if let MmuFault::Guest { .. } = fault {
                self.fast.flush_page(gva);
            }
        })
    }

    /// Translates a guest physical address by the second stage alone, as a read, write or fetch of the processor's own
    /// (loading PDPTEs, a debugger, the board). Sets A and D of nested tables.
    pub fn translate_gpa(&mut self, gpa: Gpa, kind: AccessKind) -> Result<GpaTranslation, MmuFault> {
        let work = Work {
            memory: &self.memory,
            stats: &mut self.stats,
            caches: self.caches.refs(),
            log: self.log.as_mut(),
            effects: Effects::Live,
            rmp: self.view.rmp.as_deref(),
        };
        let reached = self.context.reach(gpa, kind, work).map(GpaTranslation::from)?;
        self.claim_reached(reached.spa, kind);
        Ok(reached)
    }

    /// What the tables say about `gva` for `access`, without any side effect: no A or D bit, no cache, no counter. TLBs
    /// are not asked, and a table is read as its bytes are, under whichever key.
    pub fn probe(&self, gva: Gva, access: Access) -> Result<Translation, MmuFault> {
        let mut uncounted = MmuStats::default();
        let work = self.dry(&mut uncounted);
        self.context.translate(self.context.linear(gva), access, work).map(|outcome| outcome.translation)
    }

    /// [`Mmu::translate_gpa`] without any side effect.
    pub fn probe_gpa(&self, gpa: Gpa, kind: AccessKind) -> Result<GpaTranslation, MmuFault> {
        let mut uncounted = MmuStats::default();
        let work = self.dry(&mut uncounted);
        self.context.reach(gpa, kind, work).map(GpaTranslation::from)
    }

    fn dry<'a>(&'a self, uncounted: &'a mut MmuStats) -> Work<'a> {
        Work {
            memory: &self.memory,
            stats: uncounted,
            caches: CacheRefs::NONE,
            log: None,
            effects: Effects::Dry,
            rmp: self.view.rmp.as_deref(),
        }
    }

    /// Drops fast write entries of frames that hold translated code by now, and whatever leads to pages that the RMP took
    /// away. Whoever executes calls this before it trusts the fast TLB after others may have decoded code or changed the RMP.
    pub fn catch_up(&mut self) {
        self.catch_up_rmp();
        if !self.memory.code().is_behind(self.code) {
            return;
        }
        match self.memory.code().catch_up(&mut self.code) {
            Backlog::Lost => self.fast.strip_all_writes(),
            Backlog::Events(events) => {
                for event in events {
                    if let CodeEvent::Watched(sfn) = event {
                        self.fast.strip_writes(sfn);
                    }
                }
            }
        }
    }

    /// The TLB's answer, if it has one that needs neither a fault nor a D bit. Otherwise what it has for the page is
    /// dropped, as a page fault drops it, and the tables decide.
    #[inline]
    fn look_up(&mut self, gva: Gva, access: Access) -> Option<Outcome> {
        let space = self.context.space;
        let entry = self.caches.linear.lookup(gva.raw(), space)?;
        let flags = entry.flags;
        let marked = access.kind != AccessKind::Write || flags.contains(PageFlags::DIRTY);
        let allowed = marked
            && flags.nested_allows(access)
            && self.context.rules.check(flags, entry.protection_key, access).is_ok();
        if !allowed {
            let tag = entry.space;
            self.caches.linear.drop_page(gva.raw(), tag);
            return None;
        }
        let within = gva.offset_in(entry.size);
        let translation = Translation {
            spa: Spa::new(entry.spa | within),
            gpa: Gpa::new(entry.gpa | within),
            size: entry.size,
            memory_type: entry.memory_type,
            pat_index: entry.pat_index,
            protection_key: entry.protection_key,
            flags,
        };
        Some(Outcome { translation, page_shift: entry.page_shift, nested: entry.size })
    }

    fn fill_tlb(&mut self, gva: Gva, outcome: &Outcome) {
        let Outcome { translation: t, page_shift, nested: _ } = *outcome;
        let global = t.flags.contains(PageFlags::GLOBAL);
        self.caches.linear.fill(TlbEntry {
            space: if global { Space::global(self.context.id) } else { self.context.space },
            base: gva.align_down(t.size).raw(),
            gpa: t.gpa.align_down(t.size).raw(),
            spa: t.spa.align_down(t.size).raw(),
            flags: t.flags,
            page_shift,
            pat_index: t.pat_index,
            protection_key: t.protection_key,
            memory_type: t.memory_type,
            size: t.size,
            rights: Stage2Rights::empty(),
        });
    }

    /// Enters the 4 KiB page of `gva` in the fast TLB, with the rights that `privilege` has now. Device memory and holes
    /// are not entered; pages with a clear D bit, ROM and frames with translated code are not entered for writing.
    #[inline]
    fn fill_fast(&mut self, gva: Gva, privilege: Privilege, outcome: &Outcome) {
        let Outcome { translation: t, page_shift, nested: _ } = *outcome;
        if !self.caches.enabled.contains(Caches::FAST) {
            return;
        }
        let sfn = t.spa.frame();
        let Some(page) = self.memory.page(sfn) else { return };
        let allows = |kind| {
            let access = Access::new(kind, privilege);
            t.flags.nested_allows(access) && self.context.rules.check(t.flags, t.protection_key, access).is_ok()
        };
        let storable = page.writability == Writability::Ram && self.memory.code().lines(sfn).0 == 0;
        let rights = FastRights {
            read: allows(AccessKind::Read),
            write: storable && t.flags.contains(PageFlags::DIRTY) && allows(AccessKind::Write),
            execute: allows(AccessKind::Execute),
        };
        self.fast.fill(privilege, gva, sfn, page, rights, t.flags.contains(PageFlags::GLOBAL));
        if page_shift > 12 {
            self.fast_facts.large.add(gva.raw(), page_shift);
        }
        if t.flags.contains(PageFlags::USER) {
            self.fast_facts.user_keys |= 1 << t.protection_key;
        } else {
            self.fast_facts.supervisor_keys |= 1 << t.protection_key;
        }
    }
}

/// A translation, and where it is from.
pub(crate) struct Found {
    pub(crate) outcome: Outcome,
    pub(crate) source: Source,
}

/// Who knew a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Tlb,
    Tables,
}

impl From<Reached> for GpaTranslation {
    fn from(reached: Reached) -> GpaTranslation {
        let Reached { spa, size, memory_type, flags } = reached;
        GpaTranslation { spa, size, memory_type, flags }
    }
}
