//! The real thing: a VM with two processors, each with a TLB of its own, and whoever holds pages. Calls are made through
//! the crate's door alone; the nested tables are read by the naive reader.

use std::collections::BTreeSet;

use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Hva, PageSize, Sfn, Spa};
use gmem::folio::{Folio, FolioKind};
use gmem::mm::{Advice, MapRequest, Prot, Sharing, ThpChoice, UserAccess, What};
use gmem::{GetError, PageIndex};
use hypervisor::check::{Cached, CheckHistory, Moment, Witness};
use hypervisor::dirty::{DirtyLogError, DirtyLogging};
use hypervisor::tdp::AdType;
use hypervisor::*;

use super::model::{Answer, GUEST_PAGES, HANDLES, INODE_PAGES, M2, Model, Op, Place, Shape, USER_PAGES};
use super::reader;

const QUIET: &Task<'static> = &Task::QUIET;
const PAGE: u64 = PageSize::Size4K.bytes();
const HVA: u64 = 0x7000_0000_0000;
/// `FALLOC_FL_KEEP_SIZE`.
const KEEP_SIZE: u32 = 1;
const NR_VCPUS: u16 = 2;

/// A translation that a processor has cached.
#[derive(Clone, Copy, Debug)]
struct TlbEntry {
    gfn: u64,
    size: PageSize,
    head: Spa,
    writable: bool,
    /// The next write need not tell anybody.
    dirty: bool,
}

impl TlbEntry {
    fn holds(&self, gfn: u64) -> bool {
        self.gfn <= gfn && gfn < self.gfn + self.size.frames()
    }

    fn overlaps(&self, from: u64, to: u64) -> bool {
        self.gfn < to && from < self.gfn + self.size.frames()
    }
}

struct Processor {
    id: VcpuId,
    /// What it has loaded into nCR3 or its EPT pointer.
    root: u64,
    tlb: Vec<TlbEntry>,
    /// Where it logs what it writes, and the index of the next entry.
    pml: Option<(Spa, u16)>,
}

pub struct System {
    vm: Vm,
    shape: Shape,
    cpus: Vec<Processor>,
    gmems: [Option<GmemId>; HANDLES],
    pins: Vec<(GmemId, Sfn)>,
    history: CheckHistory,
    /// Some memory has failed.
    failed: bool,
}

impl Witness for System {
    fn translations(&self, vcpu: VcpuId, each: &mut dyn FnMut(Cached)) {
        for entry in &self.cpus[usize::from(vcpu.0)].tlb {
            each(Cached { gfn: Gfn::new(entry.gfn), sfn: entry.head.frame(), size: entry.size });
        }
    }
}

/// An answer of the host's.
fn done<T, E>(result: Result<T, E>) -> Answer {
    if result.is_ok() { Answer::Done } else { Answer::Refused }
}

fn frame(gfn: u64) -> Gfn {
    Gfn::new(gfn)
}

impl System {
    pub fn new(shape: &Shape) -> System {
        let (size, block) = (shape.pages.folios.folio_size(), M2);
        // Twice what the inodes can have, for pages that are held or failed, user memory, and tables.
        let units = 2 * HANDLES as u64 * (INODE_PAGES / block);
        let pools = if size == PageSize::Size2M { vec![(HugeSize::Size2M, units)] } else { Vec::new() };
        let nr_frames = 2 * units * block + 2 * USER_PAGES + 4 * block;
        let memory = SystemMemory::flat((nr_frames + 1) * PAGE).expect("address space");
        let host = HostConfig { first: Sfn::new(1), nr_frames, pools };
        let config = VmConfig {
            format: shape.format,
            maxphyaddr: 40,
            nr_vcpus: NR_VCPUS,
            kind: shape.kind,
            gmem: shape.gmem,
            ..VmConfig::new(shape.pages, host)
        };
        let vm = Vm::with_params(memory, &config, shape.params).expect("a sound configuration");
        let logs = shape.format == TdpFormat::Ept && shape.params.pml == Pml::On;
        let cpus = (0..NR_VCPUS).map(|n| {
            let pml = logs.then(|| (vm.host().lock(QUIET).alloc_table().expect("memory"), PML_ENTRIES - 1));
            Processor { id: VcpuId(n), root: vm.root_register(), tlb: Vec::new(), pml }
        });
        let cpus = cpus.collect();
        let mut system = System {
            vm,
            shape: shape.clone(),
            cpus,
            gmems: [None; HANDLES],
            pins: Vec::new(),
            history: CheckHistory::new(),
            failed: false,
        };
        (0..HANDLES).for_each(|handle| system.create(handle));
        system.map(0, USER_PAGES);
        system
    }

    fn create(&mut self, handle: usize) {
        let flags = match (self.shape.by_vm(), self.shape.initial.is_private()) {
            (true, _) => GmemFlags::empty(),
            (false, true) => GmemFlags::MMAP,
            (false, false) => GmemFlags::MMAP | GmemFlags::INIT_SHARED,
        };
        let made = self.vm.create_guest_memfd(INODE_PAGES * PAGE, flags.bits(), QUIET);
        self.gmems[handle] = Some(made.expect("there is room for every handle"));
    }

    fn map(&self, page: u64, nr_pages: u64) {
        let (at, what) = (Hva::new(HVA + page * PAGE), What::Anonymous { thp: ThpChoice::Huge });
        let sharing = Sharing::Private;
        let request = MapRequest { at, len_bytes: nr_pages * PAGE, prot: Prot::READ_WRITE, sharing, what };
        self.vm.mm().map(request, QUIET).expect("nothing is mapped there");
    }

    fn gmem(&self, handle: usize) -> GmemId {
        self.gmems[handle].expect("calls are made on open files")
    }

    /// Leaves the guest on every processor and makes ready to enter again.
    fn exit(&mut self) {
        for cpu in &mut self.cpus {
            if let Some((page, index)) = &mut cpu.pml {
                self.vm.flush_pml_buffer(cpu.id, *page, *index, QUIET).expect("the buffer is the processor's");
                *index = PML_ENTRIES - 1;
            }
            if let Some(root) = self.vm.take_root(cpu.id).expect("the vCPU exists") {
                cpu.root = root;
            }
            match self.vm.take_flush(cpu.id, QUIET) {
                None => {}
                Some(FlushRequest::All) => cpu.tlb.clear(),
                Some(FlushRequest::Range { first, nr_pages }) => {
                    let (from, to) = (first.raw(), first.raw().saturating_add(nr_pages));
                    cpu.tlb.retain(|entry| !entry.overlaps(from, to));
                }
            }
        }
    }

    /// Makes a call; `after` is what the model is afterwards.
    pub fn perform(&mut self, op: &Op, after: &Model) -> Answer {
        let answer = self.call(op, after);
        self.exit();
        answer
    }

    fn call(&mut self, op: &Op, after: &Model) -> Answer {
        let vm = &self.vm;
        let range = |first: u64, nr_pages: u64| (first * PAGE, nr_pages * PAGE);
        let user = |page: u64| Hva::new(HVA + page * PAGE);
        match *op {
            Op::Create { handle } => {
                self.create(handle);
                Answer::Done
            }
            Op::Close { handle } => {
                let closed = done(vm.close_guest_memfd(self.gmem(handle), QUIET));
                if closed == Answer::Done {
                    self.gmems[handle] = None;
                }
                closed
            }
            Op::AddSlot { id, first, nr_pages, handle, offset, readonly } => {
                self.add(id, first, nr_pages, Some((handle, offset)), offset, readonly)
            }
            Op::AddUserSlot { id, first, nr_pages, page, readonly } => {
                self.add(id, first, nr_pages, None, page, readonly)
            }
            Op::RemoveSlot { id } => done(vm.remove_memslot(SlotId(id), QUIET)),
            Op::MoveSlot { id, first } => done(vm.move_memslot(SlotId(id), frame(first).base(), QUIET)),
            Op::Fault { vcpu, gfn, kind, privacy } => self.fault(vcpu, gfn, kind, privacy),
            Op::Access { vcpu, gfn, kind, value } => self.access(usize::from(vcpu), gfn, kind, value, after),
            Op::PreFault { vcpu, gfn, nr_pages } => {
                let mut range = PreFault { gpa: frame(gfn).base(), len_bytes: nr_pages * PAGE, flags: 0 };
                let ahead = vm.pre_fault_memory(VcpuId(vcpu), &mut range, &mut || true, QUIET);
                assert!(ahead.is_err() || range.len_bytes == 0, "nothing is in the way of {range:?}");
                done(ahead)
            }
            Op::HostRead { gfn } => {
                let mut byte = [0];
                match vm.guest_read(frame(gfn).base(), &mut byte, QUIET) {
                    Ok(()) => Answer::Byte(byte[0]),
                    Err(_) => Answer::Refused,
                }
            }
            Op::HostWrite { gfn, value } => done(vm.guest_write(frame(gfn).base(), &[value], QUIET)),
            Op::HostMap { gfn, value } => match vm.map_guest_page(frame(gfn), UserAccess::Write, QUIET) {
                Ok(map) => {
                    vm.write_mapped(&map, 0, &[value]).expect("a page is memory");
                    vm.unmap_guest_page(map, QUIET);
                    Answer::Done
                }
                Err(_) => Answer::Refused,
            },
            Op::Convert { handle, first, nr_pages, to } => {
                let (offset, len) = range(first, nr_pages);
                done(vm.convert(self.gmem(handle), offset, len, to, QUIET))
            }
            Op::SetAttributes { first, nr_pages, to } => {
                let (address, size) = range(first, nr_pages);
                let attributes = if to.is_private() { MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
                done(vm.set_memory_attributes(&MemoryAttributes { address, size, attributes, flags: 0 }, QUIET))
            }
            Op::Punch { handle, first, nr_pages } => {
                let (offset, len) = range(first, nr_pages);
                done(vm.punch_hole(self.gmem(handle), offset, len, QUIET))
            }
            Op::Populate { handle, first, nr_pages } => {
                let (offset, len) = range(first, nr_pages);
                done(vm.fallocate(self.gmem(handle), KEEP_SIZE, offset as i64, len as i64, QUIET))
            }
            Op::Pin { handle, index } => self.pin(handle, index),
            Op::Unpin { nth } => {
                let (_, sfn) = self.pins.remove(nth);
                self.vm.host().lock(QUIET).unpin_page(sfn);
                Answer::Done
            }
            Op::Fail { handle, index } => {
                let (id, at) = (self.gmem(handle), PageIndex(index));
                let inode = vm.gmem(id, QUIET).expect("it is open");
                inode.shared(QUIET).get_folio(vm.host(), at, QUIET).expect("there is memory");
                let failed = vm.memory_failure(id, at, QUIET).expect("it can be contained");
                assert!(failed.is_some(), "the page was there");
                self.failed = true;
                Answer::Done
            }
            Op::UserRead { page } => {
                let mut byte = [0];
                vm.mm().read(user(page), &mut byte, vm.kernel(QUIET)).expect("it is mapped");
                Answer::Byte(byte[0])
            }
            Op::UserWrite { page, value } => done(vm.mm().write(user(page), &[value], vm.kernel(QUIET))),
            Op::DontNeed { page, nr_pages } => {
                done(vm.mm().madvise(user(page), nr_pages * PAGE, Advice::DontNeed, vm.kernel(QUIET)))
            }
            Op::PageOut { page, nr_pages } => {
                done(vm.mm().madvise(user(page), nr_pages * PAGE, Advice::PageOut, vm.kernel(QUIET)))
            }
            Op::Remap { page, nr_pages } => {
                let gone = done(vm.mm().munmap(user(page), nr_pages * PAGE, vm.kernel(QUIET)));
                self.map(page, nr_pages);
                gone
            }
            Op::Log { id, on } => {
                let logging = if on { DirtyLogging::On } else { DirtyLogging::Off };
                done(vm.set_dirty_logging(SlotId(id), logging, QUIET))
            }
            Op::Harvest { id } => self.harvest(SlotId(id)),
            Op::Zap { first, nr_pages } => done(vm.zap_range(frame(first), nr_pages, QUIET)),
            Op::ZapAll => done(vm.zap_all(QUIET)),
            Op::ZapAllFast => done(vm.zap_all_fast(QUIET)),
            Op::SplitAtEnds { first, nr_pages } => done(vm.split_at_ends(frame(first), nr_pages, QUIET)),
            Op::Age { first, nr_pages, aging } => done(vm.age_range(frame(first), nr_pages, aging, QUIET)),
            Op::Nx { to } => done(vm.set_nx_huge_pages(to, QUIET)),
            Op::RecoverNx { ratio } => done(vm.recover_nx_huge_pages(ratio, QUIET)),
        }
    }

    fn add(&self, id: u16, first: u64, nr_pages: u64, gmem: Option<(usize, u64)>, page: u64, readonly: bool) -> Answer {
        let mut flags = if readonly { SlotFlags::READONLY } else { SlotFlags::empty() };
        if let (Some((handle, offset)), false) = (gmem, self.shape.by_vm()) {
            let (gpa, len_bytes, offset_bytes) = (frame(first).base(), nr_pages * PAGE, offset * PAGE);
            let spec = MemSlotSpec { id: SlotId(id), gpa, len_bytes, flags, gmem: self.gmem(handle), offset_bytes };
            return done(self.vm.add_memslot(&spec, QUIET));
        }
        flags.set(SlotFlags::GUEST_MEMFD, gmem.is_some());
        let region = UserMemoryRegion2 {
            slot: id.into(),
            flags: flags.bits(),
            guest_phys_addr: first * PAGE,
            memory_size: nr_pages * PAGE,
            userspace_addr: HVA + page * PAGE,
            guest_memfd_offset: gmem.map_or(0, |(_, offset)| offset * PAGE),
            guest_memfd: gmem.map_or(MemFd::NotOpen, |(handle, _)| MemFd::Gmem(self.gmem(handle))),
        };
        match self.vm.set_user_memory_region2(&region, QUIET) {
            Ok(change) => {
                if change == SlotChange::Create {
                    Answer::Done
                } else {
                    Answer::Refused
                }
            }
            Err(_) => Answer::Refused,
        }
    }

    fn pin(&mut self, handle: usize, index: u64) -> Answer {
        let id = self.gmem(handle);
        let inode = self.vm.gmem(id, QUIET).expect("it is open");
        match inode.shared(QUIET).pin_page(self.vm.host(), PageIndex(index), QUIET) {
            Ok(sfn) => {
                self.pins.push((id, sfn));
                Answer::Done
            }
            Err(_) => Answer::Refused,
        }
    }

    fn answer(action: Result<Action, VmError>) -> Answer {
        match action {
            Ok(Action::Resume(Resumed::Retry)) => panic!("there is nothing to race with"),
            Ok(Action::Resume(_)) => Answer::Done,
            Ok(Action::Mmio { .. }) => Answer::Mmio,
            Ok(Action::RomWrite { .. }) => Answer::RomWrite,
            Ok(Action::MemoryFault(fault)) => Answer::MemoryFault(fault.reason),
            Err(VmError::Backing(GetError::Poisoned { .. })) => Answer::Poisoned,
            Err(error) => panic!("a fault fails: {error}"),
        }
    }

    /// A fault that comes out of nowhere: a processor may have found no entry a moment ago.
    fn fault(&mut self, vcpu: u16, gfn: u64, kind: AccessKind, privacy: Shareability) -> Answer {
        let input = FaultInput { privacy, ..FaultInput::new(frame(gfn).base(), kind) };
        Self::answer(self.vm.handle_fault(VcpuId(vcpu), input, QUIET))
    }

    fn walk(&self, root: u64, gfn: u64) -> Option<reader::Translation> {
        reader::walk(self.vm.memory(), self.shape.format, root, frame(gfn).base())
    }

    /// An instruction that reads, executes or writes one byte, as often as it faults.
    fn access(&mut self, n: usize, gfn: u64, kind: AccessKind, value: u8, after: &Model) -> Answer {
        let write = kind == AccessKind::Write;
        for _ in 0..8 {
            let cached = self.cpus[n].tlb.iter().copied().find(|entry| entry.holds(gfn));
            if let Some(entry) = cached.filter(|entry| !write || entry.writable && entry.dirty) {
                let spa = entry.head.wrapping_add((gfn - entry.gfn) * PAGE);
                if !write {
                    return Answer::Byte(self.vm.memory().load(spa).expect("a page is memory"));
                }
                self.vm.memory().store(spa, value).expect("a page is memory");
                return Answer::Done;
            }
            self.cpus[n].tlb.retain(|entry| !entry.holds(gfn));
            let found = self.walk(self.cpus[n].root, gfn);
            let allows = |leaf: &reader::Translation| match kind {
                AccessKind::Read => true,
                AccessKind::Write => leaf.writable,
                AccessKind::Execute => leaf.executable,
            };
            if let Some(leaf) = found.filter(allows) {
                self.fill(n, gfn, write, &leaf);
                continue;
            }
            let entry = if found.is_some() { EntryState::Denied } else { EntryState::NotPresent };
            let privacy = after.attribute(gfn);
            let input = FaultInput { entry, privacy, ..FaultInput::new(frame(gfn).base(), kind) };
            self.exit();
            let answer = Self::answer(self.vm.handle_fault(self.cpus[n].id, input, QUIET));
            self.exit();
            if answer != Answer::Done {
                return answer;
            }
        }
        panic!("frame {gfn:#x} faults for ever");
    }

    /// Caches a translation: the flags of the entry are set, and a first write is logged, as the format has it.
    fn fill(&mut self, n: usize, gfn: u64, write: bool, leaf: &reader::Translation) {
        if write
            && !leaf.dirty
            && let Some((page, index)) = self.cpus[n].pml
        {
            if index >= PML_ENTRIES {
                // Full: the processor exits and tries again.
                return self.exit();
            }
            let entry = page.wrapping_add(8 * u64::from(index));
            self.vm.memory().store(entry, gfn * PAGE).expect("the buffer is memory");
            self.cpus[n].pml = Some((page, index.wrapping_sub(1)));
        }
        let has_flags = self.shape.format == TdpFormat::Npt || self.shape.params.ad != AdType::Disabled;
        if has_flags {
            let (accessed, dirty) = match self.shape.format {
                TdpFormat::Npt => (1 << 5, 1 << 6),
                TdpFormat::Ept => (1 << 8, 1 << 9),
            };
            let entry: u64 = self.vm.memory().load(leaf.entry).expect("tables are memory");
            let marked = entry | accessed | if write { dirty } else { 0 };
            let swapped = self.vm.memory().compare_exchange_u64(leaf.entry, entry, marked);
            swapped.expect("tables are memory").expect("nobody else is at work");
        }
        let (gfn, head) = (frame(gfn).align_down(leaf.size).raw(), leaf.spa.align_down(leaf.size));
        let dirty = write || leaf.dirty || !has_flags;
        self.cpus[n].tlb.push(TlbEntry { gfn, size: leaf.size, head, writable: leaf.writable, dirty });
    }

    fn harvest(&mut self, id: SlotId) -> Answer {
        self.exit();
        let (mut pages, mut words) = (BTreeSet::new(), Vec::new());
        let note = &mut |word: u64, bits: u64| {
            words.push((word, bits));
            pages.extend((0..64).filter(|n| bits >> n & 1 == 1).map(|n| word * 64 + n));
        };
        if self.vm.get_dirty_log(id, note, QUIET).is_err() {
            return Answer::Refused;
        }
        let nr_pages = self.vm.memslots(QUIET).by_id(id).expect("it is logged").info().nr_pages;
        for (word, bits) in words {
            let len = (nr_pages - word * 64).min(64);
            match self.vm.clear_dirty_log(id, word * 64, len, &[bits], QUIET) {
                Ok(()) | Err(DirtyLogError::NotManual) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Answer::Written(pages)
    }

    /// Every invariant, and that the processors and the tables agree with the model.
    pub fn check(&mut self, model: &Model) {
        let mut history = std::mem::take(&mut self.history);
        if let Err(violation) = self.vm.check(Moment::Quiescent, &mut history, self, QUIET) {
            panic!("{violation}");
        }
        self.history = history;
        for leaf in self.history.tree().iter().flat_map(|survey| &survey.leaves) {
            let slot = model.slot_at(leaf.gfn.raw()).expect("a leaf lies in a memslot");
            let Some(seen) = self.walk(self.cpus[0].root, leaf.gfn.raw()) else {
                assert_eq!(self.shape.params.ad, AdType::Disabled, "{leaf:?} is hidden so that its first use is seen");
                continue;
            };
            assert_eq!((seen.spa, seen.size), (leaf.sfn.base(), leaf.size));
            assert!(!(seen.writable && slot.readonly), "{leaf:?} is writable and its slot is not");
        }
        for gfn in (0..GUEST_PAGES).step_by(M2 as usize / 2) {
            let found = self.vm.memslots(QUIET).lookup(frame(gfn)).map(|slot| slot.info().id.0);
            assert_eq!(found, model.slot_at(gfn).map(|slot| slot.id), "who shows frame {gfn:#x}");
        }
    }

    /// At the end: every byte is where it was written, everything else is zero, and nothing is lost when all is closed.
    pub fn finish(mut self, model: &Model) {
        for handle in 0..HANDLES {
            let Some(id) = self.gmems[handle] else { continue };
            let inode = self.vm.gmem(id, QUIET).expect("it is open");
            // Calls name pages near the ends and the middle of blocks; of the others a few tell whether something spilt.
            let named = |index: &u64| index % (M2 / 2) < 4 || index % (M2 / 2) > M2 / 2 - 4 || index.is_multiple_of(61);
            for index in (0..INODE_PAGES).filter(named) {
                let place = Place::Gmem(handle, index);
                let Some(backed) = inode.peek(PageIndex(index), QUIET) else {
                    assert_eq!(model.byte(place), 0, "{place:?} was written and is gone");
                    continue;
                };
                if !model.is_poisoned(place) {
                    let byte: u8 = self.vm.memory().load(backed.sfn.base()).expect("a folio is memory");
                    assert_eq!(byte, model.byte(place), "the byte at {place:?}");
                }
            }
        }
        for (place, byte) in model.bytes() {
            let Place::User(page) = place else { continue };
            let mut read = [0];
            let at = Hva::new(HVA + page * PAGE);
            self.vm.mm().read(at, &mut read, self.vm.kernel(QUIET)).expect("it is mapped");
            assert_eq!(read[0], byte, "the byte at {place:?}");
        }
        for slot in &model.slots {
            self.vm.remove_memslot(SlotId(slot.id), QUIET).expect("it is there");
        }
        for (_, sfn) in self.pins.drain(..) {
            self.vm.host().lock(QUIET).unpin_page(sfn);
        }
        for id in self.gmems.into_iter().flatten() {
            self.vm.close_guest_memfd(id, QUIET).expect("nothing shows it");
        }
        self.vm.mm().munmap(Hva::new(HVA), USER_PAGES * PAGE, self.vm.kernel(QUIET)).expect("it is mapped");
        let host = self.vm.host().lock(QUIET);
        // Whoever handled the failure of a page in use keeps it for ever, and with it the rest of its unit.
        let failed = self.failed;
        let known = |folio: &Folio| {
            let failed = host.poisoned_in(folio.head, folio.size).next().is_some();
            folio.meta.kind == FolioKind::PageTable || failed
        };
        let unknown: Vec<Folio> = host.folios().iter().filter(|folio| !known(folio)).collect();
        assert_eq!(unknown, [], "nobody holds these");
        assert!(host.stats().split_units == 0 || failed, "every unit is whole again");
    }
}
