//! The registers that control first-stage paging, and what a change of them means for cached translations.
//!
//! Source: Intel SDM vol. 3, "Paging" and "Invalidation of TLBs and Paging-Structure Caches"; AMD APM vol. 2, "Page
//! Translation and Protection". The door is [`PagingState`]; [`PagingMode`] is derived from it and never stored by a
//! caller. Whether a register value is legal is the processor's business before it gets here.

use bitflags::bitflags;
use emu_core::regs::{Cr0, Cr4, Efer};

/// Whose rules apply where the two manuals differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// Bit 8 of a PML4E or PML5E is reserved.
    Amd,
    /// Bit 8 of a PML4E or PML5E is ignored.
    Intel,
}

bitflags! {
    /// Paging features that the processor reports by CPUID.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PagingCapabilities: u8 {
        /// 1 GiB pages (Page1GB). Without it PS in a PDPTE, guest or nested, is reserved.
        const PAGE_1G = 1 << 0;
        /// Physical addresses above 4 GiB in 4 MiB pages (PSE-36).
        const PSE36 = 1 << 1;
        /// EPT entries that allow execution without reading (IA32_VMX_EPT_VPID_CAP bit 0).
        const EPT_EXECUTE_ONLY = 1 << 2;
    }
}

/// What the processor model says about paging; fixed for the life of an [`crate::Mmu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagingFeatures {
    /// MAXPHYADDR: implemented physical address bits, 32 to 52 (CPUID 8000_0008 EAX).
    pub physical_bits: u8,
    /// Whose rules apply where the manuals differ.
    pub vendor: Vendor,
    /// Optional features.
    pub capabilities: PagingCapabilities,
}

impl PagingFeatures {
    /// A current AMD processor: 48 physical bits, all page sizes.
    pub const AMD: PagingFeatures = PagingFeatures {
        physical_bits: 48,
        vendor: Vendor::Amd,
        capabilities: PagingCapabilities::PAGE_1G.union(PagingCapabilities::PSE36),
    };
    /// A current Intel processor: 46 physical bits, all page sizes, execute-only EPT entries.
    pub const INTEL: PagingFeatures =
        PagingFeatures { physical_bits: 46, vendor: Vendor::Intel, capabilities: PagingCapabilities::all() };

    /// Bits 51 down to MAXPHYADDR: the part of an address field that is reserved.
    pub(crate) const fn reserved_address_bits(&self) -> u64 {
        let bits = if self.physical_bits > 52 { 52 } else { self.physical_bits };
        ((1 << 52) - 1) & !((1 << bits) - 1)
    }
}

/// Everything first-stage paging reads from registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingState {
    /// CR0: PG and WP matter.
    pub cr0: Cr0,
    /// CR3 without the no-flush bit.
    pub cr3: u64,
    /// CR4: PSE, PAE, PGE, LA57, PCIDE, SMEP, SMAP, PKE and PKS matter.
    pub cr4: Cr4,
    /// EFER: LMA and NXE matter.
    pub efer: Efer,
    /// Protection-key rights for user pages: AD in bit 2i, WD in bit 2i+1 of key i.
    pub pkru: u32,
    /// IA32_PKRS: the same for supervisor pages.
    pub pkrs: u32,
    /// The PDPTE registers of PAE paging, on processors that load them with CR3. `None`: the walker reads the four
    /// entries from memory, as AMD processors do under nested paging.
    pub pdptes: Option<[u64; 4]>,
}

impl Default for PagingState {
    /// Paging off.
    fn default() -> Self {
        PagingState { cr0: Cr0::ET, cr3: 0, cr4: Cr4::empty(), efer: Efer::empty(), pkru: 0, pkrs: 0, pdptes: None }
    }
}

impl PagingState {
    /// The paging mode these registers select.
    pub const fn mode(&self) -> PagingMode {
        if !self.cr0.contains(Cr0::PG) {
            PagingMode::Off
        } else if self.efer.contains(Efer::LMA) {
            if self.cr4.contains(Cr4::LA57) { PagingMode::FiveLevel } else { PagingMode::FourLevel }
        } else if self.cr4.contains(Cr4::PAE) {
            PagingMode::Pae
        } else {
            PagingMode::Legacy32
        }
    }

    /// The PCID in force, 0 while CR4.PCIDE is clear.
    pub const fn pcid(&self) -> Pcid {
        if self.cr4.contains(Cr4::PCIDE) { Pcid::new(self.cr3 as u16) } else { Pcid::new(0) }
    }
}

/// The paging modes (Intel SDM vol. 3, "Paging Modes and Control Bits").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// CR0.PG clear: a linear address is a guest physical address.
    Off,
    /// 32-bit paging: two levels of 4-byte entries.
    Legacy32,
    /// PAE paging: three levels of 8-byte entries, 32-bit linear addresses.
    Pae,
    /// 4-level paging: 48-bit linear addresses.
    FourLevel,
    /// 5-level paging: 57-bit linear addresses.
    FiveLevel,
}

/// A process-context identifier, 0 to 4095.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pcid(u16);

impl Pcid {
    /// The identifier in bits 11:0 of `raw`.
    pub const fn new(raw: u16) -> Pcid {
        Pcid(raw & 0xfff)
    }
    /// The number.
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// What changed the paging registers. It decides which cached translations go (Intel SDM vol. 3, "Operations that
/// Invalidate TLBs and Paging-Structure Caches"; APM vol. 2, "TLB Management").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingChange {
    /// MOV to CR0: clearing PG drops everything.
    MovCr0,
    /// MOV to CR3 that flushes: the non-global entries of the new PCID go.
    MovCr3,
    /// MOV to CR3 with bit 63 set while CR4.PCIDE: nothing goes.
    MovCr3NoFlush,
    /// MOV to CR4: everything when PGE, PAE, PSE or LA57 changes or PCIDE is cleared, the current PCID when SMEP is set.
    MovCr4,
    /// WRMSR to EFER: everything when NXE or LMA changes.
    WriteEfer,
    /// WRPKRU, XRSTOR of PKRU, WRMSR to IA32_PKRS: no entry holds key rights, nothing goes.
    ProtectionKeys,
    /// VMRUN, #VMEXIT, VM entry or VM exit loads all of it at once. Nothing goes: what the manuals want flushed there
    /// (TLB_CONTROL, VPID 0) is asked for by the flush operations.
    WorldSwitch,
    /// Reset, INIT, or a debugger: everything goes.
    Reset,
}
