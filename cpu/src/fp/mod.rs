//! Floating point in vector registers, and the images in which all of that state is saved.
//!
//! - [`operand`]: elements, sources, flags and exceptions; [`arith`], [`fma`], [`compare`], [`convert`], [`mmx`]: the
//!   instructions. Values come from [`crate::softfloat`].
//! - [`mxcsr`]: LDMXCSR and STMXCSR.
//! - [`area`], [`fxsave`], [`xsave`]: FXSAVE, XSAVE and their kin.
//!
//! An instruction computes all its elements in one environment, adds their flags to MXCSR, and writes its destination
//! only if none of them is unmasked; otherwise it raises #XM, or #UD while CR4.OSXMMEXCPT is clear.
//!
//! Sources: Intel SDM vol. 1, chapters 10 to 14; APM vol. 1, "Streaming SIMD Extensions Media and Scientific
//! Programming"; APM vol. 2, "Saving Media and x87 State".

pub(crate) mod area;
pub(crate) mod arith;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod fma;
pub(crate) mod fxsave;
pub(crate) mod mmx;
pub(crate) mod mxcsr;
pub(crate) mod operand;
pub(crate) mod xsave;
