//! The flags of devices, and the host's files behind them.
//!
//! A disk's image is read as the guest asks for its blocks, and written never; its last contents go to the file that
//! `out=` names when the run has ended, under another name first, so that a run that fails leaves what was there.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use devices::block::{Blank, Disk, DiskImage, SECTOR};

use super::CliError;
use crate::config::{DiskChoice, DiskSource};
use crate::machine::{Device, Machine};

/// Bytes that are moved at a time when a disk is written out.
const CHUNK: u64 = 1 << 20;

/// The flags, as text.
#[derive(Debug, Default, Args)]
pub struct DeviceArguments {
    /// A disk: FILE or size=64M, then ,bus=nvme ,readonly ,serial=TEXT ,out=FILE. The image itself is never written.
    #[arg(long, value_name = "DISK", alias = "drive")]
    pub disk: Vec<String>,
}

/// Devices as they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Disks.
    pub disks: Vec<DiskChoice>,
}

impl DeviceArguments {
    /// The devices that these flags mean.
    pub fn resolve(self) -> Result<DeviceConfig, CliError> {
        let disk = |text: &String| text.parse().map_err(|cause| CliError::Flag { flag: "--disk", cause });
        Ok(DeviceConfig { disks: self.disk.iter().map(disk).collect::<Result<_, _>>()? })
    }
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
    config.disks.iter().enumerate().map(disk).collect()
}

/// Puts the disks of `machine` as they are now into `plugged`, for the machine that follows it.
pub(super) fn keep(plugged: &mut [Device], machine: &Machine) {
    let disks = plugged.iter_mut().map(|device| match device {
        Device::Disk(disk, _) => disk,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_written_out_over_the_image_it_came_from() {
        let dir = std::env::temp_dir().join(format!("bifold-disk-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for temporary files");
        let path = dir.join("disk.img");
        let contents: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 512) as u8).collect();
        fs::write(&path, &contents).expect("a file");
        let source = DiskSource::File(path.clone());
        let choice: DiskChoice = "size=1M".parse().expect("a disk");
        let config = DeviceConfig { disks: vec![DiskChoice { source, out: Some(path.clone()), ..choice }] };
        let [Device::Disk(disk, _)] = &mut open(&config).expect("it is there")[..] else { panic!("one disk") };
        disk.write(2049, &[0xaa; 512]).expect("on the disk");
        write(disk, &path).expect("room");
        let mut expected = contents;
        expected[2049 * 512..2050 * 512].fill(0xaa);
        assert!(fs::read(&path).expect("written") == expected);
        fs::remove_dir_all(&dir).expect("ours");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let config = DeviceConfig { disks: vec!["/nonexistent.img".parse().expect("a disk")] };
        let error = open(&config).expect_err("no such file").to_string();
        assert!(error.starts_with("cannot read /nonexistent.img"), "{error}");
    }
}
