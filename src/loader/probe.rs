//! What a file is, by its magic numbers alone. A file that carries a magic is that kind even when it is damaged: the
//! loader then says what is wrong with it, instead of running it as a flat image.

use core::fmt;

use super::bytes::u32_at;
use super::{bzimage, elf, multiboot};

/// The kinds of image that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// A Linux kernel with the setup header of the x86 boot protocol.
    BzImage,
    /// ELF with the note XEN_ELFNOTE_PHYS32_ENTRY. It wins over a multiboot header.
    Pvh,
    /// A multiboot 1 header in the first 8 KiB, ELF or not.
    Multiboot1,
    /// ELF32 with neither.
    Elf32,
    /// ELF64 with neither.
    Elf64,
    /// An Independent Guest Virtual Machine file.
    Igvm,
    /// None of the others: bytes to run.
    Flat,
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageKind::BzImage => "bzImage",
            ImageKind::Pvh => "PVH",
            ImageKind::Multiboot1 => "multiboot",
            ImageKind::Elf32 => "ELF32",
            ImageKind::Elf64 => "ELF64",
            ImageKind::Igvm => "IGVM",
            ImageKind::Flat => "flat",
        })
    }
}

/// "IGVM", the magic of `IGVM_FIXED_HEADER`.
const IGVM_MAGIC: u32 = u32::from_le_bytes(*b"IGVM");

/// What `bytes` are; `None` when there are none.
pub fn probe(bytes: &[u8]) -> Option<ImageKind> {
    if bytes.is_empty() {
        return None;
    }
    // A bzImage may begin with an EFI stub (MZ); nothing else has "HdrS" at its offset.
    if bzimage::has_magic(bytes) {
        return Some(ImageKind::BzImage);
    }
    if u32_at(bytes, 0) == Some(IGVM_MAGIC) {
        return Some(ImageKind::Igvm);
    }
    let class = elf::class_by_magic(bytes);
    if class.is_some() && elf::has_pvh_note(bytes) {
        return Some(ImageKind::Pvh);
    }
    if multiboot::find_header(bytes).is_some() {
        return Some(ImageKind::Multiboot1);
    }
    Some(match class {
        Some(elf::Class::Elf32) => ImageKind::Elf32,
        Some(elf::Class::Elf64) => ImageKind::Elf64,
        None => ImageKind::Flat,
    })
}
