//! A second model of address translation, written apart from the `mmu` crate to judge it.
//!
//! It follows the manuals' prose, format by format and level by level, with no cache, no generic walker and no speed:
//! Intel SDM vol. 3, "Paging" and "VMX Support for Address Translation"; AMD APM vol. 2, "Page Translation and
//! Protection" and "Nested Paging". The door is [`translate`]: registers, tables in a [`Ram`] and one access in; out
//! come an [`Answer`] and the A and D bits left in memory.
//!
//! Where the manuals leave freedom the rule of the house is: A and D of a table tree are set only when the translation
//! through that tree, rights included, has succeeded; a guest's after its final address got through the nested tables.
//!
//! [`rmp`] is another model beside it: of who owns each page of system memory.
//!
//! Left out: shadow stacks, LAM, memory encryption, SPP, GMET.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod guest;
mod nested;
mod rights;
pub mod rmp;

use emu_core::regs::{Cr0, Cr4, Efer};
use emu_core::{Access, Gva};

/// The processor model.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// MAXPHYADDR, 32 to 52.
    pub physical_bits: u32,
    /// AMD where the manuals differ.
    pub amd: bool,
    /// 1 GiB pages.
    pub page_1g: bool,
    /// PSE-36.
    pub pse36: bool,
    /// EPT entries may allow execution alone.
    pub execute_only: bool,
}

/// The registers that paging reads.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// PKRU.
    pub pkru: u32,
    /// IA32_PKRS.
    pub pkrs: u32,
    /// PDPTE registers; `None`: PDPTEs are read from memory.
    pub pdptes: Option<[u64; 4]>,
}

/// The nested tables.
#[derive(Clone, Copy, Debug)]
pub enum Nested {
    /// Guest physical is system physical.
    None,
    /// AMD.
    Npt {
        /// Root table.
        ncr3: u64,
        /// Five levels.
        la57: bool,
        /// The host's EFER.NXE.
        nxe: bool,
    },
    /// Intel.
    Ept {
        /// EPT pointer.
        eptp: u64,
        /// Mode-based execute control.
        mode_based: bool,
    },
}

/// Memory as closures.
pub struct Ram<'a> {
    /// Reads 4 or 8 bytes at a system physical address.
    pub read: &'a dyn Fn(u64, u32) -> u64,
    /// Writes 4 or 8 bytes.
    pub write: &'a dyn Fn(u64, u32, u64),
}

/// What becomes of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It reaches memory.
    Reaches {
        /// Guest physical address.
        gpa: u64,
        /// System physical address.
        spa: u64,
    },
    /// The address is not canonical.
    NonCanonical,
    /// #PF with this error code.
    PageFault {
        /// The code.
        code: u32,
    },
    /// #VMEXIT(NPF).
    NestedPageFault {
        /// EXITINFO2.
        gpa: u64,
        /// EXITINFO1.
        exitinfo1: u64,
    },
    /// EPT violation.
    EptViolation {
        /// Guest-physical address.
        gpa: u64,
        /// Exit qualification.
        qualification: u64,
    },
    /// EPT misconfiguration.
    EptMisconfiguration {
        /// Guest-physical address.
        gpa: u64,
    },
}

/// Everything a translation looks at.
pub struct Machine<'a> {
    /// The processor.
    pub processor: Processor,
    /// Its registers.
    pub registers: Registers,
    /// The nested tables.
    pub nested: Nested,
    /// Memory.
    pub ram: Ram<'a>,
}

/// Translates one access.
pub fn translate(machine: &Machine<'_>, gva: Gva, access: Access) -> Answer {
    match guest::translate(machine, gva.raw(), access) {
        Ok((gpa, spa)) => Answer::Reaches { gpa, spa },
        Err(answer) => answer,
    }
}

/// Bits `high` down to `low`, in place.
pub(crate) fn bits(value: u64, high: u32, low: u32) -> u64 {
    let mut mask = 0;
    for n in low..=high {
        mask |= 1 << n;
    }
    value & mask
}

/// Bit `n` as a truth.
pub(crate) fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}
