//! Actions at random that a correct host may do at any time, and that the guest must not notice.
//!
//! [`RandomConfig`] is the `[random]` section of a script; [`RandomActor`] draws from it. Draws come from a stream of the
//! seed that nothing else uses, so that the same seed does the same whatever else a run is asked for.

use emu_core::rng::{Consumer, Seed, Stream};
use emu_core::sync::Task;
use emu_core::{Gpa, PageSize};
use hypervisor::Vm;
use serde::Deserialize;

use super::act;
use super::hypercall::GpaRange;
use super::script::{GpaText, Length, Nothing, Range, SlotText, What};

const PAGE: u64 = PageSize::Size4K.bytes();

/// Distance of two random actions when nothing is said: often enough to be seen, too seldom to slow a boot.
pub const DEFAULT_INTERVAL: u64 = 1_000_000;
/// The longest range when nothing is said.
const DEFAULT_LONGEST: Length = Length(4 << 20);

/// The `[random]` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RandomConfig {
    /// What decides; the run's seed when it is not given.
    pub seed: Option<u64>,
    /// Mean distance of two actions in instructions, at least 1.
    #[serde(default = "default_interval", deserialize_with = "at_least_one")]
    pub every: u64,
    /// Where; all RAM when it is empty.
    #[serde(default)]
    pub ranges: Vec<GpaText>,
    /// The longest range of one action.
    #[serde(default = "default_longest")]
    pub longest: Length,
    /// How often each is drawn, against the others.
    #[serde(default)]
    pub weights: Weights,
}

impl RandomConfig {
    /// Everything at its default, with this seed and distance.
    pub fn with(seed: u64, every: u64) -> RandomConfig {
        RandomConfig {
            seed: Some(seed),
            every: every.max(1),
            ranges: Vec::new(),
            longest: DEFAULT_LONGEST,
            weights: Weights::default(),
        }
    }
}

const fn default_interval() -> u64 {
    DEFAULT_INTERVAL
}
const fn default_longest() -> Length {
    DEFAULT_LONGEST
}
fn at_least_one<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match u64::deserialize(from)? {
        0 => Err(serde::de::Error::custom("the distance of two actions is at least 1 instruction")),
        every => Ok(every),
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $Kind:ident $field:ident $name:literal $weight:literal;)*) => {
        /// What is done at random.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[doc = $doc])* $Kind,)*
        }

        impl Kind {
            /// Every one of them.
            pub const ALL: &[Kind] = &[$(Kind::$Kind),*];
            /// As scripts and summaries call it.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$Kind => $name,)* }
            }
        }

        /// How often each kind is drawn, against the others.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
        pub struct Weights {
            $($(#[doc = $doc])* pub $field: u32,)*
        }

        impl Default for Weights {
            fn default() -> Weights {
                Weights { $($field: $weight,)* }
            }
        }

        impl Weights {
            const fn of(&self, kind: Kind) -> u32 {
                match kind { $(Kind::$Kind => self.$field,)* }
            }
        }
    };
}

kinds! {
    /// A range is saved, punched and filled again.
    Balloon balloon "balloon" 6;
    /// A range becomes private, shared, and what it was; drawn only where memory can be private.
    Toggle toggle "toggle" 4;
    /// Entries of a range go.
    Zap zap "zap" 4;
    /// All entries go.
    ZapAll zap_all "zap-all" 1;
    /// All entries go with their root, and processors load a new one.
    ZapAllFast zap_all_fast "zap-all-fast" 1;
    /// Accessed flags of a range are read and cleared.
    Age age "age" 2;
    /// A memslot is deleted and comes back.
    Replug replug "replug" 1;
    /// A migration begins, goes on by a round, or ends with a comparison.
    Migrate migrate "migrate" 2;
}

/// Draws actions.
#[derive(Clone, Debug)]
pub struct RandomActor {
    config: RandomConfig,
    stream: Stream,
    /// Rounds until the migration under way ends, if one is.
    rounds: Option<u64>,
}

impl RandomActor {
    /// An actor for a run with this seed.
    pub fn new(config: RandomConfig, run: Seed) -> RandomActor {
        let stream = Seed(config.seed.unwrap_or(run.0)).stream(Consumer::Vmm);
        RandomActor { config, stream, rounds: None }
    }

    /// Instructions until the next action: 1 to twice the mean.
    pub fn pause(&mut self) -> u64 {
        1 + self.stream.below(2 * self.config.every.min(u64::MAX / 4))
    }

    /// The next action; `None` when there is nothing to act on.
    pub fn draw(&mut self, vm: &Vm, task: &Task<'_>) -> Option<(Kind, What)> {
        let kind = self.kind(vm.kind().has_private_memory())?;
        let ram = act::ram(vm, task);
        let what = match kind {
            Kind::Balloon => What::Balloon(Range::Gpa(self.range(&ram)?)),
            Kind::Toggle => What::Toggle(Range::Gpa(self.range(&ram)?)),
            Kind::Zap => What::Zap(GpaText(self.range(&ram)?)),
            Kind::ZapAll => What::ZapAll(Nothing {}),
            Kind::ZapAllFast => What::ZapAllFast(Nothing {}),
            Kind::Age => What::Age(GpaText(self.range(&ram)?)),
            Kind::Migrate => match &mut self.rounds {
                None => {
                    self.rounds = Some(1 + self.stream.below(4));
                    What::LogStart(Nothing {})
                }
                Some(0) => {
                    self.rounds = None;
                    What::LogStop(Nothing {})
                }
                Some(left) => {
                    *left -= 1;
                    What::LogRound(Nothing {})
                }
            },
            Kind::Replug => {
                let slot = ram.get(self.stream.below(ram.len() as u64) as usize)?;
                What::Replug(SlotText::from(slot.id))
            }
        };
        Some((kind, what))
    }

    fn kind(&mut self, private: bool) -> Option<Kind> {
        let weight = |kind: &Kind| match kind {
            Kind::Toggle if !private => 0,
            kind => u64::from(self.config.weights.of(*kind)),
        };
        let weights: Vec<(Kind, u64)> = Kind::ALL.iter().map(|kind| (*kind, weight(kind))).collect();
        let mut drawn = self.stream.below(weights.iter().map(|(_, weight)| weight).sum());
        weights.into_iter().find_map(|(kind, weight)| match drawn.checked_sub(weight) {
            Some(rest) => {
                drawn = rest;
                None
            }
            None => Some(kind),
        })
    }

    /// A range of whole pages: its length is a power of two of pages or an odd piece of one, its place anywhere.
    fn range(&mut self, ram: &[hypervisor::MemSlotSpec]) -> Option<GpaRange> {
        let from_slots = ram.iter().map(|slot| GpaRange { gpa: slot.gpa, len_bytes: slot.len_bytes });
        let places: Vec<GpaRange> = match self.config.ranges.as_slice() {
            [] => from_slots.collect(),
            given => given.iter().map(|range| range.0).collect(),
        };
        let place = *places.get(self.stream.below(places.len() as u64) as usize)?;
        let most = (self.config.longest.0 / PAGE).min(place.len_bytes / PAGE).max(1);
        // Lengths by their number of digits, so that a single page is as likely as a thousand.
        let digits = 1 + self.stream.below(u64::from(u64::BITS - most.leading_zeros()));
        let pages = (1 + self.stream.below(1 << (digits - 1).min(62)) + (1 << (digits - 1)) / 2).min(most);
        let room = place.len_bytes / PAGE - pages;
        let first = self.stream.below(room + 1);
        // Every other one begins where large pages begin, if it fits.
        let aligned = first & !(PageSize::Size2M.frames() - 1);
        let first = if self.stream.below(2) == 0 { aligned } else { first };
        Some(GpaRange { gpa: Gpa::new(place.gpa.raw() + first * PAGE), len_bytes: pages * PAGE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(every: u64, weights: Weights) -> RandomActor {
        RandomActor::new(RandomConfig { weights, ..RandomConfig::with(5, every) }, Seed(1))
    }

    #[test]
    fn pauses_have_the_mean_that_was_asked_for() {
        let mut actor = actor(1000, Weights::default());
        let sum: u64 = (0..10_000).map(|_| actor.pause()).inspect(|pause| assert!((1..=2000).contains(pause))).sum();
        assert!((9_000_000..11_000_000).contains(&sum), "{sum}");
    }

    #[test]
    fn a_weight_of_zero_is_never_drawn_and_toggles_need_private_memory() {
        let weights = Weights { zap: 0, ..Weights::default() };
        let mut actor = actor(1, weights);
        for _ in 0..2000 {
            assert_ne!(actor.kind(true), Some(Kind::Zap));
            assert!(!matches!(actor.kind(false), Some(Kind::Zap | Kind::Toggle)));
        }
        let none =
            Weights { balloon: 0, toggle: 1, zap: 0, zap_all: 0, zap_all_fast: 0, age: 0, replug: 0, migrate: 0 };
        assert_eq!(self::actor(1, none).kind(false), None);
        assert_eq!(self::actor(1, none).kind(true), Some(Kind::Toggle));
    }

    #[test]
    fn ranges_lie_where_they_may_and_come_in_every_length() {
        let text: GpaText = "1M+3M".parse().expect("a range");
        let config = RandomConfig { ranges: vec![text], longest: Length(1 << 20), ..RandomConfig::with(1, 1) };
        let mut actor = RandomActor::new(config, Seed(0));
        let mut lengths = [0_u32; 10];
        for _ in 0..4000 {
            let range = actor.range(&[]).expect("a place was given");
            assert!(range.gpa.raw() >= 1 << 20 && range.gpa.raw() + range.len_bytes <= 4 << 20, "{range}");
            assert!(range.len_bytes.is_multiple_of(PAGE) && range.len_bytes <= 1 << 20, "{range}");
            lengths[(range.len_bytes / PAGE).ilog2() as usize] += 1;
        }
        assert!(lengths[..9].iter().all(|&n| n > 50), "{lengths:?}");
    }
}
