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

    /// Takes the lowest number.
    pub(crate) fn pop_first(&mut self) -> Option<u64> {
        let (start, run) = self.runs.pop_first()?;
        if run > 1 {
            self.runs.insert(start + 1, run - 1);
        }
        self.len -= 1;
        Some(start)
    }

    /// Takes the highest number.
    pub(crate) fn pop_last(&mut self) -> Option<u64> {
        let mut last = self.runs.last_entry()?;
        let number = last.key() + last.get() - 1;
        if *last.get() > 1 {
            *last.get_mut() -= 1;
        } else {
            last.remove();
        }
        self.len -= 1;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(steps in prop::collection::vec((0_u8..3, 0_u64..64), 1..100)) {
            let mut set = ExtentSet::default();
            let mut model = BTreeSet::new();
            for (what, number) in steps {
                match what {
                    0 if model.insert(number) => set.insert(number, 1),
                    1 => prop_assert_eq!(set.pop_first(), model.pop_first()),
                    2 => prop_assert_eq!(set.pop_last(), model.pop_last()),
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
