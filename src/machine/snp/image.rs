//! What is to be in guest memory when it is launched: collected page by page before any of it becomes private.

use std::collections::BTreeMap;

use emu_core::page::PAGE_SIZE;
use emu_core::{Gfn, Gpa};

use crate::loader::{GuestMemory, MemoryRefused};

/// The pages that somebody has written, by guest frame. All others are zero.
#[derive(Default)]
pub(super) struct LaunchImage {
    pages: BTreeMap<Gfn, Box<[u8; PAGE_SIZE]>>,
}

impl LaunchImage {
    /// The contents of a page, if anybody wrote to it.
    pub(super) fn page(&self, gfn: Gfn) -> Option<&[u8; PAGE_SIZE]> {
        self.pages.get(&gfn).map(Box::as_ref)
    }

    /// The first written frame at or above `from`.
    pub(super) fn next(&self, from: Gfn) -> Option<Gfn> {
        self.pages.range(from..).next().map(|(&gfn, _)| gfn)
    }
}

impl GuestMemory for LaunchImage {
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryRefused> {
        let refused = MemoryRefused { gpa, len_bytes: bytes.len() as u64 };
        gpa.checked_add(bytes.len() as u64).ok_or(refused)?;
        let mut rest = bytes;
        let mut at = gpa;
        while !rest.is_empty() {
            let offset = at.page_offset();
            let (part, after) = rest.split_at(rest.len().min(PAGE_SIZE - offset));
            let page = self.pages.entry(at.frame()).or_insert_with(|| Box::new([0; PAGE_SIZE]));
            page[offset..offset + part.len()].copy_from_slice(part);
            at = at.wrapping_add(part.len() as u64);
            rest = after;
        }
        Ok(())
    }

    fn zero(&mut self, gpa: Gpa, len_bytes: u64) -> Result<(), MemoryRefused> {
        let end = gpa.checked_add(len_bytes).ok_or(MemoryRefused { gpa, len_bytes })?;
        let mut from = gpa.frame();
        while let Some(gfn) = self.next(from)
            && gfn.base() < end
        {
            let base = gfn.base().raw();
            if let Some(page) = self.pages.get_mut(&gfn) {
                let first = gpa.raw().saturating_sub(base).min(PAGE_SIZE as u64) as usize;
                let last = (end.raw() - base).min(PAGE_SIZE as u64) as usize;
                page[first..last].fill(0);
            }
            from = Gfn::new(gfn.raw() + 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_cross_pages_and_zeroing_takes_only_what_it_covers() {
        let mut image = LaunchImage::default();
        image.write(Gpa::new(0x1ffe), &[1, 2, 3, 4]).expect("below the end of the address space");
        assert_eq!(image.page(Gfn::new(1)).map(|page| (page[0xffd], page[0xffe], page[0xfff])), Some((0, 1, 2)));
        assert_eq!(image.page(Gfn::new(2)).map(|page| (page[0], page[1], page[2])), Some((3, 4, 0)));
        assert_eq!((image.next(Gfn::new(0)), image.next(Gfn::new(3))), (Some(Gfn::new(1)), None));
        image.zero(Gpa::new(0x1fff), 2).expect("below the end of the address space");
        assert_eq!(image.page(Gfn::new(1)).map(|page| (page[0xffe], page[0xfff])), Some((1, 0)));
        assert_eq!(image.page(Gfn::new(2)).map(|page| (page[0], page[1])), Some((0, 4)));
        assert!(image.write(Gpa::new(u64::MAX), &[0]).is_err());
    }
}
