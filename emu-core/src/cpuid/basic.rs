//! Leaves 0, 1, 7, 0x15, 0x16 and those of the hypervisor range.
//!
//! The hypervisor leaves follow the layout all hypervisors share: signature at 4000_0000, clock rates at 4000_0010.
//! The signature is our own: a guest must not take us for a hypervisor whose paravirtual interface it then misses.

use super::{CpuidDynamic, CpuidResult, chars, topology};
use crate::cpu_model::{CpuModel, Vendor};

const HYPERVISOR_SIGNATURE: &[u8; 12] = b"BifoldBifold";
/// CLFLUSH line size in units of 8 bytes.
const CLFLUSH_QUADWORDS: u32 = 8;

/// Leaf 0.
pub(super) fn vendor(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    CpuidResult { eax: model.highest_leaves().basic, ..vendor_string(model.vendor()) }
}

/// EBX, EDX and ECX of leaf 0.
pub(super) fn vendor_string(vendor: Vendor) -> CpuidResult {
    let text = vendor.signature();
    CpuidResult { eax: 0, ebx: chars(text, 0), edx: chars(text, 4), ecx: chars(text, 8) }
}

/// Leaf 1: signature, CLFLUSH size, processor count and the 8-bit APIC ID.
pub(super) fn version(model: &CpuModel, now: &CpuidDynamic, _: u32) -> CpuidResult {
    let count = match model.vendor() {
        Vendor::Amd => now.cpu_count.get(),
        // IDs that the package may use, not processors that exist.
        Vendor::Intel => topology::addressable_ids(now),
    };
    CpuidResult {
        eax: model.signature().eax(),
        ebx: (now.apic_id & 0xff) << 24 | count.min(255) << 16 | CLFLUSH_QUADWORDS << 8,
        ..CpuidResult::ZERO
    }
}

/// Leaf 7: the highest subleaf; all else is feature bits.
pub(super) fn structured_features(model: &CpuModel, _: &CpuidDynamic, subleaf: u32) -> CpuidResult {
    let highest = match model.vendor() {
        Vendor::Amd => 1,
        Vendor::Intel => 2,
    };
    CpuidResult { eax: if subleaf == 0 { highest } else { 0 }, ..CpuidResult::ZERO }
}

/// Leaf 0x15: TSC rate as a ratio to the crystal. Linux takes the crystal for the APIC timer's input as well.
pub(super) fn tsc_clock(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    let (tsc, crystal) = (model.tsc_hz(), model.apic_hz());
    let common = gcd(tsc, crystal);
    // Both clocks are at most 4 GHz by construction, so all three fit.
    CpuidResult { eax: (crystal / common) as u32, ebx: (tsc / common) as u32, ecx: crystal as u32, edx: 0 }
}

/// Leaf 0x16: base, maximum and bus frequency in MHz.
pub(super) fn frequency(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    let mhz = (model.tsc_hz() / 1_000_000) as u32;
    CpuidResult { eax: mhz, ebx: mhz, ecx: 100, edx: 0 }
}

/// Leaf 4000_0000.
pub(super) fn hypervisor(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    CpuidResult {
        eax: model.highest_leaves().hypervisor.unwrap_or(0),
        ebx: chars(HYPERVISOR_SIGNATURE, 0),
        ecx: chars(HYPERVISOR_SIGNATURE, 4),
        edx: chars(HYPERVISOR_SIGNATURE, 8),
    }
}

/// Leaf 4000_0010: TSC and APIC timer input in kHz.
pub(super) fn timing(model: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    CpuidResult { eax: (model.tsc_hz() / 1000) as u32, ebx: (model.apic_hz() / 1000) as u32, ..CpuidResult::ZERO }
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
