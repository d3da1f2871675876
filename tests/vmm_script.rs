//! Scripts of the VMM over the built-in guests: what the guest must not notice it does not, and what it must, it does.
#![forbid(unsafe_code)]

mod guests;

use std::time::Duration;

use guests::{Ended, guest, images, scratch};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(300);

/// A run with this script in a file.
fn scripted(script: &str, words: &[&str]) -> Ended {
    let dir = scratch();
    let file = images::write(&dir, "script.toml", script.as_bytes());
    let mut all = vec!["--script", file.to_str().expect("a scratch directory has a plain name")];
    all.extend(words);
    let ended = guest(all, LIMIT);
    std::fs::remove_dir_all(&dir).expect("the scratch directory can be removed");
    ended
}

fn action(when: &str, what: &str) -> String {
    format!("[[action]]\nwhen = {when}\nwhat = {what}\n")
}

fn sum(json: &Value, key: &str) -> u64 {
    let kinds = json["vmm"]["random"].as_object().expect("random actions are tallied by kind");
    kinds.values().map(|tally| tally[key].as_u64().expect("a count")).sum()
}

fn count(json: &Value, path: &[&str]) -> u64 {
    let value = path.iter().fold(json, |value, key| &value[key]);
    value.as_u64().unwrap_or_else(|| panic!("{path:?} of {json}"))
}

const CONVERSIONS: [&str; 4] = ["--guest", "conversions", "--vm", "sw-protected"];

/// What the VMM does at random costs the guest nothing but faults: it prints the same and executes the same.
#[test]
fn a_guest_notices_nothing_of_random_actions() {
    let paging = ["--memory", "96M"];
    let private = ["--memory", "64M", "--vm", "sw-protected,ram=private", "--pages", "2m"];
    let converts = ["--memory", "64M", "--guest", "conversions", "--vm", "sw-protected", "--cpus", "3"];
    let shadowed = ["--memory", "96M", "--mmu", "shadow"];
    let logging = ["--memory", "96M", "--mmu", "ept,pml=on", "--pages", "2m", "--cpus", "2"];
    let by_vm = ["--memory", "64M", "--guest", "conversions", "--vm", "sw-protected", "--gmem", "7.3"];
    let rings = ["--memory", "96M", "--mmu", "npt,dirty-ring=1024"];
    let rows: [(&[&str], &str); 8] = [
        (&paging, "7:40000"),
        (&private, "8:40000"),
        (&converts, "9:20000"),
        (&[&converts[..], &["--pages", "2m"]].concat(), "10:20000"),
        (&shadowed, "11:40000"),
        (&by_vm, "13:20000"),
        (&logging, "12:40000"),
        (&rings, "15:40000"),
    ];
    for (words, random) in rows {
        let without = guest(words, LIMIT);
        let busy = ["--vmm-random", random, "--check-invariants=500000"];
        let with = guest([words, &busy].concat(), LIMIT);
        assert_eq!(with.code, Some(0), "{words:?}: {}\n{}", with.stderr, with.tail());
        assert_eq!(with.text(), without.text(), "{words:?}");
        let (with, without) = (with.json(), without.json());
        // A nested fault takes a unit of time; beyond that one processor executes exactly what it would have executed.
        assert!(count(&with, &["checks"]) > 5 && count(&without, &["checks"]) == 0, "{words:?}");
        let executed = |json: &Value| count(json, &["instructions"]) - count(json, &["faults", "taken"]);
        // Over shadow tables it depends on what is mapped which writes the hypervisor makes.
        if !words.contains(&"--cpus") && !words.contains(&"shadow") {
            assert_eq!(executed(&with), executed(&without), "{words:?}");
        }
        assert!(sum(&with, "done") > 100 && sum(&with, "refused") == 0, "{words:?}: {}", with["vmm"]);
        assert!(
            count(&with, &["faults", "taken"]) > count(&without, &["faults", "taken"]),
            "{words:?}: {}",
            with["vmm"]
        );
    }
}

#[test]
fn the_same_seed_does_the_same_and_another_something_else() {
    let run =
        |random: &str| guest([&CONVERSIONS[..], &["--memory", "64M", "--vmm-random", random]].concat(), LIMIT).stdout;
    let first = run("1:20000");
    assert_eq!(first, run("1:20000"));
    assert_ne!(first, run("2:20000"));
}

/// An action comes at its moment, and the summary tells what became of it.
#[test]
fn actions_come_at_their_moment() {
    let script = [
        action("{ instructions = 12_345 }", r#"{ zap-all = {} }"#),
        action("{ every = 100_000, from = 5, times = 3 }", r#"{ age = "0+64M" }"#),
        action("{ event = \"conversion\", count = 2 }", r#"{ balloon = "32M+4M" }"#),
        action("{ instructions = 100_005 }", r#"{ punch = "1T+4K" }"#),
        action("{ instructions = 100_006 }", r#"{ bind = 0 }"#),
    ];
    let ended = scripted(&script.concat(), &[&CONVERSIONS[..], &["--memory", "64M"]].concat());
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stderr, ended.tail());
    let json = ended.json();
    let records = json["vmm"]["script"].as_array().expect("a list of actions");
    let at = |what: &str| -> Vec<u64> {
        let of = records.iter().filter(|record| record["what"].as_str().is_some_and(|said| said.starts_with(what)));
        of.map(|record| record["at"].as_u64().expect("an instruction")).collect()
    };
    assert_eq!(at("zap-all"), [12_345], "{records:?}");
    assert_eq!(at("age"), [5, 100_005, 200_005], "{records:?}");
    assert_eq!(at("balloon").len(), 1, "{records:?}");
    let refused =
        |what: &str| records.iter().find(|r| r["what"] == what).map(|r| r["refused"].as_str().unwrap_or_default());
    assert_eq!(refused("punch 0x10000000000+0x1000"), Some("no memslot holds Gpa(0x10000000000)"), "{records:?}");
    assert!(refused("bind 0").is_some_and(|why| why.contains("was not deleted by the script")), "{records:?}");
}

/// What rounds of the dirty log tell is all that the guest wrote, under every page size and format, also while slots go and
/// come back.
#[test]
fn a_migration_misses_no_write() {
    let script = [
        action("{ instructions = 1_000_000 }", "{ log-start = {} }"),
        action("{ every = 500_000, from = 1_200_000, times = 15 }", "{ log-round = {} }"),
        action("{ instructions = 4_000_000 }", "{ replug = 0 }"),
        action("{ instructions = 10_000_000 }", "{ log-stop = {} }"),
    ]
    .concat();
    for (mmu, pages) in [("npt", "4k"), ("ept", "2m"), ("npt", "1g")] {
        let ended = scripted(&script, &["--memory", "64M", "--mmu", mmu, "--pages", pages]);
        assert_eq!(ended.code, Some(0), "{mmu} {pages}: {}", ended.tail());
        let json = ended.json();
        let records = json["vmm"]["script"].as_array().expect("a list of actions");
        assert_eq!(records.len(), 18, "{records:?}");
        assert!(records.iter().all(|record| record["refused"].is_null()), "{mmu} {pages}: {records:?}");
        let copied: u64 = records.iter().filter(|r| r["what"] == "log-round").filter_map(|r| r["bytes"].as_u64()).sum();
        assert!(copied > 0, "{mmu} {pages}: {records:?}");
    }
}

/// Processors log what they write and nothing is lost: what their logs tell is what changed, also where a log runs full.
#[test]
fn a_migration_by_the_processors_own_logs_misses_no_write() {
    let script = [
        action("{ instructions = 1_000_000 }", "{ log-start = {} }"),
        action("{ every = 700_000, from = 1_200_000, times = 10 }", "{ log-round = {} }"),
        action("{ instructions = 4_000_000 }", "{ zap-all-fast = {} }"),
        action("{ instructions = 10_000_000 }", "{ log-stop = {} }"),
    ]
    .concat();
    for (pages, cpus) in [("4k", "1"), ("2m", "2"), ("1g", "1")] {
        let words = ["--memory", "64M", "--mmu", "ept,pml=on", "--pages", pages, "--cpus", cpus, "--check-invariants"];
        let ended = scripted(&script, &words);
        assert_eq!(ended.code, Some(0), "{pages}: {}", ended.tail());
        let json = ended.json();
        let records = json["vmm"]["script"].as_array().expect("a list of actions");
        assert_eq!(records.len(), 13, "{records:?}");
        assert!(records.iter().all(|record| record["refused"].is_null()), "{pages}: {records:?}");
        let copied: u64 = records.iter().filter(|r| r["what"] == "log-round").filter_map(|r| r["bytes"].as_u64()).sum();
        assert!(copied > 0, "{pages}: {records:?}");
    }
}

/// Processors push what they write to rings, and leave to the VMM when these are full: nothing is lost.
#[test]
fn a_migration_by_dirty_rings_misses_no_write() {
    let script = [
        action("{ instructions = 1_000_000 }", "{ log-start = {} }"),
        action("{ every = 700_000, from = 1_200_000, times = 10 }", "{ log-round = {} }"),
        action("{ instructions = 4_000_000 }", "{ replug = 0 }"),
        action("{ instructions = 10_000_000 }", "{ log-stop = {} }"),
    ]
    .concat();
    for (mmu, cpus) in [("npt", "1"), ("ept,pml=on", "2"), ("shadow", "1")] {
        let mmu = format!("{mmu},dirty-ring=1024");
        let words = ["--memory", "64M", "--mmu", &mmu, "--cpus", cpus, "--check-invariants"];
        let ended = scripted(&script, &words);
        assert_eq!(ended.code, Some(0), "{mmu}: {}", ended.tail());
        let json = ended.json();
        let records = json["vmm"]["script"].as_array().expect("a list of actions");
        assert_eq!(records.len(), 13, "{records:?}");
        assert!(records.iter().all(|record| record["refused"].is_null()), "{mmu}: {records:?}");
        let copied: u64 = records.iter().filter(|r| r["what"] == "log-round").filter_map(|r| r["bytes"].as_u64()).sum();
        assert!(copied > 0 && count(&json, &["vmm", "full_rings"]) > 0, "{mmu}: {records:?}");
    }
}

/// A guest that writes every page of its memory while it is logged fills its ring again and again.
#[test]
fn a_full_ring_is_emptied_and_the_guest_goes_on() {
    let script = action("{ instructions = 1 }", "{ log-start = {} }");
    let ended = scripted(&script, &["--guest", "touch", "--memory", "64M", "--mmu", "npt,dirty-ring=1024"]);
    assert_eq!(ended.code, Some(0), "{}", ended.tail());
    let json = ended.json();
    let full = count(&json, &["vmm", "full_rings"]);
    // 448 pages lie below the soft limit, and the guest writes some eight thousand.
    assert!((10..60).contains(&full), "{full} exits: {}", ended.tail());
}

/// Where shared memory is the VMM's own, pages of the inode are half of the truth: what would treat them as all is refused.
#[test]
fn actions_on_memory_with_two_sides() {
    let script = [
        action("{ instructions = 1_000_000 }", "{ balloon = \"16M+1M\" }"),
        action("{ instructions = 1_000_001 }", "{ log-start = {} }"),
        action("{ instructions = 1_000_002 }", "{ replug = 0 }"),
        action("{ every = 200_000, from = 1_200_000, times = 5 }", "{ toggle = \"1M+2M\" }"),
        action("{ every = 300_000, from = 1_300_000, times = 5 }", "{ zap = \"0+32M\" }"),
        action("{ instructions = 2_000_000 }", "{ age = \"0+32M\" }"),
    ]
    .concat();
    let vm = ["--memory", "64M", "--guest", "conversions", "--vm", "sw-protected,api=7.3", "--check-invariants"];
    let ended = scripted(&script, &vm);
    assert_eq!(ended.code, Some(0), "{}", ended.tail());
    let json = ended.json();
    let records = json["vmm"]["script"].as_array().expect("a list of actions");
    for record in records {
        let refused = record["refused"].as_str().is_some_and(|why| why.contains("memory that is converted in place"));
        let what = record["what"].as_str().expect("words");
        assert_eq!(refused, ["balloon", "log-start", "replug"].iter().any(|word| what.starts_with(word)), "{record}");
        assert!(refused || record["refused"].is_null(), "{record}");
    }
}

/// Everything goes with its root, when the VMM asks for it and whenever a memslot does: processors load the new one, and
/// their guest prints what it prints.
#[test]
fn roots_are_given_up_under_a_running_guest() {
    for mmu in ["npt", "ept", "shadow"] {
        for cpus in ["1", "3"] {
            let words = ["--memory", "96M", "--cpus", cpus];
            let without = guest([&words[..], &["--mmu", mmu]].concat(), LIMIT);
            let script = [
                action("{ every = 30_000 }", "{ zap-all-fast = {} }"),
                action("{ every = 500_000 }", "{ replug = 0 }"),
            ];
            let mmu = format!("{mmu},slot-zap=all");
            let with =
                scripted(&script.concat(), &[&words[..], &["--mmu", &mmu, "--check-invariants=500000"]].concat());
            assert_eq!(with.code, Some(0), "{mmu}: {}\n{}", with.stderr, with.tail());
            assert_eq!(with.text(), without.text(), "{mmu}, {cpus} processors");
            let json = with.json();
            assert!(json["vmm"]["script"].as_array().is_some_and(|all| all.iter().all(|r| r["refused"].is_null())));
            assert!(count(&json, &["faults", "taken"]) > count(&without.json(), &["faults", "taken"]));
        }
    }
}

/// A hole that the guest did not ask for is seen from inside; so is a page that the host will not let go.
#[test]
fn a_guest_notices_holes_and_pins() {
    let words = [&CONVERSIONS[..], &["--memory", "64M"]].concat();
    let hole = scripted(&action("{ every = 10_000 }", r#"{ punch = "32M+2M" }"#), &words);
    assert_eq!(hole.code, Some(3), "{}", hole.tail());
    assert!(hole.text().contains("expected 0x") && hole.text().contains("saw 0x0\n"), "{}", hole.text());
    let pinned = scripted(&action("{ instructions = 0 }", r#"{ pin = "33M+4K" }"#), &words);
    assert_eq!(pinned.code, Some(3), "{}", pinned.tail());
    // -EAGAIN.
    assert!(pinned.text().contains("answer to a conversion at 0x2000000"), "{}", pinned.text());
    assert!(pinned.text().contains("saw 0xfffffffffffffff5"), "{}", pinned.text());
    let both = [
        action("{ instructions = 0 }", r#"{ pin = "33M+4K" }"#),
        action("{ instructions = 1 }", r#"{ unpin = "33M+4K" }"#),
    ];
    assert_eq!(scripted(&both.concat(), &words).code, Some(0));
}

/// Memory that failed ends the guest that uses it, and nobody else.
#[test]
fn failed_memory_ends_whoever_uses_it() {
    let words = [&CONVERSIONS[..], &["--memory", "64M"]].concat();
    let used = scripted(&action("{ instructions = 20_000 }", r#"{ poison = "1M+64K" }"#), &words);
    assert_eq!((used.code, &used.json()["outcome"]), (Some(4), &Value::from("memory-failure")), "{}", used.stderr);
    let unused = scripted(&action("{ instructions = 20_000 }", r#"{ poison = "60M+64K" }"#), &words);
    assert_eq!(unused.code, Some(0), "{}", unused.tail());
}

/// Without its memslot the guest has no memory; one that comes back has all that was in it.
#[test]
fn a_memslot_goes_and_comes_back() {
    let gone = scripted(&action("{ instructions = 50_000 }", "{ unbind = 0 }"), &["--memory", "64M"]);
    assert_eq!((gone.code, &gone.json()["outcome"]), (Some(4), &Value::from("no-memory")), "{}", gone.stderr);
    let both =
        action("{ instructions = 50_000 }", "{ unbind = 0 }") + &action("{ instructions = 50_000 }", "{ bind = 0 }");
    let back = scripted(&both, &["--memory", "64M"]);
    assert_eq!(back.code, Some(0), "{}", back.tail());
}

#[test]
fn a_script_that_is_none_ends_the_command_with_its_place() {
    let ended = scripted(&action("{ instructions = 1 }", r#"{ pnuch = "64M+2M" }"#), &[]);
    assert_eq!(ended.code, Some(2));
    for part in ["error: ", "script.toml: ", "line 3", "unknown variant `pnuch`", "`punch`", "help: docs/vmm-script.md"]
    {
        assert!(ended.stderr.contains(part), "no {part:?} in\n{}", ended.stderr);
    }
    let ended = scripted(
        &action("{ instructions = 1 }", r#"{ convert = { range = "0+4K", to = "private" } }"#),
        &["--memory", "64M"],
    );
    let refused = ended.json()["vmm"]["script"][0]["refused"].as_str().unwrap_or_default().to_owned();
    assert!(refused.contains("--vm sw-protected has private memory"), "{refused}");
}
