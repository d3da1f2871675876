//! A trace as it goes into a file.

use std::io::{self, BufWriter, Write};

use super::{Consumer, Facts, Format, Record, jsonl, perfetto, text};

/// How one format puts a trace into words.
pub(super) trait Script: Send {
    fn begin(&mut self, to: &mut dyn Write, facts: &Facts) -> io::Result<()>;
    fn record(&mut self, to: &mut dyn Write, record: &Record) -> io::Result<()>;
    fn end(&mut self, to: &mut dyn Write, facts: &Facts) -> io::Result<()>;
}

/// Writes records as they come. After a failure it writes nothing more and tells it when the run is over.
pub struct Writer {
    to: BufWriter<Box<dyn Write + Send>>,
    script: Box<dyn Script>,
    failed: Option<io::Error>,
}

impl Writer {
    /// A writer of `format` into `to`.
    pub fn new(format: Format, to: Box<dyn Write + Send>) -> Writer {
        let script: Box<dyn Script> = match format {
            Format::Text => Box::new(text::Text),
            Format::Jsonl => Box::new(jsonl::Jsonl),
            Format::Perfetto => Box::new(perfetto::Perfetto::default()),
        };
        Writer { to: BufWriter::with_capacity(1 << 16, to), script, failed: None }
    }

    fn attempt(&mut self, write: impl FnOnce(&mut dyn Script, &mut dyn Write) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = write(&mut *self.script, &mut self.to).err();
        }
    }
}

impl Consumer for Writer {
    fn begin(&mut self, facts: &Facts) {
        self.attempt(|script, to| script.begin(to, facts));
    }

    fn take(&mut self, record: &Record) {
        self.attempt(|script, to| script.record(to, record));
    }

    fn finish(&mut self, facts: &Facts) -> io::Result<()> {
        self.attempt(|script, to| script.end(to, facts));
        self.attempt(|_, to| to.flush());
        self.failed.take().map_or(Ok(()), Err)
    }
}
