//! IEEE 754 and x87 arithmetic in integers, with x86 results and status flags.
//!
//! Models what Intel SDM vol. 1, chapters 4, 8, 10, 11 and 14 say about one floating-point operation: the value, the
//! exception flags, what masks change, NaN rules. Values are bit patterns: `u16`, `u32`, `u64` by the markers [`F16`],
//! [`F32`], [`F64`], and [`F80`]. Every function takes an [`Env`], made from MXCSR or from the x87 control word, and
//! accumulates flags in it; nothing here reads or changes the host's floating-point state.
//!
//! - [`env`](mod@env): rounding, masks, flags, and what an instruction leaves behind.
//! - [`arith`], [`fma`](mod@fma), [`compare`](mod@compare), [`convert`](mod@convert): the operations, one algorithm for
//!   all formats.
//! - [`approx`]: RCPPS and RSQRTPS.
//! - [`x87`]: what only x87 has.
//! - [`fast`]: the host's arithmetic where it is provably the same.
//!
//! The module depends on nothing else of the emulator.

pub mod approx;
mod approx_tables;
pub mod arith;
pub mod compare;
pub mod convert;
pub mod env;
pub mod fast;
pub mod fma;
pub mod format;
mod round;
pub mod x87;

pub use approx::{reciprocal, reciprocal_sqrt};
pub use arith::{add, add_mixed, div, div_mixed, mul, mul_mixed, sqrt, sub, sub_mixed};
pub use compare::{NanRule, Predicate, Relation, compare, compare_mixed, max, min};
pub use convert::{IntWidth, PrecisionReport, convert, from_i64, round_to_integral, to_signed};
pub use env::{Destination, Env, Flags, Rounding};
pub use fma::{fma, negate_number};
pub use format::{F32, F64, F80, Format};
#[cfg(test)]
use {
    env::Outcome,
    format::{Class, F16},
};

#[cfg(test)]
mod tests;
