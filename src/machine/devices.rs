//! What can be plugged into a machine's PCI bus, and what comes out of it when the run has ended.

use core::any::Any;

use ::devices::Board;
use ::devices::block::Disk;
use ::devices::nvme::Nvme;
use ::devices::pci::assign::assign;
use ::devices::pci::{PciDevice, SLOTS};

use super::{BuildError, Machine};
use crate::config::DiskBus;

/// A device on the PCI bus.
#[derive(Clone, Debug)]
pub enum Device {
    /// A disk, and how the guest reaches it.
    Disk(Disk, DiskBus),
}

/// Plugs `devices` in, in order, and does what firmware would: addresses within the PCI window, decoding on.
pub(super) fn plug(board: &mut Board, devices: Vec<Device>, window: (u32, u32)) -> Result<(), BuildError> {
    for (number, device) in (0..).zip(devices) {
        let device: Box<dyn PciDevice> = match device {
            Device::Disk(disk, DiskBus::Nvme) => Box::new(Nvme::new(disk, number)),
        };
        board.pci_mut().plug_next(device)?;
    }
    Ok(assign(board.pci_mut(), window)?)
}

/// The disk of a device that is one.
fn disk(device: &dyn Any) -> Option<&Disk> {
    device.downcast_ref::<Nvme>().map(Nvme::disk)
}

impl Machine {
    /// The disks as they are now, in the order in which they were plugged in.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        (0..SLOTS as u8).filter_map(|slot| disk(self.board.pci().device(slot)?))
    }
}
