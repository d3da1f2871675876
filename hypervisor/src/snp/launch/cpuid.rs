//! The CPUID page: what a guest reads instead of executing CPUID.
//!
//! Source: SEV-SNP firmware ABI, "CPUID Page"; Linux `arch/x86/coco/sev/shared.c:snp_cpuid` for how a guest looks leaves up
//! and which values it takes from the hypervisor after all; common practice of VMMs for the bits that are cleared.

use emu_core::cpuid::CpuidResult;
use emu_core::page::PAGE_SIZE;
use thiserror::Error;

use super::bytes::{get_u32, get_u64, is_zero, put};
use super::status::FirmwareStatus;

/// Most entries of a page.
pub const CPUID_ENTRIES_MAX: usize = 64;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 48;

/// One line of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX before.
    pub leaf: u32,
    /// ECX before; 0 where the leaf does not depend on it.
    pub subleaf: u32,
    /// XCR0 for which the answer holds; 0 where it does not depend on it.
    pub xcr0: u64,
    /// IA32_XSS for which the answer holds.
    pub xss: u64,
    /// The answer.
    pub result: CpuidResult,
}

/// Why no page can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CpuidPageError {
    /// Too many leaves say something.
    #[error("{entries} leaves of CPUID say something, and a CPUID page holds {CPUID_ENTRIES_MAX}")]
    TooManyEntries {
        /// How many there are.
        entries: usize,
    },
    /// A guest would not take itself for an SNP guest.
    #[error("CPUID 8000001Fh EAX is {eax:#x}: an SNP guest needs SEV, SEV-ES and SEV-SNP there")]
    NotSnp {
        /// What it is.
        eax: u32,
    },
}

/// How the subleaves of a leaf are counted.
enum Subleaves {
    /// The leaf has none.
    None,
    /// From 0 to what EAX of subleaf 0 says.
    UpToEax,
    /// From 0 to the first for which this is 0: bits of EAX, or bits 15:8 of ECX, which are the type.
    UntilEaxType,
    UntilEcxType,
    /// The components of the XSAVE area.
    Xsave,
    /// From 0 to this.
    UpTo(u32),
}

const fn subleaves(leaf: u32) -> Subleaves {
    match leaf {
        4 | 0x8000_001d => Subleaves::UntilEaxType,
        7 => Subleaves::UpToEax,
        0xb | 0x8000_0026 => Subleaves::UntilEcxType,
        0xd => Subleaves::Xsave,
        0xf => Subleaves::UpTo(1),
        0x10 | 0x8000_0020 => Subleaves::UpTo(3),
        _ => Subleaves::None,
    }
}

/// Leaf 0xD, subleaves 0 and 1, hold for x87 and SSE alone: legacy area and header of the XSAVE area.
const XSAVE_BASE_XCR0: u64 = 1;
const XSAVE_BASE_BYTES: u32 = 0x240;

/// Ranges of leaves, and the most that is asked of each.
const RANGES: [(u32, u32); 3] = [(0, 0xff), (0x4000_0000, 0x4000_00ff), (0x8000_0000, 0x8000_00ff)];

/// The lines of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidPage {
    entries: Vec<CpuidEntry>,
}

impl CpuidPage {
    /// Asks `cpuid` (leaf, subleaf, XCR0, IA32_XSS) for every leaf that a guest may look up. Lines that would be 0 are left
    /// out: the guest answers 0 for them itself.
    pub fn build(cpuid: &mut dyn FnMut(u32, u32, u64, u64) -> CpuidResult) -> Result<CpuidPage, CpuidPageError> {
        let sev = cpuid(0x8000_001f, 0, 0, 0).eax;
        const NEEDED: u32 = 1 << 1 | 1 << 3 | 1 << 4;
        if sev & NEEDED != NEEDED {
            return Err(CpuidPageError::NotSnp { eax: sev });
        }
        let mut entries = Vec::new();
        for (first, most) in RANGES {
            let last = cpuid(first, 0, 0, 0).eax;
            // A range that is not there answers 0, or anything.
            if last < first {
                continue;
            }
            for leaf in first..=last.min(most) {
                collect(leaf, cpuid, &mut entries);
            }
        }
        entries.retain(|entry| entry.result != CpuidResult::ZERO);
        if entries.len() > CPUID_ENTRIES_MAX {
            return Err(CpuidPageError::TooManyEntries { entries: entries.len() });
        }
        Ok(CpuidPage { entries })
    }

    /// Its lines.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// The page.
    pub fn to_bytes(&self) -> Box<[u8; PAGE_SIZE]> {
        let mut page = Box::new([0; PAGE_SIZE]);
        put(&mut page[..], 0, &(self.entries.len() as u32).to_le_bytes());
        for (entry, line) in self.entries.iter().zip(page[HEADER_BYTES..].as_chunks_mut::<ENTRY_BYTES>().0) {
            let CpuidResult { eax, ebx, ecx, edx } = entry.result;
            put(line, 0x00, &entry.leaf.to_le_bytes());
            put(line, 0x04, &entry.subleaf.to_le_bytes());
            put(line, 0x08, &entry.xcr0.to_le_bytes());
            put(line, 0x10, &entry.xss.to_le_bytes());
            for (at, value) in [(0x18, eax), (0x1c, ebx), (0x20, ecx), (0x24, edx)] {
                put(line, at, &value.to_le_bytes());
            }
        }
        page
    }

    /// The lines of a page, as the firmware checks them at launch: at most 64, and reserved fields are 0.
    pub fn from_bytes(page: &[u8; PAGE_SIZE]) -> Result<CpuidPage, FirmwareStatus> {
        let count = get_u32(page, 0) as usize;
        if count > CPUID_ENTRIES_MAX || !is_zero(&page[4..HEADER_BYTES]) {
            return Err(FirmwareStatus::InvalidParam);
        }
        let lines = page[HEADER_BYTES..].as_chunks::<ENTRY_BYTES>().0;
        let entries = lines.iter().take(count).map(|line| {
            let [eax, ebx, ecx, edx] = [0x18, 0x1c, 0x20, 0x24].map(|at| get_u32(line, at));
            let result = CpuidResult { eax, ebx, ecx, edx };
            if !is_zero(&line[0x28..]) {
                return Err(FirmwareStatus::InvalidParam);
            }
            Ok(CpuidEntry {
                leaf: get_u32(line, 0),
                subleaf: get_u32(line, 4),
                xcr0: get_u64(line, 8),
                xss: get_u64(line, 0x10),
                result,
            })
        });
        Ok(CpuidPage { entries: entries.collect::<Result<_, _>>()? })
    }
}

/// Adds the lines of one leaf.
fn collect(leaf: u32, cpuid: &mut dyn FnMut(u32, u32, u64, u64) -> CpuidResult, entries: &mut Vec<CpuidEntry>) {
    // More are not counted: no more fit into a page.
    const MOST: u32 = CPUID_ENTRIES_MAX as u32;
    let mut push = |subleaf, xcr0, result| {
        entries.push(CpuidEntry { leaf, subleaf, xcr0, xss: 0, result: published(leaf, subleaf, result) });
    };
    let first = cpuid(leaf, 0, 0, 0);
    let last = match subleaves(leaf) {
        Subleaves::None => 0,
        Subleaves::UpTo(last) => last,
        Subleaves::UpToEax => first.eax.min(MOST),
        Subleaves::UntilEaxType => (0..MOST).find(|&n| cpuid(leaf, n, 0, 0).eax & 0x1f == 0).unwrap_or(MOST),
        Subleaves::UntilEcxType => (0..MOST).find(|&n| cpuid(leaf, n, 0, 0).ecx >> 8 & 0xff == 0).unwrap_or(MOST),
        Subleaves::Xsave => {
            for subleaf in [0, 1] {
                let base = cpuid(leaf, subleaf, XSAVE_BASE_XCR0, 0);
                if base != CpuidResult::ZERO {
                    push(subleaf, XSAVE_BASE_XCR0, CpuidResult { ebx: XSAVE_BASE_BYTES, ..base });
                }
            }
            for subleaf in 2..64 {
                push(subleaf, 0, cpuid(leaf, subleaf, 0, 0));
            }
            return;
        }
    };
    for subleaf in 0..=last {
        push(subleaf, 0, cpuid(leaf, subleaf, 0, 0));
    }
}

/// A line as the firmware would take it: without what belongs to the host's processor alone, or cannot be promised to a guest
/// that does not trust its hypervisor.
fn published(leaf: u32, subleaf: u32, mut result: CpuidResult) -> CpuidResult {
    match (leaf, subleaf) {
        (1, _) => {
            // TSC-deadline timer; there is a hypervisor.
            result.ecx &= !(1 << 24);
            result.ecx |= 1 << 31;
        }
        (7, 0) => {
            // TSC_ADJUST; mitigations of another vendor's processors.
            result.ebx &= !(1 << 1);
            result.edx = 0;
        }
        // Speculative store bypass through a virtual SPEC_CTRL.
        (0x8000_0008, _) => result.ebx &= !(1 << 25),
        // SMM page configuration lock.
        (0x8000_0021, _) => {
            result.eax &= !(1 << 9);
            result.ecx = 0;
        }
        _ => {}
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor with these leaves; other leaves are 0.
    fn model(leaf: u32, subleaf: u32, xcr0: u64, _xss: u64) -> CpuidResult {
        let all = CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
        let eax = |eax| CpuidResult { eax, ..CpuidResult::ZERO };
        match (leaf, subleaf) {
            (0, _) => eax(0xd),
            (1, _) => CpuidResult { ecx: all.ecx & !(1 << 31), ..all },
            (7, 0) => CpuidResult { eax: 1, ..all },
            (7, 1) => eax(5),
            (0xb, 0) => CpuidResult { ecx: 0x100, ..CpuidResult::ZERO },
            (0xb, 1) => CpuidResult { ecx: 0x201, ..CpuidResult::ZERO },
            // The size depends on XCR0, which the base lines must not show.
            (0xd, 0 | 1) => CpuidResult { eax: 7, ebx: 1000 + xcr0 as u32, ecx: 832, edx: 0 },
            (0xd, 2) => CpuidResult { eax: 256, ebx: 576, ..CpuidResult::ZERO },
            (0x8000_0000, _) => eax(0x8000_0021),
            (0x8000_0008 | 0x8000_0021, _) => all,
            (0x8000_001d, 0..3) => eax(0x121 + subleaf),
            (0x8000_001f, _) => CpuidResult { eax: 0x1a, ebx: 1 << 31 | 51, ..CpuidResult::ZERO },
            _ => CpuidResult::ZERO,
        }
    }

    fn find(page: &CpuidPage, leaf: u32, subleaf: u32) -> Option<CpuidEntry> {
        page.entries().iter().copied().find(|entry| (entry.leaf, entry.subleaf) == (leaf, subleaf))
    }

    #[test]
    fn every_leaf_that_says_something_has_one_line() {
        let page = CpuidPage::build(&mut model).unwrap();
        let lines: Vec<_> = page.entries().iter().map(|entry| (entry.leaf, entry.subleaf)).collect();
        let expected = [
            (0, 0),
            (1, 0),
            (7, 0),
            (7, 1),
            (0xb, 0),
            (0xb, 1),
            (0xd, 0),
            (0xd, 1),
            (0xd, 2),
            (0x8000_0000, 0),
            (0x8000_0008, 0),
            (0x8000_001d, 0),
            (0x8000_001d, 1),
            (0x8000_001d, 2),
            (0x8000_001f, 0),
            (0x8000_0021, 0),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn bits_that_a_guest_must_not_rely_on_are_clear_and_that_of_the_hypervisor_is_set() {
        let page = CpuidPage::build(&mut model).unwrap();
        let line = |leaf| find(&page, leaf, 0).unwrap().result;
        assert_eq!(line(1).ecx, !(1 << 24));
        assert_eq!((line(7).ebx, line(7).edx), (!(1 << 1), 0));
        assert_eq!(line(0x8000_0008).ebx, !(1 << 25));
        assert_eq!((line(0x8000_0021).eax, line(0x8000_0021).ecx), (!(1 << 9), 0));
        assert_eq!(line(0x8000_001f).ebx, 1 << 31 | 51);
    }

    #[test]
    fn the_base_of_the_xsave_area_is_that_of_x87_and_sse() {
        let page = CpuidPage::build(&mut model).unwrap();
        for subleaf in [0, 1] {
            let entry = find(&page, 0xd, subleaf).unwrap();
            assert_eq!((entry.xcr0, entry.xss, entry.result.ebx), (1, 0, 0x240));
        }
        assert_eq!(find(&page, 0xd, 2).unwrap().xcr0, 0);
    }

    #[test]
    fn a_processor_that_is_no_snp_guests_makes_no_page() {
        for missing in [1, 3, 4] {
            let mut cpuid = |leaf, subleaf, xcr0, xss| {
                let result = model(leaf, subleaf, xcr0, xss);
                if leaf == 0x8000_001f { CpuidResult { eax: result.eax & !(1 << missing), ..result } } else { result }
            };
            let eax = 0x1a & !(1 << missing);
            assert_eq!(CpuidPage::build(&mut cpuid), Err(CpuidPageError::NotSnp { eax }));
        }
    }

    #[test]
    fn leaves_without_an_end_are_too_many_and_do_not_hang() {
        let all = CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
        let page = CpuidPage::build(&mut |_, _, _, _| all);
        assert!(matches!(page, Err(CpuidPageError::TooManyEntries { entries }) if entries > 64));
    }

    #[test]
    fn a_page_is_read_back_and_a_wrong_one_refused() {
        let page = CpuidPage::build(&mut model).unwrap();
        let bytes = page.to_bytes();
        assert_eq!(CpuidPage::from_bytes(&bytes), Ok(page.clone()));
        let (first, last) = (HEADER_BYTES, HEADER_BYTES + (page.entries().len() - 1) * ENTRY_BYTES);
        for at in [4, 8, 15, first + 0x28, last + 0x2f] {
            let mut wrong = bytes.clone();
            wrong[at] = 1;
            assert_eq!(CpuidPage::from_bytes(&wrong), Err(FirmwareStatus::InvalidParam), "byte {at:#x}");
        }
        let mut wrong = bytes;
        wrong[0] = 65;
        assert_eq!(CpuidPage::from_bytes(&wrong), Err(FirmwareStatus::InvalidParam));
    }
}
