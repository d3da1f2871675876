//! What each feature turns on, and what it needs: the other side of the advertisement.
//!
//! [`Feature::guards`] is matched exhaustively, so a new bit does not compile before somebody has said what it
//! controls. CR4, EFER and XCR0 masks of a model are computed from here; instruction guards are named by mnemonic
//! so that the decoder's own list can be held against it.

use super::Feature;
use crate::msr::Msr;
use crate::regs::{Cr4, Efer, Xcr0};

/// One thing that exists exactly while its feature does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// These bits of CR4 may be set.
    Cr4(Cr4),
    /// These bits of EFER may be set.
    Efer(Efer),
    /// These bits of XCR0 may be set.
    Xcr0(Xcr0),
    /// These instructions exist, else #UD.
    Instructions(&'static [&'static str]),
    /// This group of instructions exists, else #UD.
    Group(&'static str),
    /// These MSRs exist, else #GP; each carries the feature in the MSR table.
    Msrs(&'static [Msr]),
    /// These bits of this MSR may be set, beside those that always may.
    MsrBits(Msr, u64),
    /// The page walker accepts this.
    Paging(&'static str),
    /// These CPUID leaves answer.
    Leaves(&'static [u32]),
    /// A promise about behaviour that is kept whether or not it is advertised.
    Promise(&'static str),
}

use Guard::{Group, Instructions, Leaves, Msrs, Paging, Promise};

/// The states XSAVE cannot be without.
const LEGACY_STATES: Xcr0 = Xcr0::X87.union(Xcr0::SSE);
/// Software sets LME, the processor LMA.
const LONG_MODE: Efer = Efer::LME.union(Efer::LMA);

impl Feature {
    /// What exists because of this feature.
    pub const fn guards(self) -> &'static [Guard] {
        match self {
            // Leaf 1.
            Feature::Sse3 => &[Group("SSE3"), Instructions(&["FISTTP"])],
            Feature::Pclmulqdq => &[Instructions(&["PCLMULQDQ", "VPCLMULQDQ"])],
            Feature::Ssse3 => &[Group("SSSE3")],
            Feature::Fma => &[Group("FMA")],
            Feature::Cx16 => &[Instructions(&["CMPXCHG16B"])],
            Feature::Pcid => &[Guard::Cr4(Cr4::PCIDE)],
            Feature::Sse41 => &[Group("SSE4.1")],
            Feature::Sse42 => &[Group("SSE4.2")],
            Feature::X2apic => &[Msrs(&[Msr::X2APIC])],
            Feature::Movbe => &[Instructions(&["MOVBE"])],
            Feature::Popcnt => &[Instructions(&["POPCNT"])],
            Feature::TscDeadline => &[Msrs(&[Msr::TSC_DEADLINE])],
            Feature::Aes => &[Group("AES")],
            Feature::Xsave => &[
                Guard::Cr4(Cr4::OSXSAVE),
                Guard::Xcr0(LEGACY_STATES),
                Instructions(&["XSAVE", "XRSTOR", "XGETBV", "XSETBV"]),
                Leaves(&[0xd]),
            ],
            Feature::Avx => &[Guard::Xcr0(Xcr0::AVX), Group("AVX")],
            Feature::F16c => &[Instructions(&["VCVTPH2PS", "VCVTPS2PH"])],
            Feature::Rdrand => &[Instructions(&["RDRAND"])],
            Feature::Hypervisor => &[Leaves(&[0x4000_0000, 0x4000_0001, 0x4000_0010])],
            Feature::Fpu => &[Group("x87")],
            Feature::De => &[Guard::Cr4(Cr4::DE)],
            Feature::Pse => &[Guard::Cr4(Cr4::PSE), Paging("PS in a PDE of legacy 32-bit paging")],
            Feature::Tsc => &[Guard::Cr4(Cr4::TSD), Instructions(&["RDTSC"]), Msrs(&[Msr::TSC])],
            Feature::Msr => &[Instructions(&["RDMSR", "WRMSR"])],
            Feature::Pae => &[Guard::Cr4(Cr4::PAE)],
            Feature::Mce => &[Guard::Cr4(Cr4::MCE)],
            Feature::Cx8 => &[Instructions(&["CMPXCHG8B"])],
            Feature::Apic => &[Msrs(&[Msr::APIC_BASE])],
            Feature::Sep => &[
                Instructions(&["SYSENTER", "SYSEXIT"]),
                Msrs(&[Msr::SYSENTER_CS, Msr::SYSENTER_ESP, Msr::SYSENTER_EIP]),
            ],
            Feature::Mtrr => &[Msrs(&[
                Msr::MTRRCAP,
                Msr::MTRR_PHYS,
                Msr::MTRR_FIX64K,
                Msr::MTRR_FIX16K,
                Msr::MTRR_FIX4K,
                Msr::MTRR_DEF_TYPE,
            ])],
            Feature::Pge => &[Guard::Cr4(Cr4::PGE)],
            Feature::Mca => &[Msrs(&[Msr::MCG_CAP, Msr::MCG_STATUS, Msr::MCG_CTL, Msr::MC_BANKS])],
            Feature::Cmov => &[Instructions(&["CMOVcc", "FCMOVcc", "FCOMI", "FUCOMI"])],
            Feature::Pat => &[Msrs(&[Msr::PAT]), Paging("the PAT bit of a leaf entry")],
            Feature::Pse36 => &[Paging("address bits 39:32 in a 4 MiB PDE")],
            Feature::Clfsh => &[Instructions(&["CLFLUSH"])],
            Feature::Mmx => &[Group("MMX")],
            Feature::Fxsr => &[Guard::Cr4(Cr4::OSFXSR), Instructions(&["FXSAVE", "FXRSTOR"])],
            Feature::Sse => &[Guard::Cr4(Cr4::OSXMMEXCPT), Group("SSE")],
            Feature::Sse2 => &[Group("SSE2")],
            Feature::SelfSnoop => &[Promise("conflicting memory types of one page stay coherent")],
            // Leaf 6.
            Feature::Arat => &[Promise("the APIC timer runs on in HLT")],
            // Leaf 7.
            Feature::Fsgsbase => {
                &[Guard::Cr4(Cr4::FSGSBASE), Instructions(&["RDFSBASE", "RDGSBASE", "WRFSBASE", "WRGSBASE"])]
            }
            Feature::TscAdjust => &[Msrs(&[Msr::TSC_ADJUST])],
            Feature::Bmi1 => &[Group("BMI1")],
            Feature::Avx2 => &[Group("AVX2")],
            Feature::Smep => &[Guard::Cr4(Cr4::SMEP)],
            Feature::Bmi2 => &[Group("BMI2")],
            Feature::Erms => &[Promise("REP MOVSB and REP STOSB move whole pages at once")],
            Feature::Invpcid => &[Instructions(&["INVPCID"])],
            Feature::Rdseed => &[Instructions(&["RDSEED"])],
            Feature::Adx => &[Instructions(&["ADCX", "ADOX"])],
            Feature::Smap => &[Guard::Cr4(Cr4::SMAP), Instructions(&["CLAC", "STAC"])],
            Feature::Clflushopt => &[Instructions(&["CLFLUSHOPT"])],
            Feature::Clwb => &[Instructions(&["CLWB"])],
            Feature::Sha => &[Group("SHA")],
            Feature::Umip => &[Guard::Cr4(Cr4::UMIP)],
            Feature::Pku => &[Guard::Cr4(Cr4::PKE), Guard::Xcr0(Xcr0::PKRU), Instructions(&["RDPKRU", "WRPKRU"])],
            Feature::La57 => &[Guard::Cr4(Cr4::LA57), Paging("five levels, 57-bit linear addresses")],
            Feature::Rdpid => &[Instructions(&["RDPID"])],
            Feature::Pks => &[Guard::Cr4(Cr4::PKS), Msrs(&[Msr::PKRS])],
            Feature::Fsrm => &[Promise("a short REP MOVSB costs no more than its bytes")],
            Feature::SpecCtrl => &[Msrs(&[Msr::SPEC_CTRL, Msr::PRED_CMD])],
            Feature::ArchCapabilities => &[Msrs(&[Msr::ARCH_CAPABILITIES])],
            Feature::BhiCtrl => &[Guard::MsrBits(Msr::SPEC_CTRL, 1 << 10)],
            Feature::McdtNo => &[Promise("the time of an instruction does not depend on its data")],
            // Leaf 0xD.
            Feature::Xsaveopt => &[Instructions(&["XSAVEOPT"])],
            Feature::Xsavec => &[Instructions(&["XSAVEC"]), Promise("XRSTOR takes the compacted format")],
            Feature::Xgetbv1 => &[Promise("XGETBV takes ECX = 1")],
            Feature::Xsaves => &[Instructions(&["XSAVES", "XRSTORS"]), Msrs(&[Msr::XSS])],
            // Extended leaves.
            Feature::Lahf64 => &[Promise("LAHF and SAHF exist in 64-bit mode")],
            Feature::Abm => &[Instructions(&["LZCNT"])],
            Feature::Prefetchw => &[Instructions(&["PREFETCH", "PREFETCHW"])],
            Feature::TopologyExtensions => &[Leaves(&[0x8000_001d, 0x8000_001e])],
            Feature::Syscall => &[
                Guard::Efer(Efer::SCE),
                Instructions(&["SYSCALL", "SYSRET"]),
                Msrs(&[Msr::STAR, Msr::LSTAR, Msr::CSTAR, Msr::FMASK]),
            ],
            Feature::Nx => &[Guard::Efer(Efer::NXE), Paging("bit 63 of an entry")],
            Feature::Page1Gb => &[Paging("PS in a PDPTE")],
            Feature::Rdtscp => &[Instructions(&["RDTSCP"]), Msrs(&[Msr::TSC_AUX])],
            Feature::LongMode => &[
                Guard::Efer(LONG_MODE),
                Instructions(&["SWAPGS"]),
                Msrs(&[Msr::FS_BASE, Msr::GS_BASE, Msr::KERNEL_GS_BASE]),
            ],
            Feature::InvariantTsc => &[Promise("the TSC runs at one rate in every state")],
            Feature::RstrFpErrPtrs => &[Promise("FXSAVE, XSAVE and their restores always move the x87 error pointers")],
            Feature::Wbnoinvd => &[Instructions(&["WBNOINVD"])],
            Feature::EferLmsleUnsupported => &[Promise("EFER.LMSLE is reserved")],
            Feature::SsbdNotRequired => &[Promise("no load bypasses an older store")],
            Feature::BtcNo => &[Promise("no branch type is predicted")],
            Feature::Sev => &[Paging("the C-bit of an entry"), Msrs(&[Msr::SEV_STATUS])],
            Feature::SevEs => &[Instructions(&["VMGEXIT"]), Msrs(&[Msr::GHCB])],
            Feature::SevSnp => &[
                Instructions(&["PVALIDATE", "RMPADJUST", "RMPUPDATE", "PSMASH"]),
                Msrs(&[Msr::RMP_BASE, Msr::RMP_END]),
            ],
            Feature::Vmpl => &[Promise("RMPADJUST gives rights to four privilege levels")],
            Feature::Rmpquery => &[Instructions(&["RMPQUERY"])],
            Feature::HwEnfCacheCoh => &[Promise("no cache holds a line under two keys")],
            Feature::CoherencySfwNo => &[Promise("no stale line of a page survives a change of its owner")],
            Feature::LfenceAlwaysSerializing => &[Promise("every instruction waits for the one before it")],
            Feature::NullSelectClearsBase => &[Promise("loading a null selector clears the segment's base")],
            Feature::AutomaticIbrs => &[Guard::Efer(Efer::AIBRSE)],
            Feature::SrsoNo => &[Promise("no return is predicted")],
            Feature::TsaSqNo => &[Promise("no transient forwarding from a store queue")],
            Feature::TsaL1No => &[Promise("no transient forwarding from the L1 cache")],
        }
    }

    /// The features without which this one has no meaning; a model cannot hold one without the other.
    pub const fn needs(self) -> &'static [Feature] {
        match self {
            Feature::Sse => &[Feature::Fxsr],
            Feature::Sse2 => &[Feature::Sse],
            Feature::Sse3 => &[Feature::Sse2],
            Feature::Ssse3 => &[Feature::Sse3],
            Feature::Sse41 => &[Feature::Ssse3],
            Feature::Sse42 => &[Feature::Sse41],
            Feature::Pclmulqdq | Feature::Aes | Feature::Sha => &[Feature::Sse2],
            Feature::Fxsr | Feature::Mmx => &[Feature::Fpu],
            Feature::Xsave => &[Feature::Fxsr],
            Feature::Avx => &[Feature::Xsave, Feature::Sse42],
            Feature::F16c | Feature::Fma | Feature::Avx2 | Feature::Bmi1 | Feature::Bmi2 => &[Feature::Avx],
            Feature::Xsaveopt | Feature::Xsavec | Feature::Xgetbv1 => &[Feature::Xsave],
            Feature::Xsaves => &[Feature::Xsavec, Feature::Xgetbv1],
            Feature::Pku => &[Feature::Xsave, Feature::LongMode],
            Feature::Pks => &[Feature::LongMode],
            Feature::LongMode => &[Feature::Pae, Feature::Pge, Feature::Msr],
            Feature::Nx => &[Feature::Pae],
            Feature::Pcid | Feature::La57 | Feature::Page1Gb | Feature::Cx16 | Feature::Fsgsbase | Feature::Lahf64 => {
                &[Feature::LongMode]
            }
            Feature::X2apic | Feature::Arat => &[Feature::Apic],
            Feature::TscDeadline => &[Feature::Apic, Feature::Tsc],
            Feature::TscAdjust | Feature::Rdtscp | Feature::InvariantTsc => &[Feature::Tsc],
            Feature::Rdpid => &[Feature::Rdtscp],
            Feature::Mca => &[Feature::Mce],
            Feature::Syscall
            | Feature::Sep
            | Feature::Mtrr
            | Feature::Pat
            | Feature::SpecCtrl
            | Feature::ArchCapabilities
            | Feature::Apic
            | Feature::Mce => &[Feature::Msr],
            Feature::AutomaticIbrs | Feature::EferLmsleUnsupported => &[Feature::LongMode],
            Feature::Sev => &[Feature::LongMode],
            Feature::SevEs | Feature::HwEnfCacheCoh | Feature::CoherencySfwNo => &[Feature::Sev],
            Feature::SevSnp => &[Feature::SevEs],
            Feature::Vmpl | Feature::Rmpquery => &[Feature::SevSnp],
            Feature::Pse36 => &[Feature::Pse],
            Feature::BhiCtrl => &[Feature::SpecCtrl],
            Feature::Clflushopt | Feature::Clwb => &[Feature::Clfsh],
            Feature::Invpcid
            | Feature::Movbe
            | Feature::Popcnt
            | Feature::Rdrand
            | Feature::Hypervisor
            | Feature::Fpu
            | Feature::De
            | Feature::Pse
            | Feature::Tsc
            | Feature::Msr
            | Feature::Pae
            | Feature::Cx8
            | Feature::Pge
            | Feature::Cmov
            | Feature::Clfsh
            | Feature::SelfSnoop
            | Feature::Smep
            | Feature::Erms
            | Feature::Rdseed
            | Feature::Adx
            | Feature::Smap
            | Feature::Umip
            | Feature::Fsrm
            | Feature::Abm
            | Feature::Prefetchw
            | Feature::TopologyExtensions
            | Feature::RstrFpErrPtrs
            | Feature::Wbnoinvd
            | Feature::SsbdNotRequired
            | Feature::BtcNo
            | Feature::LfenceAlwaysSerializing
            | Feature::NullSelectClearsBase
            | Feature::McdtNo
            | Feature::SrsoNo
            | Feature::TsaSqNo
            | Feature::TsaL1No => &[],
        }
    }
}
