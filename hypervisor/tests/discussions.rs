//! Points of discussions about guest memory that no other test shows by itself: what is said when a leaf is smaller than
//! its folio, and conversions that wait for whoever holds a page.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use emu_core::event::{ClipReason, Event, EventSink};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, PageSize};
use gmem::policy::BusyPages;
use gmem::{ConvertError, GmemPolicy, OrderRule, PageIndex};
use hypervisor::dirty::DirtyLogging;
use hypervisor::*;
use interleave::{Body, Exhaustive, Program, Stopped, explore};

const QUIET: &Task<'static> = &Task::QUIET;
const M2: u64 = PageSize::Size2M.frames();
const PAGES: u64 = 4 * M2;

/// Remembers the last clip.
#[derive(Default)]
struct Clip(RefCell<Option<(Gfn, PageSize, PageSize, ClipReason)>>);

impl EventSink for Clip {
    fn report(&self, event: Event) {
        if let Event::OrderClipped { gfn, folio, size, reason } = event {
            *self.0.borrow_mut() = Some((gfn, folio, size, reason));
        }
    }
}

fn vm(page: PageSize, gmem: GmemPolicy, slot: (u64, u64, u64)) -> (Vm, GmemId) {
    let pages = PagePolicy::of(page);
    let plan = SystemMemoryPlan::for_guest(PAGES << 12, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
    let vm = Vm::new(memory, &VmConfig { gmem, ..VmConfig::new(pages, plan.host) }).unwrap();
    let id = vm.create_guest_memfd(PAGES << 12, (GmemFlags::MMAP | GmemFlags::INIT_SHARED).bits(), QUIET).unwrap();
    let (first, nr_pages, offset) = slot;
    let (gpa, len_bytes, offset_bytes) = (Gfn::new(first).base(), nr_pages << 12, offset << 12);
    let (slot, flags) = (SlotId(0), SlotFlags::empty());
    vm.add_memslot(&MemSlotSpec { id: slot, gpa, len_bytes, flags, gmem: id, offset_bytes }, QUIET).unwrap();
    (vm, id)
}

/// A slot over the whole inode, one that starts in the middle of a block, and one a page out of step.
#[test]
fn a_leaf_smaller_than_its_folio_says_why() {
    let policy = GmemPolicy::DEFAULT;
    let always_small = GmemPolicy { order: OrderRule::AlwaysZero, ..policy };
    let whole = (0, PAGES, 0);
    let clipped = |policy, slot: (u64, u64, u64), gfn: u64, before: &dyn Fn(&Vm)| {
        let (vm, _) = vm(PageSize::Size2M, policy, slot);
        before(&vm);
        let clip = Clip::default();
        let input = FaultInput::new(Gfn::new(gfn).base(), AccessKind::Write);
        let action = vm.handle_fault(VcpuId(0), input, &Task::reporting(&clip)).unwrap();
        assert!(matches!(action, Action::Resume(Resumed::Fixed { .. })), "{action:?}");
        clip.0.into_inner().map(|(at, folio, size, reason)| {
            assert_eq!((at, folio), (Gfn::new(gfn), PageSize::Size2M));
            (size, reason)
        })
    };
    let nothing = |_: &Vm| {};
    let log = |vm: &Vm| vm.set_dirty_logging(SlotId(0), DirtyLogging::On, QUIET).unwrap();
    let small = |reason| Some((PageSize::Size4K, reason));
    assert_eq!(clipped(policy, whole, 5, &nothing), None, "nothing was clipped");
    assert_eq!(clipped(policy, (0x100, PAGES - 0x100, 0x100), 0x101, &nothing), small(ClipReason::Slot));
    assert_eq!(clipped(policy, (0x100, PAGES - 0x100, 0x100), M2 + 1, &nothing), None, "the next block is whole");
    assert_eq!(clipped(policy, (M2, M2, 1), M2 + 7, &nothing), small(ClipReason::Alignment));
    assert_eq!(clipped(policy, whole, 5, &log), small(ClipReason::DirtyLogging));
    assert_eq!(clipped(always_small, whole, 5, &nothing), small(ClipReason::Attributes), "the inode says no");
}

/// Somebody holds a page for a while; somebody else makes it private.
fn hold_and_convert(busy: BusyPages, outcome: Rc<Cell<Option<bool>>>) -> Program {
    let (vm, id) = vm(PageSize::Size4K, GmemPolicy { busy, ..GmemPolicy::DEFAULT }, (0, 8, 0));
    let vm = Rc::new(vm);
    let holder: Body = {
        let vm = Rc::clone(&vm);
        Box::new(move |schedule| {
            let task = Task::QUIET.under(schedule);
            let inode = vm.gmem(id, &task).unwrap();
            // Private by now, if the conversion came first.
            let Ok(sfn) = inode.shared(&task).pin_page(vm.host(), PageIndex(3), &task) else { return };
            task.give_way();
            inode.unpin_page(vm.host(), sfn, &task);
        })
    };
    let converter: Body = Box::new(move |schedule| {
        let task = Task::QUIET.under(schedule);
        match vm.convert(id, 2 << 12, 4 << 12, Shareability::PRIVATE, &task) {
            Ok(()) => outcome.set(Some(true)),
            Err(VmError::Convert(ConvertError::Busy { index })) => {
                assert_eq!(index, PageIndex(3), "the error names the page");
                outcome.set(Some(false));
            }
            Err(error) => panic!("{error}"),
        }
    });
    let threads = vec![("holder", holder), ("converter", converter)];
    Program { threads, check: Box::new(|_| Ok(())) }
}

/// Outcomes over all orders of the steps: whether any conversion succeeded, and any was refused.
fn outcomes(busy: BusyPages) -> (bool, bool) {
    let outcome = Rc::new(Cell::new(None));
    let (mut succeeded, mut refused) = (false, false);
    let start = || hold_and_convert(busy, Rc::clone(&outcome));
    let stopped = explore(&start, &mut Exhaustive::new(3), &mut |_| {
        match outcome.take() {
            Some(true) => succeeded = true,
            Some(false) => refused = true,
            None => {}
        }
        true
    });
    assert!(matches!(stopped, Stopped::Exhausted { .. }), "{stopped:?}");
    (succeeded, refused)
}

#[test]
fn a_conversion_that_waits_is_never_refused_for_a_page_that_is_let_go() {
    assert_eq!(outcomes(BusyPages::Refuse), (true, true), "it depends on who comes first");
    assert_eq!(outcomes(BusyPages::Wait { tries: 8 }), (true, false));
}

#[test]
fn a_conversion_that_waits_gives_up_on_a_page_that_is_never_let_go() {
    let policy = GmemPolicy { busy: BusyPages::Wait { tries: 1000 }, ..GmemPolicy::DEFAULT };
    let (vm, id) = vm(PageSize::Size4K, policy, (0, 8, 0));
    let inode = vm.gmem(id, QUIET).unwrap();
    let sfn = inode.shared(QUIET).pin_page(vm.host(), PageIndex(3), QUIET).unwrap();
    let refused = vm.convert(id, 0, 8 << 12, Shareability::PRIVATE, QUIET);
    assert_eq!(refused, Err(VmError::Convert(ConvertError::Busy { index: PageIndex(3) })));
    assert!(!inode.attribute(PageIndex(0), QUIET).is_private(), "all or nothing");
    inode.unpin_page(vm.host(), sfn, QUIET);
    assert_eq!(vm.convert(id, 0, 8 << 12, Shareability::PRIVATE, QUIET), Ok(()));
}
