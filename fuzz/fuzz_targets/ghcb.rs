//! A value of the GHCB MSR and a GHCB page: see `hypervisor::snp::ghcb::fuzz::fuzz_ghcb` for what an input is and what must hold.
#![no_main]

use hypervisor::snp::ghcb::fuzz::fuzz_ghcb;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzz_ghcb(input));
