//! What can be wrong with an IGVM file.

use emu_core::Gpa;
use thiserror::Error;

/// Why an IGVM file was not loaded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IgvmError {
    /// The fixed header contradicts itself or the file's length.
    #[error("IGVM file: the fixed header does not fit a file of {has:#x} bytes")]
    FixedHeader {
        /// File length.
        has: u64,
    },
    /// The variable headers end in the middle of one.
    #[error("IGVM file: the variable header at {at:#x} is cut off")]
    CutOff {
        /// Its place in the file.
        at: u64,
    },
    /// A header that nothing is known of, or of another length than its type has.
    #[error(
        "IGVM file: the variable header at {at:#x} has the unknown type {kind:#x} or a wrong length of {len_bytes:#x}"
    )]
    UnknownHeader {
        /// Its place in the file.
        at: u64,
        /// Its type.
        kind: u32,
        /// Its length.
        len_bytes: u32,
    },
    /// A header refers to data outside the file's data section.
    #[error("IGVM file: the variable header at {at:#x} takes {len_bytes:#x} bytes from {offset:#x}, which is not data")]
    Data {
        /// The header's place in the file.
        at: u64,
        /// Where the data are said to be.
        offset: u64,
        /// How long they are.
        len_bytes: u64,
    },
    /// The parameter areas are larger than any use for them.
    #[error("IGVM file: parameter areas of more than {limit:#x} bytes")]
    LargeAreas {
        /// The most they may have, in all.
        limit: u64,
    },
    /// A processor's state for a platform whose states cannot be read.
    #[error("IGVM file: the processor context at {at:#x} is for another platform than SEV-SNP")]
    ForeignContext {
        /// The header's place in the file.
        at: u64,
    },
    /// The format's rules are broken, or its checksum is wrong.
    #[error("IGVM file: {cause}")]
    Format {
        /// Which, in words.
        cause: String,
    },
    /// The file does not describe a launch under SEV-SNP.
    #[error("the IGVM file is for other platforms than SEV-SNP")]
    NoSnpPlatform,
    /// Something that exists in the format, but not here.
    #[error("IGVM file: {what} cannot be loaded")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// Memory that is needed, and is not there.
    #[error("IGVM file: {len_bytes:#x} bytes at {gpa} are not RAM")]
    OutsideRam {
        /// Where.
        gpa: Gpa,
        /// How much.
        len_bytes: u64,
    },
    /// A page is given twice.
    #[error("IGVM file: the page at {gpa} is given twice")]
    Twice {
        /// The page.
        gpa: Gpa,
    },
    /// A value does not fit its area.
    #[error("IGVM file: {what} takes {needs:#x} bytes of a parameter area of {has:#x}")]
    AreaTooSmall {
        /// Which value.
        what: &'static str,
        /// Where it would end.
        needs: u64,
        /// The area's length.
        has: u64,
    },
    /// No first processor, one twice, or one that the machine does not have.
    #[error("IGVM file: {what} for processor {index}; the machine has {cpus}")]
    Processor {
        /// What is wrong.
        what: &'static str,
        /// Its number.
        index: u16,
        /// Processors of the machine.
        cpus: u16,
    },
    /// A processor's state in memory of the guest's own.
    #[error("IGVM file: the save area at {gpa}; KVM launches save areas at {only} alone")]
    SaveAreaPlace {
        /// Where the file has it.
        gpa: Gpa,
        /// Where it may be.
        only: Gpa,
    },
    /// A save area that wants another mode than the machine's.
    #[error("IGVM file: processor {index} has {field} {value:#x}; the machine runs it with {needed:#x}")]
    SaveArea {
        /// Whose.
        index: u16,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What would fit.
        needed: u64,
    },
}

impl IgvmError {
    /// What the user can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            IgvmError::FixedHeader { .. } | IgvmError::CutOff { .. } | IgvmError::Data { .. } => {
                "the file is incomplete: copy or build it again"
            }
            IgvmError::Format { .. } | IgvmError::Twice { .. } | IgvmError::AreaTooSmall { .. } => {
                "the file is damaged: copy or build it again"
            }
            IgvmError::UnknownHeader { .. } | IgvmError::Unsupported { .. } | IgvmError::LargeAreas { .. } => {
                "pages, required memory, save areas, an identity block and four parameters (memory map, processors, \
                 environment, command line) are understood"
            }
            IgvmError::ForeignContext { .. } | IgvmError::NoSnpPlatform => "build the file for SEV-SNP alone",
            IgvmError::OutsideRam { .. } => {
                "give more memory with --memory; devices take what lies from 3 GiB to 4 GiB"
            }
            IgvmError::Processor { .. } => {
                "give each processor of --cpus one context at most, and the first one its own"
            }
            IgvmError::SaveAreaPlace { .. } => "build the file for KVM, with the save area at 0xfffffffff000",
            IgvmError::SaveArea { .. } => "build the file without further SEV features, and for the level of --vmpl",
        }
    }
}
