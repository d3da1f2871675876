//! The secrets page, which the firmware writes into a guest at launch: the keys of its messages.
//!
//! Source: SEV-SNP firmware ABI, "Secrets Page", version 3; Linux `struct snp_secrets_page`.

use emu_core::page::PAGE_SIZE;

use super::bytes::{get, put};

/// A key of messages between a guest and the firmware (VMPCK): one for each privilege level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Vmpck(pub(super) [u8; 32]);

impl core::fmt::Debug for Vmpck {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Vmpck(..)")
    }
}

impl Vmpck {
    /// The key that a guest reads in its secrets page.
    pub const fn new(bytes: [u8; 32]) -> Vmpck {
        Vmpck(bytes)
    }
}

/// Offsets in the page.
mod offset {
    pub(super) const VERSION: usize = 0x000;
    pub(super) const FMS: usize = 0x008;
    pub(super) const GOSVW: usize = 0x010;
    pub(super) const VMPCK: usize = 0x020;
}
const VERSION: u32 = 3;
/// Bytes from one key to the next.
const VMPCK_BYTES: usize = 32;

/// What the firmware tells a guest. What is not here is 0: no migration image, no SVSM, no tweaks of VMSAs, and the fields
/// that the guest keeps for itself (sequence numbers, the jump table of its processors).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretsPage {
    /// Family, model and stepping of the processor, as CPUID leaf 1 gives them in EAX.
    pub fms: u32,
    /// Guest-OS-visible workarounds, as the hypervisor gave them at the start.
    pub gosvw: [u8; 16],
    /// Keys of VMPL 0 to 3.
    pub vmpcks: [Vmpck; 4],
}

impl SecretsPage {
    /// The page.
    pub fn to_bytes(&self) -> Box<[u8; PAGE_SIZE]> {
        let mut page = Box::new([0; PAGE_SIZE]);
        put(&mut page[..], offset::VERSION, &VERSION.to_le_bytes());
        put(&mut page[..], offset::FMS, &self.fms.to_le_bytes());
        put(&mut page[..], offset::GOSVW, &self.gosvw);
        for (number, key) in self.vmpcks.iter().enumerate() {
            put(&mut page[..], offset::VMPCK + number * VMPCK_BYTES, &key.0);
        }
        page
    }

    /// What a guest reads in its page.
    pub fn from_bytes(page: &[u8; PAGE_SIZE]) -> SecretsPage {
        SecretsPage {
            fms: u32::from_le_bytes(get(page, offset::FMS)),
            gosvw: get(page, offset::GOSVW),
            vmpcks: [0, 1, 2, 3].map(|number| Vmpck(get(page, offset::VMPCK + number * VMPCK_BYTES))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_guest_looks_for_them() {
        let vmpcks = [1, 2, 3, 4].map(|byte| Vmpck([byte; 32]));
        let secrets = SecretsPage { fms: 0x00a1_0f11, gosvw: [9; 16], vmpcks };
        let page = secrets.to_bytes();
        assert_eq!(page[..0x10], [3, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x0f, 0xa1, 0, 0, 0, 0, 0]);
        assert_eq!(page[0x10..0x20], [9; 16]);
        for (number, at) in [0x20, 0x40, 0x60, 0x80].into_iter().enumerate() {
            assert_eq!(page[at..at + 32], [number as u8 + 1; 32]);
        }
        assert!(page[0xa0..].iter().all(|&byte| byte == 0));
        assert_eq!(SecretsPage::from_bytes(&page), secrets);
    }
}
