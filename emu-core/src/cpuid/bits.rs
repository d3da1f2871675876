//! What a CPUID feature bit is, and the macro that turns one list of bits into tables and the `Feature` enum.
//!
//! A register of feature bits is listed in bit order. A bit that is off stays in the list with its reason, so that
//! the list reads like the manual's table and an omission is visible. Reserved bits are the ones not listed.

use crate::cpu_model::{CpuModel, Vendor};
use crate::regs::Cr4;

use super::{CpuidDynamic, Feature};

/// The four registers CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reg {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Why a bit reads as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The emulator does what the bit promises; on in every default model.
    Emulated,
    /// As [`Why::Emulated`], but only this vendor defines the bit.
    Vendor(Vendor),
    /// Emulated, but off in the default models for this reason; [`CpuModel::with`] turns it on.
    Optional(&'static str),
    /// As [`Why::Optional`], but only this vendor defines the bit.
    VendorOptional(Vendor, &'static str),
    /// Follows a register or the board while its own feature (or [`Mirror::requires`]) is there.
    Mirrors(Mirror),
    /// AMD repeats a bit of leaf 1 here; 0 on Intel.
    Copies(Feature),
    /// Always 0, for this reason.
    Absent(&'static str),
}

/// State that a CPUID bit shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// IA32_APIC_BASE.EN.
    ApicBaseEn,
    /// CR4.OSXSAVE.
    Cr4Osxsave,
    /// CR4.PKE.
    Cr4Pke,
    /// The package holds more than one logical processor.
    SeveralCpus,
    /// AMD: the logical processors of the package are cores, not threads.
    SeveralCores,
}

impl Mirror {
    /// The feature without which the bit is 0 whatever the register says.
    pub const fn requires(self) -> Option<Feature> {
        match self {
            Mirror::ApicBaseEn => Some(Feature::Apic),
            Mirror::Cr4Osxsave => Some(Feature::Xsave),
            Mirror::Cr4Pke => Some(Feature::Pku),
            Mirror::SeveralCpus | Mirror::SeveralCores => None,
        }
    }

    /// What the bit reads now.
    pub(super) fn reads(self, model: &CpuModel, now: &CpuidDynamic) -> bool {
        let shown = match self {
            Mirror::ApicBaseEn => now.apic == ApicState::Enabled,
            Mirror::Cr4Osxsave => now.cr4.contains(Cr4::OSXSAVE),
            Mirror::Cr4Pke => now.cr4.contains(Cr4::PKE),
            Mirror::SeveralCpus => now.cpu_count.get() > 1,
            Mirror::SeveralCores => now.cpu_count.get() > 1 && model.vendor() == Vendor::Amd,
        };
        shown && self.requires().is_none_or(|feature| model.has(feature))
    }
}

/// IA32_APIC_BASE.EN as CPUID needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicState {
    /// EN is 1.
    Enabled,
    /// EN is 0: CPUID shows no APIC.
    Disabled,
}

/// One feature bit of one register.
#[derive(Clone, Copy, Debug)]
pub struct Bit {
    /// Position in the register, 0 to 31.
    pub pos: u8,
    /// The manuals' name.
    pub name: &'static str,
    /// The feature this bit advertises; `None` for absent bits, copies and pure mirrors.
    pub feature: Option<Feature>,
    /// Why it reads as it does.
    pub why: Why,
}

impl Bit {
    /// What the bit reads on `model` in the state `now`.
    pub(super) fn reads(&self, model: &CpuModel, now: &CpuidDynamic) -> bool {
        match self.why {
            Why::Absent(_) => false,
            Why::Copies(feature) => model.vendor() == Vendor::Amd && feature.bit().reads(model, now),
            Why::Mirrors(mirror) => mirror.reads(model, now),
            Why::Emulated | Why::Vendor(_) | Why::Optional(_) | Why::VendorOptional(..) => {
                self.feature.is_some_and(|feature| model.has(feature))
            }
        }
    }

    /// Whether the vendor's default model has this bit's feature.
    pub const fn default_on(&self, vendor: Vendor) -> bool {
        self.feature.is_some()
            && match self.why {
                Why::Emulated | Why::Mirrors(_) => true,
                Why::Vendor(only) => only as u8 == vendor as u8,
                Why::Optional(_) | Why::VendorOptional(..) | Why::Copies(_) | Why::Absent(_) => false,
            }
    }

    /// The only vendor that defines the bit, if one alone does.
    pub const fn only_of(&self) -> Option<Vendor> {
        match self.why {
            Why::Vendor(vendor) | Why::VendorOptional(vendor, _) => Some(vendor),
            Why::Emulated | Why::Mirrors(_) | Why::Optional(_) | Why::Copies(_) | Why::Absent(_) => None,
        }
    }
}

/// One register of one leaf whose bits are features.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// CPUID input EAX.
    pub leaf: u32,
    /// CPUID input ECX.
    pub subleaf: u32,
    /// The output register.
    pub reg: Reg,
    /// Its bits, ascending.
    pub bits: &'static [Bit],
}

/// Whether the positions ascend without duplicates and stay below 32.
pub(super) const fn ascending(bits: &[Bit]) -> bool {
    let mut i = 0;
    while i < bits.len() {
        if bits[i].pos > 31 || (i > 0 && bits[i - 1].pos >= bits[i].pos) {
            return false;
        }
        i += 1;
    }
    true
}

/// Whether each bit names a feature exactly when its reason speaks of one.
pub(super) const fn features_match_reasons(bits: &[Bit]) -> bool {
    let mut i = 0;
    while i < bits.len() {
        let named = bits[i].feature.is_some();
        let right = match bits[i].why {
            Why::Emulated | Why::Vendor(_) | Why::Optional(_) | Why::VendorOptional(..) => named,
            Why::Copies(_) | Why::Absent(_) => !named,
            Why::Mirrors(mirror) => match (bits[i].feature, mirror.requires()) {
                (Some(own), Some(required)) => own as u8 == required as u8,
                (Some(_), None) => false,
                (None, _) => true,
            },
        };
        if !right {
            return false;
        }
        i += 1;
    }
    true
}

/// `Some(Feature::X)` for a line with `[X]`, `None` for one without.
macro_rules! named_feature {
    () => {
        None
    };
    ($Feature:ident) => {
        Some($crate::cpuid::Feature::$Feature)
    };
}

/// Declares registers of feature bits, and from the lines with `[Feature]` the `Feature` enum.
macro_rules! cpuid_registers {
    ($(
        $(#[$meta:meta])*
        $TABLE:ident = ($leaf:literal, $subleaf:literal) $reg:ident $where:literal {
            $($pos:literal $([$Feature:ident])? $name:literal $why:expr;)*
        }
    )*) => {
        /// A processor feature that CPUID can advertise and the emulator implements.
        ///
        /// What each one turns on is in [`Feature::guards`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Feature {
            $($($(
                #[doc = concat!($name, ": CPUID ", $where, ", bit ", $pos, ".")]
                $Feature,
            )?)*)*
        }

        impl Feature {
            /// Every feature, in the order of leaf, register and bit.
            pub const ALL: &'static [Feature] = &[$($($(Feature::$Feature,)?)*)*];
        }

        $(
            $(#[$meta])*
            pub const $TABLE: &[Bit] = &[$(
                Bit { pos: $pos, name: $name, feature: named_feature!($($Feature)?), why: $why },
            )*];
            const _: () = assert!(ascending($TABLE), "the bits of a register ascend without duplicates");
            const _: () = assert!(features_match_reasons($TABLE), "a bit names a feature when it advertises one");
        )*

        /// Every register of feature bits, ascending by leaf, subleaf and register.
        pub const REGISTERS: &[Register] = &[$(
            Register { leaf: $leaf, subleaf: $subleaf, reg: Reg::$reg, bits: $TABLE },
        )*];
    };
}

pub(super) use {cpuid_registers, named_feature};
