//! What `kvm`, `kvm_intel` and `kvm_amd` take as module parameters: how the MMU works, not what the VM is.

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

/// The parameters of a VM's MMU; the default is what Linux has on a processor without flaws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MmuParams {
    /// How leaves record accesses (`eptad` of `kvm_intel`). NPT knows [`AdType::Enabled`] alone.
    pub ad: AdType,
    /// See [`EagerPageSplit`].
    pub eager_page_split: EagerPageSplit,
    /// What the parameter is when the VM starts.
    pub nx_huge_pages: NxHugePages,
    /// See [`MmioCaching`].
    pub mmio_caching: MmioCaching,
}
