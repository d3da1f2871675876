//! Leaves 8000_0000 to 8000_0004, 8000_0008 and 8000_001F.

use super::{CpuidDynamic, CpuidResult, basic, chars, topology};
use crate::cpu_model::{CpuModel, Vendor};

/// Leaf 8000_0000. Only AMD repeats its name here.
pub(super) fn vendor(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    let name = match model.vendor() {
        Vendor::Amd => basic::vendor_string(Vendor::Amd),
        Vendor::Intel => CpuidResult::ZERO,
    };
    CpuidResult { eax: model.highest_leaves().extended, ..name }
}

/// Leaf 8000_0001. Only AMD repeats the signature here.
pub(super) fn features(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    let eax = match model.vendor() {
        Vendor::Amd => model.signature().eax(),
        Vendor::Intel => 0,
    };
    CpuidResult { eax, ..CpuidResult::ZERO }
}

/// Leaves 8000_0002 to 8000_0004: a third of the brand string each.
pub(super) fn brand<const PART: usize>(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    let at = |register: usize| chars(model.brand(), 16 * PART + 4 * register);
    CpuidResult { eax: at(0), ebx: at(1), ecx: at(2), edx: at(3) }
}

/// Leaf 8000_0008: address widths, and AMD's core count with the APIC ID bits that number the cores.
pub(super) fn widths(model: &CpuModel, now: &CpuidDynamic, _: u32) -> CpuidResult {
    let ecx = match model.vendor() {
        Vendor::Amd => topology::id_bits(now).min(15) << 12 | (now.cpu_count.get() - 1).min(255),
        Vendor::Intel => 0,
    };
    CpuidResult { eax: (model.linear_width() as u32) << 8 | model.maxphyaddr() as u32, ecx, ..CpuidResult::ZERO }
}

/// Leaf 8000_001F: the C-bit's place. The feature bits in EAX say that nothing uses it yet.
pub(super) fn encrypted_memory(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    CpuidResult { ebx: model.c_bit().map_or(0, u32::from), ..CpuidResult::ZERO }
}
