//! The bytes that family 19h processors have in memory for such a list of pages.

use super::{Map, Page, REGION};

impl Map {
    /// The counters of ASIDs, 16 KiB, and sixteen bytes for each page.
    pub fn image(&self) -> Vec<u8> {
        let mut image = Vec::with_capacity(0x4000 + self.pages.len() * 16);
        let mut counters = [0_u64; 0x800];
        for page in self.pages.iter().filter(|page| page.asid != 0) {
            counters[page.asid as usize] += 1;
        }
        counters.iter().for_each(|counter| image.extend_from_slice(&counter.to_le_bytes()));
        for region in self.pages.chunks(REGION as usize) {
            for (n, page) in region.iter().enumerate() {
                let entry = match (n, page.large) {
                    (0, true) => bits(page, 0),
                    (0, false) => bits(page, region[1..].iter().filter(|page| page.assigned).count() as u128),
                    // What is said of a 2 MiB page is said once; the other slots are assigned and empty.
                    (_, true) => 1,
                    (_, false) => bits(page, 0),
                };
                image.extend_from_slice(&entry.to_le_bytes());
            }
        }
        image
    }
}

fn bits(page: &Page, other_assigned: u128) -> u128 {
    let mut entry = 0;
    entry |= u128::from(page.assigned);
    entry |= u128::from(page.large) << 1;
    entry |= u128::from(page.immutable) << 2;
    entry |= other_assigned << 3;
    // Bits 50:12 of the address are bits 50:12 of the entry.
    entry |= u128::from(page.gpa);
    entry |= u128::from(page.asid) << 51;
    entry |= u128::from(page.vmsa) << 61;
    entry |= u128::from(page.validated) << 62;
    entry |= u128::from(page.locked) << 63;
    for (level, mask) in page.masks.iter().enumerate() {
        entry |= u128::from(*mask) << (64 + 8 * level);
    }
    entry
}
