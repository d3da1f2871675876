//! Shadow paging against the guest's own tables: whenever the guest has flushed what it changed, shadow and tables must say
//! the same. After each step the invariants of the shadow MMU are recomputed.

mod guest_tables;

use emu_core::regs::{Cr0, Cr4};
use emu_core::{Access, AccessKind, Gpa, PageFaultCode, PageSize, Privilege};
use guest_tables::*;
use hypervisor::shadow::{Emulated, Origin, ShadowMmu};
use hypervisor::*;
use mmu::{Invpcid, PagingChange, PagingState, Pcid};
use proptest::prelude::*;

proptest! {
    #[test]
    fn random_guest_tables_translate_as_the_guest_says(
        form in prop::sample::select(&Form::ALL[..]),
        page in prop::sample::select(&[PageSize::Size4K, PageSize::Size2M][..]),
        steps in prop::collection::vec(steps(), 1..120),
    ) {
        let mut world = World::new(form, page);
        for step in steps {
            world.take(step);
        }
        world.flush_all();
        for gva in world.pages() {
            world.compare(gva, Access::new(AccessKind::Read, Privilege::Supervisor));
        }
        world.check();
    }
}

#[test]
fn a_page_table_goes_unsync_and_follows_again_when_the_guest_flushes() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    for form in Form::ALL {
        let mut world = World::new(form, PageSize::Size4K);
        let frame = |world: &mut World| world.access(0x1000, read, None).unwrap().unwrap().frame();
        world.edit(world.page_table(0), 1, DATA | P | W | A | D);
        let first = frame(&mut world);
        // The table is shadowed by now, so the first store to it makes its page unsync and the others go through.
        world.edit(world.page_table(0), 1, DATA + 0x1000 | P | W | A | D);
        world.edit(world.page_table(0), 2, DATA + 0x2000 | P | W | A | D);
        let stats = world.vm.shadow_stats(QUIET);
        assert_eq!((stats.unsync, stats.emulated), (1, 0), "{form:?}");
        assert_eq!(frame(&mut world), first, "stale until the guest flushes");
        world.invlpg(0x1000);
        assert_ne!(frame(&mut world), first, "{form:?}");
        world.flush_all();
        assert_eq!(world.vm.shadow_stats(QUIET).synced, 1, "{form:?}");
        world.check();
    }
}

#[test]
fn a_table_above_the_lowest_level_is_written_by_the_hypervisor() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    for form in Form::ALL {
        let mut world = World::new(form, PageSize::Size4K);
        world.edit(world.page_table(0), 0, DATA | P | W | A | D);
        world.edit(world.page_table(1), 0, DATA + 0x3000 | P | W | A | D);
        let first = world.access(0, read, None).unwrap().unwrap();
        let entry = world.page_table(1) | P | W | U | A | D;
        world.edit(world.directory(), 0, entry);
        assert_eq!(world.vm.shadow_stats(QUIET).emulated, 1, "{form:?}");
        let second = world.access(0, read, None).unwrap().unwrap();
        assert_ne!(first.frame(), second.frame(), "{form:?}");
        world.check();
    }
}

#[test]
fn a_large_page_of_the_guest_is_mapped_by_parts_where_the_host_has_small_pages_or_it_covers_a_table() {
    let write = Access::new(AccessKind::Write, Privilege::Supervisor);
    for form in Form::ALL {
        for page in [PageSize::Size4K, PageSize::Size2M] {
            let mut world = World::new(form, page);
            let data = 6 << 20;
            world.access(WINDOW + data, write, None).unwrap();
            let huge = usize::from(page == PageSize::Size2M);
            let stats = world.vm.shadow_stats(QUIET);
            assert_eq!(stats.installed[1], huge as u64, "{form:?} {page}: no table lies there");
            world.access(WINDOW + DATA - 0x1000, write, None).unwrap();
            let stats = world.vm.shadow_stats(QUIET);
            assert_eq!(stats.installed[1], huge as u64, "{form:?} {page}: tables lie in this one");
            world.check();
        }
    }
}

#[test]
fn a_write_that_floods_a_table_gives_it_back() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let mut world = World::new(Form::Four, PageSize::Size4K);
    world.edit(world.page_table(0), 0, DATA | P | W | A | D);
    world.access(0, read, None).unwrap();
    for n in 0..4 {
        world.edit(world.directory(), 100 + n, 0);
    }
    let stats = world.vm.shadow_stats(QUIET);
    assert_eq!((stats.flooded, stats.emulated), (1, 3), "the fourth store is the guest's own");
    world.access(0, read, None).unwrap();
    world.check();
}

#[test]
fn the_limit_of_shadow_pages_holds() {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let mut world = World::new(Form::Four, PageSize::Size4K);
    let tables = 0x40_0000;
    for n in 0..200 {
        world.guest_store(tables + n * 0x1000, &(DATA | P | A).to_le_bytes());
        world.guest_store(world.directory() + 8 * (2 + n), &(tables + n * 0x1000 | P | W | A).to_le_bytes());
    }
    for n in 0..200 {
        world.access((2 + n) << 21, read, None).unwrap();
        let stats = world.vm.shadow_stats(QUIET);
        assert!(stats.pages <= 64, "{stats:?}");
    }
    assert!(world.vm.shadow_stats(QUIET).recycled > 100);
    world.check();
}

#[test]
fn paging_off_is_shadowed_directly() {
    let mut world = World::new(Form::Pae, PageSize::Size4K);
    let off = PagingState { cr0: Cr0::PE | Cr0::ET, ..PagingState::default() };
    world.write_registers(off, PagingChange::Reset);
    for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Execute] {
        world.compare(DATA + 0x123, Access::new(kind, Privilege::User));
    }
    world.check();
}

#[test]
fn a_memslot_takes_its_leaves_and_the_shadows_of_its_tables_along() {
    let mut world = World::new(Form::Four, PageSize::Size4K);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    world.edit(world.page_table(0), 0, DATA | P | W | A | D);
    world.access(0, read, None).unwrap();
    world.vm.remove_memslot(SlotId(0), QUIET).unwrap();
    world.obey();
    let of_guest = |pages: &ShadowMmu| pages.pages().filter(|(_, page)| page.role.origin == Origin::Guest).count();
    let left = world.vm.tables(QUIET).with_shadow(QUIET, of_guest);
    assert_eq!(left, Some(0), "no guest table is shadowed, not even the root");
    let stats = world.vm.shadow_stats(QUIET);
    assert_eq!(stats.installed, stats.zapped, "direct pages may stay, but they are empty");
    let refused = world.access(0, read, None);
    assert_eq!(refused, Err(PageFaultCode::empty()), "the guest's tables are nowhere");
    world.check();
}

#[test]
fn an_exchange_happens_only_if_the_memory_is_what_the_instruction_saw() {
    let world = World::new(Form::Four, PageSize::Size4K);
    let gpa = Gpa::new(DATA);
    world.vm.guest_write(gpa, &7_u64.to_le_bytes(), QUIET).unwrap();
    let exchange = |old: u64, new: u64| {
        world.vm.emulate_exchange(CPU, gpa, &old.to_le_bytes(), &new.to_le_bytes(), QUIET).unwrap()
    };
    assert_eq!(exchange(8, 9), Emulated::Changed);
    assert_eq!(exchange(7, 9), Emulated::Done);
    assert_eq!(exchange(9, 1), Emulated::Done);
}

#[test]
fn roots_are_kept_for_guests_with_pcids() {
    let mut world = World::new(Form::Four, PageSize::Size4K);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let other = 0x60_0000;
    let mut root = vec![0; 4096];
    world.vm.guest_read(Gpa::new(TABLES), &mut root, QUIET).unwrap();
    world.guest_store(other, &root[..8]);
    let with = |cr3: u64| PagingState { cr3, cr4: Form::Four.state().cr4 | Cr4::PCIDE, ..Form::Four.state() };
    world.write_registers(with(TABLES | 1), PagingChange::MovCr4);
    world.access(WINDOW, read, None).unwrap();
    let loaded = world.vm.shadow_stats(QUIET).roots_loaded;
    for _ in 0..4 {
        world.write_registers(with(other | 2), PagingChange::MovCr3NoFlush);
        world.write_registers(with(TABLES | 1), PagingChange::MovCr3NoFlush);
    }
    let stats = world.vm.shadow_stats(QUIET);
    assert_eq!((stats.roots_loaded - loaded, stats.roots_reused), (1, 7));
    world.vm.shadow_invpcid(CPU, Invpcid::Single { pcid: Pcid::new(2) }, QUIET).unwrap();
    world.write_registers(with(other | 2), PagingChange::MovCr3NoFlush);
    assert_eq!(world.vm.shadow_stats(QUIET).roots_loaded - loaded, 2, "the flushed root is not reused as it was");
    world.check();
}
