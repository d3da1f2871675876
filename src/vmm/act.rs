//! Carrying an action out, on memory that no processor is using at that moment.
//!
//! An action is all of its parts or an error that says which step was refused. The ones that a guest must not notice
//! (`balloon`, `toggle`, `replug`) put back what they changed also when a step in the middle is refused.

use emu_core::sync::Task;
use emu_core::{Gfn, Gpa, PageSize, Sfn};
use gmem::{PageIndex, PageRange};
use hypervisor::memslot::GmemServes;
use hypervisor::tdp::AdBit;
use hypervisor::{GmemId, MemSlot, MemSlotSpec, Shareability, SlotFlags, SlotId, Vm, VmError};

use super::hypercall::GpaRange;
use super::memory::{self, MemoryError};
use super::migrate::{self, Migration};
use super::script::{Convert, MoveSlot, Range, What};
use super::sides::{self, Sides};

const PAGE: u64 = PageSize::Size4K.bytes();

/// Pages of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pages {
    gmem: GmemId,
    range: PageRange,
    /// Where the first of them is shown, if they were named by guest physical address.
    gpa: Option<Gpa>,
    /// Their two sides, if they have so many and were named so.
    sides: Option<Sides>,
}

impl Pages {
    fn offset_bytes(self) -> u64 {
        self.range.first.0 * PAGE
    }
    fn len_bytes(self) -> u64 {
        self.range.nr_pages * PAGE
    }
    /// Some of these pages.
    fn part(self, range: PageRange) -> Pages {
        let gpa = self.gpa.map(|gpa| gpa.wrapping_add((range.first.0 - self.range.first.0) * PAGE));
        // Parts of a part are looked at for who may use them alone.
        Pages { range, gpa, sides: None, ..self }
    }
    /// Where they are shown, for who says of guest physical memory who may use it.
    fn shown(self) -> Result<GpaRange, MemoryError> {
        let gpa = self.gpa.ok_or(MemoryError::AttributesOfVm { gmem: self.gmem })?;
        Ok(GpaRange { gpa, len_bytes: self.len_bytes() })
    }
    fn indices(self) -> impl Iterator<Item = PageIndex> {
        (self.range.first.0..self.range.end().0).map(PageIndex)
    }
}

/// The inodes' pages behind a range.
fn pages(vm: &Vm, range: Range, task: &Task<'_>) -> Result<Vec<Pages>, MemoryError> {
    let whole = |gmem, offset: u64, len: u64, gpa| {
        let range = PageRange { first: PageIndex(offset / PAGE), nr_pages: len / PAGE };
        Pages { gmem, range, gpa, sides: None }
    };
    match range {
        Range::Inode { gmem, offset_bytes, len_bytes } => Ok(vec![whole(gmem, offset_bytes, len_bytes, None)]),
        Range::Gpa(range) => {
            let parts = memory::parts(vm, range, task)?;
            let shown = |part: &memory::Part| Pages {
                sides: Sides::of(part),
                ..whole(part.gmem, part.offset_bytes, part.range.len_bytes, Some(part.range.gpa))
            };
            Ok(parts.iter().map(shown).collect())
        }
    }
}

/// What a script keeps from one action to another.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Memslots that it deleted.
    unbound: Vec<MemSlotSpec>,
    /// Pages that it holds.
    pins: Vec<Pin>,
    /// The migration under way.
    migration: Option<Migration>,
}

/// A page of an inode with a reference of the host's.
#[derive(Clone, Copy, Debug)]
struct Pin {
    gmem: GmemId,
    index: PageIndex,
    sfn: Sfn,
}

impl Holdings {
    /// A processor's ring is full: what is in the rings is taken, for the migration if one is under way.
    pub(super) fn empty_rings(&mut self, vm: &Vm, task: &Task<'_>) -> Result<(), VmError> {
        match &mut self.migration {
            Some(migration) => migration.empty_rings(vm, task),
            None => migrate::take_rings(vm, task).map(drop),
        }
    }

    fn pinned(&self, part: Pages) -> Option<PageIndex> {
        let inside =
            |pin: &&Pin| pin.gmem == part.gmem && part.range.first <= pin.index && pin.index < part.range.end();
        self.pins.iter().find(inside).map(|pin| pin.index)
    }
}

/// Does it. How many bytes it concerned, where that is a number of interest.
pub fn perform(vm: &Vm, what: &What, held: &mut Holdings, task: &Task<'_>) -> Result<u64, MemoryError> {
    one_side_is_enough(vm, what, task)?;
    match what {
        What::Punch(range) => each(vm, *range, task, |p| {
            if let Some(sides) = p.sides {
                return sides::punch(vm, sides, task);
            }
            if let Some(migration) = &mut held.migration {
                migration.note_own(p.gmem, p.indices());
            }
            Ok(vm.punch_hole(p.gmem, p.offset_bytes(), p.len_bytes(), task)?)
        }),
        What::Allocate(range) => each(vm, *range, task, |p| {
            if let Some(sides) = p.sides {
                return sides::allocate(vm, sides, task);
            }
            let inode = vm.gmem(p.gmem, task).ok_or(VmError::NoSuchGmem { id: p.gmem })?;
            Ok(inode.shared(task).allocate(vm.host(), p.range, task).map_err(VmError::from)?)
        }),
        What::Convert(Convert { range, to }) => {
            private_memory(vm)?;
            each(vm, *range, task, |p| convert(vm, p, *to, task))
        }
        What::Poison(range) => each(vm, *range, task, |p| {
            Ok(p.indices().try_for_each(|index| vm.memory_failure(p.gmem, index, task).map(|_| ()))?)
        }),
        What::Balloon(range) => balloon(vm, *range, held, task),
        What::Toggle(range) => toggle(vm, *range, task),
        What::Zap(range) => {
            vm.zap_range(range.0.gpa.frame(), range.0.len_bytes / PAGE, task)?;
            Ok(range.0.len_bytes)
        }
        What::ZapAll(_) => Ok(vm.zap_all(task).map(|()| 0)?),
        What::ZapAllFast(_) => Ok(vm.zap_all_fast(task).map(|()| 0)?),
        What::Age(range) => age(vm, range.0, task),
        What::Pin(range) => pin(vm, *range, held, task),
        What::Unpin(range) => unpin(vm, *range, held, task),
        What::Unbind(slot) => {
            let spec = spec_of(vm, slot.id(), task)?;
            delete(vm, &spec, held, task)?;
            held.unbound.push(spec);
            Ok(spec.len_bytes)
        }
        What::Bind(slot) => {
            let missing = MemoryError::NotUnbound { slot: slot.id() };
            let at = held.unbound.iter().position(|spec| spec.id == slot.id()).ok_or(missing)?;
            let spec = held.unbound[at];
            add(vm, &spec, held, task)?;
            Ok(held.unbound.remove(at).len_bytes)
        }
        What::Replug(slot) => {
            let spec = spec_of(vm, slot.id(), task)?;
            delete(vm, &spec, held, task)?;
            add(vm, &spec, held, task)?;
            Ok(spec.len_bytes)
        }
        What::MoveSlot(MoveSlot { slot, to }) => {
            let spec = spec_of(vm, slot.id(), task)?;
            let mut migration = held.migration.as_mut().filter(|_| is_ram(&spec));
            if let Some(migration) = &mut migration {
                migration.before_delete(vm, &spec, task)?;
            }
            vm.move_memslot(slot.id(), to.0, task)?;
            if let Some(migration) = migration {
                migration.after_add(vm, spec.id, task)?;
            }
            Ok(spec.len_bytes)
        }
        What::LogStart(_) => match held.migration {
            Some(_) => Err(MemoryError::Migration { running: true }),
            None => {
                let (migration, bytes) = Migration::start(vm, task)?;
                held.migration = Some(migration);
                Ok(bytes)
            }
        },
        What::LogRound(_) => match &mut held.migration {
            Some(migration) => migration.round(vm, task),
            None => Err(MemoryError::Migration { running: false }),
        },
        What::LogStop(_) => match held.migration.take() {
            Some(migration) => migration.stop(vm, task),
            None => Err(MemoryError::Migration { running: false }),
        },
    }
}

/// Whether the action can be done where shared pages are the VMM's own memory.
fn one_side_is_enough(vm: &Vm, what: &What, task: &Task<'_>) -> Result<(), MemoryError> {
    let what = match what {
        What::Balloon(_) => "balloon",
        What::Pin(_) | What::Unpin(_) => "pin",
        What::Unbind(_) | What::Bind(_) | What::Replug(_) | What::MoveSlot(_) => "a memslot that goes and comes",
        What::LogStart(_) | What::LogRound(_) | What::LogStop(_) => "migration",
        What::Poison(_) => "poison",
        What::Punch(_) | What::Allocate(_) | What::Convert(_) | What::Toggle(_) => return Ok(()),
        What::Zap(_) | What::ZapAll(_) | What::ZapAllFast(_) | What::Age(_) => return Ok(()),
    };
    let two_sided = |slot: &MemSlot| slot.gmem.is_some_and(|view| view.serves == GmemServes::Private);
    if vm.memslots(task).iter().any(two_sided) { Err(MemoryError::TwoSided { what }) } else { Ok(()) }
}

fn each(
    vm: &Vm,
    range: Range,
    task: &Task<'_>,
    mut act: impl FnMut(Pages) -> Result<(), MemoryError>,
) -> Result<u64, MemoryError> {
    let mut bytes = 0;
    for part in pages(vm, range, task)? {
        act(part)?;
        bytes += part.len_bytes();
    }
    Ok(bytes)
}

fn private_memory(vm: &Vm) -> Result<(), MemoryError> {
    if vm.kind().has_private_memory() { Ok(()) } else { Err(MemoryError::NoPrivateMemory) }
}

/// Who may use each page of a part, as runs.
fn attributes(vm: &Vm, part: Pages, task: &Task<'_>) -> Result<Vec<(Pages, Shareability)>, MemoryError> {
    if vm.supported_memory_attributes() != 0 {
        let first = part.shown()?.gpa.frame().raw();
        let of = |n| vm.memory_attribute(Gfn::new(first + n), task);
        return Ok(runs(part, |index| of(index.0 - part.range.first.0)));
    }
    let inode = vm.gmem(part.gmem, task).ok_or(VmError::NoSuchGmem { id: part.gmem })?;
    let map = inode.attributes(task);
    Ok(runs(part, |index| map.get(index.0)))
}

fn runs(part: Pages, state_of: impl Fn(PageIndex) -> Shareability) -> Vec<(Pages, Shareability)> {
    let mut runs: Vec<(PageRange, Shareability)> = Vec::new();
    for index in part.indices() {
        let state = state_of(index);
        match runs.last_mut() {
            Some((run, same)) if *same == state => run.nr_pages += 1,
            _ => runs.push((PageRange { first: index, nr_pages: 1 }, state)),
        }
    }
    runs.into_iter().map(|(range, state)| (part.part(range), state)).collect()
}

/// By the inode, or where the VM says who may use guest physical memory, by the VM.
fn convert(vm: &Vm, part: Pages, to: Shareability, task: &Task<'_>) -> Result<(), MemoryError> {
    match vm.supported_memory_attributes() {
        0 => Ok(vm.convert(part.gmem, part.offset_bytes(), part.len_bytes(), to, task)?),
        _ => memory::convert(vm, part.shown()?, to, task),
    }
}

/// Makes the runs what they were.
fn restore(vm: &Vm, runs: &[(Pages, Shareability)], task: &Task<'_>) -> Result<(), MemoryError> {
    runs.iter().try_for_each(|&(part, state)| convert(vm, part, state, task))
}

/// A page and its bytes.
struct Saved {
    index: PageIndex,
    bytes: Box<[u8]>,
}

/// The bytes of a page; `None` when it has no folio. Through the inode and not by address: a page that no memslot shows,
/// and a private one, has contents too.
pub(super) fn page_bytes(
    vm: &Vm,
    gmem: GmemId,
    index: PageIndex,
    task: &Task<'_>,
) -> Result<Option<Box<[u8]>>, MemoryError> {
    let inode = vm.gmem(gmem, task).ok_or(VmError::NoSuchGmem { id: gmem })?;
    if inode.peek(index, task).is_none() {
        return Ok(None);
    }
    // Looking it up defines the bytes of a folio that was allocated and never used.
    let backed = inode.shared(task).get_folio(vm.host(), index, task).map_err(VmError::from)?;
    let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
    vm.memory().read(backed.sfn.base(), &mut bytes).map_err(VmError::from)?;
    Ok(Some(bytes))
}

/// The contents of `part`'s pages that have a folio.
fn save(vm: &Vm, part: Pages, task: &Task<'_>) -> Result<Vec<Saved>, MemoryError> {
    let mut saved = Vec::new();
    for index in part.indices() {
        saved.extend(page_bytes(vm, part.gmem, index, task)?.map(|bytes| Saved { index, bytes }));
    }
    Ok(saved)
}

fn fill(vm: &Vm, part: Pages, saved: &[Saved], task: &Task<'_>) -> Result<(), MemoryError> {
    let inode = vm.gmem(part.gmem, task).ok_or(VmError::NoSuchGmem { id: part.gmem })?;
    for Saved { index, bytes } in saved {
        let shared = inode.shared(task);
        let backed = shared.get_folio(vm.host(), *index, task).map_err(VmError::from)?;
        // The lock is held: the folio stays where it is until its bytes are there.
        vm.memory().write(backed.sfn.base(), bytes).map_err(VmError::from)?;
    }
    Ok(())
}

/// Saves, punches and fills again. Private pages are shared meanwhile, so that the VMM may read and write them.
fn balloon(vm: &Vm, range: Range, held: &Holdings, task: &Task<'_>) -> Result<u64, MemoryError> {
    let mut bytes = 0;
    for part in pages(vm, range, task)? {
        if let Some(index) = held.pinned(part) {
            // Its frame would not come back, and there might be no other to fill.
            return Err(MemoryError::Pinned { gmem: part.gmem, index });
        }
        let runs = attributes(vm, part, task)?;
        convert(vm, part, Shareability::SHARED, task)?;
        let ballooned = inflate_and_deflate(vm, part, task);
        restore(vm, &runs, task)?;
        bytes += ballooned?;
    }
    Ok(bytes)
}

fn inflate_and_deflate(vm: &Vm, part: Pages, task: &Task<'_>) -> Result<u64, MemoryError> {
    let saved = save(vm, part, task)?;
    let punched = vm.punch_hole(part.gmem, part.offset_bytes(), part.len_bytes(), task);
    fill(vm, part, &saved, task)?;
    punched?;
    Ok(saved.len() as u64 * PAGE)
}

/// Private, shared, and what it was: what splits and merges do to memory whose bytes must stay.
fn toggle(vm: &Vm, range: Range, task: &Task<'_>) -> Result<u64, MemoryError> {
    private_memory(vm)?;
    let mut bytes = 0;
    for part in pages(vm, range, task)? {
        let runs = attributes(vm, part, task)?;
        let there = convert(vm, part, Shareability::PRIVATE, task);
        let and_back = convert(vm, part, Shareability::SHARED, task);
        restore(vm, &runs, task)?;
        there?;
        and_back?;
        bytes += part.len_bytes();
    }
    Ok(bytes)
}

/// Takes a reference to each page, as DMA by the host does. All of them or none.
fn pin(vm: &Vm, range: Range, held: &mut Holdings, task: &Task<'_>) -> Result<u64, MemoryError> {
    let before = held.pins.len();
    for part in pages(vm, range, task)? {
        let inode = vm.gmem(part.gmem, task).ok_or(VmError::NoSuchGmem { id: part.gmem })?;
        for index in part.indices() {
            match inode.shared(task).get_page(vm.host(), index, task) {
                Ok(sfn) => held.pins.push(Pin { gmem: part.gmem, index, sfn }),
                Err(error) => {
                    let taken = held.pins.split_off(before);
                    release(vm, &taken, task);
                    return Err(VmError::from(error).into());
                }
            }
        }
    }
    Ok((held.pins.len() - before) as u64 * PAGE)
}

/// Gives the references on these pages back.
fn unpin(vm: &Vm, range: Range, held: &mut Holdings, task: &Task<'_>) -> Result<u64, MemoryError> {
    let mut bytes = 0;
    for part in pages(vm, range, task)? {
        let of_part =
            |pin: &Pin| pin.gmem == part.gmem && part.range.first <= pin.index && pin.index < part.range.end();
        let (given, kept) = held.pins.iter().partition::<Vec<Pin>, _>(|pin| of_part(pin));
        release(vm, &given, task);
        held.pins = kept;
        bytes += given.len() as u64 * PAGE;
    }
    Ok(bytes)
}

fn release(vm: &Vm, pins: &[Pin], task: &Task<'_>) {
    for pin in pins {
        if let Some(inode) = vm.gmem(pin.gmem, task) {
            inode.put_page(vm.host(), pin.sfn, task);
        }
    }
}

/// Bytes under leaves that had been used since the last time.
fn age(vm: &Vm, range: GpaRange, task: &Task<'_>) -> Result<u64, MemoryError> {
    let mut bytes = 0;
    let mut found = |_, size: PageSize| bytes += size.bytes();
    vm.harvest(range.gpa.frame(), range.len_bytes / PAGE, AdBit::Accessed, &mut found, task)?;
    Ok(bytes)
}

/// What made a memslot; `None` for one of user memory alone, which is not this VMM's.
fn spec(slot: &MemSlot) -> Option<MemSlotSpec> {
    let spec = slot.spec()?;
    // The other flags follow from what it shows and whether it is logged.
    Some(MemSlotSpec { flags: spec.flags & SlotFlags::READONLY, ..spec })
}

fn spec_of(vm: &Vm, id: SlotId, task: &Task<'_>) -> Result<MemSlotSpec, MemoryError> {
    let slots = vm.memslots(task);
    let slot = slots.by_id(id).ok_or(hypervisor::MemslotError::NotFound { id }).map_err(VmError::from)?;
    spec(slot.info()).ok_or(MemoryError::NoGmem { gpa: slot.info().first.base() })
}

/// The memslots that guests may write.
pub(super) fn ram(vm: &Vm, task: &Task<'_>) -> Vec<MemSlotSpec> {
    let slots = vm.memslots(task);
    slots.iter().filter_map(spec).filter(is_ram).collect()
}

/// Deletes a memslot; what its log knows is taken first.
fn delete(vm: &Vm, spec: &MemSlotSpec, held: &mut Holdings, task: &Task<'_>) -> Result<(), MemoryError> {
    if let Some(migration) = held.migration.as_mut().filter(|_| is_ram(spec)) {
        migration.before_delete(vm, spec, task)?;
    }
    Ok(vm.remove_memslot(spec.id, task)?)
}

/// Adds a memslot; it is logged if the others are.
fn add(vm: &Vm, spec: &MemSlotSpec, held: &Holdings, task: &Task<'_>) -> Result<(), MemoryError> {
    vm.add_memslot(spec, task)?;
    match held.migration.as_ref().filter(|_| is_ram(spec)) {
        Some(migration) => migration.after_add(vm, spec.id, task),
        None => Ok(()),
    }
}

const fn is_ram(spec: &MemSlotSpec) -> bool {
    !spec.flags.contains(SlotFlags::READONLY)
}
