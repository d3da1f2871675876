//! The guest that converts its memory: ranges of every size and alignment become private, in part shared again, and shared,
//! are punched and allocated, while their contents and those around them are verified from inside.
//!
//! It follows the course of KVM's selftest for private memory (private_mem_conversions_test): every processor works on an
//! area of its own, all at once, and the first then does the same with a GiB where there is one. Conversion in place keeps
//! bytes, a hole reads as zero, and neither touches a byte outside its range. Under a VM without private memory it says so
//! and checks holes and allocation alone.
//!
//! COM1 shows a line for each step; the machine is switched off when all is well, and the debug-exit port tells what is
//! not.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, unsafe_code)]

// What the guests have in common lives with the first of them.
#[path = "../builtin/console.rs"]
#[allow(dead_code, reason = "shared with the other guest")]
mod console;
#[path = "../builtin/cpu.rs"]
#[allow(dead_code, reason = "shared with the other guest")]
mod cpu;
mod hypercall;
#[path = "../builtin/memory.rs"]
#[allow(dead_code, reason = "shared with the other guest")]
mod memory;
#[path = "../builtin/paging.rs"]
#[allow(dead_code, reason = "shared with the other guest")]
mod paging;
mod processors;
mod steps;

use console::{Verdict, exit};
use processors::AREAS;
use steps::{Area, Failure};

/// The 1 GiB page that is converted as a whole, where RAM holds it.
const GIB: u64 = 1 << 30;

/// Called by `boot.s` with the physical address of `hvm_start_info`.
#[expect(unsafe_code, reason = "assembly calls it by this name")]
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    console::init();
    let (low_end, count) = processors::ready("conversions", start_info);
    let private = match hypercall::probe(AREAS) {
        Ok(offered) => offered,
        Err(failure) => failed("hypercalls", 0, failure),
    };
    println!("{}", if private { "memory can be private" } else { "no private memory here: holes alone" });
    processors::start_others(count);
    processors::run(count, AREAS, private);
    for n in 0..count {
        match processors::outcome(n) {
            Ok(checks) => println!("processor {n}: {checks} checks ok"),
            Err(failure) => failed("its area", n, failure),
        }
    }
    if low_end >= 2 * GIB {
        match steps::all(Area::gib(GIB), private) {
            Ok(checks) => println!("a GiB: {checks} checks ok"),
            Err(failure) => failed("a GiB", 0, failure),
        }
    }
    println!("PASS");
    exit(Verdict::Passed)
}

fn failed(what: &str, processor: u64, failure: Failure) -> ! {
    println!("FAIL: {what} of processor {processor}: {failure}");
    exit(Verdict::ChecksFailed)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    exit(Verdict::Panicked)
}
