//! Texts of the VMM's scripts: see `bifold::vmm::fuzz::fuzz_script`.
#![no_main]

use bifold::vmm::fuzz::fuzz_script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Any refusal is a good answer; a panic is not.
    let _ = fuzz_script(input);
});
