//! The PCI bus: configuration mechanism 1, an i440FX host bridge, a PIIX3 ISA bridge, and room for devices.
//!
//! [`PciBus`] is the door; a device implements [`PciDevice`] and takes a slot of bus 0. The bus finds the BAR that
//! an access falls into; the board asks it for every port and address nobody else claims.
//!
//! INTx of slot `s`, pin `p` reaches line (s + p) mod 2 of [`INTX_LINES`], the swizzle that \_PRT describes.
//!
//! Left out: other buses, functions above 0, mechanism 2, the host bridge's memory attribute registers (stored, no
//! effect: all of it is RAM to us).

pub mod assign;
pub mod config;
pub mod msix;

use core::any::Any;
use core::fmt;

use emu_core::addr::Gpa;
use emu_core::time::Instant;
use thiserror::Error;

use crate::bus::{DmaPort, Port, Width};
use crate::dma::{Counted, DmaCounters};
use crate::message::MsiMessage;
use config::{BarRange, ConfigSpace, Identity};

/// The interrupt lines INTx arrives at, level-triggered.
pub const INTX_LINES: [u8; 2] = [10, 11];
/// Slots of bus 0.
pub const SLOTS: usize = 32;

/// Where in a device's BAR an access falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarAccess {
    /// Number of the BAR.
    pub bar: u8,
    /// Byte within it.
    pub offset: u64,
    /// Width.
    pub width: Width,
}

/// A function 0 on bus 0. Whoever plugged one in finds it again by its type with [`PciBus::each`].
pub trait PciDevice: fmt::Debug + Send + Any {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;
    /// Its configuration space, to change.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// Software wrote configuration space at `offset`; the masked bytes are in already.
    fn config_written(&mut self, offset: u8, width: Width) {
        let _ = (offset, width);
    }
    /// Software reads one of its BARs.
    fn bar_read(&mut self, access: BarAccess, now: Instant) -> u64;
    /// Software writes one of its BARs.
    fn bar_write(&mut self, access: BarAccess, value: u64, now: Instant);
    /// Whether its interrupt pin is asserted.
    fn intx_asserted(&self) -> bool {
        false
    }
    /// The next message-signalled interrupt it wants sent.
    fn take_msi(&mut self) -> Option<MsiMessage> {
        None
    }
    /// Whether it waits for [`PciDevice::run_dma`].
    fn wants_dma(&self) -> bool {
        false
    }
    /// Works on guest memory.
    fn run_dma(&mut self, memory: &mut dyn DmaPort, now: Instant) {
        let _ = (memory, now);
    }
    /// When it has something to do of its own.
    fn next_event(&self) -> Option<Instant> {
        None
    }
    /// Goes on to `now`.
    fn advance(&mut self, now: Instant) {
        let _ = now;
    }
}

/// A function with nothing but configuration space: the bridges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge(ConfigSpace);

impl Bridge {
    /// The i440FX host bridge, 8086:1237.
    pub fn i440fx() -> Bridge {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x1237,
            class: 0x06_0000,
            revision: 2,
            subsystem: (0x1af4, 0x1100),
            interrupt_pin: 0,
        });
        // Programmable attribute map and SMRAM: stored for software that reads them back.
        config.allow(0x59, &[0xff; 7]);
        config.allow(0x72, &[0x7f]);
        config.set(0x72, &[0x02]);
        Bridge(config)
    }

    /// The PIIX3 ISA bridge, 8086:7000.
    pub fn piix3() -> Bridge {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x7000,
            class: 0x06_0100,
            revision: 0,
            subsystem: (0x1af4, 0x1100),
            interrupt_pin: 0,
        });
        // PIRQ routing, disabled; deterministic latency control with passive release on.
        config.set(0x60, &[0x80; 4]);
        config.allow(0x60, &[0x8f; 4]);
        config.set(0x82, &[0x02]);
        config.allow(0x82, &[0x0f]);
        // Another function may follow in this slot on real boards; on ours none does.
        Bridge(config)
    }
}

impl PciDevice for Bridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, access: BarAccess, _now: Instant) -> u64 {
        access.width.mask()
    }
    fn bar_write(&mut self, _access: BarAccess, _value: u64, _now: Instant) {}
}

/// A device could not be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlugError {
    /// There is no such slot.
    #[error("PCI slot {0} does not exist: a bus has slots 0 to 31")]
    NoSuchSlot(u8),
    /// Something is there.
    #[error("PCI slot {0} is taken")]
    Taken(u8),
    /// Every slot has a device.
    #[error("the PCI bus has no free slot: {SLOTS} devices are the most, two of them bridges")]
    Full,
}

/// A device in its slot.
#[derive(Debug)]
struct Plugged {
    slot: u8,
    device: Box<dyn PciDevice>,
    dma: DmaCounters,
}

impl Plugged {
    fn new(slot: u8, device: Box<dyn PciDevice>) -> Plugged {
        Plugged { slot, device, dma: DmaCounters::default() }
    }
}

/// Bus 0 and configuration mechanism 1.
#[derive(Debug)]
pub struct PciBus {
    address: u32,
    /// In the order of slots.
    devices: Vec<Plugged>,
}

impl Default for PciBus {
    fn default() -> PciBus {
        PciBus::new()
    }
}

impl PciBus {
    /// The two bridges in slots 0 and 1, nothing else.
    pub fn new() -> PciBus {
        let devices = vec![Plugged::new(0, Box::new(Bridge::i440fx())), Plugged::new(1, Box::new(Bridge::piix3()))];
        PciBus { address: 0, devices }
    }

    /// Puts a device into a free slot.
    ///
    /// # Errors
    /// See [`PlugError`].
    pub fn plug(&mut self, slot: u8, device: Box<dyn PciDevice>) -> Result<(), PlugError> {
        if slot as usize >= SLOTS {
            return Err(PlugError::NoSuchSlot(slot));
        }
        match self.place(slot) {
            Ok(_) => Err(PlugError::Taken(slot)),
            Err(place) => {
                self.devices.insert(place, Plugged::new(slot, device));
                Ok(())
            }
        }
    }
    fn place(&self, slot: u8) -> Result<usize, usize> {
        self.devices.binary_search_by_key(&slot, |plugged| plugged.slot)
    }
    /// The device in `slot`.
    pub fn device(&self, slot: u8) -> Option<&dyn PciDevice> {
        let place = self.place(slot).ok()?;
        Some(self.devices[place].device.as_ref())
    }
    /// The device in `slot`, to change.
    pub fn device_mut(&mut self, slot: u8) -> Option<&mut (dyn PciDevice + 'static)> {
        let place = self.place(slot).ok()?;
        Some(self.devices[place].device.as_mut())
    }
    /// Puts a device into the lowest free slot and says which.
    ///
    /// # Errors
    /// [`PlugError::Full`]: every slot is taken.
    pub fn plug_next(&mut self, device: Box<dyn PciDevice>) -> Result<u8, PlugError> {
        let slot = (0..SLOTS as u8).find(|&slot| self.place(slot).is_err()).ok_or(PlugError::Full)?;
        self.plug(slot, device).map(|()| slot)
    }
    /// Every device of type `T`, by slot.
    pub fn each<T: PciDevice>(&self) -> impl Iterator<Item = &T> {
        self.devices().filter_map(|(_, device)| (device as &dyn Any).downcast_ref())
    }
    /// Every device of type `T`, by slot, to change.
    pub fn each_mut<T: PciDevice>(&mut self) -> impl Iterator<Item = &mut T> {
        self.devices_mut().filter_map(|device| (device.as_mut() as &mut dyn Any).downcast_mut())
    }
    fn devices(&self) -> impl Iterator<Item = (u8, &(dyn PciDevice + 'static))> {
        self.devices.iter().map(|plugged| (plugged.slot, plugged.device.as_ref()))
    }
    fn devices_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn PciDevice>> {
        self.devices.iter_mut().map(|plugged| &mut plugged.device)
    }

    /// Reads CONFIG_ADDRESS (port 0xcf8, four bytes).
    pub const fn address(&self) -> u32 {
        self.address
    }
    /// Writes CONFIG_ADDRESS.
    pub const fn set_address(&mut self, value: u32) {
        self.address = value & 0x80ff_fffc;
    }

    /// Slot and register CONFIG_ADDRESS selects, if enabled and on bus 0, function 0.
    const fn selected(&self) -> Option<(u8, u8)> {
        let (bus, function) = (self.address >> 16 & 0xff, self.address >> 8 & 7);
        if self.address >> 31 == 0 || bus != 0 || function != 0 {
            return None;
        }
        Some(((self.address >> 11 & 0x1f) as u8, self.address as u8))
    }

    /// Reads CONFIG_DATA at byte 0 to 3 of port 0xcfc; all ones where no function is.
    pub fn read_data(&self, byte: u16, width: Width) -> u32 {
        let Some((slot, register)) = self.selected() else { return width.mask32() };
        match self.device(slot) {
            Some(device) => device.config().read(register | (byte & 3) as u8, width),
            None => width.mask32(),
        }
    }

    /// Writes CONFIG_DATA.
    pub fn write_data(&mut self, byte: u16, width: Width, value: u32) {
        let Some((slot, register)) = self.selected() else { return };
        if let Some(device) = self.device_mut(slot) {
            let offset = register | (byte & 3) as u8;
            device.config_mut().write(offset, width, value);
            device.config_written(offset, width);
        }
    }

    fn find(&self, hit: impl Fn(BarRange) -> Option<u64>) -> Option<(u8, u8, u64)> {
        self.devices().find_map(|(slot, device)| {
            let ranges = (0..6).filter_map(|bar| Some((bar, device.config().bar_range(bar)?)));
            ranges.into_iter().find_map(|(bar, range)| Some((slot, bar, hit(range)?)))
        })
    }
    fn find_memory(&self, gpa: Gpa) -> Option<(u8, u8, u64)> {
        self.find(|range| match range {
            BarRange::Memory { base, size } => gpa.offset_from(base).filter(|&offset| offset < size),
            BarRange::Io { .. } => None,
        })
    }
    fn find_io(&self, port: Port) -> Option<(u8, u8, u64)> {
        self.find(|range| match range {
            BarRange::Io { base, size } => {
                port.0.checked_sub(base.0).map(u64::from).filter(|&offset| offset < size as u64)
            }
            BarRange::Memory { .. } => None,
        })
    }

    fn read_at(&mut self, at: (u8, u8, u64), width: Width, now: Instant) -> Option<u64> {
        let (slot, bar, offset) = at;
        let value = self.device_mut(slot)?.bar_read(BarAccess { bar, offset, width }, now);
        Some(value & width.mask())
    }
    fn write_at(&mut self, at: (u8, u8, u64), width: Width, value: u64, now: Instant) -> bool {
        let (slot, bar, offset) = at;
        if let Some(device) = self.device_mut(slot) {
            device.bar_write(BarAccess { bar, offset, width }, value & width.mask(), now);
        }
        true
    }

    /// Reads memory a BAR claims.
    pub fn mmio_read(&mut self, gpa: Gpa, width: Width, now: Instant) -> Option<u64> {
        self.read_at(self.find_memory(gpa)?, width, now)
    }
    /// Writes memory; whether a BAR claims it.
    pub fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64, now: Instant) -> bool {
        self.find_memory(gpa).is_some_and(|at| self.write_at(at, width, value, now))
    }
    /// Reads a port a BAR claims.
    pub fn io_read(&mut self, port: Port, width: Width, now: Instant) -> Option<u32> {
        self.read_at(self.find_io(port)?, width, now).map(|value| value as u32)
    }
    /// Writes a port; whether a BAR claims it.
    pub fn io_write(&mut self, port: Port, width: Width, value: u32, now: Instant) -> bool {
        self.find_io(port).is_some_and(|at| self.write_at(at, width, value as u64, now))
    }

    /// The interrupt lines that INTx holds high, one bit each.
    pub fn intx_lines(&self) -> u32 {
        let mut lines = 0;
        for (slot, device) in self.devices() {
            let pin = device.config().read(config::reg::INTERRUPT_PIN, Width::Byte);
            if pin != 0 && device.config().intx_allowed() && device.intx_asserted() {
                lines |= 1 << intx_line(slot, pin as u8 - 1);
            }
        }
        lines
    }

    /// The next message-signalled interrupt of any device that may master the bus.
    pub fn take_msi(&mut self) -> Option<MsiMessage> {
        self.devices_mut().filter(|device| device.config().bus_master()).find_map(|device| device.take_msi())
    }
    /// Whether a device that may master the bus waits for memory.
    pub fn wants_dma(&self) -> bool {
        self.devices().any(|(_, device)| device.wants_dma() && device.config().bus_master())
    }
    /// Lets the devices that wait for it work on memory.
    pub fn run_dma(&mut self, memory: &mut dyn DmaPort, now: Instant) {
        for Plugged { device, dma, .. } in &mut self.devices {
            if device.wants_dma() && device.config().bus_master() {
                device.run_dma(&mut Counted { memory, counters: dma }, now);
            }
        }
    }
    /// What every device did to guest memory, by slot. The bridges do nothing.
    pub fn dma_counters(&self) -> impl Iterator<Item = (u8, DmaCounters)> {
        self.devices.iter().map(|plugged| (plugged.slot, plugged.dma))
    }
    /// The earliest event of any device.
    pub fn next_event(&self) -> Option<Instant> {
        self.devices().filter_map(|(_, device)| device.next_event()).min()
    }
    /// Goes on to `now`.
    pub fn advance(&mut self, now: Instant) {
        for device in self.devices_mut() {
            device.advance(now);
        }
    }
}

/// The interrupt line of a slot's pin (0 is INTA#).
pub const fn intx_line(slot: u8, pin: u8) -> u8 {
    INTX_LINES[(slot as usize + pin as usize) % INTX_LINES.len()]
}

#[cfg(test)]
mod tests;
