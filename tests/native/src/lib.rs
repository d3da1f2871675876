//! Executes single instructions on the host processor in a guarded child, as a judge of the interpreter.
//!
//! - [`Case`] is code with the registers and the memory it starts from; [`CaseResult`] is what came of it.
//! - [`admit`] decides what may run natively; a [`Code`] is proof that it decided so.
//! - [`judge::Judge`] executes cases, [`state`] and [`window`] are what they see.
//!
//! Always true: a case is a pure function of its bytes; a judge answers every case it is given, if need be with
//! [`Outcome::Crashed`]. Only user mode, 64 bits, flat segments; the host must be x86-64 Linux with the features of
//! the modelled set.

pub mod admit;
pub mod case;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[expect(unsafe_code, reason = "runs machine code in a child process and shares memory with it")]
pub mod judge;
pub mod rng;
pub mod state;
pub mod window;

pub use case::{Case, CaseResult, Code, Crash, Fault, Outcome, Placement, Scope};
pub use state::{CpuState, X87State};
pub use window::{PageProtection, Window, WindowMemory, Writes};
