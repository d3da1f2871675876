//! The other processors: started by INIT and SIPI, given one piece of work, waited for.
#![expect(unsafe_code, reason = "the local APIC, and assembly that starts a processor")]

use core::arch::global_asm;
use core::arch::x86_64::__cpuid_count;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::*};

use crate::console::{Verdict, exit};
use crate::memory::{self, load, memcpy, store};
use crate::println;
use crate::steps::{self, Area, Failure};

global_asm!(include_str!("../builtin/boot.s"));
global_asm!(include_str!("start.s"));

/// As many as there are stacks for.
const MOST: u64 = 4;
/// Where the processors' areas begin: above the image, 2 MiB aligned.
pub const AREAS: u64 = 32 << 20;
const MEMORY_NEEDED: u64 = 60 << 20;
/// Where the code for a starting processor goes: a SIPI names its page.
const START_PAGE: u64 = 0x8000;
/// The local APIC's interrupt command register, and its messages: to all but the sender.
const ICR: u64 = 0xfee0_0300;
const INIT: u32 = 0x000c_4500;
const SIPI: u32 = 0x000c_4600 | (START_PAGE >> 12) as u32;

unsafe extern "C" {
    static start_begin: u8;
    static start_end: u8;
}

/// Arrived, told to begin, done.
static ARRIVED: AtomicU64 = AtomicU64::new(0);
static BEGIN: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
static BASE: AtomicU64 = AtomicU64::new(0);
static PRIVATE: AtomicU64 = AtomicU64::new(0);

struct Outcomes(UnsafeCell<[Result<u64, Failure>; MOST as usize]>);
// SAFETY: each processor writes its own place before it counts itself in DONE; the first reads after it saw all of them.
unsafe impl Sync for Outcomes {}
static OUTCOMES: Outcomes = Outcomes(UnsafeCell::new([Ok(0); MOST as usize]));

/// Logical processors of the package: CPUID leaf 0xB, the level above threads.
fn count() -> u64 {
    u64::from(__cpuid_count(0xb, 1).ebx.max(1))
}

/// Says what guest this is and on what it runs: the end of low RAM, and how many processors there are. Ends the run where
/// they do not do.
pub fn ready(guest: &str, start_info: u64) -> (u64, u64) {
    let map = memory::Map::read(start_info);
    let count = count();
    let low_end = map.ram().iter().filter(|r| r.end <= 3 << 30).map(|r| r.end).max().unwrap_or(0);
    println!("bifold {guest} on {count} processors, {} MiB", map.ram_bytes() >> 20);
    if low_end < MEMORY_NEEDED || count > MOST {
        println!("FAIL: needed are 64 MiB and at most {MOST} processors");
        exit(Verdict::TooLittleMemory);
    }
    (low_end, count)
}

/// Starts the other processors and waits until all of `count` are there.
pub fn start_others(count: u64) {
    ARRIVED.store(1, SeqCst);
    if count == 1 {
        return;
    }
    let (begin, end) = (&raw const start_begin, &raw const start_end);
    // SAFETY: the page is low RAM that nothing else uses; the code has no absolute reference to itself.
    unsafe { memcpy(START_PAGE as *mut u8, begin, end as usize - begin as usize) };
    let send = |message: u32| {
        store(ICR, message);
        while load::<u32>(ICR) & 1 << 12 != 0 {}
    };
    send(INIT);
    send(SIPI);
    while ARRIVED.load(SeqCst) < count {
        core::hint::spin_loop();
    }
}

/// Every processor works on its area, all at once.
pub fn run(count: u64, areas: u64, private: bool) {
    BASE.store(areas, SeqCst);
    PRIVATE.store(private.into(), SeqCst);
    BEGIN.store(1, SeqCst);
    work(0);
    while DONE.load(SeqCst) < count {
        core::hint::spin_loop();
    }
}

/// How processor `n` fared, after [`run`].
pub fn outcome(n: u64) -> Result<u64, Failure> {
    // SAFETY: every processor is done.
    unsafe { (*OUTCOMES.0.get())[n as usize] }
}

fn work(n: u64) {
    let outcome = steps::all(Area::of(n, BASE.load(SeqCst)), PRIVATE.load(SeqCst) != 0);
    // SAFETY: the place is this processor's.
    unsafe { (*OUTCOMES.0.get())[n as usize] = outcome };
    DONE.fetch_add(1, SeqCst);
}

/// Called by `start.s` on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn processor_main(n: u64) -> ! {
    ARRIVED.fetch_add(1, SeqCst);
    while BEGIN.load(SeqCst) == 0 {
        core::hint::spin_loop();
    }
    work(n);
    crate::cpu::halt()
}
