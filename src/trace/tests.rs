use super::jsonl::{Line, read};
use super::shared::Shared;
use super::writer::Writer;
use super::*;
use emu_core::event::{Bits, EventKind, ExitReason, FaultOutcome, NpfCode, Stage};
use emu_core::{AccessKind, Gfn, Gpa, PageSize, Sfn};

const STAMP: Stamp =
    Stamp { time: Instant::new(1_000_000_234), vcpu: Some(1), rip: Some(Gva::new(0xffff_ffff_8100_0000)) };

fn fault() -> Vec<Event> {
    let gpa = Gpa::new(0x20_0123);
    let error_code = NpfCode::USER | NpfCode::WRITE | NpfCode::GUEST_FINAL;
    vec![
        Event::Entry {},
        Event::Exit { reason: ExitReason::NestedPageFault },
        Event::PageFault { gpa, access: AccessKind::Write, error_code },
        Event::FaultStage { stage: Stage::FaultIn },
        Event::FaultStage { stage: Stage::Install },
        Event::SpteChanged { gfn: Gfn::new(0x200), level: 2, old_spte: Bits(0), new_spte: Bits(0x8000_0000_0020_0877) },
        Event::Mapped { gfn: Gfn::new(0x200), sfn: Sfn::new(0x800), size: PageSize::Size2M },
        Event::FaultDone { gpa, outcome: FaultOutcome::Fixed },
    ]
}

fn written(format: Format, clock: Option<HostClock>) -> (String, Recorded) {
    let file = Shared::default();
    let writer = Writer::new(format, Box::new(file.clone()));
    let recorder = Arc::new(Recorder::new(Choice::default(), clock, vec![Box::new(writer)]));
    recorder.begin(&[("image", "a \"b\"".to_owned())]);
    let lens = Lens::new(Arc::clone(&recorder));
    lens.point_at(|| STAMP);
    fault().into_iter().for_each(|event| lens.task().report(event));
    recorder.finish(&[("outcome", "done".to_owned())]).unwrap();
    let text = String::from_utf8(file.bytes()).unwrap();
    (text, recorder.recorded())
}

#[test]
fn a_line_of_text_reads_like_ftrace() {
    let (text, _) = written(Format::Text, None);
    let line = text.lines().find(|line| line.contains("kvm_mmu_set_spte")).unwrap();
    assert_eq!(
        line,
        "    vcpu-1     1.000000234: kvm_mmu_set_spte: gfn 0x200 sfn 0x800 size 2M rip 0xffffffff81000000"
    );
}

#[test]
fn json_lines_are_read_back_as_they_were_recorded() {
    for host_ns in [None, Some(77)] {
        let (text, recorded) = written(Format::Jsonl, host_ns.map(|ns| Box::new(move || ns) as HostClock));
        let lines: Vec<Line> = text.lines().map(|line| read(line).unwrap()).collect();
        let (Line::Run(run), Line::End(end)) = (&lines[0], &lines[lines.len() - 1]) else { panic!("{text}") };
        assert_eq!((run["image"].as_str(), end["outcome"].as_str()), (Some("a \"b\""), Some("done")));
        let expected: Vec<Line> =
            fault().into_iter().map(|event| Line::Record(Record { stamp: STAMP, host_ns, event })).collect();
        assert_eq!(lines[1..lines.len() - 1], expected);
        assert_eq!(recorded.events, 8);
    }
}

#[test]
fn no_field_of_an_event_has_the_name_of_a_part_of_its_stamp() {
    for kind in EventKind::ALL {
        assert!(!kind.fields().iter().any(|field| ["name", "t", "ns", "vcpu", "rip"].contains(field)), "{kind:?}");
    }
}

#[test]
fn lines_that_are_none_of_ours_are_told_apart() {
    assert!(matches!(read("nothing"), Err(jsonl::LineError::NotJson(_))));
    assert!(matches!(read("{}"), Err(jsonl::LineError::NotOurs)));
    assert!(matches!(read("{\"name\":\"kvm_entry\"}"), Err(jsonl::LineError::Stamp { field: "t" })));
    assert!(matches!(read("{\"name\":\"kvm_entry\",\"t\":\"soon\"}"), Err(jsonl::LineError::Stamp { field: "t" })));
    assert!(matches!(read("{\"name\":\"kvm_exit\",\"t\":1}"), Err(jsonl::LineError::Event(_))));
    assert!(matches!(read("{\"name\":\"kvm_later\",\"t\":1}"), Ok(Line::Unknown)));
}

#[test]
fn perfetto_gets_json_whose_slices_balance() {
    let (text, _) = written(Format::Perfetto, None);
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let entries = trace["traceEvents"].as_array().unwrap();
    let mut open = 0;
    for entry in entries {
        match entry["ph"].as_str().unwrap() {
            "B" => open += 1,
            "E" => open -= 1,
            _ => {}
        }
        assert!(open >= 0, "an end without a begin in {text}");
    }
    assert_eq!(open, 0);
    let named = |name: &str| entries.iter().filter(|entry| entry["name"] == name).count();
    assert_eq!((named("guest"), named("fault_in"), named("install"), named("leaves")), (2, 1, 1, 1));
}

#[test]
fn the_digest_depends_on_events_and_stamps_and_not_on_the_hosts_clock() {
    let digest = |time: u64, events: &[Event], clock: Option<HostClock>| {
        let recorder = Arc::new(Recorder::new(Choice::default(), clock, vec![]));
        let lens = Lens::new(Arc::clone(&recorder));
        lens.point_at(|| Stamp { time: Instant::new(time), ..Stamp::default() });
        events.iter().for_each(|event| lens.task().report(*event));
        recorder.recorded().digest
    };
    let events = fault();
    let plain = digest(5, &events, None);
    assert_eq!(digest(5, &events, Some(Box::new(|| 9))), plain);
    assert_ne!(digest(6, &events, None), plain);
    assert_ne!(digest(5, &events[1..], None), plain);
    assert_ne!(digest(5, &[], None), plain);
}

#[test]
fn what_was_not_chosen_is_neither_written_nor_digested() {
    let recorder = Arc::new(Recorder::new("kvm_exit".parse().unwrap(), None, vec![]));
    let lens = Lens::new(Arc::clone(&recorder));
    fault().into_iter().for_each(|event| lens.task().report(event));
    assert_eq!(recorder.recorded().events, 1);
    assert_eq!(Lens::default().recorded(), None);
    assert!(!Lens::default().task().is_reporting());
}
