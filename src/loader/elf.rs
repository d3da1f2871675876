//! ELF executables: header, program headers, notes.
//!
//! Modelled: System V ABI, "Object Files" and "Program Loading". Segments go to their physical addresses (`p_paddr`); an
//! entry point given as a virtual address is translated through the segment that holds it, so that kernels linked to
//! the upper half start where their own early code expects.

use emu_core::Gpa;

use super::bytes::{range, u8_at, u16_at, u32_at, u64_at};
use super::error::{LoadError, Part};
use super::long_mode::{FOUR_GIB, LongMode};
use super::memory::GuestMemory;
use super::placement::Placement;
use super::{Entry, ImageKind, LoadOptions, pvh};

/// Program headers that are looked at; linkers make about ten.
pub(super) const MAX_SEGMENTS: u16 = 128;

const ET_EXEC: u16 = 2;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const ELFDATA2LSB: u8 = 1;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Notes looked at in one segment.
const MAX_NOTES: usize = 256;

/// EI_CLASS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Elf32,
    Elf64,
}

impl Class {
    fn kind(self) -> ImageKind {
        match self {
            Class::Elf32 => ImageKind::Elf32,
            Class::Elf64 => ImageKind::Elf64,
        }
    }
}

/// The class of anything that begins with the ELF magic. An unknown class reads as ELF64; [`Elf::parse`] refuses it.
pub(super) fn class_by_magic(bytes: &[u8]) -> Option<Class> {
    bytes.starts_with(b"\x7fELF").then(|| if u8_at(bytes, 4) == Some(1) { Class::Elf32 } else { Class::Elf64 })
}

/// A program header, both classes alike.
#[derive(Clone, Copy, Debug)]
struct Segment {
    index: u16,
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

/// A checked ELF header.
pub(super) struct Elf<'a> {
    bytes: &'a [u8],
    class: Class,
    entry: u64,
    table: &'a [u8],
    count: u16,
}

impl<'a> Elf<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Elf<'a>, LoadError> {
        let class = class_by_magic(bytes).unwrap_or(Class::Elf64);
        let has = bytes.len() as u64;
        let cut = |what, needs| LoadError::TruncatedHeader { kind: class.kind(), what, needs, has };
        let header_bytes: u64 = match class {
            Class::Elf32 => 52,
            Class::Elf64 => 64,
        };
        let header = range(bytes, 0, header_bytes).ok_or(cut("ELF header", header_bytes))?;
        let half = |at| u16_at(header, at).map_or(0, u64::from);
        let (machine, entry, table_at, entry_bytes, count, needed_bytes) = match class {
            Class::Elf32 => {
                let word = |at| u32_at(header, at).map_or(0, u64::from);
                (EM_386, word(24), word(28), half(42), half(44), 32)
            }
            Class::Elf64 => {
                let word = |at| u64_at(header, at).unwrap_or(0);
                (EM_X86_64, word(24), word(32), half(54), half(56), 56)
            }
        };
        let expect = |field, value: u64, good: bool, expected| {
            if good { Ok(()) } else { Err(LoadError::ElfField { field, value, expected }) }
        };
        expect("EI_CLASS", header[4].into(), matches!(header[4], 1 | 2), "1 (ELFCLASS32) or 2 (ELFCLASS64)")?;
        expect("EI_DATA", header[5].into(), header[5] == ELFDATA2LSB, "1 (ELFDATA2LSB)")?;
        expect("e_type", half(16), half(16) == u64::from(ET_EXEC), "2 (ET_EXEC)")?;
        let machines = "3 (EM_386) in ELF32, 0x3e (EM_X86_64) in ELF64";
        expect("e_machine", half(18), half(18) == u64::from(machine), machines)?;
        expect("e_phnum", count, count <= u64::from(MAX_SEGMENTS), "at most 128")?;
        expect("e_phentsize", entry_bytes, count == 0 || entry_bytes == needed_bytes, "32 in ELF32, 56 in ELF64")?;
        let table_bytes = count * needed_bytes;
        let table_end = table_at.saturating_add(table_bytes);
        let table = range(bytes, table_at, table_bytes).ok_or(cut("program header table", table_end))?;
        Ok(Elf { bytes, class, entry, table, count: count as u16 })
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        (0..self.count).filter_map(|index| match self.class {
            Class::Elf32 => {
                let at = u64::from(index) * 32;
                let word = |offset| u32_at(self.table, at + offset);
                Some(Segment {
                    index,
                    kind: word(0)?,
                    offset: word(4)?.into(),
                    vaddr: word(8)?.into(),
                    paddr: word(12)?.into(),
                    file_bytes: word(16)?.into(),
                    memory_bytes: word(20)?.into(),
                    align: word(28)?.into(),
                })
            }
            Class::Elf64 => {
                let at = u64::from(index) * 56;
                let word = |offset| u64_at(self.table, at + offset);
                Some(Segment {
                    index,
                    kind: u32_at(self.table, at)?,
                    offset: word(8)?,
                    vaddr: word(16)?,
                    paddr: word(24)?,
                    file_bytes: word(32)?,
                    memory_bytes: word(40)?,
                    align: word(48)?,
                })
            }
        })
    }

    fn loadable(&self) -> impl Iterator<Item = Segment> {
        self.segments().filter(|segment| segment.kind == PT_LOAD && segment.memory_bytes > 0)
    }

    /// Writes every loadable segment.
    pub(super) fn place(&self, placement: &mut Placement<'_>, memory: &mut dyn GuestMemory) -> Result<(), LoadError> {
        if self.loadable().next().is_none() {
            return Err(LoadError::NoSegments);
        }
        for segment in self.loadable() {
            let Segment { index, offset, file_bytes, memory_bytes, .. } = segment;
            if file_bytes > memory_bytes {
                return Err(LoadError::SegmentShrinks { index, file_bytes, memory_bytes });
            }
            let contents = range(self.bytes, offset, file_bytes).ok_or(LoadError::TruncatedSegment {
                index,
                offset,
                len_bytes: file_bytes,
                has: self.bytes.len() as u64,
            })?;
            let gpa = Gpa::new(segment.paddr);
            placement.claim(Part::Segment { index }, gpa, memory_bytes)?;
            if file_bytes > 0 {
                memory.write(gpa, contents)?;
            }
            if memory_bytes > file_bytes {
                // Inside the claim, so it cannot wrap.
                memory.zero(gpa.wrapping_add(file_bytes), memory_bytes - file_bytes)?;
            }
        }
        Ok(())
    }

    /// `e_entry` as a physical address inside a loaded segment.
    pub(super) fn entry(&self) -> Result<u64, LoadError> {
        let entry = self.entry;
        let within = |base: u64, len: u64| entry.checked_sub(base).filter(|&offset| offset < len);
        let by_virtual = self.loadable().find_map(|s| within(s.vaddr, s.memory_bytes).map(|offset| s.paddr + offset));
        by_virtual
            .or_else(|| self.loadable().find_map(|s| within(s.paddr, s.memory_bytes).map(|_| entry)))
            .ok_or(LoadError::EntryOutside { entry })
    }

    /// The same for code that starts in 32-bit mode.
    pub(super) fn entry_32(&self) -> Result<u32, LoadError> {
        let entry = self.entry()?;
        u32::try_from(entry).map_err(|_| LoadError::EntryTooHigh { entry })
    }

    /// The description of the first note XEN_ELFNOTE_PHYS32_ENTRY.
    fn pvh_note(&self) -> Option<&'a [u8]> {
        self.segments().filter(|s| s.kind == PT_NOTE).find_map(|s| {
            let notes = range(self.bytes, s.offset, s.file_bytes)?;
            find_note(notes, if s.align == 8 { 8 } else { 4 })
        })
    }

    fn pvh_entry(&self) -> Result<u32, LoadError> {
        let note = self.pvh_note().unwrap_or_default();
        let entry = match note.len() {
            4 => u32_at(note, 0).map(u64::from),
            8 => u64_at(note, 0),
            _ => None,
        };
        let entry = entry.ok_or(LoadError::PvhNote { len_bytes: note.len() as u64 })?;
        let eip = u32::try_from(entry).map_err(|_| LoadError::EntryTooHigh { entry })?;
        let inside = |s: Segment| entry.checked_sub(s.paddr).is_some_and(|offset| offset < s.memory_bytes);
        if self.loadable().any(inside) { Ok(eip) } else { Err(LoadError::EntryOutside { entry }) }
    }
}

/// The description of the PVH entry note among `notes`, whose fields are padded to `align`.
fn find_note(notes: &[u8], align: u64) -> Option<&[u8]> {
    let mut at = 0;
    for _ in 0..MAX_NOTES {
        let name_bytes = u64::from(u32_at(notes, at)?);
        let desc_bytes = u64::from(u32_at(notes, at + 4)?);
        let kind = u32_at(notes, at + 8)?;
        let name_at = at + 12;
        let desc_at = (name_at + name_bytes).next_multiple_of(align);
        let name = range(notes, name_at, name_bytes)?;
        let desc = range(notes, desc_at, desc_bytes)?;
        if kind == pvh::XEN_ELFNOTE_PHYS32_ENTRY && name == pvh::NOTE_NAME {
            return Some(desc);
        }
        at = (desc_at + desc_bytes).next_multiple_of(align);
    }
    None
}

/// Whether the file would start by PVH.
pub(super) fn has_pvh_note(bytes: &[u8]) -> bool {
    Elf::parse(bytes).is_ok_and(|elf| elf.pvh_note().is_some())
}

pub(super) fn load(
    bytes: &[u8],
    kind: ImageKind,
    options: &LoadOptions<'_>,
    placement: &mut Placement<'_>,
    memory: &mut dyn GuestMemory,
) -> Result<Entry, LoadError> {
    let elf = Elf::parse(bytes)?;
    elf.place(placement, memory)?;
    if kind == ImageKind::Pvh {
        let eip = elf.pvh_entry()?;
        return Ok(Entry::Pvh32 { eip, start_info: pvh::start_info(options, placement, memory)? });
    }
    match elf.class {
        Class::Elf32 => {
            let eip = elf.entry_32()?;
            Ok(Entry::Elf32 { eip, start_info: pvh::start_info(options, placement, memory)? })
        }
        Class::Elf64 => {
            let rip = Gpa::new(elf.entry()?);
            if rip >= FOUR_GIB {
                return Err(LoadError::EntryUnmapped { entry: rip });
            }
            let start_info = pvh::start_info(options, placement, memory)?;
            Ok(Entry::Elf64 {
                rip,
                start_info,
                long_mode: LongMode::build(options.encryption_mask(), placement, memory)?,
            })
        }
    }
}
