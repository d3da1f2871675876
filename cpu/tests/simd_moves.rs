//! Vector moves and the simplest computations end to end.

mod common;

use common::{CODE, long_mode, run};
use emu_core::Spa;

const DATA: u64 = 0x30_0000;
const PATTERN: [u64; 4] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 0x1716_1514_1312_1110, 0x1f1e_1d1c_1b1a_1918];
const OLD: [u64; 4] = [!1, !2, !3, !4];

/// Runs one instruction with RSI at `DATA` (which holds `PATTERN`), RDI 256 bytes on; every vector register is `OLD`
/// but for YMM1, which is `PATTERN`. Gives back the state and 64 bytes from RDI.
fn one(code: &[u8]) -> (cpu::VcpuState, [u64; 8]) {
    let (mut vcpu, memory) = long_mode(code);
    for (at, value) in (DATA..).step_by(8).zip(PATTERN) {
        memory.store(Spa::new(at), value).unwrap();
    }
    let mut state = vcpu.state();
    state.ymm = [OLD; 16];
    state.ymm[1] = PATTERN;
    state.gpr[6] = DATA;
    state.gpr[7] = DATA + 256;
    vcpu.set_state(&state);
    run(&mut vcpu, 1);
    let state = vcpu.state();
    assert_eq!(state.rip, CODE + code.len() as u64, "retired");
    (state, std::array::from_fn(|n| memory.load(Spa::new(DATA + 256 + 8 * n as u64)).unwrap()))
}

#[test]
fn legacy_forms_keep_the_upper_half_and_vex_clears_it() {
    let [a, b, c, d] = PATTERN;
    // movups xmm0, [rsi]; vmovups xmm0, [rsi]; vmovups ymm0, [rsi]
    assert_eq!(one(&[0x0f, 0x10, 0x06]).0.ymm[0], [a, b, OLD[2], OLD[3]]);
    assert_eq!(one(&[0xc5, 0xf8, 0x10, 0x06]).0.ymm[0], [a, b, 0, 0]);
    assert_eq!(one(&[0xc5, 0xfc, 0x10, 0x06]).0.ymm[0], [a, b, c, d]);
    // movdqa xmm0, xmm1; vmovdqa xmm0, xmm1; vmovdqa ymm0, ymm1
    assert_eq!(one(&[0x66, 0x0f, 0x6f, 0xc1]).0.ymm[0], [a, b, OLD[2], OLD[3]]);
    assert_eq!(one(&[0xc5, 0xf9, 0x6f, 0xc1]).0.ymm[0], [a, b, 0, 0]);
    assert_eq!(one(&[0xc5, 0xfd, 0x6f, 0xc1]).0.ymm[0], PATTERN);
    // pxor xmm1, xmm1; vpxor xmm1, xmm1, xmm1
    assert_eq!(one(&[0x66, 0x0f, 0xef, 0xc9]).0.ymm[1], [0, 0, c, d]);
    assert_eq!(one(&[0xc5, 0xf1, 0xef, 0xc9]).0.ymm[1], [0; 4]);
}

#[test]
fn stores_write_their_width() {
    let [a, b, c, d] = PATTERN;
    // movups [rdi], xmm1; vmovdqu [rdi], ymm1; movq [rdi], xmm1; movss [rdi], xmm1; movhps [rdi], xmm1
    assert_eq!(one(&[0x0f, 0x11, 0x0f]).1[..3], [a, b, 0]);
    assert_eq!(one(&[0xc5, 0xfe, 0x7f, 0x0f]).1[..5], [a, b, c, d, 0]);
    assert_eq!(one(&[0x66, 0x0f, 0xd6, 0x0f]).1[..2], [a, 0]);
    assert_eq!(one(&[0xf3, 0x0f, 0x11, 0x0f]).1[..2], [a & 0xffff_ffff, 0]);
    assert_eq!(one(&[0x0f, 0x17, 0x0f]).1[..2], [b, 0]);
}

#[test]
fn low_elements_move_between_register_files() {
    let [a, b, ..] = PATTERN;
    // movq rax, xmm1; movd eax, xmm1; movq xmm0, rsi; movd xmm0, esi (VEX)
    assert_eq!(one(&[0x66, 0x48, 0x0f, 0x7e, 0xc8]).0.gpr[0], a);
    assert_eq!(one(&[0x66, 0x0f, 0x7e, 0xc8]).0.gpr[0], a & 0xffff_ffff);
    assert_eq!(one(&[0x66, 0x48, 0x0f, 0x6e, 0xc6]).0.ymm[0], [DATA, 0, OLD[2], OLD[3]]);
    assert_eq!(one(&[0xc5, 0xf9, 0x6e, 0xc6]).0.ymm[0], [DATA, 0, 0, 0]);
    // movss xmm0, [rsi]; movss xmm0, xmm1; movlps xmm0, [rsi]; movhps xmm0, [rsi]; movhlps xmm0, xmm1
    assert_eq!(one(&[0xf3, 0x0f, 0x10, 0x06]).0.ymm[0], [a & 0xffff_ffff, 0, OLD[2], OLD[3]]);
    assert_eq!(one(&[0xf3, 0x0f, 0x10, 0xc1]).0.ymm[0][..2], [OLD[0] >> 32 << 32 | a & 0xffff_ffff, OLD[1]]);
    assert_eq!(one(&[0x0f, 0x12, 0x06]).0.ymm[0], [a, OLD[1], OLD[2], OLD[3]]);
    assert_eq!(one(&[0x0f, 0x16, 0x06]).0.ymm[0], [OLD[0], a, OLD[2], OLD[3]]);
    assert_eq!(one(&[0x0f, 0x12, 0xc1]).0.ymm[0], [b, OLD[1], OLD[2], OLD[3]]);
}

#[test]
fn comparisons_use_memory_and_registers() {
    // pcmpeqb xmm1, [rsi]; vpaddb ymm2, ymm1, [rsi]; vzeroupper
    assert_eq!(one(&[0x66, 0x0f, 0x74, 0x0e]).0.ymm[1][..2], [u64::MAX; 2]);
    assert_eq!(one(&[0xc5, 0xf5, 0xfc, 0x16]).0.ymm[2], PATTERN.map(|x| 2 * x));
    assert_eq!(one(&[0xc5, 0xf8, 0x77]).0.ymm, {
        let mut all = [[OLD[0], OLD[1], 0, 0]; 16];
        all[1] = [PATTERN[0], PATTERN[1], 0, 0];
        all
    });
}
