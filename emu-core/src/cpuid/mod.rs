//! CPUID: what the processor says about itself.
//!
//! Source: AMD APM vol. 3, appendix "Obtaining Processor Information Via the CPUID Instruction"; Intel SDM vol. 2,
//! "CPUID: CPU Identification".
//!
//! An answer has two parts. Feature bits come from the lists of `features`, each with the reason why it is on or off.
//! Everything else (sizes, counts, names) is computed by the function that [`LEAVES`] names for the leaf. Both are
//! pure functions of the [`CpuModel`] and of the little state that CPUID shows ([`CpuidDynamic`]).
//!
//! The doors: [`CpuModel::cpuid`]; [`Feature`] with [`Feature::guards`] and [`Feature::needs`];
//! [`XSAVE_COMPONENTS`], which the XSAVE instructions lay their area out by.
//!
//! Always true: every leaf up to the vendor's highest is listed, reserved ones too; no bit is advertised without a
//! guard or a stated promise.
//!
//! Left out on purpose: Intel shows SYSCALL only in 64-bit mode, here it shows in every mode; leaf 0x1F, because one
//! level of cores needs no more than leaf 0xB; faulting and user-disabled CPUID.

mod basic;
mod bits;
mod caches;
mod extended;
mod features;
mod guards;
#[cfg(test)]
mod tests;
mod topology;
mod xstate;

use core::num::NonZeroU32;
use core::ops::BitOrAssign;

use crate::cpu_model::{CpuModel, Vendor};
use crate::regs::{Cr4, Xcr0};

pub use bits::{ApicState, Bit, Mirror, Reg, Register, Why};
pub use features::*;
pub use guards::Guard;
pub use xstate::{
    Placement, XSAVE_COMPONENTS, XSAVE_EXTENDED_OFFSET, XSAVE_HEADER_OFFSET, XsaveComponent, xsave_compacted_len,
    xsave_compacted_offset, xsave_standard_len,
};

/// What CPUID leaves in the four registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl CpuidResult {
    /// All zero: the answer of a reserved leaf.
    pub const ZERO: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

    /// One of the four.
    pub const fn get(self, reg: Reg) -> u32 {
        match reg {
            Reg::Eax => self.eax,
            Reg::Ebx => self.ebx,
            Reg::Ecx => self.ecx,
            Reg::Edx => self.edx,
        }
    }

    fn set_bits(&mut self, reg: Reg, bits: u32) {
        match reg {
            Reg::Eax => &mut self.eax,
            Reg::Ebx => &mut self.ebx,
            Reg::Ecx => &mut self.ecx,
            Reg::Edx => &mut self.edx,
        }
        .bitor_assign(bits);
    }
}

/// The state of the processor and the board that CPUID shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidDynamic {
    /// CR4, of which OSXSAVE and PKE show.
    pub cr4: Cr4,
    /// XCR0, by which the XSAVE area is sized.
    pub xcr0: Xcr0,
    /// IA32_XSS, by which the compacted area is sized.
    pub xss: Xcr0,
    /// IA32_APIC_BASE.EN.
    pub apic: ApicState,
    /// x2APIC ID. IDs of a machine run from 0 to `cpu_count - 1`.
    pub apic_id: u32,
    /// Logical processors of the machine, each a core of the one package.
    pub cpu_count: NonZeroU32,
}

/// Whether ECX selects a subleaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subleaves {
    /// ECX is ignored.
    Ignored,
    /// ECX is the index; an index without content has a defined answer too.
    Indexed,
}

/// One leaf, or a run of leaves answered alike.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// First input EAX.
    pub first: u32,
    /// Last input EAX.
    pub last: u32,
    /// The manuals' title, or why the run is reserved.
    pub title: &'static str,
    /// Whether ECX matters.
    pub subleaves: Subleaves,
    answer: Answer,
}

/// What a leaf holds beside feature bits, for a subleaf that is 0 where ECX does not matter.
type Answer = fn(&CpuModel, &CpuidDynamic, u32) -> CpuidResult;

const fn plain(number: u32, title: &'static str, answer: Answer) -> Leaf {
    Leaf { first: number, last: number, title, subleaves: Subleaves::Ignored, answer }
}
const fn indexed(number: u32, title: &'static str, answer: Answer) -> Leaf {
    Leaf { first: number, last: number, title, subleaves: Subleaves::Indexed, answer }
}
const fn zeros(first: u32, last: u32, title: &'static str) -> Leaf {
    Leaf { first, last, title, subleaves: Subleaves::Ignored, answer: only_feature_bits }
}

/// For leaves that are reserved or consist of feature bits alone.
fn only_feature_bits(_: &CpuModel, _: &CpuidDynamic, _: u32) -> CpuidResult {
    CpuidResult::ZERO
}

/// Every leaf of both vendors, ascending. A leaf that only one vendor has answers zeros on the other.
pub const LEAVES: &[Leaf] = &[
    plain(0x0, "highest basic leaf and vendor", basic::vendor),
    plain(0x1, "version and features", basic::version),
    plain(0x2, "cache and TLB descriptors", caches::descriptors),
    zeros(0x3, 0x3, "processor serial number: none"),
    indexed(0x4, "deterministic cache parameters", caches::leaf_4),
    zeros(0x5, 0x5, "MONITOR/MWAIT: not modelled"),
    zeros(0x6, 0x6, "power management"),
    indexed(0x7, "structured extended features", basic::structured_features),
    zeros(0x8, 0x9, "reserved, and direct cache access: none"),
    zeros(0xa, 0xa, "performance monitoring: version 0, none"),
    indexed(0xb, "extended topology", topology::extended),
    zeros(0xc, 0xc, "reserved"),
    indexed(0xd, "XSAVE state enumeration", xstate::leaf),
    zeros(0xe, 0x14, "resource director, SGX and trace: none"),
    plain(0x15, "TSC and crystal clock", basic::tsc_clock),
    plain(0x16, "processor frequency", basic::frequency),
    plain(0x4000_0000, "hypervisor signature", basic::hypervisor),
    zeros(0x4000_0001, 0x4000_000f, "hypervisor interface: none"),
    plain(0x4000_0010, "hypervisor timing", basic::timing),
    plain(0x8000_0000, "highest extended leaf and vendor", extended::vendor),
    plain(0x8000_0001, "extended features", extended::features),
    plain(0x8000_0002, "brand string, bytes 0 to 15", extended::brand::<0>),
    plain(0x8000_0003, "brand string, bytes 16 to 31", extended::brand::<1>),
    plain(0x8000_0004, "brand string, bytes 32 to 47", extended::brand::<2>),
    plain(0x8000_0005, "L1 caches and TLBs", caches::leaf_8000_0005),
    plain(0x8000_0006, "L2 and L3 caches and TLBs", caches::leaf_8000_0006),
    zeros(0x8000_0007, 0x8000_0007, "RAS and power management"),
    plain(0x8000_0008, "address widths and core count", extended::widths),
    zeros(0x8000_0009, 0x8000_0009, "reserved"),
    zeros(0x8000_000a, 0x8000_000a, "SVM: not executed yet"),
    zeros(0x8000_000b, 0x8000_0018, "reserved"),
    plain(0x8000_0019, "TLBs of 1 GiB pages", caches::leaf_8000_0019),
    zeros(0x8000_001a, 0x8000_001a, "performance optimisation hints: none"),
    zeros(0x8000_001b, 0x8000_001c, "IBS and LWP: none"),
    indexed(0x8000_001d, "cache topology", caches::leaf_8000_001d),
    plain(0x8000_001e, "processor topology", topology::amd),
    plain(0x8000_001f, "encrypted memory", extended::encrypted_memory),
    zeros(0x8000_0020, 0x8000_0020, "platform quality of service: none"),
    zeros(0x8000_0021, 0x8000_0021, "extended features 2"),
];

const fn leaves_ascend(leaves: &[Leaf]) -> bool {
    let mut i = 0;
    while i < leaves.len() {
        if leaves[i].first > leaves[i].last || (i > 0 && leaves[i - 1].last >= leaves[i].first) {
            return false;
        }
        i += 1;
    }
    true
}
const _: () = assert!(leaves_ascend(LEAVES), "the leaves ascend and do not overlap");

const fn registers_ascend(registers: &[Register]) -> bool {
    let mut i = 1;
    while i < registers.len() {
        let (before, after) = (&registers[i - 1], &registers[i]);
        let ordered = before.leaf < after.leaf
            || (before.leaf == after.leaf
                && (before.subleaf < after.subleaf
                    || (before.subleaf == after.subleaf && (before.reg as u8) < after.reg as u8)));
        if !ordered {
            return false;
        }
        i += 1;
    }
    true
}
const _: () = assert!(registers_ascend(REGISTERS), "the registers ascend by leaf, subleaf and register");

/// The highest leaves of a model, one per range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Highest {
    /// Of 0000_0000.
    pub basic: u32,
    /// Of 4000_0000, while [`Feature::Hypervisor`] is there.
    pub hypervisor: Option<u32>,
    /// Of 8000_0000.
    pub extended: u32,
}

impl Feature {
    /// The bit that advertises this feature.
    pub const fn bit(self) -> &'static Bit {
        let mut r = 0;
        while r < REGISTERS.len() {
            let bits = REGISTERS[r].bits;
            let mut b = 0;
            while b < bits.len() {
                if let Some(own) = bits[b].feature
                    && own as u8 == self as u8
                {
                    return &bits[b];
                }
                b += 1;
            }
            r += 1;
        }
        panic!("the declaration that made the feature made its bit")
    }
}

impl CpuModel {
    /// The highest leaf of each range.
    pub const fn highest_leaves(&self) -> Highest {
        let (basic, extended) = match self.vendor() {
            Vendor::Amd => (0xd, 0x8000_0021),
            Vendor::Intel => (0x16, 0x8000_0008),
        };
        Highest { basic, hypervisor: if self.has(Feature::Hypervisor) { Some(0x4000_0010) } else { None }, extended }
    }

    /// CPUID with EAX = `leaf` and ECX = `subleaf`.
    ///
    /// A leaf above the highest of its range reads as zeros on AMD, and as the highest basic leaf on Intel (SDM
    /// vol. 2, "CPUID", "Returns processor identification": input above the maximum).
    pub fn cpuid(&self, leaf: u32, subleaf: u32, now: &CpuidDynamic) -> CpuidResult {
        let highest = self.highest_leaves();
        let limit = match leaf {
            0x8000_0000..=0xffff_ffff => Some(highest.extended),
            0x4000_0000..=0x4fff_ffff => highest.hypervisor,
            _ => Some(highest.basic),
        };
        let leaf = match (limit, self.vendor()) {
            (Some(limit), _) if leaf <= limit => leaf,
            (_, Vendor::Intel) => highest.basic,
            (_, Vendor::Amd) => return CpuidResult::ZERO,
        };
        let found = LEAVES.binary_search_by(|entry| {
            if entry.last < leaf {
                core::cmp::Ordering::Less
            } else if entry.first > leaf {
                core::cmp::Ordering::Greater
            } else {
                core::cmp::Ordering::Equal
            }
        });
        let Ok(index) = found else { return CpuidResult::ZERO };
        let entry = &LEAVES[index];
        let subleaf = match entry.subleaves {
            Subleaves::Ignored => 0,
            Subleaves::Indexed => subleaf,
        };
        let mut result = (entry.answer)(self, now, subleaf);
        for register in REGISTERS.iter().filter(|r| r.leaf == leaf && r.subleaf == subleaf) {
            for bit in register.bits.iter().filter(|bit| bit.reads(self, now)) {
                result.set_bits(register.reg, 1 << bit.pos);
            }
        }
        result
    }
}

/// Four ASCII characters as a register holds them.
const fn chars(text: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
}
