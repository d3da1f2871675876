//! Repeated string instructions and loads of SS seen from outside: what an event finds between iterations and between
//! the instructions of a shadow.

mod common;
mod handlers;

use common::{CODE, STACK, run};
use cpu::{Event, Exit, Vcpu};
use emu_core::Spa;
use emu_core::memory::SystemMemory;
use emu_core::regs::{Dr6, Dr7, Rflags};
use handlers::HANDLERS;

const SOURCE: u64 = 0x9000;
const DESTINATION: u64 = 0xa000;
const REP_MOVSB: [u8; 4] = [0xf3, 0xa4, 0xeb, 0xfe];

/// `code` with handlers; RCX is 4, RSI and RDI point to memory.
fn machine(code: &[u8], flags: Rflags) -> (Vcpu, std::sync::Arc<SystemMemory>) {
    let (mut vcpu, memory) = handlers::machine(code);
    let mut state = vcpu.state();
    state.gpr[0] = 0x10;
    state.gpr[1] = 4;
    (state.gpr[6], state.gpr[7]) = (SOURCE, DESTINATION);
    state.rflags |= flags;
    vcpu.set_state(&state);
    (vcpu, memory)
}

/// RIP and flags of the frame that a handler got on the stack the program has.
fn frame(memory: &SystemMemory) -> (u64, Rflags) {
    let word = |at: u64| memory.load::<u64>(Spa::new(at)).unwrap();
    (word(STACK - 40), Rflags::from_bits_retain(word(STACK - 24)))
}

fn at_handler(vcpu: &Vcpu, vector: u64) {
    assert_eq!(vcpu.state().rip, HANDLERS + 16 * vector + 1, "handler {vector}");
}

#[test]
fn an_interrupt_between_iterations_pushes_rf_and_one_after_the_last_does_not() {
    let (mut vcpu, memory) = machine(&REP_MOVSB, Rflags::IF);
    assert_eq!(run(&mut vcpu, 2), Exit::TimeUp);
    assert_eq!((vcpu.state().gpr[1], vcpu.state().rip), (2, CODE));
    vcpu.inject(Event::Interrupt { vector: 0x40 });
    assert_eq!(run(&mut vcpu, 2), Exit::Halt);
    at_handler(&vcpu, 0x40);
    let (rip, flags) = frame(&memory);
    assert_eq!(rip, CODE);
    assert!(flags.contains(Rflags::RF));
    // Back: the rest of it, and an interrupt behind it.
    run(&mut vcpu, 3);
    assert_eq!((vcpu.state().gpr[1], vcpu.state().rip), (0, CODE + 2));
    assert!(!vcpu.state().rflags.contains(Rflags::RF), "it has retired");
    vcpu.inject(Event::Interrupt { vector: 0x41 });
    assert_eq!(run(&mut vcpu, 2), Exit::Halt);
    let (rip, flags) = frame(&memory);
    assert_eq!(rip, CODE + 2);
    assert!(!flags.contains(Rflags::RF));
}

#[test]
fn an_interrupt_before_the_first_iteration_pushes_no_rf() {
    let (mut vcpu, memory) = machine(&REP_MOVSB, Rflags::IF);
    vcpu.inject(Event::Interrupt { vector: 0x40 });
    assert_eq!(run(&mut vcpu, 2), Exit::Halt);
    assert_eq!(frame(&memory).0, CODE);
    assert!(!frame(&memory).1.contains(Rflags::RF));
}

#[test]
fn a_single_step_is_one_iteration() {
    let (mut vcpu, memory) = machine(&REP_MOVSB, Rflags::TF);
    for left in (0..4).rev() {
        assert_eq!(run(&mut vcpu, 4), Exit::Halt);
        at_handler(&vcpu, 1);
        assert_eq!(vcpu.state().gpr[1], left);
        assert!(vcpu.state().dr6.contains(Dr6::BS));
        let (rip, flags) = frame(&memory);
        assert_eq!(rip, if left == 0 { CODE + 2 } else { CODE });
        assert_eq!(flags.contains(Rflags::RF), left != 0);
    }
}

#[test]
fn a_watched_byte_traps_after_its_own_iteration() {
    let (mut vcpu, memory) = machine(&REP_MOVSB, Rflags::empty());
    let mut state = vcpu.state();
    state.dr[1] = DESTINATION + 1;
    // DR1, one byte, writes.
    state.dr7 = Dr7(Dr7::RESET.0 | 1 << 2 | 1 << 20);
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 20), Exit::Halt);
    at_handler(&vcpu, 1);
    assert_eq!(vcpu.state().gpr[1], 2);
    assert_eq!(vcpu.state().dr6 & (Dr6::B0 | Dr6::B1 | Dr6::BS), Dr6::B1);
    assert_eq!(frame(&memory).0, CODE);
    assert!(frame(&memory).1.contains(Rflags::RF));
}

#[test]
fn only_the_first_of_several_loads_of_ss_holds_traps_and_interrupts_back() {
    // mov ss, eax ; mov ss, eax ; nop ; nop
    let code = [0x8e, 0xd0, 0x8e, 0xd0, 0x90, 0x90, 0xeb, 0xfe];
    let (mut vcpu, memory) = machine(&code, Rflags::TF);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(frame(&memory).0, CODE + 4);
    let (mut vcpu, _) = machine(&code, Rflags::IF);
    run(&mut vcpu, 1);
    vcpu.request_interrupt_window(true);
    assert_eq!(run(&mut vcpu, 10), Exit::InterruptWindow);
    assert_eq!(vcpu.state().rip, CODE + 4);
}
