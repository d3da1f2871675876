//! IGVM files, as they are and with their checksum made right: see `bifold::loader::igvm::fuzz_igvm` for what must hold.
#![no_main]

use bifold::loader::igvm::{IgvmFuzz, fuzz_igvm};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Any refusal is a good answer; a panic is not.
    let _ = fuzz_igvm(input, IgvmFuzz::AsGiven);
    let _ = fuzz_igvm(input, IgvmFuzz::Checksummed);
});
