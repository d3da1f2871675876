//! Bifold: an x86-64 machine in software whose memory virtualisation is the point.
//!
//! - [`config`]: what can be configured, in which limits.
//! - [`machine`]: the whole computer, built and run.
//! - [`loader`]: images, and how they get into a guest's memory.
//! - [`vmm`]: the program in user space beside the machine: conversions, scripts.
//! - [`explore`]: races of the memory pipeline, found by machine.
//! - [`trace`]: the events of a run, recorded and written.
//! - [`report`]: a run as one page.
//! - [`cli`]: the `bifold` command.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod explore;
pub mod loader;
pub mod machine;
pub mod report;
pub mod trace;
pub mod vmm;
