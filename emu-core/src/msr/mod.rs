//! Model-specific registers: which exist, who answers, and what may be written.
//!
//! Source: AMD APM vol. 2, appendix "MSR Cross-Reference"; Intel SDM vol. 4, "Model-Specific Registers".
//!
//! [`MSRS`] is the sorted table of every MSR. An entry says under which condition the register is there
//! ([`Presence`]), who answers ([`MsrClass`]) and which values a write accepts ([`WriteRule`]). RDMSR and WRMSR of the
//! processor, [`Feature::guards`](crate::cpuid::Feature::guards) and a VMM's register access all go through it:
//!
//! 1. [`CpuModel::msr`] finds the entry, or refuses;
//! 2. a read of [`MsrClass::Register`] comes from the processor's own field or from [`MsrFile`], of
//!    [`MsrClass::Constant`] from [`Constant::value`], of the other classes from the board;
//! 3. a write first passes [`validate_write`], which returns the value to store.
//!
//! A refusal is #GP(0) for the guest; [`MsrRefused`] says why, for the trace.
//!
//! Always true: the table ascends without overlap; a reset value passes its own write rule unless the register is
//! read-only; nothing here has an effect. Effects (flushes, mode changes, IBPB) belong to the processor.
//!
//! Left out on purpose: registers that no system software reads without a guard, and the checks that need more than
//! the register itself: EFER.LME may not change under CR0.PG (only the case that EFER.LMA shows is caught here).

mod table;
#[cfg(test)]
mod tests;
mod write;

use core::fmt;

use thiserror::Error;

use crate::cpu_model::{CpuModel, Vendor};
use crate::cpuid::Feature;

pub use table::MSRS;
pub use write::{WriteRule, validate_write};

/// The number of a model-specific register, as ECX holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Msr(pub u32);

impl Msr {
    /// The register `index` places further on.
    pub const fn offset(self, index: u32) -> Msr {
        Msr(self.0 + index)
    }
    /// The table's entry for it, whatever the model.
    pub fn entry(self) -> Option<&'static MsrEntry> {
        let after = MSRS.partition_point(|entry| entry.first <= self);
        let entry = &MSRS[after.checked_sub(1)?];
        (self.0 - entry.first.0 < entry.count).then_some(entry)
    }
}

impl fmt::Debug for Msr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some(entry) if entry.count > 1 => write!(f, "Msr({:#x} {}+{})", self.0, entry.name, self.0 - entry.first.0),
            Some(entry) => write!(f, "Msr({:#x} {})", self.0, entry.name),
            None => write!(f, "Msr({:#x})", self.0),
        }
    }
}

impl fmt::Display for Msr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// When a register is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// On every model.
    Always,
    /// With this feature.
    With(Feature),
    /// On this vendor's models.
    Only(Vendor),
}

impl Presence {
    /// Whether the condition holds for `model`.
    pub fn holds(self, model: &CpuModel) -> bool {
        match self {
            Presence::Always => true,
            Presence::With(feature) => model.has(feature),
            Presence::Only(vendor) => model.vendor() == vendor,
        }
    }
}

/// Registers that the processor stores. The processor may hold some in fields of its own, the rest in an
/// [`MsrFile`]; either way these are their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrReg {
    /// Extended feature enable.
    Efer,
    /// SYSCALL selectors.
    Star,
    /// SYSCALL target of 64-bit code.
    Lstar,
    /// SYSCALL target of compatibility mode (AMD).
    Cstar,
    /// RFLAGS bits that SYSCALL clears.
    Fmask,
    /// FS.base.
    FsBase,
    /// GS.base.
    GsBase,
    /// What SWAPGS exchanges with GS.base.
    KernelGsBase,
    /// SYSENTER selectors.
    SysenterCs,
    /// SYSENTER stack pointer.
    SysenterEsp,
    /// SYSENTER target.
    SysenterEip,
    /// What RDTSCP and RDPID return.
    TscAux,
    /// Page attribute table.
    Pat,
    /// Default memory type and MTRR enables.
    MtrrDefType,
    /// Variable ranges: base (even) and mask (odd).
    MtrrPhys,
    /// Fixed range of eight 64 KiB blocks from 0.
    MtrrFix64k,
    /// Fixed ranges of 16 KiB blocks from 512 KiB.
    MtrrFix16k,
    /// Fixed ranges of 4 KiB blocks from 768 KiB.
    MtrrFix4k,
    /// Miscellaneous enables (Intel).
    MiscEnable,
    /// Speculation control (Intel).
    SpecCtrl,
    /// Prediction command, write-only (Intel).
    PredCmd,
    /// Supervisor states of XSAVES.
    Xss,
    /// Rights of supervisor protection keys.
    Pkrs,
    /// Machine-check status.
    McgStatus,
    /// Machine-check enable.
    McgCtl,
    /// Machine-check banks: control, status, address, miscellaneous of each.
    McBank,
    /// Debug control: branch single-step.
    DebugCtl,
    /// System configuration (AMD).
    Syscfg,
    /// Top of memory below 4 GiB (AMD).
    TopMem,
    /// Top of memory above 4 GiB (AMD).
    TopMem2,
    /// Northbridge configuration (AMD).
    NbCfg,
    /// Guest-hypervisor communication block (SEV-ES).
    Ghcb,
    /// Which kinds of encrypted virtualisation the running code is under (SEV).
    SevStatus,
    /// First byte of the reverse map (SEV-SNP).
    RmpBase,
    /// Last byte of the reverse map (SEV-SNP).
    RmpEnd,
}

/// Registers with one value for all time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constant {
    /// This value.
    Is(u64),
    /// What the processor is immune to (Intel): everything that the register can say.
    ArchCapabilities,
    /// Frequency ratios (Intel).
    PlatformInfo,
    /// Microcode revision: upper half on Intel, lower half on AMD.
    UcodeRev,
}

/// ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO (Intel, "CPUID Enumeration and Architectural MSRs").
const IMMUNE: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

impl Constant {
    /// The value on `model`.
    pub fn value(self, model: &CpuModel) -> u64 {
        match self {
            Constant::Is(value) => value,
            Constant::ArchCapabilities => IMMUNE,
            // The ratio counts steps of 100 MHz, in the places of the non-turbo maximum and the minimum.
            Constant::PlatformInfo => {
                let ratio = (model.tsc_hz() / 100_000_000).clamp(1, 255);
                ratio << 40 | ratio << 8
            }
            Constant::UcodeRev => match model.vendor() {
                Vendor::Intel => u64::from(model.ucode_rev()) << 32,
                Vendor::Amd => u64::from(model.ucode_rev()),
            },
        }
    }
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrClass {
    /// The processor stores it.
    Register(MsrReg),
    /// The table knows it.
    Constant(Constant),
    /// The local APIC.
    Apic,
    /// The virtual clock.
    Time,
}

/// One register, or a run of registers alike.
#[derive(Clone, Copy, Debug)]
pub struct MsrEntry {
    /// First number.
    pub first: Msr,
    /// How many.
    pub count: u32,
    /// The name of its constant in [`Msr`].
    pub name: &'static str,
    /// When it is there.
    pub presence: Presence,
    /// Who answers.
    pub class: MsrClass,
    /// What a write accepts.
    pub write: WriteRule,
}

/// Why RDMSR or WRMSR is refused: #GP(0) in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsrRefused {
    /// No such register on any model.
    #[error("{0} does not exist")]
    Unknown(Msr),
    /// Not on this model.
    #[error("{msr} needs {needs:?}")]
    NotOnModel {
        /// The register.
        msr: Msr,
        /// The condition that does not hold.
        needs: Presence,
    },
    /// A write to a read-only register.
    #[error("{0} is read-only")]
    ReadOnly(Msr),
    /// A read of a write-only register.
    #[error("{0} is write-only")]
    WriteOnly(Msr),
    /// Bits that must be zero are not.
    #[error("{msr} reserves bits {bits:#x}")]
    Reserved {
        /// The register.
        msr: Msr,
        /// The offending ones.
        bits: u64,
    },
    /// An address that is not canonical.
    #[error("{msr} takes a canonical address, not {value:#x}")]
    NotCanonical {
        /// The register.
        msr: Msr,
        /// The value.
        value: u64,
    },
    /// A reserved memory type.
    #[error("{msr} byte {byte}: {encoding} is no memory type it accepts")]
    MemoryType {
        /// The register.
        msr: Msr,
        /// Which of its eight bytes.
        byte: u8,
        /// Its value.
        encoding: u8,
    },
    /// A register that cannot be written while the reverse map is in force.
    #[error("{0} cannot be written while SNP is on")]
    FixedBySnp(Msr),
    /// A change of mode that the architecture forbids.
    #[error("{msr} cannot go from {old:#x} to {new:#x}")]
    Transition {
        /// The register.
        msr: Msr,
        /// Its value.
        old: u64,
        /// The value written.
        new: u64,
    },
}

impl CpuModel {
    /// The entry of `msr` if this model has it.
    pub fn msr(&self, msr: Msr) -> Result<&'static MsrEntry, MsrRefused> {
        let entry = msr.entry().ok_or(MsrRefused::Unknown(msr))?;
        if entry.presence.holds(self) { Ok(entry) } else { Err(MsrRefused::NotOnModel { msr, needs: entry.presence }) }
    }

    /// [`CpuModel::msr`] for RDMSR: refuses write-only registers too.
    pub fn readable_msr(&self, msr: Msr) -> Result<&'static MsrEntry, MsrRefused> {
        let entry = self.msr(msr)?;
        match entry.write {
            WriteRule::Command(_) => Err(MsrRefused::WriteOnly(msr)),
            _ => Ok(entry),
        }
    }
}

/// Places of an [`MsrFile`]: as many as the table has stored registers.
pub const MSR_SLOTS: usize = {
    let (mut slots, mut i) = (0, 0);
    while i < MSRS.len() {
        if let MsrClass::Register(_) = MSRS[i].class {
            slots += MSRS[i].count as usize;
        }
        i += 1;
    }
    slots
};

/// The stored registers of one processor.
///
/// EFER, segment bases and other registers of the hot path are there too, so that a processor which keeps them in
/// fields of its own can use the file for save and restore of everything at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrFile {
    slots: [u64; MSR_SLOTS],
}

impl MsrFile {
    /// Every register at its reset value.
    pub fn reset() -> MsrFile {
        let mut file = MsrFile { slots: [0; MSR_SLOTS] };
        for entry in MSRS {
            if let MsrClass::Register(reg) = entry.class {
                for index in 0..entry.count {
                    file.set(entry.first.offset(index), reset_value(reg));
                }
            }
        }
        file
    }

    /// The value of a stored register; 0 for a register of another class.
    pub fn get(&self, msr: Msr) -> u64 {
        slot(msr).map_or(0, |slot| self.slots[slot])
    }

    /// Stores `value`, which [`validate_write`] returned; ignored for a register of another class.
    pub fn set(&mut self, msr: Msr, value: u64) {
        if let Some(slot) = slot(msr) {
            self.slots[slot] = value;
        }
    }
}

/// The place of a stored register: stored registers before it in the table.
fn slot(msr: Msr) -> Option<usize> {
    let mut before = 0;
    for entry in MSRS.iter().filter(|entry| matches!(entry.class, MsrClass::Register(_))) {
        if entry.first.0 > msr.0 {
            return None;
        }
        if msr.0 - entry.first.0 < entry.count {
            return Some(before + (msr.0 - entry.first.0) as usize);
        }
        before += entry.count as usize;
    }
    None
}

/// The value after RESET (not INIT, which keeps most).
pub const fn reset_value(reg: MsrReg) -> u64 {
    match reg {
        MsrReg::Pat => 0x0007_0406_0007_0406,
        // Fast strings, and no branch trace store and no event sampling to be had.
        MsrReg::MiscEnable => 1 << 0 | 1 << 11 | 1 << 12,
        _ => 0,
    }
}
