//! Under which key memory is accessed.

use emu_core::memory::Key;
use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gva, Privilege, Spa};
use mmu::rmp::{RmpPageSize, VmplPermissions};
use mmu::{RmpCause, Stage2};

use crate::scene::{DATA, DATA_SPA, Leaf, Scene, State, accesses, guest_key};
use crate::{GVA, cause};

/// What `mmu` reads at the data, after the access that finds it.
fn read(scene: &Scene, mmu: &mut mmu::Mmu) -> u64 {
    let found = mmu.translate(GVA, Access::new(AccessKind::Read, Privilege::Supervisor)).expect("readable");
    scene.load(found.spa.raw())
}

fn host_of(scene: &Scene) -> mmu::Mmu {
    let mut host = scene.another_processor();
    host.set_stage2(Stage2::None);
    host.set_paging(mmu::PagingState::default(), mmu::PagingChange::Reset);
    host
}

fn host_reads(scene: &Scene, host: &mut mmu::Mmu) -> u64 {
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    scene.load(host.translate(Gva::new(DATA_SPA), read).expect("the host reads everything").spa.raw())
}

#[test]
fn what_the_guest_writes_is_noise_to_the_host_and_comes_back() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    let (mut guest, mut host) = (scene.another_processor(), host_of(&scene));
    guest.fast.select(Privilege::Supervisor);
    host.fast.select(Privilege::Supervisor);
    let found = guest.translate(GVA, Access::new(AccessKind::Write, Privilege::Supervisor)).unwrap();
    assert_eq!(scene.memory.key(found.spa.frame()), guest_key());
    guest.fast.store(DATA, 0x5eed_u64).expect("a fast entry");
    assert_ne!(host_reads(&scene, &mut host), 0x5eed);
    assert_eq!(scene.memory.key(found.spa.frame()), Key::HOST);
    assert!(host.fast.load::<u64>(DATA_SPA).is_some() && guest.is_behind_rmp());
    guest.catch_up();
    assert_eq!(guest.fast.load::<u64>(DATA), None, "the bytes are another's");
    assert_eq!(read(&scene, &mut guest), 0x5eed);
    host.catch_up();
    assert_eq!(host.fast.load::<u64>(DATA_SPA), None);
}

#[test]
fn a_shared_mapping_of_a_private_page_reads_noise_and_a_fetch_through_it_does_not() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    let mut guest = scene.another_processor();
    guest.fast.select(Privilege::Supervisor);
    guest.translate(GVA, Access::new(AccessKind::Write, Privilege::Supervisor)).unwrap();
    guest.fast.store(DATA, 0x5eed_u64).expect("a fast entry");
    scene.map_data(CBit::Clear);
    guest.invlpg(GVA);
    for _ in 0..2 {
        assert_ne!(read(&scene, &mut guest), 0x5eed);
        assert!(guest.fast.load::<u64>(DATA).is_some() && guest.fast.code_page(DATA).is_none());
        let found = guest.translate(GVA, Access::new(AccessKind::Execute, Privilege::Supervisor)).unwrap();
        assert_eq!(scene.load(found.spa.raw()), 0x5eed, "fetches are private");
        assert!(guest.fast.load::<u64>(DATA).is_none() && guest.fast.code_page(DATA).is_some());
    }
}

#[test]
fn tables_that_the_host_wrote_are_noise_to_the_guest() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    assert!(scene.mmu.translate(GVA, Access::new(AccessKind::Read, Privilege::Supervisor)).is_ok());
    let table = Spa::new(scene.table_spa(3));
    scene.rmp.rekey(table.frame(), Key::HOST);
    let entry = scene.load(table.raw());
    scene.mmu.invlpg(GVA);
    assert!(scene.mmu.translate(GVA, Access::new(AccessKind::Read, Privilege::Supervisor)).is_ok(), "taken back");
    assert_eq!(scene.memory.key(table.frame()), guest_key());
    assert_ne!(scene.load(table.raw()), entry);
}

#[test]
fn a_table_mapped_as_shared_data_is_walked_as_a_private_one() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    // The page of data is the guest's page table itself, mapped with the C-bit clear.
    scene.store(scene.table_spa(3), scene.table_gpa(3) | 0x67);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    for _ in 0..3 {
        let found = scene.mmu.translate(GVA, read).expect("shared reads are not checked");
        assert_eq!(found.spa, Spa::new(scene.table_spa(3)));
        assert_eq!(scene.memory.key(found.spa.frame()), Key::HOST);
        let private = scene.mmu.translate(Gva::new(DATA + 0x1000), read);
        assert_eq!(cause(private).0, RmpCause::Ownership, "walked, under the guest's key");
        assert_eq!(scene.memory.key(found.spa.frame()), guest_key());
    }
}

#[test]
fn a_probe_changes_no_key() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    scene.mmu.catch_up();
    for access in accesses() {
        assert!(scene.mmu.probe(GVA, access).is_ok());
        assert_eq!(scene.memory.key(Spa::new(DATA_SPA).frame()), Key::HOST);
    }
    assert!(!scene.mmu.is_behind_rmp());
}

#[test]
fn processors_that_fight_for_a_frame_both_get_on() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    let (mut guest, mut host) = (scene.another_processor(), host_of(&scene));
    guest.fast.select(Privilege::Supervisor);
    guest.translate(GVA, Access::new(AccessKind::Write, Privilege::Supervisor)).unwrap();
    guest.fast.store(DATA, 0x5eed_u64).expect("a fast entry");
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    std::thread::scope(|scope| {
        let (guest, host) = (&mut guest, &mut host);
        scope.spawn(move || (0..300).for_each(|_| assert!(guest.translate(GVA, read).is_ok())));
        scope.spawn(move || (0..300).for_each(|_| assert!(host.translate(Gva::new(DATA_SPA), read).is_ok())));
    });
    assert_eq!(self::read(&scene, &mut guest), 0x5eed, "neither wrote");
}
