//! What `--inject` says: what the host of an SNP guest does to it, when, and to which page.

use core::fmt;
use core::str::FromStr;

use emu_core::Gpa;

use super::{ConfigError, parse_seed};

/// What a host does that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lie {
    /// It writes back what it read earlier from a private page.
    Replay,
    /// It lets a page's leaf show another private frame of the guest.
    Remap,
    /// It lets two leaves show each other's frames.
    Swap,
    /// It changes the size of an entry of the RMP, and nothing else.
    Resize,
    /// It takes a page away and gives a new one at the same address, hoping that the guest validates it again.
    DoubleValidate,
    /// It makes a page its own, under the guest.
    Drop,
    /// It answers a VMGEXIT with an outcome that the protocol does not have.
    Ghcb,
    /// It answers an input from a port, and says that none of the answer is valid.
    GhcbValid,
    /// It answers CPUID with the opposite of every bit.
    Cpuid,
}

impl Lie {
    /// All of them, as they are listed.
    pub const ALL: [Lie; 9] = [
        Lie::Replay,
        Lie::Remap,
        Lie::Swap,
        Lie::Resize,
        Lie::DoubleValidate,
        Lie::Drop,
        Lie::Ghcb,
        Lie::GhcbValid,
        Lie::Cpuid,
    ];

    /// Its name in the flag and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Lie::Replay => "replay",
            Lie::Remap => "remap",
            Lie::Swap => "swap",
            Lie::Resize => "resize",
            Lie::DoubleValidate => "double-validate",
            Lie::Drop => "drop",
            Lie::Ghcb => "ghcb",
            Lie::GhcbValid => "ghcb-valid",
            Lie::Cpuid => "cpuid",
        }
    }

    /// Whether it is told about a page, and not in an answer.
    pub const fn is_about_a_page(self) -> bool {
        !matches!(self, Lie::Ghcb | Lie::GhcbValid | Lie::Cpuid)
    }
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LieTarget {
    /// One of those that are mapped and validated, by the seed.
    Seed,
    /// The one that the first processor executes at that moment. A real host would have to find it by its page faults.
    Code,
    /// The one around this address.
    Page(Gpa),
}

/// One lie: what, when, on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// What is done.
    pub lie: Lie,
    /// When all processors together have executed so many instructions; an answer is falsified at the first occasion from
    /// then on.
    pub at: u64,
    /// To which page.
    pub target: LieTarget,
}

impl Injection {
    /// When it happens if nobody says when: the kernel of an ordinary Linux guest is at work by then.
    pub const AT: u64 = 500_000_000;
}

impl FromStr for Injection {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Injection, ConfigError> {
        let refused = || ConfigError::Injection(text.to_owned());
        let (head, target) = match text.split_once(':') {
            None => (text, LieTarget::Seed),
            Some((head, "code")) => (head, LieTarget::Code),
            Some((head, gpa)) => (head, LieTarget::Page(Gpa::new(parse_seed(gpa).map_err(|_| refused())?))),
        };
        let (name, at) = match head.split_once('@') {
            None => (head, Injection::AT),
            Some((name, at)) => (name, parse_seed(at).map_err(|_| refused())?),
        };
        let lie = Lie::ALL.into_iter().find(|lie| lie.name() == name).ok_or_else(refused)?;
        if target != LieTarget::Seed && !lie.is_about_a_page() {
            return Err(ConfigError::LieWithoutPage(lie));
        }
        Ok(Injection { lie, at, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lie_can_be_asked_for() {
        for lie in Lie::ALL {
            let plain = Injection { lie, at: Injection::AT, target: LieTarget::Seed };
            assert_eq!(lie.name().parse(), Ok(plain));
            assert_eq!(format!("{lie}@7").parse(), Ok(Injection { at: 7, ..plain }));
            let placed = format!("{lie}@0x10:0x1000").parse();
            let expected = Injection { at: 16, target: LieTarget::Page(Gpa::new(0x1000)), ..plain };
            match lie.is_about_a_page() {
                true => assert_eq!(placed, Ok(expected)),
                false => assert_eq!(placed, Err(ConfigError::LieWithoutPage(lie))),
            }
        }
        assert_eq!("drop:code".parse(), Ok(Injection { lie: Lie::Drop, at: Injection::AT, target: LieTarget::Code }));
    }

    #[test]
    fn what_is_no_lie_is_refused_by_name() {
        for text in ["", "dropp", "drop@", "drop@soon", "drop:", "drop:here", "drop@1:2:3", "@5", "Drop"] {
            assert_eq!(text.parse::<Injection>(), Err(ConfigError::Injection(text.to_owned())));
        }
    }
}
