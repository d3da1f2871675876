//! What the shadow MMU keeps for each virtual processor: the guest's registers, its root, and roots it had before.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Gfn, Gpa, Spa};
use mmu::{GuestPaging, GuestRights, PagingFeatures, PagingMode, PagingState};

use super::pages::PageId;
use super::role::{Origin, Role, RoleControls, TableFormat};
use super::spte::ShadowPte;

/// Which vCPUs must load their roots anew before they enter the guest (`KVM_REQ_MMU_FREE_OBSOLETE_ROOTS`).
#[derive(Debug)]
pub(crate) struct Reloads(Vec<AtomicBool>);

impl Reloads {
    pub(super) fn new(nr_vcpus: usize) -> Reloads {
        Reloads((0..nr_vcpus).map(|_| AtomicBool::new(true)).collect())
    }
    /// Asks all of them.
    pub(super) fn ask(&self) {
        self.0.iter().for_each(|one| one.store(true, Ordering::Release));
    }
    /// Whether `vcpu` was asked since it last took the request.
    pub(super) fn take(&self, vcpu: usize) -> bool {
        // Asked at every entry; most often there is nothing.
        self.0.get(vcpu).is_some_and(|one| one.load(Ordering::Acquire) && one.swap(false, Ordering::AcqRel))
    }
    /// Whether `vcpu` is asked.
    pub(super) fn is_asked(&self, vcpu: usize) -> bool {
        self.0.get(vcpu).is_some_and(|one| one.load(Ordering::Acquire))
    }
    /// Asks one.
    pub(super) fn ask_one(&self, vcpu: usize) {
        if let Some(one) = self.0.get(vcpu) {
            one.store(true, Ordering::Release);
        }
    }
}

/// What can be asked of shadow pages without `mmu_lock`. Each number is raised before what it counts can matter to anybody
/// and lowered when all that follows from it is done, so that zero means: nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Pages of guest tables (`indirect_shadow_pages`).
    indirect: AtomicU64,
    /// Pages that do not follow their guest table.
    unsync: AtomicU64,
}

impl Known {
    /// Whether any guest table is shadowed.
    pub(super) fn any_indirect(&self) -> bool {
        self.indirect.load(Ordering::SeqCst) != 0
    }
    /// Whether any page is unsync.
    pub(super) fn any_unsync(&self) -> bool {
        self.unsync.load(Ordering::SeqCst) != 0
    }
    pub(super) fn set_indirect(&self, pages: u64) {
        self.indirect.store(pages, Ordering::SeqCst);
    }
    pub(super) fn set_unsync(&self, pages: u64) {
        self.unsync.store(pages, Ordering::SeqCst);
    }
}

/// Where a vCPU's shadow tables start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Root {
    /// Nowhere: it must be loaded.
    #[default]
    None,
    /// The guest's root lies where no memory is: an empty table (`kvm_mmu_get_dummy_root`).
    Dummy,
    /// A long-mode root.
    Long(PageId),
    /// The four page directories of PAE paging; `None` where the guest's PDPTE is not present.
    Pae([Option<PageId>; 4]),
}

impl Root {
    /// The shadow pages it holds.
    pub(super) fn pages(&self) -> impl Iterator<Item = PageId> {
        let pages = match *self {
            Root::None | Root::Dummy => [None; 4],
            Root::Long(page) => [Some(page), None, None, None],
            Root::Pae(pages) => pages,
        };
        pages.into_iter().flatten()
    }
}

/// A root that a vCPU had and may come back to (`struct kvm_mmu_root_info`).
#[derive(Clone, Copy, Debug)]
pub(super) struct CachedRoot {
    pub(super) cr3: u64,
    pub(super) page: PageId,
}

/// Roots kept beside the current one (`KVM_MMU_NUM_PREV_ROOTS`).
pub(super) const PREVIOUS: usize = 3;

/// See the module.
pub(crate) struct VcpuShadow {
    pub(super) paging: GuestPaging,
    pub(super) root: Root,
    /// The last used first.
    pub(super) previous: Vec<CachedRoot>,
    /// Frames for shadow pages, taken before `mmu_lock`.
    pub(super) tables: Vec<Spa>,
}

/// What a root is to be: the guest's table, if there is one, and the role.
#[derive(Clone, Copy, Debug)]
pub(super) struct RootSpec {
    pub(super) gfn: Gfn,
    pub(super) role: Role,
}

impl VcpuShadow {
    pub(super) fn new(features: &PagingFeatures) -> VcpuShadow {
        VcpuShadow {
            paging: GuestPaging::new(features, &PagingState::default()),
            root: Root::None,
            previous: Vec::with_capacity(PREVIOUS + 1),
            tables: Vec::new(),
        }
    }
}

/// CR3 without the PCID and other bits that do not name the table.
pub(super) const fn root_address(cr3: u64) -> u64 {
    cr3 & 0x000f_ffff_ffff_f000
}

/// The roots that `state` wants: one of long mode, or four.
pub(super) fn root_specs(state: &PagingState) -> Vec<Option<RootSpec>> {
    let format = TableFormat::of(state.mode());
    let role = |level, quadrant, origin| Role {
        level,
        format,
        quadrant,
        origin,
        access: GuestRights::all(),
        controls: RoleControls::of(state),
    };
    let table = |gpa: u64| Gpa::new(root_address(gpa)).frame();
    match state.mode() {
        PagingMode::Off => {
            (0..4).map(|n| Some(RootSpec { gfn: Gfn::new(n << 18), role: role(2, 0, Origin::Direct) })).collect()
        }
        PagingMode::Legacy32 => {
            let gfn = table(state.cr3 & 0xffff_f000);
            (0..4).map(|n| Some(RootSpec { gfn, role: role(2, n, Origin::Guest) })).collect()
        }
        PagingMode::Pae => {
            let entries = state.pdptes.unwrap_or_default();
            let spec = |raw: u64| (raw & 1 != 0).then(|| RootSpec { gfn: table(raw), role: role(2, 0, Origin::Guest) });
            entries.into_iter().map(spec).collect()
        }
        PagingMode::FourLevel => vec![Some(RootSpec { gfn: table(state.cr3), role: role(4, 0, Origin::Guest) })],
        PagingMode::FiveLevel => vec![Some(RootSpec { gfn: table(state.cr3), role: role(5, 0, Origin::Guest) })],
    }
}

/// The registers a processor runs with while the guest believes in `guest`: paging is always on, in PAE form outside long
/// mode; supervisor writes are always checked and NX is always there (`KVM_VM_CR0_ALWAYS_ON`, `svm_set_cr4`,
/// `svm_set_efer` without NPT).
pub(super) fn effective(guest: &PagingState, root: &Root, shadow: &super::ShadowMmu) -> PagingState {
    let mut state = *guest;
    state.cr0 |= Cr0::PE | Cr0::PG | Cr0::WP;
    state.cr4 |= Cr4::PAE;
    state.efer |= Efer::NXE;
    if guest.mode() == PagingMode::Off {
        state.cr4 -= Cr4::SMEP | Cr4::SMAP | Cr4::PKE | Cr4::PKS;
    }
    if !guest.efer.contains(Efer::LMA) || guest.mode() == PagingMode::Off {
        state.cr4 -= Cr4::PCIDE | Cr4::LA57;
        state.efer -= Efer::LMA;
    }
    let pcid = u64::from(state.pcid().raw());
    let table = |page: PageId| shadow.page(page).table;
    (state.cr3, state.pdptes) = match root {
        Root::Long(page) => (table(*page).raw() | pcid, None),
        Root::Pae(pages) => (0, Some(pages.map(|page| page.map_or(0, |page| ShadowPte::pdpte(table(page)))))),
        Root::None | Root::Dummy if state.efer.contains(Efer::LMA) => (shadow.dummy.raw() | pcid, None),
        Root::None | Root::Dummy => (0, Some([0; 4])),
    };
    state
}
