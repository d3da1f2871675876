//! The launch digest: a chain over every page that the firmware put into a guest.
//!
//! Source: SEV-SNP firmware ABI, "Launch Digest", PAGE_INFO. Each 4 KiB is one link; a 2 MiB page is 512 of them.

use core::fmt;

use emu_core::Gpa;
use emu_core::page::PAGE_SIZE;
use mmu::rmp::VmplPermissions;
use sha2::{Digest, Sha384};

use super::PageType;

/// A SHA-384 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaunchDigest([u8; 48]);

impl fmt::Debug for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaunchDigest({self})")
    }
}

impl fmt::Display for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// SHA-384 of some bytes.
pub(super) fn sha384(bytes: &[u8]) -> [u8; 48] {
    Sha384::digest(bytes).into()
}

/// Where processors' save areas that the hypervisor makes are in the measurement: none of the guest's own addresses (KVM).
pub const VMSA_GPA: Gpa = Gpa::new(0x0000_ffff_ffff_f000);

/// Place of GUEST_TSC_SCALE and GUEST_TSC_OFFSET in a VMSA: they are measured as 0.
const VMSA_TSC: core::ops::Range<usize> = 0x2f0..0x300;

/// Length of PAGE_INFO in bytes.
const PAGE_INFO_BYTES: usize = 0x70;

impl LaunchDigest {
    /// Of a guest without pages.
    pub const EMPTY: LaunchDigest = LaunchDigest([0; 48]);

    /// The digest with these bytes.
    pub const fn new(bytes: [u8; 48]) -> LaunchDigest {
        LaunchDigest(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 48] {
        &self.0
    }

    /// The digest after one more page of 4 KiB.
    pub fn extended(
        &self,
        kind: PageType,
        gpa: Gpa,
        contents: &[u8; PAGE_SIZE],
        permissions: [VmplPermissions; 3],
    ) -> LaunchDigest {
        let contents = match kind {
            PageType::Normal => sha384(contents),
            PageType::Vmsa => {
                let mut measured = *contents;
                measured[VMSA_TSC].fill(0);
                sha384(&measured)
            }
            PageType::Zero | PageType::Unmeasured | PageType::Secrets | PageType::Cpuid => [0; 48],
        };
        let mut info = [0; PAGE_INFO_BYTES];
        info[..0x30].copy_from_slice(&self.0);
        info[0x30..0x60].copy_from_slice(&contents);
        info[0x60..0x62].copy_from_slice(&(PAGE_INFO_BYTES as u16).to_le_bytes());
        info[0x62] = kind as u8;
        for (byte, permissions) in info[0x65..0x68].iter_mut().zip(permissions) {
            *byte = permissions.bits();
        }
        info[0x68..].copy_from_slice(&gpa.raw().to_le_bytes());
        LaunchDigest(sha384(&info))
    }
}
