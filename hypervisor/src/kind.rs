//! What kind of VM it is, and what follows for the privacy of an access (`kvm->arch.vm_type`).
//!
//! Modelled: `KVM_X86_DEFAULT_VM`, `KVM_X86_SW_PROTECTED_VM` and `KVM_X86_SNP_VM`. A guest of the latter has no bit in its addresses that
//! says which side of the memory it means; KVM takes the page's attribute for its word (`kvm_mmu_page_fault`), and the
//! guest changes attributes by asking the VMM. A guest of `KVM_X86_SNP_VM` has one, the C-bit, and the fault carries it.

use gmem::Shareability;

use crate::fault::FaultInput;

/// The kind of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum VmKind {
    /// `KVM_X86_DEFAULT_VM`: memory is not protected, and every access means shared memory.
    #[default]
    Default,
    /// `KVM_X86_SW_PROTECTED_VM`: memory is private or shared by attribute, enforced by software alone.
    SwProtected,
    /// `KVM_X86_SNP_VM`: private memory is the guest's by the reverse map ([`crate::snp`]).
    Snp,
}

impl VmKind {
    /// Whether pages can be private (`kvm_arch_has_private_mem`).
    pub const fn has_private_memory(self) -> bool {
        matches!(self, VmKind::SwProtected | VmKind::Snp)
    }

    /// The fault with the side of the memory that the guest means. It is read before the sequence of invalidations is
    /// sampled, as KVM reads it: a conversion in between is seen by the check that follows the sample, and the fault
    /// becomes an exit to the VMM.
    pub(crate) fn meant(self, input: FaultInput, attribute: impl FnOnce() -> Shareability) -> FaultInput {
        match self {
            VmKind::Default | VmKind::Snp => input,
            VmKind::SwProtected => FaultInput { privacy: attribute(), ..input },
        }
    }
}
