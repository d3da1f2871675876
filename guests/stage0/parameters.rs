//! What the loader tells stage0: one page, in both programs the same declaration.

/// Bytes of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// An entry of the kernel's memory map (`struct boot_e820_entry` with padding).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MapEntry {
    /// Where.
    pub range: Range,
    /// What for, as E820h numbers it.
    pub kind: u64,
}

/// Entries of each list.
pub const ENTRIES: usize = 64;

/// The page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Parameters {
    /// [`Parameters::MAGIC`].
    pub magic: u64,
    /// The C-bit's number in a page-table entry.
    pub c_bit: u64,
    /// The beginning of the kernel's file: boot sector and setup header.
    pub setup: Range,
    /// The protected-mode part of the kernel, where it is to run.
    pub kernel: Range,
    /// The initial ramdisk; empty if there is none.
    pub initrd: Range,
    /// The command line and its terminator.
    pub cmdline: Range,
    /// The ACPI root pointer.
    pub rsdp: u64,
    /// The page of secrets, filled at launch.
    pub secrets: u64,
    /// The table of CPUID, filled at launch.
    pub cpuid: u64,
    /// Where `struct cc_blob_sev_info` and the node of setup data go: a page in reserved memory and one in RAM.
    pub cc_blob: u64,
    /// See [`Parameters::cc_blob`].
    pub setup_data: u64,
    /// Where `struct boot_params` goes.
    pub boot_params: u64,
    /// Entries of [`Parameters::map`].
    pub nr_map: u64,
    /// Entries of [`Parameters::launched`].
    pub nr_launched: u64,
    /// What the kernel is told of memory.
    pub map: [MapEntry; ENTRIES],
    /// What was part of the launch, ascending: it is valid already.
    pub launched: [Range; ENTRIES],
}

impl Parameters {
    /// "BFSTAGE0".
    pub const MAGIC: u64 = u64::from_le_bytes(*b"BFSTAGE0");
}

const _: () = assert!(size_of::<Parameters>() <= 0x1000);

/// Reason set of the termination requests that stage0 makes.
pub const REASON_SET: u8 = 0xf;

/// Why stage0 gives up, as the reason code of a termination request tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// A defect of stage0.
    Panic = 0,
    /// The parameters are not what was agreed.
    Parameters = 1,
    /// SEV_STATUS says that the guest is not SNP-active.
    NotSnp = 2,
    /// PVALIDATE failed.
    Validate = 3,
    /// PVALIDATE changed nothing: the page had been validated before, which a host that remaps pages causes.
    ValidatedTwice = 4,
    /// The hypervisor answered a request with something else.
    Protocol = 5,
}
