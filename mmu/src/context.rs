//! The registers in force, prepared for translating: formats with their reserved bits, roots, tags. Made anew when a
//! register changes, so that a miss computes none of it.

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr4, Efer};
use emu_core::sev::CBit;
use emu_core::{Access, AccessKind, Gpa, Gva, PageFaultCode, PageSize, Privilege, Spa};

use crate::fault::MmuFault;
use crate::format::{Entry, EptFormat, Format, Grants, Legacy, Long, NestedFormat, Pae, bits};
use crate::level::Level;
use crate::nested::{Bare, Effects, GuestMemory, Judge, Nested, Reached, Wanted};
use crate::paging::{PagingFeatures, PagingMode, PagingState};
use crate::pml::ModificationLog;
use crate::protect::{Accessor, Guarded, Open, Protection};
use crate::rights::{LinearMode, Rules};
use crate::rmp::Rmp;
use crate::stage1::{self, Outcome, Request};
use crate::stage2::{NestedNx, Npt, Stage2};
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
    /// Whose accesses are judged; `None`: nobody's.
    pub(crate) accessor: Option<Accessor>,
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
    /// The machine's, if SNP is on.
    pub(crate) rmp: Option<&'a Rmp>,
}

/// What the first stage is to do.
#[derive(Clone, Copy)]
struct First {
    gva: Gva,
    access: Access,
    effects: Effects,
    judge: Judge,
}

/// Whether an RMP is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnpMode {
    Off,
    On,
}

/// Whose accesses `stage2` makes, as far as they are judged. Processors with EPT have no RMP.
fn accessor(stage2: &Stage2, mode: SnpMode) -> Option<Accessor> {
    match (stage2, mode) {
        (Stage2::Npt(Npt { asid, snp: Some(guest), .. }), _) => Some(Accessor::Snp(*asid, *guest)),
        (Stage2::Ept(_), _) | (_, SnpMode::Off) => None,
        (Stage2::None | Stage2::Untranslated(_) | Stage2::Npt(_), SnpMode::On) => Some(Accessor::Plain),
    }
}

impl Context {
    pub(crate) fn new(
        features: &PagingFeatures,
        paging: &PagingState,
        stage2: &Stage2,
        id: SpaceId,
        mode: SnpMode,
    ) -> Context {
        let nxe = paging.efer.contains(Efer::NXE);
        let accessor = accessor(stage2, mode);
        let c_bit = match accessor {
            Some(Accessor::Snp(_, guest)) => guest.c_bit_mask(),
            Some(Accessor::Plain) | None => 0,
        };
        let tables = match paging.mode() {
            PagingMode::Off => Tables::Off,
            PagingMode::Legacy32 => Tables::Legacy(Legacy::new(features, paging.cr4.contains(Cr4::PSE))),
            PagingMode::Pae => Tables::Pae(Pae::new(features, nxe).with_c_bit(c_bit)),
            PagingMode::FourLevel => Tables::Long(Long::new(features, nxe).with_c_bit(c_bit), Level::PML4),
            PagingMode::FiveLevel => Tables::Long(Long::new(features, nxe).with_c_bit(c_bit), Level::PML5),
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
            accessor,
            rules: Rules::new(paging),
            cr3: paging.cr3 & !c_bit,
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

    /// Translates without asking the TLB of linear translations.
    #[inline]
    pub(crate) fn translate(&self, gva: Gva, access: Access, work: Work<'_>) -> Result<Outcome, MmuFault> {
        self.translate_for(gva, access, Judge::Walk, work)
    }

    /// The same for whoever asks the RMP himself.
    pub(crate) fn translate_for(
        &self,
        gva: Gva,
        access: Access,
        judge: Judge,
        work: Work<'_>,
    ) -> Result<Outcome, MmuFault> {
        match self.accessor {
            None => self.translate_under(Open, gva, access, judge, work),
            Some(accessor) => {
                let guarded = Guarded { rmp: work.rmp, accessor, effects: work.effects };
                self.translate_under(guarded, gva, access, judge, work)
            }
        }
    }

    #[inline]
    fn translate_under<P: Protection>(
        &self,
        protection: P,
        gva: Gva,
        access: Access,
        judge: Judge,
        mut work: Work<'_>,
    ) -> Result<Outcome, MmuFault> {
        let walk = work.caches.walk.take();
        let wanted = First { gva, access, effects: work.effects, judge };
        match self.nesting {
            Nesting::None => {
                let mut memory = Bare { memory: work.memory, stats: work.stats, protection, gva: Some(gva) };
                self.first_stage(&mut memory, walk, wanted)
            }
            Nesting::Npt(format, tree) => {
                let mut memory = self.nested(format, tree, Some(gva), protection, work);
                self.first_stage(&mut memory, walk, wanted)
            }
            Nesting::Ept(format, tree) => {
                // Nobody's accesses are judged under EPT.
                let mut memory = self.nested(format, tree, Some(gva), Open, work);
                self.first_stage(&mut memory, walk, wanted)
            }
        }
    }

    /// Translates a guest physical address.
    pub(crate) fn reach(&self, gpa: Gpa, kind: AccessKind, work: Work<'_>) -> Result<Reached, MmuFault> {
        match self.accessor {
            None => self.reach_under(Open, gpa, kind, work),
            Some(accessor) => {
                self.reach_under(Guarded { rmp: work.rmp, accessor, effects: work.effects }, gpa, kind, work)
            }
        }
    }

    fn reach_under<P: Protection>(
        &self,
        protection: P,
        gpa: Gpa,
        kind: AccessKind,
        work: Work<'_>,
    ) -> Result<Reached, MmuFault> {
        let wanted = Wanted {
            access: Access::new(kind, Privilege::Supervisor),
            mode: LinearMode::Supervisor,
            c_bit: CBit::Set,
            page: PageSize::Size4K,
            judge: Judge::Walk,
        };
        match self.nesting {
            Nesting::None => Bare { memory: work.memory, stats: work.stats, protection, gva: None }.reach(gpa, wanted),
            Nesting::Npt(format, tree) => self.nested(format, tree, None, protection, work).reach(gpa, wanted),
            Nesting::Ept(format, tree) => self.nested(format, tree, None, Open, work).reach(gpa, wanted),
        }
    }

    fn nested<'a, F: NestedFormat, P: Protection>(
        &self,
        format: F,
        tree: Tree,
        gva: Option<Gva>,
        protection: P,
        work: Work<'a>,
    ) -> Nested<'a, F, P> {
        let Work { memory, stats, caches, log, effects, rmp: _ } = work;
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
            protection,
        }
    }

    fn first_stage<M: GuestMemory>(
        &self,
        memory: &mut M,
        walk_cache: Option<&mut WalkCache<Gpa>>,
        wanted: First,
    ) -> Result<Outcome, MmuFault> {
        let First { gva, access, effects, judge } = wanted;
        let root =
            |level, mask| TablePointer { level, table: Gpa::new(self.cr3 & mask), spa: None, grants: Grants::all() };
        let request = |root| Request { gva, access, rules: &self.rules, root, space: self.space, effects, judge };
        match &self.tables {
            Tables::Off => stage1::unpaged(memory, gva, access, judge),
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
