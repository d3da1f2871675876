//! The built-in guest under every format of nested tables and every page size.
#![forbid(unsafe_code)]

mod guests;

use std::time::Duration;

use guests::{Ended, guest};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(300);

/// The page sizes as the summary names them.
const SIZES: [&str; 3] = ["4K", "2M", "1G"];

fn passes(words: &[&str]) -> Ended {
    let ended = guest(words, LIMIT);
    assert_eq!(ended.code, Some(0), "{words:?}: {}\n{}", ended.stderr, ended.tail());
    let json = ended.json();
    assert_eq!((&json["outcome"], &json["exit"]), (&Value::from("power-off"), &Value::from(0)), "{words:?}: {json}");
    let text = ended.text();
    assert!(text.lines().any(|line| line == "PASS") && !text.contains("FAIL"), "{words:?}: {text}");
    ended
}

fn count(json: &Value, path: &[&str]) -> u64 {
    let value = path.iter().fold(json, |value, key| &value[key]);
    value.as_u64().unwrap_or_else(|| panic!("{path:?} of {json}"))
}

/// Passes, and the nested tables have leaves of the size asked for.
fn passes_under(mmu: &str, pages: &str) {
    let json = passes(&["--mmu", mmu, "--pages", pages, "--memory", "2G"]).json();
    let asked = SIZES.iter().position(|size| *size == pages.to_uppercase()).expect("a page size");
    assert!(count(&json, &["levels", SIZES[asked]]) > 0, "no {pages} leaf under {mmu}: {json}");
    for larger in &SIZES[asked + 1..] {
        assert_eq!(count(&json, &["levels", larger]), 0, "a {larger} leaf with --pages {pages} under {mmu}: {json}");
    }
}

#[test]
fn npt_4k() {
    passes_under("npt", "4k");
}

#[test]
fn npt_2m() {
    passes_under("npt", "2m");
}

#[test]
fn npt_1g() {
    passes_under("npt", "1g");
}

#[test]
fn ept_4k() {
    passes_under("ept", "4k");
}

#[test]
fn ept_2m() {
    passes_under("ept", "2m");
}

#[test]
fn ept_1g() {
    passes_under("ept", "1g");
}

/// The guest that converts passes, and says that it converted.
fn conversions(words: &[&str]) -> Ended {
    let words: Vec<&str> = ["--guest", "conversions"].into_iter().chain(words.iter().copied()).collect();
    let ended = passes(&words);
    let (asked, json) = (ended.text().contains("memory can be private"), ended.json());
    assert_eq!(asked, count(&json, &["vmm", "conversions"]) > 1000, "{words:?}: {json}");
    assert_eq!(count(&json, &["vmm", "memory_faults"]), 0, "{words:?}: {json}");
    ended
}

/// Ranges of every size and alignment keep their bytes when they become private, shared in part, and shared, whatever the
/// pages behind them and however many processors convert at once.
#[test]
fn conversions_of_every_size_under_every_page_size_by_one_to_four_processors() {
    for pages in ["4k", "2m", "1g"] {
        for (cpus, mmu, ram) in [("1", "npt", "shared"), ("2", "ept", "private"), ("4", "npt", "private")] {
            let vm = format!("sw-protected,ram={ram}");
            let ended = conversions(&["--vm", &vm, "--pages", pages, "--cpus", cpus, "--mmu", mmu, "--memory", "256M"]);
            assert_eq!(ended.text().matches("checks ok").count().to_string(), cpus, "{}", ended.text());
        }
    }
}

/// Where the VM and not the inode says who may use a page (`KVM_SET_MEMORY_ATTRIBUTES`), the guest sees the same.
#[test]
fn conversions_by_attributes_of_the_vm() {
    for (cpus, ram) in [("1", "shared"), ("2", "private")] {
        let vm = format!("sw-protected,ram={ram}");
        let under = |gmem: &str| conversions(&["--vm", &vm, "--gmem", gmem, "--cpus", cpus, "--memory", "64M"]).text();
        assert_eq!(under("7.3"), under("next"), "{ram}");
    }
}

/// Shared pages are the VMM's own memory and private ones guest_memfd's: the guest sees the same.
#[test]
fn conversions_between_two_sides_of_memory() {
    for (cpus, ram, mmu) in [("1", "shared", "npt"), ("2", "private", "ept")] {
        let under = |api: &str| {
            let vm = format!("sw-protected,ram={ram},api={api}");
            let words = ["--vm", &vm, "--mmu", mmu, "--cpus", cpus, "--memory", "64M", "--check-invariants=2000000"];
            conversions(&words).text()
        };
        assert_eq!(under("7.3"), under("next"), "{ram}");
    }
}

/// When and how far folios are split is nothing to the guest.
#[test]
fn conversions_are_the_same_under_every_way_to_split() {
    let run = |gmem: &str, pages: &str, cpus: &str| {
        let vm = ["--vm", "sw-protected", "--gmem", gmem];
        let text = conversions(&[&vm[..], &["--pages", pages, "--cpus", cpus, "--memory", "64M"]].concat()).text();
        text.split_once('\n').map(|(_, rest)| rest.to_owned())
    };
    let (one, four) = (run("next", "4k", "1"), run("next", "4k", "4"));
    for split in ["eager", "eager-4k", "lazy", "always-4k"] {
        for shared in ["split", "whole-if-init-shared", "whole"] {
            assert_eq!(run(&format!("split={split},shared={shared},punch=split"), "2m", "1"), one, "{split}, {shared}");
        }
        assert_eq!(run(&format!("split={split}"), "1g", "4"), four, "{split}");
    }
}

/// The first posting of guest_memfd with huge pages clears all of a huge page for a hole inside it; the guest sees that. The
/// second was mended.
#[test]
fn a_guest_sees_a_hole_that_clears_too_much() {
    let run = |gmem: &str| {
        guest(
            ["--guest", "conversions", "--vm", "sw-protected", "--gmem", gmem, "--pages", "2m", "--memory", "64M"],
            LIMIT,
        )
    };
    let v1 = run("v1");
    assert_eq!(v1.code, Some(3), "{}", v1.tail());
    assert!(v1.text().contains("bytes outside a hole at 0x2000000"), "{}", v1.text());
    let v2 = run("v2");
    assert_eq!(v2.code, Some(0), "{}", v2.tail());
}

/// A GiB is converted as a whole and by its edges, where RAM has one.
#[test]
fn a_gib_is_converted_as_a_whole() {
    for pages in ["4k", "2m", "1g"] {
        let ended = conversions(&["--vm", "sw-protected", "--pages", pages, "--memory", "2G"]);
        assert!(ended.text().contains("a GiB: "), "{}", ended.text());
    }
}

/// Without private memory the conversion hypercall does not exist, and holes are holes.
#[test]
fn a_default_vm_has_no_private_memory() {
    let ended = conversions(&["--memory", "64M"]);
    assert!(ended.text().contains("no private memory here"), "{}", ended.text());
    assert_eq!(count(&ended.json(), &["vmm", "conversions"]), 0);
}

/// The paging checks see nothing of who may use their memory.
#[test]
fn the_paging_guest_runs_in_private_memory() {
    let private = passes(&["--memory", "64M", "--vm", "sw-protected,ram=private"]);
    let shared = passes(&["--memory", "64M"]);
    assert_eq!(private.console, shared.console);
    assert_eq!(count(&private.json(), &["instructions"]), count(&shared.json(), &["instructions"]));
}

/// Every guest of the list runs.
#[test]
fn every_guest_that_is_listed_runs() {
    let listed = guests::bifold(["run", "--list-guests"], LIMIT).stdout;
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["paging", "conversions", "touch"], "{listed}");
    for name in names {
        passes(&["--guest", name, "--memory", "64M"]);
    }
}

#[test]
fn shadow_4k() {
    passes_under("shadow", "4k");
}

#[test]
fn shadow_2m() {
    passes_under("shadow", "2m");
}

#[test]
fn shadow_1g() {
    passes(&["--mmu", "shadow", "--pages", "1g", "--memory", "2G"]);
}

/// Processors on host threads of their own, under every kind of paging.
#[test]
fn four_processors_at_the_same_time() {
    let console =
        |mmu: &str, more: &[&str]| passes(&[&["--memory", "96M", "--cpus", "4", "--mmu", mmu], more].concat()).console;
    for mmu in ["npt", "ept,pml=on", "shadow"] {
        assert_eq!(console(mmu, &["--parallel"]), console(mmu, &[]), "{mmu}");
    }
}

/// The guest cannot tell how it is translated.
#[test]
fn the_console_is_the_same_under_every_kind_of_paging() {
    let under = |mmu| passes(&["--mmu", mmu, "--memory", "256M"]).console;
    let nested = under("npt");
    assert_eq!(nested, under("ept"));
    assert_eq!(nested, under("shadow"));
}

/// The same command gives the same console and the same summary; the guest sees nothing of the seed.
#[test]
fn a_run_is_a_function_of_its_command() {
    let words = ["--memory", "64M", "--seed", "5"];
    let (first, second) = (passes(&words), passes(&words));
    assert_eq!(first.console, second.console);
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(count(&first.json(), &["seed"]), 5);
    assert_eq!(first.console, passes(&["--memory", "64M", "--seed", "6"]).console);
}

/// A terabyte costs what is touched of it.
#[test]
fn a_terabyte_of_memory() {
    for pages in ["4k", "1g"] {
        let ended = passes(&["--memory", "1T", "--pages", pages]);
        // 3 GiB lie below 4 GiB, the rest begins there.
        assert!(ended.text().contains("..0x10040000000\n"), "{}", ended.text());
        assert!(ended.peak_kib > 0 && ended.peak_kib < 256 << 10, "{} KiB resident with {pages}", ended.peak_kib);
    }
}

/// Too little memory is the guest's own verdict, not a failure of ours.
#[test]
fn too_little_memory() {
    let ended = guest(["--memory", "32M"], LIMIT);
    assert!(ended.text().contains("FAIL: "), "{ended:?}");
    let code = ended.code.expect("an exit code");
    assert!(code > 1 && code % 2 == 1, "the guest's codes are odd: {ended:?}");
}

/// Processors that populate memory side by side get a page each time, in turns and on threads of their own.
#[test]
fn processors_touch_all_of_ram_at_once() {
    for (cpus, mode) in [("1", None), ("4", None), ("2", Some("--parallel"))] {
        let words = ["--guest", "touch", "--memory", "128M", "--pages", "4k", "--cpus", cpus];
        let ended = passes(&words.into_iter().chain(mode).collect::<Vec<_>>());
        let (text, json) = (ended.text(), ended.json());
        let pages =
            text.lines().filter_map(|line| line.strip_suffix(" pages")?.rsplit(' ').next()?.parse::<u64>().ok());
        let (lines, pages) = pages.fold((0, 0), |(lines, all), pages| (lines + 1, all + pages));
        assert_eq!(lines.to_string(), cpus, "{text}");
        assert!(pages > 20_000 && count(&json, &["levels", "4K"]) >= pages, "{pages} pages: {json}");
    }
}
