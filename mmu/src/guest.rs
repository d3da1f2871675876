//! A guest's tables as its hypervisor reads them: the walk of the processor, made by software over memory that the caller
//! finds (`arch/x86/kvm/mmu/paging_tmpl.h`, `FNAME(walk_addr)`).
//!
//! [`GuestPaging`] is the door: the guest's registers, prepared. [`GuestPaging::walk`] gives every entry on the way with
//! the rights folded so far, or the page fault the guest is owed; [`GuestPaging::entry`] reads one entry. The walker, the
//! formats and the judgement are those of [`crate::Mmu`].
//!
//! Always true: A and D are set only by a walk that succeeds, by compare-exchange on the entry that was judged.

use bitflags::bitflags;
use emu_core::memory::{BusError, SystemMemory};
use emu_core::{Access, AccessKind, Gpa, Gva, PageFaultCode, Spa};

use crate::context::{Context, SnpMode, Tables};
use crate::fault::MmuFault;
use crate::format::{Entry, Format, Grants, Legacy, Long, Pae, bits};
use crate::level::Level;
use crate::paging::{PagingFeatures, PagingState};
use crate::stage2::Stage2;
use crate::stats::MmuStats;
use crate::tlb::SpaceId;
use crate::translation::PageFlags;
use crate::walk::{Marked, Stop, TableMemory, Walk, mark, walk};
use crate::walk_cache::TablePointer;

bitflags! {
    /// What entries of a guest's tables allow; reading always.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct GuestRights: u8 {
        /// R/W.
        const WRITE = 1 << 0;
        /// U/S.
        const USER = 1 << 1;
        /// No NX in force.
        const EXECUTE = 1 << 2;
    }
}

impl GuestRights {
    fn of(grants: Grants) -> GuestRights {
        let mut rights = GuestRights::empty();
        rights.set(GuestRights::WRITE, grants.contains(Grants::WRITE));
        rights.set(GuestRights::USER, grants.contains(Grants::USER));
        rights.set(GuestRights::EXECUTE, grants.contains(Grants::EXECUTE));
        rights
    }
}

/// Where a guest's tables lie.
pub trait GuestTables {
    /// Where the entry at `slot` lies; `None` where no memory is.
    fn locate(&mut self, slot: Gpa) -> Option<Spa>;
    /// Whether A and D can be stored in the entry at `slot`.
    fn is_writable(&mut self, slot: Gpa) -> bool;
    /// Told what a walk does, as it does it.
    fn note(&mut self, _what: WalkNote) {}
}

/// What a walk made by software does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkNote {
    /// It has read an entry.
    Entry {
        /// Level of the table it stands in.
        level: Level,
        /// Its value.
        raw: u64,
    },
    /// It has set A, which was clear.
    Accessed {
        /// Where the entry stands.
        slot: Gpa,
    },
    /// It has set D, which was clear.
    Dirtied {
        /// Where the entry stands.
        slot: Gpa,
    },
}

/// One entry on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestStep {
    /// Level of the table it stands in.
    pub level: Level,
    /// Its guest physical address.
    pub slot: Gpa,
    /// Where that is.
    pub spa: Spa,
    /// Its value, with the A and D bits the walk has set.
    pub raw: u64,
    /// What this entry and those above it allow together.
    pub rights: GuestRights,
}

/// A walk that reached a page which allows the access.
#[derive(Clone, Copy, Debug)]
pub struct GuestWalk {
    steps: [Option<GuestStep>; Level::MAX],
    /// The address.
    pub gpa: Gpa,
    /// Level of the leaf.
    pub level: Level,
    /// log2 of the bytes of the guest's page.
    pub page_shift: u8,
    /// What all entries allow together.
    pub rights: GuestRights,
    /// Whether D of the leaf is set.
    pub dirty: bool,
}

impl GuestWalk {
    /// The entries, from the top; the last is the leaf.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &GuestStep> {
        self.steps.iter().flatten()
    }
}

/// Why a walk reached nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestWalkError {
    /// The guest is owed a page fault with this error code.
    Fault(PageFaultCode),
    /// The address is not canonical.
    NonCanonical,
    /// A table lies where no memory is.
    NoTable {
        /// Its address.
        gpa: Gpa,
    },
}

/// An entry, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEntry {
    /// Nothing is mapped.
    NotPresent,
    /// A reserved bit is set.
    Reserved,
    /// A table of the level below.
    Table(Gpa),
    /// A page.
    Leaf {
        /// Its first address.
        page: Gpa,
        /// What the entry allows.
        rights: GuestRights,
        /// Its A bit.
        accessed: bool,
        /// Its D bit.
        dirty: bool,
    },
}

/// The registers that govern a guest's first stage, prepared for walks.
pub struct GuestPaging {
    context: Context,
    state: PagingState,
}

/// Guest tables reached through the caller.
struct Software<'a> {
    memory: &'a SystemMemory,
    tables: &'a mut dyn GuestTables,
    uncounted: MmuStats,
    missing: Option<Gpa>,
}

/// An address at which no memory answers: a store to it is dropped, as ROM drops it.
const NOWHERE: Spa = Spa::new(!0xfff);

impl TableMemory for Software<'_> {
    type Address = Gpa;

    fn locate(&mut self, slot: Gpa, _level: Level) -> Result<Spa, MmuFault> {
        self.tables.locate(slot).ok_or_else(|| {
            self.missing = Some(slot);
            MmuFault::Bus(BusError { spa: NOWHERE, len_bytes: 8 })
        })
    }
    fn locate_update(&mut self, slot: Gpa, _level: Level, found: Spa) -> Result<Spa, MmuFault> {
        Ok(if self.tables.is_writable(slot) { found } else { NOWHERE })
    }
    fn note_entry(&mut self, level: Level, raw: u64) {
        self.tables.note(WalkNote::Entry { level, raw });
    }
    fn note_accessed(&mut self, slot: Gpa) {
        self.tables.note(WalkNote::Accessed { slot });
    }
    fn note_dirtied(&mut self, slot: Gpa) -> Result<(), MmuFault> {
        self.tables.note(WalkNote::Dirtied { slot });
        Ok(())
    }
    fn system(&self) -> &SystemMemory {
        self.memory
    }
    fn stats(&mut self) -> &mut MmuStats {
        &mut self.uncounted
    }
}

impl GuestPaging {
    /// Prepares `state` on a processor with `features`.
    pub fn new(features: &PagingFeatures, state: &PagingState) -> GuestPaging {
        let context = Context::new(features, state, &Stage2::None, SpaceId::HOST, SnpMode::Off);
        GuestPaging { context, state: *state }
    }

    /// The registers.
    pub const fn state(&self) -> &PagingState {
        &self.state
    }

    /// Walks for `access`; sets A and D when it is allowed.
    pub fn walk(
        &self,
        memory: &SystemMemory,
        tables: &mut dyn GuestTables,
        gva: Gva,
        access: Access,
    ) -> Result<GuestWalk, GuestWalkError> {
        let gva = self.context.linear(gva);
        let mut software = Software { memory, tables, uncounted: MmuStats::default(), missing: None };
        let root = |level, mask| TablePointer {
            level,
            table: Gpa::new(self.context.cr3 & mask),
            spa: None,
            grants: Grants::all(),
        };
        match &self.context.tables {
            Tables::Off => Ok(GuestWalk {
                steps: [None; Level::MAX],
                gpa: Gpa::new(gva.raw()),
                level: Level::PDPT,
                page_shift: 30,
                rights: GuestRights::all(),
                dirty: true,
            }),
            Tables::Legacy(format) => self.walk_in(format, &mut software, root(Level::PD, 0xffff_f000), gva, access),
            Tables::Pae(format) => {
                let root = match self.context.pdptes {
                    None => root(Level::PDPT, 0xffff_ffe0),
                    Some(pdptes) => match self.context.directory_of(format, pdptes, gva, access) {
                        Ok(directory) => directory,
                        Err(fault) => return Err(refused(fault, &software)),
                    },
                };
                self.walk_in(format, &mut software, root, gva, access)
            }
            Tables::Long(format, top) => {
                let shift = 64 - Long::shift(*top) - Long::INDEX_BITS;
                if (gva.raw() << shift) as i64 >> shift != gva.raw() as i64 {
                    return Err(GuestWalkError::NonCanonical);
                }
                self.walk_in(format, &mut software, root(*top, bits::ADDRESS), gva, access)
            }
        }
    }

    fn walk_in<F: Format>(
        &self,
        format: &F,
        memory: &mut Software<'_>,
        root: TablePointer<Gpa>,
        gva: Gva,
        access: Access,
    ) -> Result<GuestWalk, GuestWalkError> {
        let rules = &self.context.rules;
        let code = rules.access_code(access);
        let write = access.kind == AccessKind::Write;
        loop {
            let mut way = Walk::from(root);
            match walk(format, memory, &mut way, root, gva.raw()) {
                Ok(()) => {}
                Err(Stop::NotPresent(_)) => return Err(GuestWalkError::Fault(code)),
                Err(Stop::Reserved(_)) => {
                    return Err(GuestWalkError::Fault(code | PageFaultCode::P | PageFaultCode::RSVD));
                }
                Err(Stop::Table(fault)) => return Err(refused(fault, memory)),
            }
            let leaf = *way.leaf();
            let attributes = format.leaf_attributes(leaf.raw, way.level);
            let flags = PageFlags::of_grants(leaf.grants);
            rules.check(flags, attributes.protection_key, access).map_err(GuestWalkError::Fault)?;
            match mark(format, memory, &way, write) {
                Ok(Marked::Done) => {}
                Ok(Marked::Raced) => continue,
                Err(fault) => return Err(refused(fault, memory)),
            }
            let mut steps = [None; Level::MAX];
            for ((level, step), kept) in way.steps().zip(&mut steps) {
                let dirty = if write && level == way.level { format.dirty() } else { 0 };
                *kept = Some(GuestStep {
                    level,
                    slot: step.slot,
                    spa: step.spa,
                    raw: step.raw | format.accessed(level) | dirty,
                    rights: GuestRights::of(step.grants),
                });
            }
            let page_shift = F::shift(way.level);
            return Ok(GuestWalk {
                steps,
                gpa: Gpa::new(format.page(leaf.raw, way.level) | gva.raw() & ((1 << page_shift) - 1)),
                level: way.level,
                page_shift: page_shift as u8,
                rights: GuestRights::of(leaf.grants),
                dirty: write || leaf.raw & format.dirty() != 0,
            });
        }
    }

    /// What `raw` means in a table of `level`.
    pub fn entry(&self, raw: u64, level: Level) -> GuestEntry {
        fn read<F: Format>(format: &F, raw: u64, level: Level) -> GuestEntry {
            match format.classify(raw, level) {
                Entry::NotPresent => GuestEntry::NotPresent,
                Entry::Reserved => GuestEntry::Reserved,
                Entry::Table => GuestEntry::Table(Gpa::new(format.table(raw))),
                Entry::Leaf => GuestEntry::Leaf {
                    page: Gpa::new(format.page(raw, level)),
                    rights: GuestRights::of(format.grants(raw, level)),
                    accessed: raw & format.accessed(level) != 0,
                    dirty: raw & format.dirty() != 0,
                },
            }
        }
        match &self.context.tables {
            Tables::Off => GuestEntry::NotPresent,
            Tables::Legacy(format) => read::<Legacy>(format, raw, level),
            Tables::Pae(format) => read::<Pae>(format, raw, level),
            Tables::Long(format, _) => read::<Long>(format, raw, level),
        }
    }
}

fn refused(fault: MmuFault, memory: &Software<'_>) -> GuestWalkError {
    match fault {
        MmuFault::Guest { code, .. } => GuestWalkError::Fault(code),
        MmuFault::NonCanonical { .. } => GuestWalkError::NonCanonical,
        MmuFault::Nested(_) | MmuFault::NotValidated { .. } | MmuFault::LogFull | MmuFault::Bus(_) => {
            GuestWalkError::NoTable { gpa: memory.missing.unwrap_or(Gpa::new(0)) }
        }
    }
}
