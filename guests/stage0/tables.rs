//! Page tables of our own: the first 512 GiB one to one, in pages of 1 GiB, all of it private.
#![expect(unsafe_code, reason = "the processor reads these tables")]

use core::arch::asm;
use core::cell::UnsafeCell;

const PRESENT_WRITABLE: u64 = 3;
const PAGE_SIZE_BIT: u64 = 1 << 7;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: one processor runs this program.
unsafe impl Sync for Table {}

static ROOT: Table = Table(UnsafeCell::new([0; 512]));
static POINTERS: Table = Table(UnsafeCell::new([0; 512]));

/// Fills the tables and loads CR3.
pub fn load(c_bit: u64) {
    let encrypted = 1 << c_bit;
    // SAFETY: nothing else refers to the tables yet.
    unsafe {
        for (n, entry) in (*POINTERS.0.get()).iter_mut().enumerate() {
            *entry = (n as u64) << 30 | PAGE_SIZE_BIT | PRESENT_WRITABLE | encrypted;
        }
        (*ROOT.0.get())[0] = POINTERS.0.get() as u64 | PRESENT_WRITABLE | encrypted;
        // SAFETY: the program, its stack and all it touches lie below 512 GiB and stay where they are.
        asm!("mov cr3, {}", in(reg) ROOT.0.get() as u64 | encrypted, options(nostack));
    }
}
