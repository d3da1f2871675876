//! Event delivery and privilege changes of long mode, end to end.

mod common;

use common::{CODE, STACK, flat, long_mode, run};
use cpu::{Completion, DescriptorTable, Event, Exit, SegReg, Segment, SegmentAttributes, SoftwareKind, Vcpu};
use emu_core::memory::SystemMemory;
use emu_core::regs::{Dr6, Rflags};
use emu_core::{Exception, Gva, Spa};

const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
const TSS: u64 = 0x5000;
/// Every handler is at this address plus sixteen times its vector: HLT, then IRETQ.
const HANDLERS: u64 = 0x8000;
const RSP0: u64 = 0x6_0000;
const IST1: u64 = 0x7_0000;

const KERNEL_CS: u16 = 0x08;
const KERNEL_SS: u16 = 0x10;
const USER_CS: u16 = 0x28 | 3;
const USER_SS: u16 = 0x20 | 3;

fn gate(selector: u16, target: u64, kind: u8, dpl: u8, ist: u8) -> u128 {
    let low = target & 0xffff
        | (selector as u64) << 16
        | (ist as u64) << 32
        | (0x80 | dpl as u64 * 32 | kind as u64) << 40
        | (target >> 16 & 0xffff) << 48;
    low as u128 | (target as u128 >> 32) << 64
}

fn put_gate(memory: &SystemMemory, vector: u8, gate: u128) {
    memory.store(Spa::new(IDT + 16 * vector as u64), gate).unwrap();
}

/// A 64-bit machine with GDT, IDT, TSS and handlers; user pages everywhere.
fn machine(code: &[u8]) -> (Vcpu, std::sync::Arc<SystemMemory>) {
    let (mut vcpu, memory) = long_mode(code);
    let descriptors: [u64; 8] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8900_5000_0067,
        0,
    ];
    for (n, d) in descriptors.into_iter().enumerate() {
        memory.store(Spa::new(GDT + 8 * n as u64), d).unwrap();
    }
    for vector in 0..=255 {
        put_gate(&memory, vector, gate(KERNEL_CS, HANDLERS + 16 * vector as u64, 0xe, 0, 0));
        memory.write(Spa::new(HANDLERS + 16 * vector as u64), &[0xf4, 0x48, 0xcf]).unwrap();
    }
    memory.store(Spa::new(TSS + 4), RSP0).unwrap();
    memory.store(Spa::new(TSS + 0x24), IST1).unwrap();
    let mut state = vcpu.state();
    state.segments.gdtr = DescriptorTable { base: Gva::new(GDT), limit: 63 };
    state.segments.idtr = DescriptorTable { base: Gva::new(IDT), limit: 0xfff };
    let busy = SegmentAttributes::new().with_kind(11).with_p(true);
    state.segments.tr = Segment { selector: 0x30, base: TSS, limit: 0x67, attributes: busy };
    vcpu.set_state(&state);
    (vcpu, memory)
}

/// The same at CPL 3.
fn user_machine(code: &[u8]) -> (Vcpu, std::sync::Arc<SystemMemory>) {
    let (mut vcpu, memory) = machine(code);
    let mut state = vcpu.state();
    for reg in SegReg::ALL {
        state.segments.regs[reg as usize] = flat(USER_SS, 3, false, 3);
    }
    state.segments.regs[SegReg::Cs as usize] = flat(USER_CS, 0xb, true, 3);
    state.rflags |= Rflags::IF;
    vcpu.set_state(&state);
    (vcpu, memory)
}

fn word(memory: &SystemMemory, at: u64) -> u64 {
    memory.load(Spa::new(at)).unwrap()
}

fn at_handler(vcpu: &Vcpu, vector: u8) {
    assert_eq!(vcpu.state().rip, HANDLERS + 16 * vector as u64 + 1, "handler {vector}");
}

#[test]
fn an_interrupt_from_ring_3_switches_stacks_and_iretq_comes_back() {
    let (mut vcpu, memory) = user_machine(&[0x90, 0x90, 0xeb, 0xfe]);
    run(&mut vcpu, 1);
    vcpu.inject(Event::Interrupt { vector: 0x40 });
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 0x40);
    let s = vcpu.state();
    assert_eq!(s.gpr[4], RSP0 - 40);
    assert_eq!(s.segments.get(SegReg::Cs).selector, KERNEL_CS);
    assert_eq!(s.segments.get(SegReg::Ss).selector, 0);
    assert!(!s.rflags.contains(Rflags::IF));
    let frame: Vec<u64> = (0..5).map(|n| word(&memory, RSP0 - 40 + 8 * n)).collect();
    assert_eq!(frame, [CODE + 1, USER_CS as u64, 0x202, STACK, USER_SS as u64]);
    run(&mut vcpu, 5);
    let s = vcpu.state();
    assert_eq!((s.rip, s.gpr[4]), (CODE + 2, STACK));
    assert_eq!(s.segments.get(SegReg::Cs).selector, USER_CS);
    assert_eq!(s.segments.get(SegReg::Ss).attributes.dpl(), 3);
    assert!(s.rflags.contains(Rflags::IF));
}

#[test]
fn ist_is_taken_whatever_the_ring_and_the_frame_is_aligned() {
    let (mut vcpu, memory) = machine(&[0x90, 0xeb, 0xfe]);
    put_gate(&memory, 13, gate(KERNEL_CS, HANDLERS + 13 * 16, 0xf, 0, 1));
    memory.store(Spa::new(TSS + 0x24), IST1 + 9).unwrap();
    let mut state = vcpu.state();
    state.rflags |= Rflags::IF;
    vcpu.set_state(&state);
    vcpu.inject(Event::Exception(Exception::GP0));
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    let s = vcpu.state();
    assert_eq!(s.gpr[4], IST1 - 48);
    assert!(s.rflags.contains(Rflags::IF), "a trap gate leaves IF alone");
    assert_eq!(word(&memory, IST1 - 48), 0, "error code");
    assert_eq!(word(&memory, IST1 - 24) & Rflags::RF.bits(), Rflags::RF.bits(), "a fault resumes");
    assert_eq!(word(&memory, IST1 - 16), STACK);
    assert_eq!(s.segments.get(SegReg::Ss).selector, 0x10, "same ring: SS stays");
}

#[test]
fn software_interrupts_are_judged_by_the_gate() {
    // int 0x50 ; jmp .
    let (mut vcpu, memory) = user_machine(&[0xcd, 0x50, 0xeb, 0xfe]);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 13);
    assert_eq!(word(&memory, RSP0 - 48), 0x50 * 8 + 2, "IDT bit, no EXT");
    assert_eq!(word(&memory, RSP0 - 40), CODE, "back to the INT");
    put_gate(&memory, 0x50, gate(KERNEL_CS, HANDLERS + 0x500, 0xe, 3, 0));
    run(&mut vcpu, 1);
    // IRETQ with the error code still there would be wrong: start over.
    let (mut vcpu, memory) = user_machine(&[0xcd, 0x50, 0xeb, 0xfe]);
    put_gate(&memory, 0x50, gate(KERNEL_CS, HANDLERS + 0x500, 0xe, 3, 0));
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 0x50);
    assert_eq!(word(&memory, RSP0 - 40), CODE + 2);
}

#[test]
fn faults_on_the_way_become_a_double_fault_and_then_a_shutdown() {
    // ud2
    let (mut vcpu, memory) = machine(&[0x0f, 0x0b]);
    // #UD's gate is absent: #NP about the IDT entry with EXT, whose gate is absent too: #DF.
    put_gate(&memory, 6, 0);
    put_gate(&memory, 13, 0);
    assert_eq!(run(&mut vcpu, 20), Exit::Halt);
    at_handler(&vcpu, 8);
    assert_eq!(word(&memory, STACK - 48), 0, "#DF has error code 0");
    assert_eq!(word(&memory, STACK - 40), CODE);
    let (mut vcpu, memory) = machine(&[0x0f, 0x0b]);
    for vector in [6, 8, 13] {
        put_gate(&memory, vector, 0);
    }
    let before = vcpu.state();
    assert_eq!(run(&mut vcpu, 20), Exit::Shutdown);
    assert_eq!(vcpu.state(), before, "nothing of the deliveries remains");
}

#[test]
fn an_absent_gate_reports_itself_with_ext() {
    let (mut vcpu, memory) = machine(&[0xeb, 0xfe]);
    let absent = gate(KERNEL_CS, HANDLERS, 0xe, 0, 0) & !(0x80 << 40);
    put_gate(&memory, 0x60, absent);
    vcpu.inject(Event::Interrupt { vector: 0x60 });
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 11);
    assert_eq!(word(&memory, STACK - 48), 0x60 * 8 + 3);
}

#[test]
fn a_page_fault_on_the_handlers_stack_is_a_double_fault_on_its_ist() {
    // mov rax, [0x40000000] (unmapped)
    let (mut vcpu, memory) = machine(&[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40, 0xeb, 0xfe]);
    put_gate(&memory, 8, gate(KERNEL_CS, HANDLERS + 8 * 16, 0xe, 0, 1));
    let mut state = vcpu.state();
    state.gpr[4] = 0x5000_0000;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 8);
    let s = vcpu.state();
    assert_eq!(s.cr2, 0x5000_0000 - 8, "the second fault's address");
    assert_eq!(word(&memory, IST1 - 40), CODE);
    assert_eq!(word(&memory, IST1 - 16), 0x5000_0000);
}

#[test]
fn a_device_under_the_stack_is_asked_once_and_the_delivery_repeated() {
    let (mut vcpu, _memory) = machine(&[0xeb, 0xfe]);
    let mut state = vcpu.state();
    // Beyond the 16 MiB of memory: a device on a bare machine. The frame straddles it and memory.
    state.gpr[4] = (16 << 20) + 16;
    vcpu.set_state(&state);
    vcpu.inject(Event::Interrupt { vector: 0x41 });
    let before = vcpu.state();
    let mut asked = Vec::new();
    loop {
        match run(&mut vcpu, 10) {
            Exit::Mmio { access, .. } => {
                assert_eq!(vcpu.state(), before, "an exit leaves everything");
                asked.push(access.gpa.raw());
                assert!(vcpu.complete(Completion::value(0)));
            }
            other => {
                assert_eq!(other, Exit::Halt);
                break;
            }
        }
    }
    assert_eq!(asked, [(16 << 20) + 8, 16 << 20]);
    at_handler(&vcpu, 0x41);
    assert_eq!(vcpu.state().gpr[4], (16 << 20) + 16 - 40);
}

#[test]
fn syscall_and_sysret_round_trip() {
    // wrmsr of STAR, LSTAR, FMASK by the kernel, then sysretq to user code, syscall back.
    let mut code = Vec::new();
    let mut wrmsr = |msr: u32, value: u64| {
        code.push(0xb9);
        code.extend(msr.to_le_bytes());
        code.push(0xb8);
        code.extend((value as u32).to_le_bytes());
        code.push(0xba);
        code.extend(((value >> 32) as u32).to_le_bytes());
        code.extend([0x0f, 0x30]);
    };
    wrmsr(0xc000_0081, (0x18_u64 | 3) << 48 | (KERNEL_CS as u64) << 32);
    wrmsr(0xc000_0082, CODE + 0x1000);
    wrmsr(0xc000_0084, Rflags::IF.bits() | Rflags::DF.bits());
    // mov ecx, user ; mov r11d, 0x602 ; sysretq
    code.push(0xb9);
    code.extend((CODE as u32 + 0x2000).to_le_bytes());
    code.extend([0x41, 0xbb, 0x02, 0x06, 0, 0, 0x48, 0x0f, 0x07]);
    let (mut vcpu, memory) = machine(&code);
    memory.write(Spa::new(CODE + 0x1000), &[0xf4]).unwrap();
    memory.write(Spa::new(CODE + 0x2000), &[0x0f, 0x05]).unwrap();
    let steps = 3 * 4 + 3;
    assert_eq!(run(&mut vcpu, steps), Exit::TimeUp);
    let s = vcpu.state();
    assert_eq!(s.rip, CODE + 0x2000);
    assert_eq!(s.segments.get(SegReg::Cs).selector, USER_CS);
    assert_eq!(s.segments.get(SegReg::Ss).selector, USER_SS);
    assert!(s.segments.get(SegReg::Cs).attributes.l());
    assert_eq!(s.rflags.bits(), 0x602);
    assert_eq!(run(&mut vcpu, 5), Exit::Halt);
    let s = vcpu.state();
    assert_eq!(s.rip, CODE + 0x1001);
    assert_eq!((s.gpr[1], s.gpr[11]), (CODE + 0x2002, 0x602));
    assert_eq!(s.rflags.bits(), 2);
    assert_eq!(s.segments.get(SegReg::Cs).selector, KERNEL_CS);
    assert_eq!(s.segments.get(SegReg::Ss).selector, KERNEL_SS);
}

#[test]
fn tf_traps_after_the_instruction_that_follows_its_setting() {
    // push 0x302 ; popfq ; nop ; nop
    let (mut vcpu, memory) = machine(&[0x68, 0x02, 0x03, 0, 0, 0x9d, 0x90, 0x90, 0xeb, 0xfe]);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 1);
    assert_eq!(word(&memory, STACK - 40), CODE + 7, "after the first NOP");
    assert!(vcpu.state().dr6.contains(Dr6::BS));
    // Back, and one more step.
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(word(&memory, STACK - 40), CODE + 8);
}

#[test]
fn mov_ss_holds_the_single_step_trap_back() {
    // mov ss, eax ; nop ; nop with TF set
    let (mut vcpu, memory) = machine(&[0x8e, 0xd0, 0x90, 0x90, 0xeb, 0xfe]);
    let mut state = vcpu.state();
    state.gpr[0] = KERNEL_SS as u64;
    state.rflags |= Rflags::TF;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(word(&memory, STACK - 40), CODE + 3, "the NOP after MOV SS has run too");
}

#[test]
fn sti_delays_and_hlt_is_woken_by_the_window() {
    // sti ; nop ; nop
    let (mut vcpu, _) = machine(&[0xfb, 0x90, 0x90, 0xeb, 0xfe]);
    vcpu.request_interrupt_window(true);
    assert!(!vcpu.can_take_interrupt());
    assert_eq!(run(&mut vcpu, 10), Exit::InterruptWindow);
    assert_eq!(vcpu.state().rip, CODE + 2, "after the instruction behind STI");
    assert!(vcpu.can_take_interrupt());
    // sti ; hlt: the window opens after HLT and no halt is reported.
    let (mut vcpu, _) = machine(&[0xfb, 0xf4, 0xeb, 0xfe]);
    vcpu.request_interrupt_window(true);
    assert_eq!(run(&mut vcpu, 10), Exit::InterruptWindow);
    assert_eq!(vcpu.state().rip, CODE + 2);
}

#[test]
fn an_nmi_waits_for_the_iret_of_the_one_before() {
    let (mut vcpu, memory) = machine(&[0x90, 0x90, 0xeb, 0xfe]);
    vcpu.inject_nmi();
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 2);
    vcpu.inject_nmi();
    assert_eq!(word(&memory, STACK - 40), CODE);
    // IRETQ retires, and the second NMI comes before the first instruction.
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 2);
    assert_eq!(word(&memory, STACK - 40), CODE);
    assert_eq!(run(&mut vcpu, 10), Exit::TimeUp);
    assert_eq!(vcpu.state().rip, CODE + 2);
}

#[test]
fn rdtsc_is_virtual_time_and_can_be_written() {
    // nop ; rdtsc ; mov esi, eax ; mov ecx, 0x10 ; mov eax, 1000 ; xor edx, edx ; wrmsr ; rdtsc ; jmp .
    let (mut vcpu, _) = machine(&[
        0x90, 0x0f, 0x31, 0x89, 0xc6, 0xb9, 0x10, 0, 0, 0, 0xb8, 0xe8, 0x03, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 0x31,
        0xeb, 0xfe,
    ]);
    assert_eq!(run(&mut vcpu, 8), Exit::TscMoved);
    assert_eq!(vcpu.tsc_offset(), 1000 - 6, "written at 6");
    run(&mut vcpu, 1);
    let s = vcpu.state();
    assert_eq!(s.gpr[6], 1, "one instruction before it");
    assert_eq!(s.gpr[0], 1001, "one instruction after the write");
}

#[test]
fn loads_of_segments_blame_the_selector() {
    // mov ds, eax
    for (selector, vector, error) in [(0x100_u64, 13, 0x100), (0x30, 13, 0x30), (0x38, 13, 0x38), (0x43, 13, 0x40)] {
        let (mut vcpu, memory) = machine(&[0x8e, 0xd8, 0xeb, 0xfe]);
        let mut state = vcpu.state();
        state.gpr[0] = selector;
        vcpu.set_state(&state);
        assert_eq!(run(&mut vcpu, 10), Exit::Halt);
        at_handler(&vcpu, vector);
        assert_eq!(word(&memory, STACK - 48), error, "{selector:#x}");
    }
    // Absent data segment: #NP; absent stack: #SS.
    for (byte, vector) in [(0xd8, 11), (0xd0, 12)] {
        let (mut vcpu, memory) = machine(&[0x8e, byte, 0xeb, 0xfe]);
        memory.store(Spa::new(GDT + 56), 0x00cf_1300_0000_ffff_u64).unwrap();
        let mut state = vcpu.state();
        state.gpr[0] = 0x38;
        vcpu.set_state(&state);
        assert_eq!(run(&mut vcpu, 10), Exit::Halt);
        at_handler(&vcpu, vector);
        assert_eq!(word(&memory, STACK - 48), 0x38);
    }
}

#[test]
fn an_injected_software_interrupt_faults_back_to_its_instruction() {
    let (mut vcpu, memory) = user_machine(&[0xcd, 0x50, 0xeb, 0xfe]);
    let mut state = vcpu.state();
    state.rip = CODE + 2;
    vcpu.set_state(&state);
    vcpu.inject(Event::Software { vector: 0x50, rip: CODE, kind: SoftwareKind::Int });
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 13);
    assert_eq!(word(&memory, RSP0 - 40), CODE);
}

#[test]
fn a_delivery_that_page_faults_runs_again_once_the_stack_is_mapped() {
    // ud2
    let (mut vcpu, memory) = machine(&[0x0f, 0x0b]);
    put_gate(&memory, 14, gate(KERNEL_CS, HANDLERS + 14 * 16, 0xe, 0, 1));
    let mut state = vcpu.state();
    state.gpr[4] = 0x4020_0000;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 14);
    assert_eq!(vcpu.state().cr2, 0x4020_0000 - 8);
    assert_eq!(word(&memory, IST1 - 48), 2, "a write by the supervisor to a page that is absent");
    assert_eq!(word(&memory, IST1 - 40), CODE, "the frame is the interrupted program's");
    // The handler maps the second gigabyte to the first and drops the error code.
    memory.store(Spa::new(0x2008), 0x87_u64).unwrap();
    let mut state = vcpu.state();
    state.gpr[4] += 8;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    at_handler(&vcpu, 6);
    assert_eq!(vcpu.state().gpr[4], 0x4020_0000 - 40);
    assert_eq!(word(&memory, 0x20_0000 - 40), CODE);
}

/// Whether `code`, run alone in ring 0 with plausible registers, raises #UD.
fn is_undefined(code: &[u8], prepare: impl FnOnce(&mut cpu::VcpuState)) -> bool {
    let (mut vcpu, _) = machine(code);
    let mut state = vcpu.state();
    state.cr4 |= emu_core::regs::Cr4::FSGSBASE;
    state.gpr[..4].copy_from_slice(&[0, 0, 0, 0x9000]);
    prepare(&mut state);
    vcpu.set_state(&state);
    run(&mut vcpu, 3);
    vcpu.state().rip == HANDLERS + 6 * 16 + 1
}

#[test]
fn every_encoding_of_the_group_is_decoded() {
    let encodings: &[&[u8]] = &[
        &[0xfa],
        &[0xfb],
        &[0x9e],
        &[0x9f],
        &[0x9c],
        &[0x66, 0x9c],
        &[0x9d],
        &[0x66, 0x9d],
        &[0x0f, 0x01, 0xca],
        &[0x0f, 0x01, 0xcb],
        &[0x0f, 0x06],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0xf3, 0x0f, 0x09],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0x31],
        &[0x0f, 0x33],
        &[0x0f, 0xa2],
        &[0x0f, 0x01, 0xf9],
        &[0x0f, 0x01, 0xd0],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x05],
        &[0x48, 0x0f, 0x07],
        &[0x0f, 0x07],
        &[0x0f, 0xae, 0xe8],
        &[0x0f, 0xae, 0xf0],
        &[0x0f, 0xae, 0xf8],
        &[0x0f, 0xae, 0x3b],
        &[0x66, 0x0f, 0xae, 0x3b],
        &[0x66, 0x0f, 0xae, 0x33],
        &[0x0f, 0x01, 0x3b],
        &[0x66, 0x0f, 0x38, 0x82, 0x03],
        &[0x0f, 0x01, 0x03],
        &[0x0f, 0x01, 0x0b],
        &[0x0f, 0x01, 0x13],
        &[0x0f, 0x01, 0x1b],
        &[0x0f, 0x00, 0x03],
        &[0x0f, 0x00, 0xc0],
        &[0x48, 0x0f, 0x00, 0xc8],
        &[0x0f, 0x00, 0x0b],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0x13],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x00, 0xe0],
        &[0x0f, 0x00, 0xe8],
        &[0x0f, 0x01, 0xe0],
        &[0x0f, 0x01, 0x23],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0x02, 0xc1],
        &[0x66, 0x0f, 0x02, 0x03],
        &[0x48, 0x0f, 0x03, 0xc1],
        &[0x8c, 0xd8],
        &[0x48, 0x8c, 0xd8],
        &[0x66, 0x8c, 0xd8],
        &[0x8c, 0x1b],
        &[0x8e, 0xd8],
        &[0x8e, 0x1b],
        &[0x8e, 0xd0],
        &[0x0f, 0xa0],
        &[0x0f, 0xa8],
        &[0x66, 0x0f, 0xa0],
        &[0x0f, 0xa1],
        &[0x0f, 0xa9],
        &[0x0f, 0xb2, 0x03],
        &[0x0f, 0xb4, 0x03],
        &[0x48, 0x0f, 0xb5, 0x03],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x20, 0xd0],
        &[0x0f, 0x22, 0xd0],
        &[0x0f, 0x20, 0xd8],
        &[0x0f, 0x20, 0xe0],
        &[0x44, 0x0f, 0x20, 0xc0],
        &[0x0f, 0x21, 0xc0],
        &[0x0f, 0x23, 0xc0],
        &[0x0f, 0x21, 0xe0],
        &[0x0f, 0x21, 0xf8],
        &[0xcc],
        &[0xcd, 0x20],
        &[0xf1],
        &[0xcf],
        &[0x48, 0xcf],
        &[0x66, 0xcf],
        &[0xcb],
        &[0x48, 0xcb],
        &[0xca, 8, 0],
        &[0xff, 0x2b],
        &[0xff, 0x1b],
        &[0x66, 0xff, 0x2b],
        &[0xe4, 1],
        &[0xe5, 1],
        &[0xec],
        &[0xed],
        &[0xe6, 1],
        &[0xe7, 1],
        &[0xee],
        &[0x66, 0xef],
        &[0xf3, 0x0f, 0xae, 0xc0],
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],
        &[0x0f, 0xc7, 0xf0],
        &[0x48, 0x0f, 0xc7, 0xf8],
        &[0xf4],
        &[0x0f, 0x01, 0xc1],
        &[0x0f, 0x01, 0xd9],
    ];
    for code in encodings {
        assert!(!is_undefined(code, |_| {}), "{code:02x?}");
    }
    // And what must stay undefined: RSM, MONITOR, MWAIT, UD2, SYSENTER in long mode of this vendor, MOV to CS, CR1, DR5 under CR4.DE.
    let absent: &[&[u8]] = &[
        &[0x0f, 0xaa],
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0x01, 0xc9],
        &[0x0f, 0x0b],
        &[0x0f, 0xb9, 0xc0],
        &[0x0f, 0x34],
        &[0x0f, 0x35],
        &[0x8e, 0xc8],
        &[0x0f, 0x20, 0xc8],
        &[0x0f, 0x21, 0xe8],
    ];
    for code in absent {
        assert!(is_undefined(code, |s| s.cr4 |= emu_core::regs::Cr4::DE), "{code:02x?}");
    }
}

#[test]
fn a_single_step_over_syscall_follows_the_flags_the_handler_gets() {
    for (fmask, steps_into_kernel) in [(Rflags::TF.bits(), false), (0, true)] {
        // wrmsr ; mov ecx, LSTAR ; mov eax, CODE+0x1000 ; wrmsr ; push 0x102 ; popfq ; syscall
        let mut code = vec![0x0f, 0x30, 0xb9, 0x82, 0, 0, 0xc0, 0xb8];
        code.extend((CODE as u32 + 0x1000).to_le_bytes());
        code.extend([0x31, 0xd2, 0x0f, 0x30, 0x68, 0x02, 0x01, 0, 0, 0x9d, 0x0f, 0x05]);
        let (mut vcpu, memory) = machine(&code);
        memory.write(Spa::new(CODE + 0x1000), &[0xeb, 0xfe]).unwrap();
        let mut state = vcpu.state();
        state.gpr[1] = 0xc000_0084;
        state.gpr[0] = fmask;
        vcpu.set_state(&state);
        let exit = run(&mut vcpu, 20);
        if steps_into_kernel {
            assert_eq!(exit, Exit::Halt);
            at_handler(&vcpu, 1);
            assert_eq!(word(&memory, STACK - 40), CODE + 0x1000);
        } else {
            assert_eq!(exit, Exit::TimeUp);
            assert_eq!(vcpu.state().rip, CODE + 0x1000);
        }
    }
}
