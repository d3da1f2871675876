//! What `kvm`, `kvm_intel` and `kvm_amd` take as module parameters: how the MMU works, not what the VM is.

use crate::dirty::{RingSize, RingWithBitmap};
use crate::tdp::AdType;

/// `eager_page_split`: whether huge leaves are split when dirty logging starts, or by the first fault on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum EagerPageSplit {
    /// When it starts.
    #[default]
    On,
    /// By faults.
    Off,
}

/// `nx_huge_pages`: whether leaves above 4K may be executed (the workaround for "iTLB multihit").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NxHugePages {
    /// They may.
    #[default]
    Off,
    /// They may not: a fetch from one splits it.
    On,
}

/// `mmio_caching`: whether the tables say where no memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum MmioCaching {
    /// They do: the next access to a device needs no memslot lookup.
    #[default]
    On,
    /// They do not.
    Off,
}

/// `pml`: whether processors log what they write where the tables are in EPT format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Pml {
    /// They do not: write protection finds it.
    #[default]
    Off,
    /// They do. Whoever runs them gives each its [`crate::Vm::pml_buffer`], and hands it to
    /// [`crate::Vm::flush_pml_buffer`] whenever the processor leaves the guest.
    On,
}

/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ManualProtect {
    /// Reading the log protects again and clears.
    #[default]
    Off,
    /// Reading only reads; clearing is a call of its own.
    On,
    /// The same, and a log starts with every page dirty (`KVM_DIRTY_LOG_INITIALLY_SET`).
    InitiallySet,
}

/// `KVM_CAP_DIRTY_LOG_RING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirtyRingConfig {
    /// Its size.
    pub size: RingSize,
    /// `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP`.
    pub bitmap: RingWithBitmap,
}

/// `KVM_X86_QUIRK_SLOT_ZAP_ALL`: what goes when a memslot is deleted or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SlotZap {
    /// The leaves of the slot.
    #[default]
    Leaves,
    /// Everything, fast ([`crate::Vm::zap_all_fast`]): whoever runs the processors loads new roots. A VM with private
    /// memory loses the slot's leaves alone whatever this says, because what its other slots hold could not come back.
    All,
}

/// The parameters of a VM's MMU; the default is what Linux has on a processor without flaws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MmuParams {
    /// How leaves record accesses (`eptad` of `kvm_intel`). NPT knows [`AdType::Enabled`] alone.
    pub ad: AdType,
    /// See [`EagerPageSplit`].
    pub eager_page_split: EagerPageSplit,
    /// What the parameter is when the VM starts.
    pub nx_huge_pages: NxHugePages,
    /// See [`Pml`].
    pub pml: Pml,
    /// See [`ManualProtect`].
    pub manual_protect: ManualProtect,
    /// One ring per virtual processor instead of bitmaps.
    pub dirty_ring: Option<DirtyRingConfig>,
    /// See [`SlotZap`].
    pub slot_zap: SlotZap,
    /// See [`MmioCaching`].
    pub mmio_caching: MmioCaching,
}
