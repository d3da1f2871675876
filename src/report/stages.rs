//! How long faults take, and what they do, by stage.

use std::collections::BTreeMap;

use emu_core::event::{Event, FaultOutcome, Stage};

use crate::trace::Record;

/// Times by their order of magnitude: the `n`th counts those of at least 2^(n-1) and below 2^n.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Histogram {
    pub(super) count: u64,
    pub(super) sum: u64,
    pub(super) max: u64,
    pub(super) buckets: [u64; 65],
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { count: 0, sum: 0, max: 0, buckets: [0; 65] }
    }
}

impl Histogram {
    fn add(&mut self, value: u64) {
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
        self.buckets[(64 - value.leading_zeros()) as usize] += 1;
    }

    /// The upper bound of the bucket that holds this part of all values, and never more than the largest.
    pub(super) fn quantile(&self, part: f64) -> u64 {
        let wanted = (self.count as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return ((1_u128 << n) - 1).min(u128::from(self.max)) as u64;
            }
        }
        self.max
    }
}

/// What a stage did to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Work {
    pub(super) sptes: u64,
    pub(super) folios: u64,
    pub(super) pages_zeroed: u64,
    pub(super) flushes: u64,
}

/// One stage, or faults as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Span {
    /// Virtual time.
    pub(super) units: Histogram,
    /// The host's, where it was recorded.
    pub(super) host_ns: Histogram,
    pub(super) work: Work,
}

/// A fault on its way.
#[derive(Clone, Copy, Debug)]
struct Open {
    began: (u64, Option<u64>),
    stage: Option<(Stage, u64, Option<u64>)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stages {
    pub(super) stages: BTreeMap<Stage, Span>,
    pub(super) whole: BTreeMap<FaultOutcome, Span>,
    /// From the fault to the next entry of its processor.
    pub(super) to_entry: Histogram,
    open: BTreeMap<Option<u16>, Open>,
    waiting: BTreeMap<Option<u16>, u64>,
}

impl Stages {
    pub(super) fn follow(&mut self, record: &Record) {
        let (time, ns, task) = (record.stamp.time.units(), record.host_ns, record.stamp.vcpu);
        match record.event {
            Event::VmCreated { .. } => {
                self.open.clear();
                self.waiting.clear();
            }
            Event::PageFault { .. } => {
                self.open.insert(task, Open { began: (time, ns), stage: None });
                self.waiting.insert(task, time);
            }
            Event::FaultStage { stage } => {
                if let Some(open) = self.open.get_mut(&task) {
                    let ended = open.stage.replace((stage, time, ns));
                    self.end(ended, time, ns);
                }
            }
            Event::FaultDone { outcome, .. } => {
                if let Some(Open { began, stage }) = self.open.remove(&task) {
                    self.end(stage, time, ns);
                    note(self.whole.entry(outcome).or_default(), began, time, ns);
                }
            }
            Event::Entry {} => {
                if let Some(since) = self.waiting.remove(&task) {
                    self.to_entry.add(time.saturating_sub(since));
                }
            }
            event => self.work(task, &event),
        }
    }

    fn end(&mut self, stage: Option<(Stage, u64, Option<u64>)>, time: u64, ns: Option<u64>) {
        if let Some((stage, since, since_ns)) = stage {
            note(self.stages.entry(stage).or_default(), (since, since_ns), time, ns);
        }
    }

    fn work(&mut self, task: Option<u16>, event: &Event) {
        let Some(Open { stage: Some((stage, ..)), .. }) = self.open.get(&task) else { return };
        let work = &mut self.stages.entry(*stage).or_default().work;
        match event {
            Event::SpteChanged { .. } => work.sptes += 1,
            Event::FolioAllocated { .. } => work.folios += 1,
            Event::FolioZeroed { nr_pages, .. } => work.pages_zeroed += nr_pages,
            Event::RemoteTlbFlush { .. } => work.flushes += 1,
            _ => {}
        }
    }
}

fn note(span: &mut Span, since: (u64, Option<u64>), time: u64, ns: Option<u64>) {
    span.units.add(time.saturating_sub(since.0));
    if let (Some(since), Some(now)) = (since.1, ns) {
        span.host_ns.add(now.saturating_sub(since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bucket_of_its_value() {
        let mut times = Histogram::default();
        assert_eq!(times.quantile(0.5), 0);
        (1..=100).for_each(|value| times.add(value));
        assert_eq!((times.count, times.sum, times.max), (100, 5050, 100));
        assert_eq!(times.quantile(0.5), 63);
        assert_eq!(times.quantile(0.99), 100, "no more than the largest");
        times.add(0);
        assert_eq!(times.quantile(0.001), 0);
        times.add(u64::MAX);
        assert_eq!(times.quantile(1.0), u64::MAX);
    }
}
