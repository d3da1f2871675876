//! What `--inject` says: what the host of an SNP guest does to it, when, and to which page.

use core::fmt;
use core::str::FromStr;

use emu_core::{Gpa, PageSize};

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

/// What the architecture promises against a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Defence {
    /// The host's instruction or access fails, and the guest does not notice.
    Refused,
    /// The guest's next use is a nested fault with the RMP bit; nothing wrong is read, and nothing is lost.
    Caught,
    /// The same, and then #VC with 0x404, because the page has to be validated anew.
    CaughtAndUnvalidated,
    /// #VC with 0x404 at the guest's next use.
    Unvalidated,
    /// Nothing: the guest's own software must notice.
    Guest,
}

impl Defence {
    /// Its name in reports and in the table of docs/sev-snp-faults.md.
    pub const fn name(self) -> &'static str {
        match self {
            Defence::Refused => "refused",
            Defence::Caught => "caught",
            Defence::CaughtAndUnvalidated => "caught, then #VC",
            Defence::Unvalidated => "#VC",
            Defence::Guest => "guest",
        }
    }
}

/// Every lie, the size of the page's entry where it matters, and what stands against it.
const DEFENCES: [(Lie, Option<PageSize>, Defence); 10] = [
    (Lie::Replay, None, Defence::Refused),
    (Lie::Remap, None, Defence::Caught),
    (Lie::Swap, None, Defence::Caught),
    (Lie::Resize, Some(PageSize::Size4K), Defence::Refused),
    (Lie::Resize, Some(PageSize::Size2M), Defence::Caught),
    (Lie::Drop, None, Defence::CaughtAndUnvalidated),
    (Lie::DoubleValidate, None, Defence::Unvalidated),
    (Lie::Ghcb, None, Defence::Guest),
    (Lie::GhcbValid, None, Defence::Guest),
    (Lie::Cpuid, None, Defence::Guest),
];

impl Lie {
    /// What the architecture promises when it is told about a page with an entry of this size; for an answer the size does
    /// not matter.
    pub fn defence(self, entry: PageSize) -> Defence {
        let row = DEFENCES.iter().find(|(lie, size, _)| *lie == self && size.is_none_or(|size| size == entry));
        row.map_or(Defence::Guest, |&(_, _, defence)| defence)
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
    /// The one that its stack pointer points to, as soon as it executes a program, at CPL 3.
    User,
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
            Some((head, "user")) => (head, LieTarget::User),
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
        for (word, target) in [("code", LieTarget::Code), ("user", LieTarget::User)] {
            assert_eq!(format!("drop:{word}").parse(), Ok(Injection { lie: Lie::Drop, at: Injection::AT, target }));
            assert_eq!(format!("cpuid:{word}").parse::<Injection>(), Err(ConfigError::LieWithoutPage(Lie::Cpuid)));
        }
    }

    #[test]
    fn every_lie_has_a_defence_for_every_size_and_the_documentation_says_the_same() {
        for lie in Lie::ALL {
            for size in [PageSize::Size4K, PageSize::Size2M] {
                let rows = DEFENCES.iter().filter(|(of, at, _)| *of == lie && at.is_none_or(|at| at == size));
                assert_eq!(rows.count(), 1, "{lie} {size}");
            }
        }
        let table = include_str!("../../docs/sev-snp-faults.md").lines().filter(|line| line.starts_with("| `"));
        let documented = table.map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            (cells[0].to_owned(), cells[cells.len() - 2].to_owned())
        });
        let declared = DEFENCES.iter().map(|(lie, size, defence)| {
            let of = size.map_or(String::new(), |size| format!(", entry of {size}"));
            (format!("`{lie}`{of}"), format!("`{}`", defence.name()))
        });
        assert_eq!(documented.collect::<Vec<_>>(), declared.collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_lie_is_refused_by_name() {
        for text in ["", "dropp", "drop@", "drop@soon", "drop:", "drop:here", "drop@1:2:3", "@5", "Drop"] {
            assert_eq!(text.parse::<Injection>(), Err(ConfigError::Injection(text.to_owned())));
        }
    }
}
