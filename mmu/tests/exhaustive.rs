//! Every combination of entry bits at every level, of control bits and of accesses: the `mmu` crate against the oracle.
//! Compared are the outcome, addresses, error code, EXITINFO1, exit qualification, and A and D left in memory.

mod common;

use common::{ACCESSES, Harness, Slot, registers};
use emu_core::AccessKind;
use emu_core::regs::{Cr0, Cr4, Efer};
use oracle::{Nested, Processor, Registers};

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const KEY1: u64 = 1 << 59;
const FULL: u64 = P | RW | US | A | D;

const AMD: Processor = Processor { physical_bits: 48, amd: true, page_1g: true, pse36: true, execute_only: false };
const INTEL: Processor = Processor { physical_bits: 46, amd: false, page_1g: true, pse36: true, execute_only: true };

/// Every subset of `bits`, as a union.
fn subsets(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0..1_u64 << bits.len())
        .map(move |n| bits.iter().enumerate().filter(|(i, _)| n >> i & 1 == 1).fold(0, |sum, (_, bit)| sum | bit))
}

/// What the entries beside the subject take away: one has less than all.
const COMPANIONS: [(u64, u64); 5] = [(0, 0), (RW, 0), (US, 0), (A | D, 0), (0, NX)];

/// A tree of tables under test: where each level's entry lies, what it points to as a table, as a page.
struct Tree {
    bytes: u32,
    /// From level 1 up: slot, address of the table below, address of the page.
    levels: Vec<(u64, u64, Option<u64>)>,
}

impl Tree {
    /// The entries with `flags` at level `subject` and full rights elsewhere, less what the companion lacks.
    fn slots(&self, subject: usize, flags: u64, companion: (u64, u64)) -> Vec<Slot> {
        let other = if subject == 1 { self.levels.len() } else { 1 };
        let slot = |(n, &(spa, table, page)): (usize, &(u64, u64, Option<u64>))| {
            let level = n + 1;
            let flags = match level {
                _ if level == subject => flags,
                _ if level == other => FULL & !companion.0 | companion.1,
                _ => FULL,
            };
            let address = match page {
                Some(page) if level == 1 || flags & PS != 0 => page,
                _ => table,
            };
            let value = flags | address;
            Slot { spa, bytes: self.bytes, value: if self.bytes == 4 { value & 0xffff_ffff } else { value } }
        };
        self.levels.iter().enumerate().map(slot).collect()
    }
}

/// Control bits and key registers of 4-level and 5-level paging.
fn long_registers(base: Cr4, cr3: u64) -> Vec<Registers> {
    let mut all = Vec::new();
    let keys = [(Cr4::empty(), 0, 0), (Cr4::PKE, 4, 0), (Cr4::PKE, 8, 0), (Cr4::PKS, 0, 4), (Cr4::PKS, 0, 8)];
    for n in 0..16 {
        for (key_bits, pkru, pkrs) in keys {
            let pick = |bit: u32, flag| if n >> bit & 1 == 1 { flag } else { Cr4::empty() };
            let cr0 = if n & 1 == 1 { Cr0::WP } else { Cr0::empty() };
            let cr4 = base | Cr4::PAE | Cr4::PGE | key_bits | pick(1, Cr4::SMEP) | pick(2, Cr4::SMAP);
            let efer = Efer::LMA | Efer::LME | if n >> 3 & 1 == 1 { Efer::NXE } else { Efer::empty() };
            all.push(Registers { pkru, pkrs, ..registers(cr0, cr4, efer, cr3) });
        }
    }
    all
}

/// Runs a tree over all registers. `plain` bits are combined with everything; with a bit of `odd`, or not present, the
/// outcome depends on little else, and fewer registers and companions do.
fn run_tree(harness: &mut Harness, tree: &Tree, gva: u64, sets: &[Registers], plain: &[u64], odd: &[u64]) {
    for (n, set) in sets.iter().enumerate() {
        harness.set_registers(*set);
        for subject in 1..=tree.levels.len() {
            for flags in subsets(plain) {
                for companion in COMPANIONS {
                    let slots = tree.slots(subject, flags | P, companion);
                    for access in ACCESSES {
                        harness.compare(&slots, gva, access);
                    }
                }
            }
            if n % 11 != 0 {
                continue;
            }
            for flags in subsets(plain) {
                for strange in subsets(odd) {
                    for present in [0, P] {
                        let slots = tree.slots(subject, flags | strange | present, COMPANIONS[0]);
                        for access in [ACCESSES[0], ACCESSES[4], ACCESSES[8]] {
                            harness.compare(&slots, gva, access);
                        }
                    }
                }
            }
        }
    }
    eprintln!("{} cases", harness.cases);
}

fn long_tree(gva: u64, five: bool) -> Tree {
    let index = |shift: u32| (gva >> shift & 0x1ff) * 8;
    let mut levels = vec![
        (0x0000_8000 + index(12), 0, Some(0x0012_3400_0000)),
        (0x0001_0000 + index(21), 0x8000, Some(0x0012_3400_0000)),
        (0x0001_8000 + index(30), 0x1_0000, Some(0x0012_0000_0000)),
        (0x0002_0000 + index(39), 0x1_8000, None),
    ];
    if five {
        levels.push((0x0002_8000 + index(48), 0x2_0000, None));
    }
    Tree { bytes: 8, levels }
}

const LONG_PLAIN: [u64; 8] = [RW, US, A, D, PS, G, NX, KEY1];
const LONG_ODD: [u64; 3] = [1 << 13, 1 << 51, 1 << 62];

#[test]
fn four_level_amd() {
    let gva = 0x5a_5b5c_5d5e_u64 | 0x1200_0000_0000;
    let mut harness = Harness::new(AMD, registers(Cr0::empty(), Cr4::PAE, Efer::LMA, 0x2_0000), Nested::None);
    run_tree(
        &mut harness,
        &long_tree(gva, false),
        gva,
        &long_registers(Cr4::empty(), 0x2_0000),
        &LONG_PLAIN,
        &LONG_ODD,
    );
}

#[test]
fn four_level_intel_without_1g_pages() {
    let gva = 0xffff_8a5a_5b5c_5d5e_u64;
    let processor = Processor { page_1g: false, ..INTEL };
    let mut harness = Harness::new(processor, registers(Cr0::empty(), Cr4::PAE, Efer::LMA, 0x2_0000), Nested::None);
    run_tree(
        &mut harness,
        &long_tree(gva, false),
        gva,
        &long_registers(Cr4::empty(), 0x2_0018),
        &LONG_PLAIN,
        &LONG_ODD,
    );
}

#[test]
fn five_level_with_all_physical_bits() {
    let gva = 0xff12_345a_5b5c_5d5e_u64;
    let processor = Processor { physical_bits: 52, ..AMD };
    let mut harness = Harness::new(processor, registers(Cr0::empty(), Cr4::PAE, Efer::LMA, 0x2_8000), Nested::None);
    // With 52 bits only NX-less NX, PS and bits 13 to 29 are reserved: bit 51 is address, and memory does not reach there.
    run_tree(
        &mut harness,
        &long_tree(gva, true),
        gva,
        &long_registers(Cr4::LA57, 0x2_8000),
        &LONG_PLAIN,
        &[1 << 13, 1 << 52],
    );
}

#[test]
fn canonical_addresses() {
    for (five, edge) in [(false, 47), (true, 56)] {
        let cr4 = if five { Cr4::PAE | Cr4::LA57 } else { Cr4::PAE };
        let mut harness = Harness::new(AMD, registers(Cr0::empty(), cr4, Efer::LMA, 0x2_8000), Nested::None);
        for gva in [0, 1 << 46, 1 << edge, 1 << (edge + 1), u64::MAX << edge, u64::MAX << (edge + 1), 1 << 63, u64::MAX]
        {
            let around = [gva, gva.wrapping_sub(1), gva.wrapping_add(1)];
            for gva in around {
                harness.compare(&[], gva, ACCESSES[0]);
            }
        }
    }
}

fn pae_registers(pdptes: Option<[u64; 4]>, cr3: u64) -> Vec<Registers> {
    let mut sets = Vec::new();
    for n in 0..16 {
        let pick = |bit: u32, flag| if n >> bit & 1 == 1 { flag } else { Cr4::empty() };
        let cr0 = if n & 1 == 1 { Cr0::WP } else { Cr0::empty() };
        // Protection keys are in CR4 but not in force outside long mode.
        let cr4 = Cr4::PAE | Cr4::PKE | pick(1, Cr4::SMEP) | pick(2, Cr4::SMAP);
        let efer = if n >> 3 & 1 == 1 { Efer::NXE } else { Efer::empty() };
        sets.push(Registers { pkru: u32::MAX, pdptes, ..registers(cr0, cr4, efer, cr3) });
    }
    sets
}

#[test]
fn pae_with_pdptes_in_memory() {
    let gva = 0x9a5b_5c5d_u64;
    let index = |shift: u32, mask: u64| (gva >> shift & mask) * 8;
    // The PDPTE allows few bits; `run_tree` gives it every other combination as a subject.
    let tree = Tree {
        bytes: 8,
        levels: vec![
            (0x8000 + index(12, 0x1ff), 0, Some(0x0012_3400_0000)),
            (0x1_0000 + index(21, 0x1ff), 0x8000, Some(0x0012_3400_0000)),
        ],
    };
    let pdpte_slot = 0x1_8020 + index(30, 3);
    let mut harness = Harness::new(AMD, registers(Cr0::empty(), Cr4::PAE, Efer::empty(), 0x1_8020), Nested::None);
    for (n, set) in pae_registers(None, 0x1_8020).into_iter().enumerate() {
        harness.set_registers(set);
        for subject in 1..=2 {
            for flags in subsets(&[P, RW, US, A, D, PS, G, NX]) {
                for strange in if n % 5 == 0 { &[0, 1 << 13, 1 << 51, 1 << 52, 1 << 62][..] } else { &[0][..] } {
                    let mut slots = tree.slots(subject, flags | strange, COMPANIONS[n % 5]);
                    slots.push(Slot { spa: pdpte_slot, bytes: 8, value: 0x1_0000 | P });
                    for access in ACCESSES {
                        harness.compare(&slots, gva, access);
                    }
                }
            }
        }
        for flags in subsets(&[P, RW, US, 1 << 3, 1 << 4, A, D, PS, G, 1 << 9, 1 << 51, 1 << 52, NX]) {
            let mut slots = tree.slots(1, FULL, COMPANIONS[0]);
            slots.push(Slot { spa: pdpte_slot, bytes: 8, value: 0x1_0000 | flags });
            for access in [ACCESSES[0], ACCESSES[4], ACCESSES[8]] {
                harness.compare(&slots, gva, access);
            }
        }
    }
}

#[test]
fn pae_with_pdpte_registers() {
    let gva = 0x5a5b_5c5d_u64;
    let index = |shift: u32| (gva >> shift & 0x1ff) * 8;
    let tree = Tree {
        bytes: 8,
        levels: vec![
            (0x8000 + index(12), 0, Some(0x0012_3400_0000)),
            (0x1_0000 + index(21), 0x8000, Some(0x0012_3400_0000)),
        ],
    };
    let mut harness = Harness::new(INTEL, registers(Cr0::empty(), Cr4::PAE, Efer::empty(), 0), Nested::None);
    let sets = pae_registers(Some([0, 0x1_0001, 0, 0]), 0);
    run_tree(&mut harness, &tree, gva, &sets, &[RW, US, A, D, PS, G, NX], &[1 << 13, 1 << 46, 1 << 52, 1 << 62]);
    harness.compare(&tree.slots(1, FULL, COMPANIONS[0]), gva & 0x3fff_ffff, ACCESSES[0]);
}

#[test]
fn legacy_32_bit() {
    let gva = 0x9a5b_5c5d_u64;
    let tree = Tree {
        bytes: 4,
        levels: vec![
            (0x8000 + (gva >> 12 & 0x3ff) * 4, 0, Some(0x1240_0000)),
            (0x1_0000 + (gva >> 22) * 4, 0x8000, Some(0x1240_0000)),
        ],
    };
    for (pse36, physical_bits) in [(true, 36), (true, 40), (true, 48), (false, 48), (true, 32)] {
        let processor = Processor { pse36, physical_bits, ..AMD };
        let base = registers(Cr0::empty(), Cr4::empty(), Efer::empty(), 0x1_0000);
        let mut harness = Harness::new(processor, base, Nested::None);
        let mut sets = Vec::new();
        for n in 0..16 {
            let pick = |bit: u32, flag| if n >> bit & 1 == 1 { flag } else { Cr4::empty() };
            let cr0 = if n & 1 == 1 { Cr0::WP } else { Cr0::empty() };
            let cr4 = pick(1, Cr4::SMEP) | pick(2, Cr4::SMAP) | pick(3, Cr4::PSE);
            // EFER.NXE means nothing without PAE.
            sets.push(registers(cr0, cr4, Efer::NXE, 0x1_0000));
        }
        let odd = [1 << 12, 1 << 13, 1 << 16, 1 << 17, 1 << 20, 1 << 21];
        run_tree(&mut harness, &tree, gva, &sets, &[RW, US, A, D, PS, G], &odd);
    }
}

/// A guest with four levels over nested tables that map guest physical to system physical at 1 GiB further on. All guest
/// frames lie in one 2 MiB region, so that nested entries above the page table are shared.
struct NestedScene {
    guest: [(u64, u64); 5],
    nested_upper: Vec<(u64, u64, Option<u64>)>,
}

const NESTED_GVA: u64 = 0x0012_3456_789a;
const OFFSET: u64 = 0x4000_0000;
const GUEST_ROOT: u64 = 0x20_8000;

impl NestedScene {
    fn new(five: bool) -> NestedScene {
        let index = |shift: u32| (NESTED_GVA >> shift & 0x1ff) * 8;
        let (pt, pd, pdpt, data) = (0x20_9000, 0x20_a000, 0x20_b000, 0x20_c000);
        let mut nested_upper = vec![
            (0x1_0000 + 8, 0x8000, Some(OFFSET + 0x20_0000)),
            (0x1_8000, 0x1_0000, Some(OFFSET)),
            (0x2_0000, 0x1_8000, None),
        ];
        if five {
            nested_upper.push((0x2_8000, 0x2_0000, None));
        }
        NestedScene {
            guest: [
                (GUEST_ROOT + index(39), pdpt),
                (pdpt + index(30), pd),
                (pd + index(21), pt),
                (pt + index(12), data),
                (data, 0),
            ],
            nested_upper,
        }
    }

    /// Nested entries that can be the subject: one page-table entry for each guest frame, then the shared ones.
    fn subjects(&self) -> usize {
        self.guest.len() + self.nested_upper.len()
    }

    /// `guest_leaf`: flags of the guest's PTE; `guest_upper`: of the entries above.
    fn slots(&self, subject: usize, flags: u64, full: u64, guest_leaf: u64, guest_upper: u64) -> Vec<Slot> {
        let mut slots = Vec::new();
        for (n, &(gpa, below)) in self.guest.iter().enumerate() {
            let frame = gpa & !0xfff;
            let flags = if n == subject { flags } else { full };
            slots.push(Slot { spa: 0x8000 + (frame >> 12 & 0x1ff) * 8, bytes: 8, value: (frame + OFFSET) | flags });
            let guest_flags = if n == 3 { guest_leaf } else { guest_upper };
            if n < 4 {
                slots.push(Slot { spa: gpa + OFFSET, bytes: 8, value: below | guest_flags });
            }
        }
        for (n, &(spa, table, page)) in self.nested_upper.iter().enumerate() {
            let flags = if n + self.guest.len() == subject { flags } else { full & !PS };
            let address = page.filter(|_| flags & PS != 0).unwrap_or(table);
            slots.push(Slot { spa, bytes: 8, value: address | flags });
        }
        slots
    }
}

fn guest_registers(smep: bool) -> Registers {
    let cr4 = if smep { Cr4::PAE | Cr4::SMEP } else { Cr4::PAE };
    registers(Cr0::WP, cr4, Efer::LMA | Efer::LME | Efer::NXE, GUEST_ROOT)
}

/// Guest flags: a user page, a supervisor page, and one with A and D to be set.
const GUESTS: [(u64, u64); 4] = [(FULL, FULL), (FULL & !US, FULL), (P | RW | US, FULL), (FULL & !D, FULL & !A)];

#[test]
fn nested_page_tables() {
    let plain = [(false, true, true), (false, true, false), (false, false, true), (true, true, true)];
    let cases = plain.map(|case| (case, false)).into_iter().chain([((false, true, true), true)]);
    for ((five, page_1g, nxe), rmp) in cases {
        let scene = NestedScene::new(five);
        let ncr3 = if five { 0x2_8000 } else { 0x2_0000 };
        let processor = Processor { page_1g, ..AMD };
        let mut harness = Harness::new(processor, guest_registers(false), Nested::Npt { ncr3, la57: five, nxe });
        if rmp {
            harness = harness.under_rmp();
        }
        for subject in 0..scene.subjects() {
            for flags in subsets(&[P, RW, US, A, D, PS, G, NX, 1 << 13, 1 << 51]) {
                for (leaf, upper) in GUESTS {
                    // Bit 13 of an entry that is not reserved moves a frame to where nothing is: too tame to repeat.
                    let slots = scene.slots(subject, flags, P | RW | US, leaf, upper);
                    for access in ACCESSES {
                        harness.compare(&slots, NESTED_GVA, access);
                    }
                }
            }
        }
        eprintln!("{} cases", harness.cases);
    }
}

#[test]
fn extended_page_tables() {
    const EPT_FULL: u64 = 0b111 | 1 << 10;
    const WRITE_BACK: u64 = 6 << 3;
    for n in 0..16 {
        let (keeps_flags, mode_based, execute_only, five) = (n & 1, n >> 1 & 1 == 1, n >> 2 & 1 == 1, n == 15);
        let scene = NestedScene::new(five);
        let root = if five { 0x2_8000 | 4 << 3 } else { 0x2_0000 | 3 << 3 };
        let processor = Processor { execute_only, page_1g: n >> 3 == 0, ..INTEL };
        let nested = Nested::Ept { eptp: root | keeps_flags << 6 | 6, mode_based };
        let mut harness = Harness::new(processor, guest_registers(false), nested);
        for subject in 0..scene.subjects() {
            for flags in subsets(&[1, 1 << 1, 1 << 2, 1 << 10, PS, 1 << 8, 1 << 9, 1 << 51]) {
                for memory_type in [0, 2 << 3, WRITE_BACK] {
                    for (leaf, upper) in GUESTS {
                        let slots = scene.slots(subject, flags | memory_type, EPT_FULL, leaf, upper);
                        for access in [0, 3, 4, 6, 7].map(|n: usize| ACCESSES[n]) {
                            harness.compare(&slots, NESTED_GVA, access);
                        }
                    }
                }
            }
            for low in subsets(&[1 << 3, 1 << 4, 1 << 5, 1 << 6, PS, 1 << 12, 1 << 20]) {
                let slots = scene.slots(subject, EPT_FULL | low, EPT_FULL, FULL, FULL);
                harness.compare(&slots, NESTED_GVA, ACCESSES[3]);
            }
        }
        eprintln!("{} cases", harness.cases);
    }
}

#[test]
fn paging_off_under_nested_tables() {
    let scene = NestedScene::new(false);
    let all = [
        Nested::None,
        Nested::Npt { ncr3: 0x2_0000, la57: false, nxe: true },
        Nested::Ept { eptp: 0x2_0000 | 3 << 3 | 1 << 6 | 6, mode_based: true },
    ];
    for (n, nested) in all.into_iter().flat_map(|nested| [nested; 2]).enumerate() {
        let mut set = guest_registers(true);
        set.cr0.remove(Cr0::PG);
        set.efer = Efer::empty();
        let mut harness = Harness::new(INTEL, set, nested);
        if n % 2 == 1 {
            harness = harness.under_rmp();
        }
        for flags in subsets(&[P, RW, US, A, D, 1 << 10, NX]) {
            let slots = scene.slots(4, flags, 0b111 | 1 << 10, FULL, FULL);
            for access in ACCESSES {
                harness.compare(&slots, 0x20_c123, access);
            }
        }
        assert_eq!(harness.cases, 9 * 128);
    }
    assert_eq!(ACCESSES.iter().filter(|a| a.kind == AccessKind::Write).count(), 3);
}
