//! A trace is a function of image, configuration and seed, and says what the machine did.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use bifold::loader::BUILTIN;
use bifold::machine::{Builder, Limits, Machine, Summary};
use bifold::trace::jsonl::{Line, read};
use bifold::trace::writer::Writer;
use bifold::trace::{Consumer, Format, Recorder};
use emu_core::PageSize;
use emu_core::event::{Event, FaultOutcome};
use emu_core::rng::Seed;

/// A file in memory.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the built-in guest for a while.
fn run(seed: u64, pages: PageSize, consumers: Vec<Box<dyn Consumer>>) -> Summary {
    let recorder = Arc::new(Recorder::new("all".parse().unwrap(), None, consumers));
    recorder.begin(&[]);
    let builder: Builder = Machine::builder().cpus(2).memory(64 << 20).pages(pages).seed(Seed(seed));
    let mut machine = builder.recorder(Arc::clone(&recorder)).build(&BUILTIN).unwrap();
    machine.run(Limits { max_instructions: Some(3_000_000) }, |_| true).unwrap();
    recorder.finish(&[]).unwrap();
    machine.summary()
}

#[test]
fn the_same_seed_gives_the_same_digest_and_another_run_another() {
    let digest = |seed, pages| run(seed, pages, vec![]).trace.unwrap();
    let first = digest(1, PageSize::Size4K);
    assert!(first.events > 1000, "{first:?}");
    assert_eq!(digest(1, PageSize::Size4K), first);
    assert_ne!(digest(1, PageSize::Size2M).digest, first.digest);
}

#[test]
fn a_trace_says_what_the_counters_say() {
    let file = Shared::default();
    let summary = run(0, PageSize::Size2M, vec![Box::new(Writer::new(Format::Jsonl, Box::new(file.clone())))]);
    let text = String::from_utf8(file.0.lock().unwrap().clone()).unwrap();
    let records: Vec<_> = text
        .lines()
        .filter_map(|line| match read(line).unwrap() {
            Line::Record(record) => Some(record),
            _ => None,
        })
        .collect();
    let count = |wanted: &dyn Fn(&Event) -> bool| records.iter().filter(|record| wanted(&record.event)).count() as u64;
    let tally = summary.trace.unwrap();
    let faults = summary.vm.faults;
    assert_eq!(records.len() as u64, tally.events);
    assert_eq!(count(&|event| matches!(event, Event::PageFault { .. })), faults.taken);
    let fixed = count(&|event| matches!(event, Event::FaultDone { outcome: FaultOutcome::Fixed, .. }));
    assert_eq!(fixed, faults.fixed.iter().sum::<u64>());
    let splits = count(&|event| matches!(event, Event::SplitHugePage { errno: 0, .. }));
    let mapped = count(&|event| matches!(event, Event::Mapped { .. })) + 512 * splits;
    assert_eq!(mapped, summary.vm.tables.installed.iter().sum::<u64>());
    assert_eq!(count(&|event| matches!(event, Event::Exit { .. })), summary.exits);
    assert_eq!(count(&|event| matches!(event, Event::Mmio { .. })) > 0, summary.mmio > 0);
    let allocated = count(&|event| matches!(event, Event::FolioAllocated { .. }));
    let removed = count(&|event| matches!(event, Event::FolioRemoved { .. }));
    assert_eq!(allocated - removed, summary.vm.folios.iter().sum::<u64>());
    assert!(records.windows(2).all(|pair| pair[0].stamp.time <= pair[1].stamp.time), "time never goes back");
}
