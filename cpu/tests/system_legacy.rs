//! Real mode, protected mode, virtual-8086 mode and tasks, end to end.

use std::sync::Arc;

use cpu::{DescriptorTable, Event, Exit, Mode, SegReg, Segment, SegmentAttributes, Vcpu, VcpuConfig};
use emu_core::cpu_model::CpuModel;
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Rflags};
use emu_core::rng::Seed;
use emu_core::time::Duration;
use emu_core::{Exception, Gva, Spa};

const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
const TSS: u64 = 0x5000;
const OTHER_TSS: u64 = 0x5100;
const HANDLERS: u64 = 0x8000;
const CODE: u64 = 0x7c00;
const STACK: u64 = 0x6_0000;

const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA32: u64 = 0x00cf_9300_0000_ffff;
const USER_CODE: u64 = 0x00cf_fb00_0000_ffff;
const USER_DATA: u64 = 0x00cf_f300_0000_ffff;

fn new() -> (Vcpu, Arc<SystemMemory>) {
    let memory = SystemMemory::flat(1 << 20).expect("1 MiB");
    let config = VcpuConfig { model: CpuModel::intel_v3(), apic_id: 0, cpu_count: 1, seed: Seed(1) };
    (Vcpu::new(memory.clone(), &config), memory)
}

fn run(vcpu: &mut Vcpu, units: u64) -> Exit {
    let until = vcpu.now() + Duration::new(units);
    vcpu.run(until)
}

fn tss(base: u64) -> u64 {
    0x67 | (base & 0xffff) << 16 | 0x89 << 40
}

fn gate32(selector: u64, target: u64, kind: u64, dpl: u64) -> u64 {
    target & 0xffff | selector << 16 | (0x80 | dpl << 5 | kind) << 40 | (target >> 16) << 48
}

fn tables(memory: &SystemMemory) {
    let gdt = [0, CODE32, DATA32, USER_CODE, USER_DATA, tss(TSS), tss(OTHER_TSS), gate32(8, 0x9000, 0xc, 3) | 2 << 32];
    for (n, d) in gdt.into_iter().enumerate() {
        memory.store(Spa::new(GDT + 8 * n as u64), d).unwrap();
    }
    for vector in 0..64 {
        memory.store(Spa::new(IDT + 8 * vector), gate32(8, HANDLERS + 16 * vector, 0xe, 3)).unwrap();
        memory.write(Spa::new(HANDLERS + 16 * vector), &[0xf4, 0xcf]).unwrap();
    }
    memory.store(Spa::new(TSS + 4), STACK as u32).unwrap();
    memory.store(Spa::new(TSS + 8), 0x10_u32).unwrap();
}

fn segment(selector: u16, kind: u8, dpl: u8) -> Segment {
    let attributes =
        SegmentAttributes::new().with_kind(kind).with_s(true).with_dpl(dpl).with_p(true).with_db(true).with_g(true);
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

/// 32-bit protected mode without paging at `cpl` 0 or 3.
fn protected(code: &[u8], cpl: u8) -> (Vcpu, Arc<SystemMemory>) {
    let (mut vcpu, memory) = new();
    tables(&memory);
    memory.write(Spa::new(CODE), code).unwrap();
    let mut state = vcpu.state();
    state.cr0 = Cr0::PE | Cr0::ET;
    let rpl = cpl as u16;
    for reg in SegReg::ALL {
        state.segments.regs[reg as usize] = segment(if cpl == 3 { 0x20 } else { 0x10 } | rpl, 3, cpl);
    }
    state.segments.regs[SegReg::Cs as usize] = segment(if cpl == 3 { 0x18 } else { 8 } | rpl, 0xb, cpl);
    state.segments.gdtr = DescriptorTable { base: Gva::new(GDT), limit: 63 };
    state.segments.idtr = DescriptorTable { base: Gva::new(IDT), limit: 64 * 8 - 1 };
    let busy = SegmentAttributes::new().with_kind(11).with_p(true);
    state.segments.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: busy };
    memory.store(Spa::new(GDT + 0x28), tss(TSS) | 2 << 40).unwrap();
    state.rip = CODE;
    state.gpr[4] = 0x2_0000;
    vcpu.set_state(&state);
    (vcpu, memory)
}

fn dwords(memory: &SystemMemory, at: u64, count: u64) -> Vec<u32> {
    (0..count).map(|n| memory.load(Spa::new(at + 4 * n)).unwrap()).collect()
}

#[test]
fn from_reset_through_a_bios_call_into_protected_mode() {
    let (mut vcpu, memory) = new();
    tables(&memory);
    memory.store(Spa::new(0x21 * 4), 0x0000_0600_u32).unwrap();
    // inc ax ; iret
    memory.write(Spa::new(0x600), &[0x40, 0xcf]).unwrap();
    memory.write(Spa::new(0x500), &[63, 0, 0, 0x30, 0, 0, 0, 0, 0xff, 1, 0, 0x40, 0, 0]).unwrap();
    // int 0x21 ; lgdt [0x500] ; lidt [0x508] ; mov eax, cr0 ; or al, 1 ; mov cr0, eax ; jmp 8:0x7c20
    let code = [
        0xcd, 0x21, 0x0f, 0x01, 0x16, 0x00, 0x05, 0x0f, 0x01, 0x1e, 0x08, 0x05, 0x89, 0xc3, 0x0f, 0x20, 0xc0, 0x0c, 1,
        0x0f, 0x22, 0xc0, 0xea, 0x20, 0x7c, 0x08, 0x00,
    ];
    memory.write(Spa::new(CODE), &code).unwrap();
    // mov ax, 0x10 ; mov ds, eax ; mov ss, eax ; mov esp, 0x20000 ; int 0x30
    let code = [0x66, 0xb8, 0x10, 0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0, 0, 2, 0, 0xcd, 0x30];
    memory.write(Spa::new(0x7c20), &code).unwrap();
    let mut state = vcpu.state();
    assert_eq!((state.rip, state.segments.get(SegReg::Cs).base), (0xfff0, 0xffff_0000));
    state.segments.regs[SegReg::Cs as usize] = Segment::real(0);
    state.rip = CODE;
    state.gpr[0] = 6;
    state.gpr[4] = 0x7000;
    state.rflags |= Rflags::IF;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 40), Exit::Halt);
    let state = vcpu.state();
    assert_eq!(state.gpr[3], 7, "the real-mode handler ran and returned");
    assert_eq!(memory.load::<u16>(Spa::new(0x7000 - 6)).unwrap(), CODE as u16 + 2);
    assert_eq!(state.rip, HANDLERS + 16 * 0x30 + 1);
    assert_eq!(state.gpr[4], 0x2_0000 - 12);
    assert_eq!(dwords(&memory, 0x2_0000 - 12, 2), [0x7c2f, 8]);
}

#[test]
fn interrupts_from_ring_3_take_the_stack_of_the_tss() {
    let (mut vcpu, memory) = protected(&[0xcd, 0x30, 0xeb, 0xfe], 3);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(vcpu.state().gpr[4], STACK - 20);
    assert_eq!(dwords(&memory, STACK - 20, 5), [CODE as u32 + 2, 0x1b, 2, 0x2_0000, 0x23]);
    assert_eq!(run(&mut vcpu, 3), Exit::TimeUp);
    let state = vcpu.state();
    assert_eq!((state.rip, state.gpr[4]), (CODE + 2, 0x2_0000));
    assert_eq!(state.segments.get(SegReg::Cs).selector, 0x1b);
}

#[test]
fn a_call_gate_copies_parameters_and_retf_releases_them() {
    // push 1 ; push 2 ; call 0x38:0 ; jmp .
    let (mut vcpu, memory) = protected(&[0x6a, 1, 0x6a, 2, 0x9a, 0, 0, 0, 0, 0x3b, 0, 0xeb, 0xfe], 3);
    // nop ; retf 8
    memory.write(Spa::new(0x9000), &[0x90, 0xca, 8, 0]).unwrap();
    run(&mut vcpu, 3);
    let state = vcpu.state();
    assert_eq!((state.rip, state.gpr[4]), (0x9000, STACK - 24));
    assert_eq!(dwords(&memory, STACK - 24, 6), [CODE as u32 + 11, 0x1b, 2, 1, 0x2_0000 - 8, 0x23]);
    run(&mut vcpu, 2);
    let state = vcpu.state();
    assert_eq!((state.rip, state.gpr[4]), (CODE + 11, 0x2_0000));
    assert_eq!(state.segments.get(SegReg::Ss).selector, 0x23);
}

#[test]
fn virtual_8086_mode_leaves_to_ring_0_and_comes_back() {
    let (mut vcpu, memory) = protected(&[], 3);
    memory.write(Spa::new(0x1_2340), &[0xcd, 0x30, 0xeb, 0xfe]).unwrap();
    let mut state = vcpu.state();
    state.rflags |= Rflags::VM | Rflags::IOPL0 | Rflags::IOPL1;
    for (n, reg) in SegReg::ALL.into_iter().enumerate() {
        let real = Segment::real(0x1000 + n as u16);
        state.segments.regs[reg as usize] = Segment { attributes: real.attributes.with_dpl(3), ..real };
    }
    state.segments.regs[SegReg::Cs as usize].selector = 0x1234;
    state.segments.regs[SegReg::Cs as usize].base = 0x1_2340;
    state.rip = 0;
    state.gpr[4] = 0x100;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    let s = vcpu.state();
    assert_eq!(s.gpr[4], STACK - 36);
    assert!(!s.rflags.contains(Rflags::VM));
    assert_eq!(s.segments.get(SegReg::Ds).selector, 0);
    let flags = 2 | Rflags::VM.bits() as u32 | 0x3000;
    let want = [2, 0x1234, flags, 0x100, 0x1002, 0x1000, 0x1003, 0x1004, 0x1005];
    assert_eq!(dwords(&memory, STACK - 36, 9), want);
    run(&mut vcpu, 3);
    let back = vcpu.state();
    assert_eq!(back.rip, 2);
    assert_eq!(back.segments, state.segments);
    assert_eq!(back.rflags, state.rflags);
    // Without IOPL 3, INT n is the monitor's: #GP(0).
    state.rflags -= Rflags::IOPL0 | Rflags::IOPL1;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(vcpu.state().rip, HANDLERS + 13 * 16 + 1);
}

fn other_task(memory: &SystemMemory) {
    let fields: [(u64, u32); 10] = [
        (0x20, 0x9000),
        (0x24, 0x202),
        (0x28, 0xaaaa),
        (0x38, 0x3_0000),
        (0x48, 0x10),
        (0x4c, 0x08),
        (0x50, 0x10),
        (0x54, 0x10),
        (0x58, 0),
        (0x5c, 0),
    ];
    for (offset, value) in fields {
        memory.store(Spa::new(OTHER_TSS + offset), value).unwrap();
    }
    memory.write(Spa::new(0x9000), &[0x90, 0xcf, 0xeb, 0xfe]).unwrap();
}

#[test]
fn call_switches_tasks_and_iret_returns() {
    // call 0x30:0 ; jmp .
    let (mut vcpu, memory) = protected(&[0x9a, 0, 0, 0, 0, 0x30, 0, 0xeb, 0xfe], 0);
    other_task(&memory);
    run(&mut vcpu, 1);
    let s = vcpu.state();
    assert_eq!((s.rip, s.gpr[0], s.gpr[4]), (0x9000, 0xaaaa, 0x3_0000));
    assert!(s.rflags.contains(Rflags::NT) && s.cr0.contains(Cr0::TS));
    assert_eq!(s.segments.tr.selector, 0x30);
    assert_eq!(memory.load::<u16>(Spa::new(OTHER_TSS)).unwrap(), 0x28, "back link");
    assert_eq!(memory.load::<u8>(Spa::new(GDT + 0x30 + 5)).unwrap(), 0x8b, "busy");
    run(&mut vcpu, 2);
    let s = vcpu.state();
    assert_eq!((s.rip, s.gpr[4]), (CODE + 7, 0x2_0000));
    assert!(!s.rflags.contains(Rflags::NT));
    assert_eq!(memory.load::<u8>(Spa::new(GDT + 0x30 + 5)).unwrap(), 0x89, "free again");
    assert_eq!(dwords(&memory, OTHER_TSS + 0x20, 1), [0x9002]);
    // A busy task cannot be called: #GP(selector).
    let (mut vcpu, memory) = protected(&[0x9a, 0, 0, 0, 0, 0x28, 0, 0xeb, 0xfe], 0);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(vcpu.state().rip, HANDLERS + 13 * 16 + 1);
    assert_eq!(dwords(&memory, 0x2_0000 - 16, 1), [0x28]);
}

#[test]
fn a_task_gate_takes_the_error_code_to_the_new_stack() {
    let (mut vcpu, memory) = protected(&[0xeb, 0xfe], 3);
    other_task(&memory);
    memory.store(Spa::new(IDT + 13 * 8), gate32(0x30, 0, 5, 0)).unwrap();
    vcpu.inject(Event::Exception(Exception::GP0));
    run(&mut vcpu, 1);
    let s = vcpu.state();
    assert_eq!((s.rip, s.gpr[4]), (0x9000, 0x3_0000 - 4));
    assert_eq!(s.segments.tr.selector, 0x30);
    assert_eq!(dwords(&memory, TSS + 0x20, 1), [CODE as u32]);
}

#[test]
fn a_task_with_a_bad_stack_segment_faults_in_the_new_task() {
    // jmp 0x30:0
    let (mut vcpu, memory) = protected(&[0xea, 0, 0, 0, 0, 0x30, 0, 0xeb, 0xfe], 0);
    other_task(&memory);
    memory.store(Spa::new(OTHER_TSS + 0x50), 0x23_u32).unwrap();
    // #TS must be a task gate to find a stack: the old task is free again.
    memory.store(Spa::new(IDT + 10 * 8), gate32(0x28, 0, 5, 0)).unwrap();
    run(&mut vcpu, 2);
    let s = vcpu.state();
    assert_eq!(s.segments.tr.selector, 0x28);
    assert_eq!(s.rip, CODE + 7);
    assert_eq!(dwords(&memory, s.gpr[4], 1), [0x20], "the error code names the stack segment");
}

#[test]
fn init_and_startup_begin_at_the_vectors_page() {
    let (mut vcpu, memory) = protected(&[0xeb, 0xfe], 0);
    memory.write(Spa::new(0x9_a000), &[0x90, 0xf4]).unwrap();
    run(&mut vcpu, 5);
    vcpu.init();
    vcpu.start_at(0x9a);
    let state = vcpu.state();
    assert_eq!(Mode::of(state.cr0, state.efer, state.rflags, &state.segments), Mode::Real);
    assert_eq!((state.segments.get(SegReg::Cs).selector, state.rip), (0x9a00, 0));
    assert_eq!(run(&mut vcpu, 5), Exit::Halt);
    assert_eq!(vcpu.now().units(), 7, "the clock goes on");
}

#[test]
fn pusha_and_popa_move_eight_registers_of_either_width() {
    // pushad ; pusha ; popa ; popad
    let (mut vcpu, memory) = protected(&[0x60, 0x66, 0x60, 0x66, 0x61, 0x61], 0);
    let mut state = vcpu.state();
    for (n, value) in state.gpr[..8].iter_mut().enumerate() {
        *value = 0x1000_0001 * (n as u64 + 1);
    }
    state.gpr[4] = 0x2_0000;
    vcpu.set_state(&state);
    run(&mut vcpu, 1);
    assert_eq!(vcpu.state().gpr[4], 0x2_0000 - 32);
    let by_place = |n: usize| [0x8000_0008, 0x7000_0007, 0x6000_0006, 0x2_0000, 0x4000_0004][n];
    assert_eq!(dwords(&memory, 0x2_0000 - 32, 5), (0..5).map(by_place).collect::<Vec<u32>>());
    run(&mut vcpu, 1);
    assert_eq!(vcpu.state().gpr[4], 0x2_0000 - 48);
    assert_eq!(memory.load::<u16>(Spa::new(0x2_0000 - 48 + 6)).unwrap(), (0x2_0000_u32 - 32) as u16);
    // POPA takes the low halves back and steps over the stack pointer's place.
    memory.store(Spa::new(0x2_0000 - 48 + 6), 0xdead_u16).unwrap();
    memory.store(Spa::new(0x2_0000 - 48), 0x9999_u16).unwrap();
    run(&mut vcpu, 1);
    let now = vcpu.state();
    assert_eq!((now.gpr[4], now.gpr[7], now.gpr[0]), (0x2_0000 - 32, 0x8000_9999, 0x1000_0001));
    run(&mut vcpu, 1);
    assert_eq!(vcpu.state().gpr, state.gpr);
}

#[test]
fn a_popa_that_runs_out_of_stack_changes_nothing() {
    let (mut vcpu, _) = protected(&[0x61], 0);
    let mut state = vcpu.state();
    state.segments.regs[SegReg::Ss as usize].limit = 0x2_0017;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    let now = vcpu.state();
    assert_eq!(now.rip, HANDLERS + 16 * 12 + 1);
    assert_eq!(now.gpr[..4], state.gpr[..4]);
    assert_eq!(now.gpr[5..8], state.gpr[5..8]);
}
