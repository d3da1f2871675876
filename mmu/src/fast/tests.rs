use super::*;

const ALL: FastRights = FastRights { read: true, write: true, execute: true };
const READ: FastRights = FastRights { read: true, write: false, execute: false };

fn tlb() -> FastTlb {
    FastTlb::new(SystemMemory::flat(0x10_0000).expect("a mebibyte"))
}

fn enter(tlb: &mut FastTlb, privilege: Privilege, gva: u64, frame: u64, rights: FastRights, global: bool) {
    let sfn = Sfn::new(frame);
    let page = tlb.memory().page(sfn).expect("inside memory");
    tlb.fill(privilege, Gva::new(gva), sfn, page, rights, global);
}

#[test]
fn hits_stay_inside_the_page_and_the_rights() {
    let mut t = tlb();
    enter(&mut t, Privilege::User, 0x7000, 3, READ, false);
    t.select(Privilege::User);
    assert_eq!(t.load::<u64>(0x7ff8), Some(0));
    assert_eq!(t.load::<u64>(0x7ff9), None, "crosses the page");
    assert_eq!(t.store::<u8>(0x7000, 1), None, "read only");
    assert!(t.code_page(0x7000).is_none());
    assert_eq!(t.load::<u8>(0x7000 + (ENTRIES as u64) * 0x1000), None, "same slot, other page");
    t.select(Privilege::Supervisor);
    assert_eq!(t.load::<u8>(0x7000), None, "another context");
}

#[test]
fn an_empty_slot_matches_no_address() {
    let t = tlb();
    for gva in
        [0_u64, 0x1000, 0xfff, u64::MAX, u64::MAX << 12, 1 << 47, 0x8000_0000_0000_0000, (ENTRIES as u64 - 1) << 12]
    {
        assert_eq!(t.load::<u8>(gva), None, "{gva:#x}");
        assert!(!t.can_store(gva, 1));
        assert!(t.code_page(gva).is_none());
    }
}

#[test]
fn rights_add_up_for_one_page_and_are_replaced_by_another() {
    let mut t = tlb();
    enter(&mut t, Privilege::User, 0x7000, 3, READ, false);
    enter(&mut t, Privilege::User, 0x7000, 3, FastRights { execute: true, ..FastRights::default() }, false);
    t.select(Privilege::User);
    assert!(t.load::<u8>(0x7000).is_some() && t.code_page(0x7123).is_some());
    enter(&mut t, Privilege::User, 0x7000, 4, READ, false);
    assert!(t.code_page(0x7000).is_none(), "the frame changed");
}

#[test]
fn stores_and_updates_reach_memory() {
    let mut t = tlb();
    enter(&mut t, Privilege::Supervisor, 0xffff_8000_0000_5000, 5, ALL, true);
    t.select(Privilege::Supervisor);
    let gva = 0xffff_8000_0000_5010;
    assert_eq!(t.store(gva, 7_u32), Some(()));
    assert_eq!(t.update(gva, |v: u32| (v + 1, v)), Some(7));
    assert_eq!(t.memory().load::<u32>(emu_core::Spa::new(0x5010)), Ok(8));
}

#[test]
fn flushes_drop_exactly_what_they_name() {
    let mut t = tlb();
    t.select(Privilege::User);
    let fill = |t: &mut FastTlb| {
        enter(t, Privilege::User, 0x1000, 1, ALL, true);
        enter(t, Privilege::User, 0x2000, 2, ALL, false);
        enter(t, Privilege::User, 0x20_0000, 3, ALL, false);
    };
    let there = |t: &FastTlb| [0x1000, 0x2000, 0x20_0000].map(|a| t.load::<u8>(a).is_some());
    fill(&mut t);
    t.flush_non_global();
    assert_eq!(there(&t), [true, false, false]);
    fill(&mut t);
    t.flush_page(Gva::new(0x2fff));
    assert_eq!(there(&t), [true, false, true]);
    fill(&mut t);
    t.flush_range(Gva::new(0), 0x20_0000);
    assert_eq!(there(&t), [false, false, true]);
    fill(&mut t);
    t.strip_writes(Sfn::new(2));
    assert_eq!([0x1000, 0x2000].map(|a| t.can_store(a, 1)), [true, false]);
    t.flush_all();
    assert_eq!(there(&t), [false; 3]);
    assert!(t.filled.is_empty());
}

#[test]
fn copies_behave_as_element_by_element() {
    for (to, from, len, step) in [
        (0x1001_u64, 0x1000_u64, 8_usize, 1_usize),
        (0x1000, 0x1001, 8, 1),
        (0x1004, 0x1000, 16, 4),
        (0x1003, 0x1000, 16, 4),
    ] {
        let mut t = tlb();
        enter(&mut t, Privilege::User, 0x1000, 1, ALL, false);
        t.select(Privilege::User);
        let mut model: Vec<u8> = (0..64).collect();
        for (i, b) in model.iter().enumerate() {
            t.store(0x1000 + i as u64, *b);
        }
        assert_eq!(t.copy_bytes(to, from, len, step), Some(()));
        let (to, from) = ((to - 0x1000) as usize, (from - 0x1000) as usize);
        for i in (0..len).step_by(step) {
            let element = model[from + i..from + i + step].to_vec();
            model[to + i..to + i + step].copy_from_slice(&element);
        }
        let mut seen = vec![0; 64];
        t.read_bytes(0x1000, &mut seen);
        assert_eq!(seen, model);
    }
    let mut t = tlb();
    enter(&mut t, Privilege::User, 0x1000, 1, ALL, false);
    t.select(Privilege::User);
    assert_eq!(t.fill_bytes(0x1ffc, 0xaa_u8, 4), Some(()));
    assert_eq!(t.fill_bytes(0x1ffc, 0xaa_u8, 5), None);
    assert_eq!(t.load::<u32>(0x1ffc), Some(0xaaaa_aaaa));
}
