//! The processor's own walker over the hypervisor's tables.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gpa, PageSize};
use hypervisor::*;
use mmu::{
    Asid, Ept, EptExecute, Eptp, Mmu, MmuFault, NestedFaultKind, NestedNx, Npt, PagingFeatures, Stage2, Stage2Levels,
    Vpid,
};

const QUIET: &Task<'static> = &Task::QUIET;
const CPU: VcpuId = VcpuId(0);

fn vm(format: TdpFormat) -> Vm {
    let layout = RamLayout::pc(16 << 20, PageSize::Size2M).unwrap();
    let pages = PagePolicy::of(PageSize::Size2M);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
    let vm = Vm::new(memory, &VmConfig { format, maxphyaddr: 46, ..VmConfig::new(pages, plan.host) }).unwrap();
    vm.add_ram(&layout, SlotId(0), QUIET).unwrap();
    vm
}

fn processor(vm: &Vm) -> Mmu {
    let (features, stage2) = match vm.format() {
        TdpFormat::Npt => {
            let npt =
                Npt { root: vm.root(), levels: Stage2Levels::Four, nx: NestedNx::Enabled, asid: Asid(1), snp: None };
            (PagingFeatures::AMD, Stage2::Npt(npt))
        }
        TdpFormat::Ept => {
            let eptp = Eptp(vm.root_register());
            (PagingFeatures::INTEL, Stage2::Ept(Ept { eptp, execute: EptExecute::Single, vpid: Vpid(1) }))
        }
    };
    let mut mmu = Mmu::new(Arc::clone(vm.memory()), features);
    mmu.set_stage2(stage2);
    mmu
}

fn refused(mmu: &mut Mmu, gpa: u64) -> NestedFaultKind {
    match mmu.translate_gpa(Gpa::new(gpa), AccessKind::Read) {
        Err(MmuFault::Nested(fault)) => fault.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_entry_for_a_device_is_a_reserved_fault_under_npt_and_a_misconfiguration_under_ept() {
    for format in [TdpFormat::Npt, TdpFormat::Ept] {
        let vm = vm(format);
        let mut mmu = processor(&vm);
        let device = 0xfee0_0020;
        assert!(matches!(refused(&mut mmu, device), NestedFaultKind::NotPresent { .. }));
        let mut input = FaultInput::new(Gpa::new(device), AccessKind::Read);
        let mmio = Action::Mmio { gpa: Gpa::new(device) };
        assert_eq!(vm.handle_fault(CPU, input, QUIET), Ok(mmio));
        match (format, refused(&mut mmu, device)) {
            (TdpFormat::Npt, NestedFaultKind::Reserved { .. })
            | (TdpFormat::Ept, NestedFaultKind::Misconfigured { .. }) => {}
            other => panic!("{other:?}"),
        }
        input.entry = EntryState::Reserved;
        assert_eq!(vm.handle_fault(CPU, input, QUIET), Ok(mmio));
        assert!(vm.handle_fault(CPU, FaultInput::new(Gpa::new(0), AccessKind::Write), QUIET).is_ok());
        assert_eq!(mmu.translate_gpa(Gpa::new(0x1234), AccessKind::Write).unwrap().size, PageSize::Size2M);
    }
}
