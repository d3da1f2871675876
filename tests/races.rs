//! Races of the pipeline, found by machine: each known mistake, put back in, must break an invariant in some interleaving,
//! and without it none may in any.
#![forbid(unsafe_code)]

mod guests;

use std::time::Duration;

use bifold::explore::catalogue::{self, RACES, Race};
use bifold::explore::{Scenario, choices, scenarios};
use emu_core::defect::{Defect, Defects};
use emu_core::rng::Seed;
use guests::bifold;
use interleave::{Exhaustive, Pct, Random, Stopped, Strategy, explore, replay, shrink};

/// Nothing broke, or the picture says how.
fn sound(scenario: &Scenario, stopped: Stopped) {
    if let Stopped::Broke { finding, schedules } = stopped {
        let short = shrink(&|| scenario.start(Defects::NONE), finding);
        panic!("{}, schedule {schedules}:\n{}", scenario.name, scenario.picture(Defects::NONE, &short));
    }
}

#[test]
fn every_defect_is_found_shrunk_and_replayed() {
    let shown = scenarios().flat_map(|scenario| scenario.shows.iter().map(move |&defect| (scenario, defect)));
    for (scenario, defect) in shown {
        let start = || scenario.start(Defects::only(defect));
        let strategies: [Box<dyn Strategy>; 3] =
            [Box::new(Random::new(Seed(7))), Box::new(Pct::new(Seed(7), 3)), Box::new(Exhaustive::new(3))];
        for mut strategy in strategies {
            let stopped = explore(&start, &mut *strategy, &mut |n| n < 100_000);
            let Stopped::Broke { finding, .. } = stopped else { panic!("{defect:?} was not found") };
            let short = shrink(&start, finding.clone());
            assert!(short.preemptions() <= finding.preemptions());
            let written = choices::write(&short.choices());
            let again = replay(&start, choices::read(&written).expect("what was written reads back"));
            assert_eq!(again, Err(short.clone()), "it replays");
            let (race, breaks) = Race::of(defect).expect("every defect is of a race");
            assert!(short.what.starts_with(breaks), "R-{}, {defect:?}: {}", race.number, short.what);
            let healthy = replay(&|| scenario.start(Defects::NONE), short.choices());
            assert!(healthy.is_ok(), "the defect is what broke it");
        }
    }
}

#[test]
fn without_a_defect_nothing_breaks() {
    for scenario in scenarios() {
        let start = || scenario.start(Defects::NONE);
        sound(scenario, explore(&start, &mut Exhaustive::new(2), &mut |n| n < 800));
        for seed in 0..4 {
            sound(scenario, explore(&start, &mut Random::new(Seed(seed)), &mut |n| n < 120));
            sound(scenario, explore(&start, &mut Pct::new(Seed(seed), 3), &mut |n| n < 120));
        }
    }
}

const LIMIT: Duration = Duration::from_secs(120);
const BROKE: i32 = 12;

#[test]
fn a_finding_comes_with_the_command_that_repeats_it() {
    let words = "explore fault-punch --defect skip-stale-check --strategy pct --seed 3 --schedules 20000";
    let found = bifold(words.split(' '), LIMIT);
    assert_eq!(found.code, Some(BROKE), "{found:?}");
    assert!(found.stdout.contains("=> B4") && found.stdout.contains("puncher"), "{found:?}");
    let line = found.stdout.lines().find(|line| line.trim_start().starts_with("bifold explore"));
    let line = line.expect("the command that repeats it").trim();
    let again = bifold(line.split(' ').skip(1), LIMIT);
    assert_eq!(again.code, Some(BROKE), "{again:?}");
    assert!(again.stdout.contains("=> B4"), "{again:?}");
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let ended = bifold("explore --schedules 100 --seed 9".split(' '), LIMIT);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let listed = bifold(["explore", "--list"], LIMIT);
    for scenario in scenarios() {
        assert!(ended.stdout.contains(scenario.name) && listed.stdout.contains(scenario.what), "{}", scenario.name);
    }
    for &defect in Defect::ALL {
        assert!(listed.stdout.contains(defect.name()), "{defect:?}");
    }
}

/// `bifold explore --list | head -0`
#[test]
fn nobody_reading_is_no_failure() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bifold"));
    let piped = std::process::Stdio::piped;
    let mut child = command.args(["explore", "--list"]).stdout(piped()).stderr(piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("it ends");
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn an_output_that_is_full_is_told() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bifold"));
    let ended = command.args(["explore", "--list"]).stdout(full).output().expect("it runs");
    assert_eq!(ended.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&ended.stderr).starts_with("error: cannot write to standard output"));
}

#[test]
fn nonsense_is_refused() {
    for (words, what) in [
        ("explore no-such-race", "no scenario \"no-such-race\""),
        ("explore --defect no-such-defect", "no defect \"no-such-defect\""),
        ("explore fault-punch --replay 0xy", "\"0xy\" is not a task and its steps"),
        ("explore --replay 0x3", "--replay"),
        ("explore --strategy guess", ""),
        ("explore --seed minus", "is not a seed"),
    ] {
        let ended = bifold(words.split(' '), LIMIT);
        assert_eq!(ended.code, Some(2), "{words}: {ended:?}");
        assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains(what), "{words}: {}", ended.stderr);
    }
}

/// What a document says between its marks, and what it should.
fn document_says(name: &str, generated: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    let text = std::fs::read_to_string(&path).expect("the document is there");
    if std::env::var_os("BLESS").is_some() {
        let head = text.split_once("\n| ").map_or(text.as_str(), |(head, _)| head);
        std::fs::write(&path, format!("{}\n\n{generated}", head.trim_end())).expect("the document can be written");
        return;
    }
    assert!(text.ends_with(generated), "docs/{name} is not what the code says; BLESS=1 writes it anew");
}

#[test]
fn the_documents_list_what_the_code_lists() {
    document_says("races.md", &catalogue::table());
    document_says("invariants.md", &hypervisor::check::table::document());
    assert!(RACES.windows(2).all(|pair| pair[0].number < pair[1].number));
}
