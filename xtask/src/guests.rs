//! Linux under the machine's options: a sample, or every combination.
//!
//! The tests of `tests/guest_linux.rs`, of `tests/guest_snp.rs` and of `tests/guest_devices.rs` do the work; this sets how
//! much of their tables they take.

use crate::error::Error;
use crate::fetch;
use crate::process::{cargo, run as must};
use crate::tree::Tree;

/// How much of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A few boots; in CI every row of the table.
    Sample,
    /// Every number of CPUs with every kind of nested paging, page size and kernel.
    All,
}

/// Fetches what is needed and runs them.
pub fn run(tree: &Tree, extent: Extent) -> Result<(), Error> {
    fetch::run(tree)?;
    let of_linux = ["guest_linux", "guest_snp", "guest_devices"].into_iter().flat_map(|name| ["--test", name]);
    let always = ["test", "--locked", "--no-fail-fast", "--release", "-p", "bifold"];
    let mut test = cargo(tree.root(), always.into_iter().chain(of_linux));
    if extent == Extent::All {
        test.env("BIFOLD_GUESTS", "all");
    }
    must(test)
}
