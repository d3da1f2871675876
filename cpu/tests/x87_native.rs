//! x87 against the processor the tests run on: stack faults, every control word, memory operands, faults included.
//! Transcendental functions, whose last bits differ between processors, are left to the tests of the arithmetic.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;
#[path = "common/judge.rs"]
mod judge;

use iced_x86::{Code, CpuidFeature, Decoder, Mnemonic};
use native::generator::catalogue::approximate;
use native::{CaseResult, Mismatch, Outcome};

/// The instructions of this group.
fn ours(code: Code) -> bool {
    use CpuidFeature as C;
    let x87 = |f: &C| matches!(f, C::FPU | C::FPU287 | C::FPU387);
    let name = format!("{code:?}");
    let starts_with_f = name.starts_with('F') && !name.starts_with("Fx");
    starts_with_f && (code.cpuid_features().iter().any(x87) || name.contains("st"))
        || code.cpuid_features().iter().any(x87)
}

/// FNSAVE and its kin access many bytes in an order of their own, so a different part of the image may fault first.
fn both_fault_on_an_image(mismatch: &Mismatch) -> bool {
    use Mnemonic as M;
    let instruction = Decoder::with_ip(64, mismatch.case.code.bytes(), mismatch.case.rip(), 0).decode();
    let image = matches!(instruction.mnemonic(), M::Fnstenv | M::Fldenv | M::Fnsave | M::Frstor);
    let faults = |result: &CaseResult| matches!(result.outcome, Outcome::Fault(_));
    image && faults(&mismatch.native) && faults(&mismatch.ours)
}

#[test]
fn the_host_agrees() {
    judge::agrees(31, 100_000, 100, |code| ours(code) && !approximate(code), both_fault_on_an_image);
}
