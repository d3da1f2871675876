//! Tests of sets of memslots; the calls that change them are tested over a VM in `tests/memslots.rs`.

use std::sync::Arc;

use emu_core::sync::{Mutex, Task};
use emu_core::{Gfn, Hva, Hvn};
use gmem::SlotId;
use gmem::mm::HvaRange;
use proptest::prelude::*;

use super::*;

const QUIET: &Task<'static> = &Task::QUIET;
const LAST: Gfn = Gfn::new((1 << 36) - 1);

fn info(id: u16, first: u64, nr_pages: u64, hva_page: u64) -> MemSlot {
    MemSlot {
        id: SlotId(id),
        space: AddressSpaceId::Normal,
        first: Gfn::new(first),
        nr_pages,
        flags: SlotFlags::empty(),
        hva: Hva::new(hva_page << 12),
        gmem: None,
    }
}

fn with(slots: impl IntoIterator<Item = MemSlot>) -> MemSlots {
    let mut set = MemSlots::new(LAST);
    slots.into_iter().for_each(|info| set.put(Arc::new(Slot::new(info, None))));
    set
}

#[test]
fn lookup_finds_edges_and_holes_in_its_own_address_space() {
    let smm = MemSlot { space: AddressSpaceId::Smm, ..info(0, 0xa0, 0x20, 0) };
    let slots = with([info(1, 0x100, 2, 0), info(0, 0, 0xa0, 0), smm]);
    let id = |gfn| slots.lookup(Gfn::new(gfn)).map(|slot| slot.info.id.0);
    assert_eq!([id(0), id(0x9f), id(0xa0), id(0xff)], [Some(0), Some(0), None, None]);
    assert_eq!([id(0x100), id(0x101), id(0x102), id(u64::MAX)], [Some(1), Some(1), None, None]);
    assert!(slots.lookup_in(AddressSpaceId::Smm, Gfn::new(0xa0)).is_some());
    assert_eq!(slots.by_id_in(AddressSpaceId::Smm, SlotId(0)).map(|slot| slot.info.first), Some(Gfn::new(0xa0)));
    assert_ne!(smm.binding_id(), SlotId(0), "an inode tells the two apart");
    assert_eq!(slots.iter().count(), 3);
}

#[test]
fn publications_step_the_generation_and_mark_it_while_the_old_set_is_in_use() {
    let sets = SlotSets::new(LAST, 2);
    let lock = Mutex::new(());
    let held = lock.lock(QUIET);
    assert_eq!(sets.read(QUIET).generation(), 0);
    sets.publish(Publication::Put(Slot::new(info(3, 8, 8, 0), None)), &held, QUIET);
    sets.publish(Publication::Remove(AddressSpaceId::Normal, SlotId(3)), &held, QUIET);
    sets.publish(Publication::Put(Slot::new(info(4, 8, 8, 0), None)), &held, QUIET);
    let now = sets.read(QUIET);
    assert_eq!((now.generation(), now.iter().count()), (6, 1));
    assert_eq!(now.generation() & UPDATE_IN_PROGRESS, 0);
}

proptest! {
    #[test]
    fn a_lookup_near_any_hint_finds_what_a_lookup_finds(
        steps in prop::collection::vec((0_u16..5, 0_u64..8, 0_u64..9, 0_u64..60), 1..40),
    ) {
        let mut set = MemSlots::new(LAST);
        let mut hint = SlotHint::default();
        for (id, shift, nr_pages, gfn) in steps {
            match nr_pages {
                0 => set.remove(AddressSpaceId::Normal, SlotId(id)),
                _ => set.put(Arc::new(Slot::new(info(id, 10 * u64::from(id) + shift, nr_pages.min(10 - shift), 0), None))),
            }
            let gfn = Gfn::new(gfn);
            let found = set.lookup_near(gfn, &mut hint).map(|slot| slot.info.id);
            prop_assert_eq!(found, set.lookup(gfn).map(|slot| slot.info.id));
            prop_assert_eq!(set.lookup_near(gfn, &mut hint).map(|slot| slot.info.id), found);
        }
    }

    #[test]
    fn a_search_by_user_address_finds_what_a_look_at_every_slot_finds(
        slots in prop::collection::vec((1_u64..600, 0_u64..2000), 0..40),
        gone in prop::collection::vec(0_u16..40, 0..10),
        range in (0_u64..2600, 1_u64..800),
    ) {
        let slots: Vec<MemSlot> = slots
            .into_iter()
            .enumerate()
            .map(|(n, (nr_pages, hva))| info(n as u16, 1000 * n as u64, nr_pages, hva))
            .collect();
        let mut set = with(slots.iter().copied());
        gone.iter().for_each(|&id| set.remove(AddressSpaceId::Normal, SlotId(id)));
        let range = HvaRange { first: Hvn::new(range.0), nr_pages: range.1 };
        let mut found: Vec<u16> = set.in_hva(range).map(|slot| slot.info.id.0).collect();
        found.sort_unstable();
        let there = |slot: &&MemSlot| !gone.contains(&slot.id.0);
        let reaches = |slot: &&MemSlot| slot.hva_range().intersection(range).is_some();
        let wanted: Vec<u16> = slots.iter().filter(there).filter(reaches).map(|slot| slot.id.0).collect();
        prop_assert_eq!(found, wanted);
    }
}
