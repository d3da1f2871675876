//! Vector instructions that do not calculate in floating point, against the processor the tests run on: every form,
//! registers and memory, faults included.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;
#[path = "common/judge.rs"]
mod judge;

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic};

/// The instructions of this group: those on vectors, less arithmetic in floating point.
fn ours(code: Code) -> bool {
    use CpuidFeature as C;
    let op_code = code.op_code();
    let vector = |f: &C| {
        matches!(f, C::MMX | C::SSE | C::SSE2 | C::SSE3 | C::SSSE3 | C::SSE4_1 | C::SSE4_2)
            || matches!(f, C::AES | C::PCLMULQDQ | C::SHA | C::AVX | C::AVX2)
    };
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let families = [
        "mov",
        "and",
        "or",
        "xor",
        "shuf",
        "unpck",
        "blend",
        "insert",
        "extract",
        "broadcast",
        "perm",
        "gather",
        "mask",
        "test",
        "zero",
        "lddqu",
        "emms",
        "aes",
        "sha",
        "p",
    ];
    let others = [Mnemonic::Pause, Mnemonic::Popcnt];
    op_code.encoding() != EncodingKind::EVEX
        && code.cpuid_features().iter().any(vector)
        && families.iter().any(|family| name.starts_with(family))
        && !name.starts_with("prefetch")
        && !others.contains(&code.mnemonic())
}

#[test]
fn the_host_agrees() {
    judge::agrees(11, 60_000, 700, ours, |_| false);
}
