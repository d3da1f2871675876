//! A case (code, registers, memory) and what came of it.
//!
//! [`Code`] can only be made by [`Code::admit`], which refuses what must not run natively; so a [`Case`] is always
//! one that a judge may execute.

use crate::admit::{self, Refused};
use crate::state::CpuState;
use crate::window::{Window, Writes};

/// Bytes of code a case may have.
pub const MAX_CODE: usize = 31;
/// Linear address at which the code of an [`Placement::Inline`] case starts.
pub const CODE_ADDRESS: u64 = CODE_PAGE + 0x800;
/// Linear address of the page that holds the code. Around the code it is filled with INT3; the next page is not
/// present.
pub const CODE_PAGE: u64 = 0x1b50_0000;

/// Code that may run natively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    bytes: [u8; MAX_CODE],
    len: u8,
    scope: Scope,
}

impl Code {
    /// Admits `bytes` (one instruction, or a short straight-line sequence) if every instruction in it may run
    /// natively. An encoding that does not decode is admitted as the last one: its case is about #UD.
    pub fn admit(bytes: &[u8]) -> Result<Code, Refused> {
        let scope = admit::admit(bytes)?;
        let mut code = Code { bytes: [0; MAX_CODE], len: bytes.len() as u8, scope };
        code.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(code)
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
    /// How much state it can touch.
    pub fn scope(&self) -> Scope {
        self.scope
    }
}

/// How much state is loaded, saved and compared. Less is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Scope {
    /// General registers and flags.
    Registers = 0,
    /// And memory.
    Memory = 1,
    /// And vectors, MXCSR and x87.
    Full = 2,
}

/// Where the code lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Placement {
    /// At [`CODE_ADDRESS`], with a way out behind it.
    #[default]
    Inline,
    /// The first `n` bytes are the last of the code page; the rest would lie in a page that is not present, so that
    /// an instruction longer than `n` is a #PF on fetch there. `n` is clipped to the length of the code.
    PageEnd(u8),
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The code.
    pub code: Code,
    /// Where it lies.
    pub placement: Placement,
    /// Registers before. Bits outside [`crate::state::RFLAGS_FREE`] and MXCSR bits 16 to 31 are ignored.
    pub state: CpuState,
    /// Memory before.
    pub window: Window,
    /// How much is compared; at least what [`Code::scope`] says.
    pub scope: Scope,
}

impl Case {
    /// `code` on default registers and memory.
    pub fn new(code: Code) -> Case {
        Case {
            scope: code.scope(),
            code,
            placement: Placement::Inline,
            state: CpuState::default(),
            window: Window::default(),
        }
    }
    /// Bytes of the code that lie in the present page.
    pub fn present_len(&self) -> usize {
        match self.placement {
            Placement::Inline => self.code.bytes().len(),
            Placement::PageEnd(n) => self.code.bytes().len().min(n as usize),
        }
    }
    /// RIP at the start.
    pub fn rip(&self) -> u64 {
        match self.placement {
            Placement::Inline => CODE_ADDRESS,
            Placement::PageEnd(_) => CODE_PAGE + crate::window::PAGE - self.present_len() as u64,
        }
    }
}

/// An exception that the code raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code; 0 for exceptions that have none.
    pub error_code: u32,
    /// CR2, for a #PF.
    pub cr2: Option<u64>,
    /// Saved RIP, from the start of the code.
    pub rip_delta: i64,
}

/// Why no answer can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The code did not come to an end.
    Hang,
    /// The child was killed by this signal.
    Signal(i32),
    /// The child left with this code.
    Exit(i32),
}

/// How the code ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end, or branched away; RIP from the start of the code.
    Completed {
        /// Bytes from the first byte of the code to the new RIP.
        rip_delta: i64,
    },
    /// It raised an exception.
    Fault(Fault),
    /// The child that executed it was lost.
    Crashed(Crash),
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// How it ended.
    pub outcome: Outcome,
    /// Registers after. What is outside the case's scope is as before.
    pub state: CpuState,
    /// Memory that changed.
    pub writes: Writes,
}
