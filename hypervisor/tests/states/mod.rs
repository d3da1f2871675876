//! The state machine of `state_machine.rs`: a plain model, the VM, and how calls are chosen.

pub mod model;
pub mod ops;
pub mod system;

use super::reader;
