//! The house's own tasks, run as `cargo xtask TASK`.
//!
//! - [`ci`]: everything a change must pass, in one command.
//! - [`arrows`], [`rules`]: the rules of the house that the compiler does not know.
//! - [`fetch`], [`initramfs`]: what guest tests need from Debian, and the ramdisks made of it.
//! - [`figures`]: what the benchmarks measure, into the page about performance.
//! - [`guests`]: Linux under every combination of the machine's options, more than CI has time for.
#![forbid(unsafe_code)]

mod arrows;
mod ci;
mod error;
mod fetch;
mod figures;
mod guests;
mod initramfs;
mod process;
mod rules;
mod tree;

use std::process::ExitCode;

use error::Error;
use tree::Tree;

const USAGE: &str = "\
usage: cargo xtask TASK

  ci [STEP...]     every check that a change must pass, or only these steps
  fetch            download what guest tests need (Debian packages by name) into guests/cache
  arrows           check which crate may know which
  rules            check the house rules: length of files, unfinished code, paths of machines
  figures [NAME...]
                   run the benchmarks, or these only, and write what they measured into docs/performance.md
  figures --write  only write what was measured before
  guests [--all]   boot Linux under a sample of the machine's options, or under all of them
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage) => {
            eprint!("{USAGE}\nsteps of ci: {}\n", ci::names().collect::<Vec<_>>().join(", "));
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Error> {
    let tree = Tree::find()?;
    match words {
        ["ci", steps @ ..] => ci::run(&tree, steps),
        ["fetch"] => fetch::run(&tree),
        ["arrows"] => arrows::check(&tree),
        ["rules"] => rules::check(&tree),
        ["figures", "--write"] => figures::write(&tree),
        ["figures", names @ ..] => figures::run(&tree, names),
        ["guests"] => guests::run(&tree, guests::Extent::Sample),
        ["guests", "--all"] => guests::run(&tree, guests::Extent::All),
        _ => Err(Error::Usage),
    }
}
