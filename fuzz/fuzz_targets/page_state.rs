//! Buffers of page state changes: see `hypervisor::snp::ghcb::fuzz::fuzz_page_state` for what an input is and what must hold.
#![no_main]

use hypervisor::snp::ghcb::fuzz::fuzz_page_state;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzz_page_state(input));
