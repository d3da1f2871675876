//! Leaves 0xB and 8000_001E: one package, each logical processor a core with one thread, APIC IDs from 0 up.

use super::{CpuidDynamic, CpuidResult, Feature};
use crate::cpu_model::CpuModel;

/// Bits of the APIC ID that number the cores of the package.
pub(super) fn id_bits(now: &CpuidDynamic) -> u32 {
    u32::BITS - (now.cpu_count.get() - 1).leading_zeros()
}

/// APIC IDs that the package may use: the count rounded up to a power of two.
pub(super) fn addressable_ids(now: &CpuidDynamic) -> u32 {
    1_u32.checked_shl(id_bits(now)).unwrap_or(u32::MAX)
}

/// Leaf 0xB: subleaf 0 is the thread level, subleaf 1 the core level; then nothing but the ID.
pub(super) fn extended(_: &CpuModel, now: &CpuidDynamic, subleaf: u32) -> CpuidResult {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let (shift, count, kind) = match subleaf {
        0 => (0, 1, THREAD),
        1 => (id_bits(now), now.cpu_count.get().min(0xffff), CORE),
        _ => (0, 0, 0),
    };
    CpuidResult { eax: shift, ebx: count, ecx: kind << 8 | (subleaf & 0xff), edx: now.apic_id }
}

/// Leaf 8000_001E: extended APIC ID, core ID, one thread a core, one node.
pub(super) fn amd(model: &CpuModel, now: &CpuidDynamic, _: u32) -> CpuidResult {
    if !model.has(Feature::TopologyExtensions) {
        return CpuidResult::ZERO;
    }
    CpuidResult { eax: now.apic_id, ebx: now.apic_id & 0xff, ..CpuidResult::ZERO }
}
