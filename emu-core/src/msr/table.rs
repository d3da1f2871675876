//! The table of MSRs, ascending, and the constants that name them.
//!
//! Performance counters, power and thermal registers, OSVW and trace registers are absent with their CPUID bits, so
//! software does not touch them or probes with a handler for #GP. Registers that Linux (6.1 and 6.12) reads without
//! such a handler once the vendor and family say that they exist are here: on AMD HWCR, SYSCFG and NB_CFG; on Intel
//! MISC_ENABLE, PLATFORM_ID and the microcode revision.

use super::WriteRule::*;
use super::{Constant, Msr, MsrClass, MsrEntry, MsrReg, Presence};
use crate::cpu_model::Vendor;
use crate::cpuid::Feature;

use MsrClass::{Apic, Register, Time};
use Presence::{Always, Only, With};

/// What RMP_BASE and RMP_END can hold.
const RMP_ADDRESS: u64 = 0x000f_ffff_ffff_ffff;

/// HWCR: bit 0, system-management mode is locked (there is none); bit 24, the TSC counts at the P0 rate. Linux warns
/// when an invariant TSC does not.
const HWCR: u64 = 1 << 0 | 1 << 24;
/// DE_CFG: bit 1, LFENCE serialises.
const DE_CFG: u64 = 1 << 1;
/// MTRRcap: 8 variable ranges, fixed ranges, write combining.
const MTRRCAP: u64 = 8 | 1 << 8 | 1 << 10;
/// Fast strings, automatic thermal control, SpeedStep, MONITOR, CPUID limit, xTPR messages, XD disable.
const MISC_ENABLES: u64 = 1 << 0 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// MCG_CAP: 4 banks, MCG_CTL there.
const MCG_CAP: u64 = 4 | 1 << 8;

macro_rules! msrs {
    ($($(#[$meta:meta])* $NAME:ident = $first:literal $(.. $count:literal)?, $presence:expr, $class:expr, $write:expr;)*) => {
        impl Msr {
            $($(#[$meta])* pub const $NAME: Msr = Msr($first);)*
        }

        /// Every MSR, ascending.
        pub const MSRS: &[MsrEntry] = &[$(MsrEntry {
            first: Msr::$NAME,
            // The first of the two that is there.
            count: [$($count,)? 1][0],
            name: stringify!($NAME),
            presence: $presence,
            class: $class,
            write: $write,
        },)*];
    };
}

// NAME = first number [.. count of a run], presence, who answers, what a write accepts;
msrs! {
    /// Time-stamp counter.
    TSC = 0x10, With(Feature::Tsc), Time, Any;
    /// Platform ID (Intel): slot 0.
    PLATFORM_ID = 0x17, Only(Vendor::Intel), MsrClass::Constant(Constant::Is(0)), ReadOnly;
    /// IA32_APIC_BASE.
    APIC_BASE = 0x1b, With(Feature::Apic), Apic, ApicBase;
    /// Offset of the TSC that software may set.
    TSC_ADJUST = 0x3b, With(Feature::TscAdjust), Time, Any;
    /// Speculation control: IBRS, STIBP and BHI_DIS_S are stored and change nothing.
    SPEC_CTRL = 0x48, With(Feature::SpecCtrl), Register(MsrReg::SpecCtrl), Guarded(0b11);
    /// Prediction command: IBPB does nothing.
    PRED_CMD = 0x49, With(Feature::SpecCtrl), Register(MsrReg::PredCmd), Command(0b1);
    /// Microcode revision. Intel software writes 0 and executes CPUID before it reads.
    UCODE_REV = 0x8b, Always, MsrClass::Constant(Constant::UcodeRev), Discarded;
    /// PLATFORM_INFO (Intel).
    PLATFORM_INFO = 0xce, Only(Vendor::Intel), MsrClass::Constant(Constant::PlatformInfo), ReadOnly;
    /// What the MTRRs can do.
    MTRRCAP = 0xfe, With(Feature::Mtrr), MsrClass::Constant(Constant::Is(MTRRCAP)), ReadOnly;
    /// ARCH_CAPABILITIES (Intel).
    ARCH_CAPABILITIES = 0x10a, With(Feature::ArchCapabilities), MsrClass::Constant(Constant::ArchCapabilities), ReadOnly;
    /// SYSENTER code segment.
    SYSENTER_CS = 0x174, With(Feature::Sep), Register(MsrReg::SysenterCs), Any;
    /// SYSENTER stack pointer.
    SYSENTER_ESP = 0x175, With(Feature::Sep), Register(MsrReg::SysenterEsp), SysenterAddress;
    /// SYSENTER target.
    SYSENTER_EIP = 0x176, With(Feature::Sep), Register(MsrReg::SysenterEip), SysenterAddress;
    /// Machine-check capabilities.
    MCG_CAP = 0x179, With(Feature::Mca), MsrClass::Constant(Constant::Is(MCG_CAP)), ReadOnly;
    /// Machine-check status: RIPV, EIPV, MCIP.
    MCG_STATUS = 0x17a, With(Feature::Mca), Register(MsrReg::McgStatus), Bits(0b111);
    /// Machine-check enable, a bit a bank.
    MCG_CTL = 0x17b, With(Feature::Mca), Register(MsrReg::McgCtl), Any;
    /// Miscellaneous enables (Intel). What the model has can be switched, without effect; the rest stays as it is.
    MISC_ENABLE = 0x1a0, Only(Vendor::Intel), Register(MsrReg::MiscEnable), Keep(MISC_ENABLES);
    /// Debug control: LBR is stored without effect, BTF single-steps branches.
    DEBUGCTL = 0x1d9, Always, Register(MsrReg::DebugCtl), Bits(0b11);
    /// Last branch and last exception, from and to: never recorded.
    LAST_BRANCH = 0x1db .. 4, Always, MsrClass::Constant(Constant::Is(0)), ReadOnly;
    /// Variable-range MTRRs: base and mask of each of eight.
    MTRR_PHYS = 0x200 .. 16, With(Feature::Mtrr), Register(MsrReg::MtrrPhys), MtrrPhys;
    /// Fixed-range MTRR, 64 KiB blocks.
    MTRR_FIX64K = 0x250, With(Feature::Mtrr), Register(MsrReg::MtrrFix64k), MtrrFixed;
    /// Fixed-range MTRRs, 16 KiB blocks.
    MTRR_FIX16K = 0x258 .. 2, With(Feature::Mtrr), Register(MsrReg::MtrrFix16k), MtrrFixed;
    /// Fixed-range MTRRs, 4 KiB blocks.
    MTRR_FIX4K = 0x268 .. 8, With(Feature::Mtrr), Register(MsrReg::MtrrFix4k), MtrrFixed;
    /// Page attribute table.
    PAT = 0x277, With(Feature::Pat), Register(MsrReg::Pat), Pat;
    /// Default memory type and MTRR enables.
    MTRR_DEF_TYPE = 0x2ff, With(Feature::Mtrr), Register(MsrReg::MtrrDefType), MtrrDefType;
    /// Machine-check banks: CTL, STATUS, ADDR, MISC of each of four.
    MC_BANKS = 0x400 .. 16, With(Feature::Mca), Register(MsrReg::McBank), McBank;
    /// When the APIC timer fires, as a TSC value.
    TSC_DEADLINE = 0x6e0, With(Feature::TscDeadline), Apic, Any;
    /// Rights of supervisor protection keys.
    PKRS = 0x6e1, With(Feature::Pks), Register(MsrReg::Pkrs), Bits(0xffff_ffff);
    /// The APIC's registers in x2APIC mode. The APIC refuses what it does not have, and all of it in xAPIC mode.
    X2APIC = 0x800 .. 0x100, With(Feature::X2apic), Apic, Any;
    /// Supervisor states of XSAVES: none exist.
    XSS = 0xda0, With(Feature::Xsaves), Register(MsrReg::Xss), Bits(0);
    /// Extended feature enable.
    EFER = 0xc000_0080, With(Feature::LongMode), Register(MsrReg::Efer), Efer;
    /// SYSCALL and SYSRET selectors.
    STAR = 0xc000_0081, With(Feature::Syscall), Register(MsrReg::Star), Any;
    /// SYSCALL target from 64-bit code.
    LSTAR = 0xc000_0082, With(Feature::Syscall), Register(MsrReg::Lstar), Canonical;
    /// SYSCALL target from compatibility mode. Intel stores it and never uses it.
    CSTAR = 0xc000_0083, With(Feature::Syscall), Register(MsrReg::Cstar), Canonical;
    /// RFLAGS bits that SYSCALL clears.
    FMASK = 0xc000_0084, With(Feature::Syscall), Register(MsrReg::Fmask), Low32;
    /// FS.base.
    FS_BASE = 0xc000_0100, With(Feature::LongMode), Register(MsrReg::FsBase), Canonical;
    /// GS.base.
    GS_BASE = 0xc000_0101, With(Feature::LongMode), Register(MsrReg::GsBase), Canonical;
    /// What SWAPGS exchanges with GS.base.
    KERNEL_GS_BASE = 0xc000_0102, With(Feature::LongMode), Register(MsrReg::KernelGsBase), Canonical;
    /// What RDTSCP and RDPID return.
    TSC_AUX = 0xc000_0103, With(Feature::Rdtscp), Register(MsrReg::TscAux), Low32;
    /// System configuration (AMD): MtrrFixDramEn, MtrrVarDramEn, MtrrTom2En, Tom2ForceMemTypeWB can be set.
    SYSCFG = 0xc001_0010, Only(Vendor::Amd), Register(MsrReg::Syscfg), Keep(1 << 18 | 1 << 20 | 1 << 21 | 1 << 22);
    /// Hardware configuration (AMD). Status registers of machine-check banks can never be written with HWCR's help.
    HWCR = 0xc001_0015, Only(Vendor::Amd), MsrClass::Constant(Constant::Is(HWCR)), Discarded;
    /// Top of memory below 4 GiB (AMD), in 8 MiB steps.
    TOP_MEM = 0xc001_001a, Only(Vendor::Amd), Register(MsrReg::TopMem), TopMem;
    /// Top of memory above 4 GiB (AMD), in 8 MiB steps.
    TOP_MEM2 = 0xc001_001d, Only(Vendor::Amd), Register(MsrReg::TopMem2), TopMem;
    /// Northbridge configuration (AMD). Linux sets bit 46, extended configuration through port 0xCF8.
    NB_CFG = 0xc001_001f, Only(Vendor::Amd), Register(MsrReg::NbCfg), Keep(1 << 46);
    /// Guest physical address of the GHCB, or a request that needs none (SEV-ES). There for guests with encrypted state
    /// alone: the processor refuses it to others.
    GHCB = 0xc001_0130, With(Feature::SevEs), Register(MsrReg::Ghcb), Any;
    /// Which kinds of encrypted virtualisation the running code is under; 0 for code that owns the machine (SEV).
    SEV_STATUS = 0xc001_0131, With(Feature::Sev), Register(MsrReg::SevStatus), ReadOnly;
    /// First byte of the RMP (SEV-SNP). This register and the next are there for code that owns the machine alone: the
    /// processor refuses them to guests.
    RMP_BASE = 0xc001_0132, With(Feature::SevSnp), Register(MsrReg::RmpBase), Bits(RMP_ADDRESS);
    /// Last byte of the RMP (SEV-SNP).
    RMP_END = 0xc001_0133, With(Feature::SevSnp), Register(MsrReg::RmpEnd), Bits(RMP_ADDRESS);
    /// Decode configuration (AMD): LFENCE serialises, always.
    DE_CFG = 0xc001_1029, Only(Vendor::Amd), MsrClass::Constant(Constant::Is(DE_CFG)), Discarded;
}

const fn ascending(msrs: &[MsrEntry]) -> bool {
    let mut i = 0;
    while i < msrs.len() {
        if msrs[i].count == 0 || (i > 0 && msrs[i - 1].first.0 + msrs[i - 1].count > msrs[i].first.0) {
            return false;
        }
        i += 1;
    }
    true
}
const _: () = assert!(ascending(MSRS), "the MSR table is sorted and nothing overlaps");
