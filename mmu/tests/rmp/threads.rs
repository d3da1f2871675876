//! Processors that look while others change.

use core::sync::atomic::{AtomicBool, Ordering};

use emu_core::{Gpa, Sfn, Spa};
use mmu::Asid;
use mmu::rmp::{FirmwareCommand, InUse, RmpBacklog, RmpCursor, RmpPageSize, RmpUpdate, Vmsa};

use crate::rig::{MINE, REGIONS, Rig};

const SPA: Spa = Spa::new(0x20_0000);

fn gpa(frame: u64) -> Gpa {
    Gpa::new(0x4000_0000 + frame % 512 * 4096)
}

#[test]
fn nobody_sees_half_of_a_psmash() {
    let rig = Rig::new();
    rig.rmp.rmpupdate(SPA, RmpUpdate::guest(Asid(MINE), gpa(0), RmpPageSize::Size2M)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2_u64 {
            let (rmp, done) = (&rig.rmp, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for frame in (512 + reader..1024).step_by(37) {
                        let entry = rmp.entry(Sfn::new(frame)).unwrap();
                        assert_eq!((entry.asid(), entry.gpa()), (Asid(MINE), gpa(frame)), "{entry:?}");
                    }
                }
            });
        }
        for _ in 0..10_000 {
            rig.rmp.psmash(SPA).unwrap();
            rig.rmp.firmware(SPA, FirmwareCommand::Unsmash).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(rig.rmp.pages_of(Asid(MINE)), 512);
}

#[test]
fn writers_of_one_region_lose_no_page_and_no_count() {
    let rig = Rig::new();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let rmp = &rig.rmp;
            scope.spawn(move || {
                for frame in (thread..REGIONS * 512).step_by(4) {
                    let spa = Sfn::new(frame).base();
                    let of = |size| RmpUpdate::guest(Asid(MINE + thread as u32), gpa(frame), size);
                    rmp.rmpupdate(spa, of(RmpPageSize::Size4K)).unwrap();
                    if frame % 3 == 0 {
                        rmp.rmpupdate(spa, RmpUpdate::hypervisor(RmpPageSize::Size4K)).unwrap();
                    }
                }
            });
        }
    });
    let assigned = (0..REGIONS * 512).filter(|frame| frame % 3 != 0);
    for frame in 0..REGIONS * 512 {
        let entry = rig.rmp.entry(Sfn::new(frame)).unwrap();
        assert_eq!(entry.assigned(), frame % 3 != 0);
    }
    let counted: u64 = (0..4).map(|thread| rig.rmp.pages_of(Asid(MINE + thread))).sum();
    assert_eq!(counted, assigned.count() as u64);
}

#[test]
fn whoever_reads_the_log_sees_the_entry_behind_it() {
    let rig = Rig::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (rmp, done) = (&rig.rmp, &done);
        scope.spawn(move || {
            for frame in 0..REGIONS * 512 {
                let new = RmpUpdate::guest(Asid(MINE), gpa(frame), RmpPageSize::Size4K);
                rmp.rmpupdate(Sfn::new(frame).base(), new).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let mut cursor = RmpCursor::default();
        let mut seen = 0;
        while !done.load(Ordering::Acquire) || rmp.changes().is_behind(cursor) {
            if let RmpBacklog::Changes(changes) = rmp.changes().catch_up(&mut cursor) {
                for change in changes {
                    assert!(rmp.entry(change.first).unwrap().assigned());
                    seen += change.frames;
                }
            } else {
                seen = REGIONS * 512;
            }
        }
        assert!(seen >= REGIONS * 512);
    });
}

#[test]
fn a_save_area_is_not_taken_between_the_look_at_it_and_its_use() {
    let rig = Rig::new();
    let (rmp, spa) = (&rig.rmp, Sfn::new(5).base());
    let make = || {
        rmp.rmpupdate(spa, RmpUpdate::pre_guest(Asid(MINE), gpa(5), RmpPageSize::Size4K)).unwrap();
        let (asid, size, permissions) = (Asid(MINE), RmpPageSize::Size4K, Default::default());
        rmp.firmware(spa, FirmwareCommand::LaunchPage { asid, size, vmsa: Vmsa::Yes, permissions }).unwrap();
    };
    make();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let mut runs = 0;
            while runs < 2_000 {
                if rmp.use_vmsa(spa, Asid(MINE)).is_ok() {
                    runs += 1;
                    assert!(rmp.entry(spa.frame()).unwrap().vmsa(), "the processor runs from a page that is none");
                    rmp.set_in_use(spa.frame(), InUse::No);
                }
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            if rmp.rmpupdate(spa, RmpUpdate::hypervisor(RmpPageSize::Size4K)).is_ok() {
                make();
            }
        }
    });
    assert_eq!(rmp.use_vmsa(spa, Asid(MINE + 1)), Err(mmu::RmpCause::Ownership));
    assert_eq!(rmp.use_vmsa(Sfn::new(6).base(), Asid(MINE)), Err(mmu::RmpCause::Ownership));
    assert!(rmp.rmpupdate(spa, RmpUpdate::hypervisor(RmpPageSize::Size4K)).is_ok(), "what was refused is not in use");
}
