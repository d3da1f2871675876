//! Which access is allowed, and what the others are told.

use emu_core::memory::Key;
use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gpa, Gva, PageFaultCode, PageSize, Privilege, Spa};
use mmu::rmp::{FirmwareCommand, RmpPageSize, RmpUpdate, VmplPermissions};
use mmu::{Asid, Caches, MmuFault, NestedFaultKind, RmpCause, Stage2, Stage2Cause};

use crate::scene::{ASID, C_BIT, DATA, DATA_GPA, DATA_SPA, Leaf, Scene, State, accesses};
use crate::{ENC, RMP, VMPL};

/// What becomes of an access, by the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// #VMEXIT(NPF) for the final address, with EXITINFO1 bits 31 to 36 (32 apart).
    Npf(u64),
    /// #VC 0x404.
    NotValidated,
}

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
                scene.put_tables_under(Key::HOST);
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
    scene.put_tables_under(Key::HOST);
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
