//! The judge: a guarded child process that executes cases on the host's processor.
//!
//! [`Judge`] is the door. Parent and child share a ring of slots; a case costs a few hundred nanoseconds because
//! nothing crosses between the processes but memory, and sleeping sides are woken at most every hundred cases or so.
//! The child can make no system call but those for sleeping, waking and ending; faults of a case are caught there on
//! a stack of their own. A child that dies or burns processor time without an answer is replaced, and the case it was
//! at is answered with [`Outcome::Crashed`].
//!
//! Unsafe code is confined to the modules beneath this one.

mod child;
mod futex;
mod layout;
mod process;
mod trampoline;

use std::time::Duration;

use thiserror::Error;

use crate::admit::EXIT_BYTES;
use crate::case::{Case, CaseResult, Crash, Fault, Outcome, Placement, Scope};
use crate::state::{CpuState, RFLAGS_FIXED, RFLAGS_FREE, TF};
use crate::window::Writes;
use layout::{CONTEXT, OFF_EXIT, SLOTS, Slot};
use process::Child;

/// Why there is no judge.
#[derive(Debug, Error)]
pub enum JudgeError {
    /// The host's processor lacks a feature of the modelled set.
    #[error("the host processor has no {0}")]
    HostFeature(&'static str),
    /// The shared mapping or the child could not be made.
    #[error("cannot make the child process: {0}")]
    Process(#[from] std::io::Error),
    /// The child could not set itself up; the number is its step.
    #[error("the child failed at step {0} of its setup")]
    Setup(u32),
    /// A fresh child was lost before its first case, several times in a row.
    #[error("children are lost as soon as they start")]
    Unstable,
}

/// Processor time a child may burn on one case before it counts as hanging.
const PATIENCE: Duration = Duration::from_millis(500);

/// End of the user's half of the address space; Linux leaves its last page out.
const USER_END: u64 = 0x7fff_ffff_f000;

/// Executes cases on the host's processor.
pub struct Judge {
    child: Child,
}

impl Judge {
    /// Starts a child.
    pub fn start() -> Result<Judge, JudgeError> {
        require_features()?;
        Ok(Judge { child: Child::start()? })
    }

    /// Executes `cases` in order and hands each with its result to `each`.
    ///
    /// Bits of the initial state that no case may choose are replaced first (see [`CpuState::normalised`]).
    pub fn run<'c>(&mut self, cases: &'c [Case], mut each: impl FnMut(&'c Case, CaseResult)) -> Result<(), JudgeError> {
        let (mut sent, mut taken) = (0, 0);
        while taken < cases.len() {
            while sent < cases.len() && sent - taken < SLOTS {
                fill(self.child.slot(sent - taken), &cases[sent]);
                sent += 1;
                // Hand over early so that the child works while the rest is prepared.
                if sent.is_multiple_of(SLOTS / 8) {
                    self.child.submit(sent - taken);
                }
            }
            self.child.submit(sent - taken);
            // A full ring is worth waiting for until half of it is done; the other half keeps the child busy.
            let enough = if sent < cases.len() { (sent - taken) / 2 } else { 1 };
            let lost = self.child.wait(enough.max(1), PATIENCE)?;
            for _ in 0..self.child.completed() {
                let case = &cases[taken];
                each(case, take(self.child.slot(0), case));
                self.child.release();
                taken += 1;
            }
            if let Some(crash) = lost {
                if taken < sent {
                    each(&cases[taken], crashed(&cases[taken], crash));
                    self.child.release();
                    taken += 1;
                }
                // What was submitted behind the lost case goes to the next child.
                sent = taken;
                self.child.replace()?;
            }
        }
        Ok(())
    }

    /// Executes one case.
    pub fn run_one(&mut self, case: &Case) -> Result<CaseResult, JudgeError> {
        let mut result = None;
        self.run(std::slice::from_ref(case), |_, answer| result = Some(answer))?;
        result.ok_or(JudgeError::Unstable)
    }
}

fn require_features() -> Result<(), JudgeError> {
    macro_rules! require {
        ($($name:tt),*) => {
            $(if !std::arch::is_x86_feature_detected!($name) {
                return Err(JudgeError::HostFeature($name));
            })*
        };
    }
    require!("avx", "avx2", "bmi1", "bmi2", "lzcnt", "fma", "f16c", "movbe", "popcnt", "cmpxchg16b");
    require!("adx", "aes", "pclmulqdq", "sha", "sse4.2", "fxsr");
    Ok(())
}

fn fill(slot: &mut Slot, case: &Case) {
    let bytes = case.code.bytes();
    let present = case.present_len();
    slot.block = [0xcc; layout::BLOCK];
    slot.block[..present].copy_from_slice(&bytes[..present]);
    slot.code_len = present as u32;
    slot.page_end_len = match case.placement {
        Placement::Inline => {
            // JMP [absolute address of the context's exit]
            let exit = &mut slot.block[present..present + EXIT_BYTES as usize];
            exit[..3].copy_from_slice(&[0xff, 0x24, 0x25]);
            exit[3..].copy_from_slice(&((CONTEXT + OFF_EXIT) as u32).to_le_bytes());
            0
        }
        Placement::PageEnd(_) => present as u32,
    };
    let scope = case.scope.max(case.code.scope());
    slot.scope = scope as u32;
    slot.state.gpr = case.state.gpr;
    slot.state.rflags = case.state.rflags & RFLAGS_FREE | RFLAGS_FIXED;
    if scope == Scope::Full {
        slot.state.vec = case.state.vec;
        slot.state.mxcsr = case.state.mxcsr & 0xffff;
        slot.state.x87 = case.state.x87;
    }
    slot.window = case.window;
}

fn take(slot: &Slot, case: &Case) -> CaseResult {
    let answer = &slot.answer;
    let mut state = case.state.normalised();
    state.gpr = answer.state.gpr;
    state.rflags = answer.state.rflags & (RFLAGS_FREE | TF) | RFLAGS_FIXED;
    if slot.scope == Scope::Full as u32 {
        state = CpuState { gpr: state.gpr, rflags: state.rflags, ..answer.state };
    }
    let lines = answer.lines.get(..answer.line_count as usize).unwrap_or(&[]).to_vec();
    let outcome = outcome(slot, case);
    CaseResult { outcome, state, writes: Writes { lines, truncated: answer.truncated != 0 } }
}

fn outcome(slot: &Slot, case: &Case) -> Outcome {
    let start = case.rip();
    let len = case.present_len() as u64;
    let fault = &slot.answer.fault;
    if fault.taken == 0 {
        return Outcome::Completed { rip_delta: len as i64 };
    }
    let delta = |rip: u64| rip.wrapping_sub(start) as i64;
    let inside = |rip: u64| (0..len as i64).contains(&delta(rip));
    let fetch = fault.vector == 14 && fault.error_code & 0x10 != 0 && fault.cr2 == fault.rip;
    // A branch away ends at the filling, or at a page that cannot be fetched from; either way it has been taken.
    if fault.vector == 3 && !inside(fault.rip.wrapping_sub(1)) {
        return Outcome::Completed { rip_delta: delta(fault.rip.wrapping_sub(1)) };
    }
    if fetch && !inside(fault.rip) {
        return Outcome::Completed { rip_delta: delta(fault.rip) };
    }
    // The kernel sets P for every address above the user's half, so as not to tell what it has mapped there; to a
    // case nothing is.
    let hidden = fault.vector == 14 && fault.cr2 >= USER_END;
    Outcome::Fault(Fault {
        vector: fault.vector as u8,
        error_code: fault.error_code as u32 & !(hidden as u32),
        cr2: (fault.vector == 14).then_some(fault.cr2),
        rip_delta: delta(fault.rip),
    })
}

fn crashed(case: &Case, crash: Crash) -> CaseResult {
    CaseResult { outcome: Outcome::Crashed(crash), state: case.state.normalised(), writes: Writes::default() }
}
