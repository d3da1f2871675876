//! The attestation report.
//!
//! Source: SEV-SNP firmware ABI, "Attestation Report", version 2, with the fields that AMD's published firmware fills.

use super::bytes::put;
use super::chip::{Chip, SIGNATURE_BYTES};
use super::policy::AbiVersion;

/// Length of a report with its signature.
pub const REPORT_BYTES: usize = 0x4a0;

/// Where fields lie.
mod offset {
    pub(super) const VERSION: usize = 0x000;
    pub(super) const GUEST_SVN: usize = 0x004;
    pub(super) const POLICY: usize = 0x008;
    pub(super) const FAMILY_ID: usize = 0x010;
    pub(super) const IMAGE_ID: usize = 0x020;
    pub(super) const VMPL: usize = 0x030;
    pub(super) const SIGNATURE_ALGORITHM: usize = 0x034;
    pub(super) const CURRENT_TCB: usize = 0x038;
    pub(super) const PLATFORM: usize = 0x040;
    pub(super) const KEYS: usize = 0x048;
    pub(super) const REPORT_DATA: usize = 0x050;
    pub(super) const MEASUREMENT: usize = 0x090;
    pub(super) const HOST_DATA: usize = 0x0c0;
    pub(super) const ID_KEY_DIGEST: usize = 0x0e0;
    pub(super) const AUTHOR_KEY_DIGEST: usize = 0x110;
    pub(super) const REPORT_ID: usize = 0x140;
    pub(super) const REPORT_ID_AGENT: usize = 0x160;
    pub(super) const REPORTED_TCB: usize = 0x180;
    pub(super) const CHIP_ID: usize = 0x1a0;
    pub(super) const COMMITTED_TCB: usize = 0x1e0;
    pub(super) const CURRENT_VERSION: usize = 0x1e8;
    pub(super) const COMMITTED_VERSION: usize = 0x1ec;
    pub(super) const LAUNCH_TCB: usize = 0x1f0;
    pub(super) const SIGNATURE: usize = 0x2a0;
}
const VERSION: u32 = 2;
/// ECDSA over P-384 with SHA-384.
const SIGNATURE_ALGORITHM: u32 = 1;
/// The platform has SMT.
const PLATFORM_SMT: u64 = 1 << 0;
/// There is an author's key.
const KEYS_AUTHOR: u32 = 1 << 0;

/// What a report says about a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) guest_svn: u32,
    pub(super) policy: u64,
    pub(super) family_id: [u8; 16],
    pub(super) image_id: [u8; 16],
    pub(super) vmpl: u32,
    pub(super) report_data: [u8; 64],
    pub(super) measurement: [u8; 48],
    pub(super) host_data: [u8; 32],
    pub(super) id_key_digest: [u8; 48],
    pub(super) author_key_digest: Option<[u8; 48]>,
    pub(super) report_id: [u8; 32],
}

impl Report {
    /// The report, signed by the chip's endorsement key.
    pub(super) fn signed(&self, chip: &Chip) -> [u8; REPORT_BYTES] {
        let mut bytes = [0; REPORT_BYTES];
        let tcb = chip.tcb.bits().to_le_bytes();
        let AbiVersion { major, minor } = AbiVersion::MODELLED;
        let version = [0, minor, major, 0];
        let keys = if self.author_key_digest.is_some() { KEYS_AUTHOR } else { 0 };
        let fields: &[(usize, &[u8])] = &[
            (offset::VERSION, &VERSION.to_le_bytes()),
            (offset::GUEST_SVN, &self.guest_svn.to_le_bytes()),
            (offset::POLICY, &self.policy.to_le_bytes()),
            (offset::FAMILY_ID, &self.family_id),
            (offset::IMAGE_ID, &self.image_id),
            (offset::VMPL, &self.vmpl.to_le_bytes()),
            (offset::SIGNATURE_ALGORITHM, &SIGNATURE_ALGORITHM.to_le_bytes()),
            (offset::CURRENT_TCB, &tcb),
            (offset::PLATFORM, &PLATFORM_SMT.to_le_bytes()),
            (offset::KEYS, &keys.to_le_bytes()),
            (offset::REPORT_DATA, &self.report_data),
            (offset::MEASUREMENT, &self.measurement),
            (offset::HOST_DATA, &self.host_data),
            (offset::ID_KEY_DIGEST, &self.id_key_digest),
            (offset::AUTHOR_KEY_DIGEST, &self.author_key_digest.unwrap_or([0; 48])),
            (offset::REPORT_ID, &self.report_id),
            // There is no migration agent.
            (offset::REPORT_ID_AGENT, &[0xff; 32]),
            (offset::REPORTED_TCB, &tcb),
            (offset::CHIP_ID, chip.id()),
            (offset::COMMITTED_TCB, &tcb),
            (offset::CURRENT_VERSION, &version),
            (offset::COMMITTED_VERSION, &version),
            (offset::LAUNCH_TCB, &tcb),
        ];
        for (at, value) in fields {
            put(&mut bytes, *at, value);
        }
        let signature: [u8; SIGNATURE_BYTES] = chip.sign(&bytes[..offset::SIGNATURE]);
        put(&mut bytes, offset::SIGNATURE, &signature);
        bytes
    }
}
