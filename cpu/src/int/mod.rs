//! The general-purpose instructions, by the groups of the manuals (APM vol. 3).
//!
//! Each file holds meanings; [`crate::decode`] chooses which one an encoding has.

pub(crate) mod alu;
pub(crate) mod arith;
pub(crate) mod atomic;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod decimal;
pub(crate) mod mov;
pub(crate) mod port_string;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
