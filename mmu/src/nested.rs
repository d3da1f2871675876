//! The second stage as memory: a guest's tables and pages reached through NPT, EPT or nothing.
//!
//! APM vol. 2, "Nested Paging"; Intel SDM vol. 3, "The Extended Page Table Mechanism (EPT)". [`Bare`] and [`Nested`] are
//! the two implementations of [`GuestMemory`]; a guest walk does not know which it has. A nested walk that succeeds sets
//! A and D of its own tables at once, whatever becomes of the guest's walk afterwards, as the processor does.

use emu_core::memory::SystemMemory;
use emu_core::sev::CBit;
use emu_core::{Access, AccessKind, Gpa, Gva, MemoryType, PageFaultCode, PageSize, Spa};

use crate::fault::{MmuFault, NestedFaultKind, NestedPageFault, Stage2Cause, Stage2Rights};
use crate::format::{Grants, NestedFormat};
use crate::level::Level;
use crate::pml::ModificationLog;
use crate::protect::{Place, Protection};
use crate::rights::{LinearMode, needed};
use crate::rmp::RmpRefusal;
use crate::stats::MmuStats;
use crate::tlb::{Space, Tlb, TlbEntry};
use crate::translation::PageFlags;
use crate::walk::{Marked, Stop, TableMemory, Walk, mark, walk};
use crate::walk_cache::{TablePointer, WalkCache};

/// Whether translating leaves traces: A and D bits, cache entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effects {
    Live,
    Dry,
}

/// Where a guest physical address lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) spa: Spa,
    pub(crate) size: PageSize,
    pub(crate) memory_type: MemoryType,
    /// Members of [`PageFlags::NESTED`].
    pub(crate) flags: PageFlags,
}

/// What the final address is wanted for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) access: Access,
    /// U/S of the linear address.
    pub(crate) mode: LinearMode,
    /// C-bit of the guest's leaf.
    pub(crate) c_bit: CBit,
    /// Size of the guest's page.
    pub(crate) page: PageSize,
    pub(crate) judge: Judge,
}

/// Who asks the RMP about the final address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judge {
    /// The walk, as for an access.
    Walk,
    /// An instruction about the page's entry, by rules of its own. The access is private.
    Instruction,
}

/// A guest's physical memory.
pub(crate) trait GuestMemory: TableMemory<Address = Gpa> {
    /// Whether it is reached through nested tables.
    const NESTED: bool;
    /// Translates the final address of an access.
    fn reach(&mut self, gpa: Gpa, wanted: Wanted) -> Result<Reached, MmuFault>;
    /// Whether data of a page whose leaf has this C-bit is private.
    fn encrypts(&self, c_bit: CBit) -> bool;
}

/// No second stage: the numbers are the same.
pub(crate) struct Bare<'a, P> {
    pub(crate) memory: &'a SystemMemory,
    pub(crate) stats: &'a mut MmuStats,
    pub(crate) protection: P,
    /// The linear address being translated, for the fault.
    pub(crate) gva: Option<Gva>,
}

impl<P> Bare<'_, P> {
    /// Without a second stage the RMP's refusal is a page fault.
    fn refuse(&self, gpa: Gpa, code: PageFaultCode) -> MmuFault {
        let code = code | PageFaultCode::P | PageFaultCode::W | PageFaultCode::RMP;
        MmuFault::Guest { gva: self.gva.unwrap_or(Gva::new(gpa.raw())), code }
    }
}

impl<P: Protection> TableMemory for Bare<'_, P> {
    type Address = Gpa;

    #[inline(always)]
    fn locate(&mut self, slot: Gpa, _level: Level) -> Result<Spa, MmuFault> {
        let spa = Spa::new(slot.raw());
        self.protection.claim_table(spa);
        Ok(spa)
    }
    #[inline(always)]
    fn locate_update(&mut self, slot: Gpa, _level: Level, found: Spa) -> Result<Spa, MmuFault> {
        let place = Place { spa: found, gpa: slot, mapped: PageSize::Size4K };
        // The processor's own access: a supervisor's.
        let judged = self.protection.judge_table(place, AccessKind::Write);
        judged.map_err(|_| self.refuse(slot, PageFaultCode::empty()))?;
        Ok(found)
    }
    #[inline(always)]
    fn system(&self) -> &SystemMemory {
        self.memory
    }
    #[inline(always)]
    fn stats(&mut self) -> &mut MmuStats {
        self.stats
    }
}

impl<P: Protection> GuestMemory for Bare<'_, P> {
    const NESTED: bool = false;

    #[inline(always)]
    fn reach(&mut self, gpa: Gpa, wanted: Wanted) -> Result<Reached, MmuFault> {
        let spa = Spa::new(gpa.raw());
        let place = Place { spa, gpa, mapped: wanted.page };
        let judged = self.protection.judge(place, wanted.access, wanted.c_bit);
        let verdict = judged.map_err(|_| {
            let user = if wanted.access.privilege.is_user() { PageFaultCode::U } else { PageFaultCode::empty() };
            self.refuse(gpa, user)
        })?;
        Ok(Reached { spa, size: verdict.size, memory_type: MemoryType::WriteBack, flags: verdict.allows })
    }
    #[inline(always)]
    fn encrypts(&self, c_bit: CBit) -> bool {
        self.protection.encrypts(c_bit)
    }
}

/// Nested tables lie in system memory as they are.
struct Physical<'a> {
    memory: &'a SystemMemory,
    stats: &'a mut MmuStats,
    /// Where pages whose D bit is set are logged, if they are.
    log: Option<&'a mut ModificationLog>,
    /// The guest physical address that is being translated.
    gpa: Gpa,
}

impl TableMemory for Physical<'_> {
    type Address = Spa;

    #[inline(always)]
    fn locate(&mut self, slot: Spa, _level: Level) -> Result<Spa, MmuFault> {
        Ok(slot)
    }
    #[inline(always)]
    fn locate_update(&mut self, _slot: Spa, _level: Level, found: Spa) -> Result<Spa, MmuFault> {
        Ok(found)
    }
    #[inline]
    fn before_update(&mut self) -> Result<(), MmuFault> {
        match &self.log {
            Some(log) if log.is_full() => Err(MmuFault::LogFull),
            _ => Ok(()),
        }
    }
    #[inline]
    fn note_dirtied(&mut self, _slot: Spa) -> Result<(), MmuFault> {
        match &mut self.log {
            Some(log) => log.note(self.memory, self.gpa).map_err(MmuFault::Bus),
            None => Ok(()),
        }
    }
    #[inline(always)]
    fn system(&self) -> &SystemMemory {
        self.memory
    }
    #[inline(always)]
    fn stats(&mut self) -> &mut MmuStats {
        self.stats
    }
}

/// What a nested walk is asked.
#[derive(Clone, Copy)]
struct Question {
    gpa: Gpa,
    kind: AccessKind,
    mode: LinearMode,
    cause: Stage2Cause,
    gva: Option<Gva>,
    /// The effective one.
    c_bit: CBit,
}

impl Question {
    fn refuse(self, kind: NestedFaultKind, rights: Stage2Rights) -> MmuFault {
        let Question { gpa, kind: access, cause, gva, c_bit, .. } = self;
        MmuFault::Nested(NestedPageFault { gpa, gva, access, cause, kind, rights, c_bit })
    }

    /// The RMP refuses what was `reached`.
    #[cold]
    fn refuse_page(self, refusal: RmpRefusal, reached: &Reached) -> MmuFault {
        match refusal {
            RmpRefusal::Rmp(cause) => self.refuse(NestedFaultKind::Rmp(cause), reached.flags.nested_rights()),
            // Without a linear address paging is off, and the numbers are the same.
            RmpRefusal::NotValidated => MmuFault::NotValidated { gva: self.gva.unwrap_or(Gva::new(self.gpa.raw())) },
        }
    }
}

/// Nested tables of format `F`.
pub(crate) struct Nested<'a, F, P> {
    pub(crate) memory: &'a SystemMemory,
    pub(crate) stats: &'a mut MmuStats,
    pub(crate) format: F,
    pub(crate) root: Spa,
    pub(crate) top: Level,
    /// Tag of what is cached.
    pub(crate) space: Space,
    /// Finished nested walks; absent in dry runs and when switched off.
    pub(crate) tlb: Option<&'a mut Tlb>,
    /// Nested table pointers; likewise.
    pub(crate) walk_cache: Option<&'a mut WalkCache<Spa>>,
    pub(crate) effects: Effects,
    /// Page-modification logging, if it is on.
    pub(crate) log: Option<&'a mut ModificationLog>,
    /// The linear address being translated, for the fault.
    pub(crate) gva: Option<Gva>,
    /// What judges pages that the tables allow.
    pub(crate) protection: P,
}

impl<F: NestedFormat, P: Protection> Nested<'_, F, P> {
    /// How the processor accesses a guest table entry in order to read it.
    fn table_read(&self) -> AccessKind {
        if self.format.table_reads_are_writes() { AccessKind::Write } else { AccessKind::Read }
    }

    fn flags(&self, rights: Stage2Rights, mode: LinearMode, dirty: bool) -> PageFlags {
        let mut flags = PageFlags::empty();
        let allows = |kind| rights.contains(needed(kind, mode, self.format.mode_based_execute()));
        flags.set(PageFlags::NESTED_READ, allows(AccessKind::Read));
        flags.set(PageFlags::NESTED_WRITE, allows(AccessKind::Write));
        flags.set(PageFlags::NESTED_EXECUTE | PageFlags::NESTED_EXECUTE_USER, allows(AccessKind::Execute));
        flags.set(PageFlags::NESTED_DIRTY, dirty);
        flags
    }

    #[inline]
    fn ask(&mut self, question: Question) -> Result<Reached, MmuFault> {
        let Question { gpa, kind, mode, .. } = question;
        if let Some(tlb) = &self.tlb
            && let Some(entry) = tlb.lookup(gpa.raw(), self.space)
        {
            let dirty = entry.flags.contains(PageFlags::NESTED_DIRTY);
            let allowed = entry.rights.contains(needed(kind, mode, self.format.mode_based_execute()));
            if allowed && (dirty || kind != AccessKind::Write) {
                return Ok(Reached {
                    spa: Spa::new(entry.spa | gpa.offset_in(entry.size)),
                    size: entry.size,
                    memory_type: entry.memory_type,
                    flags: self.flags(entry.rights, mode, dirty),
                });
            }
        }
        self.walk(question)
    }

    fn walk(&mut self, question: Question) -> Result<Reached, MmuFault> {
        let Question { gpa, kind, mode, .. } = question;
        if gpa.raw() >> F::shift(self.top) >> F::INDEX_BITS != 0 {
            let kind = NestedFaultKind::NotPresent { level: self.top };
            return Err(question.refuse(kind, Stage2Rights::empty()));
        }
        self.stats.nested_walks += 1;
        loop {
            let root = TablePointer { level: self.top, table: self.root, spa: None, grants: Grants::all() };
            let known = self.walk_cache.as_ref().and_then(|cache| cache.lookup(gpa.raw(), self.space, F::shift));
            let log = self.log.as_deref_mut();
            let mut physical = Physical { memory: self.memory, stats: self.stats, log, gpa };
            let start = known.unwrap_or(root);
            let mut way = Walk::from(start);
            match walk(&self.format, &mut physical, &mut way, start, gpa.raw()) {
                Ok(()) => {}
                Err(Stop::NotPresent(level)) => {
                    let kind = NestedFaultKind::NotPresent { level };
                    return Err(question.refuse(kind, Stage2Rights::empty()));
                }
                Err(Stop::Reserved(level)) => {
                    let kind = if self.format.reserved_is_misconfigured() {
                        NestedFaultKind::Misconfigured { level }
                    } else {
                        NestedFaultKind::Reserved { level }
                    };
                    return Err(question.refuse(kind, Stage2Rights::empty()));
                }
                Err(Stop::Table(fault)) => return Err(fault),
            }
            let leaf = *way.leaf();
            let rights = self.format.rights(leaf.grants);
            if !rights.contains(needed(kind, mode, self.format.mode_based_execute())) {
                return Err(question.refuse(NestedFaultKind::Permission, rights));
            }
            let write = kind == AccessKind::Write;
            if self.effects == Effects::Live && mark(&self.format, &mut physical, &way, write)? == Marked::Raced {
                continue;
            }
            let dirty = write || self.format.dirty() == 0 || leaf.raw & self.format.dirty() != 0;
            let size = match way.level {
                Level::PT => PageSize::Size4K,
                Level::PD => PageSize::Size2M,
                _ => PageSize::Size1G,
            };
            let page = self.format.page(leaf.raw, way.level);
            let reached = Reached {
                spa: Spa::new(page | gpa.offset_in(size)),
                size,
                memory_type: self.format.memory_type(leaf.raw),
                flags: self.flags(rights, mode, dirty),
            };
            if let Some(cache) = &mut self.walk_cache {
                for (level, from, to) in way.tables() {
                    let table = to.spa.align_down(PageSize::Size4K);
                    let pointer = TablePointer { level, table, spa: None, grants: from.grants };
                    cache.fill(gpa.raw(), self.space, pointer, F::shift);
                }
            }
            // A 4 KiB page of data goes to the TLB of linear addresses; here it would only displace guest tables.
            let worth_keeping = size != PageSize::Size4K || question.cause != Stage2Cause::FinalAddress;
            if let Some(tlb) = &mut self.tlb
                && worth_keeping
            {
                tlb.fill(TlbEntry {
                    space: self.space,
                    base: gpa.align_down(size).raw(),
                    gpa: gpa.align_down(size).raw(),
                    spa: page,
                    flags: reached.flags,
                    page_shift: size.shift() as u8,
                    pat_index: 0,
                    protection_key: 0,
                    memory_type: reached.memory_type,
                    size,
                    rights,
                });
            }
            return Ok(reached);
        }
    }
}

impl<F: NestedFormat, P: Protection> Nested<'_, F, P> {
    /// How an entry of the guest's table at `level` is asked for. Accesses to tables are private.
    fn about_table(&self, slot: Gpa, kind: AccessKind, cause: Stage2Cause) -> Question {
        // What an instruction fetch is to the C-bit, a walk is too.
        let c_bit = self.protection.effective(CBit::Set, kind);
        Question { gpa: slot, kind, mode: LinearMode::Supervisor, cause, gva: self.gva, c_bit }
    }

    /// Translates the address of an entry and judges the page it is in. `kind` is what is done to the entry itself.
    #[inline]
    fn ask_table(&mut self, question: Question, kind: AccessKind) -> Result<Spa, MmuFault> {
        let reached = self.ask(question)?;
        let place = Place { spa: reached.spa, gpa: question.gpa, mapped: reached.size };
        match self.protection.judge_table(place, kind) {
            Ok(()) => {
                self.protection.claim_table(reached.spa);
                Ok(reached.spa)
            }
            Err(refusal) => Err(question.refuse_page(refusal, &reached)),
        }
    }
}

impl<F: NestedFormat, P: Protection> TableMemory for Nested<'_, F, P> {
    type Address = Gpa;

    #[inline]
    fn locate(&mut self, slot: Gpa, level: Level) -> Result<Spa, MmuFault> {
        let question = self.about_table(slot, self.table_read(), Stage2Cause::GuestTableEntry { level });
        self.ask_table(question, AccessKind::Read)
    }
    #[inline]
    fn locate_update(&mut self, slot: Gpa, level: Level, found: Spa) -> Result<Spa, MmuFault> {
        let cause = if self.format.table_reads_are_writes() {
            if !P::JUDGES {
                return Ok(found);
            }
            Stage2Cause::GuestTableEntry { level }
        } else {
            Stage2Cause::GuestTableUpdate { level }
        };
        let question = self.about_table(slot, AccessKind::Write, cause);
        self.ask_table(question, AccessKind::Write)
    }
    #[inline]
    fn system(&self) -> &SystemMemory {
        self.memory
    }
    #[inline]
    fn stats(&mut self) -> &mut MmuStats {
        self.stats
    }
}

impl<F: NestedFormat, P: Protection> GuestMemory for Nested<'_, F, P> {
    const NESTED: bool = true;

    #[inline]
    fn reach(&mut self, gpa: Gpa, wanted: Wanted) -> Result<Reached, MmuFault> {
        let Wanted { access, mode, c_bit, judge, .. } = wanted;
        let cause = Stage2Cause::FinalAddress;
        let effective = match judge {
            Judge::Walk => self.protection.effective(c_bit, access.kind),
            Judge::Instruction => self.protection.effective(CBit::Set, access.kind),
        };
        let question = Question { gpa, kind: access.kind, mode, cause, gva: self.gva, c_bit: effective };
        let mut reached = self.ask(question)?;
        if judge == Judge::Instruction {
            return Ok(reached);
        }
        let place = Place { spa: reached.spa, gpa, mapped: reached.size };
        match self.protection.judge(place, access, c_bit) {
            Ok(verdict) => {
                reached.size = reached.size.min(verdict.size);
                reached.flags &= verdict.allows;
                Ok(reached)
            }
            Err(refusal) => Err(question.refuse_page(refusal, &reached)),
        }
    }
    #[inline]
    fn encrypts(&self, c_bit: CBit) -> bool {
        self.protection.encrypts(c_bit)
    }
}
