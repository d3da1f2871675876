//! stage0: what runs first in an SNP guest whose launch covers little memory. It makes the rest of RAM valid with PVALIDATE, 2
//! MiB at a time where the host has assigned it so, prepares what a Linux kernel wants to find, and jumps to it.
//!
//! It executes nothing that would need a handler of #VC: no CPUID, no port, and of the registers only those that an
//! encrypted guest may always reach. It speaks with the hypervisor by the GHCB MSR protocol alone. Where it cannot go on it
//! asks to be terminated, with a reason of [`parameters::Reason`].
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, unsafe_code)]

mod linux;
mod memory;
mod parameters;
mod snp;
mod tables;
mod validate;

use parameters::{Parameters, Reason};

#[expect(unsafe_code, reason = "defined in assembly")]
unsafe extern "C" {
    fn jump_to_kernel(entry: u64, boot_params: u64) -> !;
}

/// Called by `start.s` with what the loader says.
#[expect(unsafe_code, reason = "assembly calls it by this name and passes an address")]
#[unsafe(no_mangle)]
extern "C" fn stage0_main(parameters: &Parameters) -> ! {
    match run(parameters) {
        // SAFETY: the kernel is there, valid and private, and never returns.
        Ok(entry) => unsafe { jump_to_kernel(entry, parameters.boot_params) },
        Err(reason) => snp::terminate(reason),
    }
}

fn run(parameters: &Parameters) -> Result<u64, Reason> {
    if !snp::is_active() {
        return Err(Reason::NotSnp);
    }
    if parameters.magic != Parameters::MAGIC || !(32..=51).contains(&parameters.c_bit) {
        return Err(Reason::Parameters);
    }
    if !snp::negotiate() {
        return Err(Reason::Protocol);
    }
    tables::load(parameters.c_bit);
    validate::all(parameters)?;
    linux::prepare(parameters)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    snp::terminate(Reason::Panic)
}
