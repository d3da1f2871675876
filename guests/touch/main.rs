//! The guest that touches memory: every processor writes a word into each 4 KiB page of its share of RAM, all at once. What
//! such a run takes is first-touch faults and little else, which is what it is for.
//!
//! COM1 shows a line for each processor; the machine is switched off at the end.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, unsafe_code)]

// What the guests have in common lives with the first of them that had it.
#[path = "../builtin/console.rs"]
#[allow(dead_code, reason = "shared with the other guests")]
mod console;
#[path = "../builtin/cpu.rs"]
#[allow(dead_code, reason = "shared with the other guests")]
mod cpu;
#[path = "../builtin/memory.rs"]
#[allow(dead_code, reason = "shared with the other guests")]
mod memory;
#[path = "../builtin/paging.rs"]
#[allow(dead_code, reason = "shared with the other guests")]
mod paging;
#[path = "../conversions/processors.rs"]
mod processors;
mod steps;

use console::{Verdict, exit};
use processors::AREAS;

/// Called by `boot.s` with the physical address of `hvm_start_info`.
#[expect(unsafe_code, reason = "assembly calls it by this name")]
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    console::init();
    let (low_end, count) = processors::ready("touch", start_info);
    steps::share(low_end, count);
    processors::start_others(count);
    processors::run(count, AREAS, false);
    for n in 0..count {
        match processors::outcome(n) {
            Ok(pages) => println!("processor {n}: {pages} pages"),
            Err(failure) => {
                println!("FAIL: processor {n}: {failure}");
                exit(Verdict::ChecksFailed)
            }
        }
    }
    println!("PASS");
    exit(Verdict::Passed)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    exit(Verdict::Panicked)
}
