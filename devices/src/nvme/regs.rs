//! The controller's registers (NVM Express 1.4, section 3.1): where they are and which values they hold.

/// Length of the BAR: registers, then doorbells.
pub const BAR_BYTES: u64 = 0x2000;
/// Where the doorbells begin; they are four bytes apart (CAP.DSTRD is 0), a submission queue's before its completion
/// queue's.
const DOORBELLS: u64 = 0x1000;

/// Most entries of a queue.
pub const MAX_ENTRIES: u32 = 1024;
/// Most pairs of queues besides the administrative one.
pub const IO_QUEUES: u16 = 16;

/// VS: version 1.4.
pub const VERSION: u32 = 0x0001_0400;

/// CAP: MQES, CQR (queues are contiguous), TO (one second), CSS (the NVM command set); memory pages of 4 KiB.
pub const CAPABILITIES: u64 = (MAX_ENTRIES as u64 - 1) | 1 << 16 | 2 << 24 | 1 << 37;

/// CC.EN.
pub const CC_ENABLE: u32 = 1 << 0;
/// CC.CSS, CC.MPS and CC.AMS: zero for the only choices there are.
pub const CC_CHOICES: u32 = 0x3ff0;
/// CC.SHN: a shutdown is asked for.
pub const CC_SHUTDOWN: u32 = 3 << 14;
/// The bits of CC that exist.
pub const CC_WRITABLE: u32 = 0x00ff_fff1;

/// CSTS.RDY.
pub const CSTS_READY: u32 = 1 << 0;
/// CSTS.CFS: the controller cannot go on.
pub const CSTS_FATAL: u32 = 1 << 1;
/// CSTS.SHST: the shutdown is complete.
pub const CSTS_SHUT_DOWN: u32 = 2 << 2;

/// A 32-bit register; those of 64 bits are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// CAP: low half.
    CapLow,
    /// CAP: high half.
    CapHigh,
    /// VS.
    Version,
    /// INTMS: sets bits of the interrupt mask.
    MaskSet,
    /// INTMC: clears them.
    MaskClear,
    /// CC.
    Configuration,
    /// CSTS.
    Status,
    /// AQA: lengths of the administrative queues.
    AdminLengths,
    /// ASQ or ACQ, low or high half: byte 0, 4, 8 or 12 from ASQ on.
    AdminBase(u8),
    /// Submission queue's tail.
    Tail(u16),
    /// Completion queue's head.
    Head(u16),
}

/// Which register is at byte `offset` of the BAR.
pub const fn decode(offset: u64) -> Option<Reg> {
    Some(match offset {
        0x00 => Reg::CapLow,
        0x04 => Reg::CapHigh,
        0x08 => Reg::Version,
        0x0c => Reg::MaskSet,
        0x10 => Reg::MaskClear,
        0x14 => Reg::Configuration,
        0x1c => Reg::Status,
        0x24 => Reg::AdminLengths,
        0x28 | 0x2c | 0x30 | 0x34 => Reg::AdminBase((offset - 0x28) as u8),
        DOORBELLS..BAR_BYTES if offset.is_multiple_of(4) => {
            let index = (offset - DOORBELLS) / 4;
            let queue = (index / 2) as u16;
            if index.is_multiple_of(2) { Reg::Tail(queue) } else { Reg::Head(queue) }
        }
        _ => return None,
    })
}
