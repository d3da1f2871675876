//! Histories of the reverse map: see `run_bytes` in mmu/tests/rmp/bytes.rs for what an input is and what must hold.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../mmu/tests/rmp/bytes.rs"]
mod bytes;
#[path = "../../mmu/tests/rmp/rig.rs"]
mod rig;

fuzz_target!(|input: &[u8]| bytes::run_bytes(input));
