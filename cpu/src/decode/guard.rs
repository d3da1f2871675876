//! What the CPU model and the mode forbid: instructions that must raise #UD or #NM whatever their operands.
//!
//! iced names the CPUID features an encoding needs; the table below maps them to the model's. An encoding that needs a
//! feature the table does not know is refused: nothing executes that CPUID does not advertise.

use emu_core::cpu_model::Vendor;
use emu_core::cpuid::Feature;
use iced_x86::{CpuidFeature, EncodingKind, Mnemonic, Register};

use super::{Context, NoDevice, Undefined};
use crate::dispatch::slow;
use crate::op::Handler;

/// Whether the model has what an encoding needs.
enum Need {
    /// Part of every processor that has 64-bit mode.
    Base,
    /// This feature.
    Has(Feature),
    /// Nothing we model.
    Never,
}

fn need(feature: CpuidFeature) -> Need {
    use CpuidFeature as C;
    use Need::{Base, Has, Never};
    match feature {
        C::INTEL8086
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        | C::X64
        | C::FPU
        | C::FPU287
        | C::FPU387
        | C::MULTIBYTENOP
        | C::PAUSE
        | C::INTEL8086_ONLY
        | C::CPUID
        | C::RDPMC
        | C::UDBG
        | C::INTEL286_ONLY => Base,
        C::TSC => Has(Feature::Tsc),
        C::MSR => Has(Feature::Msr),
        C::CX8 => Has(Feature::Cx8),
        C::CMOV => Has(Feature::Cmov),
        C::SYSCALL => Has(Feature::Syscall),
        C::SEP => Has(Feature::Sep),
        C::CLFSH => Has(Feature::Clfsh),
        C::MMX => Has(Feature::Mmx),
        C::FXSR => Has(Feature::Fxsr),
        C::SSE => Has(Feature::Sse),
        C::SSE2 => Has(Feature::Sse2),
        C::SSE3 => Has(Feature::Sse3),
        C::SSSE3 => Has(Feature::Ssse3),
        C::SSE4_1 => Has(Feature::Sse41),
        C::SSE4_2 => Has(Feature::Sse42),
        C::PCLMULQDQ => Has(Feature::Pclmulqdq),
        C::CMPXCHG16B => Has(Feature::Cx16),
        C::FMA => Has(Feature::Fma),
        C::MOVBE => Has(Feature::Movbe),
        C::POPCNT => Has(Feature::Popcnt),
        C::AES => Has(Feature::Aes),
        C::XSAVE => Has(Feature::Xsave),
        C::AVX => Has(Feature::Avx),
        C::F16C => Has(Feature::F16c),
        C::RDRAND => Has(Feature::Rdrand),
        C::FSGSBASE => Has(Feature::Fsgsbase),
        C::BMI1 => Has(Feature::Bmi1),
        C::AVX2 => Has(Feature::Avx2),
        C::BMI2 => Has(Feature::Bmi2),
        C::INVPCID => Has(Feature::Invpcid),
        C::RDSEED => Has(Feature::Rdseed),
        C::ADX => Has(Feature::Adx),
        C::SMAP => Has(Feature::Smap),
        C::CLFLUSHOPT => Has(Feature::Clflushopt),
        C::CLWB => Has(Feature::Clwb),
        C::SHA => Has(Feature::Sha),
        C::PKU => Has(Feature::Pku),
        C::RDPID => Has(Feature::Rdpid),
        C::XSAVEOPT => Has(Feature::Xsaveopt),
        C::XSAVEC => Has(Feature::Xsavec),
        C::XSAVES => Has(Feature::Xsaves),
        C::LZCNT => Has(Feature::Abm),
        C::PREFETCHW => Has(Feature::Prefetchw),
        C::RDTSCP => Has(Feature::Rdtscp),
        C::WBNOINVD => Has(Feature::Wbnoinvd),
        // No model has it; guests whose registers are encrypted find their hypervisor instead.
        C::MONITOR => Has(Feature::SevEs),
        C::SEV_SNP => Has(Feature::SevSnp),
        C::RMPQUERY => Has(Feature::Rmpquery),
        _ => Never,
    }
}

/// The handler that raises what this instruction must raise in this mode on this model, if any.
pub(crate) fn refuses(context: &Context<'_>) -> Option<Handler> {
    let insn = context.insn;
    let undefined = Some(slow::<Undefined> as Handler);
    let model = context.request.model;
    if insn.mnemonic() == Mnemonic::Ud2 || insn.mnemonic() == Mnemonic::Ud1 || insn.mnemonic() == Mnemonic::Ud0 {
        return undefined;
    }
    // The register forms of the prefetches are hints to Intel and undefined to AMD.
    use iced_x86::Code as K;
    if matches!(insn.code(), K::Reservednop_rm16_r16_0F0D | K::Reservednop_rm32_r32_0F0D | K::Reservednop_rm64_r64_0F0D)
        && model.vendor() == Vendor::Amd
    {
        return undefined;
    }
    // VMCALL and VMMCALL reach the machine whatever CPUID says of VMX and SVM: that is how a guest finds its host. VMGEXIT is
    // VMMCALL with a prefix.
    if matches!(insn.mnemonic(), Mnemonic::Vmcall | Mnemonic::Vmmcall | Mnemonic::Vmgexit) {
        return None;
    }
    let has = |feature| match need(feature) {
        Need::Base => true,
        Need::Has(feature) => model.has(feature),
        Need::Never => false,
    };
    if !insn.cpuid_features().iter().all(|&f| has(f)) {
        // Encodings that older processors execute as something harmless (hints in the NOP space).
        if matches!(insn.mnemonic(), Mnemonic::Endbr64 | Mnemonic::Endbr32 | Mnemonic::Rdsspd | Mnemonic::Rdsspq) {
            return None;
        }
        return undefined;
    }
    let key = context.request.key;
    let any_register = |test: fn(Register) -> bool| (0..insn.op_count()).any(|n| test(insn.op_register(n)));
    let vector = any_register(|r| r.is_xmm() || r.is_ymm());
    let features = insn.cpuid_features();
    match insn.encoding() {
        EncodingKind::VEX => {
            // BMI, and nothing else that matters here, is VEX without vector state.
            if features.iter().any(|f| matches!(f, CpuidFeature::BMI1 | CpuidFeature::BMI2)) {
                if !key.is_protected() { undefined } else { None }
            } else if !key.avx() || !key.is_protected() {
                undefined
            } else if key.ts() {
                Some(slow::<NoDevice>)
            } else {
                None
            }
        }
        EncodingKind::Legacy => {
            let is_sse = features.iter().any(|f| {
                use CpuidFeature as C;
                matches!(
                    f,
                    C::SSE | C::SSE2 | C::SSE3 | C::SSSE3 | C::SSE4_1 | C::SSE4_2 | C::AES | C::PCLMULQDQ | C::SHA
                )
            });
            let x87 =
                features.iter().any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387))
                    || features.contains(&CpuidFeature::INTEL8086)
                        && insn.code().op_code().op_code() >> 4 != 0
                        && is_escape(context);
            if insn.mnemonic() == Mnemonic::Wait {
                return (key.ts() && key.mp()).then_some(slow::<NoDevice>);
            }
            if is_escape(context) || x87 {
                return (key.em() || key.ts()).then_some(slow::<NoDevice>);
            }
            let mmx = any_register(|r| r.is_mm()) || insn.mnemonic() == Mnemonic::Emms;
            if is_sse && (vector || mmx || touches_mxcsr(insn.mnemonic())) {
                if key.em() || !mmx && !key.osfxsr() || mmx && vector && !key.osfxsr() {
                    return undefined;
                }
                return key.ts().then_some(slow::<NoDevice>);
            }
            if mmx {
                if key.em() {
                    return undefined;
                }
                return key.ts().then_some(slow::<NoDevice>);
            }
            match insn.mnemonic() {
                Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
                    (key.em() || key.ts()).then_some(slow::<NoDevice>)
                }
                _ if features.iter().any(|f| is_xsave(*f)) => saves_state(context),
                _ => None,
            }
        }
        // EVEX, XOP, 3DNow!: not modelled; their features are refused above.
        _ => undefined,
    }
}

fn is_xsave(feature: CpuidFeature) -> bool {
    matches!(feature, CpuidFeature::XSAVE | CpuidFeature::XSAVEOPT | CpuidFeature::XSAVEC)
}

/// The XSAVE family needs CR4.OSXSAVE, and CR0.TS clear; XGETBV and XSETBV touch no state that TS guards.
fn saves_state(context: &Context<'_>) -> Option<Handler> {
    let key = context.request.key;
    if !key.osxsave() {
        return Some(slow::<Undefined>);
    }
    let control = matches!(context.insn.mnemonic(), Mnemonic::Xgetbv | Mnemonic::Xsetbv);
    (key.ts() && !control).then_some(slow::<NoDevice> as Handler)
}

fn is_escape(context: &Context<'_>) -> bool {
    let mut bytes = context.bytes.iter().take(context.insn.len());
    bytes
        .find(|b| {
            !(matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
                || context.is_64() && matches!(b, 0x40..=0x4f))
        })
        .is_some_and(|b| matches!(b, 0xd8..=0xdf))
}

fn touches_mxcsr(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
}
