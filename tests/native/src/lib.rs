//! Executes single instructions on the host processor in a guarded child, as a judge of the interpreter.
//!
//! - [`Case`] is code with the registers and the memory it starts from; [`CaseResult`] is what came of it.
//!   [`state`] and [`window`] are what the code sees.
//! - [`admit`] decides what may run natively; a [`Code`] is proof that it decided so.
//! - [`judge::Judge`] executes cases on the host.
//! - [`generator`] makes cases from a seed, with operand values from [`values`].
//! - [`compare()`] tells where two results differ; [`casefile`] writes cases as lines of text and reads them.
//! - [`driver::run_differential`] does all of it for an interpreter given as a closure.
//!
//! Always true: a case is a pure function of its bytes; a judge answers every case it is given, if need be with
//! [`Outcome::Crashed`]. Only user mode, 64 bits, flat segments; the host must be x86-64 Linux with the features of
//! the modelled set.

pub mod admit;
pub mod case;
pub mod casefile;
pub mod compare;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod driver;
pub mod generator;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod judge;
pub mod reach;
pub mod rng;
pub mod state;
pub mod values;
pub mod window;

pub use case::{Case, CaseResult, Code, Crash, Fault, Outcome, Placement, Scope};
pub use compare::{Comparison, Mismatch, compare};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use driver::run_differential;
pub use state::{CpuState, X87State};
pub use window::{PageProtection, Window, WindowMemory, Writes};
