//! What `docs/kernel-threads.md` names as shown is there: every test, scenario and benchmark.
#![forbid(unsafe_code)]

use std::path::Path;

use bifold::explore::Scenario;

/// The words between backticks of a line's last column.
fn named(line: &str) -> Vec<(&str, &str)> {
    let column = line.trim_end_matches('|').rsplit_once('|').map_or("", |(_, last)| last);
    let parts: Vec<&str> = column.split('`').collect();
    parts.chunks(2).filter_map(|pair| Some((pair.first()?.trim(), *pair.get(1)?))).collect()
}

#[test]
fn everything_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/kernel-threads.md")).expect("the page is in the repository");
    let (mut rows, mut shown) = (0, 0);
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #")) {
        rows += 1;
        for (kind, what) in named(line) {
            shown += 1;
            if kind.ends_with("scenario") {
                assert!(Scenario::named(what).is_some(), "no scenario {what}: {line}");
                continue;
            }
            let (file, function) = what.split_once(": ").unwrap_or((what, ""));
            let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|_| panic!("no file {file}: {line}"));
            assert!(source.contains(&format!("fn {function}")), "no {function} in {file}: {line}");
        }
        assert!(line.contains('`') || line.ends_with("open |"), "neither shown nor open: {line}");
    }
    assert_eq!(rows, 17 + 12 + 14 + 15 + 26, "a row for each point");
    assert!(shown > rows / 2);
}
