//! The summary that a page is made of.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use emu_core::PageSize;
use emu_core::event::{Event, EventKind, FaultOutcome, Field, Value};
use serde_json::{Map, Value as Json, json};

use super::memory::{Memory, Row, State, parts_of};
use super::snp::Snp;
use super::stages::{Histogram, Span, Stages};
use super::timeline::Timeline;
use crate::trace::{Consumer, Facts, Record};

/// Conversions and memslot changes that are listed one by one, at the most.
const LISTED: usize = 400;

/// See the module.
#[derive(Debug)]
pub struct Model {
    run: Map<String, Json>,
    end: Map<String, Json>,
    counts: Vec<u64>,
    unknown: u64,
    timeline: Timeline,
    memory: Memory,
    stages: Stages,
    snp: Snp,
    /// What a person would want to read one by one.
    log: Vec<Json>,
    unlisted: u64,
    mapped: [u64; 3],
    /// Virtual time of the run is the sum over its VMs.
    offset: u64,
    last: u64,
    vcpus: u64,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            run: Map::new(),
            end: Map::new(),
            counts: vec![0; EventKind::ALL.len()],
            unknown: 0,
            timeline: Timeline::default(),
            memory: Memory::default(),
            stages: Stages::default(),
            snp: Snp::default(),
            log: Vec::new(),
            unlisted: 0,
            mapped: [0; 3],
            offset: 0,
            last: 0,
            vcpus: 0,
        }
    }
}

impl Model {
    pub(super) fn begins(&mut self, facts: &Map<String, Json>) {
        self.run.clone_from(facts);
    }

    pub(super) fn ends(&mut self, facts: &Map<String, Json>) {
        self.end.clone_from(facts);
    }

    pub(super) fn unknown(&mut self) {
        self.unknown += 1;
    }

    fn list(&mut self, record: &Record) {
        if self.log.len() >= LISTED {
            self.unlisted += 1;
            return;
        }
        let mut fields = Vec::new();
        record.event.visit(&mut |name, value| fields.push(format!("{name} {value}")));
        self.log.push(json!([self.last, record.stamp.vcpu, record.event.kind().name(), fields.join(" ")]));
    }

    /// Counts what is drawn over time.
    fn count(&mut self, event: &Event) {
        let timeline = &mut self.timeline;
        match *event {
            Event::FaultDone { outcome, .. } => timeline.add(&format!("fault.{}", outcome.word()), 1),
            Event::Mapped { size, .. } => {
                self.mapped[size.index()] += 1;
                timeline.add("spte.set", 1);
            }
            Event::Zapped { size, .. } => {
                self.mapped[size.index()] = self.mapped[size.index()].saturating_sub(1);
                timeline.add("spte.zap", 1);
            }
            Event::RemoteTlbFlush { .. } => timeline.add("flush", 1),
            Event::InvalidateEnd { .. } => timeline.add("invalidation", 1),
            Event::Converted { nr_pages, to, .. } => timeline.add(&format!("convert.{}", to.word()), nr_pages),
            Event::Punched { nr_pages, .. } => timeline.add("punch", nr_pages),
            Event::FolioAllocated { .. } => timeline.add("folio.allocated", 1),
            Event::FolioRemoved { .. } => timeline.add("folio.removed", 1),
            Event::FolioSplit { .. } => timeline.add("folio.split", 1),
            Event::FolioMerged { .. } => timeline.add("folio.merged", 1),
            Event::SplitHugePage { level, errno: 0, .. } => {
                timeline.add("spte.split", 1);
                if let Some(size) = parts_of(level) {
                    self.mapped[size.index()] += 512;
                    timeline.set(&format!("leaves.{size}"), self.mapped[size.index()]);
                }
            }
            Event::DirtyRingPush { .. } => timeline.add("dirty.ring", 1),
            Event::GetDirtyLog { nr_dirty, .. } => {
                timeline.add("dirty.pages", nr_dirty);
                timeline.add("dirty.rounds", 1);
            }
            Event::Exit { reason } => timeline.add(&format!("exit.{}", reason.word()), 1),
            Event::PoolChanged { size, nr, free, resv, surplus } => {
                for (name, value) in [("nr", nr), ("free", free), ("resv", resv), ("surplus", surplus)] {
                    timeline.set(&format!("pool.{size}.{name}"), value);
                }
            }
            _ => {}
        }
        if let Event::Mapped { size, .. } | Event::Zapped { size, .. } = *event {
            timeline.set(&format!("leaves.{size}"), self.mapped[size.index()]);
        }
    }

    /// The number of records taken.
    pub fn events(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Everything a page shows.
    pub fn json(&self) -> Json {
        let kinds: Vec<Json> = EventKind::ALL
            .iter()
            .filter(|kind| self.counts[kind.index()] > 0)
            .map(|kind| json!([kind.name(), kind.group().word(), kind.origin().word(), self.counts[kind.index()]]))
            .collect();
        let series: Map<String, Json> =
            self.timeline.finished().map(|(name, values)| (name.to_owned(), values.into())).collect();
        let slots: Vec<Json> = self
            .memory
            .bindings()
            .iter()
            .map(|b| json!({ "slot": b.slot, "gfn": b.gfn, "nr_pages": b.nr_pages, "ino": b.ino.0, "index": b.index }))
            .collect();
        let outcomes: Map<String, Json> = FaultOutcome::ALL
            .iter()
            .filter_map(|outcome| Some((outcome.word().to_owned(), span(self.stages.whole.get(outcome)?))))
            .collect();
        let stages: Vec<Json> =
            self.stages.stages.iter().map(|(stage, of)| json!({ "stage": stage.word(), "span": span(of) })).collect();
        json!({
            "schema": 1,
            "run": self.run,
            "end": self.end,
            "events": self.events(),
            "unknown": self.unknown,
            "vcpus": self.vcpus,
            "kinds": kinds,
            "time": { "last": self.last, "width": self.timeline.width(), "columns": self.timeline.column() + 1 },
            "series": series,
            "stages": stages,
            "outcomes": outcomes,
            "to_entry": histogram(&self.stages.to_entry),
            "memory": {
                "rows": self.memory.rows().iter().map(row).collect::<Vec<_>>(),
                "total": state(&self.memory.total()),
                "slots": slots,
            },
            "snp": self.snp.json(),
            "log": self.log,
            "unlisted": self.unlisted,
        })
    }
}

fn histogram(times: &Histogram) -> Json {
    let most = times.buckets.iter().rposition(|count| *count > 0).map_or(0, |n| n + 1);
    json!({
        "count": times.count,
        "sum": times.sum,
        "max": times.max,
        "p50": times.quantile(0.5),
        "p99": times.quantile(0.99),
        "buckets": times.buckets[..most],
    })
}

fn span(of: &Span) -> Json {
    json!({
        "units": histogram(&of.units),
        "ns": histogram(&of.host_ns),
        "sptes": of.work.sptes,
        "folios": of.work.folios,
        "zeroed": of.work.pages_zeroed,
        "flushes": of.work.flushes,
    })
}

/// Bound, private, mapped by 4K, 2M and 1G leaves, in folios of 4K, 2M and 1G: pages. Where the reverse map has any for the
/// guest, these follow by [`Sort`](super::memory::Sort).
fn state(of: &State) -> Json {
    let rmp = if of.rmp.iter().any(|&pages| pages != 0) { &of.rmp[..] } else { &[] };
    [&[of.bound, of.private][..], &of.mapped, &of.folios, rmp].concat().into()
}

fn row(of: &Row) -> Json {
    let states: Vec<Json> = of.states.iter().map(|(column, of)| json!([column, state(of)])).collect();
    json!({ "gfn": of.gfn, "nr_pages": of.nr_pages, "states": states })
}

fn map(facts: &Facts) -> Map<String, Json> {
    facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect()
}

impl Consumer for Model {
    fn begin(&mut self, facts: &Facts) {
        self.begins(&map(facts));
    }

    fn take(&mut self, record: &Record) {
        let time = record.stamp.time.units();
        if matches!(record.event, Event::VmCreated { .. }) {
            self.offset = self.last;
            self.mapped = [0; 3];
            for size in PageSize::ALL {
                if let Value::Word(size) = size.put() {
                    self.timeline.set(&format!("leaves.{size}"), 0);
                }
            }
        }
        self.last = self.last.max(self.offset + time);
        self.vcpus = self.vcpus.max(record.stamp.vcpu.map_or(0, |vcpu| u64::from(vcpu) + 1));
        let halvings = self.timeline.advance(self.last);
        self.memory.advance(self.timeline.column(), halvings);
        self.counts[record.event.kind().index()] += 1;
        self.count(&record.event);
        self.memory.follow(&record.event);
        self.stages.follow(record);
        self.snp.follow(record, &mut self.timeline);
        if matches!(
            record.event,
            Event::VmCreated { .. }
                | Event::Converted { .. }
                | Event::ConvertRefused { .. }
                | Event::Punched { .. }
                | Event::SetMemoryRegion { .. }
                | Event::SetMemAttributes { .. }
                | Event::MemoryFailure { .. }
                | Event::ZapAllFast { .. }
                | Event::GetDirtyLog { .. }
                | Event::UserspaceExit { .. }
                | Event::PageStateChange { .. }
                | Event::RmpFault { .. }
                | Event::FramesLeaked { .. }
                | Event::DmaRefused { .. }
        ) {
            self.list(record);
        }
    }

    fn finish(&mut self, facts: &Facts) -> io::Result<()> {
        self.ends(&map(facts));
        Ok(())
    }
}

/// A model that a recorder fills and somebody else reads afterwards.
impl Consumer for Arc<Mutex<Model>> {
    fn begin(&mut self, facts: &Facts) {
        self.lock().unwrap_or_else(PoisonError::into_inner).begin(facts);
    }
    fn take(&mut self, record: &Record) {
        self.lock().unwrap_or_else(PoisonError::into_inner).take(record);
    }
    fn finish(&mut self, facts: &Facts) -> io::Result<()> {
        self.lock().unwrap_or_else(PoisonError::into_inner).finish(facts)
    }
}
