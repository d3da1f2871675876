//! The one declaration of all feature bits: CPUID tables and the `Feature` enum follow from it.
//!
//! Source: AMD APM vol. 3, "Obtaining Processor Information Via the CPUID Instruction"; Intel SDM vol. 2, "CPUID";
//! where the two differ the reason says so.
//!
//! Speculation does not exist in this machine, so no guest gains by defending against it. The bits are chosen such
//! that Linux picks the cheapest path for each known weakness: "not affected" bits are on, and automatic IBRS (AMD)
//! or enhanced IBRS (Intel) is there, which makes it use plain indirect branches in place of retpolines. BHI_CTRL is
//! there because Linux distrusts the "not affected" bit of that weakness and would run a loop of branches at every
//! system call; with it, one bit in SPEC_CTRL is set once. No barrier is offered that Linux would then execute at
//! context switches, except IBPB on Intel, which shares its bit with IBRS.
//!
//! Left out on purpose: leaves that advertise only what is not modelled (monitoring, trace, SGX) are answered with
//! zeros by [`super::LEAVES`] and have no table here.

use super::bits::{
    Bit, Mirror, Reg, Register, Why::*, ascending, cpuid_registers, features_match_reasons, named_feature,
};
use crate::cpu_model::Vendor::{Amd, Intel};

const AVX512: &str = "the models stop at x86-64-v3: no ZMM state";
const PMU: &str = "no performance counters: their values would be ours, not the processor's";
const SGX: &str = "no enclaves";
const SPECULATION: &str = "there is no speculation to control, and Linux would pay for the switch";
const TSX: &str = "no transactional memory";
const POWER: &str = "no power or thermal management: one frequency";
const SVM: &str = "hardware virtualisation for guests is not executed yet";
const SEV: &str = "only guests of encrypted virtualisation, and the machine beneath them, have it";
const SEV_OPTION: &str = "an option of encrypted virtualisation that no guest in use needs";
const BEYOND_V3: &str = "beyond x86-64-v3";
const RETIRED: &str = "retired extension";

cpuid_registers! {
    /// Leaf 1, ECX.
    LEAF_1_ECX = (0x1, 0) Ecx "leaf 1 ECX" {
        0 [Sse3] "SSE3" Emulated;
        1 [Pclmulqdq] "PCLMULQDQ" Emulated;
        2 "DTES64" Absent("no debug store");
        3 "MONITOR" Absent("HLT is the only idle state we model");
        4 "DS-CPL" Absent("no debug store");
        5 "VMX" Absent(SVM);
        6 "SMX" Absent("no trusted execution");
        7 "EIST" Absent(POWER);
        8 "TM2" Absent(POWER);
        9 [Ssse3] "SSSE3" Emulated;
        10 "CNXT-ID" Absent("no L1 context mode");
        11 "SDBG" Absent("no silicon debug");
        12 [Fma] "FMA" Emulated;
        13 [Cx16] "CMPXCHG16B" Emulated;
        14 "xTPR" Absent("task priority messages are not on a bus");
        15 "PDCM" Absent(PMU);
        17 [Pcid] "PCID" Emulated;
        18 "DCA" Absent("no direct cache access");
        19 [Sse41] "SSE4.1" Emulated;
        20 [Sse42] "SSE4.2" Emulated;
        21 [X2apic] "x2APIC" Emulated;
        22 [Movbe] "MOVBE" Emulated;
        23 [Popcnt] "POPCNT" Emulated;
        24 [TscDeadline] "TSC-Deadline" Emulated;
        25 [Aes] "AES" Emulated;
        26 [Xsave] "XSAVE" Emulated;
        27 "OSXSAVE" Mirrors(Mirror::Cr4Osxsave);
        28 [Avx] "AVX" Emulated;
        29 [F16c] "F16C" Emulated;
        30 [Rdrand] "RDRAND" Emulated;
        31 [Hypervisor] "HYPERVISOR" Emulated;
    }

    /// Leaf 1, EDX.
    LEAF_1_EDX = (0x1, 0) Edx "leaf 1 EDX" {
        0 [Fpu] "FPU" Emulated;
        1 "VME" Absent("virtual-8086 tasks run without the redirection bitmap and virtual IF; 64-bit systems use neither");
        2 [De] "DE" Emulated;
        3 [Pse] "PSE" Emulated;
        4 [Tsc] "TSC" Emulated;
        5 [Msr] "MSR" Emulated;
        6 [Pae] "PAE" Emulated;
        7 [Mce] "MCE" Emulated;
        8 [Cx8] "CMPXCHG8B" Emulated;
        9 [Apic] "APIC" Mirrors(Mirror::ApicBaseEn);
        11 [Sep] "SEP" Emulated;
        12 [Mtrr] "MTRR" Emulated;
        13 [Pge] "PGE" Emulated;
        14 [Mca] "MCA" Emulated;
        15 [Cmov] "CMOV" Emulated;
        16 [Pat] "PAT" Emulated;
        17 [Pse36] "PSE-36" Emulated;
        18 "PSN" Absent("no serial number: runs would not be alike");
        19 [Clfsh] "CLFSH" Emulated;
        21 "DS" Absent("no debug store");
        22 "ACPI" Absent(POWER);
        23 [Mmx] "MMX" Emulated;
        24 [Fxsr] "FXSR" Emulated;
        25 [Sse] "SSE" Emulated;
        26 [Sse2] "SSE2" Emulated;
        27 [SelfSnoop] "SS" Vendor(Intel);
        28 "HTT" Mirrors(Mirror::SeveralCpus);
        29 "TM" Absent(POWER);
        31 "PBE" Absent("no break events");
    }

    /// Leaf 6, EAX.
    LEAF_6_EAX = (0x6, 0) Eax "leaf 6 EAX" {
        0 "DTS" Absent(POWER);
        1 "Turbo Boost" Absent(POWER);
        2 [Arat] "ARAT" Emulated;
        4 "PLN" Absent(POWER);
        5 "ECMD" Absent(POWER);
        6 "PTM" Absent(POWER);
        7 "HWP" Absent(POWER);
    }

    /// Leaf 6, ECX.
    LEAF_6_ECX = (0x6, 0) Ecx "leaf 6 ECX" {
        0 "APERFMPERF" Absent("one frequency: the ratio would always be 1");
        3 "EPB" Absent(POWER);
    }

    /// Leaf 7 subleaf 0, EBX.
    LEAF_7_EBX = (0x7, 0) Ebx "leaf 7 EBX" {
        0 [Fsgsbase] "FSGSBASE" Emulated;
        1 [TscAdjust] "TSC_ADJUST" Vendor(Intel);
        2 "SGX" Absent(SGX);
        3 [Bmi1] "BMI1" Emulated;
        4 "HLE" Absent(TSX);
        5 [Avx2] "AVX2" Emulated;
        6 "FDP_EXCPTN_ONLY" Absent("the x87 data pointer follows every instruction with a memory operand");
        7 [Smep] "SMEP" Emulated;
        8 [Bmi2] "BMI2" Emulated;
        9 [Erms] "ERMS" Emulated;
        10 [Invpcid] "INVPCID" Emulated;
        11 "RTM" Absent(TSX);
        12 "RDT-M" Absent("no cache to monitor");
        13 "ZERO_FCS_FDS" Absent("x87 keeps the code and data selectors");
        14 "MPX" Absent(RETIRED);
        15 "RDT-A" Absent("no cache to allocate");
        16 "AVX512F" Absent(AVX512);
        17 "AVX512DQ" Absent(AVX512);
        18 [Rdseed] "RDSEED" Emulated;
        19 [Adx] "ADX" Emulated;
        20 [Smap] "SMAP" Emulated;
        21 "AVX512_IFMA" Absent(AVX512);
        23 [Clflushopt] "CLFLUSHOPT" Emulated;
        24 [Clwb] "CLWB" Emulated;
        25 "Intel PT" Absent("no processor trace: our own events do that work");
        26 "AVX512PF" Absent(AVX512);
        27 "AVX512ER" Absent(AVX512);
        28 "AVX512CD" Absent(AVX512);
        29 [Sha] "SHA" Emulated;
        30 "AVX512BW" Absent(AVX512);
        31 "AVX512VL" Absent(AVX512);
    }

    /// Leaf 7 subleaf 0, ECX.
    LEAF_7_ECX = (0x7, 0) Ecx "leaf 7 ECX" {
        0 "PREFETCHWT1" Absent(RETIRED);
        1 "AVX512_VBMI" Absent(AVX512);
        2 [Umip] "UMIP" Emulated;
        3 [Pku] "PKU" Emulated;
        4 "OSPKE" Mirrors(Mirror::Cr4Pke);
        5 "WAITPKG" Absent("HLT is the only idle state we model");
        6 "AVX512_VBMI2" Absent(AVX512);
        7 "CET_SS" Absent("no shadow stacks yet");
        8 "GFNI" Absent(BEYOND_V3);
        9 "VAES" Absent(BEYOND_V3);
        10 "VPCLMULQDQ" Absent(BEYOND_V3);
        11 "AVX512_VNNI" Absent(AVX512);
        12 "AVX512_BITALG" Absent(AVX512);
        13 "TME_EN" Absent("no total memory encryption");
        14 "AVX512_VPOPCNTDQ" Absent(AVX512);
        16 [La57] "LA57" Emulated;
        22 [Rdpid] "RDPID" Emulated;
        23 "KL" Absent("no key locker");
        24 "BUS_LOCK_DETECT" Absent("there is no bus to lock");
        25 "CLDEMOTE" Absent("no cache to demote in");
        27 "MOVDIRI" Absent(BEYOND_V3);
        28 "MOVDIR64B" Absent(BEYOND_V3);
        29 "ENQCMD" Absent("no accelerator with a work queue");
        30 "SGX_LC" Absent(SGX);
        31 [Pks] "PKS" VendorOptional(Intel, "no guest kernel in use turns it on");
    }

    /// Leaf 7 subleaf 0, EDX.
    LEAF_7_EDX = (0x7, 0) Edx "leaf 7 EDX" {
        1 "SGX-KEYS" Absent(SGX);
        2 "AVX512_4VNNIW" Absent(AVX512);
        3 "AVX512_4FMAPS" Absent(AVX512);
        4 [Fsrm] "FSRM" Emulated;
        5 "UINTR" Absent("no user interrupts");
        8 "AVX512_VP2INTERSECT" Absent(AVX512);
        9 "SRBDS_CTRL" Absent(SPECULATION);
        10 "MD_CLEAR" Absent("VERW clears no buffer, because there is none");
        11 "RTM_ALWAYS_ABORT" Absent(TSX);
        13 "RTM_FORCE_ABORT" Absent(TSX);
        14 "SERIALIZE" Absent(BEYOND_V3);
        15 "HYBRID" Absent("all processors are alike");
        16 "TSXLDTRK" Absent(TSX);
        18 "PCONFIG" Absent("no total memory encryption");
        19 "ARCH_LBR" Absent(PMU);
        20 "CET_IBT" Absent("no indirect branch tracking yet");
        22 "AMX-BF16" Absent(AVX512);
        23 "AVX512_FP16" Absent(AVX512);
        24 "AMX-TILE" Absent(AVX512);
        25 "AMX-INT8" Absent(AVX512);
        26 [SpecCtrl] "IBRS and IBPB" Vendor(Intel);
        27 "STIBP" Absent(SPECULATION);
        28 "L1D_FLUSH" Absent("no cache to flush");
        29 [ArchCapabilities] "ARCH_CAPABILITIES" Vendor(Intel);
        30 "CORE_CAPABILITIES" Absent("nothing in that register is modelled");
        31 "SSBD" Absent(SPECULATION);
    }

    /// Leaf 7 subleaf 1, EAX.
    LEAF_7_1_EAX = (0x7, 1) Eax "leaf 7 subleaf 1 EAX" {
        0 "SHA512" Absent(BEYOND_V3);
        1 "SM3" Absent(BEYOND_V3);
        2 "SM4" Absent(BEYOND_V3);
        3 "RAO-INT" Absent(BEYOND_V3);
        4 "AVX-VNNI" Absent(BEYOND_V3);
        5 "AVX512_BF16" Absent(AVX512);
        6 "LASS" Absent("linear address-space separation is not modelled");
        7 "CMPCCXADD" Absent(BEYOND_V3);
        8 "ArchPerfmonExt" Absent(PMU);
        10 "FZRM" Absent("ERMS and FSRM already choose REP MOVS and STOS");
        11 "FSRS" Absent("ERMS and FSRM already choose REP MOVS and STOS");
        12 "FSRC" Absent("ERMS and FSRM already choose REP MOVS and STOS");
        17 "FRED" Absent("events are delivered through the IDT");
        18 "LKGS" Absent("belongs to FRED");
        19 "WRMSRNS" Absent(BEYOND_V3);
        21 "AMX-FP16" Absent(AVX512);
        22 "HRESET" Absent("no predictor history to reset");
        23 "AVX-IFMA" Absent(BEYOND_V3);
        26 "LAM" Absent("linear address masking is not modelled");
        27 "MSRLIST" Absent(BEYOND_V3);
    }

    /// Leaf 7 subleaf 2, EDX.
    LEAF_7_2_EDX = (0x7, 2) Edx "leaf 7 subleaf 2 EDX" {
        0 "PSFD" Absent(SPECULATION);
        1 "IPRED_CTRL" Absent(SPECULATION);
        2 "RRSBA_CTRL" Absent(SPECULATION);
        3 "DDPD_U" Absent(SPECULATION);
        4 [BhiCtrl] "BHI_CTRL" Vendor(Intel);
        5 [McdtNo] "MCDT_NO" Vendor(Intel);
    }

    /// Leaf 0xD subleaf 1, EAX.
    LEAF_D_1_EAX = (0xd, 1) Eax "leaf 0xD subleaf 1 EAX" {
        0 [Xsaveopt] "XSAVEOPT" Emulated;
        1 [Xsavec] "XSAVEC" Emulated;
        2 [Xgetbv1] "XGETBV with ECX=1" Emulated;
        3 [Xsaves] "XSAVES" Optional("no supervisor state component exists, and XSAVEC saves the rest");
        4 "XFD" Absent("no component large enough to be enabled on demand");
    }

    /// Leaf 8000_0001, ECX.
    LEAF_8000_0001_ECX = (0x8000_0001, 0) Ecx "leaf 8000_0001 ECX" {
        0 [Lahf64] "LahfSahf" Emulated;
        1 "CmpLegacy" Mirrors(Mirror::SeveralCores);
        2 "SVM" Absent(SVM);
        3 "ExtApicSpace" Absent("the APIC has no AMD extension registers");
        4 "AltMovCr8" Absent("LOCK MOV CR0 stays undefined");
        5 [Abm] "ABM" Emulated;
        6 "SSE4A" Absent("no x86-64 level asks for it");
        7 "MisAlignSse" Absent("MXCSR.MM stays reserved");
        8 [Prefetchw] "3DNowPrefetch" Emulated;
        9 "OSVW" Absent("the model has no errata to tell of");
        10 "IBS" Absent(PMU);
        11 "XOP" Absent(RETIRED);
        12 "SKINIT" Absent("no secure loader");
        13 "WDT" Absent("no northbridge watchdog");
        15 "LWP" Absent(RETIRED);
        16 "FMA4" Absent(RETIRED);
        17 "TCE" Absent("INVLPG never keeps an upper-level entry that TCE would let it keep");
        21 "TBM" Absent(RETIRED);
        22 [TopologyExtensions] "TopologyExtensions" Vendor(Amd);
        23 "PerfCtrExtCore" Absent(PMU);
        24 "PerfCtrExtNB" Absent(PMU);
        26 "DataBkptExt" Absent("breakpoints have no address masks");
        27 "PerfTsc" Absent(PMU);
        28 "PerfCtrExtLLC" Absent(PMU);
        29 "MONITORX" Absent("HLT is the only idle state we model");
        30 "AddrMaskExt" Absent("breakpoints have no address masks");
    }

    /// Leaf 8000_0001, EDX. AMD repeats most of leaf 1 EDX here.
    LEAF_8000_0001_EDX = (0x8000_0001, 0) Edx "leaf 8000_0001 EDX" {
        0 "FPU" Copies(Feature::Fpu);
        1 "VME" Absent("as in leaf 1");
        2 "DE" Copies(Feature::De);
        3 "PSE" Copies(Feature::Pse);
        4 "TSC" Copies(Feature::Tsc);
        5 "MSR" Copies(Feature::Msr);
        6 "PAE" Copies(Feature::Pae);
        7 "MCE" Copies(Feature::Mce);
        8 "CMPXCHG8B" Copies(Feature::Cx8);
        9 "APIC" Copies(Feature::Apic);
        11 [Syscall] "SysCallSysRet" Emulated;
        12 "MTRR" Copies(Feature::Mtrr);
        13 "PGE" Copies(Feature::Pge);
        14 "MCA" Copies(Feature::Mca);
        15 "CMOV" Copies(Feature::Cmov);
        16 "PAT" Copies(Feature::Pat);
        17 "PSE36" Copies(Feature::Pse36);
        20 [Nx] "NX" Emulated;
        22 "MmxExt" Copies(Feature::Sse);
        23 "MMX" Copies(Feature::Mmx);
        24 "FXSR" Copies(Feature::Fxsr);
        25 "FFXSR" Absent("FXSAVE always stores the XMM registers");
        26 [Page1Gb] "Page1GB" Emulated;
        27 [Rdtscp] "RDTSCP" Emulated;
        29 [LongMode] "LM" Emulated;
        30 "3DNowExt" Absent(RETIRED);
        31 "3DNow" Absent(RETIRED);
    }

    /// Leaf 8000_0007, EBX.
    LEAF_8000_0007_EBX = (0x8000_0007, 0) Ebx "leaf 8000_0007 EBX" {
        0 "McaOverflowRecov" Absent("the machine-check banks never log by themselves");
        1 "SUCCOR" Absent("the machine-check banks never log by themselves");
        3 "ScalableMca" Absent("the banks are the legacy ones");
    }

    /// Leaf 8000_0007, EDX.
    LEAF_8000_0007_EDX = (0x8000_0007, 0) Edx "leaf 8000_0007 EDX" {
        0 "TS" Absent(POWER);
        3 "TTP" Absent(POWER);
        4 "TM" Absent(POWER);
        7 "HwPstate" Absent(POWER);
        8 [InvariantTsc] "TscInvariant" Emulated;
        9 "CPB" Absent(POWER);
        10 "EffFreqRO" Absent(POWER);
    }

    /// Leaf 8000_0008, EBX. Intel defines bit 9 alone.
    LEAF_8000_0008_EBX = (0x8000_0008, 0) Ebx "leaf 8000_0008 EBX" {
        0 "CLZERO" Absent("no x86-64 level asks for it");
        1 "InstRetCntMsr" Absent(PMU);
        2 [RstrFpErrPtrs] "RstrFpErrPtrs" Vendor(Amd);
        3 "INVLPGB" Absent("a broadcast flush would reach the other processors outside the schedule");
        4 "RDPRU" Absent(PMU);
        8 "MCOMMIT" Absent("stores have no later error to wait for");
        9 [Wbnoinvd] "WBNOINVD" Emulated;
        12 "IBPB" Absent(SPECULATION);
        13 "INT_WBINVD" Absent("WBINVD takes no time that an interrupt could cut short");
        14 "IBRS" Absent(SPECULATION);
        15 "STIBP" Absent(SPECULATION);
        16 "IbrsAlwaysOn" Absent(SPECULATION);
        17 "StibpAlwaysOn" Absent(SPECULATION);
        18 "IbrsPreferred" Absent(SPECULATION);
        19 "IbrsSameMode" Absent(SPECULATION);
        20 [EferLmsleUnsupported] "EferLmsleUnsupported" Vendor(Amd);
        21 "INVLPGBnestedPages" Absent("no INVLPGB");
        24 "SSBD" Absent(SPECULATION);
        25 "SsbdVirtSpecCtrl" Absent(SPECULATION);
        26 [SsbdNotRequired] "SsbdNotRequired" Vendor(Amd);
        27 "CPPC" Absent(POWER);
        28 "PSFD" Absent(SPECULATION);
        29 [BtcNo] "BTC_NO" Vendor(Amd);
        30 "IBPB_RET" Absent(SPECULATION);
    }

    /// Leaf 8000_001F, EAX: encrypted memory (AMD APM vol. 2, "Secure Encrypted Virtualization").
    LEAF_8000_001F_EAX = (0x8000_001f, 0) Eax "leaf 8000_001F EAX" {
        0 "SME" Absent("the machine's own memory is not encrypted: only guests are");
        1 [Sev] "SEV" VendorOptional(Amd, SEV);
        2 "PageFlushMsr" Absent("caches are coherent across keys: there is nothing to flush");
        3 [SevEs] "SEV-ES" VendorOptional(Amd, SEV);
        4 [SevSnp] "SEV-SNP" VendorOptional(Amd, SEV);
        5 [Vmpl] "VMPL" VendorOptional(Amd, SEV);
        6 [Rmpquery] "RMPQUERY" VendorOptional(Amd, SEV_OPTION);
        7 "VmplSSS" Absent("no shadow stacks yet");
        8 "SecureTsc" Absent(SEV_OPTION);
        9 "TscAuxVirtualization" Absent(SEV_OPTION);
        10 [HwEnfCacheCoh] "HwEnfCacheCoh" VendorOptional(Amd, SEV);
        11 "64BitHost" Absent(SEV_OPTION);
        12 "RestrictedInjection" Absent(SEV_OPTION);
        13 "AlternateInjection" Absent(SEV_OPTION);
        14 "DebugVirt" Absent(SEV_OPTION);
        15 "PreventHostIbs" Absent(SEV_OPTION);
        16 "VTE" Absent(SEV_OPTION);
        17 "VmgexitParameter" Absent(SEV_OPTION);
        18 "VirtualTomMsr" Absent(SEV_OPTION);
        19 "IbsVirtGuestCtl" Absent(SEV_OPTION);
        21 "RMPREAD" Absent("no hypervisor in use reads the RMP by it");
        23 "SegmentedRmp" Absent(SEV_OPTION);
        24 "VmsaRegProt" Absent(SEV_OPTION);
        25 "SmtProtection" Absent(SEV_OPTION);
        26 "SecureAvic" Absent(SEV_OPTION);
        27 "AllowedSevFeatures" Absent(SEV_OPTION);
    }

    /// Leaf 8000_001F, EBX, above the numbers in bits 15:0.
    LEAF_8000_001F_EBX = (0x8000_001f, 0) Ebx "leaf 8000_001F EBX" {
        31 [CoherencySfwNo] "COHERENCY_SFW_NO" VendorOptional(Amd, SEV);
    }

    /// Leaf 8000_0021, EAX.
    LEAF_8000_0021_EAX = (0x8000_0021, 0) Eax "leaf 8000_0021 EAX" {
        0 "NoNestedDataBp" Absent("a data breakpoint inside an IRET is taken as anywhere else");
        1 "FsGsKernelGsBaseNonSerializing" Absent("no WRMSR here overtakes another instruction, and nobody asks");
        2 [LfenceAlwaysSerializing] "LFenceAlwaysSerializing" Vendor(Amd);
        3 "SmmPgCfgLock" Absent("no system-management mode");
        5 "VERW_CLEAR" Absent("VERW clears no buffer, because there is none");
        6 [NullSelectClearsBase] "NullSelectClearsBase" Vendor(Amd);
        7 "UpperAddressIgnore" Absent("linear address masking is not modelled");
        8 [AutomaticIbrs] "AutomaticIBRS" Vendor(Amd);
        9 "NoSmmCtlMsr" Absent("no system-management mode to lock");
        10 "FSRS" Absent("ERMS and FSRM already choose REP MOVS and STOS");
        11 "FSRC" Absent("ERMS and FSRM already choose REP MOVS and STOS");
        13 "PrefetchCtlMsr" Absent("no prefetcher");
        17 "CpuidUserDis" Absent("CPUID is never restricted to CPL 0");
        18 "EPSF" Absent(SPECULATION);
        24 "ERAPS" Absent("no return predictor");
        27 "SBPB" Absent(SPECULATION);
        28 "IBPB_BRTYPE" Absent(SPECULATION);
        29 [SrsoNo] "SRSO_NO" Vendor(Amd);
        30 "SRSO_USER_KERNEL_NO" Absent("SRSO_NO says more");
    }

    /// Leaf 8000_0021, ECX.
    LEAF_8000_0021_ECX = (0x8000_0021, 0) Ecx "leaf 8000_0021 ECX" {
        1 [TsaSqNo] "TSA_SQ_NO" Vendor(Amd);
        2 [TsaL1No] "TSA_L1_NO" Vendor(Amd);
    }
}
