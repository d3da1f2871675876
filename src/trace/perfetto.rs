//! The JSON trace format (`traceEvents`) that ui.perfetto.dev and `chrome://tracing` open.
//!
//! One track a processor and one for the host. A processor's time in the guest, a fault and each stage of a fault are
//! slices; counters of pools and of mapped pages are counter tracks; everything else is an instant with its fields as
//! arguments. Timestamps are the host's clock where it was recorded, otherwise virtual time, in which the work of the
//! host takes no time: then slices of the host have no length, but their order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Write};

use emu_core::PageSize;
use emu_core::event::{Event, Value};

use super::writer::Script;
use super::{Facts, Record, jsonl};

/// What is open on a track, outermost first.
#[derive(Default)]
struct Track {
    in_guest: bool,
    in_fault: bool,
    in_stage: bool,
}

#[derive(Default)]
pub(super) struct Perfetto {
    tracks: BTreeMap<u64, Track>,
    mapped: [u64; 3],
    any: bool,
    last: u64,
}

const HOST: u64 = 0;

impl Perfetto {
    /// Begins one entry: its phase, its name, its track, its time.
    fn head(&mut self, to: &mut dyn Write, phase: char, name: &str, tid: u64) -> io::Result<()> {
        let comma = if core::mem::replace(&mut self.any, true) { "," } else { "" };
        let ns = self.last;
        write!(
            to,
            "{comma}\n{{\"ph\":\"{phase}\",\"name\":\"{name}\",\"pid\":1,\"tid\":{tid},\"ts\":{}.{:03}",
            ns / 1000,
            ns % 1000
        )
    }

    fn plain(&mut self, to: &mut dyn Write, phase: char, name: &str, tid: u64) -> io::Result<()> {
        self.head(to, phase, name, tid)?;
        write!(to, "}}")
    }

    fn with_fields(&mut self, to: &mut dyn Write, phase: char, record: &Record, tid: u64) -> io::Result<()> {
        self.head(to, phase, record.event.kind().name(), tid)?;
        if phase == 'i' {
            write!(to, ",\"s\":\"t\"")?;
        }
        write!(to, ",\"args\":{{")?;
        let (mut written, mut comma) = (Ok(()), "");
        let mut field = |name: &'static str, of: Value<'static>| {
            if written.is_ok() {
                written = write!(to, "{comma}\"{name}\":").and_then(|()| jsonl::value(to, of));
                comma = ",";
            }
        };
        if let Some(rip) = record.stamp.rip {
            field("rip", Value::Hex(rip.raw()));
        }
        record.event.visit(&mut field);
        written?;
        write!(to, "}}}}")
    }

    fn counters(&mut self, to: &mut dyn Write, name: &str, counts: &[(&str, u64)]) -> io::Result<()> {
        self.head(to, 'C', name, HOST)?;
        write!(to, ",\"args\":{{")?;
        for (n, (name, count)) in counts.iter().enumerate() {
            write!(to, "{}\"{name}\":{count}", if n > 0 { "," } else { "" })?;
        }
        write!(to, "}}}}")
    }

    /// The track, named when it is used for the first time.
    fn track(&mut self, to: &mut dyn Write, record: &Record) -> io::Result<u64> {
        let tid = record.stamp.vcpu.map_or(HOST, |vcpu| u64::from(vcpu) + 1);
        if let Entry::Vacant(new) = self.tracks.entry(tid) {
            new.insert(Track::default());
            self.head(to, 'M', "thread_name", tid)?;
            match record.stamp.vcpu {
                Some(vcpu) => write!(to, ",\"args\":{{\"name\":\"vCPU {vcpu}\"}}}}")?,
                None => write!(to, ",\"args\":{{\"name\":\"host\"}}}}")?,
            }
        }
        Ok(tid)
    }

    fn open(&mut self, tid: u64) -> &mut Track {
        self.tracks.entry(tid).or_default()
    }

    fn end_stage(&mut self, to: &mut dyn Write, tid: u64) -> io::Result<()> {
        if core::mem::take(&mut self.open(tid).in_stage) {
            self.plain(to, 'E', "stage", tid)?;
        }
        Ok(())
    }
}

impl Script for Perfetto {
    fn begin(&mut self, to: &mut dyn Write, facts: &Facts) -> io::Result<()> {
        let facts: serde_json::Map<_, _> =
            facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
        write!(to, "{{\"otherData\":{},\"displayTimeUnit\":\"ns\",\"traceEvents\":[", serde_json::Value::from(facts))?;
        self.head(to, 'M', "process_name", HOST)?;
        write!(to, ",\"args\":{{\"name\":\"bifold\"}}}}")
    }

    fn record(&mut self, to: &mut dyn Write, record: &Record) -> io::Result<()> {
        // A clock that steps back would open slices before they begin.
        self.last = self.last.max(record.host_ns.unwrap_or(record.stamp.time.units()));
        let tid = self.track(to, record)?;
        match record.event {
            Event::Entry {} if !self.open(tid).in_guest => {
                self.open(tid).in_guest = true;
                self.plain(to, 'B', "guest", tid)
            }
            Event::Entry {} => Ok(()),
            Event::Exit { .. } => {
                if core::mem::take(&mut self.open(tid).in_guest) {
                    self.plain(to, 'E', "guest", tid)?;
                }
                self.with_fields(to, 'i', record, tid)
            }
            Event::PageFault { .. } => {
                self.open(tid).in_fault = true;
                self.with_fields(to, 'B', record, tid)
            }
            Event::FaultStage { stage } => {
                self.end_stage(to, tid)?;
                if !self.open(tid).in_fault {
                    return Ok(());
                }
                self.open(tid).in_stage = true;
                self.plain(to, 'B', stage.word(), tid)
            }
            Event::FaultDone { .. } => {
                self.end_stage(to, tid)?;
                if !core::mem::take(&mut self.open(tid).in_fault) {
                    return Ok(());
                }
                self.with_fields(to, 'E', record, tid)
            }
            Event::Mapped { size, .. } | Event::Zapped { size, .. } => {
                let count = &mut self.mapped[size.index()];
                let installed = matches!(record.event, Event::Mapped { .. });
                *count = if installed { *count + 1 } else { count.saturating_sub(1) };
                self.with_fields(to, 'i', record, tid)?;
                let [small, large, huge] = PageSize::ALL.map(|size| self.mapped[size.index()]);
                self.counters(to, "leaves", &[("4K", small), ("2M", large), ("1G", huge)])
            }
            // The whole leaf was told as zapped; its parts are leaves without a word of their own.
            Event::SplitHugePage { level: level @ 2..=3, errno: 0, .. } => {
                self.mapped[usize::from(level) - 2] += 512;
                self.with_fields(to, 'i', record, tid)
            }
            Event::PoolChanged { size, nr, free, resv, surplus } => {
                let counts = [("nr", nr), ("free", free), ("resv", resv), ("surplus", surplus)];
                self.counters(to, if size == PageSize::Size2M { "pool 2M" } else { "pool 1G" }, &counts)
            }
            _ => self.with_fields(to, 'i', record, tid),
        }
    }

    fn end(&mut self, to: &mut dyn Write, _facts: &Facts) -> io::Result<()> {
        // What is still open ends with the run.
        let open: Vec<(u64, usize)> = self
            .tracks
            .iter()
            .map(|(&tid, track)| (tid, [track.in_guest, track.in_fault, track.in_stage].iter().filter(|o| **o).count()))
            .collect();
        for (tid, slices) in open {
            for _ in 0..slices {
                self.plain(to, 'E', "end", tid)?;
            }
        }
        writeln!(to, "\n]}}")
    }
}
