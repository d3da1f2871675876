//! Leaves 2, 4, 8000_0005, 8000_0006, 8000_0019 and 8000_001D: caches and TLBs.
//!
//! The emulator has no caches; software sizes its data structures and its scheduling domains by these numbers, so
//! they are those of an ordinary server core. All leaves read the one table [`CACHES`].

use super::{CpuidDynamic, CpuidResult, Feature, topology};
use crate::cpu_model::{CpuModel, Vendor};

const LINE_BYTES: u32 = 64;

#[derive(Clone, Copy)]
enum Kind {
    Data = 1,
    Instruction = 2,
    Unified = 3,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shared {
    ByCore,
    ByPackage,
}

struct Cache {
    level: u32,
    kind: Kind,
    kib: u32,
    ways: u32,
    shared: Shared,
}

impl Cache {
    const fn sets(&self) -> u32 {
        self.kib * 1024 / self.ways / LINE_BYTES
    }
}

const L1D: &Cache = &Cache { level: 1, kind: Kind::Data, kib: 32, ways: 8, shared: Shared::ByCore };
const L1I: &Cache = &Cache { level: 1, kind: Kind::Instruction, kib: 32, ways: 8, shared: Shared::ByCore };
const L2: &Cache = &Cache { level: 2, kind: Kind::Unified, kib: 512, ways: 8, shared: Shared::ByCore };
const L3: &Cache = &Cache { level: 3, kind: Kind::Unified, kib: 16 * 1024, ways: 16, shared: Shared::ByPackage };
const CACHES: [&Cache; 4] = [L1D, L1I, L2, L3];

/// Entries of the L1 TLBs, fully associative; and of the L2 TLBs.
const L1_TLB: u32 = 64;
const L2_DTLB: u32 = 2048;
const L2_ITLB: u32 = 512;

/// Leaf 2: Intel's descriptors send the reader to leaf 4 (0xFF) and say that prefetching is by 64 bytes (0xF0).
pub(super) fn descriptors(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    match model.vendor() {
        Vendor::Intel => CpuidResult { eax: 0x00f0_ff01, ..CpuidResult::ZERO },
        Vendor::Amd => CpuidResult::ZERO,
    }
}

/// Leaf 4, Intel.
pub(super) fn leaf_4(model: &CpuModel, now: &CpuidDynamic, subleaf: u32) -> CpuidResult {
    if model.vendor() != Vendor::Intel {
        return CpuidResult::ZERO;
    }
    let ids = topology::addressable_ids(now);
    match parameters(subleaf, ids) {
        Some(answer) => CpuidResult { eax: answer.eax | (ids.min(64) - 1) << 26, ..answer },
        None => CpuidResult::ZERO,
    }
}

/// Leaf 8000_001D, AMD: as leaf 4, but counting processors that exist.
pub(super) fn leaf_8000_001d(model: &CpuModel, now: &CpuidDynamic, subleaf: u32) -> CpuidResult {
    if !model.has(Feature::TopologyExtensions) {
        return CpuidResult::ZERO;
    }
    parameters(subleaf, now.cpu_count.get()).unwrap_or(CpuidResult::ZERO)
}

fn parameters(subleaf: u32, in_package: u32) -> Option<CpuidResult> {
    const SELF_INITIALISING: u32 = 1 << 8;
    let cache = CACHES.get(subleaf as usize)?;
    let sharers = match cache.shared {
        Shared::ByCore => 1,
        Shared::ByPackage => in_package.min(4096),
    };
    Some(CpuidResult {
        eax: cache.kind as u32 | cache.level << 5 | SELF_INITIALISING | (sharers - 1) << 14,
        ebx: (LINE_BYTES - 1) | (cache.ways - 1) << 22,
        ecx: cache.sets() - 1,
        edx: 0,
    })
}

/// Leaf 8000_0005, AMD.
pub(super) fn leaf_8000_0005(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    const FULLY: u32 = 0xff;
    if model.vendor() != Vendor::Amd {
        return CpuidResult::ZERO;
    }
    let tlb = FULLY << 24 | L1_TLB << 16 | FULLY << 8 | L1_TLB;
    let cache = |cache: &Cache| cache.kib << 24 | cache.ways << 16 | 1 << 8 | LINE_BYTES;
    CpuidResult { eax: tlb, ebx: tlb, ecx: cache(L1D), edx: cache(L1I) }
}

/// Leaf 8000_0006; Intel has only the L2 cache here.
pub(super) fn leaf_8000_0006(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    let l2 = L2.kib << 16 | ways_code(L2.ways) << 12 | LINE_BYTES;
    match model.vendor() {
        Vendor::Intel => CpuidResult { ecx: l2, ..CpuidResult::ZERO },
        Vendor::Amd => {
            let tlb = ways_code(8) << 28 | L2_DTLB << 16 | ways_code(4) << 12 | L2_ITLB;
            let l3 = (L3.kib / 512) << 18 | ways_code(L3.ways) << 12 | 1 << 8 | LINE_BYTES;
            CpuidResult { eax: tlb, ebx: tlb, ecx: l2 | 1 << 8, edx: l3 }
        }
    }
}

/// Leaf 8000_0019, AMD: the L1 TLBs hold 1 GiB pages, the L2 TLBs do not.
pub(super) fn leaf_8000_0019(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    const FULLY: u32 = 0xf;
    if !model.has(Feature::Page1Gb) {
        return CpuidResult::ZERO;
    }
    CpuidResult { eax: FULLY << 28 | L1_TLB << 16 | FULLY << 12 | L1_TLB, ..CpuidResult::ZERO }
}

/// The four-bit code of leaf 8000_0006 for a number of ways.
const fn ways_code(ways: u32) -> u32 {
    match ways {
        0..=2 => ways,
        3..=5 => 4,
        6..=15 => 6,
        16..=31 => 8,
        32..=47 => 0xa,
        _ => 0xf,
    }
}
