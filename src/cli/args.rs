//! Flags, and what they mean. clap splits the words; the values are read here, so that an error can say what would
//! have been right.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use emu_core::PageSize;
use emu_core::rng::Seed;

use super::CliError;
use super::devices::{DeviceArguments, DeviceConfig};
use super::explore::ExploreArguments;
use super::page::ReportArguments;
use super::trace::{TraceArguments, TraceConfig};
use crate::config::{
    ConfigError, CpuCount, CpuKind, GmemChoice, Injection, MemoryArgument, MemorySize, MmuChoice, VmChoice,
    parse_c_bit, parse_page_size, parse_policy, parse_seed, parse_vmm_random, parse_vmpl,
};
use crate::loader::{BUILTINS, BuiltinGuest};
use crate::vmm::SharedSide;
use crate::vmm::random::RandomConfig;
use gmem::policy::Generation;
use hypervisor::VmKind;

/// An x86-64 machine in software whose memory virtualisation is the point.
#[derive(Debug, Parser)]
#[command(name = "bifold", version, about)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an image, or the built-in guest.
    Run(Box<RunArguments>),
    /// Say what a file is and whether it would load.
    Check(CheckArguments),
    /// Make one page of a trace: memory over time, faults, conversions, pools.
    Report(ReportArguments),
    /// Look for races of the memory pipeline: every order of steps of a few tasks.
    Explore(ExploreArguments),
}

/// The flags of `bifold run`, as text.
#[derive(Debug, Default, Args)]
pub struct RunArguments {
    /// bzImage, PVH, multiboot or ELF kernel, or flat binary [default: the built-in guest].
    #[arg(value_name = "IMAGE")]
    pub image: Option<PathBuf>,
    /// The same as IMAGE.
    #[arg(short, long, value_name = "FILE", conflicts_with = "image")]
    pub kernel: Option<PathBuf>,
    /// One of the guests that need no file [default: paging].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "kernel"])]
    pub guest: Option<String>,
    /// List the guests that need no file, and end.
    #[arg(long)]
    pub list_guests: bool,
    /// Initial ramdisk, or first boot module.
    #[arg(short, long, value_name = "FILE", alias = "initramfs")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(short = 'p', long, value_name = "TEXT", alias = "cmdline", default_value = "", hide_default_value = true)]
    pub append: String,
    /// RAM: 2G, or size=2G,pages=2m; a bare number is MiB [default: 2G].
    #[arg(short, long, value_name = "SIZE", alias = "mem")]
    pub memory: Option<String>,
    /// vCPUs, 1 to 64 [default: 1].
    #[arg(short, long, value_name = "N", alias = "smp")]
    pub cpus: Option<String>,
    /// Whose processor the guest sees: amd or intel [default: amd].
    #[arg(long, value_name = "KIND")]
    pub cpu: Option<String>,
    /// Largest page that backs guest memory: 4k, 2m or 1g [default: 4k].
    #[arg(long, value_name = "SIZE")]
    pub pages: Option<String>,
    /// Nested paging: npt, ept or shadow, which may be followed by properties like ,pml=on or ,slot-zap=all [default: npt].
    #[arg(long, value_name = "KIND")]
    pub mmu: Option<String>,
    /// Kind of VM: default; sw-protected, which may be followed by ,ram=shared|private ,api=next|7.3 and ,fault=convert|stop; or snp (a
    /// guest under AMD SEV-SNP), with ,boot=launch|stage0 ,assign=lazy|eager ,rmp=4k|2m|merge ,fault=convert|stop.
    #[arg(long, value_name = "KIND")]
    pub vm: Option<String>,
    /// Guest policy of an SNP guest [default: 0x30000].
    #[arg(long, value_name = "N")]
    pub policy: Option<String>,
    /// Number of the C-bit of an SNP guest [default: 51].
    #[arg(long, value_name = "BIT")]
    pub cbit: Option<String>,
    /// Privilege level that an SNP guest starts at [default: 0].
    #[arg(long, value_name = "LEVEL")]
    pub vmpl: Option<String>,
    /// Print the launch digest of an SNP guest, and end.
    #[arg(long)]
    pub launch_digest: bool,
    /// A host that lies, once, to an SNP guest: replay, remap, swap, resize, double-validate, drop, ghcb, ghcb-valid or cpuid,
    /// then @INSTRUCTIONS and :GPA, :code or :user if they matter; see docs/sev-snp-faults.md.
    #[arg(long, value_name = "WHAT", conflicts_with = "parallel")]
    pub inject: Option<String>,
    /// How guest_memfd behaves: a generation, split=, shared=, punch=, order= [default: next with huge folios].
    #[arg(long, value_name = "LIST")]
    pub gmem: Option<String>,
    /// Look at every invariant of the hypervisor each INTERVAL instructions, and at the end [INTERVAL: 10000000].
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "10000000",
          conflicts_with = "parallel", value_parser = clap::value_parser!(u64).range(1..))]
    pub check_invariants: Option<u64>,
    /// What the VMM does and when: a file in the language of docs/vmm-script.md.
    #[arg(long, value_name = "FILE", conflicts_with = "parallel")]
    pub script: Option<PathBuf>,
    /// Let the VMM do at random what the guest must not notice: a seed, and the mean distance in instructions.
    #[arg(long, value_name = "SEED[:INTERVAL]", conflicts_with = "parallel")]
    pub vmm_random: Option<String>,
    /// What decides every choice of the run; printed with its summary [default: 0].
    #[arg(long, value_name = "N")]
    pub seed: Option<String>,
    /// A host thread for each vCPU. Faster with several, and no longer the same run for the same seed.
    #[arg(long)]
    pub parallel: bool,
    /// End after this many instructions of all vCPUs together.
    #[arg(long, value_name = "N")]
    pub max_instructions: Option<u64>,
    /// End after this many seconds of the host's time.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// One JSON object on standard output at the end; the console goes to standard error or --serial.
    #[arg(long)]
    pub json: bool,
    /// Write the console here instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub serial: Option<PathBuf>,
    /// Devices on the PCI bus.
    #[command(flatten)]
    pub devices: DeviceArguments,
    /// How the run is recorded.
    #[command(flatten)]
    pub trace: TraceArguments,
    /// End instead of restarting when the guest asks for a reset.
    #[arg(long)]
    pub no_reboot: bool,
}

/// The flags of `bifold check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// RAM that it would be loaded into [default: 2G].
    #[arg(short, long, value_name = "SIZE", alias = "mem")]
    pub memory: Option<String>,
    /// One JSON object on standard output instead of sentences.
    #[arg(long)]
    pub json: bool,
}

/// Where a run's summary goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Text on standard error.
    Text,
    /// One JSON object on standard output.
    Json,
}

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReset {
    /// The machine starts again.
    Restart,
    /// The run ends, with exit code 0.
    End,
}

/// What a run is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageChoice {
    /// A file.
    File(PathBuf),
    /// A guest that is part of the program, by its name.
    Builtin(&'static str),
}

/// When vCPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vcpus {
    /// One after the other, as the seed decides.
    InTurns,
    /// All at the same time, each on a host thread.
    Parallel,
}

/// A run as it was asked for, every value checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// What to run.
    pub image: ImageChoice,
    /// Initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// RAM.
    pub memory: MemorySize,
    /// The largest page that backs it.
    pub pages: PageSize,
    /// vCPUs.
    pub cpus: CpuCount,
    /// Whose processor the guest sees.
    pub cpu: CpuKind,
    /// The kind of paging beneath the guest.
    pub mmu: MmuChoice,
    /// The kind of VM.
    pub vm: VmChoice,
    /// Tell the launch digest and do not run.
    pub launch_digest: bool,
    /// What its host does to an SNP guest.
    pub inject: Option<Injection>,
    /// How guest_memfd behaves.
    pub gmem: GmemChoice,
    /// Look at the invariants so often.
    pub check_every: Option<u64>,
    /// The VMM's script.
    pub script: Option<PathBuf>,
    /// What the VMM does at random, when the script does not say.
    pub vmm_random: Option<RandomConfig>,
    /// What decides every choice.
    pub seed: Seed,
    /// When vCPUs run.
    pub vcpus: Vcpus,
    /// End after this many instructions.
    pub max_instructions: Option<u64>,
    /// End after this much of the host's time.
    pub timeout: Option<Duration>,
    /// Where the summary goes.
    pub report: Report,
    /// Where the console goes, if not to the terminal.
    pub serial: Option<PathBuf>,
    /// Devices on the PCI bus.
    pub devices: DeviceConfig,
    /// How it is recorded.
    pub trace: TraceConfig,
    /// What a reset does.
    pub on_reset: OnReset,
}

/// Reads the value of a flag, or takes its default.
pub(super) fn value<T>(
    flag: &'static str,
    text: Option<&str>,
    default: T,
    read: impl FnOnce(&str) -> Result<T, ConfigError>,
) -> Result<T, CliError> {
    text.map_or(Ok(default), read).map_err(|cause| CliError::Flag { flag, cause })
}

fn memory(text: Option<&str>) -> Result<MemoryArgument, CliError> {
    let default = MemoryArgument { size: MemorySize::DEFAULT, pages: None };
    value("--memory", text, default, str::parse)
}

impl RunArguments {
    /// The configuration these flags mean.
    pub fn resolve(self) -> Result<RunConfig, CliError> {
        let MemoryArgument { size, pages: in_memory } = memory(self.memory.as_deref())?;
        let pages = value("--pages", self.pages.as_deref(), None, |text| parse_page_size(text).map(Some))?;
        let pages = match (in_memory, pages) {
            (Some(memory), Some(pages)) if memory != pages => return Err(CliError::Pages { memory, pages }),
            (memory, pages) => pages.or(memory).unwrap_or(PageSize::Size4K),
        };
        let guest = value("--guest", self.guest.as_deref(), &BUILTINS[0], |name| {
            BuiltinGuest::named(name).ok_or_else(|| ConfigError::Guest(name.to_owned()))
        })?;
        let mut vm = value("--vm", self.vm.as_deref(), VmChoice::default(), str::parse)?;
        vm.snp.policy = value("--policy", self.policy.as_deref(), vm.snp.policy, parse_policy)?;
        vm.snp.c_bit = value("--cbit", self.cbit.as_deref(), vm.snp.c_bit, parse_c_bit)?;
        vm.snp.vmpl = value("--vmpl", self.vmpl.as_deref(), vm.snp.vmpl, parse_vmpl)?;
        let of_snp = [
            ("--policy", self.policy.is_some()),
            ("--cbit", self.cbit.is_some()),
            ("--vmpl", self.vmpl.is_some()),
            ("--launch-digest", self.launch_digest),
            ("--inject", self.inject.is_some()),
        ];
        if let Some(&(flag, _)) = of_snp.iter().find(|(_, given)| *given && vm.kind != VmKind::Snp) {
            return Err(CliError::Flag { flag, cause: ConfigError::NotSnp });
        }
        let image = self.image.or(self.kernel).map_or(ImageChoice::Builtin(guest.name), ImageChoice::File);
        if vm.kind == VmKind::Snp && matches!(image, ImageChoice::Builtin(_)) {
            return Err(CliError::Flag { flag: "--vm", cause: ConfigError::SnpBuiltin });
        }
        Ok(RunConfig {
            image,
            initrd: self.initrd,
            cmdline: self.append,
            memory: size,
            pages,
            cpus: value("--cpus", self.cpus.as_deref(), CpuCount::ONE, str::parse)?,
            cpu: value("--cpu", self.cpu.as_deref(), CpuKind::default(), str::parse)?,
            mmu: value("--mmu", self.mmu.as_deref(), MmuChoice::default(), str::parse)?,
            vm,
            launch_digest: self.launch_digest,
            inject: value("--inject", self.inject.as_deref(), None, |text| text.parse().map(Some))?,
            gmem: value("--gmem", self.gmem.as_deref(), gmem_of(&vm), str::parse)?,
            check_every: self.check_invariants,
            script: self.script,
            vmm_random: value("--vmm-random", self.vmm_random.as_deref(), None, |text| {
                parse_vmm_random(text).map(Some)
            })?,
            seed: Seed(value("--seed", self.seed.as_deref(), 0, parse_seed)?),
            vcpus: if self.parallel { Vcpus::Parallel } else { Vcpus::InTurns },
            max_instructions: self.max_instructions,
            timeout: self.timeout.map(Duration::from_secs),
            report: if self.json { Report::Json } else { Report::Text },
            serial: self.serial,
            devices: self.devices.resolve()?,
            trace: self.trace.resolve()?,
            on_reset: if self.no_reboot { OnReset::End } else { OnReset::Restart },
        })
    }
}

/// How guest_memfd behaves when `--gmem` does not say: as the kernel whose memory the VM has.
fn gmem_of(vm: &VmChoice) -> GmemChoice {
    match vm.shared {
        SharedSide::Gmem => GmemChoice::default(),
        SharedSide::UserMemory => GmemChoice(Generation::V7_3.policy()),
    }
}

impl CheckArguments {
    /// The RAM that the file would be loaded into.
    pub fn memory(&self) -> Result<MemorySize, CliError> {
        Ok(memory(self.memory.as_deref())?.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NestedPaging;

    fn resolve(words: &[&str]) -> Result<RunConfig, CliError> {
        let words = ["bifold", "run"].iter().chain(words);
        match Arguments::try_parse_from(words).expect("clap takes the words").command {
            Command::Run(arguments) => arguments.resolve(),
            Command::Check(_) | Command::Explore(_) | Command::Report(_) => unreachable!("the words begin with run"),
        }
    }

    #[test]
    fn the_command_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn nothing_said_means_the_builtin_guest() {
        let config = resolve(&[]).unwrap();
        assert_eq!(
            (config.image, config.memory, config.cpus),
            (ImageChoice::Builtin("paging"), MemorySize::DEFAULT, CpuCount::ONE)
        );
        assert_eq!((config.pages, config.mmu, config.seed), (PageSize::Size4K, MmuChoice::default(), Seed(0)));
        assert_eq!((config.report, config.on_reset), (Report::Text, OnReset::Restart));
    }

    #[test]
    fn words_of_other_vmms() {
        let ours = ["vmlinuz", "--initrd", "i", "--append", "quiet", "--memory", "4G", "--cpus", "2"];
        let theirs = ["-k", "vmlinuz", "--initramfs", "i", "--cmdline", "quiet", "-m", "4096", "--smp", "2"];
        let short = ["--kernel", "vmlinuz", "-i", "i", "-p", "quiet", "--mem", "size=4G", "-c", "2"];
        let config = resolve(&ours).unwrap();
        assert_eq!(config, resolve(&theirs).unwrap());
        assert_eq!(config, resolve(&short).unwrap());
        assert_eq!(config.memory.bytes(), 4 << 30);
    }

    #[test]
    fn the_rest_arrives_too() {
        let words = "--pages 2m --mmu ept --cpu intel --seed 0x10 --max-instructions 5 --timeout 3 --json --serial s --no-reboot";
        let config = resolve(&words.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!((config.pages, config.mmu.paging, config.seed), (PageSize::Size2M, NestedPaging::Ept, Seed(16)));
        assert_eq!((config.max_instructions, config.timeout), (Some(5), Some(Duration::from_secs(3))));
        assert_eq!(config.cpu, CpuKind::Intel);
        assert_eq!((config.report, config.on_reset), (Report::Json, OnReset::End));
        assert_eq!(config.serial, Some(PathBuf::from("s")));
    }

    #[test]
    fn a_bad_value_names_its_flag_and_what_is_right() {
        let error = resolve(&["--memory", "2X"]).unwrap_err();
        assert_eq!(error.to_string(), "--memory: \"2X\" is not a size");
        assert_eq!(error.help(), "sizes are like 512M, 2G or 1T; a bare number is MiB");
        assert_eq!(resolve(&["--cpus", "65"]).unwrap_err().to_string(), "--cpus: \"65\" is not a number of vCPUs");
        let error = resolve(&["--memory", "2G,pages=2m", "--pages", "1g"]).unwrap_err();
        assert_eq!(error.to_string(), "--memory says pages=2M, --pages says 1G");
        assert!(resolve(&["--memory", "2G,pages=2m", "--pages", "2m"]).is_ok());
    }

    #[test]
    fn two_images_are_one_too_many() {
        assert!(Arguments::try_parse_from(["bifold", "run", "a", "--kernel", "b"]).is_err());
        assert!(Arguments::try_parse_from(["bifold", "run", "a", "--guest", "paging"]).is_err());
    }

    #[test]
    fn the_vmm_is_told_what_to_do() {
        let config = resolve(&["--script", "s.toml", "--vmm-random", "0x7:5000"]).unwrap();
        assert_eq!(config.script, Some(PathBuf::from("s.toml")));
        assert_eq!(config.vmm_random, Some(RandomConfig::with(7, 5000)));
        let error = resolve(&["--vmm-random", "7:0"]).unwrap_err();
        assert_eq!(error.to_string(), "--vmm-random: \"7:0\" is not a seed and a distance");
        assert!(Arguments::try_parse_from(["bifold", "run", "--parallel", "--script", "s.toml"]).is_err());
    }

    #[test]
    fn invariants_are_looked_at_when_asked_for() {
        let every = |words: &[&str]| resolve(words).unwrap().check_every;
        assert_eq!((every(&[]), every(&["--check-invariants", "image"])), (None, Some(10_000_000)));
        assert_eq!(every(&["--check-invariants=500"]), Some(500));
        assert!(Arguments::try_parse_from(["bifold", "run", "--check-invariants=0"]).is_err());
    }

    #[test]
    fn flags_of_snp_guests_want_one() {
        let config =
            resolve(&["bzImage", "--vm", "snp", "--policy", "0x30001", "--cbit", "50", "--launch-digest"]).unwrap();
        assert_eq!((config.vm.snp.policy, config.vm.snp.c_bit, config.launch_digest), (0x3_0001, 50, true));
        assert_eq!(
            resolve(&["--vm", "snp"]).unwrap_err().help(),
            "give the image of a kernel that can be an SNP guest"
        );
        let plain = [&["--policy", "0x30000"][..], &["--cbit", "51"], &["--vmpl", "0"], &["--launch-digest"]];
        for words in plain.into_iter().chain([&["--inject", "drop"][..]]) {
            let error = resolve(words).unwrap_err();
            assert_eq!(error.to_string(), format!("{}: only an SNP guest has this", words[0]));
            assert_eq!(error.help(), "say --vm snp");
        }
    }

    #[test]
    fn guests_have_names() {
        assert_eq!(resolve(&["--guest", "conversions"]).unwrap().image, ImageChoice::Builtin("conversions"));
        let error = resolve(&["--guest", "quake"]).unwrap_err();
        assert_eq!(error.to_string(), "--guest: \"quake\" is no guest of the program");
    }
}
