//! Placeholder, replaced by the crate's introduction.
#![forbid(unsafe_code)]
