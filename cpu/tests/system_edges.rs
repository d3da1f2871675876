//! Edges of segmentation, debug registers and address widths, end to end.

mod common;
mod handlers;

use common::{CODE, STACK, flat, run};
use cpu::{Exit, SegReg, Segment, Vcpu};
use emu_core::Spa;
use emu_core::regs::{Cr4, Dr6, Dr7};
use handlers::{HANDLERS, machine};

fn at_handler(vcpu: &Vcpu, vector: u64) -> bool {
    vcpu.state().rip == HANDLERS + 16 * vector + 1
}

#[test]
fn a_return_to_ring_3_nulls_kernel_segments_and_leaves_their_bases() {
    // iretq, then in ring 3: mov rax, gs:[0] ; mov ecx, gs ; jmp .
    let code = [0x48, 0xcf, 0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x8c, 0xe9, 0xeb, 0xfe];
    let (mut vcpu, memory) = machine(&code);
    memory.store(Spa::new(0x9000), 0x1234_5678_u64).unwrap();
    for (n, word) in [CODE + 2, 0x23, 2, STACK, 0x1b].into_iter().enumerate() {
        memory.store(Spa::new(STACK - 40 + 8 * n as u64), word).unwrap();
    }
    let mut state = vcpu.state();
    state.gpr[4] = STACK - 40;
    state.segments.regs[SegReg::Gs as usize] = flat(0x10, 3, false, 0);
    state.segments.regs[SegReg::Gs as usize].base = 0x9000;
    state.segments.regs[SegReg::Ds as usize] = Segment { selector: 3, ..Segment::NULL };
    state.segments.regs[SegReg::Es as usize] = flat(0x1b, 3, false, 3);
    vcpu.set_state(&state);
    run(&mut vcpu, 4);
    let state = vcpu.state();
    assert_eq!((state.rip, state.gpr[0]), (CODE + 13, 0x1234_5678));
    assert_eq!(state.gpr[1], 0, "the selector is null");
    assert!(!state.segments.get(SegReg::Gs).attributes.p());
    assert_eq!(state.segments.get(SegReg::Ds).selector, 0, "so is a null one of RPL 3");
    assert_eq!(state.segments.get(SegReg::Es).selector, 0x1b, "ring 3 keeps its own");
}

#[test]
fn a_debug_exception_forgets_the_breakpoints_that_hit_before_and_nothing_else() {
    let (mut vcpu, _) = machine(&[0x90, 0xeb, 0xfe]);
    let mut state = vcpu.state();
    state.dr[2] = CODE;
    state.dr6 = Dr6::FIXED | Dr6::B1 | Dr6::BS;
    // DR2, execution.
    state.dr7 = Dr7(Dr7::RESET.0 | 1 << 5);
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 4), Exit::Halt);
    assert!(at_handler(&vcpu, 1));
    assert_eq!(vcpu.state().dr6, Dr6::FIXED | Dr6::B2 | Dr6::BS);
}

#[test]
fn tables_may_lie_as_high_as_the_processor_reaches_whatever_the_paging_mode() {
    // lgdt [rbx] ; invpcid rcx, [rdx] ; jmp .
    let code = [0x0f, 0x01, 0x13, 0x66, 0x0f, 0x38, 0x82, 0x0a, 0xeb, 0xfe];
    for (base, faults) in [(0x00aa_aaaa_aaaa_aaaa_u64, false), (0xaaaa_aaaa_aaaa_aaaa, true)] {
        for skip in [0, 3] {
            let (mut vcpu, memory) = machine(&code);
            memory.store(Spa::new(0x9000), 0x1ff_u16).unwrap();
            memory.write(Spa::new(0x9002), &base.to_le_bytes()).unwrap();
            memory.store(Spa::new(0xa008), base).unwrap();
            let mut state = vcpu.state();
            assert!(!state.cr4.contains(Cr4::LA57));
            state.rip += skip;
            (state.gpr[3], state.gpr[1], state.gpr[2]) = (0x9000, 0, 0xa000);
            vcpu.set_state(&state);
            run(&mut vcpu, 6);
            assert_eq!(at_handler(&vcpu, 13), faults, "{base:#x} from {skip}");
        }
    }
}

#[test]
fn a_breakpoint_that_mov_ss_holds_back_comes_in_the_handler_of_int_and_with_int1() {
    // mov ss, [rbx] ; int 1 or int1
    for (last, depth, back) in [(&[0xcd_u8, 1][..], 88, HANDLERS + 16), (&[0xf1], 40, CODE + 3)] {
        let (mut vcpu, memory) = machine(&[&[0x8e, 0x13], last].concat());
        memory.store(Spa::new(0x9000), 0x10_u16).unwrap();
        let mut state = vcpu.state();
        state.gpr[3] = 0x9000;
        state.dr[1] = 0x9000;
        // DR1, two bytes, reads and writes.
        state.dr7 = Dr7(Dr7::RESET.0 | 1 << 2 | 0b0111 << 20);
        vcpu.set_state(&state);
        assert_eq!(run(&mut vcpu, 6), Exit::Halt);
        let state = vcpu.state();
        assert!(at_handler(&vcpu, 1));
        // One frame, or a second one below it on the next boundary of sixteen.
        assert_eq!(state.gpr[4], STACK - depth, "{last:02x?}");
        assert_eq!(state.dr6 & (Dr6::B1 | Dr6::BS), Dr6::B1);
        let rip: u64 = memory.load(Spa::new(state.gpr[4])).unwrap();
        assert_eq!(rip, back);
    }
}

#[test]
fn an_instruction_breakpoint_behind_mov_ss_is_passed_over() {
    // mov ss, [rbx] ; nop ; nop
    let (mut vcpu, memory) = machine(&[0x8e, 0x13, 0x90, 0x90, 0xeb, 0xfe]);
    memory.store(Spa::new(0x9000), 0x10_u16).unwrap();
    let mut state = vcpu.state();
    state.gpr[3] = 0x9000;
    (state.dr[0], state.dr[1]) = (0x9000, CODE + 2);
    // DR0, two bytes, reads and writes; DR1, execution.
    state.dr7 = Dr7(Dr7::RESET.0 | 1 | 1 << 2 | 0b0111 << 16);
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 6), Exit::Halt);
    let state = vcpu.state();
    assert!(at_handler(&vcpu, 1));
    assert_eq!(state.gpr[4], STACK - 40);
    assert_eq!(state.dr6 & (Dr6::B0 | Dr6::B1), Dr6::B0);
    assert_eq!(memory.load::<u64>(Spa::new(STACK - 40)).unwrap(), CODE + 3);
}
