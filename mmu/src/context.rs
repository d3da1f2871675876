//! The registers in force, prepared for translating: formats with their reserved bits, roots, tags. Made anew when a
//! register changes, so that a miss computes none of it.

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr4, Efer};
use emu_core::{Access, AccessKind, Gpa, Gva, PageFaultCode, PageSize, Spa};

use crate::fault::MmuFault;
use crate::format::{Entry, EptFormat, Format, Grants, Legacy, Long, NestedFormat, Pae, bits};
use crate::level::Level;
use crate::nested::{Bare, Effects, GuestMemory, Nested, Reached};
use crate::paging::{PagingFeatures, PagingMode, PagingState};
use crate::pml::ModificationLog;
use crate::rights::{LinearMode, Rules};
use crate::stage1::{self, Outcome, Request};
use crate::stage2::{NestedNx, Stage2};
use crate::stats::MmuStats;
use crate::tlb::{Space, SpaceId, Tlb};
use crate::walk_cache::{TablePointer, WalkCache};

/// The guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    Off,
    Legacy(Legacy),
    Pae(Pae),
    /// With the top level.
    Long(Long, Level),
}

/// The nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nesting {
    None,
    Npt(Long, Tree),
    Ept(EptFormat, Tree),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tree {
    root: Spa,
    top: Level,
}

/// See the module.
pub(crate) struct Context {
    pub(crate) tables: Tables,
    nesting: Nesting,
    pub(crate) rules: Rules,
    pub(crate) cr3: u64,
    pub(crate) pdptes: Option<[u64; 4]>,
    /// Tag of linear translations.
    pub(crate) space: Space,
    /// The second stage in it.
    pub(crate) id: SpaceId,
}

/// What a translation may use and fill.
pub(crate) struct CacheRefs<'a> {
    pub(crate) walk: Option<&'a mut WalkCache<Gpa>>,
    pub(crate) nested_tlb: Option<&'a mut Tlb>,
    pub(crate) nested_walk: Option<&'a mut WalkCache<Spa>>,
}

impl CacheRefs<'_> {
    pub(crate) const NONE: CacheRefs<'static> = CacheRefs { walk: None, nested_tlb: None, nested_walk: None };
}

/// What every translation is given.
pub(crate) struct Work<'a> {
    pub(crate) memory: &'a SystemMemory,
    pub(crate) stats: &'a mut MmuStats,
    pub(crate) caches: CacheRefs<'a>,
    /// Only EPT is logged.
    pub(crate) log: Option<&'a mut ModificationLog>,
    pub(crate) effects: Effects,
}

impl Context {
    pub(crate) fn new(features: &PagingFeatures, paging: &PagingState, stage2: &Stage2, id: SpaceId) -> Context {
        let nxe = paging.efer.contains(Efer::NXE);
        let tables = match paging.mode() {
            PagingMode::Off => Tables::Off,
            PagingMode::Legacy32 => Tables::Legacy(Legacy::new(features, paging.cr4.contains(Cr4::PSE))),
            PagingMode::Pae => Tables::Pae(Pae::new(features, nxe)),
            PagingMode::FourLevel => Tables::Long(Long::new(features, nxe), Level::PML4),
            PagingMode::FiveLevel => Tables::Long(Long::new(features, nxe), Level::PML5),
        };
        let nesting = match stage2 {
            Stage2::None | Stage2::Untranslated(_) => Nesting::None,
            Stage2::Npt(npt) => {
                let tree = Tree { root: npt.root.align_down(PageSize::Size4K), top: npt.levels.top() };
                Nesting::Npt(Long::new(features, npt.nx == NestedNx::Enabled), tree)
            }
            Stage2::Ept(ept) => {
                let tree = Tree { root: ept.eptp.root(), top: ept.eptp.levels().top() };
                Nesting::Ept(EptFormat::new(features, ept), tree)
            }
        };
        Context {
            tables,
            nesting,
            rules: Rules::new(paging),
            cr3: paging.cr3,
            pdptes: paging.pdptes,
            space: Space::new(id, paging.pcid()),
            id,
        }
    }

    /// Whether linear addresses have tables of their own.
    pub(crate) const fn is_paged(&self) -> bool {
        !matches!(self.tables, Tables::Off)
    }

    /// `gva` as the mode sees it: 32 bits outside long mode.
    #[inline]
    pub(crate) const fn linear(&self, gva: Gva) -> Gva {
        match self.tables {
            Tables::Long(..) => gva,
            Tables::Off | Tables::Legacy(_) | Tables::Pae(_) => Gva::new(gva.raw() & 0xffff_ffff),
        }
    }

    fn nested<'a, F: NestedFormat>(&self, format: F, tree: Tree, gva: Option<Gva>, work: Work<'a>) -> Nested<'a, F> {
        let Work { memory, stats, caches, log, effects } = work;
        Nested {
            memory,
            stats,
            format,
            root: tree.root,
            top: tree.top,
            space: Space::global(self.id),
            tlb: caches.nested_tlb,
            walk_cache: caches.nested_walk,
            effects,
            log: if F::LOGS_MODIFICATIONS { log } else { None },
            gva,
        }
    }

    /// Translates without asking the TLB of linear translations.
    #[inline]
    pub(crate) fn translate(&self, gva: Gva, access: Access, mut work: Work<'_>) -> Result<Outcome, MmuFault> {
        let (walk, effects) = (work.caches.walk.take(), work.effects);
        match self.nesting {
            Nesting::None => {
                let mut memory = Bare { memory: work.memory, stats: work.stats };
                self.first_stage(&mut memory, walk, gva, access, effects)
            }
            Nesting::Npt(format, tree) => {
                let mut memory = self.nested(format, tree, Some(gva), work);
                self.first_stage(&mut memory, walk, gva, access, effects)
            }
            Nesting::Ept(format, tree) => {
                let mut memory = self.nested(format, tree, Some(gva), work);
                self.first_stage(&mut memory, walk, gva, access, effects)
            }
        }
    }

    /// Translates a guest physical address.
    pub(crate) fn reach(&self, gpa: Gpa, kind: AccessKind, work: Work<'_>) -> Result<Reached, MmuFault> {
        let mode = LinearMode::Supervisor;
        match self.nesting {
            Nesting::None => Bare { memory: work.memory, stats: work.stats }.reach(gpa, kind, mode),
            Nesting::Npt(format, tree) => self.nested(format, tree, None, work).reach(gpa, kind, mode),
            Nesting::Ept(format, tree) => self.nested(format, tree, None, work).reach(gpa, kind, mode),
        }
    }

    fn first_stage<M: GuestMemory>(
        &self,
        memory: &mut M,
        walk_cache: Option<&mut WalkCache<Gpa>>,
        gva: Gva,
        access: Access,
        effects: Effects,
    ) -> Result<Outcome, MmuFault> {
        let root =
            |level, mask| TablePointer { level, table: Gpa::new(self.cr3 & mask), spa: None, grants: Grants::all() };
        let request = |root| Request { gva, access, rules: &self.rules, root, space: self.space, effects };
        match &self.tables {
            Tables::Off => stage1::unpaged(memory, gva, access),
            Tables::Legacy(format) => {
                stage1::translate(format, memory, walk_cache, request(root(Level::PD, 0xffff_f000)))
            }
            Tables::Pae(format) => {
                let root = match self.pdptes {
                    None => root(Level::PDPT, 0xffff_ffe0),
                    Some(pdptes) => self.directory_of(format, pdptes, gva, access)?,
                };
                stage1::translate(format, memory, walk_cache, request(root))
            }
            Tables::Long(format, top) => {
                let shift = 64 - Long::shift(*top) - Long::INDEX_BITS;
                if (gva.raw() << shift) as i64 >> shift != gva.raw() as i64 {
                    return Err(MmuFault::NonCanonical { gva });
                }
                stage1::translate(format, memory, walk_cache, request(root(*top, bits::ADDRESS)))
            }
        }
    }

    /// The page directory that a PDPTE register points to.
    pub(crate) fn directory_of(
        &self,
        format: &Pae,
        pdptes: [u64; 4],
        gva: Gva,
        access: Access,
    ) -> Result<TablePointer<Gpa>, MmuFault> {
        let raw = pdptes[(gva.raw() >> 30 & 3) as usize];
        let refuse = |code| Err(MmuFault::Guest { gva, code: code | self.rules.access_code(access) });
        match format.classify(raw, Level::PDPT) {
            Entry::NotPresent => refuse(PageFaultCode::empty()),
            Entry::Reserved => refuse(PageFaultCode::P | PageFaultCode::RSVD),
            Entry::Table | Entry::Leaf => Ok(TablePointer {
                level: Level::PD,
                table: Gpa::new(format.table(raw)),
                spa: None,
                grants: Grants::all(),
            }),
        }
    }
}
