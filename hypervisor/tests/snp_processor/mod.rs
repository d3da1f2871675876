//! A toy processor in an SNP guest: it reads nested tables with the naive reader, asks the RMP, and hands every nested
//! fault to the hypervisor until the access ends. It has no TLB.

#![allow(dead_code, reason = "not every test that shares this processor asks everything of it")]

use std::sync::Arc;

use emu_core::memory::{Key, SystemMemory};
use emu_core::sev::{CBit, Vmpl};
use emu_core::sync::Task;
use emu_core::{Access, AccessKind, Gpa, Gva, PageSize, Privilege, Sfn};
use gmem::GmemPolicy;
use hypervisor::*;
use mmu::rmp::{
    Changed, GuestAccess, GuestPage, Pvalidate, Rmp, RmpEntry, RmpError, RmpPageSize, RmpRefusal, Validated,
    VmplPermissions,
};
use mmu::{Asid, RmpCause};

use crate::reader;

pub const QUIET: &Task<'static> = &Task::QUIET;
pub const CPU: VcpuId = VcpuId(0);
pub const ASID: Asid = Asid(7);
pub const PAGE: u64 = 4096;
/// Other processors may make a fault come again.
const TRIES: u32 = 10_000;
pub const M2: u64 = PageSize::Size2M.frames();

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The access was made, through a leaf of this size.
    Done(PageSize),
    /// #VC: the guest has not accepted the page.
    NotValidated,
    /// The VM leaves to the VMM.
    Exit(MemoryFaultReason),
    /// A device answers.
    Device,
}

pub struct SnpMachine {
    pub vm: Vm,
    pub rmp: Arc<Rmp>,
    pub gmem: GmemId,
}

impl SnpMachine {
    pub fn new(page: PageSize, memory_bytes: u64, assign: Assign, sizes: RmpSizes) -> SnpMachine {
        SnpMachine::with(page, memory_bytes, assign, sizes, GmemPolicy::DEFAULT)
    }

    pub fn with(page: PageSize, memory_bytes: u64, assign: Assign, sizes: RmpSizes, gmem: GmemPolicy) -> SnpMachine {
        let pages = PagePolicy::of(page);
        let layout = RamLayout::pc(memory_bytes, page).unwrap();
        let (plan, place) = SystemMemoryPlan::for_guest(layout.inode_bytes, pages).with_rmp();
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let rmp = Arc::new(Rmp::new(Arc::clone(&memory), place).unwrap());
        rmp.protect_own_pages();
        let snp = Some(SnpConfig { rmp: Arc::clone(&rmp), asid: ASID, assign, sizes });
        let config = VmConfig { kind: VmKind::Snp, snp, gmem, nr_vcpus: 4, ..VmConfig::new(pages, plan.host) };
        let vm = Vm::new(memory, &config).unwrap();
        let gmem = vm.add_ram(&layout, SlotId(0), QUIET).unwrap();
        SnpMachine { vm, rmp, gmem }
    }

    pub fn walk(&self, gfn: u64) -> Option<reader::Translation> {
        reader::walk(self.vm.memory(), self.vm.format(), self.vm.root_register(), Gpa::new(gfn * PAGE))
    }

    /// The frame behind a guest frame, if a leaf shows it.
    pub fn sfn(&self, gfn: u64) -> Option<Sfn> {
        Some(self.walk(gfn)?.spa.frame())
    }

    /// The entry of the RMP behind a guest frame that is mapped.
    pub fn entry(&self, gfn: u64) -> RmpEntry {
        self.rmp.entry(self.sfn(gfn).expect("mapped")).expect("covered")
    }

    /// Hands a fault to the hypervisor; `Some` where the access ends by it.
    fn fault(&self, gfn: u64, kind: AccessKind, privacy: Shareability, entry: EntryState) -> Option<Seen> {
        let input = FaultInput { privacy, entry, ..FaultInput::new(Gpa::new(gfn * PAGE), kind) };
        let vcpu = VcpuId((gfn % 4) as u16);
        match self.vm.handle_fault(vcpu, input, QUIET).unwrap() {
            Action::Resume(_) => None,
            Action::MemoryFault(fault) => Some(Seen::Exit(fault.reason)),
            Action::Mmio { .. } | Action::RomWrite { .. } => Some(Seen::Device),
        }
    }

    /// An access to the end.
    pub fn access(&self, gfn: u64, kind: AccessKind, c_bit: CBit) -> Seen {
        let privacy = if c_bit.is_set() { Shareability::PRIVATE } else { Shareability::SHARED };
        for _ in 0..TRIES {
            // Nobody changes leaves or sizes between the walk and the look at the RMP.
            let tables = self.vm.tables(QUIET);
            let entry = match self.walk(gfn) {
                None => EntryState::NotPresent,
                Some(leaf) if kind == AccessKind::Write && !leaf.writable => EntryState::Denied,
                Some(leaf) => {
                    let access = Access::new(kind, Privilege::Supervisor);
                    let asked = GuestAccess {
                        spa: leaf.spa,
                        gpa: Gpa::new(gfn * PAGE),
                        mapped: leaf.size,
                        asid: ASID,
                        vmpl: Vmpl::Vmpl0,
                        c_bit,
                        access,
                    };
                    match self.rmp.check_guest(&asked) {
                        Ok(_) => return Seen::Done(leaf.size),
                        Err(RmpRefusal::NotValidated) => return Seen::NotValidated,
                        Err(RmpRefusal::Rmp(cause)) => EntryState::Rmp(cause),
                    }
                }
            };
            drop(tables);
            if let Some(seen) = self.fault(gfn, kind, privacy, entry) {
                return seen;
            }
        }
        panic!("guest frame {gfn:#x}: the same fault for ever");
    }

    pub fn private(&self, gfn: u64) -> Seen {
        self.access(gfn, AccessKind::Write, CBit::Set)
    }

    pub fn shared(&self, gfn: u64) -> Seen {
        self.access(gfn, AccessKind::Write, CBit::Clear)
    }

    /// PVALIDATE to the end; the faults it met.
    pub fn pvalidate(
        &self,
        gfn: u64,
        size: RmpPageSize,
        validated: Validated,
    ) -> (Result<Changed, RmpError>, Vec<RmpCause>) {
        let mut causes = Vec::new();
        for _ in 0..TRIES {
            // Nobody changes leaves or sizes between the walk and the look at the RMP.
            let tables = self.vm.tables(QUIET);
            let entry = match self.walk(gfn) {
                None => EntryState::NotPresent,
                Some(leaf) => {
                    let page = GuestPage {
                        gva: Gva::new(gfn * PAGE),
                        gpa: Gpa::new(gfn * PAGE),
                        spa: leaf.spa,
                        mapped: leaf.size,
                        asid: ASID,
                        vmpl: Vmpl::Vmpl0,
                    };
                    match self.rmp.pvalidate(&page, &Pvalidate { size, validated }) {
                        Ok(done) => return (done, causes),
                        Err(RmpRefusal::Rmp(cause)) => {
                            causes.push(cause);
                            EntryState::Rmp(cause)
                        }
                        Err(RmpRefusal::NotValidated) => panic!("PVALIDATE asks for no validated page"),
                    }
                }
            };
            drop(tables);
            let left = self.fault(gfn, AccessKind::Write, Shareability::PRIVATE, entry);
            assert_eq!(left, None, "PVALIDATE of a private page ends in the guest");
        }
        panic!("guest frame {gfn:#x}: the same fault for ever");
    }

    /// PVALIDATE that succeeds and changes something.
    pub fn accept(&self, gfn: u64, size: RmpPageSize) {
        assert_eq!(self.pvalidate(gfn, size, Validated::Yes).0, Ok(Changed::Yes), "at guest frame {gfn:#x}");
    }

    pub fn change(&self, first: u64, nr_pages: u64, to: Shareability) {
        self.try_change(first, nr_pages, to).unwrap();
    }

    pub fn try_change(&self, first: u64, nr_pages: u64, to: Shareability) -> Result<(), PageStateError> {
        let change = PageStateChange { first: emu_core::Gfn::new(first), nr_pages, to, size: PageSize::Size4K };
        self.vm.page_state_change(change, QUIET)
    }

    pub fn launch(
        &self,
        first: u64,
        content: LaunchContent<'_>,
        page_type: SnpPageType,
    ) -> Result<Vec<(Gpa, bool)>, LaunchError> {
        let mut measured = Vec::new();
        let update = SnpLaunchUpdate {
            first: emu_core::Gfn::new(first),
            content,
            page_type,
            permissions: [VmplPermissions::empty(); 3],
        };
        self.vm.snp_launch_update(&update, &mut |page| measured.push((page.gpa, page.bytes.is_some())), QUIET)?;
        Ok(measured)
    }

    /// The first bytes of a frame as they are.
    pub fn raw(&self, sfn: Sfn) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.vm.memory().read(sfn.base(), &mut bytes).unwrap();
        bytes
    }

    /// The first bytes of a private page that is mapped, as the guest reads them.
    pub fn read(&self, gfn: u64) -> [u8; 16] {
        let sfn = self.sfn(gfn).expect("mapped");
        self.vm.memory().rekey(sfn, Key::of_asid(ASID.0).unwrap());
        self.raw(sfn)
    }

    /// Writes to a private page that is mapped, as the guest does.
    pub fn write(&self, gfn: u64, bytes: &[u8]) {
        let sfn = self.sfn(gfn).expect("mapped");
        self.vm.memory().rekey(sfn, Key::of_asid(ASID.0).unwrap());
        self.vm.memory().write(sfn.base(), bytes).unwrap();
    }

    /// How many frames of system memory are assigned to the guest.
    pub fn assigned(&self) -> u64 {
        self.rmp.pages_of(ASID)
    }
}
