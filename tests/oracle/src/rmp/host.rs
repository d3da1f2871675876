//! RMPUPDATE, PSMASH and RMPREAD, as numbered lists of conditions. Answers are values of EAX.

use super::{Map, Page, REGION};

/// The sixteen bytes that RMPUPDATE reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// GPA.
    pub gpa: u64,
    /// assigned.
    pub assigned: bool,
    /// pagesize.
    pub large: bool,
    /// immutable.
    pub immutable: bool,
    /// ASID.
    pub asid: u32,
}

/// What RMPREAD stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadEntry {
    /// The entry.
    pub entry: NewEntry,
    /// Whether the page begins a region of which another page is assigned.
    pub others: bool,
}

impl Map {
    /// RMPUPDATE.
    pub fn rmpupdate(&mut self, spa: u64, new: &NewEntry) -> u32 {
        let align = if new.large { 1 << 21 } else { 1 << 12 };
        // FAIL_INPUT: alignment, a contradiction, what no entry can say, no entry.
        if !spa.is_multiple_of(align) {
            return 1;
        }
        if !new.assigned && (new.immutable || new.asid != 0) {
            return 1;
        }
        if new.assigned && (new.asid > 0x3fe || new.gpa >= 1 << 51 || !new.gpa.is_multiple_of(align)) {
            return 1;
        }
        let frame = spa >> 12;
        if self.page(frame).is_none() {
            return 1;
        }
        // FAIL_INUSE: any page of the operand, or of the 2 MiB page it is in.
        let touched = if new.large { frame as usize..(frame + REGION) as usize } else { self.whole(frame) };
        if self.running.iter().any(|&running| touched.contains(&(running as usize))) {
            return 3;
        }
        // FAIL_PERMISSION.
        if self.pages[touched.clone()].iter().any(|page| page.immutable) {
            return 2;
        }
        // FAIL_OVERLAP.
        if !new.large && self.pages[frame as usize].large {
            return 4;
        }
        if new.large && self.pages[touched.clone()].iter().any(|page| page.assigned && !page.large) {
            return 4;
        }
        for (n, page) in self.pages[touched].iter_mut().enumerate() {
            *page = written(page, new, n as u64);
        }
        0
    }

    /// PSMASH.
    pub fn psmash(&mut self, spa: u64) -> u32 {
        if spa & 0x1f_ffff != 0 {
            return 1;
        }
        let frame = spa >> 12;
        let Some(page) = self.page(frame).copied() else { return 1 };
        if self.running.iter().any(|running| running / REGION == frame / REGION) {
            return 3;
        }
        if page.immutable {
            return 2;
        }
        if !page.assigned || !page.large {
            return 1;
        }
        for page in self.region_mut(frame) {
            page.large = false;
        }
        0
    }

    /// RMPREAD.
    pub fn rmpread(&self, spa: u64) -> Result<ReadEntry, u32> {
        let frame = spa >> 12;
        let page = self.page(frame).filter(|_| spa & 0xfff == 0).ok_or(1_u32)?;
        let entry = NewEntry {
            gpa: page.gpa,
            assigned: page.assigned,
            large: page.large,
            immutable: page.immutable,
            asid: page.asid,
        };
        let begins = frame.is_multiple_of(REGION);
        let others = begins && self.region(frame).is_some_and(|region| region[1..].iter().any(|page| page.assigned));
        Ok(ReadEntry { entry, others })
    }
}

/// The record of page `n` of the operand afterwards.
fn written(old: &Page, new: &NewEntry, n: u64) -> Page {
    if !new.assigned {
        return Page::HYPERVISOR;
    }
    let gpa = new.gpa + n * 4096;
    let remapped = !old.assigned || old.asid != new.asid || old.gpa != gpa || old.large != new.large || new.asid == 0;
    Page {
        assigned: true,
        large: new.large,
        immutable: new.immutable,
        locked: old.locked && !remapped,
        asid: new.asid,
        gpa,
        vmsa: old.vmsa && !remapped,
        validated: old.validated && !remapped,
        masks: if remapped { Page::FIRST_MASKS } else { old.masks },
    }
}
