//! Descriptor tables, the trap handler, and accesses that may fault.
//!
//! Every access that is allowed to fault goes through [`probe`], an assembly function: what a trap handler may clobber
//! is then what any call may clobber.
#![expect(unsafe_code, reason = "descriptor tables and calls into assembly")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::console::{Verdict, exit};
use crate::paging::{self, Size, Space};
use crate::{cpu, memory, println};

global_asm!(include_str!("boot.s"));
global_asm!(include_str!("traps.s"));

unsafe extern "C" {
    static trap_stubs: [[u8; 16]; 33];
    static trap_stack_top: u8;
    static double_fault_stack_top: u8;
    static user_code: u8;
    static user_code_end: u8;
    static probe_rsp: AtomicU64;
    static probe_resume: u8;
    fn probe_supervisor(address: u64, which: u64, value: u64) -> u64;
    fn probe_user(address: u64, which: u64, value: u64, rip: u64, rsp: u64) -> u64;
}

/// What `traps.s` pushes, and the processor before it.
#[repr(C)]
struct Frame {
    general: [u64; 14],
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

const KERNEL_CODE: u64 = 0x08;
const KERNEL_DATA: u64 = 0x10;
const PAGE_FAULT: u64 = 14;
const DOUBLE_FAULT: usize = 8;
/// The stub that stands for vector 0x80.
const LEAVE_USER: u64 = 32;

/// Null, kernel code and data, user data and code, TSS in two.
static mut GDT: [u64; 7] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0, 0];
static mut TSS: [u32; 26] = [0; 26];
static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Installs GDT, TSS and IDT.
pub fn init() {
    let (gdt, tss, idt) = (&raw mut GDT, &raw mut TSS, &raw mut IDT);
    // SAFETY: one processor, interrupts off, called once: nobody else looks at the tables while they are written.
    unsafe {
        let put = |offset: usize, value: u64| {
            (*tss)[offset / 4] = value as u32;
            (*tss)[offset / 4 + 1] = (value >> 32) as u32;
        };
        put(4, &raw const trap_stack_top as u64);
        put(36, &raw const double_fault_stack_top as u64);
        // No I/O permission bitmap: its base is the limit.
        (*tss)[25] = 104 << 16;

        let base = tss as u64;
        (*gdt)[5] = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*gdt)[6] = base >> 32;

        for vector in 0..32 {
            let ist = if vector == DOUBLE_FAULT { 1 } else { 0 };
            (*idt)[vector] = gate(&raw const trap_stubs[vector] as u64, 0, ist);
        }
        (*idt)[0x80] = gate(&raw const trap_stubs[LEAVE_USER as usize] as u64, 3, 0);

        let gdtr = TablePointer { limit: 55, base: gdt as u64 };
        let idtr = TablePointer { limit: 4095, base: idt as u64 };
        asm!("lgdt [{}]", "lidt [{}]", "ltr {:x}", in(reg) &gdtr, in(reg) &idtr, in(reg) 0x28, options(nostack));
    }
}

/// An interrupt gate.
fn gate(target: u64, dpl: u64, ist: u64) -> [u64; 2] {
    let low = target & 0xffff | KERNEL_CODE << 16 | ist << 32 | (0x8e | dpl << 5) << 40 | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

/// What kind of access.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Op {
    Read = 0,
    Write = 1,
    /// Calls the address, which holds a RET.
    Execute = 2,
    /// ADD to memory.
    Modify = 3,
}

/// A trap that an access ended in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    pub vector: u64,
    pub error: u64,
    /// CR2, for page faults.
    pub address: u64,
}

static PROBING: AtomicBool = AtomicBool::new(false);
static TRAPPED: AtomicBool = AtomicBool::new(false);
static TRAP_VECTOR: AtomicU64 = AtomicU64::new(0);
static TRAP_ERROR: AtomicU64 = AtomicU64::new(0);
static TRAP_ADDRESS: AtomicU64 = AtomicU64::new(0);
static PAGE_FAULTS: AtomicU32 = AtomicU32::new(0);
static DEMAND_FAULTS: AtomicU32 = AtomicU32::new(0);

fn collect(result: u64) -> Result<u64, Trap> {
    PROBING.store(false, Relaxed);
    if !TRAPPED.load(Relaxed) {
        return Ok(result);
    }
    Err(Trap {
        vector: TRAP_VECTOR.load(Relaxed),
        error: TRAP_ERROR.load(Relaxed),
        address: TRAP_ADDRESS.load(Relaxed),
    })
}

/// Makes one access in ring 0: what was read, or how it trapped.
pub fn probe(address: u64, op: Op, value: u64) -> Result<u64, Trap> {
    TRAPPED.store(false, Relaxed);
    PROBING.store(true, Relaxed);
    // SAFETY: a trap comes back through `probe_resume`; what is written is a frame of a test.
    collect(unsafe { probe_supervisor(address, op as u64, value) })
}

/// A page of code and one of stack for ring 3.
#[derive(Clone, Copy)]
pub struct UserMode {
    code: u64,
    stack_top: u64,
}

impl UserMode {
    /// Maps the two pages at `at`.
    pub fn new(space: Space, at: u64) -> UserMode {
        let (code, stack) = (memory::take(Size::K4), memory::take_zeroed());
        let (start, end) = (&raw const user_code as u64, &raw const user_code_end as u64);
        for offset in 0..end - start {
            memory::store::<u8>(code + offset, memory::load::<u8>(start + offset));
        }
        space.map(at, code, Size::K4, paging::U);
        space.map(at + 0x1000, stack, Size::K4, paging::U | paging::W);
        UserMode { code: at, stack_top: at + 0x2000 }
    }

    /// Makes one access in ring 3.
    pub fn probe(self, address: u64, op: Op, value: u64) -> Result<u64, Trap> {
        TRAPPED.store(false, Relaxed);
        PROBING.store(true, Relaxed);
        // SAFETY: ring 3 comes back by a trap or by INT 0x80, both through `probe_resume`.
        collect(unsafe { probe_user(address, op as u64, value, self.code, self.stack_top) })
    }
}

/// A range that the page-fault handler fills as it is touched.
static DEMAND_BASE: AtomicU64 = AtomicU64::new(0);
static DEMAND_END: AtomicU64 = AtomicU64::new(0);
static DEMAND_LEVEL: AtomicU32 = AtomicU32::new(0);

/// From now on the handler backs `base..end` with pages of `size`.
pub fn demand(base: u64, end: u64, size: Size) {
    DEMAND_LEVEL.store(size.level(), Relaxed);
    DEMAND_BASE.store(base, Relaxed);
    DEMAND_END.store(end, Relaxed);
}

/// Page faults taken so far: all, and those that the handler answered with a page.
pub fn fault_counts() -> (u32, u32) {
    (PAGE_FAULTS.load(Relaxed), DEMAND_FAULTS.load(Relaxed))
}

/// Backs the page of `address` when it lies in the demand range and was not present.
fn answered(address: u64, error: u64) -> bool {
    let wanted = (DEMAND_BASE.load(Relaxed)..DEMAND_END.load(Relaxed)).contains(&address);
    if !wanted || error & paging::P != 0 {
        return false;
    }
    let size = Size::ALL[DEMAND_LEVEL.load(Relaxed) as usize - 1];
    let frame = match size {
        // The only 1 GiB page that every machine has RAM in.
        Size::G1 => 0,
        Size::K4 | Size::M2 => memory::take(size),
    };
    Space::current().map(address & !(size.bytes() - 1), frame, size, paging::W);
    DEMAND_FAULTS.fetch_add(1, Relaxed);
    true
}

#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &mut Frame) {
    let address = cpu::cr2();
    if frame.vector == PAGE_FAULT {
        PAGE_FAULTS.fetch_add(1, Relaxed);
        if answered(address, frame.error) {
            return;
        }
    }
    if !PROBING.load(Relaxed) {
        println!("trap {} error {:#x} at {:#x}, CR2 {:#x}", frame.vector, frame.error, frame.rip, address);
        exit(Verdict::UnexpectedTrap);
    }
    if frame.vector != LEAVE_USER {
        TRAPPED.store(true, Relaxed);
        TRAP_VECTOR.store(frame.vector, Relaxed);
        TRAP_ERROR.store(frame.error, Relaxed);
        TRAP_ADDRESS.store(address, Relaxed);
    }
    frame.rip = &raw const probe_resume as u64;
    frame.cs = KERNEL_CODE;
    frame.ss = KERNEL_DATA;
    // SAFETY: written by the probe that is running.
    frame.rsp = unsafe { probe_rsp.load(Relaxed) };
    // AC must not leak out of a probe, and the direction flag must not either.
    frame.rflags &= !(1 << 18 | 1 << 10);
}
