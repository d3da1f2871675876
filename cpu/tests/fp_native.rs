//! Floating point on vector registers against the processor the tests run on: SSE, AVX, FMA, F16C; registers and
//! memory, any MXCSR, faults included.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;
#[path = "common/judge.rs"]
mod judge;

use iced_x86::{Code, CpuidFeature, EncodingKind};

/// The instructions of this group.
fn ours(code: Code) -> bool {
    use CpuidFeature as C;
    let vector = |f: &C| matches!(f, C::SSE | C::SSE2 | C::SSE3 | C::SSE4_1 | C::AVX | C::FMA | C::F16C);
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let families = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "hadd", "hsub", "dp", "round", "cmp", "comi", "ucomi", "cvt",
        "fm", "fnm", "ldmx", "stmx", "rcp", "rsqrt",
    ];
    code.op_code().encoding() != EncodingKind::EVEX
        && code.cpuid_features().iter().any(vector)
        && families.iter().any(|family| name.starts_with(family))
}

#[test]
fn the_host_agrees() {
    judge::agrees(21, 100_000, 250, |code| ours(code) && !native::generator::catalogue::approximate(code), |_| false);
}
