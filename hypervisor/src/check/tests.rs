use super::*;
use crate::*;
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};

const QUIET: &Task<'static> = &Task::QUIET;

/// A VM with one slot of 16 pages, page 3 touched.
fn vm() -> Vm {
    let pages = PagePolicy::of(PageSize::Size4K);
    let memory = SystemMemory::flat(1 << 20).unwrap();
    let host = HostConfig { first: Sfn::new(1), nr_frames: 255, pools: vec![] };
    let vm = Vm::new(memory, &VmConfig { maxphyaddr: 36, ..VmConfig::new(pages, host) }).unwrap();
    let gmem = vm.create_guest_memfd(16 << 12, GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
    let spec = MemSlotSpec {
        id: SlotId(0),
        gpa: Gpa::new(0),
        len_bytes: 16 << 12,
        flags: SlotFlags::empty(),
        gmem,
        offset_bytes: 0,
    };
    vm.add_memslot(&spec, QUIET).unwrap();
    vm.handle_fault(VcpuId(0), FaultInput::new(Gpa::new(3 << 12), AccessKind::Read), QUIET).unwrap();
    vm
}

fn broken(vm: &Vm, history: &mut CheckHistory, witness: &dyn Witness) -> Option<Invariant> {
    vm.check(Moment::Quiescent, history, witness, QUIET).err().map(|violation| violation.invariant)
}

#[test]
fn a_sound_vm_passes_before_and_after_each_call() {
    let vm = vm();
    let mut history = CheckHistory::new();
    assert_eq!(vm.check_quiescent(&mut history), Ok(()));
    vm.convert(GmemId(0), 0, 8 << 12, Shareability::PRIVATE, QUIET).unwrap();
    assert_eq!(vm.check_quiescent(&mut history), Ok(()));
    vm.punch_hole(GmemId(0), 0, 16 << 12, QUIET).unwrap();
    assert_eq!(vm.check_quiescent(&mut history), Ok(()));
    vm.remove_memslot(SlotId(0), QUIET).unwrap();
    assert_eq!(vm.check_quiescent(&mut history), Ok(()));
}

#[test]
fn a_page_that_goes_behind_the_tables_back_is_seen() {
    let vm = vm();
    let range = gmem::PageRange { first: gmem::PageIndex(3), nr_pages: 1 };
    vm.gmem(GmemId(0), QUIET).unwrap().exclusive(QUIET).remove(vm.host(), range, QUIET);
    assert_eq!(broken(&vm, &mut CheckHistory::new(), &Unseen), Some(Invariant::B4));
}

#[test]
fn a_slot_without_its_binding_is_seen() {
    let vm = vm();
    vm.gmem(GmemId(0), QUIET).unwrap().exclusive(QUIET).unbind(gmem::PageIndex(0));
    assert_eq!(broken(&vm, &mut CheckHistory::new(), &Unseen), Some(Invariant::A2));
}

#[test]
fn an_invalidation_that_does_not_end_is_seen_and_one_that_shrinks_too() {
    let vm = vm();
    let mut history = CheckHistory::new();
    vm.invalidation().begin(QUIET);
    vm.invalidation().add_range(Gfn::new(0), 4, QUIET);
    assert_eq!(broken(&vm, &mut history, &Unseen), Some(Invariant::E1));
    assert_eq!(vm.check(Moment::BetweenSteps, &mut history, &Unseen, QUIET), Ok(()));
    let forgetful = QUIET.with(emu_core::defect::Defects::only(emu_core::defect::Defect::ResetRangeOnBegin));
    vm.invalidation().begin(&forgetful);
    vm.invalidation().add_range(Gfn::new(8), 4, QUIET);
    let verdict = vm.check(Moment::BetweenSteps, &mut history, &Unseen, QUIET);
    assert_eq!(verdict.map_err(|violation| violation.invariant), Err(Invariant::E2));
}

/// One processor with one translation.
struct Seen(Cached, Option<Shareability>, Option<u32>);

impl Witness for Seen {
    fn translations(&self, _: VcpuId, each: &mut dyn FnMut(Cached)) {
        each(self.0);
    }
    fn meant(&self, _: Gfn) -> Option<Shareability> {
        self.1
    }
    fn extra_references(&self, _: Sfn) -> Option<u32> {
        self.2
    }
}

#[test]
fn what_the_witness_knows_is_held_against_the_vm() {
    let vm = vm();
    let leaf = vm.tables(QUIET).leaves().unwrap()[0];
    let cached = Cached { gfn: leaf.gfn, sfn: leaf.sfn, size: leaf.size };
    let verdict = |seen: Seen| broken(&vm, &mut CheckHistory::new(), &seen);
    assert_eq!(verdict(Seen(cached, Some(Shareability::SHARED), Some(0))), None);
    assert_eq!(verdict(Seen(cached, Some(Shareability::PRIVATE), Some(0))), Some(Invariant::C8));
    assert_eq!(verdict(Seen(cached, None, Some(1))), Some(Invariant::B5));
    let elsewhere = Cached { sfn: Sfn::new(leaf.sfn.raw() + 1), ..cached };
    assert_eq!(verdict(Seen(elsewhere, None, None)), Some(Invariant::E5));
    // A flush that is owed keeps the processor from using it.
    vm.punch_hole(GmemId(0), 0, 16 << 12, QUIET).unwrap();
    assert_eq!(verdict(Seen(cached, None, None)), None);
    vm.take_flush(VcpuId(0), QUIET);
    assert_eq!(verdict(Seen(cached, None, None)), Some(Invariant::E5));
}

#[test]
fn what_somebody_is_changing_is_not_looked_at() {
    let vm = vm();
    let inode = vm.gmem(GmemId(0), QUIET).unwrap();
    let mut exclusive = inode.exclusive(QUIET);
    exclusive.unbind(gmem::PageIndex(0));
    assert_eq!(vm.check(Moment::BetweenSteps, &mut CheckHistory::new(), &Unseen, QUIET), Ok(()));
    drop(exclusive);
    assert_eq!(broken(&vm, &mut CheckHistory::new(), &Unseen), Some(Invariant::A2));
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for &invariant in Invariant::ALL {
        match invariant.checked() {
            Checked::Test(file) | Checked::Asserted(file) => {
                assert!(root.join(file).is_file(), "{invariant}: {file}");
            }
            Checked::Within(other) => assert!(matches!(other.checked(), Checked::Scan(_)), "{invariant}: {other}"),
            Checked::Scan(_) => assert_ne!(invariant.when(), When::Call, "{invariant}"),
            Checked::Open(_) => {}
        }
    }
}
