//! Runs an interpreter against the host, case by case, and reports where they differ.

use std::ops::Range;

use crate::case::{Case, CaseResult, Outcome};
use crate::compare::{Comparison, Mismatch};
use crate::generator::{Catalogue, Generator};
use crate::judge::{Judge, JudgeError};

/// Cases that are generated and executed natively at a time.
const BATCH: u64 = 1024;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Summary {
    /// Cases that both sides executed.
    pub compared: u64,
    /// Of these, cases that ended in a fault on the host.
    pub faults: u64,
    /// Of the compared, cases on which the sides differ.
    pub mismatches: u64,
    /// Cases the host gave no answer to; they are not compared.
    pub crashed: u64,
}

/// Runs cases 0 to `count` of `seed` over the whole exact catalogue, comparing what the architecture defines.
pub fn run_differential(
    seed: u64,
    count: u64,
    interpreter: impl FnMut(&Case) -> CaseResult,
    report: impl FnMut(Mismatch),
) -> Result<Summary, JudgeError> {
    let generator = Generator::new(Catalogue::exact(), seed);
    run(&generator, 0..count, Comparison::Architectural(&[]), interpreter, report)
}

/// Runs the cases `indices` of `generator`.
pub fn run(
    generator: &Generator,
    indices: Range<u64>,
    comparison: Comparison,
    mut interpreter: impl FnMut(&Case) -> CaseResult,
    mut report: impl FnMut(Mismatch),
) -> Result<Summary, JudgeError> {
    let mut judge = Judge::start()?;
    let mut summary = Summary::default();
    let mut cases = Vec::with_capacity(BATCH as usize);
    let mut start = indices.start;
    while start < indices.end {
        let end = indices.end.min(start.saturating_add(BATCH));
        cases.clear();
        cases.extend((start..end).map(|index| generator.case(index)));
        judge.run(&cases, |case, native| {
            match native.outcome {
                Outcome::Crashed(_) => {
                    summary.crashed += 1;
                    return;
                }
                Outcome::Fault(_) => summary.faults += 1,
                Outcome::Completed { .. } => {}
            }
            summary.compared += 1;
            if let Err(mismatch) = comparison.compare(case, &native, &interpreter(case)) {
                summary.mismatches += 1;
                report(*mismatch);
            }
        })?;
        start = end;
    }
    Ok(summary)
}
