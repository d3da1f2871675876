use super::*;
use crate::trace::shared::Shared;
use crate::trace::writer::Writer;
use crate::trace::{Choice, Format, Lens, Recorder, Stamp};
use emu_core::event::{Event, EventKind, FaultOutcome, Ino, NpfCode, Sharing, Stage};
use emu_core::time::Instant;
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};
use serde_json::Value;
use std::sync::{Arc, Mutex};

const INO: Ino = Ino(1);

/// A small run: memory of 16 MiB, a fault, a conversion, a split.
fn events() -> Vec<(u64, Event)> {
    let gpa = Gpa::new(0x20_0000);
    let (gfn, sfn, size) = (Gfn::new(512), Sfn::new(1024), PageSize::Size2M);
    let error_code = NpfCode::WRITE;
    vec![
        (0, Event::VmCreated { nr_vcpus: 1 }),
        (0, Event::GmemCreated { ino: INO, nr_pages: 4096, initial: Sharing::Private }),
        (0, Event::GmemBound { ino: INO, slot: 0, index: 0, nr_pages: 4096, gfn: Gfn::new(0) }),
        (10, Event::PageFault { gpa, access: AccessKind::Write, error_code }),
        (10, Event::FaultStage { stage: Stage::FaultIn }),
        (12, Event::FolioAllocated { ino: INO, index: 512, sfn, size }),
        (15, Event::FaultStage { stage: Stage::Install }),
        (15, Event::Mapped { gfn, sfn, size }),
        (16, Event::FaultDone { gpa, outcome: FaultOutcome::Fixed }),
        (20, Event::Entry {}),
        (5_000, Event::Converted { ino: INO, index: 512, nr_pages: 10, to: Sharing::Shared }),
        (5_000, Event::Zapped { gfn, size }),
        (9_000, Event::FolioSplit { ino: INO, index: 512, sfn, from: size, to: PageSize::Size4K }),
    ]
}

/// The data of a page, as a browser would find them.
fn embedded(page: &str) -> Value {
    let begin = page.find("<script id=\"run\" type=\"application/json\">").expect("the page has its data");
    let data = &page[begin..];
    let (from, to) = (data.find('>').unwrap() + 1, data.find("</script>").unwrap());
    serde_json::from_str(&data[from..to]).expect("the data are JSON")
}

fn model() -> Model {
    let filled = Arc::new(Mutex::new(Model::default()));
    let recorder = Arc::new(Recorder::new(Choice::default(), None, vec![Box::new(Arc::clone(&filled))]));
    recorder.begin(&[("image", "</script><!-- a".to_owned())]);
    let lens = Lens::new(Arc::clone(&recorder));
    for (time, event) in events() {
        lens.point_at(|| Stamp { time: Instant::new(time), vcpu: Some(0), rip: None });
        lens.task().report(event);
    }
    recorder.finish(&[("outcome", "done".to_owned())]).unwrap();
    drop(recorder);
    drop(lens);
    Arc::into_inner(filled).unwrap().into_inner().unwrap()
}

#[test]
fn the_page_holds_what_happened() {
    let data = embedded(&html(&model()));
    assert_eq!(data["run"]["image"], "</script><!-- a", "whatever its name says, it ends no script");
    assert_eq!(data["end"]["outcome"], "done");
    assert_eq!(data["events"], 13);
    assert_eq!(data["memory"]["total"], serde_json::json!([4096, 4086, 0, 0, 0, 512, 0, 0]));
    let second = &data["memory"]["rows"][1];
    assert_eq!((second["gfn"].as_u64(), second["nr_pages"].as_u64()), (Some(512), Some(512)));
    let states = serde_json::json!([
        [0, [512, 512, 0, 512, 0, 0, 512, 0]],
        [4, [512, 502, 0, 0, 0, 0, 512, 0]],
        [8, [512, 502, 0, 0, 0, 512, 0, 0]],
    ]);
    assert_eq!(second["states"], states);
    assert_eq!(data["outcomes"]["fixed"]["units"]["max"], 6);
    assert_eq!(data["to_entry"]["max"], 10);
    let stage = &data["stages"][0];
    assert_eq!((stage["stage"].as_str(), stage["span"]["folios"].as_u64()), (Some("fault_in"), Some(1)));
    assert_eq!(stage["span"]["units"]["sum"], 5);
}

#[test]
fn a_page_needs_nothing_from_outside() {
    let page = html(&model());
    for word in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(word), "the page has {word}");
    }
    for place in ["/*STYLE*/", "/*SCRIPT*/", "/*DATA*/"] {
        assert!(!page.contains(place), "{place} was left");
    }
}

#[test]
fn a_trace_read_back_gives_the_same_page() {
    let file = Shared::default();
    let writer = Writer::new(Format::Jsonl, Box::new(file.clone()));
    let recorder = Arc::new(Recorder::new(Choice::default(), None, vec![Box::new(writer)]));
    recorder.begin(&[("image", "</script><!-- a".to_owned())]);
    let lens = Lens::new(Arc::clone(&recorder));
    for (time, event) in events() {
        lens.point_at(|| Stamp { time: Instant::new(time), vcpu: Some(0), rip: None });
        lens.task().report(event);
    }
    recorder.finish(&[("outcome", "done".to_owned())]).unwrap();
    let trace = file.bytes();
    assert_eq!(html(&read(&mut trace.as_slice()).unwrap()), html(&model()));
    // Cut off in its last record, as by a run that was killed.
    let cut = trace.len() - 80;
    let partial = read(&mut &trace[..cut]).unwrap();
    assert!((1..13).contains(&partial.events()), "{}", partial.events());
    let garbage = [&trace[..cut], b"\n\n{}\n"].concat();
    assert!(matches!(read(&mut garbage.as_slice()), Err(ReadError::Line { .. })));
}

#[test]
fn an_empty_trace_gives_a_page() {
    let data = embedded(&html(&read(&mut &b""[..]).unwrap()));
    assert_eq!((data["events"].as_u64(), data["memory"]["rows"].as_array().map(Vec::len)), (Some(0), Some(0)));
}

#[test]
fn every_kind_of_event_is_taken() {
    let mut model = Model::default();
    for kind in EventKind::ALL {
        let mut get = |field: &'static str| match field {
            "errno" => Some(emu_core::event::Value::Int(0)),
            "size" | "from" | "folio" => Some(emu_core::event::Value::Word("2M")),
            _ => Some(emu_core::event::Value::Dec(1)),
        };
        if let Ok(event) = Event::read(*kind, &mut get) {
            model.take(&crate::trace::Record { stamp: Stamp::default(), host_ns: None, event });
        }
    }
    assert!(model.events() > 10);
    embedded(&html(&model));
}
