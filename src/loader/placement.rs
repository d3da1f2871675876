//! Where the parts of an image go: inside RAM, and never on top of each other.
//!
//! The number of parts is bounded by the callers ([`super::elf::MAX_SEGMENTS`], [`super::MAX_MODULES`]), so the linear
//! searches here are short whatever the file says.

use emu_core::Gpa;

use super::error::{LoadError, Part};
use super::memory::{GuestMemory, MemoryMap};

/// The interrupt vectors and BIOS data of real mode live here; nothing of ours does.
const FIRST_USABLE: u64 = 0x1000;

#[derive(Clone, Copy)]
struct Extent {
    base: u64,
    end: u64,
    part: Part,
}

/// RAM and what has been put into it so far.
pub(super) struct Placement<'m> {
    map: &'m MemoryMap,
    taken: Vec<Extent>,
}

impl<'m> Placement<'m> {
    pub(super) fn new(map: &'m MemoryMap) -> Self {
        Placement { map, taken: Vec::new() }
    }

    pub(super) fn map(&self) -> &'m MemoryMap {
        self.map
    }

    fn overlapping(&self, base: u64, end: u64) -> Option<&Extent> {
        self.taken.iter().find(|t| base < t.end && t.base < end)
    }

    /// Takes exactly this place.
    pub(super) fn claim(&mut self, part: Part, base: Gpa, len_bytes: u64) -> Result<(), LoadError> {
        if !self.map.holds(base, len_bytes) {
            let ram_bytes = self.map.ram_bytes();
            return Err(LoadError::OutsideRam { part, base, len_bytes, ram_bytes });
        }
        let (base_raw, end) = (base.raw(), base.raw() + len_bytes);
        if let Some(other) = self.overlapping(base_raw, end) {
            return Err(LoadError::Overlap { part, other: other.part, base, len_bytes });
        }
        self.taken.push(Extent { base: base_raw, end, part });
        Ok(())
    }

    /// Takes the lowest place below `below`. `align` is a power of two.
    pub(super) fn lowest(&mut self, part: Part, len_bytes: u64, align: u64, below: Gpa) -> Result<Gpa, LoadError> {
        self.lowest_from(FIRST_USABLE, part, len_bytes, align, below)
    }

    /// The same, not below `from`.
    pub(super) fn lowest_from(
        &mut self,
        from: u64,
        part: Part,
        len_bytes: u64,
        align: u64,
        below: Gpa,
    ) -> Result<Gpa, LoadError> {
        let found = self.map.ram().find_map(|region| {
            let limit = region.end().min(below.raw());
            let mut base = region.base.raw().max(from).checked_next_multiple_of(align)?;
            loop {
                let end = base.checked_add(len_bytes).filter(|&end| end <= limit)?;
                match self.overlapping(base, end) {
                    None => return Some(base),
                    Some(other) => base = other.end.checked_next_multiple_of(align)?,
                }
            }
        });
        self.take(found, part, len_bytes, below)
    }

    /// Takes the highest place that ends at or below `below`. `align` is a power of two.
    pub(super) fn highest(&mut self, part: Part, len_bytes: u64, align: u64, below: Gpa) -> Result<Gpa, LoadError> {
        let found = self.map.ram().rev().find_map(|region| {
            let floor = region.base.raw().max(FIRST_USABLE);
            let mut limit = region.end().min(below.raw());
            loop {
                let base = limit.checked_sub(len_bytes)? & !(align - 1);
                if base < floor {
                    return None;
                }
                match self.overlapping(base, base + len_bytes) {
                    None => return Some(base),
                    Some(other) => limit = other.base,
                }
            }
        });
        self.take(found, part, len_bytes, below)
    }

    fn take(&mut self, found: Option<u64>, part: Part, len_bytes: u64, below: Gpa) -> Result<Gpa, LoadError> {
        let base = found.ok_or(LoadError::NoRoom { part, len_bytes, below })?;
        self.taken.push(Extent { base, end: base + len_bytes, part });
        Ok(Gpa::new(base))
    }

    /// Puts `bytes` at the lowest place below `below` and says where.
    pub(super) fn put_lowest(
        &mut self,
        memory: &mut dyn GuestMemory,
        part: Part,
        bytes: &[u8],
        below: Gpa,
    ) -> Result<Gpa, LoadError> {
        let gpa = self.lowest(part, bytes.len() as u64, 0x1000, below)?;
        memory.write(gpa, bytes)?;
        Ok(gpa)
    }

    /// Puts `bytes` at the highest place below `below` and says where.
    pub(super) fn put_highest(
        &mut self,
        memory: &mut dyn GuestMemory,
        part: Part,
        bytes: &[u8],
        below: Gpa,
    ) -> Result<Gpa, LoadError> {
        let gpa = self.highest(part, bytes.len() as u64, 0x1000, below)?;
        memory.write(gpa, bytes)?;
        Ok(gpa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW_END: Gpa = Gpa::new(3 << 30);

    #[test]
    fn searches_go_around_what_is_taken() {
        let map = MemoryMap::pc(64 << 20, LOW_END).unwrap();
        let mut placement = Placement::new(&map);
        placement.claim(Part::Kernel, Gpa::new(0x1000), 0x1800).unwrap();
        assert_eq!(placement.lowest(Part::Gdt, 0x10, 0x1000, LOW_END), Ok(Gpa::new(0x3000)));
        let top = (64 << 20) - 0x1000;
        placement.claim(Part::Image, Gpa::new(top), 0x1000).unwrap();
        assert_eq!(placement.highest(Part::Initrd, 0x1001, 0x1000, LOW_END), Ok(Gpa::new(top - 0x2000)));
        assert_eq!(placement.highest(Part::Initrd, 0x10, 0x1000, Gpa::new(0x8000)), Ok(Gpa::new(0x7000)));
    }

    #[test]
    fn refusals_name_both_parts() {
        let map = MemoryMap::pc(2 << 20, LOW_END).unwrap();
        let mut placement = Placement::new(&map);
        placement.claim(Part::Kernel, Gpa::new(0x10_0000), 0x1000).unwrap();
        let base = Gpa::new(0x10_0fff);
        assert_eq!(
            placement.claim(Part::Initrd, base, 2),
            Err(LoadError::Overlap { part: Part::Initrd, other: Part::Kernel, base, len_bytes: 2 })
        );
        assert!(matches!(
            placement.claim(Part::Initrd, Gpa::new(0x9_fbff), 2),
            Err(LoadError::OutsideRam { part: Part::Initrd, .. })
        ));
        assert!(matches!(placement.claim(Part::Initrd, base, u64::MAX), Err(LoadError::OutsideRam { .. })));
        for len in [1 << 20, u64::MAX] {
            assert!(matches!(placement.highest(Part::Initrd, len, 0x1000, LOW_END), Err(LoadError::NoRoom { .. })));
            assert!(matches!(placement.lowest(Part::Initrd, len, 0x1000, LOW_END), Err(LoadError::NoRoom { .. })));
        }
    }
}
