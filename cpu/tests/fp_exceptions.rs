//! Floating point, end to end: exceptions and what they leave alone, alignment, forms, the x87 stack.

mod common;

use common::{CODE, long_mode, run};
use cpu::{Exit, VcpuState};
use emu_core::Spa;
use emu_core::memory::SystemMemory;
use emu_core::regs::Cr4;

/// Where operands lie; RBX.
const DATA: u64 = 0x30_0000;
/// Where the handlers are: vector n at n times 16.
const HANDLERS: u64 = 0x5_0000;
const IDT: u64 = 0x4_0000;
const GDT: u64 = 0x4_2000;

/// Executes one unit of `code`; the vector, if that was an exception.
fn execute(code: &[u8], prepare: impl FnOnce(&mut VcpuState, &SystemMemory)) -> (VcpuState, Option<u64>) {
    let (mut vcpu, memory) = long_mode(code);
    let mut state = vcpu.state();
    memory.store(Spa::new(GDT + 8), 0x00af_9b00_0000_ffff_u64).unwrap();
    for vector in 0..32 {
        let target = HANDLERS + 16 * vector;
        let gate = target & 0xffff | 8 << 16 | 0x8e << 40 | (target >> 16) << 48;
        memory.store(Spa::new(IDT + 16 * vector), gate).unwrap();
        memory.store(Spa::new(IDT + 16 * vector + 8), 0_u64).unwrap();
    }
    state.segments.idtr = cpu::DescriptorTable { base: emu_core::Gva::new(IDT), limit: 0x1ff };
    state.segments.gdtr = cpu::DescriptorTable { base: emu_core::Gva::new(GDT), limit: 0xff };
    state.gpr[3] = DATA;
    prepare(&mut state, &memory);
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 1), Exit::TimeUp);
    let after = vcpu.state();
    let vector = (after.rip < CODE).then(|| (after.rip - HANDLERS) / 16);
    (after, vector)
}

const ONE: u64 = 0x3ff0_0000_0000_0000;
const TWO: u64 = 0x4000_0000_0000_0000;
const THREE: u64 = 0x4008_0000_0000_0000;

#[test]
fn scalar_forms_differ_in_what_they_keep() {
    let prepare = |state: &mut VcpuState, _: &SystemMemory| {
        state.ymm[0] = [ONE, 11, 12, 13];
        state.ymm[1] = [TWO, 21, 22, 23];
        state.ymm[2] = [9, 9, 9, 9];
    };
    // addsd xmm0, xmm1
    let (after, _) = execute(&[0xf2, 0x0f, 0x58, 0xc1], prepare);
    assert_eq!(after.ymm[0], [THREE, 11, 12, 13]);
    // vaddsd xmm2, xmm0, xmm1
    let (after, _) = execute(&[0xc5, 0xfb, 0x58, 0xd1], prepare);
    assert_eq!(after.ymm[2], [THREE, 11, 0, 0]);
}

#[test]
fn an_unmasked_exception_changes_flags_alone() {
    // divpd xmm0, xmm1: the upper element divides by zero.
    let divide = &[0x66, 0x0f, 0x5e, 0xc1];
    let prepare = |state: &mut VcpuState, _: &SystemMemory| {
        state.ymm[0] = [ONE, ONE, 5, 6];
        state.ymm[1] = [THREE, 0, 7, 8];
        state.mxcsr = 0x1f80 & !(1 << 9);
    };
    let (after, vector) = execute(divide, prepare);
    assert_eq!(vector, Some(19));
    assert_eq!(after.ymm[0], [ONE, ONE, 5, 6]);
    assert_eq!(after.mxcsr & 0x3f, 4, "inexact is found after the computation and hidden");
    let (_, vector) = execute(divide, |state, memory| {
        prepare(state, memory);
        state.cr4.remove(Cr4::OSXMMEXCPT);
    });
    assert_eq!(vector, Some(6));
    let (after, vector) = execute(divide, |state, memory| {
        prepare(state, memory);
        state.mxcsr = 0x1f80;
    });
    assert_eq!(vector, None);
    assert_eq!((after.ymm[0][1], after.mxcsr), (0x7ff0_0000_0000_0000, 0x1fa4));
}

#[test]
fn legacy_memory_operands_are_aligned() {
    // addps xmm0, [rbx+8]; vaddps xmm0, xmm0, [rbx+8]; addsd xmm0, [rbx+4]
    assert_eq!(execute(&[0x0f, 0x58, 0x43, 8], |_, _| {}).1, Some(13));
    assert_eq!(execute(&[0xc5, 0xf8, 0x58, 0x43, 8], |_, _| {}).1, None);
    assert_eq!(execute(&[0xf2, 0x0f, 0x58, 0x43, 4], |_, _| {}).1, None);
}

#[test]
fn an_operand_that_ends_in_an_unmapped_page_faults_before_anything() {
    // One gigabyte is mapped. vaddpd ymm0, ymm0, [rbx]
    let (after, vector) = execute(&[0xc5, 0xfd, 0x58, 0x03], |state, _| {
        state.gpr[3] = (1 << 30) - 16;
        state.ymm[0] = [1; 4];
    });
    assert_eq!((vector, after.cr2), (Some(14), 1 << 30));
    assert_eq!((after.ymm[0], after.mxcsr), ([1; 4], 0x1f80));
    // fistp qword [rbx]
    let (after, vector) = execute(&[0xdf, 0x3b], |state, _| {
        state.gpr[3] = (1 << 30) - 4;
        (state.x87.ftw, state.x87.st[0]) = (1, [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    });
    assert_eq!((vector, after.x87.ftw, after.x87.fsw), (Some(14), 1, 0));
}

#[test]
fn a_pending_x87_exception_is_reported_by_the_next_waiting_instruction() {
    // fld1; fldz; fdivp: the last is a division by zero that is not masked; then fnop.
    let code = [0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xd9, 0xd0];
    let (mut vcpu, _) = long_mode(&code);
    let mut state = vcpu.state();
    state.x87.fcw = 0x37b;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 3), Exit::TimeUp);
    let after = vcpu.state();
    assert_eq!(after.rip, CODE + 6);
    assert_eq!((after.x87.fsw, after.x87.ftw), (0x8080 | 6 << 11 | 4, 0xc0), "neither written nor popped");
    assert_eq!((after.x87.fop, after.x87.fip), (0x6f9, CODE + 4));
    assert_eq!(run(&mut vcpu, 1), Exit::Shutdown, "#MF, and no descriptor table");
    assert_eq!(execute(&code[6..], |state, _| (state.x87.fcw, state.x87.fsw) = (0x37b, 0x8084)).1, Some(16));
}

#[test]
fn the_x87_stack_faults_at_both_ends() {
    // fld1 onto a full stack; fstp st0 from an empty one.
    let (after, vector) = execute(&[0xd9, 0xe8], |state, _| state.x87.ftw = 0xff);
    assert_eq!(vector, None);
    assert_eq!(after.x87.fsw, 0x3841 | 0x200);
    assert_eq!(after.x87.st[0], [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
    let (after, _) = execute(&[0xdd, 0xd8], |_, _| {});
    assert_eq!(after.x87.fsw, 1 << 11 | 0x41);
    let (after, _) = execute(&[0xd9, 0xe8], |state, _| (state.x87.ftw, state.x87.fcw) = (0xff, 0x37e));
    assert_eq!(after.x87.fsw, 0x8080 | 0x241, "unmasked: the stack stays");
}

#[test]
fn a_long_run_of_floating_point_needs_no_host_stack() {
    // 1: addpd xmm0, xmm1; mulsd xmm2, xmm3; ucomisd xmm0, xmm1; vaddps ymm4, ymm4, [rbx]; jmp 1b
    let code =
        [0x66, 0x0f, 0x58, 0xc1, 0xf2, 0x0f, 0x59, 0xd3, 0x66, 0x0f, 0x2e, 0xc1, 0xc5, 0xdc, 0x58, 0x23, 0xeb, 0xee];
    let (mut vcpu, _) = long_mode(&code);
    let mut state = vcpu.state();
    state.gpr[3] = DATA;
    state.ymm[1] = [ONE; 4];
    (state.ymm[2], state.ymm[3]) = ([ONE; 4], [ONE; 4]);
    state.mxcsr = 0x1fa0;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 5_000_000), Exit::TimeUp);
    assert_eq!(f64::from_bits(vcpu.state().ymm[0][0]), 1_000_000.0);
}
