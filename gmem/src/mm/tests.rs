//! Tests of address spaces: errnos, who holds what, and a byte for byte model.

use std::collections::BTreeMap;
use std::sync::Arc;

use emu_core::errno::Errno;
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{Hva, Hvn, Order, PageSize, Sfn};
use proptest::prelude::*;

use super::*;
use crate::folio::FolioKind;
use crate::{
    ConvertError, CreateInfo, FolioPolicy, GmemPolicy, GuestMemfd, HostConfig, HostMemory, PageIndex, PageRange,
    Shareability,
};

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = PAGE_SIZE as u64;
const AT: Hva = Hva::new(0x7000_0000);
const M2: u64 = PageSize::Size2M.bytes();

fn setup() -> (Arc<SystemMemory>, Host, Mm) {
    let memory = SystemMemory::flat(16 << 20).unwrap();
    let config = HostConfig { first: Sfn::new(512), nr_frames: 4096 - 512, pools: vec![] };
    let host = Host::new(HostMemory::new(Arc::clone(&memory), &config).unwrap());
    let mm = Mm::new(MmId(0), Arc::clone(&memory));
    (memory, host, mm)
}

fn gmem(host: &Host, nr_pages: u64, flags: GmemFlags) -> Arc<GuestMemfd> {
    let policy = FolioPolicy::Buddy { largest: PageSize::Size4K };
    let info = CreateInfo { size_bytes: nr_pages * PAGE, flags: flags.bits(), policy, gmem: GmemPolicy::DEFAULT };
    Arc::new(GuestMemfd::create(host, info, QUIET).unwrap())
}

fn shared_gmem(host: &Host, nr_pages: u64) -> Arc<GuestMemfd> {
    gmem(host, nr_pages, GmemFlags::MMAP | GmemFlags::INIT_SHARED)
}

fn request(at: Hva, nr_pages: u64, what: What) -> MapRequest {
    MapRequest { at, len_bytes: nr_pages * PAGE, prot: Prot::READ_WRITE, sharing: Sharing::Shared, what }
}

fn show(inode: &Arc<GuestMemfd>) -> What {
    What::Gmem { inode: Arc::clone(inode), first: PageIndex(0) }
}

const SMALL: What = What::Anonymous { thp: ThpChoice::Never };
const HUGE: What = What::Anonymous { thp: ThpChoice::Huge };

fn at(page: u64) -> Hva {
    AT.checked_add(page * PAGE).unwrap()
}

fn pages(first: u64, nr_pages: u64) -> PageRange {
    PageRange { first: PageIndex(first), nr_pages }
}

/// Converts as the hypervisor does; how many user entries went.
fn to_private(inode: &GuestMemfd, host: &Host, range: PageRange) -> (u64, Result<(), ConvertError>) {
    let exclusive = inode.exclusive(QUIET);
    let gone = exclusive.unmap_users(range, host, &NoNotifier, QUIET);
    let planned = exclusive.plan_conversion(host, range, Shareability::PRIVATE, QUIET);
    (gone, planned.map(|plan| plan.into_iter().for_each(|plan| exclusive.convert(host, &plan, QUIET).unwrap())))
}

#[test]
fn mmap_answers_as_the_kernel_does() {
    let (_, host, mm) = setup();
    let mappable = shared_gmem(&host, 4);
    let hidden = gmem(&host, 4, GmemFlags::INIT_SHARED);
    let base = || request(AT, 4, show(&mappable));
    let rows: Vec<(&str, MapRequest, Option<Errno>)> = vec![
        ("without the flag", request(AT, 4, show(&hidden)), Some(Errno::NoDev)),
        ("private", MapRequest { sharing: Sharing::Private, ..base() }, Some(Errno::Inval)),
        ("executable", MapRequest { prot: Prot::READ | Prot::EXEC, ..base() }, Some(Errno::Perm)),
        ("no length", MapRequest { len_bytes: 0, ..base() }, Some(Errno::Inval)),
        ("misaligned", MapRequest { at: Hva::new(AT.raw() + 1), ..base() }, Some(Errno::Inval)),
        ("too high", MapRequest { at: Hva::new(TASK_SIZE), ..base() }, Some(Errno::NoMem)),
        ("too long", MapRequest { len_bytes: u64::MAX, ..base() }, Some(Errno::NoMem)),
        ("beyond the end of the file", request(AT, 8, show(&mappable)), None),
        ("taken", request(at(7), 1, SMALL), Some(Errno::Exist)),
        ("beside", request(at(8), 1, SMALL), None),
    ];
    for (what, request, errno) in rows {
        assert_eq!(mm.map(request, QUIET).err().map(|error| error.errno()), errno, "{what}");
    }
    let kernel = Kernel::alone(&host, QUIET);
    assert_eq!(mm.mprotect(AT, PAGE, Prot::EXEC, kernel), Err(MmError::NoExec));
    assert_eq!(mm.mprotect(AT, 10 * PAGE, Prot::READ, kernel).map_err(|e| e.errno()), Err(Errno::NoMem));
    assert_eq!(mm.mlock(AT, 8 * PAGE, QUIET), Ok(()));
    assert!(matches!(mm.mlock(AT, 10 * PAGE, QUIET), Err(MmError::NotMapped { at }) if at == self::at(9)));
}

#[test]
fn madvise_answers_as_the_kernel_does_for_every_kind_of_memory() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    let block = host.lock(QUIET).alloc_device(Order::new(2).unwrap()).unwrap();
    mm.map(request(at(0), 4, SMALL), QUIET).unwrap();
    mm.map(request(at(4), 4, show(&shared_gmem(&host, 4))), QUIET).unwrap();
    mm.map(request(at(8), 4, block.what()), QUIET).unwrap();
    let (ok, inval) = (None, Some(Errno::Inval));
    let rows = [
        (Advice::DontNeed, [ok, ok, inval]),
        (Advice::Remove, [inval, ok, inval]),
        (Advice::HugePage, [ok, ok, inval]),
        (Advice::NoHugePage, [ok, ok, inval]),
        (Advice::Collapse, [ok, inval, inval]),
        (Advice::PageOut, [ok, inval, inval]),
    ];
    for (advice, answers) in rows {
        for (kind, answer) in answers.into_iter().enumerate() {
            let got = mm.madvise(at(4 * kind as u64), 4 * PAGE, advice, kernel).err().map(|error| error.errno());
            assert_eq!(got, answer, "{advice:?} on kind {kind}");
        }
        assert_eq!(mm.madvise(at(12), PAGE, advice, kernel).err().map(|e| e.errno()), Some(Errno::NoMem));
    }
}

#[test]
fn dropping_entries_keeps_a_file_and_empties_anonymous_memory() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    mm.map(request(at(0), 1, SMALL), QUIET).unwrap();
    mm.map(request(at(1), 1, show(&shared_gmem(&host, 1))), QUIET).unwrap();
    let mut back = [9; 2 * PAGE as usize];
    mm.write(at(0), &[7; 2 * PAGE as usize], kernel).unwrap();
    assert!(matches!(mm.madvise(at(0), 2 * PAGE, Advice::DontNeed, kernel), Ok(Advised::Done)));
    mm.read(at(0), &mut back, kernel).unwrap();
    assert!(back[..PAGE as usize].iter().all(|&b| b == 0) && back[PAGE as usize..].iter().all(|&b| b == 7));
}

#[test]
fn a_process_touches_shared_pages_inside_the_file_only() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    let inode = shared_gmem(&host, 4);
    mm.map(request(AT, 6, show(&inode)), QUIET).unwrap();
    assert_eq!(to_private(&inode, &host, pages(1, 1)), (0, Ok(())));
    let read = |page| mm.read(at(page), &mut [0], kernel).map_err(|error| error.fault);
    assert_eq!([read(0), read(2)], [Ok(()), Ok(())]);
    assert_eq!(read(1), Err(UserFault::BusError { at: at(1) }), "private");
    assert_eq!(read(4), Err(UserFault::BusError { at: at(4) }), "behind the end");
    assert_eq!(read(6), Err(UserFault::NotMapped { at: at(6) }));
    mm.mprotect(at(2), PAGE, Prot::READ, kernel).unwrap();
    let denied = mm.write(at(0), &[1; 3 * PAGE as usize], kernel);
    assert_eq!(
        denied,
        Err(UserAccessError { done_bytes: PAGE as usize, fault: UserFault::BusError { at: at(1) } }),
        "what came before is written"
    );
    let denied = mm.write(at(2), &[1], kernel).unwrap_err().fault;
    assert_eq!(denied, UserFault::Denied { at: at(2), access: UserAccess::Write });
    assert_eq!(denied.errno(), Errno::Fault);
    mm.mprotect(at(0), PAGE, Prot::empty(), kernel).unwrap();
    assert!(read(0).is_err());
    mm.mprotect(at(0), PAGE, Prot::READ_WRITE, kernel).unwrap();
    let mut kept = [0];
    mm.read(at(0), &mut kept, kernel).unwrap();
    assert_eq!(kept, [1], "a page that nobody may use keeps its bytes");
}

#[test]
fn failed_memory_is_named_as_such() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    mm.map(request(AT, 1, show(&shared_gmem(&host, 1))), QUIET).unwrap();
    mm.write(AT, &[1], kernel).unwrap();
    let sfn = mm.table().leaf(AT.frame(), QUIET).unwrap().sfn;
    host.lock(QUIET).poison(sfn).unwrap();
    let foll = Foll { access: UserAccess::Read, hold: Hold::Get, wait: Wait::Block };
    assert_eq!(mm.gup(AT, foll, kernel).unwrap_err().errno(), Errno::HwPoison);
    mm.madvise(AT, PAGE, Advice::DontNeed, kernel).map(|_| ()).unwrap();
    assert_eq!(mm.read(AT, &mut [0], kernel).unwrap_err().fault, UserFault::HwPoison { at: AT });
}

#[test]
fn a_conversion_takes_the_page_from_every_process_and_waits_for_no_pin() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    let inode = shared_gmem(&host, 8);
    mm.map(request(AT, 8, show(&inode)), QUIET).unwrap();
    mm.map(request(at(16), 2, What::Gmem { inode: Arc::clone(&inode), first: PageIndex(2) }), QUIET).unwrap();
    mm.write(AT, &[3; 8 * PAGE as usize], kernel).unwrap();
    mm.read(at(16), &mut [0; 2 * PAGE as usize], kernel).unwrap();
    let child = mm.fork(MmId(1), kernel).unwrap();
    mm.munmap(at(5), PAGE, kernel).unwrap();
    assert_eq!(inode.users().list(QUIET).len(), 5, "two here, one of them in two parts, and two in the child");

    let foll = Foll { access: UserAccess::Write, hold: Hold::Pin, wait: Wait::Block };
    let pin = child.gup(at(3), foll, kernel).unwrap();
    let (gone, converted) = to_private(&inode, &host, pages(0, 8));
    assert_eq!(gone, 7 + 2 + 8 + 2);
    assert_eq!(converted, Err(ConvertError::Busy { index: PageIndex(3) }));
    mm.read(at(0), &mut [0], kernel).unwrap();
    pin.release(&host, QUIET);
    assert_eq!(to_private(&inode, &host, pages(0, 8)), (1, Ok(())));
    for process in [&mm, &child] {
        assert!(process.read(at(0), &mut [0], kernel).is_err());
        assert_eq!(process.table().resident(QUIET), (0, 0), "no entry shows a private page");
    }
}

#[test]
fn a_pinned_page_outlives_its_mapping_and_its_index() {
    let (memory, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    let inode = shared_gmem(&host, 1);
    mm.map(request(AT, 1, show(&inode)), QUIET).unwrap();
    mm.write(AT, &[5], kernel).unwrap();
    let held = mm.gup_fast(AT, UserAccess::Read, Hold::Get, &host, QUIET).unwrap();
    assert!(held.is_writable());
    let exclusive = inode.exclusive(QUIET);
    assert_eq!(exclusive.unmap_users(pages(0, 1), &host, &NoNotifier, QUIET), 1);
    exclusive.remove(&host, pages(0, 1), QUIET);
    drop(exclusive);
    let mut fresh = [9];
    mm.read(AT, &mut fresh, kernel).unwrap();
    assert_eq!((fresh, memory.load::<u8>(held.sfn().base())), ([0], Ok(5)), "the old page is still the holder's");
    let sfn = held.sfn();
    held.release(&host, QUIET);
    assert!(host.lock(QUIET).folios().get(sfn).is_none(), "and free when it lets go");
}

#[test]
fn nobody_gets_a_reference_on_device_memory_and_a_stray_one_frees_it_under_the_driver() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    let order = Order::new(2).unwrap();
    let block = host.lock(QUIET).alloc_device(order).unwrap();
    let other = host.lock(QUIET).alloc_device(order).unwrap();
    mm.map(request(AT, 4, block.what()), QUIET).unwrap();
    mm.write(at(1), &[6], kernel).unwrap();
    let foll = Foll { access: UserAccess::Read, hold: Hold::Get, wait: Wait::Block };
    assert_eq!(mm.gup(at(1), foll, kernel), Err(GupError::Device { at: at(1) }));
    assert_eq!(mm.gup_fast(at(1), UserAccess::Read, Hold::Get, &host, QUIET), None);
    assert_eq!(host.lock(QUIET).check_device(&block), Ok(()));
    mm.move_device(AT, 4 * PAGE, other.first(), kernel).unwrap();
    let mut moved = [9];
    mm.read(at(1), &mut moved, kernel).unwrap();
    assert_eq!(moved, [0]);

    let tail = Sfn::new(block.first().raw() + 1);
    let mut host = host.lock(QUIET);
    host.get_page(tail).unwrap();
    assert_eq!(host.check_device(&block), Err(DeviceError::Held { sfn: tail, refs: 1 }));
    host.put_page(tail, 1);
    assert_eq!(host.free_device(block), Err(DeviceError::FreedUnderneath { sfn: tail }));
    assert_eq!(host.free_device(other), Ok(()));
}

#[test]
fn large_anonymous_pages_come_are_cut_and_are_made_again() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    let start = Hva::new(AT.raw().next_multiple_of(M2) + PAGE);
    mm.map(MapRequest { len_bytes: 2 * M2, ..request(start, 0, HUGE) }, QUIET).unwrap();
    let block = start.align_down(PageSize::Size2M).checked_add(M2).unwrap();
    mm.write(block, &[4], kernel).unwrap();
    mm.write(start, &[4], kernel).unwrap();
    let level = |at| mm.mapping_level(at, QUIET);
    assert_eq!([level(block), level(start)], [PageSize::Size2M, PageSize::Size4K], "the first does not lie inside");
    mm.munmap(block.checked_add(PAGE).unwrap(), PAGE, kernel).unwrap();
    assert_eq!(level(block), PageSize::Size4K);
    assert_eq!(mm.table().resident(QUIET), (512, 0));
    mm.map(request(block.checked_add(PAGE).unwrap(), 1, SMALL), QUIET).unwrap();

    let small = Hva::new(0x1_0000_0000);
    mm.map(MapRequest { len_bytes: M2, ..request(small, 0, SMALL) }, QUIET).unwrap();
    mm.write(small, &[8; 3 * PAGE as usize], kernel).unwrap();
    mm.madvise(small, PAGE, Advice::PageOut, kernel).map(|_| ()).unwrap();
    let page = |n: u64| small.checked_add(n * PAGE).unwrap();
    let pin = mm.gup_fast(page(1), UserAccess::Read, Hold::Pin, &host, QUIET).unwrap();
    let collapse = || mm.madvise(small, M2, Advice::Collapse, kernel).map(|_| ()).map_err(|error| error.errno());
    assert_eq!(collapse(), Err(Errno::Again), "a pinned page cannot be replaced");
    pin.release(&host, QUIET);
    assert_eq!(collapse(), Ok(()));
    assert_eq!(level(small), PageSize::Size2M);
    let mut back = [0; 4 * PAGE as usize];
    mm.read(small, &mut back, kernel).unwrap();
    assert!(back[..3 * PAGE as usize].iter().all(|&b| b == 8) && back[3 * PAGE as usize..].iter().all(|&b| b == 0));
    mm.exit(kernel);
    assert_eq!(host.lock(QUIET).stats().folios, [0; 3]);
}

#[test]
fn who_does_not_wait_learns_that_a_page_is_on_the_disk() {
    let (_, host, mm) = setup();
    let kernel = Kernel::alone(&host, QUIET);
    mm.map(request(AT, 1, SMALL), QUIET).unwrap();
    mm.write(AT, &[2], kernel).unwrap();
    mm.madvise(AT, PAGE, Advice::PageOut, kernel).map(|_| ()).unwrap();
    assert_eq!(mm.table().resident(QUIET), (0, 1));
    let foll = |wait| Foll { access: UserAccess::Read, hold: Hold::Get, wait };
    assert_eq!(mm.gup(AT, foll(Wait::Never), kernel), Err(GupError::NeedsIo { at: AT }));
    mm.gup(AT, foll(Wait::Block), kernel).unwrap().release(&host, QUIET);
    let mut back = [0];
    mm.read(AT, &mut back, kernel).unwrap();
    assert_eq!((back, mm.table().resident(QUIET)), ([2], (1, 0)));
}

/// Writes down what it is told.
#[derive(Default)]
struct Ledger(std::sync::Mutex<Vec<HvaRange>>);

impl MmuNotifier for Ledger {
    fn invalidate(
        &self,
        _: MmId,
        range: HvaRange,
        _: NotifyReason,
        task: &Task<'_>,
        change: &mut dyn FnMut(&Task<'_>),
    ) {
        self.0.lock().unwrap().push(range);
        change(task);
    }
    fn clear_young(&self, _: MmId, _: HvaRange, _: &Task<'_>) -> bool {
        false
    }
    fn test_young(&self, _: MmId, _: HvaRange, _: &Task<'_>) -> bool {
        false
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map { page: u64, nr_pages: u64, gmem: Option<u64> },
    Unmap { page: u64, nr_pages: u64 },
    Protect { page: u64, nr_pages: u64, prot: Prot },
    Write { page: u64, value: u8 },
    DontNeed { page: u64, nr_pages: u64 },
    PageOut { page: u64, nr_pages: u64 },
    Convert { index: u64, nr_pages: u64, to: Shareability },
    Punch { index: u64, nr_pages: u64 },
}

const NR_PAGES: u64 = 24;
const INODE_PAGES: u64 = 10;

fn op() -> impl Strategy<Value = Op> {
    let page = 0..NR_PAGES;
    let nr = 1_u64..8;
    let prot = prop_oneof![Just(Prot::READ), Just(Prot::READ_WRITE), Just(Prot::empty())];
    prop_oneof![
        4 => (page.clone(), nr.clone(), prop::option::of(0..INODE_PAGES))
            .prop_map(|(page, nr_pages, gmem)| Op::Map { page, nr_pages, gmem }),
        1 => (page.clone(), nr.clone()).prop_map(|(page, nr_pages)| Op::Unmap { page, nr_pages }),
        1 => (page.clone(), nr.clone(), prot).prop_map(|(page, nr_pages, prot)| Op::Protect { page, nr_pages, prot }),
        8 => (page.clone(), 1_u8..).prop_map(|(page, value)| Op::Write { page, value }),
        1 => (page.clone(), nr.clone()).prop_map(|(page, nr_pages)| Op::DontNeed { page, nr_pages }),
        1 => (page, nr.clone()).prop_map(|(page, nr_pages)| Op::PageOut { page, nr_pages }),
        2 => (0..INODE_PAGES, nr.clone(), any::<bool>()).prop_map(|(index, nr_pages, shared)| Op::Convert {
            index,
            nr_pages,
            to: Shareability::ALL[usize::from(shared)],
        }),
        1 => (0..INODE_PAGES, nr).prop_map(|(index, nr_pages)| Op::Punch { index, nr_pages }),
    ]
}

/// What a page of the address space is.
#[derive(Clone, Copy, Debug)]
struct Page {
    gmem: Option<u64>,
    prot: Prot,
}

/// Addresses and contents, page by page.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, Page>,
    anonymous: BTreeMap<u64, u8>,
    file: BTreeMap<u64, u8>,
    private: [bool; INODE_PAGES as usize],
}

impl Model {
    fn covers(&self, first: u64, nr_pages: u64) -> bool {
        (first..first + nr_pages).all(|page| self.pages.contains_key(&page))
    }
    /// What a read finds, or `None` where there is a fault.
    fn byte(&self, page: u64) -> Option<u8> {
        let Page { gmem, prot } = *self.pages.get(&page)?;
        match gmem {
            _ if prot.is_empty() => None,
            None => Some(self.anonymous.get(&page).copied().unwrap_or(0)),
            Some(index) if index >= INODE_PAGES || self.private[index as usize] => None,
            Some(index) => Some(self.file.get(&index).copied().unwrap_or(0)),
        }
    }
}

struct World {
    host: Host,
    mm: Mm,
    inode: Arc<GuestMemfd>,
    ledger: Ledger,
    model: Model,
}

impl World {
    fn apply(&mut self, op: &Op) {
        let kernel = Kernel { host: &self.host, notifier: &self.ledger, task: QUIET };
        let (mm, model) = (&self.mm, &mut self.model);
        match *op {
            Op::Map { page, nr_pages, gmem } => {
                let free = (page..page + nr_pages).all(|page| !model.pages.contains_key(&page));
                let what = match gmem {
                    None => SMALL,
                    Some(first) => What::Gmem { inode: Arc::clone(&self.inode), first: PageIndex(first) },
                };
                assert_eq!(mm.map(request(at(page), nr_pages, what), QUIET).is_ok(), free);
                for n in (0..nr_pages).filter(|_| free) {
                    let gmem = gmem.map(|first| first + n);
                    model.pages.insert(page + n, Page { gmem, prot: Prot::READ_WRITE });
                }
            }
            Op::Unmap { page, nr_pages } => {
                mm.munmap(at(page), nr_pages * PAGE, kernel).unwrap();
                for page in page..page + nr_pages {
                    model.pages.remove(&page);
                    model.anonymous.remove(&page);
                }
            }
            Op::Protect { page, nr_pages, prot } => {
                let mapped = model.covers(page, nr_pages);
                assert_eq!(mm.mprotect(at(page), nr_pages * PAGE, prot, kernel).is_ok(), mapped);
                for page in (page..page + nr_pages).filter(|_| mapped) {
                    model.pages.get_mut(&page).unwrap().prot = prot;
                }
            }
            Op::Write { page, value } => {
                let may = model.byte(page).is_some() && model.pages[&page].prot.contains(Prot::WRITE);
                assert_eq!(mm.write(at(page), &[value], kernel).is_ok(), may);
                match model.pages.get(&page).filter(|_| may).map(|page| page.gmem) {
                    Some(Some(index)) => model.file.insert(index, value),
                    Some(None) => model.anonymous.insert(page, value),
                    None => None,
                };
            }
            Op::DontNeed { page, nr_pages } => {
                let mapped = model.covers(page, nr_pages);
                let advised = mm.madvise(at(page), nr_pages * PAGE, Advice::DontNeed, kernel);
                assert_eq!(advised.is_ok(), mapped);
                for page in (page..page + nr_pages).filter(|_| mapped) {
                    model.anonymous.remove(&page);
                }
            }
            Op::PageOut { page, nr_pages } => {
                let anonymous = |page| model.pages.get(&page).is_some_and(|page: &Page| page.gmem.is_none());
                let takes = (page..page + nr_pages).all(anonymous);
                let advised = mm.madvise(at(page), nr_pages * PAGE, Advice::PageOut, kernel);
                assert_eq!(advised.is_ok(), takes);
            }
            Op::Convert { index, nr_pages, to } => {
                let range = pages(index, nr_pages.min(INODE_PAGES - index));
                let exclusive = self.inode.exclusive(QUIET);
                if to.is_private() {
                    exclusive.unmap_users(range, &self.host, &self.ledger, QUIET);
                }
                if let Some(plan) = exclusive.plan_conversion(&self.host, range, to, QUIET).unwrap() {
                    exclusive.convert(&self.host, &plan, QUIET).unwrap();
                }
                (index..range.end().0).for_each(|index| model.private[index as usize] = to.is_private());
            }
            Op::Punch { index, nr_pages } => {
                let exclusive = self.inode.exclusive(QUIET);
                exclusive.unmap_users(pages(index, nr_pages), &self.host, &self.ledger, QUIET);
                exclusive.remove(&self.host, pages(index, nr_pages), QUIET);
                for index in index..index + nr_pages {
                    model.file.remove(&index);
                }
            }
        }
    }

    fn entries(&self) -> BTreeMap<Hvn, table::UserPte> {
        self.mm.table().list(QUIET).into_iter().map(|(page, _, pte)| (page, pte)).collect()
    }

    /// What was taken from an entry was announced, and every folio is held as often as it is mapped.
    fn audit(&self, before: &BTreeMap<Hvn, table::UserPte>) {
        let (after, told) = (self.entries(), std::mem::take(&mut *self.ledger.0.lock().unwrap()));
        for (page, old) in before {
            let lost = after.get(page).is_none_or(|new| new.sfn != old.sfn || !new.flags.contains(old.flags));
            assert!(!lost || told.iter().any(|range| range.contains(*page)), "{page:?} lost rights without a notice");
        }
        let mut maps = BTreeMap::new();
        after.values().for_each(|pte| *maps.entry(pte.sfn).or_insert(0) += 1);
        for folio in self.host.lock(QUIET).folios().iter() {
            let mapped = maps.remove(&folio.head).unwrap_or(0);
            let cached = u32::from(folio.meta.kind == FolioKind::Gmem);
            assert_eq!((folio.meta.refs, folio.meta.maps), (cached + mapped, mapped), "{folio:?}");
        }
        assert!(maps.is_empty(), "entries show free frames: {maps:?}");
    }
}

proptest! {
    /// Against a byte a page.
    #[test]
    fn an_address_space_agrees_with_a_byte_for_each_page(ops in prop::collection::vec(op(), 0..60)) {
        let (_, host, mm) = setup();
        let inode = shared_gmem(&host, INODE_PAGES);
        let mut world = World { host, mm, inode, ledger: Ledger::default(), model: Model::default() };
        for op in ops {
            let before = world.entries();
            world.apply(&op);
            world.audit(&before);
        }
        let kernel = Kernel::alone(&world.host, QUIET);
        for page in 0..NR_PAGES {
            let mut byte = [0];
            let read = world.mm.read(at(page), &mut byte, kernel).ok().map(|()| byte[0]);
            prop_assert_eq!(read, world.model.byte(page), "page {}", page);
        }
        world.mm.exit(kernel);
        prop_assert!(world.inode.users().list(QUIET).is_empty());
        world.inode.destroy(&world.host, QUIET);
        prop_assert_eq!(world.host.lock(QUIET).stats().folios, [0; 3]);
    }
}
