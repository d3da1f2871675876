//! The engine end to end on small loops: results, exact time, and independence from how runs are cut.

mod common;

use common::{CODE, long_mode, run};
use cpu::Exit;
use emu_core::Spa;

/// mov ecx, n; xor eax, eax; 1: add rax, rcx; dec rcx (sub rcx,1); jnz 1b; jmp .
fn sum_loop(n: u32) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(n.to_le_bytes());
    code.extend([0x31, 0xc0]);
    code.extend([0x48, 0x01, 0xc8, 0x48, 0x83, 0xe9, 0x01, 0x75, 0xf7]);
    code.extend([0xeb, 0xfe]);
    code
}

#[test]
fn a_loop_sums() {
    let (mut vcpu, _) = long_mode(&sum_loop(1000));
    assert_eq!(run(&mut vcpu, 2 + 3 * 1000 + 10), Exit::TimeUp);
    assert_eq!(vcpu.state().gpr[0], 500_500);
    assert_eq!(vcpu.state().rip, CODE + 16);
    assert_eq!(vcpu.now().units(), 3012);
}

#[test]
fn every_cut_of_a_run_gives_the_same_state() {
    let total = 2 + 3 * 20 + 5;
    let (mut whole, _) = long_mode(&sum_loop(20));
    run(&mut whole, total);
    let want = whole.state();
    for step in 1..40 {
        let (mut vcpu, _) = long_mode(&sum_loop(20));
        let mut left = total;
        while left > 0 {
            let units = left.min(step);
            assert_eq!(run(&mut vcpu, units), Exit::TimeUp);
            left -= units;
        }
        assert_eq!(vcpu.state(), want, "steps of {step}");
    }
}

#[test]
fn code_that_rewrites_itself_is_seen_by_the_next_instruction() {
    // mov byte [rip+1], 7 ; mov al, 1 (its immediate is overwritten) ; jmp .
    let (mut vcpu, memory) = long_mode(&[0xc6, 0x05, 0x01, 0, 0, 0, 0x07, 0xb0, 0x01, 0xeb, 0xfe]);
    run(&mut vcpu, 10);
    assert_eq!(vcpu.state().gpr[0] & 0xff, 7);
    // And a patch from outside between two runs.
    memory.store(Spa::new(CODE + 9), 0x90_u8).unwrap();
    memory.store(Spa::new(CODE + 10), 0x90_u8).unwrap();
    memory.store(Spa::new(CODE + 11), 0xfeeb_u16).unwrap();
    run(&mut vcpu, 10);
    assert_eq!(vcpu.state().rip, CODE + 11);
}

#[test]
fn a_branch_leads_to_its_own_target_whatever_ran_in_between() {
    // jmp 1f ; jmp . ; 1: mov al, 1 ; jmp . ; mov al, 2 ; jmp .
    let (mut vcpu, _) = long_mode(&[0xeb, 2, 0xeb, 0xfe, 0xb0, 1, 0xeb, 0xfe, 0xb0, 2, 0xeb, 0xfe]);
    let mut result_from = |rip: u64, units: u64| {
        let mut state = vcpu.state();
        state.rip = rip;
        vcpu.set_state(&state);
        run(&mut vcpu, units);
        vcpu.state().gpr[0] & 0xff
    };
    // Time ends between the jump and its target, and something else in the page runs first.
    result_from(CODE, 1);
    assert_eq!(result_from(CODE + 8, 2), 2);
    assert_eq!(result_from(CODE, 3), 1);
}

#[test]
fn code_patched_over_and_over_is_decoded_in_place() {
    // 1: mov dword [rip+5], ecx ; nop*4 ; mov eax, imm (overwritten) ; add rdx, rax ; dec ecx ; jnz 1b ; jmp .
    let code = [
        0x89, 0x0d, 0x05, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0x48, 0x01, 0xc2, 0xff, 0xc9, 0x75, 0xea,
        0xeb, 0xfe,
    ];
    let (mut vcpu, _) = long_mode(&code);
    vcpu.set_gpr(1, 100);
    vcpu.set_gpr(2, 0);
    run(&mut vcpu, 100 * 9);
    assert_eq!((vcpu.state().gpr[2], vcpu.state().rip), (5050, CODE + 22));
    let decoded = vcpu.blocks_decoded();
    assert!((100..500).contains(&decoded), "decoded anew after each patch, and only what was patched: {decoded}");
}

#[test]
fn a_branch_taken_within_a_block_costs_what_was_executed() {
    // xor ecx, ecx ; 1: inc ecx ; test cl, 1 ; jz 2f ; cmp ecx, 1001 ; jae 3f ; add edx, 1 ; 2: jmp 1b ; 3: jmp .
    let code = [
        0x31, 0xc9, 0xff, 0xc1, 0xf6, 0xc1, 0x01, 0x74, 0x0b, 0x81, 0xf9, 0xe9, 0x03, 0, 0, 0x73, 0x05, 0x83, 0xc2,
        0x01, 0xeb, 0xec, 0xeb, 0xfe,
    ];
    // Odd numbers take seven instructions, even ones four, the last one five.
    let total = 1 + 500 * 7 + 500 * 4 + 5;
    let (mut whole, _) = long_mode(&code);
    whole.set_gpr(2, 0);
    run(&mut whole, total);
    let state = whole.state();
    assert_eq!((state.gpr[1], state.gpr[2], state.rip), (1001, 500, CODE + 22));
    assert_eq!(whole.now().units(), total);
    for step in [1, 2, 3, 5, 7, 11, 64, 1000] {
        let (mut vcpu, _) = long_mode(&code);
        vcpu.set_gpr(2, 0);
        for _ in 0..total / step {
            run(&mut vcpu, step);
        }
        run(&mut vcpu, total % step);
        assert_eq!(vcpu.state(), state, "steps of {step}");
    }
}
