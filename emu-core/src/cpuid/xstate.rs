//! Leaf 0xD, and the layout of the XSAVE area that CPUID and the XSAVE instructions share.
//!
//! Source: Intel SDM vol. 1, "XSAVE-Supported Features" and "The XSAVE Area"; AMD APM vol. 2, "Legacy and Extended
//! State". The standard format places each component at a fixed offset that CPUID tells; ours leaves no gap for
//! state the models lack, so PKRU follows AVX as on AMD parts without AVX-512, for both vendors.

use super::{CpuidDynamic, CpuidResult, Feature};
use crate::cpu_model::CpuModel;
use crate::regs::Xcr0;

/// Offset of the XSAVE header (XSTATE_BV, XCOMP_BV) in the area.
pub const XSAVE_HEADER_OFFSET: u32 = 512;
/// Offset of the extended region, where the first component of the compacted format lies.
pub const XSAVE_EXTENDED_OFFSET: u32 = 576;

/// Where the compacted format puts a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the legacy region, in both formats.
    Legacy,
    /// Right after the component before it.
    Packed,
    /// At the next multiple of 64 bytes.
    Aligned64,
}

/// One state component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveComponent {
    /// Its bit in XCR0 and XSTATE_BV.
    pub state: Xcr0,
    /// Offset in the standard format.
    pub offset: u32,
    /// Length in bytes.
    pub len_bytes: u32,
    /// Its place in the compacted format.
    pub placement: Placement,
}

impl XsaveComponent {
    /// Its number: the position of its bit.
    pub const fn number(&self) -> u32 {
        self.state.bits().trailing_zeros()
    }
}

/// Every state component of the models, ascending.
///
/// x87 and SSE divide the legacy region: x87 has bytes 0 to 23 and 32 to 159, SSE has MXCSR and its mask in bytes 24
/// to 31 and the registers from 160 on. The lengths here are of the register files and what lies before them.
pub const XSAVE_COMPONENTS: &[XsaveComponent] = &[
    XsaveComponent { state: Xcr0::X87, offset: 0, len_bytes: 160, placement: Placement::Legacy },
    XsaveComponent { state: Xcr0::SSE, offset: 160, len_bytes: 256, placement: Placement::Legacy },
    XsaveComponent { state: Xcr0::AVX, offset: 576, len_bytes: 256, placement: Placement::Packed },
    XsaveComponent { state: Xcr0::PKRU, offset: 832, len_bytes: 8, placement: Placement::Packed },
];

const fn well_formed(components: &[XsaveComponent]) -> bool {
    let mut i = 0;
    while i < components.len() {
        let one = &components[i];
        let (start, end) = match one.placement {
            Placement::Legacy => (0, XSAVE_HEADER_OFFSET),
            Placement::Packed | Placement::Aligned64 => (XSAVE_EXTENDED_OFFSET, u32::MAX),
        };
        if one.state.bits().count_ones() != 1 || one.offset < start || one.offset + one.len_bytes > end {
            return false;
        }
        if i > 0 {
            let before = &components[i - 1];
            if before.number() >= one.number() || before.offset + before.len_bytes > one.offset {
                return false;
            }
        }
        i += 1;
    }
    true
}
const _: () = assert!(well_formed(XSAVE_COMPONENTS), "components ascend, do not overlap and stay in their region");

/// Length of a standard-format area with the components in `states`: header and legacy region are always there.
pub fn xsave_standard_len(states: Xcr0) -> u32 {
    XSAVE_COMPONENTS
        .iter()
        .filter(|one| states.contains(one.state))
        .fold(XSAVE_EXTENDED_OFFSET, |end, one| end.max(one.offset + one.len_bytes))
}

/// Offset of `component` in a compacted area whose XCOMP_BV lists `states`; `None` when it is not listed.
pub fn xsave_compacted_offset(states: Xcr0, component: &XsaveComponent) -> Option<u32> {
    if component.placement == Placement::Legacy {
        return Some(component.offset);
    }
    if !states.contains(component.state) {
        return None;
    }
    let end = compacted_end(states, component.number());
    Some(placed(end, component.placement))
}

/// Length of a compacted area whose XCOMP_BV lists `states`.
pub fn xsave_compacted_len(states: Xcr0) -> u32 {
    compacted_end(states, u64::BITS)
}

/// End of the listed components numbered below `limit`.
fn compacted_end(states: Xcr0, limit: u32) -> u32 {
    XSAVE_COMPONENTS
        .iter()
        .filter(|one| one.placement != Placement::Legacy && states.contains(one.state) && one.number() < limit)
        .fold(XSAVE_EXTENDED_OFFSET, |end, one| placed(end, one.placement) + one.len_bytes)
}

const fn placed(end: u32, placement: Placement) -> u32 {
    match placement {
        Placement::Aligned64 => end.next_multiple_of(64),
        Placement::Packed | Placement::Legacy => end,
    }
}

/// Leaf 0xD.
pub(super) fn leaf(model: &CpuModel, now: &CpuidDynamic, subleaf: u32) -> CpuidResult {
    let allowed = model.xcr0_allowed();
    if !model.has(Feature::Xsave) {
        return CpuidResult::ZERO;
    }
    match subleaf {
        0 => CpuidResult {
            eax: allowed.bits() as u32,
            ebx: xsave_standard_len(now.xcr0),
            ecx: xsave_standard_len(allowed),
            edx: (allowed.bits() >> 32) as u32,
        },
        // ECX and EDX would list the states of IA32_XSS: there are none.
        1 if model.has(Feature::Xsavec) => {
            CpuidResult { ebx: xsave_compacted_len(now.xcr0 | now.xss), ..CpuidResult::ZERO }
        }
        _ => XSAVE_COMPONENTS
            .iter()
            .find(|one| one.placement != Placement::Legacy && one.number() == subleaf && allowed.contains(one.state))
            .map_or(CpuidResult::ZERO, |one| CpuidResult {
                eax: one.len_bytes,
                ebx: one.offset,
                ecx: if one.placement == Placement::Aligned64 { 1 << 1 } else { 0 },
                edx: 0,
            }),
    }
}
