//! Numbers over time in a bounded number of columns, whatever the length of the run.

use std::collections::BTreeMap;

/// The most columns there are.
pub(super) const COLUMNS: usize = 192;

/// What two neighbouring columns become when they are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Their sum.
    Count,
    /// The value of the later.
    Gauge,
}

/// Columns of equal width from time zero on. The width doubles when the last column is full.
#[derive(Debug)]
pub(super) struct Timeline {
    width: u64,
    column: usize,
    series: BTreeMap<String, (Kind, Vec<Option<u64>>)>,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline { width: 1024, column: 0, series: BTreeMap::new() }
    }
}

impl Timeline {
    /// Time units in a column.
    pub(super) fn width(&self) -> u64 {
        self.width
    }

    /// The column of now.
    pub(super) fn column(&self) -> usize {
        self.column
    }

    /// Moves to `time`, and says how often neighbouring columns became one.
    pub(super) fn advance(&mut self, time: u64) -> u32 {
        let mut halvings = 0;
        while time / self.width >= COLUMNS as u64 {
            self.width *= 2;
            halvings += 1;
            for (kind, values) in self.series.values_mut() {
                *values = values.chunks(2).map(|pair| merge(*kind, pair)).collect();
            }
        }
        self.column = (time / self.width) as usize;
        halvings
    }

    fn cell(&mut self, name: &str, kind: Kind) -> &mut Option<u64> {
        if !self.series.contains_key(name) {
            self.series.insert(name.to_owned(), (kind, Vec::new()));
        }
        let Some((_, values)) = self.series.get_mut(name) else { unreachable!("it was inserted") };
        if values.len() <= self.column {
            values.resize(self.column + 1, None);
        }
        &mut values[self.column]
    }

    /// Adds to a series of counts.
    pub(super) fn add(&mut self, name: &str, count: u64) {
        let cell = self.cell(name, Kind::Count);
        *cell = Some(cell.unwrap_or(0) + count);
    }

    /// Sets a gauge.
    pub(super) fn set(&mut self, name: &str, value: u64) {
        *self.cell(name, Kind::Gauge) = Some(value);
    }

    /// Every series with a value for each column up to now: what was not counted is zero, what was not measured stays as
    /// it was.
    pub(super) fn finished(&self) -> impl Iterator<Item = (&str, Vec<u64>)> + '_ {
        self.series.iter().map(|(name, (kind, values))| {
            let mut last = 0;
            let columns = (0..=self.column).map(|n| {
                let value = values.get(n).copied().flatten();
                match kind {
                    Kind::Count => value.unwrap_or(0),
                    Kind::Gauge => {
                        last = value.unwrap_or(last);
                        last
                    }
                }
            });
            (name.as_str(), columns.collect())
        })
    }
}

fn merge(kind: Kind, pair: &[Option<u64>]) -> Option<u64> {
    let later = pair.get(1).copied().flatten();
    match kind {
        Kind::Gauge => later.or(pair[0]),
        Kind::Count => match (pair[0], later) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0) + b.unwrap_or(0)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_counted_is_lost_however_long_the_run(steps in prop::collection::vec((0_u64..1 << 40, 1_u64..100), 1..60)) {
            let mut timeline = Timeline::default();
            let (mut now, mut sum) = (0, 0);
            for (step, count) in steps {
                now += step;
                timeline.advance(now);
                timeline.add("count", count);
                timeline.set("gauge", count);
                sum += count;
                prop_assert!(timeline.column() < COLUMNS);
                let all: Vec<(String, Vec<u64>)> = timeline.finished().map(|(n, v)| (n.to_owned(), v)).collect();
                prop_assert_eq!(all[0].1.iter().sum::<u64>(), sum);
                prop_assert_eq!(all[1].1.last(), Some(&count));
                prop_assert_eq!(all[0].1.len(), timeline.column() + 1);
            }
        }
    }
}
