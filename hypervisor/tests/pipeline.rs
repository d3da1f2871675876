//! The fault pipeline through the crate's door, with the tables read back by an independent reader.

mod reader;

use std::cell::RefCell;

use emu_core::event::{Bits, Event, EventSink, Group};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};
use hypervisor::tdp::AdBit;
use hypervisor::*;

const FORMATS: [TdpFormat; 2] = [TdpFormat::Npt, TdpFormat::Ept];
const QUIET: &Task<'static> = &Task::QUIET;
const CPU: VcpuId = VcpuId(0);
const G1: u64 = 1 << 30;
const M2: u64 = 2 << 20;

#[derive(Default)]
struct Log(RefCell<Vec<Event>>);

impl EventSink for Log {
    fn report(&self, event: Event) {
        self.0.borrow_mut().push(event);
    }
}

fn empty_vm(format: TdpFormat, pages: PagePolicy, inode_bytes: u64) -> Vm {
    let plan = SystemMemoryPlan::for_guest(inode_bytes, pages);
    let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
    Vm::new(memory, &VmConfig { format, ..VmConfig::new(pages, plan.host) }).unwrap()
}

fn vm(format: TdpFormat, page: PageSize, memory_bytes: u64) -> (Vm, GmemId) {
    let layout = RamLayout::pc(memory_bytes, page).unwrap();
    let vm = empty_vm(format, PagePolicy::of(page), layout.inode_bytes);
    let gmem = vm.add_ram(&layout, SlotId(0), QUIET).unwrap();
    (vm, gmem)
}

fn fault(vm: &Vm, gpa: u64, kind: AccessKind) -> Action {
    vm.handle_fault(CPU, FaultInput::new(Gpa::new(gpa), kind), QUIET).unwrap()
}

fn walk(vm: &Vm, gpa: u64) -> Option<reader::Translation> {
    reader::walk(vm.memory(), vm.format(), vm.root_register(), Gpa::new(gpa))
}

const fn fixed(size: PageSize) -> Action {
    Action::Resume(Resumed::Fixed { size })
}

#[test]
fn each_page_policy_maps_its_size_and_the_guest_sees_what_the_loader_wrote() {
    for format in FORMATS {
        for page in PageSize::ALL {
            let (vm, _) = vm(format, page, 5 * G1);
            for gpa in [0x10_0123, 4 * G1 + 3 * M2 + 0x42] {
                vm.guest_write(Gpa::new(gpa), b"loaded", QUIET).unwrap();
                assert_eq!(walk(&vm, gpa), None, "the host's access maps nothing");
                assert_eq!(fault(&vm, gpa, AccessKind::Read), fixed(page));
                let seen = walk(&vm, gpa).unwrap();
                assert_eq!((seen.size, seen.writable, seen.executable), (page, true, true));
                assert!(seen.accessed && seen.dirty, "a writable leaf starts dirty, as KVM makes it");
                let mut bytes = [0; 6];
                vm.memory().read(seen.spa, &mut bytes).unwrap();
                assert_eq!(&bytes, b"loaded");
                assert_eq!(fault(&vm, gpa, AccessKind::Write), Action::Resume(Resumed::Spurious));
            }
            let stats = vm.stats();
            assert_eq!(stats.tables.mapped[page.index()], 2);
            assert_eq!(stats.folios[page.index()], 2);
            assert_eq!((stats.faults.taken, stats.faults.fixed[page.index()], stats.faults.spurious), (4, 2, 2));
        }
    }
}

#[test]
fn a_terabyte_guest_starts_and_faults_at_once() {
    for page in PageSize::ALL {
        let (vm, _) = vm(TdpFormat::Npt, page, 1 << 40);
        let top = (1 << 40) + G1 - 1;
        assert_eq!(fault(&vm, top, AccessKind::Write), fixed(page));
        assert_eq!(vm.stats().tables.tables[3], 1);
    }
}

#[test]
fn no_slot_is_mmio_and_a_private_access_without_one_leaves_to_the_vmm() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size4K, 16 << 20);
    for gpa in [16 << 20, 0xfee0_0020, 1 << 47, u64::MAX] {
        assert_eq!(fault(&vm, gpa, AccessKind::Write), Action::Mmio { gpa: Gpa::new(gpa) });
    }
    let private =
        |gpa| FaultInput { privacy: Shareability::PRIVATE, ..FaultInput::new(Gpa::new(gpa), AccessKind::Read) };
    for (gpa, reason) in
        [(0xfee0_0020, MemoryFaultReason::PrivateWithoutSlot), (0x1234, MemoryFaultReason::PrivacyMismatch)]
    {
        let exit = vm.handle_fault(CPU, private(gpa), QUIET).unwrap();
        let expected =
            MemoryFault { gpa: Gpa::new(gpa & !0xfff), len_bytes: 4096, privacy: Shareability::PRIVATE, reason };
        assert_eq!(exit, Action::MemoryFault(expected));
    }
    assert_eq!(vm.tables(QUIET).leaves().unwrap(), []);
    assert_eq!(vm.stats().folios, [0; 3], "refused faults populate nothing");
}

#[test]
fn a_rom_slot_in_the_legacy_area_reads_and_refuses_writes() {
    for format in FORMATS {
        let rom = Gpa::new(0xe_0000);
        let layout = RamLayout::pc(16 << 20, PageSize::Size2M).unwrap().without(rom, 0x2_0000).unwrap();
        let vm = empty_vm(format, PagePolicy::of(PageSize::Size2M), layout.inode_bytes);
        vm.add_ram(&layout, SlotId(0), QUIET).unwrap();
        let small = FolioPolicy::Buddy { largest: PageSize::Size4K };
        let gmem = vm.create_guest_memfd_with(0x2_0000, GmemFlags::INIT_SHARED.bits(), small, QUIET).unwrap();
        let spec = MemSlotSpec {
            id: SlotId(9),
            gpa: rom,
            len_bytes: 0x2_0000,
            flags: SlotFlags::READONLY,
            gmem,
            offset_bytes: 0,
        };
        vm.add_memslot(&spec, QUIET).unwrap();
        vm.load_rom(rom, b"firmware", QUIET).unwrap();
        assert_eq!(vm.guest_write(rom, b"x", QUIET), Err(GuestAccessError::ReadOnly { gpa: rom, slot: 9 }));
        assert_eq!(fault(&vm, rom.raw(), AccessKind::Execute), fixed(PageSize::Size4K));
        assert!(!walk(&vm, rom.raw()).unwrap().writable);
        assert_eq!(fault(&vm, rom.raw() + 5, AccessKind::Write), Action::RomWrite { gpa: Gpa::new(0xe_0005) });
        assert_eq!(fault(&vm, 0, AccessKind::Write), fixed(PageSize::Size4K), "RAM beside it cannot be huge");
        assert_eq!(fault(&vm, M2, AccessKind::Write), fixed(PageSize::Size2M));
        let mut bytes = [0; 8];
        vm.guest_read(rom, &mut bytes, QUIET).unwrap();
        assert_eq!(&bytes, b"firmware");
    }
}

#[test]
fn huge_folios_are_not_touched_by_being_mapped() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size1G, 8 * G1);
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    for n in 0..3 {
        assert_eq!(fault(&vm, n * G1, AccessKind::Write), fixed(PageSize::Size1G));
    }
    assert!(resident().saturating_sub(before) < 64 << 20, "three gigabytes are mapped, none is resident");
}

#[test]
fn punched_pages_read_as_zero_give_their_folios_back_and_owe_a_flush() {
    for (page, format) in [(PageSize::Size4K, TdpFormat::Ept), (PageSize::Size2M, TdpFormat::Npt)] {
        let (vm, gmem) = vm(format, page, 64 << 20);
        let (inside, outside) = (3 * M2, 3 * M2 + page.bytes());
        for gpa in [inside, outside] {
            vm.guest_write(Gpa::new(gpa), &[7], QUIET).unwrap();
            fault(&vm, gpa, AccessKind::Write);
        }
        assert_eq!(vm.take_flush(CPU, QUIET), None, "new entries owe nothing");
        let log = Log::default();
        vm.punch_hole(gmem, inside, page.bytes(), &Task::reporting(&log)).unwrap();
        let (first, nr_pages) = (Gpa::new(inside).frame(), page.frames());
        let told: Vec<Event> =
            log.0.borrow().iter().copied().filter(|event| event.kind().group() != Group::Pool).collect();
        let [begin, changed, zapped, flush, punched, removed, end] = told[..] else { panic!("{told:?}") };
        assert_eq!(begin, Event::InvalidateBegin { first, nr_pages });
        assert!(matches!(changed, Event::SpteChanged { gfn, new_spte: Bits(0), .. } if gfn == first), "{changed:?}");
        assert_eq!(zapped, Event::Zapped { gfn: first, size: page });
        assert_eq!(flush, Event::RemoteTlbFlush { first, nr_pages });
        assert!(matches!(punched, Event::Punched { index, nr_pages: n, .. } if (index, n) == (first.raw(), nr_pages)));
        assert!(matches!(removed, Event::FolioRemoved { index, size, .. } if (index, size) == (first.raw(), page)));
        assert!(matches!(end, Event::InvalidateEnd { .. }));
        let flush = FlushRequest::Range { first: Gpa::new(inside).frame(), nr_pages: page.frames() };
        assert_eq!(vm.take_flush(CPU, QUIET), Some(flush));
        assert_eq!(vm.take_flush(CPU, QUIET), None);
        assert_eq!((walk(&vm, inside), walk(&vm, outside).is_some()), (None, true));
        assert_eq!(vm.stats().folios[page.index()], 1);
        let mut bytes = [9; 2];
        vm.guest_read(Gpa::new(inside), &mut bytes[..1], QUIET).unwrap();
        vm.guest_read(Gpa::new(outside), &mut bytes[1..], QUIET).unwrap();
        assert_eq!(bytes, [0, 7]);
        assert_eq!(fault(&vm, inside, AccessKind::Read), fixed(page));
    }
}

#[test]
fn a_small_hole_in_a_huge_folio_clears_only_itself() {
    let (vm, gmem) = vm(TdpFormat::Npt, PageSize::Size2M, 16 << 20);
    for gpa in [0x3000, 0x4000, 0x5000, M2] {
        vm.guest_write(Gpa::new(gpa), &[1], QUIET).unwrap();
    }
    fault(&vm, 0, AccessKind::Write);
    vm.punch_hole(gmem, 0x4000, 0x1000, QUIET).unwrap();
    assert_eq!(walk(&vm, 0x3000), None, "the leaf that reached into the hole is gone as a whole");
    let read = |vm: &Vm, gpa| {
        let mut byte = [9];
        vm.guest_read(Gpa::new(gpa), &mut byte, QUIET).unwrap();
        byte[0]
    };
    assert_eq!([0x3000, 0x4000, 0x5000, M2].map(|gpa| read(&vm, gpa)), [1, 0, 1, 1]);
    assert_eq!(vm.stats().folios[1], 2, "no folio was freed");
}

#[test]
fn a_moved_slot_shows_the_same_bytes_elsewhere_and_a_deleted_one_nothing() {
    let (vm, gmem) = vm(TdpFormat::Ept, PageSize::Size2M, 16 << 20);
    vm.guest_write(Gpa::new(M2 + 1), b"stays", QUIET).unwrap();
    assert_eq!(fault(&vm, M2, AccessKind::Write), fixed(PageSize::Size2M));
    // Off by one page: still the same bytes, but 2M leaves do not fit any more.
    vm.move_memslot(SlotId(0), Gpa::new(G1 + 0x1000), QUIET).unwrap();
    assert_eq!(vm.take_flush(CPU, QUIET), Some(FlushRequest::Range { first: Gfn::new(512), nr_pages: 512 }));
    assert_eq!(fault(&vm, M2, AccessKind::Read), Action::Mmio { gpa: Gpa::new(M2) });
    assert_eq!(fault(&vm, G1 + 0x1000 + M2, AccessKind::Read), fixed(PageSize::Size4K));
    let mut bytes = [0; 5];
    vm.guest_read(Gpa::new(G1 + 0x1000 + M2 + 1), &mut bytes, QUIET).unwrap();
    assert_eq!(&bytes, b"stays");
    assert_eq!(vm.close_guest_memfd(gmem, QUIET), Err(VmError::GmemInUse { id: gmem }));
    vm.remove_memslot(SlotId(0), QUIET).unwrap();
    assert_eq!(vm.tables(QUIET).leaves().unwrap(), []);
    assert_eq!(vm.remove_memslot(SlotId(0), QUIET), Err(MemslotError::NotFound { id: SlotId(0) }.into()));
    assert_eq!(vm.stats().folios[1], 1, "memory belongs to the inode, not to the slot");
    vm.close_guest_memfd(gmem, QUIET).unwrap();
    assert_eq!(vm.stats().host.pools[0].resv, 0);
    assert_eq!(vm.close_guest_memfd(gmem, QUIET), Err(VmError::NoSuchGmem { id: gmem }));
}

#[test]
fn a_converted_page_is_the_guests_alone_and_its_neighbours_are_mapped_small() {
    let (vm, gmem) = vm(TdpFormat::Npt, PageSize::Size2M, 16 << 20);
    vm.guest_write(Gpa::new(0x5000), b"kept", QUIET).unwrap();
    assert_eq!(fault(&vm, 0x5000, AccessKind::Write), fixed(PageSize::Size2M));
    vm.convert(gmem, 0x5000, 0x1000, Shareability::PRIVATE, QUIET).unwrap();
    assert_eq!(vm.take_flush(CPU, QUIET), Some(FlushRequest::Range { first: Gfn::new(0), nr_pages: 512 }));
    assert_eq!(walk(&vm, 0x6000), None, "the 2M leaf reached into the range");
    let private = FaultInput { privacy: Shareability::PRIVATE, ..FaultInput::new(Gpa::new(0x5123), AccessKind::Write) };
    assert!(matches!(fault(&vm, 0x5123, AccessKind::Read), Action::MemoryFault(_)));
    assert_eq!(vm.handle_fault(CPU, private, QUIET), Ok(fixed(PageSize::Size4K)));
    assert_eq!(fault(&vm, 0x6000, AccessKind::Read), fixed(PageSize::Size4K), "one leaf, one attribute");
    let refused = vm.guest_write(Gpa::new(0x4ff0), &[1; 32], QUIET);
    assert!(matches!(refused, Err(GuestAccessError::Backing(_))), "the host may not write the private part");
    // Doing it again does nothing at all.
    let (seq, leaves) = (vm.invalidation().seq(), vm.tables(QUIET).leaves().unwrap());
    vm.convert(gmem, 0x5000, 0x1000, Shareability::PRIVATE, QUIET).unwrap();
    assert_eq!(
        (vm.invalidation().seq(), vm.tables(QUIET).leaves().unwrap(), vm.take_flush(CPU, QUIET)),
        (seq, leaves, None)
    );
    // Back: the bytes are there, and the next fault maps the whole folio again.
    vm.convert(gmem, 0x5000, 0x1000, Shareability::SHARED, QUIET).unwrap();
    let mut bytes = [0; 4];
    vm.guest_read(Gpa::new(0x5000), &mut bytes, QUIET).unwrap();
    assert_eq!(&bytes, b"kept");
    assert_eq!(fault(&vm, 0x5000, AccessKind::Read), fixed(PageSize::Size2M));
    assert_eq!(vm.stats().tables.mapped, [0, 1, 0]);
    let bad = vm.convert(gmem, 0x800, 0x1000, Shareability::SHARED, QUIET);
    assert_eq!(bad, Err(VmError::BadRange { offset_bytes: 0x800, len_bytes: 0x1000 }));
}

#[test]
fn a_huge_leaf_takes_the_place_of_a_table_left_over_from_small_ones() {
    let (vm, _) = vm(TdpFormat::Ept, PageSize::Size2M, 16 << 20);
    vm.move_memslot(SlotId(0), Gpa::new(0x1000), QUIET).unwrap();
    assert_eq!(fault(&vm, M2, AccessKind::Write), fixed(PageSize::Size4K));
    vm.move_memslot(SlotId(0), Gpa::new(0), QUIET).unwrap();
    let tables = |vm: &Vm| reader::tables(vm.memory(), vm.format(), vm.root_register()).len();
    assert_eq!((tables(&vm), vm.stats().tables.tables), (4, [1, 1, 1, 1]));
    vm.take_flush(CPU, QUIET);
    assert_eq!(fault(&vm, M2, AccessKind::Write), fixed(PageSize::Size2M));
    assert_eq!((tables(&vm), vm.stats().tables.tables), (3, [0, 1, 1, 1]));
    let flush = FlushRequest::Range { first: Gfn::new(512), nr_pages: 512 };
    assert_eq!(vm.take_flush(CPU, QUIET), Some(flush), "walks may have cached the way through the old table");
}

#[test]
fn zap_all_frees_every_table_but_the_root() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size4K, 5 * G1);
    let free = vm.stats().host.free_frames;
    for gpa in [0, 4 * G1, M2] {
        fault(&vm, gpa, AccessKind::Write);
    }
    assert_eq!(vm.stats().tables.tables, [3, 2, 1, 1]);
    let root = vm.root();
    vm.zap_all(QUIET).unwrap();
    assert_eq!((vm.root(), vm.take_flush(CPU, QUIET)), (root, Some(FlushRequest::All)));
    assert_eq!(vm.stats().tables.tables, [0, 0, 0, 1]);
    let is_table = |folio: &gmem::folio::Folio| folio.meta.kind == gmem::folio::FolioKind::PageTable;
    let tables = vm.host().lock(QUIET).folios().iter().filter(is_table).count() as u64;
    assert!(tables <= 4, "the root, and what the vCPU keeps at hand");
    assert_eq!(vm.stats().host.free_frames + tables + 3, free + 1, "three folios stay");
    assert_eq!(fault(&vm, 0, AccessKind::Write), fixed(PageSize::Size4K));
}

#[test]
fn accessed_and_dirty_flags_are_harvested_once_and_set_again_by_the_processor() {
    for format in FORMATS {
        let (vm, _) = vm(format, PageSize::Size4K, 16 << 20);
        fault(&vm, 0x3000, AccessKind::Write);
        fault(&vm, 0x9000, AccessKind::Write);
        let harvest = |vm: &Vm, bit| {
            let mut found = Vec::new();
            vm.harvest(Gfn::new(0), 8, bit, &mut |gfn, size| found.push((gfn.raw(), size)), QUIET).unwrap();
            found
        };
        for bit in [AdBit::Accessed, AdBit::Dirty] {
            assert_eq!(harvest(&vm, bit), [(3, PageSize::Size4K)]);
            assert_eq!(harvest(&vm, bit), []);
            assert_eq!(vm.take_flush(CPU, QUIET), Some(FlushRequest::Range { first: Gfn::new(3), nr_pages: 1 }));
        }
        let leaf = walk(&vm, 0x3000).unwrap();
        assert!(!leaf.accessed && !leaf.dirty);
        let dirty = match format {
            TdpFormat::Npt => 1_u64 << 6,
            TdpFormat::Ept => 1 << 9,
        };
        let raw: u64 = vm.memory().load(leaf.entry).unwrap();
        vm.memory().store(leaf.entry, raw | dirty).unwrap();
        assert_eq!(harvest(&vm, AdBit::Dirty), [(3, PageSize::Size4K)]);
        assert!(walk(&vm, 0x9000).unwrap().dirty, "outside the range nothing changes");
    }
}

#[test]
fn running_out_of_memory_is_an_error_and_leaves_the_vm_usable() {
    let pages = PagePolicy::of(PageSize::Size4K);
    let memory = SystemMemory::flat(16 << 20).unwrap();
    let host = HostConfig { first: Sfn::new(16), nr_frames: 12, pools: vec![] };
    let vm = Vm::new(memory, &VmConfig { maxphyaddr: 36, ..VmConfig::new(pages, host) }).unwrap();
    let gmem = vm.add_ram(&RamLayout::pc(1 << 30, PageSize::Size4K).unwrap(), SlotId(0), QUIET).unwrap();
    let mut fixed_pages = 0;
    while vm.handle_fault(CPU, FaultInput::new(Gpa::new(fixed_pages * 0x1000), AccessKind::Write), QUIET).is_ok() {
        fixed_pages += 1;
    }
    assert_eq!(fixed_pages, 5, "twelve frames less the root, three tables, and three more kept at hand");
    vm.punch_hole(gmem, 0, 0x1000, QUIET).unwrap();
    assert_eq!(fault(&vm, 5 * 0x1000, AccessKind::Write), fixed(PageSize::Size4K));
    // The tables at hand serve one far page; for the next there is nothing left to put at hand.
    vm.punch_hole(gmem, 0x1000, 0x1000, QUIET).unwrap();
    assert_eq!(fault(&vm, 512 << 20, AccessKind::Write), fixed(PageSize::Size4K));
    let far = FaultInput::new(Gpa::new(768 << 20), AccessKind::Write);
    assert!(matches!(vm.handle_fault(CPU, far, QUIET), Err(VmError::Table(_))));
}

#[test]
fn ram_that_does_not_fit_leaves_nothing_behind() {
    let (vm, _) = vm(TdpFormat::Npt, PageSize::Size4K, 16 << 20);
    let before = vm.stats();
    let layout = RamLayout {
        inode_bytes: 32 << 20,
        ranges: [(1 << 32, 0), (8 << 20, 16 << 20)]
            .map(|(gpa, offset_bytes)| RamRange { gpa: Gpa::new(gpa), len_bytes: 16 << 20, offset_bytes })
            .to_vec(),
    };
    let refused = vm.add_ram(&layout, SlotId(7), QUIET).unwrap_err();
    assert_eq!(refused, MemslotError::Overlap { at: Gfn::new(0x800), slot: SlotId(0) }.into());
    assert_eq!(vm.memslots(QUIET).iter().map(|slot| slot.id.0).collect::<Vec<_>>(), [0]);
    assert_eq!(VmStats { invalidations: before.invalidations, ..vm.stats() }, before);
}

#[test]
fn bad_configurations_are_named() {
    let memory = SystemMemory::flat(16 << 20).unwrap();
    let config = |maxphyaddr, nr_frames, pools| VmConfig {
        maxphyaddr,
        ..VmConfig::new(PagePolicy::of(PageSize::Size2M), HostConfig { first: Sfn::new(512), nr_frames, pools })
    };
    let why = |config: VmConfig| Vm::new(memory.clone(), &config).err().unwrap().to_string();
    assert!(why(config(52, 512, vec![])).contains("52 bits"));
    assert!(why(config(48, 1 << 20, vec![])).contains("system memory"));
    assert!(why(config(48, 1024, vec![(HugeSize::Size2M, 3)])).contains("only 2 of the 3"));
    let vm = Vm::new(memory.clone(), &config(48, 2048, vec![(HugeSize::Size2M, 2)])).unwrap();
    for (size, flags, part) in [
        (M2, 8, "flags 0x8"),
        (0, 0, "positive multiple"),
        (1 << 63, 0, "positive multiple"),
        (4097, 0, "positive multiple"),
        (0x1000, 0, "2M pages"),
        (3 * M2, 0, "reserve"),
    ] {
        let error = vm.create_guest_memfd(size, flags, QUIET).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(vm.stats().host.pools[0].resv, 0);
}
