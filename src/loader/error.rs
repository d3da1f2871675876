//! Everything that can be wrong with an image, with the values that were wrong and what would have been right.

use core::fmt;

use emu_core::Gpa;
use thiserror::Error;

use super::ImageKind;
use super::igvm::IgvmError;
use super::memory::MemoryRefused;

/// A thing the loader puts into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The protected-mode part of a bzImage, with the room it needs before its own memory management works.
    Kernel,
    /// An ELF program segment.
    Segment {
        /// Its number in the program header table.
        index: u16,
    },
    /// The load area of a multiboot image with addresses in its header, or a flat image.
    Image,
    /// The initial ramdisk.
    Initrd,
    /// A boot module.
    Module {
        /// Its number.
        index: usize,
    },
    /// The command line.
    CommandLine,
    /// Linux's zero page, PVH's or multiboot's information.
    BootInfo,
    /// The identity page tables.
    PageTables,
    /// The descriptor table of the long-mode entries.
    Gdt,
    /// The node of setup data that tells an encrypted guest where its secrets are.
    SetupData,
    /// What runs before the kernel of an encrypted guest, and what it is told.
    Stage0,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Kernel => f.write_str("kernel"),
            Part::Segment { index } => write!(f, "segment {index}"),
            Part::Image => f.write_str("image"),
            Part::Initrd => f.write_str("initrd"),
            Part::Module { index } => write!(f, "module {index}"),
            Part::CommandLine => f.write_str("command line"),
            Part::BootInfo => f.write_str("boot information"),
            Part::PageTables => f.write_str("page tables"),
            Part::Gdt => f.write_str("GDT"),
            Part::SetupData => f.write_str("setup data"),
            Part::Stage0 => f.write_str("stage0"),
        }
    }
}

/// Why an image was not loaded. Memory may hold parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is nothing in the file.
    #[error("the image is empty")]
    Empty,
    /// A header that the file's own magic promised is cut off.
    #[error("{kind} header is cut off: {what} needs {needs:#x} bytes, the file has {has:#x}")]
    TruncatedHeader {
        /// What the file says it is.
        kind: ImageKind,
        /// Which structure.
        what: &'static str,
        /// File length that would hold it.
        needs: u64,
        /// File length.
        has: u64,
    },
    /// An IGVM file outside an SNP guest.
    #[error("an IGVM file describes the launch of a confidential guest, and this machine is for another one")]
    IgvmNeedsSnp,
    /// What is wrong with an IGVM file.
    #[error(transparent)]
    Igvm(#[from] IgvmError),

    /// Boot protocol before the 64-bit entry existed.
    #[error("bzImage speaks boot protocol {}.{:02}, needed is 2.12 or later", version >> 8, version & 0xff)]
    ProtocolTooOld {
        /// `setup_header.version`.
        version: u16,
    },
    /// A zImage, which runs below 640 KiB (LOADED_HIGH clear).
    #[error("bzImage wants to be loaded low (loadflags {loadflags:#x})")]
    LoadedLow {
        /// `setup_header.loadflags`.
        loadflags: u8,
    },
    /// The file ends before the kernel does.
    #[error("bzImage is cut off: setup and kernel are {needs:#x} bytes, the file has {has:#x}")]
    TruncatedKernel {
        /// Bytes that `setup_sects` and `syssize` promise.
        needs: u64,
        /// File length.
        has: u64,
    },
    /// `kernel_alignment` is not a power of two.
    #[error("bzImage asks for an alignment of {alignment:#x}, which is not a power of two")]
    KernelAlignment {
        /// `setup_header.kernel_alignment`.
        alignment: u32,
    },

    /// stage0 prepares the way for a Linux kernel of an encrypted guest, and for nothing else.
    #[error("stage0 starts a bzImage in an encrypted guest, and nothing else")]
    NotForStage0,
    /// More parts of memory than stage0 can be told of.
    #[error("{count} parts of memory; stage0 can be told of {limit}")]
    TooManyRegions {
        /// How many there are.
        count: usize,
        /// The most there can be.
        limit: usize,
    },

    /// A field of the ELF header has a value that cannot work here.
    #[error("ELF {field} is {value:#x}, needed is {expected}")]
    ElfField {
        /// The field's name in the specification.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What would have been right.
        expected: &'static str,
    },
    /// Nothing to load.
    #[error("the ELF file has no loadable segment")]
    NoSegments,
    /// A segment's contents lie outside the file.
    #[error("segment {index} takes {len_bytes:#x} bytes at {offset:#x} from a file of {has:#x}")]
    TruncatedSegment {
        /// Its number in the program header table.
        index: u16,
        /// p_offset.
        offset: u64,
        /// p_filesz.
        len_bytes: u64,
        /// File length.
        has: u64,
    },
    /// p_filesz is larger than p_memsz.
    #[error("segment {index} has {file_bytes:#x} bytes in the file but only {memory_bytes:#x} in memory")]
    SegmentShrinks {
        /// Its number in the program header table.
        index: u16,
        /// p_filesz.
        file_bytes: u64,
        /// p_memsz.
        memory_bytes: u64,
    },
    /// The entry point is in no segment.
    #[error("the entry point {entry:#x} lies in no loaded part")]
    EntryOutside {
        /// The address.
        entry: u64,
    },
    /// A 32-bit entry above 4 GiB.
    #[error("the 32-bit entry point {entry:#x} lies above 4 GiB")]
    EntryTooHigh {
        /// The address.
        entry: u64,
    },
    /// A 64-bit entry that the initial identity map does not reach.
    #[error("the entry point {entry} lies above the identity-mapped 4 GiB")]
    EntryUnmapped {
        /// The address.
        entry: Gpa,
    },
    /// The XEN_ELFNOTE_PHYS32_ENTRY note is neither 4 nor 8 bytes long.
    #[error("the PVH entry note has {len_bytes} bytes, needed are 4 or 8")]
    PvhNote {
        /// n_descsz.
        len_bytes: u64,
    },

    /// Requirement bits of a multiboot header that we do not know.
    #[error("the multiboot header requires features {flags:#x} that do not exist here")]
    MultibootFeature {
        /// The unknown bits among the lower 16.
        flags: u32,
    },
    /// The address fields of a multiboot header contradict each other or the file.
    #[error(
        "the multiboot header loads {load:#x}..{load_end:#x} and clears up to {bss_end:#x}, from a header at {header:#x}"
    )]
    MultibootAddresses {
        /// header_addr.
        header: u32,
        /// load_addr.
        load: u32,
        /// load_end_addr.
        load_end: u32,
        /// bss_end_addr.
        bss_end: u32,
    },
    /// No address fields, and not an ELF file either.
    #[error("the multiboot image is neither ELF nor has addresses in its header")]
    MultibootNoAddresses,
    /// Too many boot modules for the fixed tables.
    #[error("{count} boot modules; at most {limit} can be passed")]
    TooManyModules {
        /// How many there are, the initrd included.
        count: usize,
        /// The most that fit.
        limit: usize,
    },

    /// A part must lie where there is no RAM.
    #[error("{part} needs {len_bytes:#x} bytes at {base}, which is not RAM (there are {ram_bytes:#x} bytes in all)")]
    OutsideRam {
        /// What.
        part: Part,
        /// Where.
        base: Gpa,
        /// How much.
        len_bytes: u64,
        /// RAM of the machine.
        ram_bytes: u64,
    },
    /// Two parts claim the same address.
    #[error("{part} at {base} of {len_bytes:#x} bytes overlaps {other}")]
    Overlap {
        /// The later one.
        part: Part,
        /// The earlier one.
        other: Part,
        /// Where the later one starts.
        base: Gpa,
        /// How long the later one is.
        len_bytes: u64,
    },
    /// A part may be anywhere, but fits nowhere.
    #[error("no room for {part}: {len_bytes:#x} bytes of RAM below {below}")]
    NoRoom {
        /// What.
        part: Part,
        /// How much.
        len_bytes: u64,
        /// The address it must lie below.
        below: Gpa,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {len_bytes} bytes, the image takes at most {limit}")]
    CommandLineTooLong {
        /// Its length without terminator.
        len_bytes: usize,
        /// The most the image takes.
        limit: u64,
    },
    /// A NUL inside the command line would cut it off.
    #[error("the command line has a NUL byte at {at}")]
    CommandLineNul {
        /// Where.
        at: usize,
    },
    /// This kind of image has no way to receive this.
    #[error("a {kind} image cannot be given {what}")]
    CannotPass {
        /// The kind.
        kind: ImageKind,
        /// What was to be passed.
        what: &'static str,
    },
    /// A flat image in real mode must lie in the first megabyte.
    #[error("a real-mode image of {len_bytes:#x} bytes at {base} does not end below 1 MiB")]
    RealModeRange {
        /// Where it was to start.
        base: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// The machine's memory did not take a write inside its own map.
    #[error(transparent)]
    Memory(#[from] MemoryRefused),
}

impl LoadError {
    /// What the user can do about it, for the `help:` line.
    pub fn help(&self) -> &'static str {
        match self {
            LoadError::Empty => "give a bzImage, an ELF or multiboot kernel, or a flat binary",
            LoadError::TruncatedHeader { .. }
            | LoadError::TruncatedKernel { .. }
            | LoadError::TruncatedSegment { .. } => "the file is incomplete: copy or build it again",
            LoadError::IgvmNeedsSnp => "say --vm snp",
            LoadError::Igvm(error) => error.help(),
            LoadError::ProtocolTooOld { .. } => "use Linux 3.8 or later",
            LoadError::LoadedLow { .. } => "use a bzImage, not a zImage",
            LoadError::KernelAlignment { .. } | LoadError::SegmentShrinks { .. } => {
                "the header is damaged: copy or build the image again"
            }
            LoadError::ElfField { .. } => "an x86 executable (ET_EXEC, EM_386 or EM_X86_64) is needed",
            LoadError::NoSegments => "link a static executable, not an object file",
            LoadError::EntryOutside { .. } => "link with an entry point (ENTRY) inside a loaded section",
            LoadError::EntryTooHigh { .. } | LoadError::EntryUnmapped { .. } => "link the entry code below 4 GiB",
            LoadError::PvhNote { .. } => "the note XEN_ELFNOTE_PHYS32_ENTRY holds one 32-bit physical address",
            LoadError::MultibootFeature { .. } => "bits 0 to 2 of the header's flags are understood",
            LoadError::MultibootAddresses { .. } => {
                "load_addr <= header_addr and load_addr <= load_end_addr <= bss_end_addr"
            }
            LoadError::MultibootNoAddresses => "set bit 16 of the header's flags and fill in the addresses, or use ELF",
            LoadError::TooManyModules { .. } => "pack the files into one initrd",
            LoadError::OutsideRam { .. } | LoadError::NoRoom { .. } => "give more memory with --memory",
            LoadError::Overlap { .. } => {
                "link the image so that its parts do not overlap and leave the first 64 KiB free"
            }
            LoadError::CommandLineTooLong { .. } => "shorten --append",
            LoadError::CommandLineNul { .. } => "--append takes text without NUL bytes",
            LoadError::CannotPass { .. } => "leave that option out, or use a Linux, PVH, multiboot or ELF image",
            LoadError::RealModeRange { .. } => "use a protected-mode or long-mode load address",
            LoadError::NotForStage0 => "give a bzImage, or leave boot=stage0 out",
            LoadError::TooManyRegions { .. } => "more memory in one piece, or a smaller ramdisk, makes fewer parts",
            LoadError::Memory(_) => "the machine's memory is smaller than its map: this is a mistake in the emulator",
        }
    }
}
