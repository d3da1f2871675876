//! A host that lies about memory of an SNP guest: what it can do, and what the guest's next access sees of it.

mod reader;
mod snp_processor;

use emu_core::sev::{CBit, Vmpl};
use emu_core::{Access, AccessKind, Gfn, Gpa, PageSize, Privilege};
use hypervisor::*;
use mmu::RmpCause;
use mmu::rmp::{GuestAccess, PageState, RmpError, RmpPageSize, RmpRefusal};
use snp_processor::{ASID, M2, PAGE, QUIET, Seen, SnpMachine};

/// Two pages that the guest has accepted, written and can read back.
const HERE: u64 = M2 + 3;
const THERE: u64 = 2 * M2 + 9;

fn machine(page: PageSize) -> SnpMachine {
    let machine = SnpMachine::new(page, 32 << 20, Assign::Lazy, RmpSizes::UpTo2M);
    for (gfn, text) in [(HERE, b"here"), (THERE, b"over")] {
        match page {
            PageSize::Size4K => machine.accept(gfn, RmpPageSize::Size4K),
            _ => machine.accept(gfn & !(M2 - 1), RmpPageSize::Size2M),
        }
        assert_eq!(machine.private(gfn), Seen::Done(page));
        machine.write(gfn, text);
    }
    machine
}

/// What the processor says to a write of the guest's to a page that is mapped.
fn verdict(machine: &SnpMachine, gfn: u64) -> Result<PageSize, RmpRefusal> {
    let leaf = machine.walk(gfn).expect("mapped");
    machine.rmp.check_guest(&GuestAccess {
        spa: leaf.spa,
        gpa: Gpa::new(gfn * PAGE),
        mapped: leaf.size,
        asid: ASID,
        vmpl: Vmpl::Vmpl0,
        c_bit: CBit::Set,
        access: Access::new(AccessKind::Write, Privilege::Supervisor),
    })
}

const BOTH: [PageSize; 2] = [PageSize::Size4K, PageSize::Size2M];

#[test]
fn what_the_host_read_earlier_it_cannot_write_back() {
    for page in BOTH {
        let machine = machine(page);
        let old = machine.vm.snp_read_ciphertext(Gfn::new(HERE), QUIET).unwrap();
        assert_ne!(&old[..4], b"here", "the host reads ciphertext");
        machine.write(HERE, b"next");
        let refused = machine.vm.snp_host_write(Gfn::new(HERE), &old, QUIET).unwrap_err();
        assert_eq!(refused, LieError::Write(RmpCause::Ownership));
        assert!(refused.is_refusal());
        assert_eq!(&machine.read(HERE)[..4], b"next");
    }
}

#[test]
fn a_leaf_that_shows_another_page_of_the_guest_is_never_used() {
    for page in BOTH {
        let machine = machine(page);
        machine.vm.snp_remap(Gfn::new(HERE), Gfn::new(THERE), QUIET).unwrap();
        assert_eq!(verdict(&machine, HERE), Err(RmpRefusal::Rmp(RmpCause::Ownership)));
        assert!(verdict(&machine, THERE).is_ok(), "the other page is where it was");
        machine.vm.zap_range(Gfn::new(HERE), 1, QUIET).unwrap();
        assert_eq!(machine.private(HERE), Seen::Done(page), "accepted as before");
        assert_eq!((&machine.read(HERE)[..4], &machine.read(THERE)[..4]), (&b"here"[..], &b"over"[..]));
    }
}

#[test]
fn two_pages_that_change_places_are_both_noticed() {
    for page in BOTH {
        let machine = machine(page);
        machine.vm.snp_swap(Gfn::new(HERE), Gfn::new(THERE), QUIET).unwrap();
        for gfn in [HERE, THERE] {
            assert_eq!(verdict(&machine, gfn), Err(RmpRefusal::Rmp(RmpCause::Ownership)));
            machine.vm.zap_range(Gfn::new(gfn), 1, QUIET).unwrap();
            assert_eq!(machine.private(gfn), Seen::Done(page));
        }
        assert_eq!((&machine.read(HERE)[..4], &machine.read(THERE)[..4]), (&b"here"[..], &b"over"[..]));
    }
}

#[test]
fn entries_of_4k_do_not_become_one_of_2m_behind_the_guest() {
    let machine = machine(PageSize::Size4K);
    let before = machine.entry(HERE);
    let refused = machine.vm.snp_resize(Gfn::new(HERE), QUIET).unwrap_err();
    assert_eq!(refused, LieError::Instruction(RmpError::FailOverlap));
    assert!(refused.is_refusal());
    assert_eq!(machine.entry(HERE), before);
    assert_eq!(machine.private(HERE), Seen::Done(PageSize::Size4K));
}

#[test]
fn an_entry_of_2m_that_is_split_behind_its_leaf_faults_and_loses_nothing() {
    let machine = machine(PageSize::Size2M);
    machine.vm.snp_resize(Gfn::new(HERE), QUIET).unwrap();
    assert_eq!(verdict(&machine, HERE), Err(RmpRefusal::Rmp(RmpCause::PageSize)));
    assert_eq!(machine.private(HERE), Seen::Done(PageSize::Size4K), "the hypervisor maps it anew");
    assert_eq!(machine.entry(HERE).state(), PageState::GuestValid);
    assert_eq!(&machine.read(HERE)[..4], b"here");
}

#[test]
fn a_page_that_was_taken_away_is_not_the_guests_until_it_accepts_it_again() {
    for page in BOTH {
        let machine = machine(page);
        machine.vm.snp_drop(Gfn::new(HERE), QUIET).unwrap();
        assert_eq!(verdict(&machine, HERE), Err(RmpRefusal::Rmp(RmpCause::Ownership)));
        assert_eq!(machine.private(HERE), Seen::NotValidated, "assigned anew, and #VC");
        assert_eq!(machine.entry(HERE).state(), PageState::GuestInvalid);
        assert!(matches!(machine.private(THERE), Seen::Done(_)), "nothing else happened");
    }
}

#[test]
fn there_is_nothing_to_lie_about_where_no_accepted_page_is_mapped() {
    let machine = machine(PageSize::Size4K);
    let pages = [HERE, THERE].map(|gfn| (Gfn::new(gfn), PageSize::Size4K));
    assert_eq!(machine.private(7), Seen::NotValidated);
    assert_eq!(machine.vm.snp_mapped_pages(QUIET), Ok(pages.to_vec()), "what is not accepted does not count");
    machine.change(THERE, 1, Shareability::SHARED);
    for gfn in [7, 8, THERE].map(Gfn::new) {
        let none = LieError::NoPage { gfn };
        assert!(!none.is_refusal());
        assert_eq!(machine.vm.snp_drop(gfn, QUIET), Err(none.clone()));
        assert_eq!(machine.vm.snp_resize(gfn, QUIET), Err(none.clone()));
        assert_eq!(machine.vm.snp_read_ciphertext(gfn, QUIET), Err(none.clone()));
        assert_eq!(machine.vm.snp_remap(Gfn::new(HERE), gfn, QUIET), Err(none.clone()));
        assert_eq!(machine.vm.snp_swap(gfn, Gfn::new(HERE), QUIET), Err(none));
    }
    assert_eq!(machine.private(HERE), Seen::Done(PageSize::Size4K));
}
