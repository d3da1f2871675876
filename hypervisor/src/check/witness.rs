//! What only the caller of a check can know.

use emu_core::{Gfn, PageSize, Sfn};
use gmem::Shareability;

use crate::vcpu::VcpuId;

/// A translation of guest frames that a processor has cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// First guest frame.
    pub gfn: Gfn,
    /// First system frame.
    pub sfn: Sfn,
    /// How much it covers.
    pub size: PageSize,
}

/// Answers of the caller. Whatever is not known is not checked.
pub trait Witness {
    /// Calls `each` for the translations that `vcpu` has cached.
    fn translations(&self, _vcpu: VcpuId, _each: &mut dyn FnMut(Cached)) {}

    /// Calls `each` for the guest frames that `vcpu` can write by what it has cached, without a look at the tables.
    fn stores(&self, _vcpu: VcpuId, _each: &mut dyn FnMut(Gfn)) {}

    /// Calls `each` for the system frames that `vcpu`, over shadow tables, can write by what it has cached.
    fn writable_frames(&self, _vcpu: VcpuId, _each: &mut dyn FnMut(Sfn)) {}

    /// Whether `vcpu` executes the guest at this moment.
    fn in_guest(&self, _vcpu: VcpuId) -> bool {
        false
    }

    /// The page that `vcpu`, which is in an SNP guest, runs from.
    fn save_area(&self, _vcpu: VcpuId) -> Option<Sfn> {
        None
    }

    /// What the guest meant when the leaf that starts at `gfn` was installed.
    fn meant(&self, _gfn: Gfn) -> Option<Shareability> {
        None
    }

    /// References that the host holds on the folio around `sfn`, beside the page cache's; `None` when nobody counted.
    fn extra_references(&self, _sfn: Sfn) -> Option<u32> {
        None
    }
}

/// Knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen;

impl Witness for Unseen {}
