//! What each operation drops, and what it must spare: seen by whether a later access needs a walk.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, PageSize, Privilege, Spa};
use mmu::{
    Asid, Caches, Ept, EptAccessedDirty, EptExecute, Eptp, Globals, Invept, Invpcid, Invvpid, Mmu, MmuFault, NestedNx,
    Npt, PagingChange, PagingFeatures, Pcid, SpaceTag, Stage2, Stage2Levels, Vpid,
};

const READ: Access = Access::new(AccessKind::Read, Privilege::Supervisor);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::Supervisor);
const ROOT: u64 = 0x1000;
/// A plain page, a global one, a 2 MiB one, in this order.
const PLAIN: u64 = 0x1000;
const GLOBAL: u64 = 0x2000;
const LARGE: u64 = 0x20_0000;
/// A root of nested tables that map the first GiB to itself by 2 MiB pages, except where [`LARGE`] leads.
const NESTED_ROOT: u64 = 0x10_0000;
/// The same for NPT, which sets bits that EPT reserves.
const NPT_ROOT: u64 = 0x12_0000;

fn machine(cr4: Cr4) -> Mmu {
    let memory = SystemMemory::flat(0x1000_0000).expect("address space");
    let store = |spa: u64, value: u64| memory.store(Spa::new(spa), value).expect("inside memory");
    store(ROOT, 0x2027);
    store(0x2000, 0x3027);
    store(0x3000, 0x4027);
    store(0x3008, 0x60_00e7);
    store(0x4008, 0x9067);
    store(0x4010, 0xa167);
    for root in [NESTED_ROOT, NESTED_ROOT + 0x8000, NPT_ROOT] {
        let memory_type = 6 << 3;
        store(root, (root + 0x1000) | 7);
        store(root + 0x1000, (root + 0x2000) | 7);
        for n in 0..512 {
            store(root + 0x2000 + n * 8, n << 21 | 7 | memory_type | 1 << 7);
            store(root + 0x3000 + n * 8, (0x60_0000 + (n << 12)) | 7 | memory_type);
        }
        store(root + 0x2000 + 3 * 8, (root + 0x3000) | 7);
    }
    let mut mmu = Mmu::new(Arc::clone(&memory), PagingFeatures::INTEL);
    set(&mut mmu, cr4, 1, PagingChange::Reset);
    mmu
}

fn set(mmu: &mut Mmu, cr4: Cr4, pcid: u64, change: PagingChange) {
    let mut state = *mmu.paging();
    state.cr0 = Cr0::PE | Cr0::PG | Cr0::WP;
    state.cr3 = ROOT | if cr4.contains(Cr4::PCIDE) { pcid } else { 0 };
    state.cr4 = Cr4::PAE | cr4;
    state.efer = Efer::LME | Efer::LMA | Efer::NXE;
    mmu.set_paging(state, change);
}

fn ept(root: u64, vpid: u16) -> Stage2 {
    let eptp = Eptp::new(Spa::new(root), Stage2Levels::Four, EptAccessedDirty::Disabled);
    Stage2::Ept(Ept { eptp, execute: EptExecute::Single, vpid: Vpid(vpid) })
}

fn npt(asid: u32) -> Stage2 {
    Stage2::Npt(Npt {
        root: Spa::new(NPT_ROOT),
        levels: Stage2Levels::Four,
        nx: NestedNx::Enabled,
        asid: Asid(asid),
        snp: None,
    })
}

fn touch(mmu: &mut Mmu) {
    for gva in [PLAIN, GLOBAL, LARGE] {
        mmu.translate(Gva::new(gva), READ).expect("mapped");
    }
}

/// Whether each page is still in the TLB.
fn cached(mmu: &mut Mmu) -> [bool; 3] {
    [PLAIN, GLOBAL, LARGE].map(|gva| {
        let before = mmu.stats().tlb_hits;
        mmu.translate(Gva::new(gva), READ).expect("mapped");
        mmu.stats().tlb_hits > before
    })
}

/// Whether each page is in the fast TLB.
fn fast(mmu: &mut Mmu) -> [bool; 3] {
    mmu.fast.select(Privilege::Supervisor);
    [PLAIN, GLOBAL, LARGE].map(|gva| mmu.fast.load::<u8>(gva).is_some())
}

const KERNEL: Cr4 = Cr4::PGE.union(Cr4::PCIDE);

#[test]
fn mov_to_cr3_spares_global_pages_and_other_pcids() {
    let mut mmu = machine(KERNEL);
    touch(&mut mmu);
    set(&mut mmu, KERNEL, 2, PagingChange::MovCr3);
    assert_eq!(fast(&mut mmu), [false, true, false]);
    assert_eq!(cached(&mut mmu), [false, true, false], "PCID 2 is new, global pages are everybody's");
    set(&mut mmu, KERNEL, 1, PagingChange::MovCr3NoFlush);
    assert_eq!(cached(&mut mmu), [true; 3], "PCID 1 was left alone");
    set(&mut mmu, KERNEL, 1, PagingChange::MovCr3);
    assert_eq!(cached(&mut mmu), [false, true, false]);
}

#[test]
fn without_pge_no_page_is_global() {
    let mut mmu = machine(Cr4::empty());
    touch(&mut mmu);
    set(&mut mmu, Cr4::empty(), 0, PagingChange::MovCr3);
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([false; 3], [false; 3]));
}

#[test]
fn control_registers_drop_what_the_manual_lists() {
    let mut mmu = machine(KERNEL);
    touch(&mut mmu);
    set(&mut mmu, KERNEL | Cr4::SMAP, 1, PagingChange::MovCr4);
    assert_eq!(fast(&mut mmu), [false; 3], "rules changed");
    assert_eq!(
        mmu.translate(Gva::new(PLAIN), READ).map(|t| t.spa),
        Err(MmuFault::Guest { gva: Gva::new(PLAIN), code: emu_core::PageFaultCode::P })
    );
    set(&mut mmu, KERNEL, 1, PagingChange::MovCr4);
    assert_eq!(cached(&mut mmu), [false, true, true], "a fault drops its own page alone");
    set(&mut mmu, KERNEL | Cr4::SMEP, 1, PagingChange::MovCr4);
    assert_eq!(cached(&mut mmu), [false; 3]);
    set(&mut mmu, KERNEL, 1, PagingChange::MovCr4);
    assert_eq!(cached(&mut mmu), [true; 3], "clearing SMEP owes nothing");
    set(&mut mmu, Cr4::PCIDE, 1, PagingChange::MovCr4);
    assert_eq!(cached(&mut mmu), [false; 3], "PGE changed");
}

#[test]
fn invlpg_and_invpcid() {
    let mut mmu = machine(KERNEL);
    touch(&mut mmu);
    mmu.invlpg(Gva::new(GLOBAL + 0x123));
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([true, false, true], [true, false, true]));
    mmu.translate(Gva::new(LARGE + 0x5000), READ).expect("mapped");
    mmu.invlpg(Gva::new(LARGE + 0x1f_f000));
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([true, true, false], [true, true, false]));
    mmu.invpcid(Invpcid::Address { pcid: Pcid::new(1), gva: Gva::new(GLOBAL) });
    assert_eq!(cached(&mut mmu), [true; 3], "type 0 spares global pages");
    mmu.invpcid(Invpcid::Address { pcid: Pcid::new(2), gva: Gva::new(PLAIN) });
    assert_eq!(cached(&mut mmu), [true; 3]);
    mmu.invpcid(Invpcid::Single { pcid: Pcid::new(1) });
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([false, true, false], [false, true, false]));
    mmu.invpcid(Invpcid::All);
    assert_eq!(cached(&mut mmu), [false, true, false]);
    mmu.invpcid(Invpcid::AllWithGlobals);
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([false; 3], [false; 3]));
}

#[test]
fn a_large_page_cached_in_pieces_goes_as_a_whole() {
    let mut mmu = machine(KERNEL);
    mmu.set_stage2(ept(NESTED_ROOT, 1));
    let pieces = [LARGE, LARGE + 0x3000, LARGE + 0x10_0000].map(Gva::new);
    for gva in pieces {
        assert_eq!(mmu.translate(gva, READ).map(|t| t.size), Ok(PageSize::Size4K), "nested pages are small there");
    }
    mmu.invlpg(Gva::new(LARGE + 0x7000));
    let before = mmu.stats().walks_2d;
    for gva in pieces {
        mmu.translate(gva, READ).expect("mapped");
    }
    assert_eq!(mmu.stats().walks_2d - before, 3);
}

#[test]
fn identities_are_apart() {
    let mut mmu = machine(KERNEL);
    touch(&mut mmu);
    for stage2 in [ept(NESTED_ROOT, 1), ept(NESTED_ROOT, 2), npt(1), Stage2::Untranslated(SpaceTag::Asid(Asid(2)))] {
        mmu.set_stage2(stage2);
        assert_eq!(cached(&mut mmu), [false; 3], "{stage2:?}");
        assert_eq!(cached(&mut mmu), [true; 3]);
    }
    mmu.set_stage2(ept(NESTED_ROOT, 1));
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([false; 3], [true; 3]));

    mmu.invvpid(Invvpid::Address { vpid: Vpid(2), gva: Gva::new(GLOBAL) });
    assert_eq!(cached(&mut mmu), [true; 3]);
    mmu.set_stage2(ept(NESTED_ROOT, 2));
    assert_eq!(cached(&mut mmu), [true, false, true]);
    mmu.invvpid(Invvpid::SingleRetainingGlobals { vpid: Vpid(2) });
    assert_eq!(cached(&mut mmu), [false, true, false]);
    mmu.invvpid(Invvpid::Single { vpid: Vpid(2) });
    assert_eq!(cached(&mut mmu), [false; 3]);
    mmu.invvpid(Invvpid::All);
    mmu.set_stage2(ept(NESTED_ROOT, 1));
    assert_eq!(cached(&mut mmu), [false; 3]);

    mmu.set_stage2(npt(1));
    assert_eq!(cached(&mut mmu), [true; 3], "an ASID is no VPID");
    mmu.invlpga(Gva::new(GLOBAL), Asid(1));
    assert_eq!(cached(&mut mmu), [true, false, true]);
    mmu.flush_asid(Asid(1), Globals::Keep);
    assert_eq!(cached(&mut mmu), [false, true, false]);
    mmu.flush_asid(Asid(1), Globals::Drop);
    assert_eq!(cached(&mut mmu), [false; 3]);
    mmu.set_stage2(Stage2::None);
    assert_eq!(cached(&mut mmu), [true; 3], "the host was left alone throughout");
}

#[test]
fn invept_goes_by_the_tree() {
    let mut mmu = machine(KERNEL);
    let (one, other) = (ept(NESTED_ROOT, 1), ept(NESTED_ROOT + 0x8000, 2));
    for stage2 in [one, other] {
        mmu.set_stage2(stage2);
        touch(&mut mmu);
    }
    let eptp = Eptp::new(Spa::new(NESTED_ROOT), Stage2Levels::Four, EptAccessedDirty::Enabled);
    mmu.invept(Invept::Single { eptp });
    assert_eq!(fast(&mut mmu), [true; 3]);
    assert_eq!(cached(&mut mmu), [true; 3], "the other tree");
    mmu.set_stage2(one);
    assert_eq!(cached(&mut mmu), [false; 3]);
    mmu.invept(Invept::All);
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([false; 3], [false; 3]));
}

#[test]
fn more_identities_than_tags() {
    let mut mmu = machine(KERNEL);
    for asid in 1..200 {
        mmu.set_stage2(npt(asid));
        assert_eq!(cached(&mut mmu), [false; 3], "{asid}");
        assert_eq!(mmu.stage2(), &npt(asid));
    }
    mmu.set_stage2(npt(199));
    assert_eq!(cached(&mut mmu), [true; 3]);
}

/// The frame may hold a guest table, through which other frames were reached.
#[test]
fn a_remote_flush_of_a_table_frame_drops_what_went_through_it() {
    let mut mmu = machine(KERNEL);
    mmu.set_stage2(ept(NESTED_ROOT, 1));
    touch(&mut mmu);
    // All guest tables lie in the first 2 MiB of guest physical memory.
    let slot = Spa::new(NESTED_ROOT + 0x2000);
    let entry: u64 = mmu.memory().load(slot).expect("inside memory");
    mmu.memory().store(slot, entry & !7).expect("inside memory");
    mmu.flush_gpa_range(Gfn::new(ROOT >> 12), 1);
    assert_eq!(fast(&mut mmu), [false; 3]);
    let refused = mmu.translate(Gva::new(LARGE), READ);
    assert!(matches!(refused, Err(MmuFault::Nested(fault)) if fault.gpa == Gpa::new(ROOT)), "{refused:?}");
}

/// A processor over shadow tables: its guest physical addresses are system addresses.
#[test]
fn a_remote_flush_of_a_guest_without_nested_paging_drops_what_leads_to_the_frames() {
    let mut mmu = machine(KERNEL);
    mmu.set_stage2(Stage2::Untranslated(SpaceTag::Asid(Asid(1))));
    touch(&mut mmu);
    let plain = mmu.translate(Gva::new(PLAIN), READ).expect("mapped").spa.frame();
    mmu.flush_gpa_range(Gfn::new(plain.raw()), 1);
    assert_eq!(fast(&mut mmu), [false, true, true]);
    assert_eq!(cached(&mut mmu), [false, true, true]);
}

#[test]
fn write_entries_wait_for_d_and_yield_to_code() {
    let mut mmu = machine(KERNEL);
    mmu.fast.select(Privilege::Supervisor);
    mmu.memory().store(Spa::new(0x4008), 0x9027_u64).expect("inside memory");
    mmu.translate(Gva::new(PLAIN), READ).expect("mapped");
    assert!(mmu.fast.load::<u8>(PLAIN).is_some() && !mmu.fast.can_store(PLAIN, 1), "D is clear");
    mmu.translate(Gva::new(PLAIN), WRITE).expect("mapped");
    assert!(mmu.fast.can_store(PLAIN, 1));
    assert_eq!(mmu.memory().load::<u64>(Spa::new(0x4008)), Ok(0x9067));

    let sfn = Spa::new(0x9000).frame();
    mmu.memory().code().watch(sfn, emu_core::memory::code::LineMask(1));
    mmu.catch_up();
    assert!(!mmu.fast.can_store(PLAIN, 1) && mmu.fast.load::<u8>(PLAIN).is_some());
    mmu.translate(Gva::new(PLAIN), WRITE).expect("mapped");
    assert!(!mmu.fast.can_store(PLAIN, 1), "translated code is there");
}

#[test]
fn holes_and_rom_and_tables_nowhere() {
    let mut mmu = machine(KERNEL);
    mmu.fast.select(Privilege::Supervisor);
    mmu.memory().store(Spa::new(0x4008), 0x7000_0067_u64).expect("inside memory");
    let device = mmu.translate(Gva::new(PLAIN + 4), WRITE).expect("a translation, whoever answers there");
    assert_eq!(device.spa, Spa::new(0x7000_0004));
    assert!(mmu.fast.load::<u8>(PLAIN).is_none());
    mmu.memory().store(Spa::new(0x3000), 0x7000_0027_u64).expect("inside memory");
    mmu.invlpg(Gva::new(PLAIN));
    assert!(matches!(mmu.translate(Gva::new(PLAIN), READ), Err(MmuFault::Bus(_))));
}

#[test]
fn protection_keys_reach_the_fast_tlb() {
    let mut mmu = machine(KERNEL | Cr4::PKE);
    mmu.fast.select(Privilege::User);
    mmu.memory().store(Spa::new(0x4008), 0x9067 | 3_u64 << 59).expect("inside memory");
    let read = Access::new(AccessKind::Read, Privilege::User);
    mmu.translate(Gva::new(PLAIN), read).expect("mapped");
    let mut state = *mmu.paging();
    state.pkru = 0b11;
    mmu.set_paging(state, PagingChange::ProtectionKeys);
    assert!(mmu.fast.load::<u8>(PLAIN).is_some(), "key 0 is not its key");
    state.pkru = 1 << 6;
    mmu.set_paging(state, PagingChange::ProtectionKeys);
    assert!(mmu.fast.load::<u8>(PLAIN).is_none());
    assert!(mmu.translate(Gva::new(PLAIN), read).is_err());
}

#[test]
fn switched_off_caches_stay_empty() {
    let mut mmu = machine(KERNEL);
    mmu.set_caches(Caches::empty());
    touch(&mut mmu);
    assert_eq!((fast(&mut mmu), cached(&mut mmu)), ([false; 3], [false; 3]));
    assert_eq!(mmu.stats().walks_1d, 6);
    assert_eq!(mmu.stats().table_loads, 2 * (4 + 4 + 3));
}
