//! Text, as ftrace's `trace_pipe` has it: task, processor, time in seconds, tracepoint, fields.

use std::io::{self, Write};

use super::writer::Script;
use super::{Facts, Record};

pub(super) struct Text;

const SECOND: u64 = 1_000_000_000;

fn facts_line(to: &mut dyn Write, what: &str, facts: &Facts) -> io::Result<()> {
    write!(to, "# {what}:")?;
    facts.iter().try_for_each(|(name, value)| write!(to, " {name}={value}"))?;
    writeln!(to)
}

impl Script for Text {
    fn begin(&mut self, to: &mut dyn Write, facts: &Facts) -> io::Result<()> {
        facts_line(to, "run", facts)?;
        writeln!(to, "#     TASK   VIRTUAL TIME        TRACEPOINT: FIELDS")
    }

    fn record(&mut self, to: &mut dyn Write, record: &Record) -> io::Result<()> {
        let task = record.stamp.vcpu.map_or_else(|| "host".to_owned(), |vcpu| format!("vcpu-{vcpu}"));
        write!(to, "{task:>10}")?;
        let time = record.stamp.time.units();
        write!(to, " {:>5}.{:09}: {}:", time / SECOND, time % SECOND, record.event.kind().name())?;
        let mut failed = Ok(());
        record.event.visit(&mut |name, value| {
            if failed.is_ok() {
                failed = write!(to, " {name} {value}");
            }
        });
        failed?;
        if let Some(rip) = record.stamp.rip {
            write!(to, " rip {rip:#x}")?;
        }
        if let Some(ns) = record.host_ns {
            write!(to, " ns {ns}")?;
        }
        writeln!(to)
    }

    fn end(&mut self, to: &mut dyn Write, facts: &Facts) -> io::Result<()> {
        facts_line(to, "end", facts)
    }
}
