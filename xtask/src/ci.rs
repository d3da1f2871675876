//! Everything a change must pass.
//!
//! All steps run, also after one has failed: one look at the end says everything that is wrong. Guests run in the
//! release profile, because Linux executes billions of instructions; everything else runs in the dev profile, whose
//! overflow checks and debug assertions are part of the test.

use std::time::Instant;

use crate::error::Error;
use crate::process::{cargo, command, run as must};
use crate::tree::Tree;
use crate::{arrows, fetch, rules};

struct Step {
    name: &'static str,
    run: fn(&Tree) -> Result<(), Error>,
}

/// Cheap ones first; the network before the long ones, so that its failure is known early.
const STEPS: [Step; 9] = [
    Step { name: "rules", run: rules::check },
    Step { name: "arrows", run: arrows::check },
    Step { name: "fmt", run: fmt },
    Step { name: "fetch", run: fetch::run },
    Step { name: "clippy", run: clippy },
    Step { name: "doc", run: doc },
    Step { name: "test", run: test },
    Step { name: "guests", run: guests },
    Step { name: "bench", run: bench },
];

/// The steps' names.
pub fn names() -> impl Iterator<Item = &'static str> {
    STEPS.iter().map(|step| step.name)
}

/// Runs all steps, or those that are named.
pub fn run(tree: &Tree, only: &[&str]) -> Result<(), Error> {
    if only.iter().any(|name| !names().any(|step| step == *name)) {
        return Err(Error::Usage);
    }
    let begin = Instant::now();
    let mut failed = Vec::new();
    let mut report = Vec::new();
    for step in STEPS.iter().filter(|step| only.is_empty() || only.contains(&step.name)) {
        eprintln!("\n== {} ==", step.name);
        let begin = Instant::now();
        let outcome = (step.run)(tree);
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        report.push(format!("  {:8} {word:8} {:5} s", step.name, begin.elapsed().as_secs()));
        if let Err(error) = outcome {
            eprintln!("xtask: {}: {error}", step.name);
            failed.push(step.name);
        }
    }
    eprintln!("\n{}\n  {:17} {:5} s", report.join("\n"), "all", begin.elapsed().as_secs());
    // Without the network a developer can still test everything else; what is missing is said where it is seen last.
    if only.is_empty() || only.contains(&"guests") {
        for missing in fetch::missing(tree) {
            eprintln!("xtask: NOT TESTED, because it could not be fetched: {missing}");
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Steps(failed.join(", "))) }
}

fn fmt(tree: &Tree) -> Result<(), Error> {
    must(cargo(tree.root(), ["fmt", "--all", "--check"]))?;
    must(cargo(tree.root(), ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    // Not crates of the workspace: the root's build script compiles them.
    let guests = ["builtin", "conversions", "touch", "stage0"].map(|name| format!("guests/{name}/main.rs"));
    let style = ["--check", "--edition", "2024"].map(str::to_owned);
    must(command(tree.root(), "rustfmt", style.into_iter().chain(guests)))
}

fn clippy(tree: &Tree) -> Result<(), Error> {
    must(cargo(tree.root(), ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn doc(tree: &Tree) -> Result<(), Error> {
    let mut doc = cargo(tree.root(), ["doc", "--locked", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    must(doc)
}

/// All but the root's guests: units, properties, models, the committed fuzz corpus, examples in the documentation.
fn test(tree: &Tree) -> Result<(), Error> {
    must(cargo(tree.root(), ["test", "--locked", "--workspace", "--exclude", "bifold"]))?;
    must(cargo(tree.root(), ["test", "--locked", "-p", "bifold", "--lib", "--bins"]))?;
    must(cargo(tree.root(), ["test", "--locked", "-p", "bifold", "--doc"]))
}

/// The root's tests: the program itself with small guests, images that are wrong, and Linux.
fn guests(tree: &Tree) -> Result<(), Error> {
    must(cargo(tree.root(), ["build", "--locked", "--release", "-p", "bifold"]))?;
    must(cargo(tree.root(), ["test", "--locked", "--release", "-p", "bifold", "--tests"]))
}

fn bench(tree: &Tree) -> Result<(), Error> {
    must(cargo(tree.root(), ["bench", "--locked", "--workspace", "--no-run"]))
}
