//! Where things lie in the child's address space, and what parent and child share.
//!
//! Everything an entry or exit of a case touches lies below 2 GiB at a fixed place, so that it can be reached by an
//! absolute 32-bit displacement: no register belongs to the machinery while the case runs.

use std::sync::atomic::AtomicU32;

use crate::state::{CpuState, X87State};
use crate::window::{Line, MAX_LINES, Window};

/// The page of [`Context`].
pub const CONTEXT: usize = 0x1b60_0000;
/// Writable alias of all windows, one behind the other.
pub const ALIAS: usize = 0x1b70_0000;
/// Slots in the ring.
pub const SLOTS: usize = 512;
/// Bytes of the block that holds code, exit jump and INT3 filling.
pub const BLOCK: usize = 64;

/// What entry, exit and signal handler work on. Offsets are known to the assembly (checked below).
#[repr(C, align(64))]
pub struct Context {
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub host_rsp: u64,
    /// Where the case starts.
    pub entry: u64,
    /// Where the case ends up.
    pub exit: u64,
    /// Nonzero while the case runs: a signal belongs to it.
    pub in_guest: u64,
    /// Nonzero when vectors and x87 are loaded and saved too.
    pub full: u64,
    pub fault: RawFault,
    pub host_mxcsr: u32,
    /// TF was set when the case ended.
    pub single_step: u32,
    pub pad: [u32; 8],
    pub fxsave: FxArea,
    pub ymm: [[u64; 4]; 16],
}

/// What the signal handler saw.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawFault {
    pub taken: u64,
    pub vector: u64,
    pub error_code: u64,
    pub cr2: u64,
    pub rip: u64,
}

/// The FXSAVE64 image.
#[repr(C, align(64))]
pub struct FxArea {
    pub fcw: u16,
    pub fsw: u16,
    pub ftw: u8,
    pub reserved: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub mxcsr: u32,
    pub mxcsr_mask: u32,
    pub st: [[u8; 16]; 8],
    pub xmm: [[u8; 16]; 16],
    pub tail: [u8; 96],
}

impl FxArea {
    /// Takes the x87 state and MXCSR to load.
    pub fn load(&mut self, x87: &X87State, mxcsr: u32) {
        (self.fcw, self.fsw, self.ftw) = (x87.fcw, x87.fsw, x87.ftw);
        (self.fop, self.fip, self.fdp, self.mxcsr) = (0, 0, 0, mxcsr);
        for (to, from) in self.st.iter_mut().zip(&x87.st) {
            to[..10].copy_from_slice(from);
        }
    }
    /// Gives the x87 state that was saved.
    pub fn x87(&self) -> X87State {
        let mut x87 = X87State { fcw: self.fcw, fsw: self.fsw, ftw: self.ftw, st: [[0; 10]; 8] };
        for (to, from) in x87.st.iter_mut().zip(&self.st) {
            to.copy_from_slice(&from[..10]);
        }
        x87
    }
}

pub const OFF_RFLAGS: usize = 0x80;
pub const OFF_HOST_RSP: usize = 0x88;
pub const OFF_ENTRY: usize = 0x90;
pub const OFF_EXIT: usize = 0x98;
pub const OFF_FULL: usize = 0xa8;
pub const OFF_HOST_MXCSR: usize = 0xd8;
pub const OFF_FXSAVE: usize = 0x100;
pub const OFF_YMM: usize = 0x300;

const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(offset_of!(Context, rflags) == OFF_RFLAGS);
    assert!(offset_of!(Context, host_rsp) == OFF_HOST_RSP);
    assert!(offset_of!(Context, entry) == OFF_ENTRY);
    assert!(offset_of!(Context, exit) == OFF_EXIT);
    assert!(offset_of!(Context, full) == OFF_FULL);
    assert!(offset_of!(Context, host_mxcsr) == OFF_HOST_MXCSR);
    assert!(offset_of!(Context, fxsave) == OFF_FXSAVE);
    assert!(offset_of!(Context, ymm) == OFF_YMM);
    assert!(size_of::<FxArea>() == 512);
    assert!(size_of::<Context>() <= 4096);
};

/// One case on its way, and its answer on the way back.
#[repr(C, align(64))]
pub struct Slot {
    pub block: [u8; BLOCK],
    /// Bytes of the block in use when the code lies at the page end, else 0.
    pub page_end_len: u32,
    pub code_len: u32,
    pub scope: u32,
    pub state: CpuState,
    pub window: Window,
    pub answer: Answer,
}

/// The answer to one case.
#[repr(C)]
pub struct Answer {
    pub state: CpuState,
    pub fault: RawFault,
    pub line_count: u32,
    pub truncated: u32,
    pub lines: [Line; MAX_LINES],
}

/// The mapping that parent and child share. Slot `n % SLOTS` belongs to the child when
/// `completed <= n < submitted`, else to the parent.
#[repr(C, align(64))]
pub struct Shared {
    /// Cases handed over, wrapping.
    pub submitted: AtomicU32,
    pub pad0: [u32; 15],
    /// Cases answered, wrapping.
    pub completed: AtomicU32,
    pub pad1: [u32; 15],
    /// Futex the child sleeps on, and whether it does.
    pub child_bell: AtomicU32,
    pub child_sleeps: AtomicU32,
    /// Futex the parent sleeps on, and whether it does.
    pub parent_bell: AtomicU32,
    pub parent_sleeps: AtomicU32,
    /// 0 while the child sets itself up, 1 when it is ready, else the step that failed.
    pub ready: AtomicU32,
    pub pad2: [u32; 11],
    pub slots: [Slot; SLOTS],
}

/// Setup is under way.
pub const STARTING: u32 = 0;
/// The child takes cases.
pub const READY: u32 = 1;
