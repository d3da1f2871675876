//! The committed cases are what this host does, and print as they are written.

use native::casefile::committed;

#[test]
fn committed_cases_print_as_they_are_written() {
    let files = committed().unwrap();
    assert!(!files.is_empty());
    for (path, records) in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert!(lines.clone().count() > 0, "{path:?} has no case");
        for (line, record) in lines.zip(records) {
            assert_eq!(record.to_string(), line, "{path:?}");
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn committed_cases_are_what_the_host_does() {
    let mut judge = native::judge::Judge::start().unwrap();
    for (path, records) in committed().unwrap() {
        for record in records {
            let native = judge.run_one(&record.case).unwrap();
            if let Err(mismatch) = native::compare(&record.case, &native, &record.expected) {
                panic!("{path:?}: {mismatch}");
            }
        }
    }
}
