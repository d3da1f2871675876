//! Floating point in vector registers, and the images in which all of that state is saved.
//!
//! - [`mxcsr`]: LDMXCSR and STMXCSR.
//! - [`area`], [`fxsave`], [`xsave`]: FXSAVE, XSAVE and their kin.
//!
//! Sources: Intel SDM vol. 1, chapters 10 to 14; APM vol. 1, "Streaming SIMD Extensions Media and Scientific
//! Programming"; APM vol. 2, "Saving Media and x87 State".

pub(crate) mod area;
pub(crate) mod fxsave;
pub(crate) mod mxcsr;
pub(crate) mod xsave;
