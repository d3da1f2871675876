//! The flags of devices, and the host's files behind them.
//!
//! A disk's image is read as the guest asks for its blocks, and written never; its last contents go to the file that
//! `out=` names when the run has ended, under another name first, so that a run that fails leaves what was there.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use devices::block::{Blank, Disk, DiskImage, SECTOR};

use super::CliError;
use crate::config::{ConfigError, DiskChoice, DiskSource, NetChoice};
use crate::machine::{Device, Machine};

/// Bytes that are moved at a time when a disk is written out.
const CHUNK: u64 = 1 << 20;

/// The flags, as text.
#[derive(Debug, Default, Args)]
pub struct DeviceArguments {
    /// A disk: FILE or size=64M, then ,bus=virtio|nvme ,readonly ,serial=TEXT ,out=FILE. The image itself is never written.
    #[arg(long, value_name = "DISK", alias = "drive")]
    pub disk: Vec<String>,
    /// A virtio network device on a network: user (another host with DHCP, ping and an echo service) or loopback.
    #[arg(long, value_name = "NETWORK")]
    pub net: Vec<String>,
    /// A virtio console, which has the keyboard and writes where the serial port does; or only writes, to FILE.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub virtio_console: Option<Option<PathBuf>>,
    /// A virtio entropy device, which gives the random bytes of --seed.
    #[arg(long)]
    pub rng: bool,
}

/// Where a virtio console writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleChoice {
    /// There is none.
    Absent,
    /// Where the serial port does; the keyboard is the console's.
    Terminal,
    /// To a file.
    File(PathBuf),
}

/// Devices as they were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Disks.
    pub disks: Vec<DiskChoice>,
    /// Networks, a device each.
    pub networks: Vec<NetChoice>,
    /// The virtio console.
    pub console: ConsoleChoice,
    /// Whether there is an entropy device.
    pub rng: bool,
}

impl DeviceArguments {
    /// The devices that these flags mean.
    pub fn resolve(self) -> Result<DeviceConfig, CliError> {
        Ok(DeviceConfig {
            disks: each("--disk", &self.disk)?,
            networks: each("--net", &self.net)?,
            console: match self.virtio_console {
                None => ConsoleChoice::Absent,
                Some(None) => ConsoleChoice::Terminal,
                Some(Some(path)) => ConsoleChoice::File(path),
            },
            rng: self.rng,
        })
    }
}

/// Every value of a flag that may be given several times.
fn each<T: FromStr<Err = ConfigError>>(flag: &'static str, texts: &[String]) -> Result<Vec<T>, CliError> {
    texts.iter().map(|text| text.parse().map_err(|cause| CliError::Flag { flag, cause })).collect()
}

/// A raw image in a file.
#[derive(Debug)]
struct RawImage {
    file: File,
    len: u64,
}

impl DiskImage for RawImage {
    fn len_bytes(&self) -> u64 {
        self.len
    }
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        self.file.read_exact_at(bytes, offset).map_err(|cause| cause.to_string())
    }
}

fn raw_image(path: &Path) -> Result<RawImage, CliError> {
    let open = || {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(RawImage { file, len })
    };
    open().map_err(|cause| CliError::Read { path: path.to_owned(), cause })
}

/// Opens what the devices need on the host.
pub(super) fn open(config: &DeviceConfig) -> Result<Vec<Device>, CliError> {
    let disk = |(number, choice): (usize, &DiskChoice)| {
        let image: Arc<dyn DiskImage> = match &choice.source {
            DiskSource::File(path) => Arc::new(raw_image(path)?),
            DiskSource::Blank(bytes) => Arc::new(Blank(*bytes)),
        };
        let serial = choice.serial.clone().unwrap_or_else(|| format!("bifold-{number}"));
        Ok(Device::Disk(Disk::new(image, choice.access, &serial), choice.bus))
    };
    let mut devices = config.disks.iter().enumerate().map(disk).collect::<Result<Vec<Device>, CliError>>()?;
    devices.extend(config.networks.iter().copied().map(Device::Net));
    devices.extend((config.console != ConsoleChoice::Absent).then_some(Device::Console));
    devices.extend(config.rng.then_some(Device::Rng));
    Ok(devices)
}

/// Puts the disks of `machine` as they are now into `plugged`, for the machine that follows it.
pub(super) fn keep(plugged: &mut [Device], machine: &Machine) {
    let disks = plugged.iter_mut().filter_map(|device| match device {
        Device::Disk(disk, _) => Some(disk),
        _ => None,
    });
    for (place, disk) in disks.zip(machine.disks()) {
        place.clone_from(disk);
    }
}

/// Writes the disks that are to be kept.
pub(super) fn finish(config: &DeviceConfig, machine: &Machine) -> Result<(), CliError> {
    for (choice, disk) in config.disks.iter().zip(machine.disks()) {
        if let Some(path) = &choice.out {
            write(disk, path).map_err(|cause| CliError::Write { path: path.clone(), cause })?;
        }
    }
    Ok(())
}

fn write(disk: &Disk, path: &Path) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut file = BufWriter::new(File::create(&part)?);
    let mut first = 0;
    while first < disk.sectors() {
        let count = (disk.sectors() - first).min(CHUNK / SECTOR);
        let mut bytes = vec![0; (count * SECTOR) as usize];
        disk.read(first, &mut bytes).map_err(std::io::Error::other)?;
        file.write_all(&bytes)?;
        first += count;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(part, path)
}

/// The file of a virtio console that has one.
pub(super) fn console_file(config: &DeviceConfig) -> Result<Option<File>, CliError> {
    let ConsoleChoice::File(path) = &config.console else { return Ok(None) };
    let file = File::create(path).map_err(|cause| CliError::Write { path: path.clone(), cause })?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(disk: DiskChoice) -> DeviceConfig {
        DeviceConfig { disks: vec![disk], networks: Vec::new(), console: ConsoleChoice::Absent, rng: false }
    }

    #[test]
    fn a_disk_is_written_out_over_the_image_it_came_from() {
        let dir = std::env::temp_dir().join(format!("bifold-disk-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for temporary files");
        let path = dir.join("disk.img");
        let contents: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 512) as u8).collect();
        fs::write(&path, &contents).expect("a file");
        let source = DiskSource::File(path.clone());
        let choice: DiskChoice = "size=1M".parse().expect("a disk");
        let config = config(DiskChoice { source, out: Some(path.clone()), ..choice });
        let [Device::Disk(disk, _)] = &mut open(&config).expect("it is there")[..] else { panic!("one disk") };
        disk.write(2049, &[0xaa; 512]).expect("on the disk");
        write(disk, &path).expect("room");
        let mut expected = contents;
        expected[2049 * 512..2050 * 512].fill(0xaa);
        assert!(fs::read(&path).expect("written") == expected);
        fs::remove_dir_all(&dir).expect("ours");
    }

    #[test]
    fn flags_of_devices_become_devices_and_bad_ones_are_named() {
        let net = vec!["user".to_owned(), "loopback".to_owned()];
        let flags = DeviceArguments { net, virtio_console: Some(None), rng: true, ..DeviceArguments::default() };
        let config = flags.resolve().expect("good values");
        assert_eq!(config.networks, [NetChoice::User, NetChoice::Loopback]);
        assert!(matches!(
            open(&config).expect("nothing to open")[..],
            [Device::Net(NetChoice::User), Device::Net(NetChoice::Loopback), Device::Console, Device::Rng]
        ));
        let error = DeviceArguments { net: vec!["tap".to_owned()], ..DeviceArguments::default() };
        let error = error.resolve().expect_err("no such network");
        assert_eq!(error.to_string(), "--net: \"tap\" is not a network");
        assert!(error.help().starts_with("networks are user"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let config = config("/nonexistent.img".parse().expect("a disk"));
        let error = open(&config).expect_err("no such file").to_string();
        assert!(error.starts_with("cannot read /nonexistent.img"), "{error}");
    }
}
