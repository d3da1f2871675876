//! Bifold: an x86-64 machine in software whose memory virtualisation is the point.
//!
//! - [`loader`]: images, and how they get into a guest's memory.

#![forbid(unsafe_code)]

pub mod loader;
