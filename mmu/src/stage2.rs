//! The second stage of translation: which nested tables are in force, and the identity that tags what is cached.
//!
//! Source: AMD APM vol. 2, "Nested Paging" and "TLB Control"; Intel SDM vol. 3, "VMX Support for Address Translation".
//! A vCPU's state names the roots, whoever set them: a hypervisor beneath us, or guest software that runs VMRUN itself.

use emu_core::Spa;
use emu_core::sev::Vmpl;

use crate::format::bits;
use crate::level::Level;

/// Address-space identifier of SVM. 0 is the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asid(pub u32);

/// Virtual-processor identifier of VMX. 0 is the host, and every guest without VPIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vpid(pub u16);

/// The identity under which translations are cached, whichever vendor gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpaceTag {
    /// SVM.
    Asid(Asid),
    /// VMX.
    Vpid(Vpid),
}

/// How guest physical addresses become system physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2 {
    /// No guest runs: guest physical is system physical, under ASID 0 or VPID 0.
    None,
    /// A guest without nested paging (a hypervisor that shadows its tables): as [`Stage2::None`], under its own tag.
    Untranslated(SpaceTag),
    /// AMD nested page tables.
    Npt(Npt),
    /// Intel extended page tables.
    Ept(Ept),
}

/// Depth of a nested table tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage2Levels {
    /// 48-bit guest physical addresses.
    Four,
    /// 57-bit guest physical addresses, of which 52 can exist.
    Five,
}

impl Stage2Levels {
    pub(crate) const fn top(self) -> Level {
        match self {
            Stage2Levels::Four => Level::PML4,
            Stage2Levels::Five => Level::PML5,
        }
    }
}

/// Whether bit 63 of a nested entry forbids execution (the host's EFER.NXE at VMRUN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NestedNx {
    /// NXE set: bit 63 is NX.
    Enabled,
    /// NXE clear: bit 63 is reserved.
    Reserved,
}

/// NPT as VMRUN establishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    /// nCR3: the root table. Bits 11:0 are ignored.
    pub root: Spa,
    /// The host's CR4.LA57.
    pub levels: Stage2Levels,
    /// The host's EFER.NXE.
    pub nx: NestedNx,
    /// The guest's ASID.
    pub asid: Asid,
    /// What the VMSA of an SNP-active guest says; `None` for every other guest.
    pub snp: Option<SnpGuest>,
}

/// What translation must know of an SNP-active guest (APM vol. 2, "Secure Nested Paging (SEV-SNP)"). It is part of the
/// second stage, so that what is cached for one privilege level is not found by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnpGuest {
    /// Number of the C-bit in the entries of the guest's tables (CPUID 8000_001F EBX 5:0), 32 to 51.
    pub c_bit: u8,
    /// The privilege level that runs.
    pub vmpl: Vmpl,
}

impl SnpGuest {
    /// The C-bit as a mask; nothing for a number outside the address field of an entry.
    pub(crate) const fn c_bit_mask(self) -> u64 {
        if self.c_bit < 64 { (1 << self.c_bit) & bits::ADDRESS } else { 0 }
    }
}

/// The EPT pointer of a VMCS (Intel SDM vol. 3, "Extended-Page-Table Pointer (EPTP)"). Its checks belong to VM entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eptp(pub u64);

impl Eptp {
    /// Bit 6: accessed and dirty flags for EPT.
    pub const ACCESSED_DIRTY: u64 = 1 << 6;

    /// The pointer for `root` with write-back tables.
    pub const fn new(root: Spa, levels: Stage2Levels, accessed_dirty: EptAccessedDirty) -> Eptp {
        let length = match levels {
            Stage2Levels::Four => 3 << 3,
            Stage2Levels::Five => 4 << 3,
        };
        let flags = match accessed_dirty {
            EptAccessedDirty::Enabled => Self::ACCESSED_DIRTY,
            EptAccessedDirty::Disabled => 0,
        };
        Eptp(root.raw() & ROOT_MASK | length | flags | 6)
    }
    /// The root table. Bits 51:12 of the pointer identify the tree (EP4TA).
    pub const fn root(self) -> Spa {
        Spa::new(self.0 & ROOT_MASK)
    }
    /// Walk length, bits 5:3: 4 there means five levels, any other value four.
    pub const fn levels(self) -> Stage2Levels {
        if self.0 >> 3 & 7 == 4 { Stage2Levels::Five } else { Stage2Levels::Four }
    }
    /// Bit 6.
    pub const fn accessed_dirty(self) -> EptAccessedDirty {
        if self.0 & Self::ACCESSED_DIRTY != 0 { EptAccessedDirty::Enabled } else { EptAccessedDirty::Disabled }
    }
}

const ROOT_MASK: u64 = 0x000f_ffff_ffff_f000;

/// EPTP bit 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EptAccessedDirty {
    /// The processor keeps bits 8 and 9, and treats each access to guest tables as a write.
    Enabled,
    /// Bits 8 and 9 are ignored.
    Disabled,
}

/// The control "mode-based execute control for EPT".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EptExecute {
    /// Bit 2 allows every fetch; bit 10 is ignored.
    Single,
    /// Bit 2 allows fetches from supervisor-mode linear addresses, bit 10 from user-mode ones.
    ModeBased,
}

/// EPT as a VM entry establishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    /// Root, depth, accessed and dirty flags.
    pub eptp: Eptp,
    /// Meaning of the execute bits.
    pub execute: EptExecute,
    /// The guest's VPID.
    pub vpid: Vpid,
}
