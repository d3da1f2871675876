//! Placeholder group, replaced with the walker.
fn main() {}
