//! What an SNP guest is to be: how it is launched, and under which policy.

use emu_core::sev::Vmpl;
use hypervisor::snp::memory::{Assign, RmpSizes};

use super::{ConfigError, parse_seed};

/// Who makes RAM valid before the kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SnpBoot {
    /// The launch: every page of RAM is part of it, and of its digest.
    #[default]
    Launch,
    /// stage0: the launch covers it, the kernel's file and the ramdisk, and it makes the rest valid from inside.
    Stage0,
}

/// The properties of `--vm snp`, and the flags that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnpChoice {
    /// How it starts.
    pub boot: SnpBoot,
    /// The guest policy, as the firmware's command SNP_LAUNCH_START takes it.
    pub policy: u64,
    /// Number of the C-bit in the guest's page-table entries.
    pub c_bit: u8,
    /// The privilege level that the processors start at.
    pub vmpl: Vmpl,
    /// When a page that became private is assigned.
    pub assign: Assign,
    /// How large the entries of the RMP may be.
    pub sizes: RmpSizes,
}

impl Default for SnpChoice {
    fn default() -> SnpChoice {
        SnpChoice {
            boot: SnpBoot::default(),
            policy: SnpChoice::POLICY,
            c_bit: SnpChoice::C_BIT,
            vmpl: Vmpl::Vmpl0,
            assign: Assign::default(),
            sizes: RmpSizes::default(),
        }
    }
}

impl SnpChoice {
    /// SMT allowed, and the bit that must be set: what VMMs usually ask for.
    pub const POLICY: u64 = 0x3_0000;
    /// Where the processors that have SNP have it.
    pub const C_BIT: u8 = 51;
}

/// What `--policy` says.
pub fn parse_policy(text: &str) -> Result<u64, ConfigError> {
    parse_seed(text).map_err(|_| ConfigError::Policy(text.to_owned()))
}

/// What `--cbit` says: above every address that RAM can have.
pub fn parse_c_bit(text: &str) -> Result<u8, ConfigError> {
    let number = text.parse().ok().filter(|bit| (47..=51).contains(bit));
    number.ok_or_else(|| ConfigError::CBit(text.to_owned()))
}

/// What `--vmpl` says.
pub fn parse_vmpl(text: &str) -> Result<Vmpl, ConfigError> {
    text.parse().ok().and_then(Vmpl::new).ok_or_else(|| ConfigError::Vmpl(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_bits_and_levels() {
        assert_eq!((parse_policy("0x30000"), parse_policy("196608")), (Ok(0x3_0000), Ok(0x3_0000)));
        assert_eq!(parse_policy("loose"), Err(ConfigError::Policy("loose".to_owned())));
        assert_eq!((parse_c_bit("51"), parse_c_bit("47")), (Ok(51), Ok(47)));
        for text in ["46", "52", "-1", "c"] {
            assert_eq!(parse_c_bit(text), Err(ConfigError::CBit(text.to_owned())));
        }
        assert_eq!(parse_vmpl("3"), Ok(Vmpl::Vmpl3));
        assert_eq!(parse_vmpl("4"), Err(ConfigError::Vmpl("4".to_owned())));
    }
}
