//! What a VM's memory is, said as plainly as possible: sets of pages and a map of bytes. Every call has one answer, which
//! follows from the calls before it.

use std::collections::{BTreeMap, BTreeSet};

use emu_core::{AccessKind, PageSize};
use gmem::policy::{Content, Generation, PunchPolicy, SharedFolios};
use gmem::{GmemPolicy, Shareability};
use hypervisor::{Aging, MemoryFaultReason, MmuParams, NxHugePages, PagePolicy, TdpFormat, VmKind};

pub const M2: u64 = PageSize::Size2M.frames();
/// Pages of each inode.
pub const INODE_PAGES: u64 = 2 * M2;
/// Guest frames that histories use.
pub const GUEST_PAGES: u64 = 6 * M2;
/// Pages of user memory.
pub const USER_PAGES: u64 = 2 * M2;
/// Inodes that are open at one time.
pub const HANDLES: usize = 2;

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub format: TdpFormat,
    pub pages: PagePolicy,
    pub gmem: GmemPolicy,
    pub kind: VmKind,
    pub params: MmuParams,
    /// What pages of a fresh inode are.
    pub initial: Shareability,
}

impl Shape {
    pub fn by_vm(&self) -> bool {
        !self.gmem.generation.has_inode_attributes()
    }

    /// Whether the page that a holder keeps is always a folio of its own, so that only its own conversion minds.
    fn holds_one_by_one(&self) -> bool {
        let small = self.pages.folios.folio_size() == PageSize::Size4K;
        !self.by_vm() && (small || self.gmem.shared == SharedFolios::Split)
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Create { handle: usize },
    Close { handle: usize },
    AddSlot { id: u16, first: u64, nr_pages: u64, handle: usize, offset: u64, readonly: bool },
    AddUserSlot { id: u16, first: u64, nr_pages: u64, page: u64, readonly: bool },
    RemoveSlot { id: u16 },
    MoveSlot { id: u16, first: u64 },
    Fault { vcpu: u16, gfn: u64, kind: AccessKind, privacy: Shareability },
    Access { vcpu: u16, gfn: u64, kind: AccessKind, value: u8 },
    PreFault { vcpu: u16, gfn: u64, nr_pages: u64 },
    HostRead { gfn: u64 },
    HostWrite { gfn: u64, value: u8 },
    HostMap { gfn: u64, value: u8 },
    Convert { handle: usize, first: u64, nr_pages: u64, to: Shareability },
    SetAttributes { first: u64, nr_pages: u64, to: Shareability },
    Punch { handle: usize, first: u64, nr_pages: u64 },
    Populate { handle: usize, first: u64, nr_pages: u64 },
    Pin { handle: usize, index: u64 },
    Unpin { nth: usize },
    Fail { handle: usize, index: u64 },
    UserRead { page: u64 },
    UserWrite { page: u64, value: u8 },
    DontNeed { page: u64, nr_pages: u64 },
    PageOut { page: u64, nr_pages: u64 },
    Remap { page: u64, nr_pages: u64 },
    Log { id: u16, on: bool },
    Harvest { id: u16 },
    Zap { first: u64, nr_pages: u64 },
    ZapAll,
    ZapAllFast,
    SplitAtEnds { first: u64, nr_pages: u64 },
    Age { first: u64, nr_pages: u64, aging: Aging },
    Nx { to: NxHugePages },
    RecoverNx { ratio: u32 },
}

/// What a call comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Refused,
    Byte(u8),
    /// A harvest that told at least of these pages of the slot.
    Written(BTreeSet<u64>),
    Mmio,
    RomWrite,
    MemoryFault(MemoryFaultReason),
    /// `EHWPOISON`.
    Poisoned,
}

/// Where the byte behind a guest frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Gmem(usize, u64),
    User(u64),
}

#[derive(Clone, Debug)]
pub struct Slot {
    pub id: u16,
    pub first: u64,
    pub nr_pages: u64,
    pub gmem: Option<(usize, u64)>,
    pub user: Option<u64>,
    pub readonly: bool,
    /// Pages written since the last harvest.
    pub log: Option<BTreeSet<u64>>,
}

impl Slot {
    fn end(&self) -> u64 {
        self.first + self.nr_pages
    }

    fn holds(&self, gfn: u64) -> bool {
        self.first <= gfn && gfn < self.end()
    }
}

/// A page that somebody holds.
#[derive(Clone, Copy, Debug)]
struct Pin {
    handle: usize,
    index: u64,
    /// It is the inode's page still.
    attached: bool,
}

#[derive(Clone)]
pub struct Model {
    pub shape: Shape,
    open: [bool; HANDLES],
    private: [BTreeSet<u64>; HANDLES],
    /// Private guest frames where attributes are the VM's.
    private_frames: BTreeSet<u64>,
    bytes: BTreeMap<Place, u8>,
    poisoned: BTreeSet<(usize, u64)>,
    pins: Vec<Pin>,
    pub slots: Vec<Slot>,
    /// What the last call comes to.
    pub answer: Answer,
}

/// A history is told by what its VM was made of, and its calls.
impl core::fmt::Debug for Model {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.shape.fmt(f)
    }
}

impl Model {
    pub fn new(shape: Shape) -> Model {
        let private = || if shape.initial.is_private() { (0..INODE_PAGES).collect() } else { BTreeSet::new() };
        Model {
            open: [true; HANDLES],
            private: core::array::from_fn(|_| private()),
            private_frames: BTreeSet::new(),
            bytes: BTreeMap::new(),
            poisoned: BTreeSet::new(),
            pins: Vec::new(),
            slots: Vec::new(),
            answer: Answer::Done,
            shape,
        }
    }

    /// Pages of a huge page, of which files are made.
    fn unit(&self) -> u64 {
        self.shape.pages.folios.folio_size().frames()
    }

    pub fn slot_at(&self, gfn: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.holds(gfn))
    }

    fn slot(&self, id: u16) -> Option<usize> {
        self.slots.iter().position(|slot| slot.id == id)
    }

    /// What the page behind a frame is.
    pub fn attribute(&self, gfn: u64) -> Shareability {
        let private = if self.shape.by_vm() {
            self.private_frames.contains(&gfn)
        } else {
            let place = self.slot_at(gfn).and_then(|slot| slot.gmem.map(|(n, at)| (n, gfn - slot.first + at)));
            place.is_some_and(|(n, index)| self.private[n].contains(&index))
        };
        if private { Shareability::PRIVATE } else { Shareability::SHARED }
    }

    /// Where an access of what the page is goes to. Private memory without guest_memfd is nowhere.
    pub fn place(&self, gfn: u64) -> Option<Place> {
        let slot = self.slot_at(gfn)?;
        let into = gfn - slot.first;
        let gmem = slot.gmem.map(|(n, at)| Place::Gmem(n, at + into));
        let user = slot.user.map(|page| Place::User(page + into));
        match (self.shape.by_vm(), self.attribute(gfn).is_private()) {
            (true, true) => gmem,
            (true, false) => user,
            (false, _) => gmem.or(user),
        }
    }

    pub fn byte(&self, place: Place) -> u8 {
        self.bytes.get(&place).copied().unwrap_or(0)
    }

    pub fn is_poisoned(&self, place: Place) -> bool {
        matches!(place, Place::Gmem(n, index) if self.poisoned.contains(&(n, index)))
    }

    /// Whether a call can be made at all: its file is open, and its answer follows from what the model knows.
    pub fn can(&self, op: &Op) -> bool {
        let unharmed =
            |n: usize, first: u64, nr: u64| self.poisoned.range((n, first)..(n, first + nr)).next().is_none();
        match *op {
            Op::Create { handle } => !self.open[handle],
            Op::Close { handle } => self.open[handle],
            // With a number that is taken, the call that knows user memory moves the slot.
            Op::AddSlot { id, handle, .. } => self.open[handle] && !(self.shape.by_vm() && self.slot(id).is_some()),
            Op::AddUserSlot { id, .. } => self.slot(id).is_none(),
            Op::Convert { handle, first, nr_pages, .. } => {
                // What a failed page does to the conversion of its neighbours is a matter of the split.
                self.open[handle] && !self.shape.by_vm() && unharmed(handle, first & !(M2 - 1), nr_pages + 2 * M2)
            }
            Op::Punch { handle, first, nr_pages } => {
                // A page that failed stays in its huge page until all of that goes.
                let small = self.shape.pages.folios.folio_size() == PageSize::Size4K;
                // One that is held keeps its unit from the pool, and with it the file's reservation.
                let whole = || {
                    let (from, to) = (first & !(M2 - 1), first + nr_pages + M2);
                    unharmed(handle, from, to - from) && !self.is_held(handle, from, to)
                };
                self.open[handle] && (small || whole())
            }
            Op::Populate { handle, first, nr_pages } => self.open[handle] && unharmed(handle, first, nr_pages),
            Op::Pin { handle, index } => {
                self.open[handle] && self.shape.holds_one_by_one() && unharmed(handle, index, 1)
            }
            Op::Fail { handle, index } => {
                let held =
                    self.pins.iter().any(|pin| pin.attached && pin.handle == handle && pin.index / M2 == index / M2);
                self.open[handle] && !held && unharmed(handle, index, 1)
            }
            Op::Unpin { nth } => nth < self.pins.len(),
            Op::SetAttributes { .. } => self.shape.by_vm(),
            // Emulated accesses to private memory would go to user memory beside it.
            Op::HostRead { gfn } | Op::HostWrite { gfn, .. } | Op::HostMap { gfn, .. } => {
                !(self.shape.by_vm() && self.attribute(gfn).is_private())
            }
            Op::Log { id, .. } => self.slot(id).is_some(),
            Op::Harvest { id } => self.slot(id).is_some_and(|at| self.slots[at].log.is_some()),
            Op::PreFault { gfn, nr_pages, .. } => {
                // Stops at what cannot be mapped; how far it got is not the model's to say.
                (gfn..gfn + nr_pages).all(|gfn| self.place(gfn).is_some_and(|place| !self.is_poisoned(place)))
            }
            _ => true,
        }
    }

    /// Makes a call.
    pub fn apply(&mut self, op: &Op) {
        self.answer = self.answer_of(op);
    }

    fn answer_of(&mut self, op: &Op) -> Answer {
        match *op {
            Op::Create { handle } => {
                self.open[handle] = true;
                let all = if self.shape.initial.is_private() { 0..INODE_PAGES } else { 0..0 };
                self.private[handle] = all.collect();
                Answer::Done
            }
            Op::Close { handle } => self.close(handle),
            Op::AddSlot { id, first, nr_pages, handle, offset, readonly } => {
                let user = self.shape.by_vm().then_some(offset);
                let gmem = Some((handle, offset));
                self.add(Slot { id, first, nr_pages, gmem, user, readonly, log: None })
            }
            Op::AddUserSlot { id, first, nr_pages, page, readonly } => {
                self.add(Slot { id, first, nr_pages, gmem: None, user: Some(page), readonly, log: None })
            }
            Op::RemoveSlot { id } => match self.slot(id) {
                Some(at) => {
                    self.slots.remove(at);
                    Answer::Done
                }
                None => Answer::Refused,
            },
            Op::MoveSlot { id, first } => self.relocate(id, first),
            Op::Fault { gfn, kind, privacy, .. } => {
                let meant = match self.shape.kind {
                    VmKind::Default | VmKind::Snp => privacy,
                    VmKind::SwProtected => self.attribute(gfn),
                };
                // Nothing is written until the instruction is executed again.
                self.fault(gfn, kind, meant)
            }
            Op::Access { gfn, kind, value, .. } => self.access(gfn, kind, value),
            Op::PreFault { .. } => Answer::Done,
            Op::HostRead { gfn } => match self.emulated(gfn, AccessKind::Read) {
                Ok(place) => Answer::Byte(self.byte(place)),
                Err(answer) => answer,
            },
            Op::HostWrite { gfn, value } | Op::HostMap { gfn, value } => match self.emulated(gfn, AccessKind::Write) {
                Ok(place) => {
                    self.bytes.insert(place, value);
                    self.written(gfn);
                    Answer::Done
                }
                Err(answer) => answer,
            },
            Op::Convert { handle, first, nr_pages, to } => self.convert(handle, first, nr_pages, to),
            Op::SetAttributes { first, nr_pages, to } => {
                for gfn in first..first + nr_pages {
                    if to.is_private() {
                        self.private_frames.insert(gfn);
                    } else {
                        self.private_frames.remove(&gfn);
                    }
                }
                Answer::Done
            }
            Op::Punch { handle, first, nr_pages } => self.punch(handle, first, nr_pages),
            Op::Populate { first, nr_pages, .. } => {
                let unit = match self.shape.gmem.generation {
                    Generation::Wip => self.unit(),
                    _ => 1,
                };
                let whole = first.is_multiple_of(unit) && nr_pages.is_multiple_of(unit);
                if whole && first + nr_pages <= INODE_PAGES { Answer::Done } else { Answer::Refused }
            }
            Op::Pin { handle, index } => {
                if self.private[handle].contains(&index) {
                    return Answer::Refused;
                }
                self.pins.push(Pin { handle, index, attached: true });
                Answer::Done
            }
            Op::Unpin { nth } => {
                self.pins.remove(nth);
                Answer::Done
            }
            Op::Fail { handle, index } => {
                self.poisoned.insert((handle, index));
                self.bytes.remove(&Place::Gmem(handle, index));
                Answer::Done
            }
            Op::UserRead { page } => Answer::Byte(self.byte(Place::User(page))),
            Op::UserWrite { page, value } => {
                self.bytes.insert(Place::User(page), value);
                Answer::Done
            }
            Op::DontNeed { page, nr_pages } | Op::Remap { page, nr_pages } => {
                self.forget(Place::User(page), Place::User(page + nr_pages));
                Answer::Done
            }
            Op::Log { id, on } => {
                let at = self.slot(id).expect("it can be made");
                let log = &mut self.slots[at].log;
                *log = on.then(|| log.take().unwrap_or_default());
                Answer::Done
            }
            Op::Harvest { id } => {
                let at = self.slot(id).expect("it can be made");
                Answer::Written(self.slots[at].log.replace(BTreeSet::new()).unwrap_or_default())
            }
            Op::PageOut { .. }
            | Op::Zap { .. }
            | Op::ZapAll
            | Op::ZapAllFast
            | Op::SplitAtEnds { .. }
            | Op::Age { .. }
            | Op::Nx { .. }
            | Op::RecoverNx { .. } => Answer::Done,
        }
    }

    fn forget(&mut self, from: Place, to: Place) {
        self.bytes.retain(|place, _| !(from..to).contains(place));
    }

    fn close(&mut self, handle: usize) -> Answer {
        if self.slots.iter().any(|slot| slot.gmem.is_some_and(|(n, _)| n == handle)) {
            return Answer::Refused;
        }
        self.open[handle] = false;
        self.forget(Place::Gmem(handle, 0), Place::Gmem(handle, u64::MAX));
        self.poisoned.retain(|&(n, _)| n != handle);
        self.pins.iter_mut().filter(|pin| pin.handle == handle).for_each(|pin| pin.attached = false);
        Answer::Done
    }

    fn add(&mut self, new: Slot) -> Answer {
        let apart = |a: u64, a_nr: u64, b: u64, b_nr: u64| a + a_nr <= b || b + b_nr <= a;
        let sound = self.slots.iter().all(|slot| {
            let pages_apart = match (slot.gmem, new.gmem) {
                (Some((n, at)), Some((m, new_at))) => n != m || apart(at, slot.nr_pages, new_at, new.nr_pages),
                _ => true,
            };
            slot.id != new.id && apart(slot.first, slot.nr_pages, new.first, new.nr_pages) && pages_apart
        });
        let inside = new.gmem.is_none_or(|(_, offset)| offset + new.nr_pages <= INODE_PAGES);
        // What memory with attributes of the VM shows to the host cannot be kept from being written.
        let allowed = !(new.readonly && new.gmem.is_some() && self.shape.by_vm());
        if !(sound && inside && allowed) {
            return Answer::Refused;
        }
        self.slots.push(new);
        Answer::Done
    }

    fn relocate(&mut self, id: u16, first: u64) -> Answer {
        let Some(at) = self.slot(id) else { return Answer::Refused };
        let end = first + self.slots[at].nr_pages;
        let free = self.slots.iter().all(|slot| slot.id == id || end <= slot.first || slot.end() <= first);
        if !free {
            return Answer::Refused;
        }
        self.slots[at].first = first;
        Answer::Done
    }

    fn written(&mut self, gfn: u64) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.holds(gfn)) {
            let page = gfn - slot.first;
            slot.log.iter_mut().for_each(|log| log.extend([page]));
        }
    }

    /// What an access that means `meant` comes to, if its page is there.
    fn fault(&self, gfn: u64, kind: AccessKind, meant: Shareability) -> Answer {
        let Some(slot) = self.slot_at(gfn) else {
            return match meant.is_private() {
                true => Answer::MemoryFault(MemoryFaultReason::PrivateWithoutSlot),
                false => Answer::Mmio,
            };
        };
        if self.attribute(gfn) != meant {
            return Answer::MemoryFault(MemoryFaultReason::PrivacyMismatch);
        }
        let Some(place) = self.place(gfn) else {
            return Answer::MemoryFault(MemoryFaultReason::PrivateWithoutGmem);
        };
        if slot.readonly && kind == AccessKind::Write {
            return Answer::RomWrite;
        }
        if self.is_poisoned(place) { Answer::Poisoned } else { Answer::Done }
    }

    fn access(&mut self, gfn: u64, kind: AccessKind, value: u8) -> Answer {
        match self.fault(gfn, kind, self.attribute(gfn)) {
            Answer::Done => {}
            other => return other,
        }
        let place = self.place(gfn).expect("the fault was answered");
        if kind == AccessKind::Write {
            self.bytes.insert(place, value);
            self.written(gfn);
            return Answer::Done;
        }
        Answer::Byte(self.byte(place))
    }

    /// Where an access by the host on the guest's behalf goes.
    fn emulated(&self, gfn: u64, kind: AccessKind) -> Result<Place, Answer> {
        let slot = self.slot_at(gfn).ok_or(Answer::Refused)?;
        let place = self.place(gfn).ok_or(Answer::Refused)?;
        let hidden = matches!(place, Place::Gmem(..)) && self.attribute(gfn).is_private();
        if hidden || slot.readonly && kind == AccessKind::Write || self.is_poisoned(place) {
            return Err(Answer::Refused);
        }
        Ok(place)
    }

    /// Whether somebody holds a page of the range that is still the inode's.
    fn is_held(&self, handle: usize, first: u64, end: u64) -> bool {
        self.pins.iter().any(|pin| pin.attached && pin.handle == handle && first <= pin.index && pin.index < end)
    }

    fn convert(&mut self, handle: usize, first: u64, nr_pages: u64, to: Shareability) -> Answer {
        let end = first + nr_pages;
        if end > INODE_PAGES {
            return Answer::Refused;
        }
        let mut steps = vec![(first, end)];
        if self.shape.gmem.generation == Generation::Wip {
            let unit = self.unit();
            let mut at = first;
            steps.clear();
            while at < end {
                let next = ((at & !(unit - 1)) + unit).min(end);
                steps.push((at, next));
                at = next;
            }
        }
        for (from, to_page) in steps {
            let changes = (from..to_page).any(|index| self.private[handle].contains(&index) != to.is_private());
            if changes && to.is_private() && self.is_held(handle, from, to_page) {
                return Answer::Refused;
            }
            let content = if to.is_private() { self.shape.gmem.to_private } else { self.shape.gmem.to_shared };
            for index in from..to_page {
                let set = &mut self.private[handle];
                let changed = if to.is_private() { set.insert(index) } else { set.remove(&index) };
                if changed && content == Content::Zero {
                    self.bytes.remove(&Place::Gmem(handle, index));
                }
            }
        }
        Answer::Done
    }

    fn punch(&mut self, handle: usize, first: u64, nr_pages: u64) -> Answer {
        let (gmem, unit) = (&self.shape.gmem, self.unit());
        let end = (first + nr_pages).min(INODE_PAGES);
        let aligned = |at: u64| at.is_multiple_of(unit) || at >= INODE_PAGES;
        if gmem.punch == PunchPolicy::Refuse && !(aligned(first) && aligned(first + nr_pages)) {
            return Answer::Refused;
        }
        let merges = matches!(gmem.generation, Generation::V2 | Generation::Wip) && unit > 1;
        let mut block = first.next_multiple_of(unit);
        while merges && block + unit <= end {
            if self.is_held(handle, block, block + unit) {
                return Answer::Refused;
            }
            block += unit;
        }
        self.forget(Place::Gmem(handle, first), Place::Gmem(handle, end));
        self.poisoned.retain(|&(n, index)| n != handle || index < first || end <= index);
        let gone = |pin: &&mut Pin| pin.handle == handle && first <= pin.index && pin.index < end;
        self.pins.iter_mut().filter(gone).for_each(|pin| pin.attached = false);
        Answer::Done
    }

    /// Everything that is not zero and can be looked at, by place.
    pub fn bytes(&self) -> impl Iterator<Item = (Place, u8)> + '_ {
        self.bytes.iter().map(|(&place, &byte)| (place, byte))
    }
}
