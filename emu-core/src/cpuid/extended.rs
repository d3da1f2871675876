//! Leaves 8000_0000 to 8000_0004, 8000_0008 and 8000_001F.

use super::{CpuidDynamic, CpuidResult, Feature, basic, chars, topology};
use crate::cpu_model::{CpuModel, Vendor};
use crate::sev::Vmpl;

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

/// Guests of encrypted virtualisation that can run at a time: the highest ASID that names one.
const ENCRYPTED_GUESTS: u32 = 1006;

/// Leaf 8000_001F: the C-bit's place, by how many bits it narrows physical addresses, privilege levels, ASIDs. Every ASID
/// is for guests with encrypted state: the lowest for guests without is above them all.
pub(super) fn encrypted_memory(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    let Some(c_bit) = model.c_bit().map(u32::from) else { return CpuidResult::ZERO };
    let reduction = u32::from(model.maxphyaddr() - model.physical_width());
    let levels = if model.has(Feature::Vmpl) { Vmpl::ALL.len() as u32 } else { 0 };
    let (ecx, edx) = if model.has(Feature::Sev) { (ENCRYPTED_GUESTS, ENCRYPTED_GUESTS + 1) } else { (0, 0) };
    CpuidResult { eax: 0, ebx: c_bit | reduction << 6 | levels << 12, ecx, edx }
}
