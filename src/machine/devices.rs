//! What can be plugged into a machine's PCI bus, and what comes out of it while the machine runs and when it has ended.

use core::any::Any;

use ::devices::Board;
use ::devices::block::Disk;
use ::devices::bus::Width;
use ::devices::dma::DmaCounters;
use ::devices::nvme::Nvme;
use ::devices::pci::assign::assign;
use ::devices::pci::config::reg;
use ::devices::pci::{PciDevice, SLOTS};
use ::devices::virtio::VirtioPci;
use ::devices::virtio::block::VirtioBlock;
use ::devices::virtio::console::VirtioConsole;
use ::devices::virtio::net::{Backend, Loopback, Mac, UserNetwork, VirtioNet};
use ::devices::virtio::rng::VirtioRng;
use emu_core::rng::{Consumer, Seed};

use super::{BuildError, Machine};
use crate::config::{DiskBus, NetChoice};

/// A device on the PCI bus.
#[derive(Clone, Debug)]
pub enum Device {
    /// A disk, and how the guest reaches it.
    Disk(Disk, DiskBus),
    /// A virtio network device, and what it is connected to.
    Net(NetChoice),
    /// A virtio console: [`Machine::take_console`] and [`Machine::console_input`].
    Console,
    /// A virtio entropy device, which draws from the machine's seed.
    Rng,
}

/// What a device on the PCI bus did to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceDma {
    /// Its slot.
    pub slot: u8,
    /// Vendor and device, as configuration space has them.
    pub id: (u16, u16),
    /// What it did.
    pub counters: DmaCounters,
}

/// Plugs `devices` in, in order, and does what firmware would: addresses within the PCI window, decoding on.
pub(super) fn plug(board: &mut Board, devices: Vec<Device>, seed: Seed, window: (u32, u32)) -> Result<(), BuildError> {
    for (number, device) in (0..).zip(devices) {
        let mut randomness = seed.numbered_stream(Consumer::Devices, u32::from(number));
        let device: Box<dyn PciDevice> = match device {
            Device::Disk(disk, DiskBus::Virtio) => Box::new(VirtioPci::new(VirtioBlock::new(disk))),
            Device::Disk(disk, DiskBus::Nvme) => Box::new(Nvme::new(disk, number)),
            Device::Net(choice) => {
                let backend: Box<dyn Backend> = match choice {
                    NetChoice::Loopback => Box::new(Loopback::default()),
                    NetChoice::User => Box::new(UserNetwork::new(randomness.next_u64())),
                };
                Box::new(VirtioPci::new(VirtioNet::new(Mac::of_device(number as u8), backend)))
            }
            Device::Console => Box::new(VirtioPci::new(VirtioConsole::default())),
            Device::Rng => Box::new(VirtioPci::new(VirtioRng::new(randomness))),
        };
        board.pci_mut().plug_next(device)?;
    }
    Ok(assign(board.pci_mut(), window)?)
}

/// The disk of a device that is one.
fn disk(device: &dyn Any) -> Option<&Disk> {
    let nvme = device.downcast_ref::<Nvme>().map(Nvme::disk);
    nvme.or_else(|| device.downcast_ref::<VirtioPci<VirtioBlock>>().map(|block| block.device().disk()))
}

impl Machine {
    /// The disks as they are now, in the order in which they were plugged in.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        (0..SLOTS as u8).filter_map(|slot| disk(self.board.pci().device(slot)?))
    }

    /// What each device did to guest memory, the bridges left out.
    pub(super) fn device_dma(&self) -> Vec<DeviceDma> {
        let pci = self.board.pci();
        let of = |(slot, counters)| {
            let id = |offset| Some(pci.device(slot)?.config().read(offset, Width::Word) as u16);
            Some(DeviceDma { slot, id: (id(reg::VENDOR)?, id(reg::DEVICE)?), counters })
        };
        pci.dma_counters().skip(2).filter_map(of).collect()
    }

    /// Takes what the guest wrote to its virtio consoles since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        let consoles = self.board.pci_mut().each_mut::<VirtioPci<VirtioConsole>>();
        consoles.flat_map(|console| console.device_mut().take_output()).collect()
    }

    /// Gives bytes to the guest's first virtio console; whether there is one.
    pub fn console_input(&mut self, bytes: &[u8]) -> bool {
        let Some(console) = self.board.pci_mut().each_mut::<VirtioPci<VirtioConsole>>().next() else { return false };
        console.device_mut().input(bytes);
        console.wake();
        true
    }
}
