//! Dirty logging and aging over shadow tables: an image of guest memory follows by what each harvest tells, and must be
//! guest memory after it. What the guest's walks and the hypervisor's emulation write counts as what the guest writes.

mod guest_tables;

use std::collections::{BTreeMap, BTreeSet};

use emu_core::{Access, AccessKind, Gfn, Gpa, PageSize, Privilege};
use guest_tables::*;
use hypervisor::dirty::{DirtyLogging, RingSize, RingWithBitmap};
use hypervisor::tdp::AdBit;
use hypervisor::*;
use proptest::prelude::*;

const SLOT: SlotId = SlotId(0);

/// Pages that anything here writes: the guest's tables, and its data.
fn written_pages() -> impl Iterator<Item = u64> {
    (0..16).map(table).chain((0..8).map(|n| DATA + n * 0x1000)).map(|gpa| gpa >> 12)
}

/// What a migration has copied.
struct Image(BTreeMap<u64, Vec<u8>>);

impl Image {
    fn page(world: &World, gfn: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        world.vm.guest_read(Gpa::new(gfn << 12), &mut bytes, QUIET).unwrap();
        bytes
    }

    fn of(world: &World) -> Image {
        Image(written_pages().map(|gfn| (gfn, Image::page(world, gfn))).collect())
    }

    /// Copies what `told` names; what is not guest memory then was written and not told.
    fn follow(&mut self, world: &World, told: &BTreeSet<u64>) {
        for (&gfn, copy) in &mut self.0 {
            let now = Image::page(world, gfn);
            if told.contains(&gfn) {
                *copy = now;
            } else {
                assert!(*copy == now, "page {gfn:#x} was written and is not in the log");
            }
        }
    }
}

fn start(world: &mut World) {
    world.vm.set_dirty_logging(SLOT, DirtyLogging::On, QUIET).unwrap();
    world.obey();
}

fn harvest(world: &mut World, rings: bool) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    if rings {
        let mut pages = Vec::new();
        world.vm.collect_dirty_ring(CPU, usize::MAX, &mut pages, QUIET).unwrap();
        found.extend(pages.iter().map(|page| page.page));
        world.vm.reset_dirty_rings(QUIET).unwrap();
    } else {
        let note = &mut |word: u64, bits: u64| {
            found.extend((0..64).filter(|n| bits >> n & 1 == 1).map(|n| word * 64 + n));
        };
        world.vm.get_dirty_log(SLOT, note, QUIET).unwrap();
    }
    world.obey();
    found
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Guest(Step),
    /// A word of the guest's, through its tables.
    Data {
        page: u64,
        privilege: u64,
        value: u64,
    },
    Harvest,
    Age {
        first: u64,
        nr_pages: u64,
    },
    Restart,
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => steps().prop_map(Act::Guest),
        6 => (0..8_u64, 0..3_u64, any::<u64>())
            .prop_map(|(page, privilege, value)| Act::Data { page, privilege, value }),
        3 => Just(Act::Harvest),
        1 => (0..MEMORY >> 12, 1..600_u64).prop_map(|(first, nr_pages)| Act::Age { first, nr_pages }),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #[test]
    fn an_image_that_follows_the_log_is_guest_memory(
        form in prop::sample::select(&Form::ALL[..]),
        page in prop::sample::select(&[PageSize::Size4K, PageSize::Size2M][..]),
        rings in any::<bool>(),
        acts in prop::collection::vec(acts(), 1..100),
    ) {
        let size = RingSize::of_bytes(1 << 17).unwrap();
        let dirty_ring = rings.then_some(DirtyRingConfig { size, bitmap: RingWithBitmap::No });
        let mut world = World::with_params(form, page, MmuParams { dirty_ring, ..MmuParams::default() });
        start(&mut world);
        let mut image = Image::of(&world);
        // What the VMM changes itself no log tells.
        let mut own = BTreeSet::new();
        for act in acts.into_iter().chain([Act::Harvest]) {
            match act {
                Act::Guest(step) => {
                    world.take(step);
                    if let Step::Punch { frame } = step {
                        own.insert(if frame < 6 { DATA + frame * 0x1000 } else { world.page_table(frame - 6) } >> 12);
                    }
                }
                Act::Data { page, privilege, value } => {
                    let page = world.pages().nth(page as usize).expect("there are eight");
                    let access = Access::new(AccessKind::Write, Privilege::ALL[privilege as usize]);
                    // Behind the entries that any walk uses, should the page be a table.
                    let _ = world.access(page + 0xff0, access, Some(&(value & !1).to_le_bytes()[..4]));
                }
                Act::Harvest => {
                    let mut told = harvest(&mut world, rings);
                    told.append(&mut own);
                    image.follow(&world, &told);
                }
                Act::Age { first, nr_pages } => {
                    let used = &mut |_, _| {};
                    world.vm.harvest(Gfn::new(first), nr_pages, AdBit::Accessed, used, QUIET).unwrap();
                    world.obey();
                }
                Act::Restart => {
                    // What is in a bitmap goes with it; what is in a ring stays.
                    let mut told = harvest(&mut world, rings);
                    told.append(&mut own);
                    image.follow(&world, &told);
                    world.vm.set_dirty_logging(SLOT, DirtyLogging::Off, QUIET).unwrap();
                    world.obey();
                    start(&mut world);
                }
            }
            world.check();
        }
        prop_assert_eq!(world.vm.unlogged_writes(), 0, "each write is of the processor's");
    }
}

#[test]
fn a_leaf_is_written_once_a_round_without_a_fault_of_its_own() {
    for form in Form::ALL {
        let mut world = World::new(form, PageSize::Size4K);
        let write = Access::new(AccessKind::Write, Privilege::Supervisor);
        world.edit(world.page_table(0), 0, DATA | P | W | A | D);
        world.access(0, write, Some(&[1])).unwrap();
        start(&mut world);
        let taken = |world: &World| world.vm.stats().faults.taken;
        for _ in 0..3 {
            let before = taken(&world);
            for n in 0..5_u8 {
                world.access(u64::from(n), write, Some(&[n])).unwrap();
            }
            assert_eq!(taken(&world) - before, 1, "{form:?}");
            assert!(harvest(&mut world, false).contains(&(DATA >> 12)), "{form:?}");
            assert!(harvest(&mut world, false).is_empty(), "{form:?}: nothing was written since");
        }
    }
}

#[test]
fn the_flags_that_a_walk_sets_in_the_guests_tables_are_writes() {
    for form in Form::ALL {
        let mut world = World::new(form, PageSize::Size4K);
        world.edit(world.page_table(0), 3, DATA | P | W);
        start(&mut world);
        let read = Access::new(AccessKind::Read, Privilege::Supervisor);
        world.access(0x3000, read, None).unwrap();
        let found = harvest(&mut world, false);
        assert!(found.contains(&(world.page_table(0) >> 12)), "{form:?}: A of the PTE: {found:x?}");
    }
}

/// A flush makes leaves again from what the guest's entries say by then; the right to write that an entry has got meanwhile
/// is not in them, because nobody would be told of the write.
#[test]
fn a_right_to_write_comes_by_a_fault_that_marks_the_page() {
    let by = |kind| Access::new(kind, Privilege::Supervisor);
    for form in Form::ALL {
        let mut world = World::new(form, PageSize::Size4K);
        world.edit(world.page_table(0), 1, DATA | P | A);
        start(&mut world);
        world.access(0x1000, by(AccessKind::Read), None).unwrap();
        world.edit(world.page_table(0), 1, DATA | P | W | A | D);
        world.invlpg(0x1000);
        assert_eq!(world.vm.shadow_stats(QUIET).unsync, 1, "{form:?}: the leaf was not dropped by an emulated write");
        harvest(&mut world, false);
        world.access(0x1000, by(AccessKind::Write), Some(&[1])).unwrap();
        assert!(harvest(&mut world, false).contains(&(DATA >> 12)), "{form:?}");
    }
}

#[test]
fn logging_makes_large_leaves_small_where_they_are_written_and_stopping_lets_them_be_large_again() {
    let mut world = World::new(Form::Four, PageSize::Size2M);
    let access = |kind| Access::new(kind, Privilege::Supervisor);
    let data = WINDOW + (6 << 20);
    world.access(data, access(AccessKind::Write), None).unwrap();
    let large = |world: &World| {
        let stats = world.vm.shadow_stats(QUIET);
        stats.installed[1] - stats.zapped[1]
    };
    assert_eq!(large(&world), 1);
    start(&mut world);
    world.access(data, access(AccessKind::Read), None).unwrap();
    assert_eq!(large(&world), 1, "reading needs nothing smaller");
    world.access(data + 0x5000, access(AccessKind::Write), Some(&[1])).unwrap();
    assert_eq!(large(&world), 0);
    assert_eq!(harvest(&mut world, false), [(6 << 8) + 5].into());
    world.vm.set_dirty_logging(SLOT, DirtyLogging::Off, QUIET).unwrap();
    world.obey();
    world.access(data + 0x5000, access(AccessKind::Write), Some(&[1])).unwrap();
    assert_eq!(large(&world), 1);
    world.check();
}

#[test]
fn leaves_age() {
    let mut world = World::new(Form::Four, PageSize::Size4K);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let gfn = Gfn::new(DATA >> 12);
    let young = |world: &World, aging| world.vm.age_range(gfn, 1, aging, QUIET).unwrap();
    assert!(!young(&world, Aging::Test));
    world.access(WINDOW + DATA, read, None).unwrap();
    assert!(young(&world, Aging::Test) && young(&world, Aging::Clear));
    assert!(!young(&world, Aging::Test), "it was cleared");
    world.cpu.flush_all();
    world.access(WINDOW + DATA, read, None).unwrap();
    let mut found = Vec::new();
    world.vm.harvest(gfn, 1, AdBit::Accessed, &mut |gfn, size| found.push((gfn, size)), QUIET).unwrap();
    assert_eq!(found, [(gfn, PageSize::Size4K)]);
}

#[test]
fn nothing_can_be_mapped_ahead_where_a_guest_physical_range_has_no_entries() {
    let world = World::new(Form::Four, PageSize::Size4K);
    let mut range = PreFault { gpa: Gpa::new(DATA), len_bytes: 0x1000, flags: 0 };
    let refused = world.vm.pre_fault_memory(CPU, &mut range, &mut || true, QUIET);
    assert_eq!(refused, Err(PreFaultError::Shadowing), "EOPNOTSUPP");
}
