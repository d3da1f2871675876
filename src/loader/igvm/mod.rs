//! IGVM files: a launch written down, step by step (the specification is the crate `igvm_defs`).
//!
//! Modelled: files for SEV-SNP, versions 1 and 2, of x86-64. [`load`] makes of a file the [`Step`]s of its launch in the order
//! of its directives, because the digest depends on it; parameters are filled in where their area is inserted.
//!
//! Always true:
//! - every page lies in RAM of the map that was given, and none is there twice;
//! - the first processor has a save area, and none has two;
//! - no file makes the reader panic, and memory grows with the file's length, not with numbers in it.
//!
//! Left out: shared pages and error ranges, pages of 2 MiB, relocation, parameters other than those in [`Parameter`], save
//! areas in the guest's own memory (KVM launches them at [`VMSA_GPA`] alone).

mod error;
mod fuzz;
mod guard;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use emu_core::page::PAGE_SIZE;
use emu_core::sev::{SevFeatures, Vmpl};
use emu_core::{Gfn, Gpa};
use hypervisor::snp::launch::{IdAuth, IdKey, PageType, VMSA_GPA};
use igvm::snp_defs::SevVmsa;
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IsolationType};
use igvm_defs::{
    IGVM_VHS_MEMORY_MAP_ENTRY, IGVM_VHS_PARAMETER, IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY, IgvmEnvironmentInfo,
    IgvmPageDataFlags, IgvmPageDataType, MemoryMapEntryType,
};
use zerocopy::IntoBytes;

pub use error::IgvmError;
pub use fuzz::{IgvmFuzz, fuzz_igvm};

use super::memory::MemoryMap;
use super::{ImageKind, LoadError, LoadOptions};

type Page = [u8; PAGE_SIZE];

/// For which machine a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IgvmMachine {
    /// Processors.
    pub cpus: u16,
    /// The privilege level that they start at.
    pub vmpl: Vmpl,
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Igvm {
    /// The guest policy, if the file has one.
    pub policy: Option<u64>,
    /// The launch, in order.
    pub steps: Vec<Step>,
    /// What the owner expects.
    pub id: Option<Box<Identity>>,
}

/// One page of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Memory of the guest's.
    Memory {
        /// Where.
        gfn: Gfn,
        /// As what.
        page_type: PageType,
        /// What it holds; `None` for zeros. Secrets and CPUID pages are filled by the machine.
        bytes: Option<Box<Page>>,
    },
    /// A processor's first state.
    Vmsa {
        /// The processor's number.
        index: u16,
        /// Its save area.
        bytes: Box<Page>,
    },
}

/// An identity block without the policy, which is the launch's, and what it is signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The launch digest that is expected.
    pub digest: [u8; 48],
    /// Which family of images.
    pub family_id: [u8; 16],
    /// Which image.
    pub image_id: [u8; 16],
    /// Version of the structure.
    pub version: u32,
    /// Security version of the guest.
    pub guest_svn: u32,
    /// Keys and signatures.
    pub auth: IdAuth,
}

/// What a guest can be told in a parameter area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    VpCount,
    EnvironmentInfo,
    MemoryMap,
    CommandLine,
}

/// A parameter area that was declared.
struct Area {
    bytes: Vec<u8>,
    /// Something was to be put into it that is not known here.
    unsupported: Option<&'static str>,
}

struct Reader<'a> {
    options: &'a LoadOptions<'a>,
    machine: IgvmMachine,
    areas: BTreeMap<u32, Area>,
    given: BTreeSet<Gfn>,
    processors: BTreeSet<u16>,
    passed_cmdline: bool,
    igvm: Igvm,
}

/// What `file` wants launched, in the RAM of `options`' map.
///
/// # Errors
/// [`LoadError::Igvm`] for everything that is wrong with the file, [`LoadError::CannotPass`] for what it has no place for.
pub fn load(file: &[u8], options: &LoadOptions<'_>, machine: IgvmMachine) -> Result<Igvm, LoadError> {
    if options.initrd.is_some() || !options.modules.is_empty() {
        return Err(LoadError::CannotPass { kind: ImageKind::Igvm, what: "a ramdisk or modules" });
    }
    options.checked_cmdline()?;
    guard::check(file)?;
    let file = IgvmFile::new_from_binary(file, Some(IsolationType::Snp)).map_err(in_words)?;
    let mut reader = Reader {
        options,
        machine,
        areas: BTreeMap::new(),
        given: BTreeSet::new(),
        processors: BTreeSet::new(),
        passed_cmdline: false,
        igvm: Igvm { policy: None, steps: Vec::new(), id: None },
    };
    for header in file.initializations() {
        match *header {
            IgvmInitializationHeader::GuestPolicy { policy, .. } => {
                if reader.igvm.policy.replace(policy).is_some_and(|other| other != policy) {
                    return Err(IgvmError::Unsupported { what: "a second guest policy" }.into());
                }
            }
            _ => return Err(IgvmError::Unsupported { what: "relocation or another platform's policy" }.into()),
        }
    }
    for directive in file.directives() {
        reader.directive(directive)?;
    }
    if !reader.processors.contains(&0) {
        return Err(reader.processor("there is no context", 0).into());
    }
    if !options.cmdline.is_empty() && !reader.passed_cmdline {
        return Err(LoadError::CannotPass {
            kind: ImageKind::Igvm,
            what: "a command line, which this file does not ask for",
        });
    }
    Ok(reader.igvm)
}

fn in_words(error: igvm::Error) -> IgvmError {
    let source = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
    IgvmError::Format { cause: format!("{error}{source}") }
}

impl Reader<'_> {
    fn directive(&mut self, directive: &IgvmDirectiveHeader) -> Result<(), IgvmError> {
        use IgvmDirectiveHeader as D;
        match directive {
            D::PageData { gpa, flags, data_type, data, .. } => self.page(Gpa::new(*gpa), *flags, *data_type, data),
            D::ParameterArea { number_of_bytes, parameter_area_index, initial_data } => {
                // No longer than the guard allows.
                let mut bytes = initial_data.clone();
                bytes.resize(*number_of_bytes as usize, 0);
                self.areas.insert(*parameter_area_index, Area { bytes, unsupported: None });
                Ok(())
            }
            D::VpCount(place) => self.parameter(place, Parameter::VpCount),
            D::EnvironmentInfo(place) => self.parameter(place, Parameter::EnvironmentInfo),
            D::MemoryMap(place) => self.parameter(place, Parameter::MemoryMap),
            D::CommandLine(place) => self.parameter(place, Parameter::CommandLine),
            D::Srat(place) => self.unknown(place, "the parameter SRAT"),
            D::Madt(place) => self.unknown(place, "the parameter MADT"),
            D::Slit(place) => self.unknown(place, "the parameter SLIT"),
            D::Pptt(place) => self.unknown(place, "the parameter PPTT"),
            D::MmioRanges(place) => self.unknown(place, "the parameter of MMIO ranges"),
            D::DeviceTree(place) => self.unknown(place, "the parameter of the device tree"),
            D::ParameterInsert(insert) => self.insert(insert.parameter_area_index, Gpa::new(insert.gpa)),
            D::RequiredMemory { gpa, number_of_bytes, .. } => self.in_ram(Gpa::new(*gpa), u64::from(*number_of_bytes)),
            D::SnpVpContext { gpa, vp_index, vmsa, .. } => self.context(Gpa::new(*gpa), *vp_index, vmsa),
            D::SnpIdBlock {
                author_key_enabled,
                ld,
                family_id,
                image_id,
                version,
                guest_svn,
                id_key_algorithm,
                author_key_algorithm,
                id_key_signature,
                id_public_key,
                author_key_signature,
                author_public_key,
                ..
            } => {
                let author = (*author_key_enabled != 0).then(|| IdKey {
                    algorithm: *author_key_algorithm,
                    curve: author_public_key.curve,
                    point: point(author_public_key),
                    signature: [author_key_signature.r_comp, author_key_signature.s_comp],
                });
                let id = IdKey {
                    algorithm: *id_key_algorithm,
                    curve: id_public_key.curve,
                    point: point(id_public_key),
                    signature: [id_key_signature.r_comp, id_key_signature.s_comp],
                };
                let identity = Identity {
                    digest: *ld,
                    family_id: *family_id,
                    image_id: *image_id,
                    version: *version,
                    guest_svn: *guest_svn,
                    auth: IdAuth { id, author },
                };
                match self.igvm.id.replace(Box::new(identity)) {
                    None => Ok(()),
                    Some(_) => Err(IgvmError::Unsupported { what: "a second identity block" }),
                }
            }
            D::ErrorRange { .. } => Err(IgvmError::Unsupported { what: "a shared range for errors" }),
            D::X64NativeVpContext { .. }
            | D::X64VbsVpContext { .. }
            | D::AArch64VbsVpContext { .. }
            | D::AArch64CcaVpContext { .. }
            | D::VbsMeasurement { .. } => {
                Err(IgvmError::Unsupported { what: "a processor's state or a measurement of another platform" })
            }
        }
    }

    fn page(
        &mut self,
        gpa: Gpa,
        flags: IgvmPageDataFlags,
        data_type: IgvmPageDataType,
        data: &[u8],
    ) -> Result<(), IgvmError> {
        if flags.is_2mb_page() {
            return Err(IgvmError::Unsupported { what: "a page of 2 MiB" });
        }
        if flags.shared() || flags.reserved() != 0 {
            return Err(IgvmError::Unsupported { what: "a shared page" });
        }
        let page_type = match data_type {
            IgvmPageDataType::NORMAL if flags.unmeasured() => PageType::Unmeasured,
            IgvmPageDataType::NORMAL => PageType::Normal,
            IgvmPageDataType::SECRETS => PageType::Secrets,
            IgvmPageDataType::CPUID_DATA => PageType::Cpuid,
            _ => return Err(IgvmError::Unsupported { what: "a second page of CPUID" }),
        };
        self.launch(gpa.frame(), page_type, data)
    }

    /// The page at `gfn` is launched next; `data` are its beginning, zeros the rest.
    fn launch(&mut self, gfn: Gfn, page_type: PageType, data: &[u8]) -> Result<(), IgvmError> {
        let gpa = gfn.base();
        self.in_ram(gpa, PAGE_SIZE as u64)?;
        if !self.given.insert(gfn) {
            return Err(IgvmError::Twice { gpa });
        }
        let has_contents = matches!(page_type, PageType::Normal | PageType::Unmeasured);
        let bytes = (has_contents && data.iter().any(|&byte| byte != 0)).then(|| {
            let mut page = Box::new([0; PAGE_SIZE]);
            page.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            page
        });
        self.igvm.steps.push(Step::Memory { gfn, page_type, bytes });
        Ok(())
    }

    fn in_ram(&self, gpa: Gpa, len_bytes: u64) -> Result<(), IgvmError> {
        if len_bytes == 0 || self.options.memory_map.holds(gpa, len_bytes) {
            return Ok(());
        }
        Err(IgvmError::OutsideRam { gpa, len_bytes })
    }

    fn unknown(&mut self, place: &IGVM_VHS_PARAMETER, what: &'static str) -> Result<(), IgvmError> {
        // Which platform the area is for shows when it is inserted.
        if let Some(area) = self.areas.get_mut(&place.parameter_area_index) {
            area.unsupported = Some(what);
        }
        Ok(())
    }

    fn parameter(&mut self, place: &IGVM_VHS_PARAMETER, parameter: Parameter) -> Result<(), IgvmError> {
        let (what, value) = match parameter {
            Parameter::VpCount => ("the number of processors", u32::from(self.machine.cpus).to_le_bytes().to_vec()),
            // Memory is not shared to begin with.
            Parameter::EnvironmentInfo => ("the environment", IgvmEnvironmentInfo::new().as_bytes().to_vec()),
            Parameter::MemoryMap => ("the memory map", memory_map(self.options.memory_map)),
            Parameter::CommandLine => {
                self.passed_cmdline = true;
                ("the command line", [self.options.cmdline.as_bytes(), &[0]].concat())
            }
        };
        let Some(area) = self.areas.get_mut(&place.parameter_area_index) else {
            return Err(IgvmError::Unsupported { what: "a parameter without its area" });
        };
        let (at, has) = (place.byte_offset as usize, area.bytes.len() as u64);
        let needs = at as u64 + value.len() as u64;
        let field = area.bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len()));
        field.ok_or(IgvmError::AreaTooSmall { what, needs, has })?.copy_from_slice(&value);
        Ok(())
    }

    /// The area becomes pages that are not measured.
    fn insert(&mut self, index: u32, gpa: Gpa) -> Result<(), IgvmError> {
        let area = self.areas.remove(&index);
        let area = area.ok_or(IgvmError::Unsupported { what: "a parameter area that is not there" })?;
        if let Some(what) = area.unsupported {
            return Err(IgvmError::Unsupported { what });
        }
        self.in_ram(gpa, area.bytes.len() as u64)?;
        for (n, page) in (0..).zip(area.bytes.chunks(PAGE_SIZE)) {
            self.launch(Gfn::new(gpa.frame().raw() + n), PageType::Unmeasured, page)?;
        }
        Ok(())
    }

    fn processor(&self, what: &'static str, index: u16) -> IgvmError {
        IgvmError::Processor { what, index, cpus: self.machine.cpus }
    }

    fn context(&mut self, gpa: Gpa, index: u16, vmsa: &SevVmsa) -> Result<(), IgvmError> {
        if gpa != VMSA_GPA {
            return Err(IgvmError::SaveAreaPlace { gpa, only: VMSA_GPA });
        }
        if index >= self.machine.cpus {
            return Err(self.processor("there is a context", index));
        }
        if !self.processors.insert(index) {
            return Err(self.processor("there is a second context", index));
        }
        let features = (u64::from(vmsa.sev_features), SevFeatures::SNP_ACTIVE.bits());
        let vmpl = (u64::from(vmsa.vmpl), self.machine.vmpl as u64);
        for (field, (value, needed)) in [("SEV_FEATURES", features), ("VMPL", vmpl)] {
            if value != needed {
                return Err(IgvmError::SaveArea { index, field, value, needed });
            }
        }
        let mut bytes = Box::new([0; PAGE_SIZE]);
        bytes.copy_from_slice(vmsa.as_bytes());
        self.igvm.steps.push(Step::Vmsa { index, bytes });
        Ok(())
    }
}

const _: () = assert!(size_of::<SevVmsa>() == PAGE_SIZE);

fn point(key: &IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY) -> [[u8; 72]; 2] {
    [key.qx, key.qy]
}

/// RAM as the format tells it: ascending, ended by an entry without pages.
fn memory_map(map: &MemoryMap) -> Vec<u8> {
    let entry = |first: u64, pages: u64| IGVM_VHS_MEMORY_MAP_ENTRY {
        starting_gpa_page_number: first,
        number_of_pages: pages,
        entry_type: MemoryMapEntryType::MEMORY,
        flags: 0,
        reserved: 0,
    };
    let ram = map.ram().map(|region| entry(region.base.frame().raw(), region.len_bytes / PAGE_SIZE as u64));
    ram.chain([entry(0, 0)]).flat_map(|entry| entry.as_bytes().to_vec()).collect()
}
