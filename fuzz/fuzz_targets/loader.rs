//! Images of every kind: see `bifold::loader::fuzz_one` for what an input is and what must hold.
#![no_main]

use bifold::loader::fuzz_one;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Any refusal is a good answer; a panic is not.
    let _ = fuzz_one(input);
});
