//! VMs for measurements.
#![allow(dead_code, reason = "each benchmark takes what it needs of this")]

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gpa, PageSize};
use gmem::GmemPolicy;
use hypervisor::{
    Action, FaultInput, FolioPolicy, GmemId, MmuParams, PagePolicy, RamLayout, Resumed, Shareability, SlotId,
    SystemMemoryPlan, TdpFormat, VcpuId, Vm, VmConfig,
};

/// The task of everything that is set up or measured by one thread.
pub const QUIET: &Task<'static> = &Task::QUIET;
/// RAM from here on is one memslot, aligned for every page.
pub const HIGH: u64 = 4 << 30;

/// What stands behind guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Size of the guest.
    pub memory_bytes: u64,
    /// Folios and largest leaf.
    pub pages: PagePolicy,
    /// What guest_memfd does.
    pub gmem: GmemPolicy,
    /// Processors.
    pub nr_vcpus: u16,
    /// Format of the nested tables.
    pub format: TdpFormat,
    /// How the MMU works.
    pub params: MmuParams,
}

impl Setup {
    /// A large guest over folios of `page`, as the machine has it.
    pub fn of(page: PageSize) -> Setup {
        Setup {
            memory_bytes: 128 << 30,
            pages: PagePolicy::of(page),
            gmem: GmemPolicy::DEFAULT,
            nr_vcpus: 2,
            format: TdpFormat::Npt,
            params: MmuParams::default(),
        }
    }

    /// The same over `folios`.
    pub fn over(folios: FolioPolicy) -> Setup {
        let size = folios.folio_size();
        Setup { pages: PagePolicy { folios, max_level: size }, ..Setup::of(size) }
    }

    /// The VM and the guest_memfd of its RAM.
    pub fn build(&self) -> (Vm, GmemId) {
        let layout = RamLayout::pc(self.memory_bytes, self.pages.folios.folio_size()).expect("a sound size");
        self.build_with(&layout)
    }

    /// The same with RAM where `layout` says.
    pub fn build_with(&self, layout: &RamLayout) -> (Vm, GmemId) {
        let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, self.pages);
        let memory = SystemMemory::flat(plan.arena_bytes).expect("address space");
        let Setup { nr_vcpus, gmem, format, params, .. } = *self;
        let config = VmConfig { nr_vcpus, gmem, format, ..VmConfig::new(self.pages, plan.host) };
        let vm = Vm::with_params(memory, &config, params).expect("a sound plan");
        let gmem = vm.add_ram(layout, SlotId(0), QUIET).expect("the plan has room");
        (vm, gmem)
    }
}

/// Lets a processor write `nr` pages of `page` from address `from` on, meaning `privacy`.
pub fn touch_as(vm: &Vm, vcpu: u16, from: u64, page: PageSize, nr: u64, privacy: Shareability) {
    let task = Task::QUIET.on_lane(vcpu as u8);
    for n in 0..nr {
        let gpa = Gpa::new(from + n * page.bytes());
        let input = FaultInput { privacy, ..FaultInput::new(gpa, AccessKind::Write) };
        let action = vm.handle_fault(VcpuId(vcpu), input, &task).expect("memory is enough");
        assert!(matches!(action, Action::Resume(_)), "{action:?} at {gpa}");
    }
}

/// Lets a processor write every page of `[from, to)` that is not mapped when it comes there.
pub fn populate(vm: &Vm, from: u64, to: u64) {
    let mut at = from;
    while at < to {
        let action = vm.handle_fault(VcpuId(0), FaultInput::new(Gpa::new(at), AccessKind::Write), QUIET);
        let Ok(Action::Resume(Resumed::Fixed { size })) = action else { panic!("{action:?} at {at:#x}") };
        at = (at & !(size.bytes() - 1)) + size.bytes();
    }
}

/// The same for shared memory.
pub fn touch(vm: &Vm, vcpu: u16, from: u64, page: PageSize, nr: u64) {
    touch_as(vm, vcpu, from, page, nr, Shareability::SHARED);
}
