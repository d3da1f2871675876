//! What a guest's owner demands of a platform.
//!
//! Source: SEV-SNP firmware ABI, "Guest Policy"; Linux `arch/x86/kvm/svm/sev.c:snp_launch_start` for what KVM takes.

use thiserror::Error;

use super::status::FirmwareStatus;

/// Version of the firmware's ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AbiVersion {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
}

impl AbiVersion {
    /// Of the firmware that is modelled.
    pub const MODELLED: AbiVersion = AbiVersion { major: 1, minor: 55 };
}

/// The policy of an SNP guest, 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy(u64);

/// Why KVM does not take a policy (`EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PolicyRefused {
    /// Bits are set that KVM does not know.
    #[error("policy bits {bits:#x} are not known")]
    Unknown {
        /// Those bits.
        bits: u64,
    },
    /// A bit is clear that must be set.
    #[error("policy {policy:#x} must have SMT (bit 16) and the reserved bit 17")]
    Missing {
        /// The policy.
        policy: u64,
    },
    /// A single socket is demanded.
    #[error("policy bit 20, a single socket, is not supported")]
    SingleSocket,
}

impl Policy {
    const SMT: u64 = 1 << 16;
    const RESERVED_ONE: u64 = 1 << 17;
    const MIGRATION_AGENT: u64 = 1 << 18;
    const DEBUG: u64 = 1 << 19;
    const SINGLE_SOCKET: u64 = 1 << 20;
    const VERSION: u64 = 0xffff;
    const DEFINED: u64 = Policy::VERSION
        | Policy::SMT
        | Policy::RESERVED_ONE
        | Policy::MIGRATION_AGENT
        | Policy::DEBUG
        | Policy::SINGLE_SOCKET;

    /// What most guests have: SMT allowed, nothing else.
    pub const USUAL: Policy = Policy(Policy::SMT | Policy::RESERVED_ONE);

    /// The policy with these bits, checked by whoever uses it.
    pub const fn new(bits: u64) -> Policy {
        Policy(bits)
    }

    /// Its 64 bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The least version of the ABI.
    pub const fn least_abi(self) -> AbiVersion {
        AbiVersion { major: (self.0 >> 8) as u8, minor: self.0 as u8 }
    }

    /// Whether the hypervisor may read and write the guest's memory through the firmware.
    pub const fn debug(self) -> bool {
        self.0 & Policy::DEBUG != 0
    }

    /// What KVM checks before it asks the firmware.
    pub const fn check_kvm(self) -> Result<Policy, PolicyRefused> {
        let known = Policy::DEFINED & !Policy::MIGRATION_AGENT;
        if self.0 & !known != 0 {
            return Err(PolicyRefused::Unknown { bits: self.0 & !known });
        }
        let needed = Policy::SMT | Policy::RESERVED_ONE;
        if self.0 & needed != needed {
            return Err(PolicyRefused::Missing { policy: self.0 });
        }
        if self.0 & Policy::SINGLE_SOCKET != 0 {
            return Err(PolicyRefused::SingleSocket);
        }
        Ok(self)
    }

    /// What the firmware checks at LAUNCH_START of a guest without a migration agent, on a platform with SMT.
    pub(super) fn check_firmware(self) -> Result<(), FirmwareStatus> {
        let bits_fit = self.0 & !Policy::DEFINED == 0;
        let allows_platform = self.0 & Policy::RESERVED_ONE != 0 && self.0 & Policy::SMT != 0;
        if !bits_fit || !allows_platform || self.least_abi() > AbiVersion::MODELLED {
            return Err(FirmwareStatus::PolicyFailure);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_policy_passes_both_checks() {
        assert_eq!(Policy::USUAL.bits(), 0x3_0000);
        assert_eq!(Policy::USUAL.check_kvm(), Ok(Policy::USUAL));
        assert_eq!(Policy::USUAL.check_firmware(), Ok(()));
    }

    #[test]
    fn each_bit_is_judged_as_kvm_and_the_firmware_do() {
        for bit in 0..64 {
            let policy = Policy::new(Policy::USUAL.bits() ^ 1 << bit);
            let kvm = match bit {
                0..=15 | 19 => Ok(policy),
                16 | 17 => Err(PolicyRefused::Missing { policy: policy.bits() }),
                20 => Err(PolicyRefused::SingleSocket),
                _ => Err(PolicyRefused::Unknown { bits: 1 << bit }),
            };
            assert_eq!(policy.check_kvm(), kvm, "bit {bit}");
            // Bits 9 to 15 ask for a major version of 2 and more.
            let taken = matches!(bit, 0..=8 | 18..=20);
            assert_eq!(policy.check_firmware().is_ok(), taken, "bit {bit}");
        }
    }

    #[test]
    fn the_version_that_is_demanded_must_not_be_newer() {
        for (major, minor, taken) in [(1, 55, true), (1, 56, false), (0, 255, true), (2, 0, false)] {
            let policy = Policy::new(Policy::USUAL.bits() | major << 8 | minor);
            assert_eq!(policy.check_firmware().is_ok(), taken, "{major}.{minor}");
        }
    }
}
