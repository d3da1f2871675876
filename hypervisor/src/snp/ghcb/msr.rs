//! The protocol over the GHCB MSR (C001_0130), for guests that have no GHCB page yet.
//!
//! Source: GHCB specification, "GHCB MSR Protocol"; Linux `arch/x86/include/asm/sev-common.h`. Bits 11:0 say what the
//! rest is. 0 there is the guest physical address of a GHCB page.

use emu_core::Gfn;
use emu_core::cpuid::Reg;
use emu_core::sev::ghcb_sev_info;

use super::action::TerminationReason;
use super::{GhcbConfig, VERSION_MAX, VERSION_MIN};

const INFO_BITS: u64 = 0xfff;
/// A GFN as the protocol carries it: 52 bits in 63:12. All ones mean none.
const NO_GFN: u64 = !INFO_BITS;

/// Codes of bits 11:0. An answer's is that of its request plus one, except for SEV information and termination.
mod code {
    pub(super) const SEV_INFO_REQUEST: u64 = 0x002;
    pub(super) const CPUID_REQUEST: u64 = 0x004;
    pub(super) const CPUID_RESPONSE: u64 = 0x005;
    pub(super) const AP_RESET_HOLD_REQUEST: u64 = 0x006;
    pub(super) const AP_RESET_HOLD_RESPONSE: u64 = 0x007;
    pub(super) const PREFERRED_GPA_REQUEST: u64 = 0x010;
    pub(super) const PREFERRED_GPA_RESPONSE: u64 = 0x011;
    pub(super) const REGISTER_GPA_REQUEST: u64 = 0x012;
    pub(super) const REGISTER_GPA_RESPONSE: u64 = 0x013;
    pub(super) const PAGE_STATE_REQUEST: u64 = 0x014;
    pub(super) const PAGE_STATE_RESPONSE: u64 = 0x015;
    pub(super) const RUN_VMPL_REQUEST: u64 = 0x016;
    pub(super) const RUN_VMPL_RESPONSE: u64 = 0x017;
    pub(super) const FEATURES_REQUEST: u64 = 0x080;
    pub(super) const FEATURES_RESPONSE: u64 = 0x081;
    pub(super) const TERMINATE: u64 = 0x100;
}

/// What a value of the MSR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MsrRequest {
    /// It is the address of a GHCB page, perhaps 0.
    Page,
    SevInfo,
    Cpuid {
        leaf: u32,
        register: Reg,
    },
    ApResetHold,
    PreferredGpa,
    RegisterGpa(Gfn),
    /// `operation` is not yet known to be one.
    PageState {
        gfn: Gfn,
        operation: u8,
    },
    /// Which level does not matter: none but the one that runs is offered.
    RunVmpl,
    Features,
    Terminate(TerminationReason),
    /// Not of the protocol, or not offered: the MSR keeps its value.
    Unknown,
}

impl MsrRequest {
    pub(super) fn decode(value: u64) -> MsrRequest {
        match value & INFO_BITS {
            0 => MsrRequest::Page,
            code::SEV_INFO_REQUEST => MsrRequest::SevInfo,
            code::CPUID_REQUEST => MsrRequest::Cpuid {
                leaf: (value >> 32) as u32,
                register: [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx][(value >> 30 & 3) as usize],
            },
            code::AP_RESET_HOLD_REQUEST => MsrRequest::ApResetHold,
            code::PREFERRED_GPA_REQUEST => MsrRequest::PreferredGpa,
            code::REGISTER_GPA_REQUEST => MsrRequest::RegisterGpa(Gfn::new(value >> 12)),
            code::PAGE_STATE_REQUEST => MsrRequest::PageState {
                gfn: Gfn::new(value >> 12 & ((1 << 40) - 1)),
                operation: (value >> 52 & 0xf) as u8,
            },
            code::RUN_VMPL_REQUEST => MsrRequest::RunVmpl,
            code::FEATURES_REQUEST => MsrRequest::Features,
            code::TERMINATE => {
                MsrRequest::Terminate(TerminationReason { set: (value >> 12 & 0xf) as u8, code: (value >> 16) as u8 })
            }
            _ => MsrRequest::Unknown,
        }
    }
}

/// Value of the MSR after RESET, and the answer about SEV: versions and the place of the C-bit.
pub(super) fn sev_info(config: &GhcbConfig) -> u64 {
    ghcb_sev_info(VERSION_MAX, VERSION_MIN, config.c_bit)
}

/// What the hypervisor offers.
pub(super) fn features(config: &GhcbConfig) -> u64 {
    config.features.bits() << 12 | code::FEATURES_RESPONSE
}

/// One register of a CPUID leaf.
pub(super) fn cpuid(register: Reg, value: u32) -> u64 {
    let number = match register {
        Reg::Eax => 0,
        Reg::Ebx => 1,
        Reg::Ecx => 2,
        Reg::Edx => 3,
    };
    u64::from(value) << 32 | number << 30 | code::CPUID_RESPONSE
}

/// Where the hypervisor would like the page: it does not mind.
pub(super) fn preferred_gpa() -> u64 {
    NO_GFN | code::PREFERRED_GPA_RESPONSE
}

/// The page is registered.
pub(super) fn registered(gfn: Gfn) -> u64 {
    gfn.raw() << 12 | code::REGISTER_GPA_RESPONSE
}

/// How the wait for a start ended: as KVM has it, 1 for a start and 0 for anything else.
pub(super) fn reset_hold_over(started: bool) -> u64 {
    u64::from(started) << 12 | code::AP_RESET_HOLD_RESPONSE
}

/// The level is not run: several levels are not announced. Any error in 63:32 will do.
pub(super) const RUN_VMPL_FAILED: u64 = 1 << 32 | code::RUN_VMPL_RESPONSE;

/// The page's state is changed.
pub(super) const PAGE_STATE_DONE: u64 = code::PAGE_STATE_RESPONSE;
/// It is not: any error in 63:32 will do, KVM sets the highest bit.
pub(super) const PAGE_STATE_FAILED: u64 = 1 << 63 | code::PAGE_STATE_RESPONSE;
