//! One set of memslots, found by guest frame, by number and by user address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::Gfn;
use gmem::SlotId;
use gmem::mm::HvaRange;

use super::{AddressSpaceId, MemSlot, Slot, UPDATE_IN_PROGRESS};

/// Where a set keeps a slot: whoever asks for the same one again and again finds it there without a search
/// (`last_used_slot`). It is a hint, good for any set at any time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotHint(u32);

/// A slot by its first guest frame.
struct Placed {
    slot: Arc<Slot>,
    place: SlotHint,
}

/// The slots of an address space.
#[derive(Default)]
struct Space {
    by_gfn: BTreeMap<u64, Placed>,
    /// The same slots, each at its place.
    places: Vec<Option<Arc<Slot>>>,
    vacant: Vec<SlotHint>,
    /// First guest frame of each.
    by_id: BTreeMap<SlotId, u64>,
    /// By logarithm of the length, then first user page. User ranges may overlap, so a search goes through the lengths
    /// there are: of slots with lengths within a factor of two, those that reach into a range start at most twice such
    /// a length before it.
    by_hva: BTreeSet<(u32, u64, SlotId)>,
}

fn hva_key(info: &MemSlot) -> (u32, u64, SlotId) {
    (info.nr_pages.ilog2(), info.hva.frame().raw(), info.id)
}

impl Space {
    fn insert(&mut self, slot: Arc<Slot>) {
        let info = *slot.info();
        self.by_id.insert(info.id, info.first.raw());
        self.by_hva.insert(hva_key(&info));
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(None);
            SlotHint(self.places.len() as u32 - 1)
        });
        self.places[place.0 as usize] = Some(Arc::clone(&slot));
        self.by_gfn.insert(info.first.raw(), Placed { slot, place });
    }

    fn remove(&mut self, id: SlotId) -> Option<Arc<Slot>> {
        let Placed { slot, place } = self.by_gfn.remove(&self.by_id.remove(&id)?)?;
        self.places[place.0 as usize] = None;
        self.vacant.push(place);
        self.by_hva.remove(&hva_key(slot.info()));
        Some(slot)
    }

    fn by_id(&self, id: SlotId) -> Option<&Arc<Slot>> {
        self.by_gfn.get(self.by_id.get(&id)?).map(|placed| &placed.slot)
    }

    fn holding(&self, gfn: Gfn) -> Option<&Placed> {
        let (_, placed) = self.by_gfn.range(..=gfn.raw()).next_back()?;
        placed.slot.info().contains(gfn).then_some(placed)
    }

    fn in_hva(&self, range: HvaRange) -> impl Iterator<Item = &Slot> {
        let (first, end) = (range.first.raw(), range.end().raw());
        let mut classes = Vec::new();
        let mut at = 0;
        while let Some(&(class, ..)) = self.by_hva.range((at, 0, SlotId(0))..).next() {
            classes.push(class);
            at = class + 1;
        }
        classes.into_iter().flat_map(move |class| {
            let from = first.saturating_sub(2 << class);
            let near = self.by_hva.range((class, from, SlotId(0))..(class, end, SlotId(0)));
            let slots = near.filter_map(|&(.., id)| self.by_id(id).map(Arc::as_ref));
            slots.filter(move |slot| slot.info().hva_range().intersection(range).is_some())
        })
    }
}

/// See the [module](super).
pub struct MemSlots {
    spaces: [Space; 2],
    generation: AtomicU64,
    last_gfn: Gfn,
}

impl MemSlots {
    pub(crate) fn new(last_gfn: Gfn) -> MemSlots {
        MemSlots { spaces: Default::default(), generation: AtomicU64::new(0), last_gfn }
    }

    fn space(&self, space: AddressSpaceId) -> &Space {
        &self.spaces[space.number()]
    }

    /// Grows with every publication; [`UPDATE_IN_PROGRESS`] is set in it while somebody may still use the set before.
    /// Whoever caches the absence of a slot remembers it.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
    }

    /// The generation without the mark of an update in progress.
    pub(super) fn settled_generation(&self) -> u64 {
        self.generation() & !UPDATE_IN_PROGRESS
    }

    /// The last guest frame that a slot may have.
    pub const fn last_gfn(&self) -> Gfn {
        self.last_gfn
    }

    /// All, by address space and ascending.
    pub fn iter(&self) -> impl Iterator<Item = &MemSlot> {
        self.slots().map(Slot::info)
    }

    /// All with what stands behind them, by address space and ascending.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.spaces.iter().flat_map(|space| space.by_gfn.values()).map(|placed| &*placed.slot)
    }

    /// The slot that holds `gfn` outside of system management mode.
    #[inline]
    pub fn lookup(&self, gfn: Gfn) -> Option<&Slot> {
        self.lookup_in(AddressSpaceId::Normal, gfn)
    }

    /// The slot that holds `gfn` in `space`.
    #[inline]
    pub fn lookup_in(&self, space: AddressSpaceId, gfn: Gfn) -> Option<&Slot> {
        Some(&*self.space(space).holding(gfn)?.slot)
    }

    /// The slot that holds `gfn` outside of system management mode, which may well be the one that `hint` is of. The hint
    /// is of the slot that was found, afterwards.
    #[inline]
    pub(crate) fn lookup_near(&self, gfn: Gfn, hint: &mut SlotHint) -> Option<&Slot> {
        let space = self.space(AddressSpaceId::Normal);
        // Slots are disjoint: the one that holds the frame is the one, whoever was at the place before.
        match space.places.get(hint.0 as usize) {
            Some(Some(slot)) if slot.info().contains(gfn) => Some(&**slot),
            _ => {
                let found = space.holding(gfn)?;
                *hint = found.place;
                Some(&*found.slot)
            }
        }
    }

    /// The slot that holds `gfn` outside of system management mode, and the place where it is kept.
    pub(crate) fn place_of(&self, gfn: Gfn) -> Option<(SlotHint, &Slot)> {
        self.space(AddressSpaceId::Normal).holding(gfn).map(|placed| (placed.place, &*placed.slot))
    }

    /// The slot that is kept there now.
    pub(crate) fn at(&self, place: SlotHint) -> Option<&Slot> {
        self.space(AddressSpaceId::Normal).places.get(place.0 as usize)?.as_deref()
    }

    /// The slot with this number, outside of system management mode.
    pub fn by_id(&self, id: SlotId) -> Option<&Slot> {
        self.by_id_in(AddressSpaceId::Normal, id)
    }

    /// The slot with this number in `space`.
    pub fn by_id_in(&self, space: AddressSpaceId, id: SlotId) -> Option<&Slot> {
        self.space(space).by_id(id).map(Arc::as_ref)
    }

    /// The slots of `space` that have frames of `[first, first + nr_pages)`, ascending.
    pub fn in_range(&self, space: AddressSpaceId, first: Gfn, nr_pages: u64) -> impl Iterator<Item = &Slot> {
        let (from, end) = (first.raw(), first.raw().saturating_add(nr_pages));
        let by_gfn = &self.space(space).by_gfn;
        let before = by_gfn.range(..from).next_back().filter(|(_, placed)| placed.slot.info().end().raw() > from);
        before.into_iter().chain(by_gfn.range(from..end)).map(|(_, placed)| &*placed.slot)
    }

    /// The slots that claim to show user pages of `range`, in every address space
    /// (`kvm_for_each_memslot_in_hva_range`).
    pub fn in_hva(&self, range: HvaRange) -> impl Iterator<Item = &Slot> {
        self.spaces.iter().flat_map(move |space| space.in_hva(range))
    }

    /// Adds a checked slot, or puts it in the place of the one with its number.
    pub(crate) fn put(&mut self, slot: Arc<Slot>) {
        let MemSlot { space, id, .. } = *slot.info();
        let space = &mut self.spaces[space.number()];
        space.remove(id);
        space.insert(slot);
    }

    /// Removes a slot.
    pub(crate) fn remove(&mut self, space: AddressSpaceId, id: SlotId) {
        self.spaces[space.number()].remove(id);
    }
}
