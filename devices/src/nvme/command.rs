//! Commands, their status and completions as they lie in memory (NVM Express 1.4, sections 4.2, 4.6 and 5).

use emu_core::addr::Gpa;

/// Bytes of a submission queue entry.
pub const COMMAND_BYTES: u64 = 64;
/// Bytes of a completion queue entry.
pub const COMPLETION_BYTES: u64 = 16;

/// A submission queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The sixteen dwords.
    dwords: [u32; 16],
}

impl Command {
    /// As it lies in memory.
    pub fn parse(bytes: &[u8; COMMAND_BYTES as usize]) -> Command {
        let mut dwords = [0; 16];
        for (dword, bytes) in dwords.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *dword = u32::from_le_bytes(*bytes);
        }
        Command { dwords }
    }

    /// Opcode.
    pub const fn opcode(&self) -> u8 {
        self.dwords[0] as u8
    }
    /// Fused operation and the kind of data pointer: zero for the only kinds that are supported, neither fused nor SGL.
    pub const fn fused_or_sgl(&self) -> bool {
        self.dwords[0] >> 8 & 0xff != 0
    }
    /// Command identifier, the driver's.
    pub const fn id(&self) -> u16 {
        (self.dwords[0] >> 16) as u16
    }
    /// Namespace.
    pub const fn namespace(&self) -> u32 {
        self.dwords[1]
    }
    const fn qword(&self, n: usize) -> u64 {
        self.dwords[n] as u64 | (self.dwords[n + 1] as u64) << 32
    }
    /// First physical region page entry.
    pub const fn prp1(&self) -> Gpa {
        Gpa::new(self.qword(6))
    }
    /// Second entry, or where the list of entries is.
    pub const fn prp2(&self) -> Gpa {
        Gpa::new(self.qword(8))
    }
    /// Command dword `n`, 10 to 15.
    pub const fn dword(&self, n: usize) -> u32 {
        self.dwords[n]
    }
    /// Starting logical block of an I/O command.
    pub const fn first_block(&self) -> u64 {
        self.qword(10)
    }
    /// Number of logical blocks of an I/O command.
    pub const fn blocks(&self) -> u64 {
        (self.dwords[12] & 0xffff) as u64 + 1
    }
}

/// Why a command failed: status code type and status code (figures 127 to 130).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// No such command.
    InvalidOpcode = 0x001,
    /// A field has a value that is not supported.
    InvalidField = 0x002,
    /// Memory could not be reached.
    DataTransferError = 0x004,
    /// The image behind the namespace failed.
    InternalError = 0x006,
    /// No such namespace.
    InvalidNamespace = 0x00b,
    /// An entry of the data pointer is not aligned as it must be.
    InvalidPrpOffset = 0x013,
    /// The namespace may only be read.
    WriteProtected = 0x020,
    /// Beyond the last block.
    LbaOutOfRange = 0x080,
    /// No such completion queue.
    InvalidCompletionQueue = 0x100,
    /// No such queue, or there is one already.
    InvalidQueue = 0x101,
    /// A queue cannot have this length.
    InvalidQueueSize = 0x102,
    /// As many event requests are waiting as the controller takes.
    TooManyEventRequests = 0x105,
    /// No such interrupt vector.
    InvalidVector = 0x108,
    /// No such log page.
    InvalidLogPage = 0x109,
    /// Submission queues use the completion queue still.
    InvalidQueueDeletion = 0x10c,
}

/// Do Not Retry: the same command would fail again.
const DO_NOT_RETRY: u16 = 1 << 14;

impl Status {
    /// The status field without the phase bit.
    pub const fn field(self) -> u16 {
        let field = self as u16;
        match self {
            Status::DataTransferError | Status::InternalError => field,
            _ => field | DO_NOT_RETRY,
        }
    }
}

/// What a command led to: dword 0 of its completion, or why it failed.
pub type Outcome = Result<u32, Status>;

/// A completion queue entry as it lies in memory.
pub fn completion(outcome: Outcome, id: u16, queue: (u16, u16), phase: bool) -> [u8; COMPLETION_BYTES as usize] {
    let (result, status) = match outcome {
        Ok(result) => (result, 0),
        Err(status) => (0, status.field()),
    };
    let (queue, head) = queue;
    let mut bytes = [0; COMPLETION_BYTES as usize];
    bytes[..4].copy_from_slice(&result.to_le_bytes());
    bytes[8..10].copy_from_slice(&head.to_le_bytes());
    bytes[10..12].copy_from_slice(&queue.to_le_bytes());
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&(status << 1 | u16::from(phase)).to_le_bytes());
    bytes
}
