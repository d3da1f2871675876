//! What the model itself costs of the real host's memory: page caches, folios, units, nested tables, what slots and
//! attributes keep. Guests write nothing here, so whatever becomes resident is that.
//!
//! One test, because what is measured is the process.
#![forbid(unsafe_code)]

use emu_core::memory::SystemMemory;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gpa, PageSize};
use hypervisor::dirty::DirtyLogging;
use hypervisor::*;

const QUIET: &Task<'static> = &Task::QUIET;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const M2: u64 = 2 * MIB;
/// RAM from here on is one memslot, from this offset of its guest_memfd.
const HIGH: u64 = 4 * GIB;
const HIGH_OFFSET: u64 = 3 * GIB;

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number of pages") * PAGE_SIZE as u64
}

/// What `f` makes resident for good, and what it returns, which is still there when that is measured.
fn growth<T>(f: impl FnOnce() -> T) -> (u64, T) {
    let before = resident();
    let kept = f();
    (resident().saturating_sub(before), kept)
}

fn vm(memory_bytes: u64, page: PageSize) -> (Vm, GmemId) {
    let layout = RamLayout::pc(memory_bytes, page).unwrap();
    let pages = PagePolicy::of(page);
    let plan = SystemMemoryPlan::for_guest(layout.inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
    // Else a log would split the leaves of all of the slot.
    let params = MmuParams { eager_page_split: EagerPageSplit::Off, ..MmuParams::default() };
    let vm = Vm::with_params(memory, &VmConfig::new(pages, plan.host), params).unwrap();
    let gmem = vm.add_ram(&layout, SlotId(0), QUIET).unwrap();
    (vm, gmem)
}

/// A write to every `step` bytes of `[from, to)`, which means memory of that kind.
fn touch(vm: &Vm, from: u64, to: u64, step: u64, privacy: Shareability) {
    for at in (from..to).step_by(step as usize) {
        let input = FaultInput { privacy, ..FaultInput::new(Gpa::new(at), AccessKind::Write) };
        let action = vm.handle_fault(VcpuId(0), input, QUIET).unwrap();
        assert!(matches!(action, Action::Resume(_)), "{action:?} at {at:#x}");
    }
}

/// One page of each 2M is private, so that nothing is whole, and every page is mapped by itself, logged, and was held by
/// somebody once.
fn split_fully(vm: &Vm, gmem: GmemId, bytes: u64) {
    let (private, shared) = (Shareability::PRIVATE, Shareability::SHARED);
    let inode = vm.gmem(gmem, QUIET).unwrap();
    vm.set_dirty_logging(SlotId(1), DirtyLogging::On, QUIET).unwrap();
    for at in (0..bytes).step_by(M2 as usize) {
        vm.convert(gmem, HIGH_OFFSET + at, 4096, private, QUIET).unwrap();
        touch(vm, HIGH + at, HIGH + at + 4096, 4096, private);
        touch(vm, HIGH + at + 4096, HIGH + at + M2, 4096, shared);
        let index = gmem::PageIndex((HIGH_OFFSET + at) / 4096 + 1);
        let held = inode.shared(QUIET).get_page(vm.host(), index, QUIET).unwrap();
        inode.put_page(vm.host(), held, QUIET);
    }
    assert_eq!(vm.tables(QUIET).stats().mapped[0], bytes / 4096);
}

#[test]
fn what_stands_behind_a_gib_costs_little() {
    for page in [PageSize::Size2M, PageSize::Size1G] {
        let (grown, (vm, gmem)) = growth(|| {
            let (vm, gmem) = vm(40 * GIB, page);
            touch(&vm, HIGH, HIGH + 32 * GIB, page.bytes(), Shareability::SHARED);
            (vm, gmem)
        });
        assert!(grown < 32 * MIB, "{} KiB for 32 GiB in folios of {page}", grown >> 10);
        let (grown, ()) = growth(|| split_fully(&vm, gmem, 4 * GIB));
        assert!(grown < 4 * 6 * MIB, "{} KiB for 4 GiB of folios of {page} in pieces", grown >> 10);
    }
    for page in PageSize::ALL {
        let (grown, _vm) = growth(|| {
            let (vm, _) = vm(1 << 40, page);
            touch(&vm, HIGH, HIGH + GIB, 4096.max(page.bytes()), Shareability::SHARED);
            vm
        });
        assert!(grown < 100 * MIB, "{} KiB for a GiB of a TiB in pages of {page}", grown >> 10);
    }
}
