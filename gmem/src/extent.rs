//! A set of numbers kept as runs: the free list of a pool, whose cost is its fragmentation and not its size.

use std::collections::BTreeMap;

/// Numbers as maximal runs `start -> length`.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExtentSet {
    runs: BTreeMap<u64, u64>,
    len: u64,
}

impl ExtentSet {
    /// Numbers in the set.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Adds `count` numbers from `start`.
    ///
    /// # Panics
    /// When one of them is in the set already: something was freed twice.
    pub(crate) fn insert(&mut self, start: u64, count: u64) {
        if count == 0 {
            return;
        }
        let (mut start, mut run) = (start, count);
        if let Some((&below, &below_len)) = self.runs.range(..=start).next_back() {
            assert!(below + below_len <= start, "unit {start:#x} is free already");
            if below + below_len == start {
                self.runs.remove(&below);
                start = below;
                run += below_len;
            }
        }
        if let Some((&above, &above_len)) = self.runs.range(start..).next() {
            assert!(start + run <= above, "unit {above:#x} is free already");
            if start + run == above {
                self.runs.remove(&above);
                run += above_len;
            }
        }
        self.runs.insert(start, run);
        self.len += count;
    }

    /// Whether `number` is in the set.
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(&start, &run)| number < start + run)
    }

    /// Takes one number out; whether it was there.
    pub(crate) fn remove(&mut self, number: u64) -> bool {
        let Some((&start, &run)) = self.runs.range(..=number).next_back() else { return false };
        if number >= start + run {
            return false;
        }
        self.runs.remove(&start);
        if number > start {
            self.runs.insert(start, number - start);
        }
        if number + 1 < start + run {
            self.runs.insert(number + 1, start + run - number - 1);
        }
        self.len -= 1;
        true
    }

    /// The runs, ascending, as `(start, count)`.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(&start, &run)| (start, run))
    }

    /// Takes at most `max` numbers, the top of the highest run, as `(start, count)`.
    pub(crate) fn pop_last_run(&mut self, max: u64) -> Option<(u64, u64)> {
        let mut last = self.runs.last_entry()?;
        let (start, run) = (*last.key(), *last.get());
        let count = run.min(max);
        if count < run {
            *last.get_mut() -= count;
        } else {
            last.remove();
        }
        self.len -= count;
        Some((start + run - count, count))
    }

    /// Takes the lowest number.
    pub(crate) fn pop_first(&mut self) -> Option<u64> {
        let (start, run) = self.runs.pop_first()?;
        if run > 1 {
            self.runs.insert(start + 1, run - 1);
        }
        self.len -= 1;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(steps in prop::collection::vec((0_u8..5, 0_u64..64), 1..100)) {
            let mut set = ExtentSet::default();
            let mut model = BTreeSet::new();
            for (what, number) in steps {
                prop_assert_eq!(set.contains(number), model.contains(&number));
                match what {
                    0 | 4 if model.insert(number) => set.insert(number, 1),
                    1 => prop_assert_eq!(set.pop_first(), model.pop_first()),
                    2 => {
                        let popped = set.pop_last_run(3);
                        prop_assert_eq!(popped.is_some(), !model.is_empty());
                        for number in popped.into_iter().flat_map(|(start, count)| (start..start + count).rev()) {
                            prop_assert_eq!(Some(number), model.pop_last());
                        }
                    }
                    3 => prop_assert_eq!(set.remove(number), model.remove(&number)),
                    _ => {}
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                let runs = model.iter().filter(|&&n| n == 0 || !model.contains(&(n - 1))).count();
                prop_assert_eq!(set.runs.len(), runs, "runs are maximal");
            }
        }
    }

    #[test]
    #[should_panic(expected = "free already")]
    fn a_second_free_is_caught() {
        let mut set = ExtentSet::default();
        set.insert(4, 4);
        set.insert(6, 1);
    }
}
