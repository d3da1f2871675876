//! Control registers, MSRs, ports and the instructions around them, in 64-bit mode.

mod common;

use common::{CODE, flat, long_mode, run};
use cpu::{Completion, Exit, IoAccess, MsrAccess, SegReg, Segment, SegmentAttributes, Vcpu};
use emu_core::regs::{Cr0, Cr4, Efer, Rflags};
use emu_core::{Gva, Spa};

/// Runs one instruction over an empty IDT: whether it faulted.
fn faults(code: &[u8], prepare: impl FnOnce(&mut cpu::VcpuState)) -> (bool, Vcpu) {
    let (mut vcpu, _) = long_mode(code);
    let mut state = vcpu.state();
    state.segments.idtr.limit = 0;
    prepare(&mut state);
    vcpu.set_state(&state);
    let exit = run(&mut vcpu, 1);
    (exit == Exit::Shutdown || vcpu.state().rip == CODE, vcpu)
}

#[test]
fn control_registers_refuse_what_the_model_lacks() {
    let all = 0x07_f0_u64;
    // mov cr4, rax
    for (value, refused) in [
        (Cr4::PAE.bits(), false),
        (Cr4::PAE.bits() | all & Cr4::PGE.bits(), false),
        (0, true),
        (Cr4::PAE.bits() | 1 << 63, true),
        ((Cr4::PAE | Cr4::VME).bits(), true),
        ((Cr4::PAE | Cr4::VMXE).bits(), true),
        ((Cr4::PAE | Cr4::LA57).bits(), true),
    ] {
        let (faulted, vcpu) = faults(&[0x0f, 0x22, 0xe0], |s| s.gpr[0] = value);
        assert_eq!(faulted, refused, "CR4 {value:#x}");
        assert_eq!(vcpu.state().cr4.bits() == value, !refused);
    }
    // mov cr0, rax
    let usual = (Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE).bits();
    for (value, refused) in [
        (usual, false),
        (usual & !Cr0::PG.bits(), true),
        (usual & !Cr0::PE.bits(), true),
        (usual | Cr0::NW.bits(), true),
        (usual | 1 << 32, true),
        (usual | 1 << 6, false),
    ] {
        let (faulted, _) = faults(&[0x0f, 0x22, 0xc0], |s| s.gpr[0] = value);
        assert_eq!(faulted, refused, "CR0 {value:#x}");
    }
    // mov cr3, rax
    for (value, refused) in [(0x1000, false), (0x1000 | 1 << 63, true), (0x1000 | 1 << 50, true)] {
        let (faulted, _) = faults(&[0x0f, 0x22, 0xd8], |s| s.gpr[0] = value);
        assert_eq!(faulted, refused, "CR3 {value:#x}");
    }
    // PCIDE only over a CR3 whose low bits are clear; with it, bit 63 is a command and not stored.
    let (faulted, _) = faults(&[0x0f, 0x22, 0xe0], |s| {
        s.gpr[0] = (Cr4::PAE | Cr4::PCIDE).bits();
        s.cr3 |= 8;
    });
    assert!(faulted);
    // mov dr7, rax with bit 32
    let (faulted, _) = faults(&[0x0f, 0x23, 0xf8], |s| s.gpr[0] = 1 << 32);
    assert!(faulted);
}

#[test]
fn efer_keeps_long_mode_while_paging() {
    let wrmsr = |value: u64| {
        faults(&[0x0f, 0x30], |s| {
            s.gpr[1] = 0xc000_0080;
            s.gpr[0] = value & 0xffff_ffff;
            s.gpr[2] = value >> 32;
        })
    };
    assert!(!wrmsr((Efer::LME | Efer::LMA | Efer::SCE).bits()).0);
    assert!(wrmsr(Efer::SCE.bits()).0, "LME cannot go");
    assert!(wrmsr((Efer::LME | Efer::LMA | Efer::SVME).bits()).0, "no SVM");
    let (_, vcpu) = wrmsr(Efer::LME.bits());
    assert!(vcpu.state().efer.contains(Efer::LMA), "LMA is not software's");
}

#[test]
fn write_protection_follows_cr0_at_once() {
    // mov cr0, rax ; mov [rbx], cl ; jmp .
    let (mut vcpu, memory) = long_mode(&[0x0f, 0x22, 0xc0, 0x88, 0x0b, 0xeb, 0xfe]);
    // The second gigabyte is the first again, read-only.
    memory.store(Spa::new(0x2008), 0x85_u64).unwrap();
    let mut state = vcpu.state();
    state.gpr[0] = (state.cr0 - Cr0::WP).bits();
    state.gpr[1] = 0x5a;
    state.gpr[3] = 0x4030_0000;
    vcpu.set_state(&state);
    run(&mut vcpu, 5);
    assert_eq!(memory.load::<u8>(Spa::new(0x30_0000)).unwrap(), 0x5a);
    let mut code = vcpu.state();
    code.rip = CODE + 3;
    code.cr0 |= Cr0::WP;
    code.segments.idtr.limit = 0;
    vcpu.set_state(&code);
    assert_eq!(run(&mut vcpu, 5), Exit::Shutdown);
    assert_eq!(vcpu.state().cr2, 0x4030_0000);
}

#[test]
fn cr8_and_apic_registers_are_the_boards() {
    // mov cr8, rax ; mov rbx, cr8 ; mov ecx, 0x1b ; rdmsr ; jmp .
    let code = [0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc3, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0xeb, 0xfe];
    let (mut vcpu, _) = long_mode(&code);
    let mut state = vcpu.state();
    state.gpr[0] = 9;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::TaskPriority { write: Some(9) });
    vcpu.complete(Completion::value(0));
    assert_eq!(run(&mut vcpu, 10), Exit::TaskPriority { write: None });
    vcpu.complete(Completion::value(9));
    assert_eq!(run(&mut vcpu, 10), Exit::Msr(MsrAccess { msr: 0x1b, write: None }));
    vcpu.complete(Completion::value(0x1_fee0_0900));
    run(&mut vcpu, 5);
    let s = vcpu.state();
    assert_eq!((s.gpr[3], s.gpr[0], s.gpr[2]), (9, 0xfee0_0900, 1));
    // A refusal is #GP(0).
    let (mut vcpu, _) = long_mode(&[0x0f, 0x32]);
    let mut state = vcpu.state();
    state.gpr[1] = 0x802;
    state.segments.idtr.limit = 0;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Msr(MsrAccess { msr: 0x802, write: None }));
    vcpu.complete(Completion::Refused);
    assert_eq!(run(&mut vcpu, 10), Exit::Shutdown);
}

#[test]
fn ports_answer_once_and_obey_the_bitmap() {
    // in al, 0x60 ; mov edx, 0x3f8 ; out dx, eax ; jmp .
    let code = [0xe4, 0x60, 0xba, 0xf8, 0x03, 0, 0, 0xef, 0xeb, 0xfe];
    let (mut vcpu, _) = long_mode(&code);
    let mut state = vcpu.state();
    state.gpr[0] = 0xffff_ff00;
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Io(IoAccess { port: 0x60, len_bytes: 1, write: None }));
    vcpu.complete(Completion::value(0x1234));
    assert_eq!(run(&mut vcpu, 10), Exit::Io(IoAccess { port: 0x3f8, len_bytes: 4, write: Some(0xffff_ff34) }));
    vcpu.complete(Completion::value(0));
    assert_eq!(run(&mut vcpu, 10), Exit::TimeUp);
    // At CPL 3 the TSS decides, port by port.
    let user = |bits: u16| {
        let (mut vcpu, memory) = long_mode(&code);
        memory.store(Spa::new(0x5066), 0x68_u16).unwrap();
        memory.store(Spa::new(0x5068 + 12), bits).unwrap();
        let mut state = vcpu.state();
        for reg in SegReg::ALL {
            state.segments.regs[reg as usize] = flat(0x23, 3, false, 3);
        }
        state.segments.regs[SegReg::Cs as usize] = flat(0x2b, 0xb, true, 3);
        let busy = SegmentAttributes::new().with_kind(11).with_p(true);
        state.segments.tr = Segment { selector: 0x30, base: 0x5000, limit: 0x100, attributes: busy };
        state.segments.idtr.limit = 0;
        vcpu.set_state(&state);
        run(&mut vcpu, 10)
    };
    assert_eq!(user(0xfffe), Exit::Io(IoAccess { port: 0x60, len_bytes: 1, write: None }));
    assert_eq!(user(1), Exit::Shutdown);
}

#[test]
fn hypercalls_and_halts_have_retired() {
    let (mut vcpu, _) = long_mode(&[0x0f, 0x01, 0xd9, 0x0f, 0x01, 0xc1, 0xf4]);
    assert_eq!(run(&mut vcpu, 10), Exit::Hypercall);
    assert_eq!((vcpu.state().rip, vcpu.now().units()), (CODE + 3, 1));
    assert_eq!(run(&mut vcpu, 10), Exit::Hypercall);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!((vcpu.state().rip, vcpu.now().units()), (CODE + 7, 3));
}

#[test]
fn tables_round_trip_through_memory() {
    // lgdt [rbx] ; sgdt [rcx] ; lidt [rbx] ; sidt [rcx+16] ; jmp .
    let code = [0x0f, 0x01, 0x13, 0x0f, 0x01, 0x01, 0x0f, 0x01, 0x1b, 0x0f, 0x01, 0x49, 0x10, 0xeb, 0xfe];
    let (mut vcpu, memory) = long_mode(&code);
    memory.write(Spa::new(0x9ffa), &[0x34, 0x12, 0x78, 0x56, 0x34, 0x12, 0, 0x80, 0xff, 0xff]).unwrap();
    let mut state = vcpu.state();
    state.gpr[3] = 0x9ffa;
    state.gpr[1] = 0xaff8;
    vcpu.set_state(&state);
    run(&mut vcpu, 8);
    let s = vcpu.state();
    assert_eq!((s.segments.gdtr.base, s.segments.gdtr.limit), (Gva::new(0xffff_8000_1234_5678), 0x1234));
    assert_eq!(s.segments.idtr, s.segments.gdtr);
    for at in [0xaff8, 0xb008] {
        assert_eq!(memory.load::<u16>(Spa::new(at)).unwrap(), 0x1234);
        let mut base = [0; 8];
        memory.read(Spa::new(at + 2), &mut base).unwrap();
        assert_eq!(u64::from_le_bytes(base), 0xffff_8000_1234_5678);
    }
}

#[test]
fn flags_move_through_stack_and_ah() {
    // pushfq ; pop rbx ; sahf ; lahf ; cli ; jmp .
    let (mut vcpu, _) = long_mode(&[0x9c, 0x5b, 0x9e, 0x9f, 0xfa, 0xeb, 0xfe]);
    let mut state = vcpu.state();
    state.rflags |= Rflags::OF | Rflags::IF | Rflags::ID;
    state.gpr[0] = 0xff00;
    vcpu.set_state(&state);
    run(&mut vcpu, 6);
    let s = vcpu.state();
    assert_eq!(s.gpr[3], (Rflags::OF | Rflags::IF | Rflags::ID | Rflags::FIXED).bits());
    assert_eq!(s.gpr[0], 0xd700, "reserved bits read as 0, bit 1 as 1");
    assert!(s.rflags.contains(Rflags::OF | Rflags::CF | Rflags::ZF) && !s.rflags.contains(Rflags::IF));
}

#[test]
fn swapgs_and_base_registers_agree() {
    // swapgs ; rdgsbase rbx ; wrgsbase rcx ; mov eax, gs:[0]
    let code = [0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xcb, 0xf3, 0x48, 0x0f, 0xae, 0xd9, 0x65, 0x8b, 0x02];
    let (mut vcpu, memory) = long_mode(&code);
    memory.store(Spa::new(0xc000), 0xfeed_u32).unwrap();
    let mut state = vcpu.state();
    state.cr4 |= Cr4::FSGSBASE;
    state.segments.regs[SegReg::Gs as usize].base = 0x77;
    state.gpr[3] = 1;
    state.gpr[1] = 0xc000;
    state.gpr[2] = 0;
    vcpu.set_state(&state);
    run(&mut vcpu, 4);
    let s = vcpu.state();
    assert_eq!((s.gpr[3], s.gpr[0]), (0, 0xfeed));
    assert_eq!(s.segments.get(SegReg::Gs).base, 0xc000);
}
