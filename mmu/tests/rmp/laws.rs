//! What must hold whatever happens. Each law is asked of every entry and every event that it speaks of.

use emu_core::memory::SystemMemory;
use emu_core::sev::Vmpl;
use emu_core::{Gpa, PageSize, Sfn, Spa};
use mmu::rmp::{
    Changed, GuestPage, Pvalidate, RmpAdjust, RmpEntry, RmpError, RmpPageSize, RmpPlace, RmpUpdate, Validated,
    VmplPermissions, Vmsa,
};
use mmu::{Asid, Rmp};
use oracle::rmp::{Doing, Leaf, NewEntry, Page, REGION, Use, Who};

use crate::rig::{MINE, OTHER, Rig, guest_page, update};
use crate::scenes::{GPA, Scene, entries, scenes};

const MASKS: [[u8; 4]; 1] = [[0x1f, 3, 1, 0]];

fn every_scene() -> impl Iterator<Item = Scene> {
    entries(&MASKS).into_iter().flat_map(scenes)
}

fn every_update(scene: &Scene) -> Vec<(Spa, RmpUpdate)> {
    let mut updates = Vec::new();
    for large in [false, true] {
        let spa = if large { scene.spa() & !0x1f_ffff } else { scene.spa() };
        for (assigned, immutable) in [(false, false), (true, false), (true, true)] {
            for asid in [0, MINE, OTHER] {
                for gpa in [0, GPA, scene.gpa()] {
                    let new = NewEntry { gpa, assigned, large, immutable, asid };
                    updates.push((Spa::new(spa), update(&new)));
                }
            }
        }
    }
    updates
}

fn all_entries(rig: &Rig) -> Vec<RmpEntry> {
    (0..rig.map.pages.len() as u64).map(|n| rig.rmp.entry(Sfn::new(n)).unwrap()).collect()
}

#[test]
fn no_instruction_of_the_host_makes_a_page_valid() {
    let mut rig = Rig::new();
    for scene in every_scene() {
        rig.load(&scene);
        for (spa, new) in every_update(&scene) {
            if rig.rmp.rmpupdate(spa, new).is_ok() {
                for (now, was) in all_entries(&rig).iter().zip(&scene.map.pages) {
                    assert!(!now.validated() || was.validated);
                }
                rig.load(&scene);
            }
        }
        if rig.rmp.psmash(Spa::new(scene.spa() & !0x1f_ffff)).is_ok() {
            for (now, was) in all_entries(&rig).iter().zip(&scene.map.pages) {
                assert_eq!(now.validated(), was.validated);
            }
        }
    }
}

#[test]
fn rmpupdate_that_changes_owner_place_or_size_takes_what_the_guest_gave() {
    let mut rig = Rig::new();
    for scene in every_scene() {
        let was = scene.map.pages[scene.frame as usize];
        rig.load(&scene);
        for (spa, new) in every_update(&scene) {
            if rig.rmp.rmpupdate(spa, new).is_err() {
                continue;
            }
            let now = rig.rmp.entry(Sfn::new(scene.frame)).unwrap();
            let same = now.assigned() == was.assigned
                && now.asid().0 == was.asid
                && now.gpa().raw() == was.gpa
                && (now.page_size() == RmpPageSize::Size2M) == was.large;
            if !same {
                assert!(!now.validated() && !now.vmsa(), "{new:?} of {was:x?} leaves {now:?}");
                let masks = Vmpl::ALL.map(|vmpl| now.permissions(vmpl).bits());
                assert_eq!(masks, if now.assigned() { Page::FIRST_MASKS } else { [0; 4] });
            }
            rig.load(&scene);
        }
    }
}

#[test]
fn psmash_changes_no_verdict_for_small_mappings_but_that_of_size() {
    let mut rig = Rig::new();
    for scene in every_scene().filter(|scene| scene.map.pages[scene.frame as usize].large) {
        let judge = |rig: &Rig, leaf| {
            let mut verdicts = Vec::new();
            for frame in [REGION, REGION + 1, REGION + 511] {
                for doing in [Doing::Read, Doing::Write, Doing::Fetch] {
                    for user in [false, true] {
                        for vmpl in 0..4 {
                            for (asid, c_bit) in [(MINE, false), (MINE, true), (OTHER, true)] {
                                let gpa = GPA + frame % REGION * 4096;
                                let who = Who::SnpGuest { asid, gpa, c_bit, vmpl };
                                verdicts
                                    .push(rig.access(&Use { who, doing, user, leaf, spa: frame << 12 }).map(|_| ()));
                            }
                        }
                        let who = Who::HostOrPlainGuest;
                        verdicts.push(rig.access(&Use { who, doing, user, leaf, spa: frame << 12 }).map(|_| ()));
                    }
                }
            }
            verdicts
        };
        rig.load(&scene);
        // Before, the leaf that fits is of 2 MiB; afterwards, one of 4 KiB.
        let before = judge(&rig, Leaf::Medium);
        if rig.rmp.psmash(Spa::new(REGION << 12)).is_ok() {
            assert_eq!(before, judge(&rig, Leaf::Small), "{scene:x?}");
            assert_eq!(rig.rmp.psmash(Spa::new(REGION << 12)), Err(RmpError::FailInput), "once");
        }
    }
}

#[test]
fn pvalidate_changes_validated_alone_and_sets_carry_only_with_success() {
    let mut rig = Rig::new();
    for scene in every_scene() {
        for leaf in [Leaf::Small, Leaf::Medium] {
            let page: GuestPage = guest_page(&scene.operand(leaf, 0));
            for size in [RmpPageSize::Size4K, RmpPageSize::Size2M] {
                for validated in [Validated::No, Validated::Yes] {
                    rig.load(&scene);
                    let before = all_entries(&rig);
                    let answer = rig.rmp.pvalidate(&page, &Pvalidate { size, validated });
                    let after = all_entries(&rig);
                    let differ: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
                    match answer {
                        Ok(Ok(Changed::Yes)) => {
                            assert_eq!(differ.len() as u64, size.frames());
                            for (a, b) in differ {
                                assert_eq!([a.words()[0] ^ b.words()[0], a.words()[1] ^ b.words()[1]], [1 << 62, 0]);
                            }
                            let again = rig.rmp.pvalidate(&page, &Pvalidate { size, validated });
                            assert_eq!(again, Ok(Ok(Changed::No)));
                        }
                        _ => assert!(differ.is_empty(), "{answer:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn rmpadjust_never_gives_more_than_the_caller_has() {
    let mut rig = Rig::new();
    for own in 0..0x20_u8 {
        for given in 0..0x20_u8 {
            for vmpl in 0..3_usize {
                for target in 0..4_usize {
                    let mut masks = [0; 4];
                    masks[vmpl] = own;
                    let entry =
                        Page { assigned: true, asid: MINE, gpa: GPA, validated: true, masks, ..Page::HYPERVISOR };
                    let scene = scenes(entry).remove(0);
                    rig.load(&scene);
                    let permissions = VmplPermissions::from_bits(given).unwrap();
                    let request = RmpAdjust { target: Vmpl::ALL[target], permissions, vmsa: Vmsa::Yes };
                    let page = guest_page(&scene.operand(Leaf::Small, vmpl));
                    let answer = rig.rmp.rmpadjust(&page, RmpPageSize::Size4K, &request).unwrap();
                    let now = rig.rmp.entry(Sfn::new(scene.frame)).unwrap();
                    let allowed = given & !own == 0 && target > vmpl;
                    assert_eq!(answer, if allowed { Ok(()) } else { Err(RmpError::FailPermission) });
                    for level in Vmpl::ALL {
                        let expected = if allowed && level.index() == target { given } else { masks[level.index()] };
                        assert_eq!(now.permissions(level).bits(), expected);
                    }
                    assert_eq!(now.vmsa(), allowed && vmpl == 0, "only VMPL 0 makes a VMSA");
                }
            }
        }
    }
}

#[test]
fn a_guest_touches_no_entry_but_its_own() {
    let mut rig = Rig::new();
    for scene in every_scene().filter(|scene| scene.map.pages[scene.frame as usize].asid != MINE) {
        rig.load(&scene);
        let page = guest_page(
            &scene.operand(if scene.map.pages[scene.frame as usize].large { Leaf::Medium } else { Leaf::Small }, 0),
        );
        for size in [RmpPageSize::Size4K, RmpPageSize::Size2M] {
            for validated in [Validated::No, Validated::Yes] {
                let _ = rig.rmp.pvalidate(&page, &Pvalidate { size, validated });
            }
            let request = RmpAdjust { target: Vmpl::Vmpl1, permissions: VmplPermissions::all(), vmsa: Vmsa::Yes };
            let _ = rig.rmp.rmpadjust(&page, size, &request);
        }
        rig.compare(&scene.frame);
    }
}

#[test]
fn a_page_is_never_both_the_hosts_to_write_and_a_guests_to_use() {
    let mut rig = Rig::new();
    for scene in every_scene() {
        rig.load(&scene);
        for leaf in Leaf::ALL {
            let of = |who, doing| Use { who, doing, user: false, leaf, spa: scene.spa() };
            let host = rig.access(&of(Who::HostOrPlainGuest, Doing::Write));
            for vmpl in 0..4 {
                let who = Who::SnpGuest { asid: MINE, gpa: scene.gpa(), c_bit: true, vmpl };
                assert!(host.is_err() || rig.access(&of(who, Doing::Read)).is_err());
            }
        }
    }
}

#[test]
fn the_firmware_alone_moves_an_immutable_page() {
    let mut rig = Rig::new();
    for scene in every_scene().filter(|scene| scene.map.pages[scene.frame as usize].immutable) {
        rig.load(&scene);
        for (spa, new) in every_update(&scene) {
            assert!(rig.rmp.rmpupdate(spa, new).is_err());
        }
        assert!(rig.rmp.psmash(Spa::new(scene.spa() & !0x1f_ffff)).is_err());
        rig.compare(&scene.frame);
    }
}

#[test]
fn a_segmented_table_says_the_same_as_a_contiguous_one() {
    let memory = SystemMemory::flat(0x100_0000).unwrap();
    // One segment of 1 GiB, whose entries begin at 8 MiB.
    memory.store(Spa::new(0x4000), 0x80_0000_u64 | 1).unwrap();
    let segmented = Rmp::new(memory, RmpPlace::Segmented { base: Spa::new(0), segment_shift: 30 }).unwrap();
    let rig = Rig::new();
    let large = |spa, asid| (Spa::new(spa), RmpUpdate::guest(Asid(asid), Gpa::new(spa), RmpPageSize::Size2M));
    for (spa, new) in [large(0, MINE), large(0x20_0000, OTHER)] {
        assert_eq!(segmented.rmpupdate(spa, new), rig.rmp.rmpupdate(spa, new));
    }
    assert_eq!(segmented.psmash(Spa::new(0)), rig.rmp.psmash(Spa::new(0)));
    for frame in 0..rig.map.pages.len() as u64 {
        assert_eq!(segmented.entry(Sfn::new(frame)), rig.rmp.entry(Sfn::new(frame)));
    }
    assert_eq!(segmented.pages_of(Asid(MINE)), REGION);
    assert!(segmented.entry(Sfn::new((1 << 18) - 1)).is_some());
    assert_eq!(segmented.entry(Sfn::new(1 << 18)), None);
    assert_eq!(segmented.check_host_write(Spa::new(1 << 30), PageSize::Size2M), Ok(()));
}
