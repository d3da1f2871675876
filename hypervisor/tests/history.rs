//! Random histories of a VM against a naive model: memslots come, move and go, pages are faulted in, punched out and
//! converted, guest and host write, and after every step every leaf, table, cached translation and counter is checked.
//! Here one call ends before the next begins; `interleaved.rs` lets them overlap.

mod reader;

use std::collections::{BTreeMap, BTreeSet};

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};
use gmem::PageIndex;
use gmem::folio::FolioKind;
use hypervisor::check::{Cached, CheckHistory, Moment, Witness};
use hypervisor::tdp::{AdBit, Rights};
use hypervisor::*;
use proptest::prelude::*;

const QUIET: &Task<'static> = &Task::QUIET;
const CPU: VcpuId = VcpuId(0);
const M2: u64 = PageSize::Size2M.frames();
/// Neither a hole nor a change of size.
const FALLOC_FL_KEEP_SIZE: u32 = 1;
const INODE_PAGES: u64 = 4 * M2;
const GUEST_PAGES: u64 = 10 * M2;

#[derive(Clone, Debug)]
enum Op {
    AddSlot { id: u16, first: u64, nr_pages: u64, gmem: u32, offset: u64, readonly: bool },
    RemoveSlot { id: u16 },
    MoveSlot { id: u16, first: u64 },
    Fault { gfn: u64, kind: AccessKind, privacy: Shareability },
    Punch { gmem: u32, first: u64, nr_pages: u64 },
    Convert { gmem: u32, first: u64, nr_pages: u64, to: Shareability },
    Populate { gmem: u32, first: u64, nr_pages: u64 },
    Zap { first: u64, nr_pages: u64 },
    ZapAll,
    GuestWrite { gfn: u64, value: u8 },
    HostWrite { gfn: u64, value: u8 },
    HostRead { gfn: u64 },
    Harvest { first: u64, nr_pages: u64, dirty: bool },
}

fn kind() -> impl Strategy<Value = AccessKind> {
    prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Execute)]
}

fn privacy() -> impl Strategy<Value = Shareability> {
    prop_oneof![3 => Just(Shareability::SHARED), 1 => Just(Shareability::PRIVATE)]
}

/// Frame numbers around the edges of 2M pages, where levels change.
fn frame() -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0_u64), Just(1), Just(2), Just(0x100), Just(M2 - 1)];
    (0..GUEST_PAGES / M2, near).prop_map(|(block, near)| block * M2 + near)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1_u64), Just(3), Just(M2 / 2), Just(M2), Just(M2 + 2), Just(2 * M2)]
}

fn op() -> impl Strategy<Value = Op> {
    let inode_page = || frame().prop_map(|n| n % INODE_PAGES);
    prop_oneof![
        4 => (0_u16..4, frame(), length(), 0_u32..2, inode_page(), prop::bool::weighted(0.2)).prop_map(
            |(id, first, nr_pages, gmem, offset, readonly)| {
                Op::AddSlot { id, first, nr_pages, gmem, offset, readonly }
            }
        ),
        1 => (0_u16..4).prop_map(|id| Op::RemoveSlot { id }),
        1 => (0_u16..4, frame()).prop_map(|(id, first)| Op::MoveSlot { id, first }),
        8 => (frame(), kind(), privacy()).prop_map(|(gfn, kind, privacy)| Op::Fault { gfn, kind, privacy }),
        2 => (0_u32..2, inode_page(), length(), privacy())
            .prop_map(|(gmem, first, nr_pages, to)| Op::Convert { gmem, first, nr_pages, to }),
        3 => (0_u32..2, inode_page(), length())
            .prop_map(|(gmem, first, nr_pages)| Op::Punch { gmem, first, nr_pages }),
        1 => (0_u32..2, inode_page(), length())
            .prop_map(|(gmem, first, nr_pages)| Op::Populate { gmem, first, nr_pages }),
        1 => (frame(), length()).prop_map(|(first, nr_pages)| Op::Zap { first, nr_pages }),
        1 => Just(Op::ZapAll),
        6 => (frame(), any::<u8>()).prop_map(|(gfn, value)| Op::GuestWrite { gfn, value }),
        3 => (frame(), any::<u8>()).prop_map(|(gfn, value)| Op::HostWrite { gfn, value }),
        4 => frame().prop_map(|gfn| Op::HostRead { gfn }),
        1 => (frame(), length(), any::<bool>())
            .prop_map(|(first, nr_pages, dirty)| Op::Harvest { first, nr_pages, dirty }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    id: u16,
    first: u64,
    nr_pages: u64,
    gmem: u32,
    offset: u64,
    readonly: bool,
}

impl Slot {
    fn end(&self) -> u64 {
        self.first + self.nr_pages
    }
}

/// A translation that a processor has cached.
#[derive(Clone, Copy, Debug)]
struct TlbEntry {
    gfn: u64,
    sfn: u64,
    size: PageSize,
    writable: bool,
}

fn fault_exit(gpa: Gpa, privacy: Shareability, reason: MemoryFaultReason) -> Action {
    let gpa = gpa.align_down(PageSize::Size4K);
    Action::MemoryFault(MemoryFault { gpa, len_bytes: 4096, privacy, reason })
}

struct World {
    vm: Vm,
    private: BTreeSet<(u32, u64)>,
    slots: Vec<Slot>,
    bytes: BTreeMap<(u32, u64), u8>,
    tlb: Vec<TlbEntry>,
    history: CheckHistory,
}

impl World {
    fn new(format: TdpFormat, pages: PagePolicy) -> World {
        let plan = SystemMemoryPlan::for_guest((2 * INODE_PAGES) << 12, pages);
        let memory = SystemMemory::flat(plan.arena_bytes).unwrap();
        let vm = Vm::new(memory, &VmConfig { format, maxphyaddr: 40, ..VmConfig::new(pages, plan.host) }).unwrap();
        for n in 0..2 {
            let made = vm.create_guest_memfd(INODE_PAGES << 12, GmemFlags::INIT_SHARED.bits(), QUIET).unwrap();
            assert_eq!(made, GmemId(n));
        }
        World {
            vm,
            private: BTreeSet::new(),
            slots: Vec::new(),
            bytes: BTreeMap::new(),
            tlb: Vec::new(),
            history: CheckHistory::new(),
        }
    }

    fn slot_at(&self, gfn: u64) -> Option<Slot> {
        self.slots.iter().copied().find(|s| s.first <= gfn && gfn < s.end())
    }

    fn place(&self, gfn: u64) -> Option<(u32, u64)> {
        self.slot_at(gfn).map(|s| (s.gmem, gfn - s.first + s.offset))
    }

    fn is_private(&self, gfn: u64) -> bool {
        self.place(gfn).is_some_and(|place| self.private.contains(&place))
    }

    fn walk(&self, gfn: u64) -> Option<reader::Translation> {
        reader::walk(self.vm.memory(), self.vm.format(), self.vm.root_register(), Gfn::new(gfn).base())
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::AddSlot { id, first, nr_pages, gmem, offset, readonly } => {
                self.add_slot(Slot { id, first, nr_pages, gmem, offset, readonly });
            }
            Op::RemoveSlot { id } => self.remove_slot(id),
            Op::MoveSlot { id, first } => self.move_slot(id, first),
            Op::Fault { gfn, kind, privacy } => self.fault(gfn, kind, privacy),
            Op::Convert { gmem, first, nr_pages, to } => self.convert(gmem, first, nr_pages, to),
            Op::Punch { gmem, first, nr_pages } => self.punch(gmem, first, nr_pages),
            Op::Populate { gmem, first, nr_pages } => self.populate(gmem, first, nr_pages),
            Op::Zap { first, nr_pages } => {
                self.vm.zap_range(Gfn::new(first), nr_pages, QUIET).unwrap();
                assert!((first..first + nr_pages).all(|gfn| self.walk(gfn).is_none()), "zapped");
            }
            Op::ZapAll => {
                self.vm.zap_all(QUIET).unwrap();
                assert_eq!(self.vm.stats().tables.tables, [0, 0, 0, 1]);
            }
            Op::GuestWrite { gfn, value } => self.guest_write(gfn, value),
            Op::HostWrite { gfn, value } => {
                let written = self.vm.guest_write(Gfn::new(gfn).base(), &[value], QUIET);
                let allowed = self.slot_at(gfn).is_some_and(|s| !s.readonly) && !self.is_private(gfn);
                assert_eq!(written.is_ok(), allowed);
                if let (Ok(()), Some(place)) = (written, self.place(gfn)) {
                    self.bytes.insert(place, value);
                }
            }
            Op::HostRead { gfn } => {
                let mut byte = [0];
                let read = self.vm.guest_read(Gfn::new(gfn).base(), &mut byte, QUIET);
                assert_eq!(read.is_ok(), self.slot_at(gfn).is_some() && !self.is_private(gfn));
                if let (Ok(()), Some(place)) = (read, self.place(gfn)) {
                    assert_eq!(
                        byte[0],
                        self.bytes.get(&place).copied().unwrap_or(0),
                        "{place:?} shows what was written or zero"
                    );
                }
            }
            Op::Harvest { first, nr_pages, dirty } => {
                let bit = if dirty { AdBit::Dirty } else { AdBit::Accessed };
                let mut found = Vec::new();
                self.vm
                    .harvest(Gfn::new(first), nr_pages, bit, &mut |gfn, size| found.push((gfn, size)), QUIET)
                    .unwrap();
                for (gfn, size) in found {
                    let leaf = self.walk(gfn.raw()).expect("what was harvested is mapped");
                    assert!(leaf.size == size && !(if dirty { leaf.dirty } else { leaf.accessed }));
                }
            }
        }
        self.obey_flush();
    }

    fn add_slot(&mut self, slot: Slot) {
        let spec = MemSlotSpec {
            id: SlotId(slot.id),
            gpa: Gfn::new(slot.first).base(),
            len_bytes: slot.nr_pages << 12,
            flags: if slot.readonly { SlotFlags::READONLY } else { SlotFlags::empty() },
            gmem: GmemId(slot.gmem),
            offset_bytes: slot.offset << 12,
        };
        let sound = self.slots.iter().all(|s| {
            let apart = |a: u64, b: u64| a + slot.nr_pages <= b || b + s.nr_pages <= a;
            s.id != slot.id && apart(slot.first, s.first) && (s.gmem != slot.gmem || apart(slot.offset, s.offset))
        });
        let sound = sound && slot.offset + slot.nr_pages <= INODE_PAGES;
        let generation = self.vm.memslots(QUIET).generation();
        assert_eq!(self.vm.add_memslot(&spec, QUIET).is_ok(), sound);
        if sound {
            self.slots.push(slot);
        } else {
            assert_eq!(self.vm.memslots(QUIET).generation(), generation, "a refused call leaves no trace");
        }
    }

    fn remove_slot(&mut self, id: u16) {
        let at = self.slots.iter().position(|s| s.id == id);
        let sound = at.is_some();
        assert_eq!(self.vm.remove_memslot(SlotId(id), QUIET).is_ok(), sound);
        if let (true, Some(at)) = (sound, at) {
            self.slots.swap_remove(at);
        }
    }

    fn move_slot(&mut self, id: u16, first: u64) {
        let at = self.slots.iter().position(|s| s.id == id);
        let sound = at.is_some_and(|at| {
            let moved = Slot { first, ..self.slots[at] };
            let free = |s: &Slot| s.id == id || moved.end() <= s.first || s.end() <= moved.first;
            self.slots.iter().all(free)
        });
        assert_eq!(self.vm.move_memslot(SlotId(id), Gfn::new(first).base(), QUIET).is_ok(), sound);
        if let (true, Some(at)) = (sound, at) {
            self.slots[at].first = first;
        }
    }

    fn fault(&mut self, gfn: u64, kind: AccessKind, privacy: Shareability) {
        let gpa = Gpa::new(gfn << 12 | 0x123);
        let expected = match self.slot_at(gfn) {
            None if privacy.is_private() => Some(fault_exit(gpa, privacy, MemoryFaultReason::PrivateWithoutSlot)),
            None => Some(Action::Mmio { gpa }),
            Some(_) if self.is_private(gfn) != privacy.is_private() => {
                Some(fault_exit(gpa, privacy, MemoryFaultReason::PrivacyMismatch))
            }
            Some(s) if s.readonly && kind == AccessKind::Write => Some(Action::RomWrite { gpa }),
            Some(_) => None,
        };
        let allowed = self.walk(gfn).is_some_and(|leaf| leaf.writable || kind != AccessKind::Write);
        let action = self.vm.handle_fault(CPU, FaultInput { privacy, ..FaultInput::new(gpa, kind) }, QUIET).unwrap();
        match (expected, action) {
            (Some(expected), action) => assert_eq!(action, expected),
            (None, Action::Resume(resumed)) => {
                let leaf = self.walk(gfn).expect("the fault is served");
                assert!(leaf.executable && (leaf.writable || kind != AccessKind::Write));
                match resumed {
                    Resumed::Fixed { size } => assert_eq!((leaf.size, allowed), (size, false)),
                    Resumed::Spurious => assert!(allowed),
                    Resumed::Retry => panic!("nothing to race with"),
                }
            }
            (None, other) => panic!("{other:?} where memory is"),
        }
    }

    fn punch(&mut self, gmem: u32, first: u64, nr_pages: u64) {
        let end = (first + nr_pages).min(INODE_PAGES);
        let seq = self.vm.invalidation().seq();
        self.vm.punch_hole(GmemId(gmem), first << 12, nr_pages << 12, QUIET).unwrap();
        let mut shown = false;
        for s in self.slots.iter().filter(|s| s.gmem == gmem) {
            let (from, to) = (s.offset.max(first), (s.offset + s.nr_pages).min(end));
            shown |= from < to;
            assert!((from..to).all(|i| self.walk(s.first + i - s.offset).is_none()), "a hole is unmapped");
        }
        assert_eq!(self.vm.invalidation().seq() - seq, u64::from(shown), "who shows nothing is not disturbed");
        let inode = self.vm.gmem(GmemId(gmem), QUIET).unwrap();
        for index in [first, end - 1] {
            let private = self.private.contains(&(gmem, index));
            assert_eq!(inode.attribute(PageIndex(index), QUIET).is_private(), private, "a hole changes no attribute");
        }
        self.bytes.retain(|&(g, i), _| g != gmem || i < first || i >= end);
    }

    /// The bytes are compared by every later read.
    fn populate(&mut self, gmem: u32, first: u64, nr_pages: u64) {
        let sound = first + nr_pages <= INODE_PAGES;
        let leaves = self.vm.stats().tables.mapped;
        let (offset, len) = ((first << 12) as i64, (nr_pages << 12) as i64);
        let done = self.vm.fallocate(GmemId(gmem), FALLOC_FL_KEEP_SIZE, offset, len, QUIET);
        assert_eq!(done.is_ok(), sound, "{done:?}");
        assert_eq!(self.vm.stats().tables.mapped, leaves, "populating maps nothing");
        let inode = self.vm.gmem(GmemId(gmem), QUIET).unwrap();
        let there = (first..first + nr_pages).all(|index| inode.peek(PageIndex(index), QUIET).is_some());
        assert!(!sound || there, "every page of the range has a folio");
    }

    /// 4K pages that an inode has.
    fn populated(&self, gmem: u32) -> u64 {
        let inode = self.vm.gmem(GmemId(gmem), QUIET).unwrap();
        let folios = inode.folios(QUIET);
        PageSize::ALL.iter().map(|&size| folios[size.index()] * size.frames()).sum()
    }

    fn convert(&mut self, gmem: u32, first: u64, nr_pages: u64, to: Shareability) {
        let sound = first + nr_pages <= INODE_PAGES;
        let places = || (first..first + nr_pages).map(|i| (gmem, i));
        let changes = places().any(|place| self.private.contains(&place) != to.is_private());
        let seq = self.vm.invalidation().seq();
        let populated = self.populated(gmem);
        let done = self.vm.convert(GmemId(gmem), first << 12, nr_pages << 12, to, QUIET);
        assert_eq!(done.is_ok(), sound);
        assert_eq!(self.populated(gmem), populated, "a conversion populates nothing");
        assert_eq!(
            self.vm.invalidation().seq() != seq,
            sound
                && changes
                && self
                    .slots
                    .iter()
                    .any(|s| { s.gmem == gmem && s.offset < first + nr_pages && first < s.offset + s.nr_pages }),
            "only a conversion that changes what a slot shows invalidates"
        );
        if sound && to.is_private() {
            self.private.extend(places());
        } else if sound {
            places().for_each(|place| {
                self.private.remove(&place);
            });
        }
    }

    /// A store of the guest: through the TLB if it can, else through the tables, which fills the TLB.
    fn guest_write(&mut self, gfn: u64, value: u8) {
        let cached = self.tlb.iter().copied().find(|e| e.gfn <= gfn && gfn < e.gfn + e.size.frames());
        let entry = cached.or_else(|| {
            let leaf = self.walk(gfn)?;
            let base = Gfn::new(gfn).align_down(leaf.size).raw();
            let sfn = leaf.spa.frame().align_down(leaf.size).raw();
            let entry = TlbEntry { gfn: base, sfn, size: leaf.size, writable: leaf.writable };
            self.tlb.push(entry);
            Some(entry)
        });
        if let Some(entry) = entry.filter(|e| e.writable) {
            self.vm.memory().store(Sfn::new(entry.sfn + gfn - entry.gfn).base(), value).unwrap();
            let place = self.place(gfn).expect("nothing is translated outside a memslot");
            self.bytes.insert(place, value);
        }
    }

    fn obey_flush(&mut self) {
        match self.vm.take_flush(CPU, QUIET) {
            None => {}
            Some(FlushRequest::All) => self.tlb.clear(),
            Some(FlushRequest::Range { first, nr_pages }) => {
                let (from, to) = (first.raw(), first.raw().saturating_add(nr_pages));
                self.tlb.retain(|e| e.gfn + e.size.frames() <= from || to <= e.gfn);
            }
        }
    }

    fn check(&mut self) {
        let mut history = std::mem::take(&mut self.history);
        if let Err(violation) = self.vm.check(Moment::Quiescent, &mut history, self, QUIET) {
            panic!("{violation}");
        }
        self.history = history;
        let leaves = self.vm.tables(QUIET).leaves().unwrap();
        for leaf in &leaves {
            let slot = self.slot_at(leaf.gfn.raw()).expect("a leaf lies in a memslot");
            assert_eq!(leaf.rights.contains(Rights::WRITE), !slot.readonly);
            let seen = self.walk(leaf.gfn.raw()).expect("the hardware's view has the leaf");
            assert_eq!((seen.spa, seen.size), (leaf.sfn.base(), leaf.size));
            let inode = self.vm.gmem(GmemId(slot.gmem), QUIET).unwrap();
            let index = PageIndex(leaf.gfn.raw() - slot.first + slot.offset);
            let private = self.private.contains(&(slot.gmem, index.0));
            assert_eq!(inode.attribute(index, QUIET).is_private(), private, "the model and the inode agree");
        }
        let mut reachable = reader::tables(self.vm.memory(), self.vm.format(), self.vm.root_register());
        reachable.sort();
        let host = self.vm.host().lock(QUIET);
        let used = host.folios().iter().filter(|f| f.meta.kind == FolioKind::PageTable).count();
        assert!(used <= reachable.len() + 3, "no table is lost; a vCPU keeps three at hand");
        drop(host);
        assert_eq!(self.vm.stats().tables.tables.iter().sum::<u64>(), reachable.len() as u64);
        for gfn in (0..GUEST_PAGES).step_by(M2 as usize / 4) {
            let found = self.vm.memslots(QUIET).lookup(Gfn::new(gfn)).map(|s| s.info().id.0);
            assert_eq!(found, self.slot_at(gfn).map(|s| s.id));
        }
    }
}

impl Witness for World {
    fn translations(&self, _: VcpuId, each: &mut dyn FnMut(Cached)) {
        for entry in &self.tlb {
            each(Cached { gfn: Gfn::new(entry.gfn), sfn: Sfn::new(entry.sfn), size: entry.size });
        }
    }

    fn extra_references(&self, _: Sfn) -> Option<u32> {
        Some(0)
    }
}

fn policies() -> impl Strategy<Value = PagePolicy> {
    prop_oneof![
        Just(PagePolicy::of(PageSize::Size4K)),
        Just(PagePolicy::of(PageSize::Size2M)),
        Just(PagePolicy { folios: FolioPolicy::Buddy { largest: PageSize::Size2M }, max_level: PageSize::Size1G }),
        Just(PagePolicy { max_level: PageSize::Size4K, ..PagePolicy::of(PageSize::Size2M) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn random_histories_keep_the_invariants(
        ept in any::<bool>(),
        furnished in prop::bool::weighted(0.7),
        pages in policies(),
        ops in prop::collection::vec(op(), 1..100),
    ) {
        let mut world = World::new(if ept { TdpFormat::Ept } else { TdpFormat::Npt }, pages);
        if furnished {
            // Two aligned slots, where leaves can be huge from the start.
            for n in 0..2 {
                let (id, first, readonly) = (n as u16, u64::from(n) * INODE_PAGES, false);
                world.add_slot(Slot { id, first, nr_pages: INODE_PAGES, gmem: n, offset: 0, readonly });
            }
        }
        for op in ops {
            world.step(op);
            world.check();
        }
    }
}
