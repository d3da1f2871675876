//! Translation under the RMP, through real tables: every state of a page, access, C-bit, size and privilege level against
//! the manual's table of checks, spelt out row by row (APM vol. 2, "RMP and VMPL Access Checks").

mod scene;

use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gpa, Gva, PageFaultCode, PageSize, Privilege, Spa};
use mmu::rmp::{
    Changed, FirmwareCommand, RmpAdjust, RmpError, RmpPageSize, RmpUpdate, Validated, VmplPermissions, Vmsa,
};
use mmu::{Asid, Caches, MmuFault, NestedFaultKind, RmpCause, Stage2, Stage2Cause};
use scene::{ASID, C_BIT, DATA, DATA_GPA, DATA_SPA, Leaf, Scene, State, accesses};

/// What becomes of an access, by the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// #VMEXIT(NPF) for the final address, with EXITINFO1 bits 31 to 36 (32 apart).
    Npf(u64),
    /// #VC 0x404.
    NotValidated,
}

const RMP: u64 = 1 << 31;
const ENC: u64 = 1 << 34;
const VMPL: u64 = 1 << 36;

/// The rows of the table, in their order.
fn verdict(state: State, rmp: RmpPageSize, nested: Leaf, c: CBit, access: Access, mask: VmplPermissions) -> Verdict {
    let private = c == CBit::Set || access.kind == AccessKind::Execute;
    if !private {
        let hypervisor_owned = match (state, nested) {
            (State::Hypervisor | State::Uncovered, _) => true,
            (State::BesideAssigned, Leaf::Size4K) => true,
            (State::BesideAssigned, Leaf::Size2M | Leaf::Size1G) => false,
            _ => false,
        };
        return if access.kind == AccessKind::Write && !hypervisor_owned {
            Verdict::Npf(RMP)
        } else {
            Verdict::Allowed
        };
    }
    match state {
        State::Hypervisor | State::BesideAssigned | State::Uncovered => return Verdict::Npf(RMP | ENC),
        State::OtherAsid | State::OtherGpa | State::Immutable | State::Firmware => return Verdict::Npf(RMP | ENC),
        State::Unvalidated | State::Valid => {}
    }
    if (rmp == RmpPageSize::Size2M) != (nested != Leaf::Size4K) {
        return Verdict::Npf(RMP | ENC);
    }
    if state == State::Unvalidated {
        return Verdict::NotValidated;
    }
    let bits = mask.bits();
    let permitted = match access.kind {
        AccessKind::Read => bits & 1 != 0,
        AccessKind::Write => bits & 3 == 3,
        AccessKind::Execute if access.privilege.is_user() => bits & 4 != 0,
        AccessKind::Execute => bits & 8 != 0,
    };
    if permitted { Verdict::Allowed } else { Verdict::Npf(RMP | ENC | VMPL) }
}

fn seen(result: Result<mmu::Translation, MmuFault>, nested: Leaf, access: Access) -> Verdict {
    match result {
        Ok(translation) => {
            assert_eq!(translation.spa, Spa::new(DATA_SPA + 0x123));
            assert_eq!(translation.gpa, Gpa::new(DATA_GPA + 0x123));
            assert!(
                translation.size <= PageSize::Size2M
                    && (nested != Leaf::Size4K || translation.size == PageSize::Size4K)
            );
            Verdict::Allowed
        }
        Err(MmuFault::Nested(fault)) => {
            assert_eq!((fault.gpa, fault.cause), (Gpa::new(DATA_GPA + 0x123), Stage2Cause::FinalAddress));
            let kind = match access.kind {
                AccessKind::Read => 0,
                AccessKind::Write => 1 << 1,
                AccessKind::Execute => 1 << 4,
            };
            let others = 0b101 | kind | 1 << 32;
            assert_eq!(fault.exitinfo1() & others, others, "present, user, final address");
            Verdict::Npf(fault.exitinfo1() & !others)
        }
        Err(MmuFault::NotValidated { gva }) => {
            assert_eq!(gva, Gva::new(DATA + 0x123));
            Verdict::NotValidated
        }
        Err(fault) => panic!("{fault:?}"),
    }
}

#[test]
fn every_state_access_c_bit_and_size_is_judged_as_the_manual_says() {
    let mut cases = 0;
    for nested in [Leaf::Size4K, Leaf::Size2M, Leaf::Size1G] {
        for guest in [Leaf::Size4K, Leaf::Size2M] {
            for state in State::ALL {
                for rmp in state.sizes() {
                    for vmpl in Vmpl::ALL {
                        for mask in state.masks(vmpl) {
                            let mut scene = Scene::new(guest, nested, vmpl);
                            scene.put(state, rmp, mask);
                            for c in [CBit::Set, CBit::Clear] {
                                scene.map_data(c);
                                for access in accesses() {
                                    let expected = verdict(state, rmp, nested, c, access, mask);
                                    let gva = Gva::new(DATA + 0x123);
                                    let about =
                                        format!("{state:?} {rmp:?} {nested:?} {guest:?} {c:?} {access:?} {mask:?}");
                                    scene.mmu.set_caches(Caches::empty());
                                    assert_eq!(seen(scene.mmu.probe(gva, access), nested, access), expected, "{about}");
                                    let walked = scene.mmu.translate(gva, access);
                                    assert_eq!(seen(walked, nested, access), expected, "{about}");
                                    // What an access leaves cached judges every other.
                                    scene.mmu.set_caches(Caches::all());
                                    for second in accesses() {
                                        let _ = scene.mmu.translate(gva, access);
                                        let cached = scene.mmu.translate(gva, second);
                                        let expected = verdict(state, rmp, nested, c, second, mask);
                                        assert_eq!(seen(cached, nested, second), expected, "{access:?} {about}");
                                        scene.assert_fast_allows_no_more(gva, |access| {
                                            verdict(state, rmp, nested, c, access, mask) == Verdict::Allowed
                                        });
                                    }
                                    cases += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(cases > 10_000, "{cases}");
}

#[test]
fn a_guest_that_is_not_snp_active_is_stopped_where_it_writes_to_assigned_pages() {
    for nested in [Leaf::Size4K, Leaf::Size2M, Leaf::Size1G] {
        for state in State::ALL {
            for rmp in state.sizes() {
                let mut scene = Scene::new(Leaf::Size4K, nested, Vmpl::Vmpl0);
                scene.put(state, rmp, VmplPermissions::all());
                scene.map_data(CBit::Clear);
                scene.set_c_of_pointers(CBit::Clear);
                let Stage2::Npt(npt) = *scene.mmu.stage2() else { unreachable!() };
                scene.mmu.set_stage2(Stage2::Npt(mmu::Npt { asid: Asid(7), snp: None, ..npt }));
                for access in accesses() {
                    let owned = match state {
                        State::Hypervisor | State::Uncovered => true,
                        State::BesideAssigned => nested == Leaf::Size4K,
                        _ => false,
                    };
                    let expected =
                        if access.kind == AccessKind::Write && !owned { Verdict::Npf(RMP) } else { Verdict::Allowed };
                    let gva = Gva::new(DATA + 0x123);
                    assert_eq!(
                        seen(scene.mmu.translate(gva, access), nested, access),
                        expected,
                        "{state:?} {access:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_host_reads_everything_and_writes_what_is_the_hypervisors() {
    for (size, pages) in [(Leaf::Size4K, [false, true]), (Leaf::Size2M, [true, true])] {
        let mut scene = Scene::new(size, Leaf::Size4K, Vmpl::Vmpl0);
        // The second page of the region is a guest's, the first is not.
        scene.rmpupdate(DATA_SPA + 0x1000, RmpUpdate::guest(ASID, Gpa::new(0x5000), RmpPageSize::Size4K));
        scene.become_host();
        for (page, refused) in (0..).zip(pages) {
            let gva = Gva::new(DATA + page * 0x1000);
            for access in accesses() {
                let write = access.kind == AccessKind::Write;
                let expected = if write && refused {
                    let user = if access.privilege.is_user() { PageFaultCode::U } else { PageFaultCode::empty() };
                    Err(MmuFault::Guest { gva, code: PageFaultCode::P | PageFaultCode::W | PageFaultCode::RMP | user })
                } else {
                    Ok(Spa::new(DATA_SPA + page * 0x1000))
                };
                for _ in 0..2 {
                    assert_eq!(scene.mmu.translate(gva, access).map(|t| t.spa), expected, "{size:?} {access:?}");
                }
            }
        }
    }
}

#[test]
fn setting_a_or_d_in_a_table_of_the_host_needs_a_page_of_the_hypervisor() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.become_host();
    scene.clear_accessed_of_data();
    let table = scene.host_page_table();
    scene.rmpupdate(table, RmpUpdate::firmware(RmpPageSize::Size4K));
    let gva = Gva::new(DATA);
    let read = Access::new(AccessKind::Read, Privilege::User);
    let code = PageFaultCode::P | PageFaultCode::W | PageFaultCode::RMP;
    assert_eq!(scene.mmu.translate(gva, read), Err(MmuFault::Guest { gva, code }));
    scene.firmware(table, FirmwareCommand::Reclaim { size: RmpPageSize::Size4K });
    scene.rmpupdate(table, RmpUpdate::hypervisor(RmpPageSize::Size4K));
    assert!(scene.mmu.translate(gva, read).is_ok());
}

#[test]
fn tables_of_a_guest_are_private_whatever_their_pointers_say() {
    let read = Access::new(AccessKind::Read, Privilege::User);
    for c in [CBit::Set, CBit::Clear] {
        for level in 0..4 {
            let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
            scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
            scene.map_data(CBit::Set);
            scene.set_c_of_pointers(c);
            assert!(scene.mmu.translate(Gva::new(DATA), read).is_ok(), "{c:?}");
            let table = scene.table_spa(level);
            scene.rmpupdate(table, RmpUpdate::hypervisor(RmpPageSize::Size4K));
            scene.mmu.flush_all();
            let Err(MmuFault::Nested(fault)) = scene.mmu.translate(Gva::new(DATA), read) else { panic!("{level}") };
            assert_eq!(fault.kind, NestedFaultKind::Rmp(RmpCause::Ownership));
            assert_eq!(fault.exitinfo1(), 0b111 | RMP | 1 << 33 | ENC, "{level}");
        }
    }
}

#[test]
fn a_table_that_is_not_validated_is_vc_with_the_address_of_the_access() {
    let read = Access::new(AccessKind::Read, Privilege::User);
    for level in 0..4 {
        let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
        scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
        scene.map_data(CBit::Set);
        let table = scene.table_spa(level);
        scene.rmpupdate(table, RmpUpdate::hypervisor(RmpPageSize::Size4K));
        scene.rmpupdate(table, RmpUpdate::guest(ASID, Gpa::new(scene.table_gpa(level)), RmpPageSize::Size4K));
        let gva = Gva::new(DATA + 0x777);
        assert_eq!(scene.mmu.translate(gva, read), Err(MmuFault::NotValidated { gva }), "{level}");
    }
}

#[test]
fn setting_a_in_a_table_needs_the_right_to_write() {
    let read = Access::new(AccessKind::Read, Privilege::User);
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl1);
    scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
    scene.map_data(CBit::Set);
    scene.permit_tables(VmplPermissions::READ);
    assert!(scene.mmu.translate(Gva::new(DATA), read).is_ok(), "A is set already");
    scene.clear_accessed_of_data();
    scene.mmu.flush_all();
    let Err(MmuFault::Nested(fault)) = scene.mmu.translate(Gva::new(DATA), read) else { panic!() };
    assert_eq!(fault.kind, NestedFaultKind::Rmp(RmpCause::Vmpl));
    assert_eq!(fault.exitinfo1(), 0b111 | RMP | 1 << 33 | ENC | VMPL);
}

#[test]
fn nested_faults_of_an_snp_guest_say_whether_the_access_was_private() {
    for c in [CBit::Set, CBit::Clear] {
        for access in accesses() {
            let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
            scene.map_data(c);
            scene.unmap_nested_data();
            let Err(MmuFault::Nested(fault)) = scene.mmu.translate(Gva::new(DATA), access) else { panic!() };
            let private = c.is_set() || access.kind == AccessKind::Execute;
            assert!(matches!(fault.kind, NestedFaultKind::NotPresent { .. }), "before the RMP is asked");
            assert_eq!(fault.exitinfo1() & ENC != 0, private, "{c:?} {access:?}");
            assert_eq!(fault.gpa, Gpa::new(DATA_GPA), "without the C-bit");
        }
    }
}

#[test]
fn with_paging_off_and_in_32_bit_paging_everything_is_private() {
    for legacy in [false, true] {
        let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
        let gva = if legacy { scene.enter_legacy_paging() } else { scene.enter_real_mode() };
        for access in accesses() {
            let Err(MmuFault::Nested(fault)) = scene.mmu.translate(gva, access) else { panic!("{access:?}") };
            assert_eq!(fault.exitinfo1() & (RMP | ENC), RMP | ENC);
        }
        scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
        for access in accesses() {
            assert_eq!(scene.mmu.translate(gva, access).map(|t| t.spa), Ok(Spa::new(DATA_SPA)), "{access:?}");
        }
    }
}

#[test]
fn pae_paging_has_the_c_bit_of_long_mode() {
    for c in [CBit::Set, CBit::Clear] {
        let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
        let gva = scene.enter_pae_paging(c);
        for access in accesses() {
            let refused = scene.mmu.translate(gva, access).is_err();
            let private = c.is_set() || access.kind == AccessKind::Execute;
            assert_eq!(refused, private, "the page is the hypervisor's: {c:?} {access:?}");
        }
        scene.put(State::Valid, RmpPageSize::Size4K, VmplPermissions::all());
        for access in accesses() {
            let refused = scene.mmu.translate(gva, access).is_err();
            let shared_write = !c.is_set() && access.kind == AccessKind::Write;
            assert_eq!(refused, shared_write, "the page is the guest's: {c:?} {access:?}");
        }
    }
}

#[test]
fn the_c_bit_is_reserved_for_a_guest_that_has_none() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size4K, Vmpl::Vmpl0);
    scene.map_data(CBit::Set);
    let Stage2::Npt(npt) = *scene.mmu.stage2() else { unreachable!() };
    scene.mmu.set_stage2(Stage2::Npt(mmu::Npt { snp: None, ..npt }));
    scene.set_c_of_pointers(CBit::Clear);
    let code = scene.mmu.translate(Gva::new(DATA), Access::new(AccessKind::Read, Privilege::User));
    let reserved = PageFaultCode::P | PageFaultCode::RSVD | PageFaultCode::U;
    assert_eq!(code, Err(MmuFault::Guest { gva: Gva::new(DATA), code: reserved }), "bit {C_BIT}");
}

#[test]
fn without_an_rmp_an_snp_guest_is_not_checked() {
    let mut scene = Scene::new(Leaf::Size4K, Leaf::Size2M, Vmpl::Vmpl3);
    scene.mmu.set_rmp(None);
    for c in [CBit::Set, CBit::Clear] {
        scene.map_data(c);
        for access in accesses() {
            assert_eq!(scene.mmu.translate(Gva::new(DATA), access).map(|t| t.spa), Ok(Spa::new(DATA_SPA)));
        }
    }
}

const GVA: Gva = Gva::new(DATA);

fn pvalidate(
    scene: &mut Scene,
    size: RmpPageSize,
    validated: Validated,
) -> Result<Result<Changed, RmpError>, MmuFault> {
    scene.mmu.pvalidate(GVA, Privilege::Supervisor, size, validated)
}

fn cause(result: Result<impl core::fmt::Debug, MmuFault>) -> (RmpCause, u64) {
    match result {
        Err(MmuFault::Nested(fault)) => match fault.kind {
            NestedFaultKind::Rmp(cause) => (cause, fault.exitinfo1()),
            kind => panic!("{kind:?}"),
        },
        other => panic!("{other:?}"),
    }
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
