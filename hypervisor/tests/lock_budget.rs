//! How many locks a fault of each kind takes: a cost that no busy machine changes. Each is two locked instructions, the
//! better part of a fault's price, and one more is easily added without being noticed.
#![forbid(unsafe_code)]

#[path = "../benches/support/mod.rs"]
mod support;

use std::cell::Cell;

use emu_core::sync::{Point, Schedule, Task, WaitKey};
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use hypervisor::dirty::DirtyLogging;
use hypervisor::{Action, EntryState, FaultInput, Resumed, SlotId, VcpuId, Vm};
use support::{HIGH, QUIET, Setup};

/// Counts the locks that are given up. Nobody else runs, so none is waited for.
#[derive(Default)]
struct Counting(Cell<u32>);

impl Schedule for Counting {
    fn at(&self, _: Point) {}
    fn wait(&self, _: WaitKey) {
        panic!("a task alone waits for a lock");
    }
    fn give_way(&self) {
        panic!("a task alone gives way");
    }
    fn released(&self, _: WaitKey) {
        self.0.set(self.0.get() + 1);
    }
}

fn vm(page: PageSize) -> Vm {
    Setup { memory_bytes: 6 << 30, ..Setup::of(page) }.build().0
}

/// Locks that a fault takes, and its answer.
fn locks(vm: &Vm, input: FaultInput) -> (u32, Action) {
    let counting = Counting::default();
    let action = vm.handle_fault(VcpuId(0), input, &Task::QUIET.under(&counting)).expect("memory is enough");
    (counting.0.get(), action)
}

fn write_at(at: u64) -> FaultInput {
    FaultInput::new(Gpa::new(HIGH + at), AccessKind::Write)
}

fn zap(vm: &Vm) {
    vm.zap_range(Gfn::new(HIGH >> 12), 1 << 10, QUIET).expect("tables are memory");
    vm.take_flush(VcpuId(0), QUIET);
}

/// A fault that is fixed.
const fn fixed(size: PageSize) -> Action {
    Action::Resume(Resumed::Fixed { size })
}

#[test]
fn a_fault_of_each_kind_takes_no_more_locks_than_it_needs() {
    let [small, huge, _] = PageSize::ALL;
    for page in [small, huge] {
        let vm = vm(page);
        // The processor's own, the memslots, the inode's, the page cache, `mmu_lock`; and the lane's stock where memory is
        // populated, which for a huge folio is done behind the folio's lock after a second look.
        let (again, first) = (5, if page == small { 6 } else { 8 });
        // Tables, nodes and the stock are there afterwards.
        for n in 0..4 {
            locks(&vm, write_at(n * page.bytes()));
        }
        assert_eq!(locks(&vm, write_at(4 * page.bytes())), (first, fixed(page)), "first touch of {page}");
        assert_eq!(
            locks(&vm, write_at(4 * page.bytes())),
            (again, Action::Resume(Resumed::Spurious)),
            "a leaf of {page}"
        );
        zap(&vm);
        assert_eq!(locks(&vm, write_at(0)), (again, fixed(page)), "{page} that is there and not mapped");
    }
}

#[test]
fn what_needs_no_lock_of_the_tables_takes_none() {
    let page = PageSize::Size4K;
    let vm = vm(page);
    locks(&vm, write_at(0));
    let slot = vm.memslots(QUIET).lookup(Gfn::new(HIGH >> 12)).map(|slot| slot.info().id).unwrap_or(SlotId(0));
    vm.set_dirty_logging(slot, DirtyLogging::On, QUIET).expect("a slot of memory");
    vm.take_flush(VcpuId(0), QUIET);
    // The processor's own, the memslots, and what keeps tables from being freed.
    let withheld = FaultInput { entry: EntryState::Denied, ..write_at(0) };
    assert_eq!(locks(&vm, withheld), (3, fixed(page)), "a store that is withheld for the log");
    let device = FaultInput { entry: EntryState::Reserved, ..FaultInput::new(Gpa::new(0xf000_0000), AccessKind::Read) };
    let mmio = Action::Mmio { gpa: device.gpa };
    assert_eq!(locks(&vm, FaultInput { entry: EntryState::NotPresent, ..device }).1, mmio);
    assert_eq!(locks(&vm, device), (2, mmio), "a device where one was found before");
}
