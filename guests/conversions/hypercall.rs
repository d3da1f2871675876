//! Asking the VMM: KVM's hypercall 12 and the two of Bifold's own (docs/running.md, "Kinds of VM").
#![expect(unsafe_code, reason = "VMCALL and VMMCALL")]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::cpu::Features;
use crate::steps::{Failure, equal};

const MAP_GPA_RANGE: u64 = 12;
const PUNCH: u64 = 0xb1_f000;
const ALLOCATE: u64 = 0xb1_f001;
const PRIVATE: u64 = 1 << 4;

const EINVAL: u64 = -22_i64 as u64;
const ENOSYS: u64 = -1000_i64 as u64;

static INTEL: AtomicBool = AtomicBool::new(false);

fn call(number: u64, first: u64, second: u64, third: u64) -> u64 {
    let answer;
    // SAFETY: the hypercalls used here change who may use memory, or make memory read as zero that is no Rust object's.
    // RBX is the compiler's own, so it is lent.
    unsafe {
        if INTEL.load(Relaxed) {
            asm!("xchg rbx, {0}", "vmcall", "xchg rbx, {0}", inout(reg) first => _, inout("rax") number => answer,
                 in("rcx") second, in("rdx") third, options(nostack));
        } else {
            asm!("xchg rbx, {0}", "vmmcall", "xchg rbx, {0}", inout(reg) first => _, inout("rax") number => answer,
                 in("rcx") second, in("rdx") third, options(nostack));
        }
    }
    answer
}

/// Who may use a range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    Private,
    Shared,
}

/// Converts whole pages.
pub fn convert(address: u64, bytes: u64, to: To) -> Result<(), Failure> {
    let attributes = if to == To::Private { PRIVATE } else { 0 };
    equal("answer to a conversion", address, 0, call(MAP_GPA_RANGE, address, bytes >> 12, attributes))
}

/// Makes whole pages read as zero.
pub fn punch(address: u64, bytes: u64) -> Result<(), Failure> {
    equal("answer to a hole", address, 0, call(PUNCH, address, bytes >> 12, 0))
}

/// Allocates whole pages.
pub fn allocate(address: u64, bytes: u64) -> Result<(), Failure> {
    equal("answer to an allocation", address, 0, call(ALLOCATE, address, bytes >> 12, 0))
}

/// Whether memory can be private; that impossible calls are refused, and how.
pub fn probe(page: u64) -> Result<bool, Failure> {
    INTEL.store(&Features::read().vendor == b"GenuineIntel", Relaxed);
    equal("an unknown call", 0, ENOSYS, call(13, page, 1, 0))?;
    // No call of the right number changes anything here: a page that is shared becomes shared.
    let offered = match call(MAP_GPA_RANGE, page, 1, 0) {
        0 => true,
        ENOSYS => false,
        answer => {
            return Err(Failure { what: "a conversion that changes nothing", at: page, expected: 0, seen: answer });
        }
    };
    let nothing_there = 1 << 45;
    let wrong = [(page + 1, 1, 0), (page, 0, 0), (page, u64::MAX, 0), (page, 1, 1 << 5), (page, 1, 3)];
    for (address, pages, attributes) in wrong.into_iter().chain([(nothing_there, 1, 0)]) {
        if offered || address != nothing_there {
            equal("an impossible conversion", address, EINVAL, call(MAP_GPA_RANGE, address, pages, attributes))?;
        }
    }
    equal("a hole where nothing is", nothing_there, EINVAL, call(PUNCH, nothing_there, 1, 0))?;
    Ok(offered)
}
