//! Every entry, every access, every instruction.

use emu_core::sev::Vmpl;
use emu_core::{Sfn, Spa};
use mmu::Asid;
use mmu::rmp::Vmsa;
use oracle::rmp::{Answer, Doing, Launch, Leaf, Map, NewEntry, Operand, Page, REGION, Use, Who};

use crate::rig::{Event, MINE, OTHER, REGIONS, Rig, guest_page, refused, update};
use crate::scenes::{GPA, Scene, UNCOVERED, entries, scenes};

const DOING: [Doing; 4] = [Doing::Read, Doing::Write, Doing::Fetch, Doing::TableWalk];

fn uncovered() -> Scene {
    Scene::new(Map::new(REGIONS), UNCOVERED)
}

/// Lets every event happen to the scene by itself. What is refused must leave everything as it was.
fn try_all(rig: &mut Rig, scene: &Scene, events: impl IntoIterator<Item = Event>) {
    rig.load(scene);
    for event in events {
        if rig.apply(&event) {
            rig.compare(&(event, scene.frame));
            rig.load(scene);
        }
    }
    rig.compare(&scene.frame);
}

/// Asks about every access to the page of a scene.
fn every_access(rig: &Rig, scene: &Scene, vmpls: &[usize]) {
    for leaf in Leaf::ALL {
        for doing in DOING {
            for user in [false, true] {
                let of = |who| Use { who, doing, user, leaf, spa: scene.spa() + 0x123 };
                rig.compare_access(&of(Who::HostOrPlainGuest));
                for &vmpl in vmpls {
                    for c_bit in [false, true] {
                        let gpa = scene.gpa() + 0x123;
                        rig.compare_access(&of(Who::SnpGuest { asid: MINE, gpa, c_bit, vmpl }));
                    }
                }
            }
        }
    }
}

#[test]
fn every_access_to_every_entry_is_judged_as_the_manual_says() {
    let mut rig = Rig::new();
    let masks = [[0; 4], [0x1f; 4], Page::FIRST_MASKS, [0x1f, 1, 3, 0xd]];
    for scene in entries(&masks).into_iter().flat_map(scenes).chain([uncovered()]) {
        rig.load(&scene);
        every_access(&rig, &scene, &[0, 1, 2, 3]);
        for asid in [MINE, OTHER] {
            let got = rig.rmp.check_vmsa(Spa::new(scene.spa()), Asid(asid)).is_ok();
            assert_eq!(got, rig.map.may_run(scene.spa(), asid), "{scene:x?}");
        }
    }
}

#[test]
fn every_mask_allows_what_it_names() {
    let mut rig = Rig::new();
    for mask in 0..0x20 {
        for vmpl in 0..4 {
            // Whatever the other levels may do.
            for rest in [0, 0x1f] {
                let mut masks = [rest; 4];
                masks[vmpl] = mask;
                for large in [false, true] {
                    let page = Page {
                        assigned: true,
                        large,
                        asid: MINE,
                        gpa: GPA,
                        validated: true,
                        masks,
                        ..Page::HYPERVISOR
                    };
                    for scene in scenes(page) {
                        rig.load(&scene);
                        every_access(&rig, &scene, &[vmpl]);
                    }
                }
            }
        }
    }
}

#[test]
fn rmpupdate_of_every_entry_answers_and_leaves_what_the_manual_says() {
    let mut rig = Rig::new();
    for scene in entries(&[[0x1f, 3, 0, 0]]).into_iter().flat_map(scenes).chain([uncovered()]) {
        let mut events = Vec::new();
        for spa in [scene.spa(), scene.spa() & !0x1f_ffff, scene.spa() + 0x800] {
            for (assigned, immutable) in [(false, false), (false, true), (true, false), (true, true)] {
                for large in [false, true] {
                    for asid in [0, MINE, 0x3ff] {
                        for gpa in [0, scene.gpa(), GPA | 0x800, 1 << 51] {
                            events.push(Event::Update(spa, NewEntry { gpa, assigned, large, immutable, asid }));
                        }
                    }
                }
            }
        }
        try_all(&mut rig, &scene, events);
    }
}

#[test]
fn psmash_rmpread_and_the_firmware_answer_for_every_entry() {
    let mut rig = Rig::new();
    for scene in entries(&[[0x1f, 3, 0, 0]]).into_iter().flat_map(scenes).chain([uncovered()]) {
        for spa in [scene.spa(), scene.spa() & !0x1f_ffff, scene.spa() + 0x800] {
            let mut events = vec![
                Event::Psmash(spa),
                Event::CreateContext(spa),
                Event::Decommission(spa),
                Event::Fix(spa),
                Event::Unsmash(spa),
            ];
            for large in [false, true] {
                events.push(Event::Reclaim(spa, large));
                for (asid, vmsa) in [(MINE, false), (MINE, true), (OTHER, false)] {
                    events.push(Event::Launch(spa, Launch { asid, large, vmsa, masks: [1, 0, 0x1f] }));
                }
            }
            try_all(&mut rig, &scene, events);
            let got = rig.rmp.rmpread(Spa::new(spa)).map(|read| read.to_bytes()).map_err(|error| error.code());
            let expected = rig.map.rmpread(spa).map(|read| {
                let mut bytes = update(&read.entry).to_bytes();
                bytes[9] |= u8::from(read.others) << 1;
                bytes
            });
            assert_eq!(got, expected);
        }
    }
}

/// Operands of an instruction of the guest: through every leaf, from every level, to the page and to one the guest means.
fn operands(scene: &Scene) -> Vec<Operand> {
    let mut operands = Vec::new();
    for leaf in Leaf::ALL {
        for vmpl in 0..4 {
            let straight = scene.operand(leaf, vmpl);
            operands.push(straight);
            operands.push(Operand { gva: straight.gva + 0x1000, ..straight });
        }
    }
    operands
}

#[test]
fn pvalidate_of_every_entry_answers_and_leaves_what_the_manual_says() {
    let mut rig = Rig::new();
    for scene in entries(&[[0x1f, 3, 0, 0]]).into_iter().flat_map(scenes).chain([uncovered()]) {
        let requests = [(false, false), (false, true), (true, false), (true, true)];
        let of = |operand| requests.map(|(large, value)| Event::Pvalidate(operand, large, value));
        try_all(&mut rig, &scene, operands(&scene).into_iter().flat_map(of));
    }
}

#[test]
fn rmpadjust_and_rmpquery_of_every_entry_answer_and_leave_what_the_manual_says() {
    let mut rig = Rig::new();
    for scene in entries(&[[0x1f, 0x1f, 0xd, 0]]).into_iter().flat_map(scenes).chain([uncovered()]) {
        rig.load(&scene);
        for operand in operands(&scene) {
            for target in 0..4 {
                let got = rig.rmp.rmpquery(&guest_page(&operand), Vmpl::ALL[target]);
                let got = match got {
                    Ok(Ok(query)) => {
                        Ok((query.permissions.bits(), query.vmsa == Vmsa::Yes, query.size.frames() == REGION))
                    }
                    Ok(Err(error)) => Err(Answer::Returns { eax: error.code(), carry: false }),
                    Err(refusal) => Err(refused(refusal)),
                };
                assert_eq!(got, rig.map.rmpquery(&operand, target), "{operand:x?} {target}");
            }
            let operands = [0, 1, 2, 0x1_0102, 0x1_1f01, 0x1f03, 0x0d03, 0x2001, 0x2_0001, 4];
            let of = |rcx| operands.map(|rdx| Event::Adjust(operand, rcx, rdx));
            try_all(&mut rig, &scene, (0..3).flat_map(of));
        }
    }
}

#[test]
fn the_entry_of_every_page_reads_as_what_the_model_has() {
    let mut rig = Rig::new();
    for scene in entries(&[[0x1f, 3, 1, 0xd]]).into_iter().flat_map(scenes) {
        rig.load(&scene);
        for (frame, page) in (0..).zip(&scene.map.pages) {
            let entry = rig.rmp.entry(Sfn::new(frame)).unwrap();
            let got = Page {
                assigned: entry.assigned(),
                large: entry.page_size().frames() == REGION,
                immutable: entry.immutable(),
                locked: entry.locked(),
                asid: entry.asid().0,
                gpa: entry.gpa().raw(),
                vmsa: entry.vmsa(),
                validated: entry.validated(),
                masks: Vmpl::ALL.map(|vmpl| entry.permissions(vmpl).bits()),
            };
            assert_eq!(got, *page, "frame {frame}");
        }
        assert_eq!(rig.rmp.entry(Sfn::new(UNCOVERED)), None);
    }
}
