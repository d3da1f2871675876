//! What an access of the host through its direct map meets (AMD APM volume 2, "Secure Nested Paging"; the host's side of
//! the RMP check).
//!
//! [`DirectMap::check`] says it for one access. The RMP itself is the caller's; it answers which frame of a range is
//! assigned to a guest.

use emu_core::{PageSize, Sfn};

use super::{DirectMap, M2};

/// What the host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostOp {
    /// A load.
    Read,
    /// A store.
    Write,
}

/// What protects private pages from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing but good manners: a software-protected VM.
    Software,
    /// Encryption and a table of owners: SEV-SNP, TDX.
    Hardware,
}

/// What comes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAccess {
    /// The bytes.
    Bytes,
    /// A read of bytes under a key that the host has not.
    Ciphertext,
    /// A host page fault: no entry.
    NotMapped,
    /// A host page fault with the RMP bit: the entry reaches over a page that is the guest's.
    RmpFault {
        /// The first such page.
        assigned: Sfn,
        /// Size of the entry.
        mapping: PageSize,
    },
}

impl DirectMap {
    /// The host accesses `sfn`. `assigned` gives the first frame of a range, as `(first, frames)`, that is a guest's.
    /// Through an entry larger than 4K a write is judged by its whole 2M; 1G entries are checked as 2M.
    pub fn check(
        &self,
        sfn: Sfn,
        op: HostOp,
        protection: Protection,
        assigned: impl Fn(Sfn, u64) -> Option<Sfn>,
    ) -> HostAccess {
        let Some(mapping) = self.lookup(sfn) else { return HostAccess::NotMapped };
        match (protection, op) {
            (Protection::Software, _) => HostAccess::Bytes,
            (Protection::Hardware, HostOp::Read) => match assigned(sfn, 1) {
                None => HostAccess::Bytes,
                Some(_) => HostAccess::Ciphertext,
            },
            (Protection::Hardware, HostOp::Write) => {
                let (first, nr_frames) = match mapping {
                    PageSize::Size4K => (sfn, 1),
                    _ => (sfn.align_down(PageSize::Size2M), M2),
                };
                assigned(first, nr_frames)
                    .map_or(HostAccess::Bytes, |assigned| HostAccess::RmpFault { assigned, mapping })
            }
        }
    }
}
