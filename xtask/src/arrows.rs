//! Which crate may know which.
//!
//! The table is the house's plan of floors: an arrow points down or does not exist. Tests may also use the judges:
//! `oracle` (a second, naive model), `native` (the processor we run on) and `interleave` (controlled threads).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::error::Error;
use crate::process;
use crate::tree::Tree;

/// A crate of ours and the crates of ours that it may use.
const FLOORS: [(&str, &[&str]); 11] = [
    ("emu-core", &[]),
    ("gmem", &["emu-core"]),
    ("mmu", &["emu-core"]),
    ("cpu", &["mmu", "emu-core"]),
    ("devices", &["emu-core"]),
    ("hypervisor", &["gmem", "mmu", "emu-core"]),
    ("interleave", &["emu-core"]),
    ("bifold", &["emu-core", "gmem", "mmu", "cpu", "devices", "hypervisor", "interleave"]),
    ("oracle", &["emu-core"]),
    ("native", &[]),
    ("xtask", &[]),
];

/// What tests may use besides.
const JUDGES: [&str; 3] = ["oracle", "native", "interleave"];

/// Crates of others that only some of ours may use outside tests: what they bring belongs on one floor.
const CONFINED: [(&str, &[&str]); 4] = [
    ("iced-x86", &["cpu", "native"]),
    ("clap", &["bifold"]),
    ("parking_lot", &["emu-core"]),
    ("corosensei", &["interleave"]),
];

/// Prints every forbidden arrow of the workspace.
pub fn check(tree: &Tree) -> Result<(), Error> {
    let metadata = process::output(process::cargo(
        tree.root(),
        ["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"],
    ))?;
    let metadata: Value = serde_json::from_slice(&metadata)
        .map_err(|cause| Error::Output { program: "cargo metadata", what: cause.to_string() })?;
    let forbidden = forbidden(&metadata);
    for arrow in &forbidden {
        eprintln!("arrows: {arrow}");
    }
    if forbidden.is_empty() { Ok(()) } else { Err(Error::Violations { count: forbidden.len(), of: "the arrows" }) }
}

fn forbidden(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut found = Vec::new();
    for (name, _) in FLOORS {
        if !ours.contains(name) {
            found.push(format!("{name} is in the plan of floors and not in the workspace"));
        }
    }
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = FLOORS.iter().find(|(floor, _)| *floor == name) else {
            found.push(format!("{name} has no place in the plan of floors"));
            continue;
        };
        for dependency in package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let in_tests = dependency["kind"].as_str() == Some("dev");
            let legal = if ours.contains(target) {
                allowed.contains(&target) || in_tests && JUDGES.contains(&target)
            } else {
                let confined = CONFINED.iter().find(|(foreign, _)| *foreign == target);
                in_tests || confined.is_none_or(|(_, users)| users.contains(&name))
            };
            if !legal {
                found.push(format!("{name} must not use {target}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The legal workspace, with one more dependency of `from`.
    fn workspace(from: &str, to: &str, kind: Option<&str>) -> Value {
        let packages: Vec<Value> = FLOORS
            .iter()
            .map(|(name, allowed)| {
                let mut dependencies: Vec<Value> =
                    allowed.iter().map(|to| json!({ "name": to, "kind": null })).collect();
                if *name == from {
                    dependencies.push(json!({ "name": to, "kind": kind }));
                }
                json!({ "name": name, "dependencies": dependencies })
            })
            .collect();
        json!({ "packages": packages })
    }

    #[test]
    fn arrows_point_down() {
        assert_eq!(forbidden(&workspace("mmu", "bitflags", None)), Vec::<String>::new());
        for (from, to) in [
            ("gmem", "mmu"),
            ("mmu", "gmem"),
            ("cpu", "hypervisor"),
            ("cpu", "gmem"),
            ("cpu", "devices"),
            ("hypervisor", "cpu"),
            ("hypervisor", "devices"),
            ("devices", "mmu"),
            ("emu-core", "bifold"),
            ("mmu", "iced-x86"),
        ] {
            assert_eq!(forbidden(&workspace(from, to, None)), [format!("{from} must not use {to}")]);
        }
    }

    #[test]
    fn tests_may_ask_the_judges() {
        assert_eq!(forbidden(&workspace("mmu", "oracle", Some("dev"))), Vec::<String>::new());
        assert_eq!(forbidden(&workspace("mmu", "oracle", None)), ["mmu must not use oracle"]);
        assert_eq!(forbidden(&workspace("mmu", "gmem", Some("dev"))), ["mmu must not use gmem"]);
    }

    #[test]
    fn a_new_crate_needs_a_floor() {
        let mut metadata = workspace("", "", None);
        metadata["packages"].as_array_mut().unwrap().push(json!({ "name": "attic", "dependencies": [] }));
        assert_eq!(forbidden(&metadata), ["attic has no place in the plan of floors"]);
    }
}
