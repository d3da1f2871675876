//! Devices as flags write them: `--disk root.img,bus=nvme,readonly`, `--disk size=64M`, `--net user`.

use core::str::FromStr;
use std::path::PathBuf;

use devices::block::DiskAccess;
use thiserror::Error;

use super::{ConfigError, parse_size};

/// A device that cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// A key of a disk's list that does not exist, or a value that it cannot have.
    #[error("\"{0}\" is not a property of a disk")]
    DiskProperty(String),
    /// Neither a file nor a size.
    #[error("a disk is given without a file and without a size")]
    NoDisk,
    /// Both, and they say different things.
    #[error("a disk is given with a file and with a size")]
    FileAndSize,
    /// A disk of nothing, or of part of a sector.
    #[error("a disk of {0} bytes is not whole sectors of 512 bytes up to 16T")]
    DiskSize(u64),
    /// Nothing that a network device can be connected to.
    #[error("\"{0}\" is not a network")]
    Net(String),
}

impl DeviceError {
    /// What would have been right, for the `help:` line.
    pub fn help(&self) -> &'static str {
        match self {
            DeviceError::DiskProperty(_) => {
                "a disk is FILE or size=64M, then bus=virtio|nvme, format=raw, readonly, serial=TEXT, out=FILE"
            }
            DeviceError::NoDisk | DeviceError::FileAndSize => "say --disk FILE, or --disk size=64M for an empty one",
            DeviceError::DiskSize(_) => "sizes are like 64M or 2G; a bare number is MiB",
            DeviceError::Net(_) => "networks are user (one other host, with DHCP and an echo service) and loopback",
        }
    }
}

/// How a guest reaches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DiskBus {
    /// A virtio block device.
    #[default]
    Virtio,
    /// An NVMe controller of its own.
    Nvme,
}

/// What `--net` says: what a network device is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetChoice {
    /// Frames come back as they were sent.
    Loopback,
    /// A network of one other host, in the process.
    User,
}

impl FromStr for NetChoice {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<NetChoice, ConfigError> {
        match text {
            "loopback" => Ok(NetChoice::Loopback),
            "user" => Ok(NetChoice::User),
            _ => Err(DeviceError::Net(text.to_owned()).into()),
        }
    }
}

/// Where a disk's first contents come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// A raw image; it is never written.
    File(PathBuf),
    /// Zeros, so many bytes.
    Blank(u64),
}

/// What `--disk` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskChoice {
    /// First contents.
    pub source: DiskSource,
    /// How the guest reaches it.
    pub bus: DiskBus,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// Serial number, if not made up from its place.
    pub serial: Option<String>,
    /// Where its last contents go when the run has ended.
    pub out: Option<PathBuf>,
}

/// Puts `value` into `place` unless something is there.
fn once<T>(place: &mut Option<T>, name: &'static str, value: T) -> Result<(), ConfigError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(ConfigError::Twice(name)),
    }
}

impl FromStr for DiskChoice {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<DiskChoice, ConfigError> {
        let (mut file, mut size, mut bus, mut access, mut serial, mut out) = (None, None, None, None, None, None);
        let mut format = None;
        for (n, property) in text.split(',').enumerate() {
            let refused = || ConfigError::Device(DeviceError::DiskProperty(property.to_owned()));
            let (key, value) = property.split_once('=').unwrap_or((property, ""));
            match (key, value) {
                ("file" | "path", value) if !value.is_empty() => once(&mut file, "file", PathBuf::from(value))?,
                ("size", value) => once(&mut size, "size", parse_size(value)?)?,
                ("bus", "virtio") => once(&mut bus, "bus", DiskBus::Virtio)?,
                ("bus", "nvme") => once(&mut bus, "bus", DiskBus::Nvme)?,
                ("format", "raw") => once(&mut format, "format", ())?,
                ("readonly", "" | "on") => once(&mut access, "readonly", DiskAccess::ReadOnly)?,
                ("readonly", "off") => once(&mut access, "readonly", DiskAccess::ReadWrite)?,
                ("serial", value) if !value.is_empty() => once(&mut serial, "serial", value.to_owned())?,
                ("out", value) if !value.is_empty() => once(&mut out, "out", PathBuf::from(value))?,
                // The file alone, as every VMM takes it.
                (name, _) if n == 0 && !name.is_empty() && !property.contains('=') => {
                    once(&mut file, "file", PathBuf::from(name))?;
                }
                _ => return Err(refused()),
            }
        }
        let source = match (file, size) {
            (Some(file), None) => DiskSource::File(file),
            (None, Some(size)) if size > 0 && size.is_multiple_of(512) && size <= 16 << 40 => DiskSource::Blank(size),
            (None, Some(size)) => return Err(DeviceError::DiskSize(size).into()),
            (Some(_), Some(_)) => return Err(DeviceError::FileAndSize.into()),
            (None, None) => return Err(DeviceError::NoDisk.into()),
        };
        let (bus, access) = (bus.unwrap_or_default(), access.unwrap_or_default());
        Ok(DiskChoice { source, bus, access, serial, out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_as_people_write_them() {
        let plain = DiskChoice {
            source: DiskSource::File("a.img".into()),
            bus: DiskBus::default(),
            access: DiskAccess::ReadWrite,
            serial: None,
            out: None,
        };
        assert_eq!("a.img".parse(), Ok(plain.clone()));
        assert_eq!("file=a.img,format=raw".parse(), Ok(plain.clone()));
        assert_eq!("path=a.img,readonly=off".parse(), Ok(plain.clone()));
        let read_only = DiskChoice { access: DiskAccess::ReadOnly, ..plain.clone() };
        assert_eq!("a.img,readonly,bus=nvme".parse(), Ok(DiskChoice { bus: DiskBus::Nvme, ..read_only }));
        let blank = DiskChoice { source: DiskSource::Blank(64 << 20), out: Some("b.img".into()), ..plain };
        assert_eq!("size=64M,out=b.img".parse(), Ok(blank));
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_reason() {
        let refused = |text: &str| match text.parse::<DiskChoice>() {
            Err(ConfigError::Device(cause)) => cause,
            other => panic!("{text}: {other:?}"),
        };
        let property = |text: &str| DeviceError::DiskProperty(text.to_owned());
        assert_eq!(refused(""), property(""));
        assert_eq!("tap".parse::<NetChoice>(), Err(DeviceError::Net("tap".to_owned()).into()));
        assert_eq!(refused("a.img,bus=scsi"), property("bus=scsi"));
        assert_eq!(refused("a.img,format=qcow2"), property("format=qcow2"));
        assert_eq!(refused("a.img,b.img"), property("b.img"));
        assert_eq!(refused("a.img,size=1M"), DeviceError::FileAndSize);
        assert_eq!(refused("readonly"), DeviceError::NoDisk);
        assert_eq!(refused("size=0"), DeviceError::DiskSize(0));
        assert_eq!(refused("size=700b"), DeviceError::DiskSize(700));
        assert_eq!("a.img,readonly,readonly".parse::<DiskChoice>(), Err(ConfigError::Twice("readonly")));
    }
}
