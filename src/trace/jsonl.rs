//! JSON lines: an object on each line. The first has `run`, the last `end`; each of the others is a record, whose fields
//! stand beside its stamp (`t`, `ns`, `vcpu`, `rip`) and its `name`.
//!
//! Addresses and raw bits are strings in hexadecimal, because readers that know only doubles lose bits of a 64-bit
//! number; counts are numbers.

use std::io::{self, Write};

use emu_core::event::{Event, EventKind, Field, ReadError, Value};
use emu_core::time::Instant;
use serde_json::{Map, Value as Json};
use thiserror::Error;

use super::writer::Script;
use super::{Facts, Record, Stamp, stamp_fields};

pub(super) struct Jsonl;

/// One line of a trace.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// The first: what run it is.
    Run(Map<String, Json>),
    /// A record.
    Record(Record),
    /// The last: how the run ended.
    End(Map<String, Json>),
    /// An event that this version does not know.
    Unknown,
}

/// Why a line cannot be read.
#[derive(Debug, Error)]
pub enum LineError {
    /// It is no JSON object.
    #[error("it is no JSON object: {0}")]
    NotJson(#[from] serde_json::Error),
    /// It is an object of another kind.
    #[error("it has neither a name, nor run, nor end")]
    NotOurs,
    /// A field of the stamp is missing or malformed.
    #[error("{field} is missing or malformed")]
    Stamp {
        /// Which.
        field: &'static str,
    },
    /// A field of the event is missing or malformed.
    #[error(transparent)]
    Event(#[from] ReadError),
}

pub(super) fn value(to: &mut dyn Write, value: Value<'_>) -> io::Result<()> {
    match value {
        Value::Hex(n) => write!(to, "\"{n:#x}\""),
        Value::Dec(n) => write!(to, "{n}"),
        Value::Int(n) => write!(to, "{n}"),
        // Words are ours and need no escaping.
        Value::Word(word) => write!(to, "\"{word}\""),
    }
}

fn object(to: &mut dyn Write, key: &str, facts: &Facts) -> io::Result<()> {
    let facts: Map<String, Json> =
        facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
    writeln!(to, "{{\"{key}\":{}}}", Json::from(facts))
}

impl Script for Jsonl {
    fn begin(&mut self, to: &mut dyn Write, facts: &Facts) -> io::Result<()> {
        object(to, "run", facts)
    }

    fn record(&mut self, to: &mut dyn Write, record: &Record) -> io::Result<()> {
        let mut written = write!(to, "{{\"name\":\"{}\"", record.event.kind().name());
        let mut field = |name, of| {
            if written.is_ok() {
                written = write!(to, ",\"{name}\":").and_then(|()| value(to, of));
            }
        };
        stamp_fields(record, &mut field);
        record.event.visit(&mut field);
        written?;
        writeln!(to, "}}")
    }

    fn end(&mut self, to: &mut dyn Write, facts: &Facts) -> io::Result<()> {
        object(to, "end", facts)
    }
}

fn read_value(json: &Json) -> Option<Value<'_>> {
    match json {
        Json::String(text) => Some(match text.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16)) {
            Some(Ok(n)) => Value::Hex(n),
            _ => Value::Word(text),
        }),
        Json::Number(n) => n.as_u64().map(Value::Dec).or_else(|| n.as_i64().map(Value::Int)),
        _ => None,
    }
}

/// Reads a line that was written before.
///
/// # Errors
/// [`LineError`]: it is none of a trace.
pub fn read(line: &str) -> Result<Line, LineError> {
    let mut fields: Map<String, Json> = serde_json::from_str(line)?;
    for (key, make) in [("run", Line::Run as fn(_) -> _), ("end", Line::End)] {
        if let Some(Json::Object(facts)) = fields.get_mut(key) {
            return Ok(make(core::mem::take(facts)));
        }
    }
    let Some(Json::String(name)) = fields.get("name") else { return Err(LineError::NotOurs) };
    let Some(kind) = EventKind::named(name) else { return Ok(Line::Unknown) };
    fn stamp<T: Field>(fields: &Map<String, Json>, field: &'static str) -> Result<Option<T>, LineError> {
        let Some(json) = fields.get(field) else { return Ok(None) };
        read_value(json).and_then(T::take).map(Some).ok_or(LineError::Stamp { field })
    }
    let time = stamp::<u64>(&fields, "t")?.ok_or(LineError::Stamp { field: "t" })?;
    let event = Event::read(kind, &mut |field| fields.get(field).and_then(read_value))?;
    Ok(Line::Record(Record {
        stamp: Stamp { time: Instant::new(time), vcpu: stamp(&fields, "vcpu")?, rip: stamp(&fields, "rip")? },
        host_ns: stamp(&fields, "ns")?,
        event,
    }))
}
