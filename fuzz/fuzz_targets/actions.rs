//! Sequences of the VMM's actions: see `bifold::vmm::fuzz::fuzz_actions` for what an input is and what must hold.
#![no_main]

use bifold::vmm::fuzz::fuzz_actions;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzz_actions(input));
