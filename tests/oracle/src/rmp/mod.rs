//! A second model of the RMP: a flat list with one record for each 4 KiB page, and nothing else.
//!
//! It follows AMD APM vol. 2, "Secure Nested Paging (SEV-SNP)", table by table: which checks each access meets and in which
//! order, what each instruction tests and what it leaves. [`Map`] is the door: build one, ask it about accesses, let
//! instructions change it, and compare [`Map::image`] with the bytes of the table that is judged.
//!
//! A page within a 2 MiB page has a record like any other, with its own guest physical address; that 512 of them belong
//! together is a mark on each. There is no table, no entry of another page to look at, no lock and no cache.

mod access;
mod firmware;
mod guest;
mod host;
mod image;

pub use access::{Check, Doing, Leaf, Outcome, Use, Who};
pub use firmware::{FirmwareStatus, Launch};
pub use guest::{Answer, Operand};
pub use host::{NewEntry, ReadEntry};

/// Pages in 2 MiB.
pub const REGION: u64 = 512;

/// What is known of one 4 KiB page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// Owned by a guest or the firmware.
    pub assigned: bool,
    /// One of the 512 of a 2 MiB page.
    pub large: bool,
    /// Immutable.
    pub immutable: bool,
    /// Locked by the firmware.
    pub locked: bool,
    /// The guest, or 0.
    pub asid: u32,
    /// Where the guest has this page.
    pub gpa: u64,
    /// A virtual processor may run from it.
    pub vmsa: bool,
    /// Accepted by the guest.
    pub validated: bool,
    /// Permissions by privilege level.
    pub masks: [u8; 4],
}

impl Page {
    /// The hypervisor's.
    pub const HYPERVISOR: Page = Page {
        assigned: false,
        large: false,
        immutable: false,
        locked: false,
        asid: 0,
        gpa: 0,
        vmsa: false,
        validated: false,
        masks: [0; 4],
    };
    /// Masks of a page that has just been given to somebody.
    pub const FIRST_MASKS: [u8; 4] = [0x1f, 0, 0, 0];
}

/// All pages that have an entry, and those that running virtual processors use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// By frame number.
    pub pages: Vec<Page>,
    /// Frame numbers.
    pub running: Vec<u64>,
}

impl Map {
    /// Every page the hypervisor's.
    pub fn new(regions: u64) -> Map {
        Map { pages: vec![Page::HYPERVISOR; (regions * REGION) as usize], running: Vec::new() }
    }

    /// The record of a frame, if it is covered.
    pub fn page(&self, frame: u64) -> Option<&Page> {
        self.pages.get(usize::try_from(frame).ok()?)
    }

    /// The records of all pages of the region of `frame`.
    pub fn region(&self, frame: u64) -> Option<&[Page]> {
        let first = usize::try_from(frame / REGION * REGION).ok()?;
        self.pages.get(first..first + REGION as usize)
    }

    fn region_mut(&mut self, frame: u64) -> &mut [Page] {
        let first = (frame / REGION * REGION) as usize;
        &mut self.pages[first..first + REGION as usize]
    }

    /// The frames of the page, of either size, that `frame` belongs to.
    fn whole(&self, frame: u64) -> core::ops::Range<usize> {
        match self.pages[frame as usize].large {
            true => {
                let first = (frame / REGION * REGION) as usize;
                first..first + REGION as usize
            }
            false => frame as usize..frame as usize + 1,
        }
    }

    /// How many pages carry `asid`.
    pub fn pages_of(&self, asid: u32) -> u64 {
        self.pages.iter().filter(|page| page.asid == asid).count() as u64
    }
}
