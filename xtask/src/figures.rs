//! The figures of `docs/performance.md`: runs the benchmarks, reads what criterion kept, and writes the tables anew between
//! the two marks of that file.
//!
//! What is measured is the benchmarks' business; here is which of them there are, and which figure has a bound.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;
use crate::process;
use crate::tree::Tree;

/// A benchmark of criterion's.
struct Bench {
    package: &'static str,
    name: &'static str,
    /// What its groups' names begin with.
    groups: &'static [&'static str],
    /// What it answers.
    question: &'static str,
}

const BENCHES: [Bench; 11] = [
    Bench {
        package: "hypervisor",
        name: "handle_fault",
        groups: &["handle_fault/", "native/"],
        question: "The hypervisor's part of a nested fault, and a first touch under this host's own kernel",
    },
    Bench {
        package: "bifold",
        name: "access",
        groups: &["nested_fault/", "fast_tlb/"],
        question: "A first touch from the TLB miss to the translation, by one processor and by two; hits",
    },
    Bench {
        package: "bifold",
        name: "guests",
        groups: &["guest_first_touch/", "guest_paging/"],
        question: "Whole guests: first touch of a GiB by the guest's instructions, a page each; paging work",
    },
    Bench {
        package: "hypervisor",
        name: "changes",
        groups: &["punch_and_refault/", "convert_1g_to_and_fro/", "convert_one_page_of_each/", "order_rules/"],
        question: "Holes, conversions, and what the rules for large leaves cost a guest with a hole in its RAM",
    },
    Bench {
        package: "gmem",
        name: "inode",
        groups: &["convert/", "punch/", "get_folio/"],
        question: "Conversions and holes, guest_memfd's part alone",
    },
    Bench {
        package: "gmem",
        name: "units",
        groups: &["alloc_free/", "restructure/", "folio/", "host/"],
        question: "Folios: allocation, splits and merges with their vmemmap, lookups",
    },
    Bench {
        package: "hypervisor",
        name: "dirty",
        groups: &["dirty_round/"],
        question: "A round of dirty logging, each page written and harvested",
    },
    Bench { package: "hypervisor", name: "slots", groups: &["memslots/"], question: "Memslots, by how many there are" },
    Bench {
        package: "hypervisor",
        name: "snp",
        groups: &["snp/"],
        question: "Memory of an SNP guest: first touch, conversions, PSMASH, page state changes, changes of a page's key",
    },
    Bench { package: "mmu", name: "translate", groups: &["translate/"], question: "Walks of page tables" },
    Bench {
        package: "mmu",
        name: "rmp",
        groups: &["rmp_check/", "rmp_change/", "memory_key/"],
        question: "The reverse map: a check, validating a GiB, dividing a large page; changing the key of a page",
    },
];

/// The most that a figure should be.
enum Bound {
    /// Nanoseconds, on a machine at rest.
    Time(f64),
    /// A share of what the host's own kernel takes for a first touch: so a slow machine may be slow.
    OfNative(f64),
}

const NATIVE: &str = "native/first_touch";
const WANTED: [(&str, Bound); 11] = [
    ("handle_fault/4K/first_touch", Bound::OfNative(0.18)),
    ("handle_fault/2M/first_touch", Bound::OfNative(0.29)),
    ("handle_fault/4K/refault_after_zap", Bound::OfNative(0.11)),
    ("handle_fault/2M/refault_after_zap", Bound::OfNative(0.11)),
    ("convert/1g_split_already/to_private", Bound::Time(20.0)),
    ("convert/1g_split_already/to_shared", Bound::Time(20.0)),
    ("convert_1g_to_and_fro/2M/by_2m", Bound::Time(1000.0)),
    ("restructure/1g_to_2m/split", Bound::Time(20_000.0)),
    ("restructure/1g_to_2m/reconstruct", Bound::Time(20_000.0)),
    ("restructure/1g_to_4k/split", Bound::Time(1_500_000.0)),
    ("restructure/1g_to_4k/reconstruct", Bound::Time(1_500_000.0)),
];

/// The bound of a figure in words, among the figures taken with it.
fn wanted(id: &str, figures: &[Figure]) -> String {
    match WANTED.iter().find(|(of, _)| *of == id) {
        None => String::new(),
        Some((_, Bound::Time(most))) => format!("at most {}", shown(*most)),
        Some((_, Bound::OfNative(share))) => {
            let native = figures.iter().find(|figure| figure.id == NATIVE);
            let most = native.map_or_else(String::new, |native| format!(": {}", shown(native.nanoseconds * share)));
            format!("at most {share} of `{NATIVE}`{most}")
        }
    }
}

const BEGIN: &str = "<!-- cargo xtask figures: begin -->";
const END: &str = "<!-- cargo xtask figures: end -->";

/// A measured figure.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    id: String,
    /// Of one element: a page, a fault, or the whole where nothing is counted.
    nanoseconds: f64,
}

/// Runs the benchmarks whose names are in `only`, or all; writes the tables of everything that was ever measured here.
pub fn run(tree: &Tree, only: &[&str]) -> Result<(), Error> {
    for Bench { package, name, .. } in BENCHES.iter().filter(|bench| only.is_empty() || only.contains(&bench.name)) {
        process::run(process::cargo(tree.root(), ["bench", "-p", package, "--bench", name]))?;
    }
    write(tree)
}

/// Writes the tables of what was measured before.
pub fn write(tree: &Tree) -> Result<(), Error> {
    let figures = read(&target_directory(tree)?.join("criterion"))?;
    let path = tree.root().join("docs/performance.md");
    let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
    let new = replaced(&text, &tables(&figures))
        .ok_or_else(|| Error::NotWhatItSays { path: path.clone(), expected: "a page with the marks of its figures" })?;
    std::fs::write(&path, new).map_err(Error::file(&path))
}

fn target_directory(tree: &Tree) -> Result<PathBuf, Error> {
    let metadata = ["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"];
    let metadata = parsed(&process::output(process::cargo(tree.root(), metadata))?)?;
    Ok(PathBuf::from(metadata["target_directory"].as_str().unwrap_or("target")))
}

fn parsed(bytes: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(bytes).map_err(|cause| Error::Output { program: "cargo", what: cause.to_string() })
}

/// Every figure under a directory of criterion's, by name.
fn read(directory: &Path) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(at) = left.pop() {
        for entry in std::fs::read_dir(&at).map_err(Error::file(&at))? {
            let path = entry.map_err(Error::file(&at))?.path();
            if path.ends_with("new") {
                let json = |name: &str| {
                    let path = path.join(name);
                    parsed(&std::fs::read(&path).map_err(Error::file(&path))?)
                };
                figures.extend(figure(&json("benchmark.json")?, &json("estimates.json")?));
            } else if path.is_dir() {
                left.push(path);
            }
        }
    }
    figures.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(figures)
}

fn figure(benchmark: &Value, estimates: &Value) -> Option<Figure> {
    let elements = benchmark["throughput"]["Elements"].as_f64().unwrap_or(1.0);
    let median = estimates["median"]["point_estimate"].as_f64()?;
    Some(Figure { id: benchmark["full_id"].as_str()?.to_owned(), nanoseconds: median / elements })
}

/// A number of nanoseconds with three digits that count.
fn shown(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        small if small < 1e3 => (small, "ns"),
        middle if middle < 1e6 => (middle / 1e3, "us"),
        large => (large / 1e6, "ms"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

fn tables(figures: &[Figure]) -> String {
    let mut text = String::new();
    for Bench { package, name, groups, question } in &BENCHES {
        let mine: Vec<&Figure> =
            figures.iter().filter(|figure| groups.iter().any(|group| figure.id.starts_with(group))).collect();
        if mine.is_empty() {
            continue;
        }
        let _ = write!(
            text,
            "\n{question}: `cargo bench -p {package} --bench {name}`\n\n| what | each | wanted |\n|---|---:|---:|\n"
        );
        for Figure { id, nanoseconds } in mine {
            let _ = writeln!(text, "| {id} | {} | {} |", shown(*nanoseconds), wanted(id, figures));
        }
    }
    text
}

/// `text` with `tables` between the marks; `None` without both of them.
fn replaced(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{tables}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_of_one_element_and_stands_in_the_table_of_its_benchmark() {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let benchmark = json(r#"{"full_id": "handle_fault/4K/first_touch", "throughput": {"Elements": 100}}"#);
        let found = figure(&benchmark, &json(r#"{"median": {"point_estimate": 12345.0}}"#)).unwrap();
        assert_eq!(found.nanoseconds, 123.45);
        let native = Figure { id: NATIVE.to_owned(), nanoseconds: 1000.0 };
        let page = replaced(&format!("a\n{BEGIN}\nold\n{END}\nb"), &tables(&[found, native])).unwrap();
        let row = "| handle_fault/4K/first_touch | 123 ns | at most 0.18 of `native/first_touch`: 180 ns |";
        assert!(page.contains(row), "{page}");
        assert!(page.starts_with("a\n") && page.ends_with("\nb") && !page.contains("old"));
        assert_eq!(replaced("no marks", ""), None);
    }

    #[test]
    fn three_digits_count() {
        assert_eq!(
            [1.234, 12.34, 123.4, 1234.0, 1.5e6].map(shown),
            ["1.23 ns", "12.3 ns", "123 ns", "1.23 us", "1.50 ms"]
        );
    }
}
