//! House rules that a look at the text decides: files stay short, nothing is left unfinished, no path names a machine.

use std::fs;
use std::path::Path;

use crate::error::Error;
use crate::process;
use crate::tree::Tree;

/// Beyond this many lines a Rust file holds more than one subject.
const MOST_LINES: usize = 700;

/// Text that must not occur, and why. Split, so that this file does not contain it.
const FORBIDDEN: [(&str, &str); 8] = [
    (concat!("to", "do!("), "unfinished code"),
    (concat!("un", "implemented!("), "unfinished code"),
    (concat!("FIX", "ME"), "unfinished code"),
    (concat!("#[ig", "nore"), "a test that does not run"),
    (concat!("\"/", "work/"), "a path of one machine"),
    (concat!(" /", "work/"), "a path of one machine"),
    (concat!("/", "root/."), "a path of one machine"),
    (concat!("/", "home/"), "a path of one machine"),
];

/// The kinds of files that are read.
const READ: [&str; 9] = ["rs", "md", "toml", "sh", "s", "ld", "yml", "ins", "py"];

/// Prints every violation in files under version control.
pub fn check(tree: &Tree) -> Result<(), Error> {
    let listing = process::text(process::command(tree.root(), "git", ["ls-files", "-z"]))?;
    let mut found = Vec::new();
    for name in listing.split_terminator('\0') {
        let path = tree.root().join(name);
        // A file deleted and not yet committed is still listed.
        if !is_read(name) || !path.exists() {
            continue;
        }
        let bytes = fs::read(&path).map_err(Error::file(&path))?;
        found.extend(violations(name, &String::from_utf8_lossy(&bytes)));
    }
    for violation in &found {
        eprintln!("rules: {violation}");
    }
    if found.is_empty() { Ok(()) } else { Err(Error::Violations { count: found.len(), of: "the house rules" }) }
}

fn is_read(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    extension.is_none_or(|extension| READ.contains(&extension)) && !name.starts_with("fuzz/corpus/")
}

fn violations(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if name.ends_with(".rs") && lines > MOST_LINES {
        found.push(format!("{name}: {lines} lines, at most {MOST_LINES}"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        for (word, why) in FORBIDDEN {
            if line.contains(word) {
                found.push(format!("{name}:{number}: {word:?}: {why}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_violation() {
        for (word, why) in FORBIDDEN {
            assert_eq!(violations("a.rs", &format!("ok\n  {word} ")), [format!("a.rs:2: {word:?}: {why}")]);
        }
        let long = "\n".repeat(MOST_LINES + 1);
        assert_eq!(violations("a.rs", &long), ["a.rs: 701 lines, at most 700"]);
        assert!(violations("a.md", &long).is_empty() && violations("a.rs", &long[1..]).is_empty());
    }
}
