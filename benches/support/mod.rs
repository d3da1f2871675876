//! What the speed report is made of.

pub mod generate;
pub mod guest;
pub mod markers;
pub mod native;
pub mod newc;
pub mod program;
pub mod report;
