//! Page-modification logging: what is logged, what is not, and what a full log changes.

use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, AccessKind, Gpa, Gva, Privilege, Spa};
use mmu::*;

const ROOT: u64 = 0x1000;
const LOG: Spa = Spa::new(0x9000);
/// Guest frame n lies in system frame n + 0x100.
const FRAMES: u64 = 64;
const A: u64 = 1 << 8;
const D: u64 = 1 << 9;

/// EPT tables that map guest frames below [`FRAMES`] by leaves of 4K, and a processor with paging off over them.
fn processor(accessed_dirty: EptAccessedDirty) -> Mmu {
    let memory = SystemMemory::flat(1 << 24).expect("16 MiB");
    for (table, below) in [(ROOT, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        memory.store(Spa::new(table), below | 0b111_u64).expect("inside memory");
    }
    for n in 0..FRAMES {
        memory.store(leaf(n), (n + 0x100) << 12 | 6 << 3 | 0b111).expect("inside memory");
    }
    let mut mmu = Mmu::new(memory, PagingFeatures::INTEL);
    let eptp = Eptp::new(Spa::new(ROOT), Stage2Levels::Four, accessed_dirty);
    mmu.set_stage2(Stage2::Ept(Ept { eptp, execute: EptExecute::Single, vpid: Vpid(1) }));
    mmu.set_modification_log(Some(ModificationLog::new(LOG)));
    mmu
}

const fn leaf(gfn: u64) -> Spa {
    Spa::new(0x4000 + 8 * gfn)
}

fn entry(mmu: &Mmu, gfn: u64) -> u64 {
    mmu.memory().load(leaf(gfn)).expect("inside memory")
}

fn access(mmu: &mut Mmu, gpa: u64, kind: AccessKind) -> Result<Translation, MmuFault> {
    mmu.translate(Gva::new(gpa), Access::new(kind, Privilege::Supervisor))
}

/// What was logged, in order.
fn logged(mmu: &mut Mmu) -> Vec<u64> {
    let memory = Arc::clone(mmu.memory());
    let log = *mmu.modification_log().expect("logging is on");
    let first = if log.is_full() { 0 } else { log.index + 1 };
    (first..ModificationLog::ENTRIES)
        .rev()
        .map(|n| memory.load::<u64>(log.page.wrapping_add(8 * u64::from(n))).expect("inside memory"))
        .collect()
}

#[test]
fn the_first_write_to_a_page_is_logged_and_nothing_else() {
    let mut mmu = processor(EptAccessedDirty::Enabled);
    access(&mut mmu, 0x5123, AccessKind::Read).unwrap();
    access(&mut mmu, 0x6123, AccessKind::Execute).unwrap();
    assert_eq!(logged(&mut mmu), []);
    access(&mut mmu, 0x5123, AccessKind::Write).unwrap();
    access(&mut mmu, 0x5fff, AccessKind::Write).unwrap();
    mmu.flush_all();
    access(&mut mmu, 0x5000, AccessKind::Write).unwrap();
    access(&mut mmu, 0x3008, AccessKind::Write).unwrap();
    mmu.probe(Gva::new(0x7000), Access::new(AccessKind::Write, Privilege::Supervisor)).unwrap();
    assert_eq!(logged(&mut mmu), [0x5000, 0x3000]);
    // Software arms a page by clearing D, and owes a flush.
    mmu.memory().store(leaf(5), entry(&mmu, 5) & !D).unwrap();
    mmu.flush_all();
    access(&mut mmu, 0x5000, AccessKind::Read).unwrap();
    assert!(!mmu.fast.can_store(0x5000, 1), "a write must come to the tables");
    access(&mut mmu, 0x5000, AccessKind::Write).unwrap();
    assert_eq!(logged(&mut mmu), [0x5000, 0x3000, 0x5000]);
}

#[test]
fn guest_tables_are_logged_when_they_are_read_because_that_counts_as_a_write() {
    let mut mmu = processor(EptAccessedDirty::Enabled);
    let host = |gpa: u64| Spa::new(gpa + 0x10_0000);
    for (table, below) in [(0x8000, 0x9000), (0x9000, 0xa000), (0xa000, 0xb000), (0xb000, 0xc000)] {
        mmu.memory().store(host(table), below | 0b111_u64).unwrap();
    }
    let long = PagingState {
        cr0: Cr0::PE | Cr0::PG,
        cr3: 0x8000,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        ..PagingState::default()
    };
    mmu.set_paging(long, PagingChange::Reset);
    access(&mut mmu, 0x10, AccessKind::Read).unwrap();
    assert_eq!(logged(&mut mmu), [0x8000, 0x9000, 0xa000, 0xb000]);
    access(&mut mmu, 0x10, AccessKind::Write).unwrap();
    assert_eq!(logged(&mut mmu), [0x8000, 0x9000, 0xa000, 0xb000, 0xc000]);
}

#[test]
fn a_full_log_stops_an_access_that_would_set_a_flag_before_anything_changes() {
    let mut mmu = processor(EptAccessedDirty::Enabled);
    access(&mut mmu, 0x1000, AccessKind::Write).unwrap();
    let page = LOG;
    mmu.set_modification_log(Some(ModificationLog { page, index: 0 }));
    access(&mut mmu, 0x2000, AccessKind::Write).unwrap();
    assert_eq!(mmu.modification_log().map(|log| log.index), Some(u16::MAX));
    let before = [3, 4].map(|gfn| entry(&mmu, gfn));
    assert_eq!(access(&mut mmu, 0x3000, AccessKind::Write), Err(MmuFault::LogFull));
    assert_eq!(access(&mut mmu, 0x4000, AccessKind::Read), Err(MmuFault::LogFull), "A would be set");
    assert_eq!([3, 4].map(|gfn| entry(&mmu, gfn)), before);
    // Where every flag is set already there is nothing to record.
    mmu.flush_all();
    access(&mut mmu, 0x1000, AccessKind::Write).unwrap();
    assert!(matches!(access(&mut mmu, FRAMES << 12, AccessKind::Write), Err(MmuFault::Nested(_))), "a violation wins");
    mmu.set_modification_log(Some(ModificationLog::new(page)));
    access(&mut mmu, 0x3000, AccessKind::Write).unwrap();
    assert_eq!((logged(&mut mmu), entry(&mmu, 3) & (A | D)), (vec![0x3000], A | D));
}

#[test]
fn nothing_is_logged_without_dirty_flags_or_when_it_is_off() {
    let mut mmu = processor(EptAccessedDirty::Disabled);
    access(&mut mmu, 0x1000, AccessKind::Write).unwrap();
    assert_eq!(logged(&mut mmu), []);
    let mut mmu = processor(EptAccessedDirty::Enabled);
    mmu.set_modification_log(None);
    access(&mut mmu, 0x1000, AccessKind::Write).unwrap();
    assert_eq!((entry(&mmu, 1) & D, mmu.memory().load::<u64>(LOG.wrapping_add(8 * 511))), (D, Ok(0)));
    assert_eq!(mmu.translate_gpa(Gpa::new(0x2000), AccessKind::Write).unwrap().spa, Spa::new(0x10_2000));
}
