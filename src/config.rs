//! The machine's configuration as values: what can be chosen, in which limits, and how it is written.
//!
//! Shared by the command line and the library; nothing here knows of either. Text forms follow other VMMs: sizes are
//! decimal numbers with a binary suffix (`512M`, `2G`), and a bare number is MiB.

mod devices;
mod gmem;
mod inject;
mod mmu;
mod snp;

use core::fmt;
use core::str::FromStr;

pub use self::devices::{DeviceError, DiskBus, DiskChoice, DiskSource, NetChoice};
pub use self::gmem::GmemChoice;
pub use self::inject::{Defence, Injection, Lie, LieTarget};
pub use self::mmu::{MmuChoice, NestedPaging};
pub use self::snp::{SnpBoot, SnpChoice, parse_c_bit, parse_policy, parse_vmpl};
use emu_core::PageSize;
use emu_core::cpu_model::CpuModel;
use hypervisor::VmKind;
use hypervisor::snp::memory::{Assign, RmpSizes};
use thiserror::Error;

use crate::vmm::random::{DEFAULT_INTERVAL, RandomConfig};
use crate::vmm::{InitialRam, OnMemoryFault, SharedSide};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A value that cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Not a number with an optional suffix.
    #[error("\"{0}\" is not a size")]
    NotASize(String),
    /// A memory size outside the limits, or not whole 4 KiB pages.
    #[error("memory of {0} bytes is not between 1M and 16T in whole 4 KiB pages")]
    MemorySize(u64),
    /// A key of a `key=value` list that does not exist.
    #[error("\"{0}\" is not a property of memory")]
    MemoryProperty(String),
    /// A property given twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A list of memory properties without a size.
    #[error("memory is given without a size")]
    NoMemorySize,
    /// Not a page size.
    #[error("\"{0}\" is not a page size")]
    PageSize(String),
    /// Not a number of vCPUs.
    #[error("\"{0}\" is not a number of vCPUs")]
    CpuCount(String),
    /// Not a processor model.
    #[error("\"{0}\" is not a processor model")]
    CpuModel(String),
    /// Not a kind of nested paging.
    #[error("\"{0}\" is not a kind of nested paging")]
    NestedPaging(String),
    /// A key of the list after the kind of nested paging that does not exist, or a value that it cannot have.
    #[error("\"{0}\" is not a property of the MMU")]
    MmuProperty(String),
    /// A property that means nothing for this kind of nested paging.
    #[error("--mmu {paging} has no property {property}")]
    MmuWithout {
        /// The property.
        property: &'static str,
        /// The kind.
        paging: NestedPaging,
    },
    /// The processor logs a page when it sets a dirty flag.
    #[error("page-modification logging works by the dirty flags of EPT, which are off")]
    LogsWithoutDirtyFlags,
    /// Not a kind of VM.
    #[error("\"{0}\" is not a kind of VM")]
    VmKind(String),
    /// A key of the list after the kind of VM that does not exist, or a value that it cannot have.
    #[error("\"{0}\" is not a property of this kind of VM")]
    VmProperty(String),
    /// A property that this kind of VM does not have.
    #[error("a default VM has no private memory, so \"{0}\" means nothing")]
    NoPrivateMemory(String),
    /// Not a guest policy.
    #[error("\"{0}\" is not a guest policy")]
    Policy(String),
    /// Not a place for the C-bit.
    #[error("\"{0}\" is not the number of a bit above all RAM")]
    CBit(String),
    /// Not a privilege level.
    #[error("\"{0}\" is not a privilege level")]
    Vmpl(String),
    /// A guest that would use private memory as shared.
    #[error("the built-in guests know nothing of encrypted memory")]
    SnpBuiltin,
    /// A flag of SNP guests beside another kind of VM.
    #[error("only an SNP guest has this")]
    NotSnp,
    /// Not a lie of a host.
    #[error("\"{0}\" is nothing that can be injected")]
    Injection(String),
    /// A page for a lie that is about none.
    #[error("{0} is told in an answer, so no page belongs to it")]
    LieWithoutPage(Lie),
    /// Not a seed with an optional distance.
    #[error("\"{0}\" is not a seed and a distance")]
    VmmRandom(String),
    /// Not a way of guest_memfd to behave.
    #[error("\"{0}\" is no property of guest_memfd")]
    Gmem(String),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Not a built-in guest.
    #[error("\"{0}\" is no guest of the program")]
    Guest(String),
    /// Not a format of traces.
    #[error("\"{0}\" is not a trace format")]
    TraceFormat(String),
    /// Neither a tracepoint nor a group of them.
    #[error("\"{0}\" is not a tracepoint")]
    TraceEvent(String),
    /// Not a seed.
    #[error("\"{0}\" is not a seed")]
    Seed(String),
}

impl ConfigError {
    /// What would have been right, for the `help:` line.
    pub fn help(&self) -> &'static str {
        match self {
            ConfigError::NotASize(_) => "sizes are like 512M, 2G or 1T; a bare number is MiB",
            ConfigError::MemorySize(_) => "the smallest machine has 1M, the largest 16T",
            ConfigError::MemoryProperty(_) | ConfigError::NoMemorySize => "memory is 2G, or size=2G,pages=2m",
            ConfigError::VmmRandom(_) => {
                "it is a seed like 7 or 0x5eed, and if you like a distance in instructions: 7:1000000"
            }
            ConfigError::Gmem(_) => {
                "first a generation if you like (7.3, next, v1, v2, wip), then split=, shared=, punch=, order=, to-shared=, \
                 to-private=, each once; docs/running.md has their values"
            }
            ConfigError::Device(cause) => cause.help(),
            ConfigError::Guest(_) => "bifold run --list-guests tells which there are",
            ConfigError::VmKind(_) => "kinds of VM are default, sw-protected and snp",
            ConfigError::VmProperty(_) => {
                "sw-protected has ram=shared|private, api=next|7.3 and fault=convert|stop; snp has boot=launch|stage0, assign=lazy|eager, \
                 rmp=4k|2m|merge and fault=convert|stop"
            }
            ConfigError::NoPrivateMemory(_) => "say --vm sw-protected or --vm snp",
            ConfigError::Policy(_) => "a policy is a 64-bit number like 0x30000; bit 17 must be set",
            ConfigError::CBit(_) => "the C-bit is one of 47 to 51; processors with SNP have it at 51",
            ConfigError::Vmpl(_) => "privilege levels are 0 to 3",
            ConfigError::Injection(_) => {
                "WHAT[@INSTRUCTIONS][:GPA|:code|:user]; WHAT is replay, remap, swap, resize, double-validate, drop, ghcb, \
                 ghcb-valid or cpuid"
            }
            ConfigError::LieWithoutPage(_) => "leave out what stands behind the colon",
            ConfigError::SnpBuiltin => "give the image of a kernel that can be an SNP guest",
            ConfigError::NotSnp => "say --vm snp",
            ConfigError::Twice(_) => "give it once",
            ConfigError::PageSize(_) => "page sizes are 4k, 2m and 1g",
            ConfigError::CpuCount(_) => "a machine has 1 to 64 vCPUs",
            ConfigError::CpuModel(_) => "the models are amd and intel",
            ConfigError::NestedPaging(_) => {
                "the kinds are npt (AMD), ept (Intel) and shadow (none: the hypervisor shadows the guest's tables)"
            }
            ConfigError::MmuProperty(_) | ConfigError::MmuWithout { .. } => {
                "ept has ad=on|off|write-protect and pml=on|off; npt and ept have eager-page-split=on|off, nx-huge-pages=on|off \
                 and mmio-caching=on|off; every kind has slot-zap=leaves|all"
            }
            ConfigError::LogsWithoutDirtyFlags => "say ad=on, or leave pml out",
            ConfigError::TraceFormat(_) => "FILE, FILE:text, FILE:jsonl, FILE:perfetto, or the word digest",
            ConfigError::TraceEvent(_) => {
                "a list of names like kvm_page_fault or groups vcpu, fault, mmu, invalidate, dirty, gmem, pool, all; -NAME leaves out"
            }
            ConfigError::Seed(_) => "a seed is a 64-bit number, decimal or 0x and hexadecimal",
        }
    }
}

/// Bytes written as a number with an optional suffix K, M, G or T (also `MiB` and `MB`, all binary). Without a suffix
/// the number counts MiB.
pub fn parse_size(text: &str) -> Result<u64, ConfigError> {
    let refused = || ConfigError::NotASize(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => MIB,
        "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "g" | "gb" | "gib" => KIB * MIB,
        "t" | "tb" | "tib" => MIB * MIB,
        _ => return Err(refused()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(refused)
}

/// How much RAM the guest has: whole 4 KiB pages, 1 MiB to 16 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

impl MemorySize {
    /// 2 GiB.
    pub const DEFAULT: MemorySize = MemorySize(2 * KIB * MIB);

    /// A size in bytes, when it lies in the limits.
    pub const fn new(bytes: u64) -> Result<MemorySize, ConfigError> {
        if bytes < MIB || bytes > 16 * MIB * MIB || !bytes.is_multiple_of(4 * KIB) {
            return Err(ConfigError::MemorySize(bytes));
        }
        Ok(MemorySize(bytes))
    }
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<MemorySize, ConfigError> {
        MemorySize::new(parse_size(text)?)
    }
}

/// In the largest unit that divides it, as [`parse_size`] reads it back.
impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(MIB * MIB, "T"), (KIB * MIB, "G"), (MIB, "M")];
        let (unit, name) = units.into_iter().find(|(unit, _)| self.0.is_multiple_of(*unit)).unwrap_or((KIB, "K"));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// What `--memory` says: a size alone, or `size=2G,pages=2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryArgument {
    /// How much.
    pub size: MemorySize,
    /// The largest page that backs it, when that was said too.
    pub pages: Option<PageSize>,
}

impl FromStr for MemoryArgument {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<MemoryArgument, ConfigError> {
        let (mut size, mut pages) = (None, None);
        for (n, property) in text.split(',').enumerate() {
            match property.split_once('=') {
                // As with other VMMs, the size may come first without its name.
                None if n == 0 => size = Some(property.parse()?),
                Some(("size", _)) if size.is_some() => return Err(ConfigError::Twice("size")),
                Some(("pages", _)) if pages.is_some() => return Err(ConfigError::Twice("pages")),
                Some(("size", value)) => size = Some(value.parse()?),
                Some(("pages", value)) => pages = Some(parse_page_size(value)?),
                _ => return Err(ConfigError::MemoryProperty(property.to_owned())),
            }
        }
        Ok(MemoryArgument { size: size.ok_or(ConfigError::NoMemorySize)?, pages })
    }
}

/// `4k`, `2m` or `1g`, in either case.
pub fn parse_page_size(text: &str) -> Result<PageSize, ConfigError> {
    let wanted = |size: &PageSize| size.to_string().eq_ignore_ascii_case(text);
    PageSize::ALL.into_iter().find(wanted).ok_or_else(|| ConfigError::PageSize(text.to_owned()))
}

/// How many vCPUs: 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCount(u8);

impl CpuCount {
    /// One.
    pub const ONE: CpuCount = CpuCount(1);

    /// A count, when it lies in the limits.
    pub const fn new(count: u8) -> Option<CpuCount> {
        if count >= 1 && count <= 64 { Some(CpuCount(count)) } else { None }
    }
    /// The count.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl FromStr for CpuCount {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<CpuCount, ConfigError> {
        text.parse().ok().and_then(CpuCount::new).ok_or_else(|| ConfigError::CpuCount(text.to_owned()))
    }
}

/// Whose processor the guest sees, of the x86-64-v3 level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CpuKind {
    /// AuthenticAMD.
    #[default]
    Amd,
    /// GenuineIntel.
    Intel,
}

impl CpuKind {
    /// The model with everything it has.
    pub fn model(self) -> CpuModel {
        match self {
            CpuKind::Amd => CpuModel::amd_v3(),
            CpuKind::Intel => CpuModel::intel_v3(),
        }
    }
}

impl FromStr for CpuKind {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<CpuKind, ConfigError> {
        match text.to_ascii_lowercase().as_str() {
            "amd" => Ok(CpuKind::Amd),
            "intel" => Ok(CpuKind::Intel),
            _ => Err(ConfigError::CpuModel(text.to_owned())),
        }
    }
}

/// What `--vm` says: a kind, how RAM of a software-protected one begins, how an SNP guest is launched and its memory kept,
/// and who resolves memory faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VmChoice {
    /// The kind.
    pub kind: VmKind,
    /// How RAM begins.
    pub ram: InitialRam,
    /// Where shared memory is.
    pub shared: SharedSide,
    /// What the VMM does about memory faults.
    pub on_memory_fault: OnMemoryFault,
    /// An SNP guest's.
    pub snp: SnpChoice,
}

impl FromStr for VmChoice {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<VmChoice, ConfigError> {
        let mut words = text.split(',');
        let kind = match words.next() {
            Some("default") => VmKind::Default,
            Some("sw-protected") => VmKind::SwProtected,
            Some("snp") => VmKind::Snp,
            other => return Err(ConfigError::VmKind(other.unwrap_or_default().to_owned())),
        };
        let mut choice = VmChoice { kind, ..VmChoice::default() };
        let mut given = Vec::new();
        for property in words {
            if kind == VmKind::Default {
                return Err(ConfigError::NoPrivateMemory(property.to_owned()));
            }
            let (name, set): (&'static str, fn(&mut VmChoice)) = match (kind, property) {
                (VmKind::SwProtected, "ram=shared") => ("ram", |c| c.ram = InitialRam::Shared),
                (VmKind::SwProtected, "api=next") => ("api", |c| c.shared = SharedSide::Gmem),
                (VmKind::SwProtected, "api=7.3") => ("api", |c| c.shared = SharedSide::UserMemory),
                (VmKind::SwProtected, "ram=private") => ("ram", |c| c.ram = InitialRam::Private),
                (VmKind::Snp, "boot=launch") => ("boot", |c| c.snp.boot = SnpBoot::Launch),
                (VmKind::Snp, "boot=stage0") => ("boot", |c| c.snp.boot = SnpBoot::Stage0),
                (VmKind::Snp, "assign=lazy") => ("assign", |c| c.snp.assign = Assign::Lazy),
                (VmKind::Snp, "assign=eager") => ("assign", |c| c.snp.assign = Assign::Eager),
                (VmKind::Snp, "rmp=4k") => ("rmp", |c| c.snp.sizes = RmpSizes::Only4K),
                (VmKind::Snp, "rmp=2m") => ("rmp", |c| c.snp.sizes = RmpSizes::UpTo2M),
                (VmKind::Snp, "rmp=merge") => ("rmp", |c| c.snp.sizes = RmpSizes::MergeBack),
                (_, "fault=convert") => ("fault", |c| c.on_memory_fault = OnMemoryFault::Convert),
                (_, "fault=stop") => ("fault", |c| c.on_memory_fault = OnMemoryFault::Stop),
                _ => return Err(ConfigError::VmProperty(property.to_owned())),
            };
            if given.contains(&name) {
                return Err(ConfigError::Twice(name));
            }
            given.push(name);
            set(&mut choice);
        }
        Ok(choice)
    }
}

/// A 64-bit number, decimal or with `0x`.
pub fn parse_seed(text: &str) -> Result<u64, ConfigError> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| ConfigError::Seed(text.to_owned()))
}

/// What `--vmm-random` says: a seed, and after a colon the mean distance of two actions in instructions.
pub fn parse_vmm_random(text: &str) -> Result<RandomConfig, ConfigError> {
    let refused = || ConfigError::VmmRandom(text.to_owned());
    let (seed, every) = match text.split_once(':') {
        None => (text, DEFAULT_INTERVAL),
        Some((seed, every)) => (seed, every.parse().ok().filter(|&n: &u64| n > 0).ok_or_else(refused)?),
    };
    Ok(RandomConfig::with(parse_seed(seed).map_err(|_| refused())?, every))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        let good = [("2G", 2 << 30), ("512", 512 << 20), ("4096K", 4 << 20), ("1t", 1 << 40), ("3GiB", 3 << 30)];
        for (text, bytes) in good {
            assert_eq!(text.parse().map(MemorySize::bytes), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "2X", "1.5G", "99999999999T", "0x10", "2 G"] {
            assert_eq!(text.parse::<MemorySize>(), Err(ConfigError::NotASize(text.to_owned())));
        }
        for (text, bytes) in [("0", 0), ("17T", 17 << 40), ("1048577b", (1 << 20) + 1), ("4K", 4096)] {
            assert_eq!(text.parse::<MemorySize>(), Err(ConfigError::MemorySize(bytes)));
        }
    }

    #[test]
    fn sizes_print_as_they_are_read() {
        for text in ["16T", "2G", "1536M", "1028K"] {
            assert_eq!(text.parse::<MemorySize>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn memory_lists() {
        let size = MemorySize::DEFAULT;
        let with = |pages| Ok(MemoryArgument { size, pages });
        assert_eq!("2G".parse(), with(None));
        assert_eq!("2G,pages=2m".parse(), with(Some(PageSize::Size2M)));
        assert_eq!("pages=1G,size=2G".parse(), with(Some(PageSize::Size1G)));
        let refused = |text: &str| text.parse::<MemoryArgument>().unwrap_err();
        assert_eq!(refused("2G,size=2G"), ConfigError::Twice("size"));
        assert_eq!(refused("pages=2m"), ConfigError::NoMemorySize);
        assert_eq!(refused("2G,hot=on"), ConfigError::MemoryProperty("hot=on".to_owned()));
        assert_eq!(refused("2G,4G"), ConfigError::MemoryProperty("4G".to_owned()));
        assert_eq!(refused("size=2G,pages=3m"), ConfigError::PageSize("3m".to_owned()));
    }

    #[test]
    fn kinds_of_vm() {
        let plain = VmChoice::default();
        let protected = VmChoice { kind: VmKind::SwProtected, ..plain };
        assert_eq!("default".parse(), Ok(plain));
        assert_eq!("sw-protected".parse(), Ok(protected));
        assert_eq!("sw-protected,ram=private".parse(), Ok(VmChoice { ram: InitialRam::Private, ..protected }));
        let two_sided = VmChoice { shared: SharedSide::UserMemory, ..protected };
        assert_eq!("sw-protected,api=7.3".parse(), Ok(two_sided));
        assert_eq!("sw-protected,api=next".parse(), Ok(protected));
        let stops = VmChoice { on_memory_fault: OnMemoryFault::Stop, ..protected };
        assert_eq!("sw-protected,fault=stop,ram=shared".parse(), Ok(stops));
        let refused = |text: &str| text.parse::<VmChoice>().unwrap_err();
        assert_eq!(refused(""), ConfigError::VmKind(String::new()));
        assert_eq!(refused("tdx"), ConfigError::VmKind("tdx".to_owned()));
        assert_eq!(refused("default,ram=private"), ConfigError::NoPrivateMemory("ram=private".to_owned()));
        assert_eq!(refused("sw-protected,ram=secret"), ConfigError::VmProperty("ram=secret".to_owned()));
        assert_eq!(refused("sw-protected,ram=private,ram=shared"), ConfigError::Twice("ram"));
        let snp: VmChoice = "snp,boot=stage0,rmp=merge,assign=eager,fault=stop".parse().unwrap();
        assert_eq!((snp.kind, snp.on_memory_fault), (VmKind::Snp, OnMemoryFault::Stop));
        let wanted = SnpChoice { boot: SnpBoot::Stage0, assign: Assign::Eager, sizes: RmpSizes::MergeBack, ..snp.snp };
        assert_eq!(snp.snp, wanted);
        assert_eq!(refused("snp,ram=private"), ConfigError::VmProperty("ram=private".to_owned()));
        assert_eq!(refused("sw-protected,boot=stage0"), ConfigError::VmProperty("boot=stage0".to_owned()));
        assert_eq!(refused("snp,rmp=4k,rmp=4k"), ConfigError::Twice("rmp"));
    }

    #[test]
    fn counts_kinds_and_seeds() {
        assert_eq!("64".parse().map(CpuCount::get), Ok(64));
        for text in ["0", "65", "256", "two", ""] {
            assert_eq!(text.parse::<CpuCount>(), Err(ConfigError::CpuCount(text.to_owned())));
        }
        assert_eq!("Intel".parse(), Ok(CpuKind::Intel));
        assert_eq!("via".parse::<CpuKind>(), Err(ConfigError::CpuModel("via".to_owned())));
        assert_eq!(parse_seed("0x5eed"), Ok(0x5eed));
        assert_eq!(parse_seed("18446744073709551615"), Ok(u64::MAX));
        assert!(parse_seed("18446744073709551616").is_err());
    }
}
