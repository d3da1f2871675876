//! A bzImage behind stage0 (`guests/stage0`): the launch covers stage0, the kernel's file and what belongs to it, and stage0
//! makes the rest of RAM valid before it enters the kernel.
//!
//! What stage0 is told is one page, declared once for both in `guests/stage0/parameters.rs`. It lists what was launched,
//! which is known only when everything else is in place, so loading ends with [`Stage0::parameters`].

use emu_core::Gpa;

use super::bytes::{u32_at, u64_at};
use super::bzimage::{self, SetupHeader};
use super::confidential::Confidential;
use super::error::{LoadError, Part};
use super::long_mode::{FOUR_GIB, LongMode};
use super::memory::GuestMemory;
use super::placement::Placement;
use super::{Entry, ImageKind, LoadOptions};

#[path = "../../guests/stage0/parameters.rs"]
mod parameters;

use parameters::{ENTRIES, MapEntry, Parameters, Range};
pub use parameters::{REASON_SET, Reason};

const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stage0.elf"));
/// What stage0 is given of the kernel's file: the boot sector and the setup header.
const SETUP_BYTES: usize = 0x1000;

/// A kernel in place, and stage0 before it.
pub struct Stage0 {
    /// Where the first processor starts; RSI points to the parameters.
    pub entry: Entry,
    /// Where the parameters go.
    pub parameters_at: Gpa,
    parameters: Parameters,
}

/// The one segment of stage0's image: where it lies in the file and in memory, and its entry point.
struct Segment<'a> {
    bytes: &'a [u8],
    base: Gpa,
    len_bytes: u64,
    entry: Gpa,
}

/// Reads our own image. `None`: it was built otherwise than agreed.
fn segment() -> Option<Segment<'static>> {
    let header = usize::try_from(u64_at(IMAGE, 0x20)?).ok()?;
    let field = |at: usize| u64_at(IMAGE, (header + at) as u64);
    let (offset, base, in_file) = (field(8)?, field(0x18)?, field(0x20)?);
    let bytes = super::bytes::range(IMAGE, offset, in_file)?;
    let load = u32_at(IMAGE, header as u64)? == 1;
    let entry = Gpa::new(u64_at(IMAGE, 0x18)?);
    load.then_some(Segment { bytes, base: Gpa::new(base), len_bytes: field(0x28)?.next_multiple_of(0x1000), entry })
}

const fn range(at: Gpa, len_bytes: u64) -> Range {
    Range { base: at.raw(), len_bytes }
}

/// Puts stage0, the kernel `bytes` and what belongs to it into `memory`.
pub fn load(bytes: &[u8], options: &LoadOptions<'_>, memory: &mut dyn GuestMemory) -> Result<Stage0, LoadError> {
    let confidential = options.confidential.filter(|_| bzimage::has_magic(bytes)).ok_or(LoadError::NotForStage0)?;
    let mut placement = Placement::new(options.memory_map);
    let placement = &mut placement;
    let header = SetupHeader::checked(bytes)?;
    if !options.modules.is_empty() {
        return Err(LoadError::CannotPass { kind: ImageKind::BzImage, what: "boot modules besides the initrd" });
    }
    let Some(segment) = segment() else { unreachable!("the image is part of this program and has one segment") };
    placement.claim(Part::Stage0, segment.base, segment.len_bytes)?;
    let mut whole = segment.bytes.to_vec();
    whole.resize(segment.len_bytes as usize, 0);
    memory.write(segment.base, &whole)?;

    let kernel = header.kernel(bytes)?;
    let kernel_at = bzimage::place_kernel(&header, kernel.len() as u64, placement)?;
    memory.write(kernel_at, kernel)?;
    let setup = &bytes[..bytes.len().min(SETUP_BYTES)];
    let setup_at = placement.put_lowest(memory, Part::BootInfo, setup, FOUR_GIB)?;
    let cmdline = header.checked_cmdline(options)?;
    let cmdline_at = placement.put_lowest(memory, Part::CommandLine, &cmdline, FOUR_GIB)?;
    let long_mode = LongMode::build(options.encryption_mask(), placement, memory)?;
    let initrd = match options.initrd {
        None => range(Gpa::new(0), 0),
        Some(initrd) => range(bzimage::place_initrd(&header, initrd, placement, memory)?, initrd.len() as u64),
    };
    let mut page = |part| placement.lowest(part, 0x1000, 0x1000, FOUR_GIB);
    let (boot_params, setup_data) = (page(Part::BootInfo)?, page(Part::SetupData)?);
    let parameters_at = page(Part::Stage0)?;

    let regions = options.memory_map.regions();
    if regions.len() > ENTRIES {
        return Err(LoadError::TooManyRegions { count: regions.len(), limit: ENTRIES });
    }
    let nothing = range(Gpa::new(0), 0);
    let mut map = [MapEntry { range: nothing, kind: 0 }; ENTRIES];
    for (entry, region) in map.iter_mut().zip(regions) {
        *entry = MapEntry { range: range(region.base, region.len_bytes), kind: region.kind as u64 };
    }
    let parameters = Parameters {
        magic: Parameters::MAGIC,
        c_bit: confidential.c_bit.into(),
        setup: range(setup_at, setup.len() as u64),
        kernel: range(kernel_at, kernel.len() as u64),
        initrd,
        cmdline: range(cmdline_at, cmdline.len() as u64),
        rsdp: options.acpi_rsdp.map_or(0, Gpa::raw),
        secrets: Confidential::SECRETS.raw(),
        cpuid: Confidential::CPUID.raw(),
        cc_blob: Confidential::CC_BLOB.raw(),
        setup_data: setup_data.raw(),
        boot_params: boot_params.raw(),
        nr_map: regions.len() as u64,
        nr_launched: 0,
        map,
        launched: [nothing; ENTRIES],
    };
    let entry = Entry::Linux64 { rip: segment.entry, boot_params: parameters_at, long_mode };
    Ok(Stage0 { entry, parameters_at, parameters })
}

impl Stage0 {
    /// The page of parameters, for a launch of these ranges, ascending and apart, which hold the page itself.
    pub fn parameters(mut self, launched: &[(Gpa, u64)]) -> Result<Vec<u8>, LoadError> {
        if launched.len() > ENTRIES {
            return Err(LoadError::TooManyRegions { count: launched.len(), limit: ENTRIES });
        }
        self.parameters.nr_launched = launched.len() as u64;
        for (entry, &(at, len_bytes)) in self.parameters.launched.iter_mut().zip(launched) {
            *entry = range(at, len_bytes);
        }
        Ok(self.bytes())
    }

    /// The fields in their order, each of 8 bytes, as `repr(C)` lays them out.
    fn bytes(&self) -> Vec<u8> {
        let p = &self.parameters;
        let mut words = vec![p.magic, p.c_bit];
        for part in [p.setup, p.kernel, p.initrd, p.cmdline] {
            words.extend([part.base, part.len_bytes]);
        }
        words.extend([p.rsdp, p.secrets, p.cpuid, p.cc_blob, p.setup_data, p.boot_params, p.nr_map, p.nr_launched]);
        for entry in &p.map {
            words.extend([entry.range.base, entry.range.len_bytes, entry.kind]);
        }
        for part in &p.launched {
            words.extend([part.base, part.len_bytes]);
        }
        debug_assert_eq!(words.len() * 8, size_of::<Parameters>());
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// Why stage0 gave up, in words, if the code is one of its own.
pub const fn reason_in_words(code: u8) -> Option<&'static str> {
    const WORDS: [(Reason, &str); 6] = [
        (Reason::Panic, "stage0 has a defect"),
        (Reason::Parameters, "stage0 was given impossible parameters"),
        (Reason::NotSnp, "stage0 does not run as an SNP guest"),
        (Reason::Validate, "PVALIDATE of RAM failed"),
        (Reason::ValidatedTwice, "RAM had been validated before: the host shows one page twice"),
        (Reason::Protocol, "the hypervisor does not speak version 2 of the GHCB protocol"),
    ];
    let mut n = 0;
    while n < WORDS.len() {
        if WORDS[n].0 as u8 == code {
            return Some(WORDS[n].1);
        }
        n += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_one_small_segment_below_the_reserved_pages() {
        let segment = segment().expect("the image has one segment");
        assert_eq!(segment.base, Gpa::new(0x2_0000));
        assert!(segment.base.raw() + segment.len_bytes <= Confidential::SECRETS.raw());
        assert!(segment.entry >= segment.base && segment.entry.raw() < segment.base.raw() + segment.bytes.len() as u64);
        assert!(segment.bytes.len() as u64 <= segment.len_bytes);
    }

    #[test]
    fn every_reason_has_words() {
        for code in 0..=Reason::Protocol as u8 {
            assert!(reason_in_words(code).is_some(), "{code}");
        }
        assert_eq!(reason_in_words(Reason::Protocol as u8 + 1), None);
    }
}
