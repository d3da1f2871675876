//! Single steps and quick changes of registers, for debuggers and for tests that judge one instruction at a time.
//!
//! A step executes the instruction at RIP and nothing else: no event is delivered before it, none after it, TF and
//! breakpoints are not looked at. [`UserRegisters`] and [`MediaRegisters`] are what a program in user mode can change;
//! unlike [`Vcpu::set_state`], replacing them drops no translation and no decoded code.

use emu_core::Exception;
use emu_core::regs::{Dr6, Rflags};
use emu_core::time::Duration;

use crate::event::{Event, InterruptShadow};
use crate::exec::Engine;
use crate::exit::{Exit, Trap};
use crate::op::Next;
use crate::simd::VectorState;
use crate::vcpu::{Vcpu, X87Registers, x87_in, x87_out};

/// What came of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// The instruction retired.
    Retired,
    /// The instruction retired, and this event follows it (INT n, INT3, INTO). It is pending: the next run delivers it.
    Event(Event),
    /// The instruction raised this and has changed nothing else. It is pending: the next run delivers it.
    Exception(Exception),
    /// The instruction needs the machine and starts again at the next step.
    Exit(Exit),
}

/// General registers, instruction pointer and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRegisters {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: Rflags,
}

/// Vector and x87 registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaRegisters {
    /// YMM0 to YMM15, least significant quadword first.
    pub ymm: [[u64; 4]; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// x87 and MMX.
    pub x87: X87Registers,
}

/// Time a string instruction may take within one step.
const LONG: u64 = 1 << 32;

impl Vcpu {
    /// General registers, instruction pointer and flags.
    pub fn user_registers(&self) -> UserRegisters {
        let cpu = &self.engine.cpu;
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&cpu.gpr[..16]);
        UserRegisters { gpr, rip: cpu.rip(), rflags: cpu.flags.rflags() }
    }

    /// Replaces them, and forgets a pending event and a half-done instruction. RFLAGS.VM must stay as it is.
    pub fn set_user_registers(&mut self, registers: &UserRegisters) {
        self.saved = None;
        let cpu = &mut self.engine.cpu;
        let checked = cpu.alignment_checked();
        cpu.gpr[..16].copy_from_slice(&registers.gpr);
        cpu.set_rip(registers.rip);
        cpu.flags.set_rflags(registers.rflags);
        cpu.event = None;
        cpu.pending.between_iterations = false;
        cpu.shadow = InterruptShadow::None;
        cpu.debug_hits = Dr6::empty();
        cpu.unlinked = None;
        cpu.latch.clear();
        if cpu.alignment_checked() != checked || cpu.cpl != 3 {
            cpu.refresh_privilege();
        }
    }

    /// Vector and x87 registers.
    pub fn media_registers(&self) -> MediaRegisters {
        let cpu = &self.engine.cpu;
        MediaRegisters { ymm: cpu.vector.to_quadwords(), mxcsr: cpu.vector.mxcsr, x87: x87_out(&cpu.x87) }
    }

    /// Replaces them.
    pub fn set_media_registers(&mut self, registers: &MediaRegisters) {
        self.saved = None;
        let cpu = &mut self.engine.cpu;
        cpu.vector = VectorState::from_quadwords(&registers.ymm, registers.mxcsr);
        cpu.x87 = x87_in(&registers.x87);
    }

    /// Executes the instruction at RIP, a repeated string instruction to its end. The clock moves as if it had run.
    pub fn step(&mut self) -> Stepped {
        self.engine.step_undisturbed()
    }
}

impl Engine {
    fn step_undisturbed(&mut self) -> Stepped {
        self.catch_up_with_code();
        self.cpu.shadow = InterruptShadow::None;
        // With time for one instruction nothing chains on behind a branch.
        let mut grant = 1;
        loop {
            let cpu = &mut self.cpu;
            cpu.latch.rewind();
            cpu.until = cpu.now() + Duration::new(grant);
            cpu.budget = grant as i64;
            if self.run_precisely(1) != Next::Trap {
                self.cpu.latch.clear();
                self.catch_up_with_code();
                return match self.cpu.event {
                    Some(event) => Stepped::Event(event),
                    None => Stepped::Retired,
                };
            }
            match self.cpu.trap.take() {
                Some(Trap::Exception(exception)) => {
                    self.cpu.latch.clear();
                    self.cpu.event = Some(Event::Exception(exception));
                    return Stepped::Exception(exception);
                }
                Some(Trap::Exit(exit)) => return Stepped::Exit(*exit),
                // A string instruction has iterations left. Unless it has overwritten itself it is still there, and
                // no branch: any amount of time is safe.
                Some(Trap::Paused) | None => {
                    grant = if self.cpu.attention { 1 } else { LONG };
                    self.catch_up_with_code();
                }
            }
        }
    }
}
