//! The facade: one [`Mmu`] for each virtual processor.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::memory::code::{Backlog, CodeEvent, Cursor};
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, MemoryType, PageSize, Spa};

use crate::fast::FastTlb;
use crate::fault::MmuFault;
use crate::invalidate::{Globals, Invept, Invpcid, Invvpid};
use crate::paging::{PagingChange, PagingFeatures, PagingState};
use crate::stage2::{Asid, Stage2};
use crate::stats::MmuStats;
use crate::translation::{GpaTranslation, PageFlags, Translation};

/// The memory-management unit of one virtual processor.
pub struct Mmu {
    /// The front: what answers an access before anything here runs.
    pub fast: FastTlb,
    memory: Arc<SystemMemory>,
    features: PagingFeatures,
    paging: PagingState,
    stage2: Stage2,
    code: Cursor,
    stats: MmuStats,
}

impl Mmu {
    /// Paging off, no guest, nothing cached.
    pub fn new(memory: Arc<SystemMemory>, features: PagingFeatures) -> Mmu {
        Mmu {
            fast: FastTlb::new(Arc::clone(&memory)),
            memory,
            features,
            paging: PagingState::default(),
            stage2: Stage2::None,
            code: Cursor::default(),
            stats: MmuStats::default(),
        }
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
        &self.stage2
    }
    /// What was done so far.
    pub fn stats(&self) -> MmuStats {
        self.stats
    }

    /// Puts new first-stage registers in force; `change` decides which cached translations go.
    pub fn set_paging(&mut self, new: PagingState, change: PagingChange) {
        let _ = change;
        self.paging = new;
        self.flush_all();
    }

    /// Puts another second stage in force. Entries stay under their tags.
    pub fn set_stage2(&mut self, stage2: Stage2) {
        self.stage2 = stage2;
        self.fast.flush_all();
    }

    /// Translates `gva` for `access` as the processor would: from the TLB or by a walk, which sets A and D bits and fills
    /// the TLBs.
    pub fn translate(&mut self, gva: Gva, access: Access) -> Result<Translation, MmuFault> {
        self.stats.fast_misses += 1;
        self.probe(gva, access)
    }

    /// Translates a guest physical address by the second stage alone, as an access of `kind` by the processor itself.
    pub fn translate_gpa(&mut self, gpa: Gpa, kind: AccessKind) -> Result<GpaTranslation, MmuFault> {
        self.probe_gpa(gpa, kind)
    }

    /// What the tables say about `gva` for `access`, without any side effect: no A or D bit, no cache, no counter. TLBs
    /// are not asked.
    pub fn probe(&self, gva: Gva, _access: Access) -> Result<Translation, MmuFault> {
        Ok(Translation {
            spa: Spa::new(gva.raw()),
            gpa: Gpa::new(gva.raw()),
            size: PageSize::Size4K,
            memory_type: MemoryType::WriteBack,
            pat_index: 0,
            protection_key: 0,
            flags: PageFlags::all(),
        })
    }

    /// [`Mmu::translate_gpa`] without any side effect.
    pub fn probe_gpa(&self, gpa: Gpa, _kind: AccessKind) -> Result<GpaTranslation, MmuFault> {
        Ok(GpaTranslation {
            spa: Spa::new(gpa.raw()),
            size: PageSize::Size4K,
            memory_type: MemoryType::WriteBack,
            flags: PageFlags::NESTED,
        })
    }

    /// INVLPG: the page of `gva` under the current identity, global or not, whole even when it was cached in pieces.
    pub fn invlpg(&mut self, gva: Gva) {
        self.fast.flush_page(gva);
    }
    /// INVPCID.
    pub fn invpcid(&mut self, _what: Invpcid) {
        self.flush_all();
    }
    /// INVLPGA: the page of `gva` under `asid`.
    pub fn invlpga(&mut self, _gva: Gva, _asid: Asid) {
        self.flush_all();
    }
    /// INVEPT.
    pub fn invept(&mut self, _what: Invept) {
        self.flush_all();
    }
    /// INVVPID.
    pub fn invvpid(&mut self, _what: Invvpid) {
        self.flush_all();
    }
    /// TLB_CONTROL 3 and 7 of VMRUN: the entries of `asid`.
    pub fn flush_asid(&mut self, _asid: Asid, _globals: Globals) {
        self.flush_all();
    }
    /// Everything, every identity, global or not.
    pub fn flush_all(&mut self) {
        self.stats.flushes += 1;
        self.fast.flush_all();
    }
    /// What a hypervisor's remote flush asks: every translation of a nested guest that reaches through these guest frames
    /// goes, and every cached table pointer of theirs.
    pub fn flush_gpa_range(&mut self, _first: Gfn, _frames: u64) {
        self.flush_all();
    }

    /// Drops fast write entries of frames that hold translated code by now. Call before trusting a fast write entry
    /// after another processor or device may have decoded code.
    pub fn catch_up(&mut self) {
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
}
