//! Guests under SEV-SNP: who owns a page by the reverse map (RMP) while processors, hypervisor and host disagree about it.
//!
//! The world is that of the other scenarios, with an RMP beneath and [processors](processor) that execute as the machine's
//! do, by an [`mmu::Mmu`] of their own. The guest's tables map all of guest physical memory twice: privately from address 0,
//! and without the C-bit from [`SHARED_HALF`].
//!
//! - [`sizes`]: entries that are split and merged; [`owners`]: pages that change hands; [`host`]: a host that reads and writes
//!   beside them; [`areas`]: the pages that processors run from.

pub(super) mod areas;
pub(super) mod host;
pub(super) mod owners;
pub(super) mod processor;
pub(super) mod sizes;

use std::sync::Arc;

use emu_core::defect::Defects;
use emu_core::memory::SystemMemory;
use emu_core::page::PAGE_SIZE;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::sev::Vmpl;
use emu_core::{Gpa, PageSize, Spa};
use gmem::{DirectMapPolicy, FolioPolicy};
use hypervisor::{
    Assign, GmemFlags, LaunchContent, MemSlotSpec, RmpSizes, Shareability, SlotFlags, SlotId, SnpConfig,
    SnpLaunchUpdate, SnpPageType, Vm, VmConfig, VmKind,
};
use mmu::rmp::{Rmp, RmpPlace, VmplPermissions};
use mmu::{Asid, Mmu, NestedNx, Npt, PagingChange, PagingFeatures, PagingState, SnpGuest, Stage2, Stage2Levels};

use super::world::{PAGE, QUIET, Setup};
use crate::machine::BuildError;
use processor::SnpProcessor;

const ASID: Asid = Asid(5);
const C_BIT: u8 = 51;
/// Where the guest sees its memory without the C-bit.
const SHARED_HALF: u64 = 1 << 30;
/// The guest frame of the guest's own tables, which have a memslot of their own.
const TABLES: u64 = 4096;
const TABLES_SLOT: SlotId = SlotId(9);

/// By which policies the guest's memory is assigned.
#[derive(Clone, Copy)]
pub(super) struct SnpSetup {
    /// When.
    pub(super) assign: Assign,
    /// In which sizes.
    pub(super) sizes: RmpSizes,
    /// What the host does to its own map, if that is looked at.
    pub(super) direct_map: Option<DirectMapPolicy>,
}

impl SnpSetup {
    const USUAL: SnpSetup = SnpSetup { assign: Assign::Lazy, sizes: RmpSizes::UpTo2M, direct_map: None };

    /// Makes `config` that of an SNP guest with its RMP at `place`.
    pub(super) fn configure(
        &self,
        config: &mut VmConfig,
        memory: &Arc<SystemMemory>,
        place: RmpPlace,
    ) -> Result<(), BuildError> {
        let rmp = Arc::new(Rmp::new(Arc::clone(memory), place)?);
        config.kind = VmKind::Snp;
        config.snp = Some(SnpConfig { rmp, asid: ASID, assign: self.assign, sizes: self.sizes });
        Ok(())
    }

    /// Launches the guest's tables, and its processors over them.
    pub(super) fn finish(self, vm: &Vm) -> Result<[SnpProcessor; 2], BuildError> {
        if let Some(policy) = self.direct_map {
            vm.host().lock(QUIET).model_direct_map(policy);
        }
        let len_bytes = 2 * PAGE;
        let small = FolioPolicy::Buddy { largest: PageSize::Size4K };
        let gmem = vm.create_guest_memfd_with(len_bytes, GmemFlags::empty().bits(), small, QUIET)?;
        let (id, gpa, flags) = (TABLES_SLOT, Gpa::new(TABLES * PAGE), SlotFlags::empty());
        vm.add_memslot(&MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes: 0 }, QUIET)?;
        let bytes = guest_tables(gpa);
        let content = LaunchContent::Bytes(&bytes);
        let permissions = [VmplPermissions::empty(); 3];
        let update = SnpLaunchUpdate { first: gpa.frame(), content, page_type: SnpPageType::Normal, permissions };
        vm.snp_launch_update(&update, &mut |_| {}, QUIET)?;
        Ok([(); 2].map(|()| SnpProcessor::new(self.mmu(vm))))
    }

    fn mmu(&self, vm: &Vm) -> Mmu {
        let mut mmu = Mmu::new(Arc::clone(vm.memory()), PagingFeatures::AMD);
        mmu.set_rmp(vm.rmp().map(|(rmp, _)| Arc::clone(rmp)));
        let long_mode = PagingState {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP,
            cr3: TABLES * PAGE | 1 << C_BIT,
            cr4: Cr4::PAE,
            efer: Efer::LME | Efer::LMA | Efer::NXE,
            ..PagingState::default()
        };
        mmu.set_paging(long_mode, PagingChange::Reset);
        mmu.set_stage2(over(vm.root_register()));
        mmu
    }
}

/// The second stage over the root that nCR3 names.
fn over(register: u64) -> Stage2 {
    Stage2::Npt(Npt {
        root: Spa::new(register),
        levels: Stage2Levels::Four,
        nx: NestedNx::Enabled,
        asid: ASID,
        snp: Some(SnpGuest { c_bit: C_BIT, vmpl: Vmpl::Vmpl0 }),
    })
}

/// A PML4 and a table of 1G leaves: the first GiB of guest physical memory with the C-bit, and once more without.
fn guest_tables(at: Gpa) -> Vec<u8> {
    /// P, R/W, A, and for leaves D and PS.
    const TABLE: u64 = 0x23;
    const LEAF: u64 = 0xe3;
    let mut bytes = vec![0; 2 * PAGE_SIZE];
    let mut put = |offset: usize, entry: u64| bytes[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
    put(0, at.raw() + PAGE | TABLE | 1 << C_BIT);
    put(PAGE_SIZE, LEAF | 1 << C_BIT);
    put(PAGE_SIZE + 8, LEAF);
    bytes
}

impl Setup {
    /// An SNP guest over private small pages.
    pub(super) fn snp(defects: Defects) -> Setup {
        Setup { initial: Shareability::PRIVATE, snp: Some(SnpSetup::USUAL), ..Setup::of(defects) }
    }

    /// An SNP guest over a private 2M page for each inode.
    pub(super) fn huge_snp(defects: Defects) -> Setup {
        Setup { initial: Shareability::PRIVATE, snp: Some(SnpSetup::USUAL), ..Setup::huge(defects) }
    }
}
