//! A case (code, registers, memory) and what came of it.
//!
//! Who executes a case otherwise than with the judge gives it what a 64-bit user program of Linux has: CPL 3, IOPL 0,
//! flat segments, paging with the code page and the window as described, CR0 with AM and NE, CR4 with OSFXSR,
//! OSXMMEXCPT and OSXSAVE, XCR0 with x87, SSE and AVX. It executes until RIP leaves the code, one instruction after
//! the other, or until an exception; what would follow (a fetch at the target of a branch, a trap that TF asks for)
//! is not part of the case.
//!
//! [`Code`] can only be made by [`Code::admit`], which refuses what must not run natively; so a [`Case`] is always
//! one that a judge may execute.

use crate::admit::{self, Refused};
use crate::state::CpuState;
use crate::window::{PAGE, Window, Writes};

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
    /// The code page as an interpreter is to see it: the code in its filling.
    pub fn code_page(&self) -> Box<[u8; PAGE as usize]> {
        let mut page = Box::new([0xcc; PAGE as usize]);
        let present = self.present_len();
        page[(self.rip() - CODE_PAGE) as usize..][..present].copy_from_slice(&self.code.bytes()[..present]);
        page
    }
    /// RIP at the start.
    pub fn rip(&self) -> u64 {
        match self.placement {
            Placement::Inline => CODE_ADDRESS,
            Placement::PageEnd(_) => CODE_PAGE + PAGE - self.present_len() as u64,
        }
    }
}

/// An exception that the code raised.
///
/// The P bit of a #PF at or above the user's half of the address space is always clear: Linux does not tell.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_lies_where_it_starts() {
        let mut case = Case::new(Code::admit(&[0x48, 0x01, 0xd8]).unwrap());
        assert_eq!(case.code_page()[0x7ff..0x804], [0xcc, 0x48, 0x01, 0xd8, 0xcc]);
        case.placement = Placement::PageEnd(2);
        assert_eq!(case.code_page()[0xffd..], [0xcc, 0x48, 0x01]);
        assert_eq!(case.rip(), CODE_PAGE + 0xffe);
    }
}
