//! PVALIDATE, RMPADJUST, RMPQUERY by address, PSMASH, and what they take from processors that cached it.

use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gpa, Gva, PageFaultCode, Privilege, Spa};
use mmu::rmp::{Changed, RmpAdjust, RmpError, RmpPageSize, RmpUpdate, Validated, VmplPermissions, Vmsa};
use mmu::{MmuFault, RmpCause};

use crate::scene::{ASID, DATA, DATA_SPA, Leaf, Scene, State};
use crate::{ENC, GVA, RMP, cause};

fn pvalidate(
    scene: &mut Scene,
    size: RmpPageSize,
    validated: Validated,
) -> Result<Result<Changed, RmpError>, MmuFault> {
    scene.mmu.pvalidate(GVA, Privilege::Supervisor, size, validated)
}

#[test]
fn pvalidate_by_size_of_request_and_entry() {
    use RmpPageSize::{Size2M, Size4K};
    for (request, nested, rmp) in
        [(Size4K, Leaf::Size4K, Size4K), (Size2M, Leaf::Size2M, Size2M), (Size2M, Leaf::Size1G, Size2M)]
    {
        for guest in [Leaf::Size4K, Leaf::Size2M] {
            for c in [CBit::Set, CBit::Clear] {
                let mut scene = Scene::new(guest, nested, Vmpl::Vmpl0);
                scene.put(State::Unvalidated, rmp, VmplPermissions::all());
                scene.map_data(c);
                let about = format!("{request:?} {nested:?} {guest:?} {c:?}");
                assert_eq!(pvalidate(&mut scene, request, Validated::Yes), Ok(Ok(Changed::Yes)), "{about}");
                assert_eq!(pvalidate(&mut scene, request, Validated::Yes), Ok(Ok(Changed::No)), "{about}");
                scene.map_data(CBit::Set);
                let read = Access::new(AccessKind::Read, Privilege::Supervisor);
                assert!(scene.mmu.translate(GVA, read).is_ok(), "{about}");
                assert_eq!(pvalidate(&mut scene, request, Validated::No), Ok(Ok(Changed::Yes)), "{about}");
                let refused = Err(MmuFault::NotValidated { gva: GVA });
                assert_eq!(scene.mmu.translate(GVA, read), refused, "at once: {about}");
                assert_eq!(scene.mmu.fast.load::<u8>(DATA), None, "{about}");
            }
        }
    }
    for (nested, rmp) in [(Leaf::Size2M, Size2M), (Leaf::Size2M, Size4K), (Leaf::Size4K, Size2M)] {
        let mut scene = Scene::new(Leaf::Size4K, nested, Vmpl::Vmpl0);
        scene.put(State::Unvalidated, rmp, VmplPermissions::all());
        scene.map_data(CBit::Set);
        let (cause, exitinfo1) = cause(pvalidate(&mut scene, Size4K, Validated::Yes));
        assert_eq!((cause, exitinfo1 >> 31), (RmpCause::SizeMismatch, 0b11011), "{nested:?} {rmp:?}");
    }
    for (nested, rmp) in [(Leaf::Size4K, Size4K), (Leaf::Size2M, Size4K), (Leaf::Size4K, Size2M)] {
        let mut scene = Scene::new(Leaf::Size2M, nested, Vmpl::Vmpl0);
        scene.put(State::Unvalidated, rmp, VmplPermissions::all());
        scene.map_data(CBit::Set);
        let answer = pvalidate(&mut scene, Size2M, Validated::Yes);
        assert_eq!(answer, Ok(Err(RmpError::FailSizeMismatch)), "{nested:?} {rmp:?}");
    }
}

#[test]
fn pvalidate_of_a_page_that_is_not_the_guests_is_a_nested_fault() {
    for state in State::ALL {
        let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
        scene.put(state, RmpPageSize::Size4K, VmplPermissions::all());
        scene.map_data(CBit::Set);
        let answer = pvalidate(&mut scene, RmpPageSize::Size4K, Validated::Yes);
        match state {
            State::Unvalidated => assert_eq!(answer, Ok(Ok(Changed::Yes))),
            State::Valid => assert_eq!(answer, Ok(Ok(Changed::No))),
            _ => assert_eq!(cause(answer), (RmpCause::Ownership, 0b101 | RMP | 1 << 32 | ENC), "{state:?}"),
        }
    }
}

#[test]
fn pvalidate_checks_operands_then_tables() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl1);
    let nowhere = Gva::new(0x10_0000_0000);
    let supervisor = Privilege::Supervisor;
    let answer = scene.mmu.pvalidate(nowhere, supervisor, RmpPageSize::Size4K, Validated::Yes);
    assert_eq!(answer, Ok(Err(RmpError::FailPermission)), "VMPL 0 alone validates");
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    let answer = scene.mmu.pvalidate(Gva::new(0x10_0000_1000), supervisor, RmpPageSize::Size2M, Validated::Yes);
    assert_eq!(answer, Ok(Err(RmpError::FailInput)));
    let answer = scene.mmu.pvalidate(nowhere, supervisor, RmpPageSize::Size4K, Validated::Yes);
    assert_eq!(answer, Err(MmuFault::Guest { gva: nowhere, code: PageFaultCode::empty() }));
    scene.map_data(CBit::Clear);
    scene.unmap_nested_data();
    let Err(MmuFault::Nested(fault)) = pvalidate(&mut scene, RmpPageSize::Size4K, Validated::Yes) else { panic!() };
    assert_eq!(fault.exitinfo1(), 0b100 | 1 << 32 | ENC, "private whatever the leaf says");
}

#[test]
fn psmash_lets_4k_pages_be_validated_that_a_2m_entry_had_in_one() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size2M, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size2M, VmplPermissions::all());
    scene.map_data(CBit::Set);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    assert!(scene.mmu.translate(GVA, read).is_ok());
    scene.rmp.psmash(Spa::new(DATA_SPA)).unwrap();
    assert_eq!(cause(scene.mmu.translate(GVA, read)).0, RmpCause::PageSize);
    scene.map_nested_data(Leaf::Size4K);
    assert!(scene.mmu.translate(GVA, read).is_ok(), "still validated");
    assert_eq!(pvalidate(&mut scene, RmpPageSize::Size4K, Validated::No), Ok(Ok(Changed::Yes)));
    assert!(scene.mmu.translate(Gva::new(DATA + 0x1000), read).is_ok());
}

#[test]
fn rmpadjust_gives_takes_and_is_judged() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::empty());
    scene.map_data(CBit::Set);
    let of = |target, permissions| RmpAdjust { target, permissions, vmsa: Vmsa::No };
    let adjust = |scene: &mut Scene, what| scene.mmu.rmpadjust(GVA, Privilege::Supervisor, RmpPageSize::Size4K, what);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let at = |scene: &mut Scene, vmpl| {
        scene.run_at(vmpl);
        scene.mmu.translate(GVA, read)
    };
    assert_eq!(cause(at(&mut scene, Vmpl::Vmpl2)).0, RmpCause::Vmpl);
    scene.run_at(Vmpl::Vmpl0);
    assert_eq!(adjust(&mut scene, of(Vmpl::Vmpl2, VmplPermissions::READ)), Ok(Ok(())));
    assert!(at(&mut scene, Vmpl::Vmpl2).is_ok());
    scene.run_at(Vmpl::Vmpl0);
    let told = scene.mmu.rmpquery(GVA, Privilege::Supervisor, Vmpl::Vmpl2).unwrap().unwrap();
    assert_eq!((told.permissions, told.size), (VmplPermissions::READ, RmpPageSize::Size4K));
    assert_eq!(adjust(&mut scene, of(Vmpl::Vmpl2, VmplPermissions::empty())), Ok(Ok(())));
    assert_eq!(cause(at(&mut scene, Vmpl::Vmpl2)).0, RmpCause::Vmpl, "what VMPL 2 had cached is gone");
    assert_eq!(adjust(&mut scene, of(Vmpl::Vmpl1, VmplPermissions::READ)), Ok(Err(RmpError::FailPermission)));

    scene.put(State::Unvalidated, RmpPageSize::Size4K, VmplPermissions::all());
    scene.run_at(Vmpl::Vmpl0);
    let refused = adjust(&mut scene, of(Vmpl::Vmpl1, VmplPermissions::READ));
    assert_eq!(refused, Err(MmuFault::NotValidated { gva: GVA }));
    scene.put(State::Hypervisor, RmpPageSize::Size4K, VmplPermissions::all());
    assert_eq!(cause(adjust(&mut scene, of(Vmpl::Vmpl1, VmplPermissions::READ))).0, RmpCause::Ownership);
}

#[test]
fn another_processor_forgets_what_an_instruction_took_away() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    scene.map_data(CBit::Set);
    let mut other = scene.another_processor();
    let write = Access::new(AccessKind::Write, Privilege::Supervisor);
    other.fast.select(Privilege::Supervisor);
    assert!(other.translate(GVA, write).is_ok());
    assert!(other.fast.can_store(DATA, 8) && !other.is_behind_rmp());
    assert_eq!(pvalidate(&mut scene, RmpPageSize::Size4K, Validated::No), Ok(Ok(Changed::Yes)));
    assert!(other.is_behind_rmp());
    other.catch_up();
    assert!(!other.fast.can_store(DATA, 8) && !other.is_behind_rmp());
    assert_eq!(other.translate(GVA, write), Err(MmuFault::NotValidated { gva: GVA }));
}

#[test]
fn a_page_assigned_beside_ends_the_writes_that_a_large_mapping_allowed() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size2M, Vmpl::Vmpl0);
    scene.map_data(CBit::Clear);
    let write = Access::new(AccessKind::Write, Privilege::Supervisor);
    scene.mmu.fast.select(Privilege::Supervisor);
    assert!(scene.mmu.translate(GVA, write).is_ok() && scene.mmu.fast.can_store(DATA, 8));
    scene.rmpupdate(DATA_SPA + 0x7000, RmpUpdate::guest(ASID, Gpa::new(0x5000), RmpPageSize::Size4K));
    scene.mmu.catch_up();
    assert!(!scene.mmu.fast.can_store(DATA, 8));
    assert_eq!(cause(scene.mmu.translate(GVA, write)), (RmpCause::Ownership, 0b111 | 1 << 32 | RMP));
}

#[test]
fn nothing_is_cached_of_a_page_that_another_processor_takes_while_it_is_walked() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    scene.map_data(CBit::Set);
    let mut other = scene.another_processor();
    other.fast.select(Privilege::Supervisor);
    let read = Access::new(AccessKind::Read, Privilege::Supervisor);
    let taken = Err(MmuFault::NotValidated { gva: GVA });
    for _ in 0..300 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..8 {
                    let seen = other.translate(GVA, read);
                    assert!(seen.is_ok() || seen.map(|_| ()) == taken, "before or after");
                    other.invlpg(GVA);
                    let _ = other.translate(GVA, read);
                }
            });
            assert_eq!(pvalidate(&mut scene, RmpPageSize::Size4K, Validated::No), Ok(Ok(Changed::Yes)));
        });
        other.catch_up();
        assert_eq!(other.fast.load::<u8>(DATA), None);
        assert_eq!(other.translate(GVA, read).map(|_| ()), taken);
        assert_eq!(pvalidate(&mut scene, RmpPageSize::Size4K, Validated::Yes), Ok(Ok(Changed::Yes)));
    }
}
