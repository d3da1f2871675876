//! What the controller says of itself and its namespace (NVM Express 1.4, section 5.15.2).

use super::regs::{IO_QUEUES, VERSION};
use super::{MAX_TRANSFER, prp};
use crate::block::{Disk, DiskAccess};

/// PCI vendor.
pub const VENDOR: u16 = 0x1b36;
/// The one namespace.
pub const NAMESPACE: u32 = 1;
/// Length of every answer.
pub const BYTES: usize = 4096;
/// Most Asynchronous Event Request commands that wait at a time.
pub const EVENT_REQUESTS: usize = 4;
/// Most Abort commands at a time, though each completes at once.
const ABORTS: u8 = 4;

const _: () = assert!(MAX_TRANSFER == prp::PAGE << MDTS);
/// Most data of a command, as a power of two of pages.
const MDTS: u8 = 7;

/// An answer that fields are put into.
struct Page(Box<[u8; BYTES]>);

impl Page {
    fn new() -> Page {
        Page(Box::new([0; BYTES]))
    }
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
    /// ASCII, padded with spaces to `len`.
    fn text(&mut self, at: usize, len: usize, text: &str) {
        self.0[at..at + len].fill(b' ');
        self.put(at, &text.as_bytes()[..text.len().min(len)]);
    }
}

/// The last part of a UUID or NQN of controller `number`: made up, but the same in every run.
fn node(number: u16) -> u64 {
    0x6269_666f_0000 | u64::from(number)
}

/// CNS 01h: the controller.
pub fn controller(disk: &Disk, number: u16) -> Box<[u8; BYTES]> {
    let mut page = Page::new();
    page.put(0, &VENDOR.to_le_bytes());
    page.put(2, &VENDOR.to_le_bytes());
    page.text(4, 20, disk.serial());
    page.text(24, 40, "Bifold NVMe");
    page.text(64, 8, "1");
    // RAB: 2^6 commands at a time. MDTS.
    page.put(72, &[6]);
    page.put(77, &[MDTS]);
    page.put(80, &VERSION.to_le_bytes());
    // CNTRLTYPE: an I/O controller.
    page.put(111, &[1]);
    // ACL and AERL count from zero; one firmware slot, read-only; LPA: nothing; ELPE: one error log entry.
    page.put(258, &[ABORTS - 1, EVENT_REQUESTS as u8 - 1, 0x03, 0, 0]);
    // Warning and critical temperature in kelvin.
    page.put(266, &[0x57, 0x01, 0x61, 0x01]);
    // Sizes of queue entries: 64 and 16 bytes, neither more nor less. MAXCMD: left to the queues.
    page.put(512, &[0x66, 0x44]);
    page.put(516, &NAMESPACE.to_le_bytes());
    // ONCS: Dataset Management, Write Zeroes.
    page.put(520, &0x000c_u16.to_le_bytes());
    let name = format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-{:012x}", node(number));
    page.put(768, name.as_bytes());
    page.0
}

/// CNS 00h: the namespace, or zeros for one that is not there.
pub fn namespace(disk: &Disk) -> Box<[u8; BYTES]> {
    let mut page = Page::new();
    // NSZE, NCAP, NUSE.
    for at in [0, 8, 16] {
        page.put(at, &disk.sectors().to_le_bytes());
    }
    // NSATTR: write-protected.
    page.put(99, &[u8::from(disk.access() == DiskAccess::ReadOnly)]);
    // The one format: 512 bytes without metadata.
    page.put(128 + 2, &[9]);
    page.0
}

/// CNS 02h: the active namespaces whose number is above `after`.
pub fn active(after: u32) -> Box<[u8; BYTES]> {
    let mut page = Page::new();
    if after < NAMESPACE {
        page.put(0, &NAMESPACE.to_le_bytes());
    }
    page.0
}

/// CNS 03h: identifiers of the namespace, a UUID alone.
pub fn descriptors(number: u16) -> Box<[u8; BYTES]> {
    let mut page = Page::new();
    page.put(0, &[3, 16, 0, 0]);
    page.put(4, &[0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 1]);
    page.put(14, &node(number).to_be_bytes()[2..]);
    page.0
}

/// What Number of Queues answers: as many as there are, of both kinds, counted from zero.
pub fn granted_queues() -> u32 {
    let most = u32::from(IO_QUEUES) - 1;
    most << 16 | most
}
