//! Images: what a file is, and how it is put into a guest's memory.
//!
//! Modelled: the Linux/x86 boot protocol (64-bit entry), the PVH boot ABI of Xen, the Multiboot Specification 0.6.96,
//! and the System V ELF format as far as program headers and notes. [`probe`] says what a file is; [`load`] writes
//! it, with what its protocol passes along, and returns the state its first vCPU starts in ([`Entry`]).
//!
//! Always true, for every file:
//! - no panic, no endless loop, and no allocation that follows a number in the file;
//! - every write lies inside one RAM region of the map that was given, and no two parts overlap;
//! - an [`Entry`]'s tables and information structures have been written when it is returned.
//!
//! Left out on purpose: the 16-bit and 32-bit Linux entries and EFI (the 64-bit entry serves every kernel that is wanted
//! here), multiboot 2, relocation of ET_DYN files, section headers and symbols. An IGVM file is no image but a launch: [`igvm`].

mod boot_segments;
mod builtin;
mod bytes;
mod bzimage;
mod confidential;
mod elf;
mod error;
mod flat;
mod fuzz;
pub mod igvm;
mod long_mode;
mod memory;
mod multiboot;
mod placement;
mod probe;
mod pvh;
#[cfg(test)]
mod samples;
pub mod stage0;
#[cfg(test)]
mod tests;

use emu_core::Gpa;

pub use boot_segments::BootSegments;
pub use builtin::{BUILTIN, BUILTINS, BuiltinGuest};
pub use confidential::Confidential;
pub use error::{LoadError, Part};
pub use flat::{FlatMode, FlatPlacement};
pub use fuzz::fuzz_one;
pub use long_mode::LongMode;
pub use memory::{GuestMemory, MemoryMap, MemoryMapError, MemoryRefused, MemoryRegion, RegionKind};
pub use multiboot::BOOTLOADER_MAGIC;
pub use probe::{ImageKind, probe};

use placement::Placement;

/// Boot modules that can be passed, the initrd included.
pub const MAX_MODULES: usize = 32;

/// A file to load.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Its name, which multiboot images receive as the first word of their command line.
    pub name: &'a str,
    /// Its contents.
    pub bytes: &'a [u8],
}

/// A file passed along with the image.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its contents.
    pub bytes: &'a [u8],
    /// The command line it carries.
    pub cmdline: &'a str,
}

/// With what, and into which machine, an image is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions<'a> {
    /// The guest's physical address map: where RAM is, and what the guest is told.
    pub memory_map: &'a MemoryMap,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The initial ramdisk; module 0 of the protocols that know modules only.
    pub initrd: Option<&'a [u8]>,
    /// Further modules, for PVH, multiboot and plain ELF images.
    pub modules: &'a [Module<'a>],
    /// Where the machine put the ACPI root pointer, if it has ACPI tables.
    pub acpi_rsdp: Option<Gpa>,
    /// Where a flat image goes.
    pub flat: FlatPlacement,
    /// What an encrypted guest finds; `None` for every other.
    pub confidential: Option<Confidential>,
}

impl<'a> LoadOptions<'a> {
    /// An image alone: nothing is passed along.
    pub const fn new(memory_map: &'a MemoryMap) -> LoadOptions<'a> {
        LoadOptions {
            memory_map,
            cmdline: "",
            initrd: None,
            modules: &[],
            acpi_rsdp: None,
            flat: FlatPlacement::Customary,
            confidential: None,
        }
    }

    /// The C-bit as entries of page tables carry it; 0 where there is none.
    fn encryption_mask(&self) -> u64 {
        self.confidential.map_or(0, |confidential| 1 << confidential.c_bit)
    }

    /// The command line as the guest reads it, refusing what it cannot hold.
    fn checked_cmdline(&self) -> Result<&'a [u8], LoadError> {
        match self.cmdline.bytes().position(|byte| byte == 0) {
            Some(at) => Err(LoadError::CommandLineNul { at }),
            None => Ok(self.cmdline.as_bytes()),
        }
    }
}

/// The state in which the first vCPU starts, by boot protocol. In every state interrupts are disabled; registers that
/// are not named are zero. The 32-bit states are protected mode without paging: flat 4 GiB segments, CS 32-bit code
/// readable, the data segments writable, TR a 32-bit TSS, CR0.PE alone, CR4 and EFER zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux, 64-bit boot protocol.
    Linux64 {
        /// startup_64 of the loaded kernel.
        rip: Gpa,
        /// The zero page, for RSI.
        boot_params: Gpa,
        /// Paging and segments.
        long_mode: LongMode,
    },
    /// Linux, 32-bit boot protocol.
    Linux32 {
        /// startup_32 of the loaded kernel.
        eip: u32,
        /// The zero page, for ESI.
        boot_params: Gpa,
        /// Segments.
        segments: BootSegments,
    },
    /// PVH: 32-bit, EBX is the address of `hvm_start_info`.
    Pvh32 {
        /// The address from the note.
        eip: u32,
        /// For EBX.
        start_info: Gpa,
    },
    /// Multiboot 1: 32-bit, EAX is [`BOOTLOADER_MAGIC`], EBX the address of the information structure.
    Multiboot32 {
        /// The entry point.
        eip: u32,
        /// For EBX.
        info: Gpa,
    },
    /// ELF32 without a boot protocol: 32-bit. By our own convention EBX is the address of a PVH `hvm_start_info`.
    Elf32 {
        /// The entry point.
        eip: u32,
        /// For EBX.
        start_info: Gpa,
    },
    /// ELF64 without a boot protocol: 64-bit over an identity map. RBX as for [`Entry::Elf32`].
    Elf64 {
        /// The entry point, physical.
        rip: Gpa,
        /// For RBX.
        start_info: Gpa,
        /// Paging and segments.
        long_mode: LongMode,
    },
    /// A flat image in real mode: CS base 0, IP the load address.
    FlatReal {
        /// Load address and entry point.
        ip: u16,
    },
    /// A flat image in 32-bit protected mode.
    Flat32 {
        /// Load address and entry point.
        eip: u32,
    },
    /// A flat image in 64-bit mode.
    Flat64 {
        /// Load address and entry point.
        rip: Gpa,
        /// Paging and segments.
        long_mode: LongMode,
    },
}

/// Puts `image` and what belongs to it into `memory`.
pub fn load(image: &Image<'_>, options: &LoadOptions<'_>, memory: &mut dyn GuestMemory) -> Result<Entry, LoadError> {
    let modules = options.modules.len() + usize::from(options.initrd.is_some());
    if modules > MAX_MODULES {
        return Err(LoadError::TooManyModules { count: modules, limit: MAX_MODULES });
    }
    let mut placement = Placement::new(options.memory_map);
    let kind = probe(image.bytes).ok_or(LoadError::Empty)?;
    match kind {
        ImageKind::BzImage => bzimage::load(image.bytes, options, &mut placement, memory),
        ImageKind::Multiboot1 => multiboot::load(image, options, &mut placement, memory),
        ImageKind::Pvh | ImageKind::Elf32 | ImageKind::Elf64 => {
            elf::load(image.bytes, kind, options, &mut placement, memory)
        }
        ImageKind::Flat => flat::load(image.bytes, options, &mut placement, memory),
        ImageKind::Igvm => Err(LoadError::IgvmNeedsSnp),
    }
}
