//! The second stage as memory: a guest's tables and pages reached through NPT, EPT or nothing.
//!
//! APM vol. 2, "Nested Paging"; Intel SDM vol. 3, "The Extended Page Table Mechanism (EPT)". [`Bare`] and [`Nested`] are
//! the two implementations of [`GuestMemory`]; a guest walk does not know which it has. A nested walk that succeeds sets
//! A and D of its own tables at once, whatever becomes of the guest's walk afterwards, as the processor does.

use emu_core::memory::SystemMemory;
use emu_core::sev::CBit;
use emu_core::{AccessKind, Gpa, Gva, MemoryType, PageSize, Spa};

use crate::fault::{MmuFault, NestedFaultKind, NestedPageFault, Stage2Cause, Stage2Rights};
use crate::format::{Grants, NestedFormat};
use crate::level::Level;
use crate::pml::ModificationLog;
use crate::rights::{LinearMode, needed};
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

/// A guest's physical memory.
pub(crate) trait GuestMemory: TableMemory<Address = Gpa> {
    /// Whether it is reached through nested tables.
    const NESTED: bool;
    /// Translates the final address of an access.
    fn reach(&mut self, gpa: Gpa, kind: AccessKind, mode: LinearMode) -> Result<Reached, MmuFault>;
}

/// No second stage: the numbers are the same.
pub(crate) struct Bare<'a> {
    pub(crate) memory: &'a SystemMemory,
    pub(crate) stats: &'a mut MmuStats,
}

impl TableMemory for Bare<'_> {
    type Address = Gpa;

    #[inline(always)]
    fn locate(&mut self, slot: Gpa, _level: Level) -> Result<Spa, MmuFault> {
        Ok(Spa::new(slot.raw()))
    }
    #[inline(always)]
    fn locate_update(&mut self, _slot: Gpa, _level: Level, found: Spa) -> Result<Spa, MmuFault> {
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

impl GuestMemory for Bare<'_> {
    const NESTED: bool = false;

    #[inline(always)]
    fn reach(&mut self, gpa: Gpa, _kind: AccessKind, _mode: LinearMode) -> Result<Reached, MmuFault> {
        Ok(Reached {
            spa: Spa::new(gpa.raw()),
            size: PageSize::Size1G,
            memory_type: MemoryType::WriteBack,
            flags: PageFlags::NESTED,
        })
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
}

impl Question {
    fn refuse(self, kind: NestedFaultKind, rights: Stage2Rights) -> MmuFault {
        let Question { gpa, kind: access, cause, gva, .. } = self;
        MmuFault::Nested(NestedPageFault { gpa, gva, access, cause, kind, rights, c_bit: CBit::Clear })
    }
}

/// Nested tables of format `F`.
pub(crate) struct Nested<'a, F> {
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
}

impl<F: NestedFormat> Nested<'_, F> {
    /// How the processor accesses a guest table entry in order to read it.
    fn table_read(&self) -> AccessKind {
        if self.format.table_reads_are_writes() { AccessKind::Write } else { AccessKind::Read }
    }

    fn flags(&self, rights: Stage2Rights, mode: LinearMode, dirty: bool) -> PageFlags {
        let mut flags = PageFlags::empty();
        let allows = |kind| rights.contains(needed(kind, mode, self.format.mode_based_execute()));
        flags.set(PageFlags::NESTED_READ, allows(AccessKind::Read));
        flags.set(PageFlags::NESTED_WRITE, allows(AccessKind::Write));
        flags.set(PageFlags::NESTED_EXECUTE, allows(AccessKind::Execute));
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

impl<F: NestedFormat> TableMemory for Nested<'_, F> {
    type Address = Gpa;

    #[inline]
    fn locate(&mut self, slot: Gpa, level: Level) -> Result<Spa, MmuFault> {
        let cause = Stage2Cause::GuestTableEntry { level };
        let kind = self.table_read();
        self.ask(Question { gpa: slot, kind, mode: LinearMode::Supervisor, cause, gva: self.gva })
            .map(|reached| reached.spa)
    }
    #[inline]
    fn locate_update(&mut self, slot: Gpa, level: Level, found: Spa) -> Result<Spa, MmuFault> {
        if self.format.table_reads_are_writes() {
            return Ok(found);
        }
        let cause = Stage2Cause::GuestTableUpdate { level };
        let question =
            Question { gpa: slot, kind: AccessKind::Write, mode: LinearMode::Supervisor, cause, gva: self.gva };
        self.ask(question).map(|reached| reached.spa)
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

impl<F: NestedFormat> GuestMemory for Nested<'_, F> {
    const NESTED: bool = true;

    #[inline]
    fn reach(&mut self, gpa: Gpa, kind: AccessKind, mode: LinearMode) -> Result<Reached, MmuFault> {
        self.ask(Question { gpa, kind, mode, cause: Stage2Cause::FinalAddress, gva: self.gva })
    }
}
