//! How guest_memfd behaves, as a flag writes it: the name of an implementation and, after commas, what differs from it.

use core::str::FromStr;

use gmem::policy::{Content, Generation, GmemPolicy, OrderRule, PunchPolicy, SharedFolios, SplitPolicy};

use super::ConfigError;

/// Values of a property by name.
type Names<T> = &'static [(&'static str, T)];

const SPLIT: Names<SplitPolicy> = &[
    ("eager", SplitPolicy::EagerIntermediate),
    ("eager-4k", SplitPolicy::Eager4K),
    ("lazy", SplitPolicy::Lazy),
    ("always-4k", SplitPolicy::Always4K),
];
const SHARED: Names<SharedFolios> = &[
    ("split", SharedFolios::Split),
    ("whole-if-init-shared", SharedFolios::WholeIfInitShared),
    ("whole", SharedFolios::Whole),
];
const PUNCH: Names<PunchPolicy> =
    &[("zero", PunchPolicy::ZeroPartial), ("refuse", PunchPolicy::Refuse), ("split", PunchPolicy::SplitAndFree)];
const ORDER: Names<OrderRule> = &[
    ("strict", OrderRule::Strict),
    ("all-or-nothing", OrderRule::AllOrNothing),
    ("contained", OrderRule::Contained),
    ("contained-or-zero", OrderRule::ContainedOrZero),
    ("always-zero", OrderRule::AlwaysZero),
    ("unclipped", OrderRule::Unclipped),
];
const CONTENT: Names<Content> = &[("preserve", Content::Preserve), ("zero", Content::Zero)];

/// What `--gmem` says: `v2`, `split=lazy`, `next,punch=split,order=strict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GmemChoice(pub GmemPolicy);

impl FromStr for GmemChoice {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<GmemChoice, ConfigError> {
        let mut policy = GmemPolicy::DEFAULT;
        let mut seen = Vec::new();
        for (n, property) in text.split(',').enumerate() {
            let Some((key, value)) = property.split_once('=') else {
                let generation = Generation::named(property).filter(|_| n == 0);
                policy = generation.ok_or_else(|| ConfigError::Gmem(property.to_owned()))?.policy();
                continue;
            };
            if seen.contains(&key) {
                return Err(ConfigError::Gmem(property.to_owned()));
            }
            seen.push(key);
            let refused = || ConfigError::Gmem(property.to_owned());
            match key {
                "split" => policy.split = named(SPLIT, value).ok_or_else(refused)?,
                "shared" => policy.shared = named(SHARED, value).ok_or_else(refused)?,
                "punch" => policy.punch = named(PUNCH, value).ok_or_else(refused)?,
                "order" => policy.order = named(ORDER, value).ok_or_else(refused)?,
                "to-shared" => policy.to_shared = named(CONTENT, value).ok_or_else(refused)?,
                "to-private" => policy.to_private = named(CONTENT, value).ok_or_else(refused)?,
                _ => return Err(refused()),
            }
        }
        Ok(GmemChoice(policy))
    }
}

fn named<T: Copy>(names: Names<T>, wanted: &str) -> Option<T> {
    names.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_and_what_differs_from_it() {
        let policy = |text: &str| text.parse::<GmemChoice>().map(|choice| choice.0);
        assert_eq!(policy("next"), Ok(Generation::Next.policy()));
        assert_eq!(policy("split=lazy"), Ok(GmemPolicy { split: SplitPolicy::Lazy, ..GmemPolicy::DEFAULT }));
        let v2 = Generation::V2.policy();
        let differs = GmemPolicy { punch: PunchPolicy::SplitAndFree, order: OrderRule::Strict, ..v2 };
        assert_eq!(policy("v2,punch=split,order=strict"), Ok(differs));
        for wrong in ["", "v9", "split=never", "slpit=lazy", "split=lazy,v2", "split=lazy,split=eager", "split"] {
            assert!(matches!(policy(wrong), Err(ConfigError::Gmem(_))), "{wrong}");
        }
    }
}
