//! Controlled threads: what the pipeline does when its steps interleave, chosen and repeatable.
//!
//! The pipeline offers a [`emu_core::sync::Schedule`] every point and every lock. Here that schedule is a chooser, and
//! each thread a coroutine on one host thread, so that an interleaving is a list of small numbers.
//!
//! - [`Threads`] steps threads one at a time, in whatever order the caller likes.
//! - [`Strategy`] is who chooses: at random, by priorities with few changes (PCT), exhaustively with a bound on
//!   preemptions, or as recorded.
//! - [`explore`] runs a scenario under a strategy until something breaks; [`shrink`] makes what it found shorter;
//!   [`timeline`] shows it in columns.
//!
//! Always true: the same scenario and the same choices give the same trace. A thread that panics, a state in which none
//! can run, and a run that does not end are findings, like a check that fails.
#![forbid(unsafe_code)]

mod explore;
mod strategy;
mod threads;
pub mod timeline;

pub use explore::{Body, Finding, Program, Progress, Scenario, Step, Stopped, explore, replay, shrink};
pub use strategy::{Exhaustive, Pct, Random, Recorded, Strategy};
pub use threads::{Pause, Status, ThreadId, Threads};
