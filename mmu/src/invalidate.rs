//! The operands of the invalidation instructions.
//!
//! Source: Intel SDM vol. 2, "INVPCID", "INVEPT", "INVVPID"; AMD APM vol. 3, "INVLPGA". Checks of operands that lead to
//! #GP or VMfail belong to the instruction.

use emu_core::Gva;

use crate::paging::Pcid;
use crate::stage2::{Eptp, Vpid};

/// The four types of INVPCID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invpcid {
    /// Type 0: one address under one PCID, global pages excepted.
    Address {
        /// The PCID.
        pcid: Pcid,
        /// The address.
        gva: Gva,
    },
    /// Type 1: one PCID, global pages excepted.
    Single {
        /// The PCID.
        pcid: Pcid,
    },
    /// Type 2: all PCIDs, global pages included.
    AllWithGlobals,
    /// Type 3: all PCIDs, global pages excepted.
    All,
}

/// The two types of INVEPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invept {
    /// Type 1: what was made with the tree of this pointer (bits 51:12 identify it).
    Single {
        /// The pointer.
        eptp: Eptp,
    },
    /// Type 2: what was made with any tree.
    All,
}

/// The four types of INVVPID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invvpid {
    /// Type 0: one address under one VPID.
    Address {
        /// The VPID.
        vpid: Vpid,
        /// The address.
        gva: Gva,
    },
    /// Type 1: one VPID.
    Single {
        /// The VPID.
        vpid: Vpid,
    },
    /// Type 2: every VPID but 0.
    All,
    /// Type 3: one VPID, global pages excepted.
    SingleRetainingGlobals {
        /// The VPID.
        vpid: Vpid,
    },
}

/// Whether a flush of an ASID spares global pages (TLB_CONTROL 3 and 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Globals {
    /// They go too.
    Drop,
    /// They stay.
    Keep,
}
