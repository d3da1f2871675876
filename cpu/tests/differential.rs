//! The interpreter and the host processor agree, instruction by instruction: over the whole catalogue of what the
//! model advertises, over byte strings that end at a page's end, and on every committed case.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod judged;

use iced_x86::Code;
use judged::{Interpreter, advertised, known_difference};
use native::admit::decode;
use native::casefile::committed;
use native::generator::catalogue::approximate;
use native::generator::{ByteGenerator, Catalogue, Generator};
use native::judge::{Judge, JudgeError};
use native::{Case, Comparison, Fault, Mismatch, Outcome, compare};

/// Mismatches that are printed in full.
const SHOWN: usize = 10;

/// Gathers mismatches, and fails with the first few of them.
#[derive(Default)]
struct Report {
    shown: Vec<String>,
    mismatches: u64,
}

impl Report {
    fn note(&mut self, mismatch: &Mismatch) {
        if known_difference(mismatch) {
            return;
        }
        self.mismatches += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(mismatch.to_string());
        }
    }
    fn finish(self) {
        assert_eq!(self.mismatches, 0, "\n{}", self.shown.join("\n"));
    }
}

/// Whether the answer is that this host cannot judge; said aloud, so that nobody takes silence for agreement.
fn skipped(error: &JudgeError) -> bool {
    if let JudgeError::HostFeature(_) = error {
        eprintln!("SKIPPED: no comparison with the host processor: {error}");
        return true;
    }
    false
}

#[test]
fn generated_instructions() {
    let generator =
        Generator::new(Catalogue::filtered(|code| advertised(code) && !approximate(code)), 0x0062_6966_6f6c_6401);
    let mut interpreter = Interpreter::for_this_host();
    let mut report = Report::default();
    let summary = native::driver::run(
        &generator,
        0..600_000,
        Comparison::Architectural(&[]),
        |case| interpreter.execute(case),
        |mismatch| report.note(&mismatch),
    );
    match summary {
        Ok(summary) => {
            assert!(summary.compared > 590_000 && summary.faults > 20_000, "{summary:?}");
            report.finish();
        }
        Err(error) if skipped(&error) => {}
        Err(error) => panic!("{error}"),
    }
}

/// String `index` cut off somewhere; one that is no instruction stays whole, for how much of it is fetched before it
/// is refused is nobody's business.
fn length_case(generator: &ByteGenerator, index: u64) -> Option<Case> {
    let code = decode(&generator.bytes(index), 0).code();
    let present = if code == Code::INVALID { 15 } else { (index % 15 + 1) as u8 };
    generator.length_case(index, present).filter(|_| advertised(code))
}

/// Bytes that are no instruction fault on both sides. Zen 4 may read an operand first, and tell apart which are too long.
fn both_refuse(mismatch: &Mismatch) -> bool {
    let refused = |outcome| matches!(outcome, Outcome::Fault(Fault { vector: 6 | 13 | 14, .. }));
    let code = decode(mismatch.case.code.bytes(), mismatch.case.rip()).code();
    code == Code::INVALID && refused(mismatch.native.outcome) && refused(mismatch.ours.outcome)
}

#[test]
fn byte_strings_at_the_end_of_a_page() {
    let mut judge = match Judge::start() {
        Err(error) if skipped(&error) => return,
        other => other.expect("a judge"),
    };
    let generator = ByteGenerator::new(11);
    let cases: Vec<_> = (0..60_000).filter_map(|index| length_case(&generator, index)).collect();
    assert!(cases.len() > 20_000, "{}", cases.len());
    let mut interpreter = Interpreter::for_this_host();
    let mut report = Report::default();
    judge
        .run(&cases, |case, host| {
            if let Err(mismatch) = compare(case, &host, &interpreter.execute(case))
                && !both_refuse(&mismatch)
            {
                report.note(&mismatch);
            }
        })
        .expect("an answer");
    report.finish();
}

#[test]
fn committed_cases() {
    let mut interpreter = Interpreter::for_this_host();
    let mut report = Report::default();
    let mut cases = 0;
    for (_, records) in committed().expect("readable cases") {
        for record in records {
            if !advertised(decode(record.case.code.bytes(), record.case.rip()).code()) {
                continue;
            }
            cases += 1;
            if let Err(mismatch) = compare(&record.case, &record.expected, &interpreter.execute(&record.case)) {
                report.note(&mismatch);
            }
        }
    }
    assert!(cases > 50, "{cases}");
    report.finish();
}
