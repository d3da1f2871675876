use super::*;

/// An event of `kind` whose fields are made from `n`, by trying the values a field can have.
fn sample(kind: EventKind, n: u64) -> Event {
    let candidates = [Value::Hex(n), Value::Hex(n & 0xff), Value::Dec(n & 0xffff), Value::Int(-(n as i64 & 0xff))];
    let words: Vec<&'static str> = [
        Sharing::ALL.iter().map(|w| w.word()).collect::<Vec<_>>(),
        Stage::ALL.iter().map(|w| w.word()).collect(),
        FaultOutcome::ALL.iter().map(|w| w.word()).collect(),
        ClipReason::ALL.iter().map(|w| w.word()).collect(),
        ExitReason::ALL.iter().map(|w| w.word()).collect(),
        UserExitReason::ALL.iter().map(|w| w.word()).collect(),
        Direction::ALL.iter().map(|w| w.word()).collect(),
        TableOrigin::ALL.iter().map(|w| w.word()).collect(),
        SlotChange::ALL.iter().map(|w| w.word()).collect(),
        FailureResult::ALL.iter().map(|w| w.word()).collect(),
        RmpOwner::ALL.iter().map(|w| w.word()).collect(),
        Validity::ALL.iter().map(|w| w.word()).collect(),
        vec!["4K", "2M", "1G"],
    ]
    .concat();
    let values: Vec<Value<'static>> = candidates.into_iter().chain(words.into_iter().map(Value::Word)).collect();
    let mut chosen: Vec<(&'static str, usize)> = Vec::new();
    loop {
        let mut get = |field: &'static str| {
            let at = chosen.iter().find(|(name, _)| *name == field).map_or(0, |&(_, at)| at);
            values.get(at).copied()
        };
        match Event::read(kind, &mut get) {
            Ok(event) => return event,
            Err(ReadError::Malformed { field, .. }) => match chosen.iter_mut().find(|(name, _)| *name == field) {
                Some((_, at)) => *at += 1,
                None => chosen.push((field, 1)),
            },
            Err(ReadError::Missing { .. }) => panic!("no value fits {kind:?}"),
        }
    }
}

#[test]
fn what_every_event_says_of_itself_makes_it_again() {
    for &kind in EventKind::ALL {
        for n in [0, 1, 0x1234, u64::MAX] {
            let event = sample(kind, n);
            let mut fields = Vec::new();
            event.visit(&mut |name, value| fields.push((name, value)));
            let mut get = |field: &'static str| fields.iter().find(|(name, _)| *name == field).map(|&(_, v)| v);
            assert_eq!(Event::read(kind, &mut get), Ok(event));
            assert_eq!(fields.iter().map(|&(name, _)| name).collect::<Vec<_>>(), kind.fields());
            assert_eq!(event.kind(), kind);
        }
    }
}

#[test]
fn names_are_unique_and_lead_back() {
    for (n, &kind) in EventKind::ALL.iter().enumerate() {
        assert_eq!(EventKind::named(kind.name()), Some(kind));
        assert_eq!(kind.index(), n);
        assert_eq!(EventKind::ALL.iter().filter(|other| other.name() == kind.name()).count(), 1);
    }
    assert_eq!(EventKind::named("kvm_nested_vmexit"), None);
}

#[test]
fn a_missing_or_a_foreign_field_is_named() {
    let fault = EventKind::PageFault;
    let missing = Event::read(fault, &mut |_| None);
    assert_eq!(missing, Err(ReadError::Missing { event: "kvm_page_fault", field: "gpa" }));
    let word = Event::read(fault, &mut |_| Some(Value::Word("soon")));
    assert_eq!(word, Err(ReadError::Malformed { event: "kvm_page_fault", field: "gpa" }));
}

#[test]
fn an_event_stays_small() {
    assert!(core::mem::size_of::<Event>() <= 48);
}
