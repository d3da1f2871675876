//! A run as one page: its memory over time, its faults, its conversions, its counters.
//!
//! [`Model`] takes records, from a running machine or from a trace in JSON lines ([`read`]), and keeps a bounded summary
//! of them; [`html`] puts it into one self-contained page that needs no network.
//!
//! Always true: memory does not grow with the number of events, only with the number of distinct blocks of guest memory,
//! of which there are a few thousand at most; the page is a function of the trace.
//!
//! Left out: a live view; other formats than JSON lines as input.

mod html;
mod memory;
mod model;
mod snp;
mod stages;
mod timeline;

pub use html::html;
pub use model::Model;

use std::io::{self, BufRead};

use thiserror::Error;

use crate::trace::Consumer as _;
use crate::trace::jsonl::{self, Line, LineError};

/// Why a trace could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line.
    #[error("line {line}: {cause}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        cause: LineError,
    },
}

/// The longest line there is in a trace.
const LONGEST: u64 = 1 << 20;

/// Reads a trace in JSON lines. A last line that was cut off, as by a run that was killed, is left out.
///
/// # Errors
/// [`ReadError`]: it cannot be read, or is no trace.
pub fn read(from: &mut dyn BufRead) -> Result<Model, ReadError> {
    let mut model = Model::default();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let mut part = io::Read::take(&mut *from, LONGEST);
        part.read_until(b'\n', &mut line)?;
        let ended = line.last() == Some(&b'\n');
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            if line.is_empty() {
                break;
            }
            continue;
        }
        match jsonl::read(&text) {
            Ok(Line::Run(facts)) => model.begins(&facts),
            Ok(Line::Record(record)) => model.take(&record),
            Ok(Line::End(facts)) => model.ends(&facts),
            Ok(Line::Unknown) => model.unknown(),
            Err(LineError::NotJson(_)) if !ended && number > 1 && (line.len() as u64) < LONGEST => break,
            Err(cause) => return Err(ReadError::Line { line: number, cause }),
        }
    }
    Ok(model)
}

#[cfg(test)]
mod tests;
