//! Virtio over PCI, modern only (Virtual I/O Device specification 1.2, section 4.1).
//!
//! One BAR holds the four structures that vendor capabilities point to, each on a page of its own; another holds the
//! MSI-X table. A notification only notes that there is work; the queues are worked on when the machine next lends
//! memory, the highest first, so that what a transmission leads to is received at once.
//!
//! Always true: one call of [`PciDevice::run_dma`] takes at most as many chains of a queue as it has entries. A driver
//! that breaks the rules finds DEVICE_NEEDS_RESET, and nothing of it is looked at until it resets the device.
//!
//! Left out: the legacy interface, packed queues, queue reset, shared memory, and the capability through which
//! configuration space reaches BARs.

use emu_core::time::Instant;

use super::chain::Broken;
use super::queue::{MAX_ENTRIES, Queue, Suppression};
use super::{VirtioDevice, feature};
use crate::bus::{DmaPort, Width};
use crate::message::MsiMessage;
use crate::pci::config::{Bar, BarKind, ConfigSpace, Identity};
use crate::pci::msix::Msix;
use crate::pci::{BarAccess, PciDevice};

/// The vendor of every virtio device.
pub const VENDOR: u16 = 0x1af4;
/// Device ID of a modern device: this and its type.
const FIRST_DEVICE: u16 = 0x1040;
/// No vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

const BAR: u8 = 0;
const MSIX_BAR: u8 = 2;
const MSIX_CAPABILITY: u8 = 0x88;
/// Length of the pages that the structures lie in, and the structures' order.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 1;
const DEVICE: u64 = 2;
const NOTIFY: u64 = 3;
/// Bytes of the common configuration.
const COMMON_BYTES: usize = 0x3c;
/// Bytes from one queue's notification register to the next.
const NOTIFY_STEP: u32 = 4;

/// Device status bits.
mod status {
    pub(super) const DRIVER_OK: u8 = 1 << 2;
    pub(super) const FEATURES_OK: u8 = 1 << 3;
    pub(super) const NEEDS_RESET: u8 = 1 << 6;
}

/// ISR bits.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// A virtio device in a slot of the PCI bus.
#[derive(Debug)]
pub struct VirtioPci<D: VirtioDevice> {
    config: ConfigSpace,
    msix: Msix,
    device: D,
    common: Common,
    queues: Vec<Queue>,
    isr: u8,
    /// There is work: a notification came, or the device has something for its driver.
    work: bool,
    /// Why the device asks for its reset, if it does.
    broken: Option<Broken>,
    now: Instant,
}

/// What the common configuration holds besides the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Common {
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    vector: u16,
    status: u8,
    queue: u16,
}

impl Common {
    const RESET: Common =
        Common { device_select: 0, driver_select: 0, driver_features: 0, vector: NO_VECTOR, status: 0, queue: 0 };
}

/// A vendor capability that points to a structure.
fn capability(kind: u8, page: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0x09, 0, 16, kind, BAR, 0, 0, 0];
    bytes.extend(((page * PAGE) as u32).to_le_bytes());
    bytes.extend((len as u32).to_le_bytes());
    bytes
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Puts `device` behind the transport.
    pub fn new(device: D) -> VirtioPci<D> {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + D::TYPE,
            class: D::CLASS,
            revision: 1,
            subsystem: (VENDOR, 0x1100),
            interrupt_pin: 1,
        });
        config.set_bar(BAR, Bar { kind: BarKind::Memory64, size: 4 * PAGE });
        let msix = Msix::new(&mut config, MSIX_CAPABILITY, MSIX_BAR, D::QUEUES + 1);
        let mut notify = capability(2, NOTIFY, PAGE);
        notify[2] = 20;
        notify.extend(NOTIFY_STEP.to_le_bytes());
        config.add_capability(0x70, &notify);
        config.add_capability(0x60, &capability(4, DEVICE, PAGE));
        config.add_capability(0x50, &capability(3, ISR, 1));
        config.add_capability(0x40, &capability(1, COMMON, COMMON_BYTES as u64));
        VirtioPci {
            config,
            msix,
            device,
            common: Common::RESET,
            queues: vec![Queue::default(); D::QUEUES as usize],
            isr: 0,
            work: false,
            broken: None,
            now: Instant::ZERO,
        }
    }

    /// The device behind the transport.
    pub fn device(&self) -> &D {
        &self.device
    }
    /// The device, to give it something or take something from it.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }
    /// The device was given something for its driver, which is to hear of it at the next opportunity.
    pub fn wake(&mut self) {
        self.work = true;
    }
    /// Why the device asked for its reset, if it did.
    pub fn broken(&self) -> Option<Broken> {
        self.broken
    }

    #[cfg(test)]
    pub(super) fn queues(&self) -> &[Queue] {
        &self.queues
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::EVERY
    }

    fn reset(&mut self) {
        self.common = Common::RESET;
        self.queues.fill(Queue::default());
        self.isr = 0;
        self.work = false;
        self.broken = None;
        self.msix.forget_pending();
        self.device.reset();
    }

    /// The driver broke the rules.
    fn break_off(&mut self, why: Broken) {
        self.broken = Some(why);
        self.common.status |= status::NEEDS_RESET;
        if self.common.status & status::DRIVER_OK != 0 {
            self.interrupt(self.common.vector, ISR_CONFIG);
        }
    }

    fn interrupt(&mut self, vector: u16, isr: u8) {
        if self.msix.enabled(&self.config) {
            self.msix.raise(vector);
        } else {
            self.isr |= isr;
        }
    }

    fn is_running(&self) -> bool {
        self.common.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let rose = value & !self.common.status;
        // Only the device sets NEEDS_RESET, and only a reset clears anything.
        self.common.status |= value & !status::NEEDS_RESET;
        if rose & status::FEATURES_OK != 0 {
            let accepted = self.common.driver_features;
            if accepted & !self.offered() != 0 || accepted & feature::VERSION_1 == 0 {
                self.common.status &= !status::FEATURES_OK;
            }
        }
        if rose & status::DRIVER_OK != 0 {
            self.work = true;
        }
    }

    /// The common configuration as it lies in its page.
    fn common_bytes(&self) -> [u8; COMMON_BYTES] {
        let c = &self.common;
        let half = |select: u32, features: u64| if select < 2 { (features >> (select * 32)) as u32 } else { 0 };
        let mut bytes = [0; COMMON_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &c.device_select.to_le_bytes());
        put(0x04, &half(c.device_select, self.offered()).to_le_bytes());
        put(0x08, &c.driver_select.to_le_bytes());
        put(0x0c, &half(c.driver_select, c.driver_features).to_le_bytes());
        put(0x10, &c.vector.to_le_bytes());
        put(0x12, &D::QUEUES.to_le_bytes());
        put(0x14, &[c.status, 0]);
        put(0x16, &c.queue.to_le_bytes());
        // A queue that does not exist has length zero.
        if let Some(queue) = self.queues.get(usize::from(c.queue)) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &queue.vector.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &c.queue.to_le_bytes());
            for (n, place) in queue.places.iter().enumerate() {
                put(0x20 + 8 * n, &place.to_le_bytes());
            }
        }
        bytes
    }

    fn write_common(&mut self, offset: u64, width: Width, value: u64) {
        let (word, dword) = (value as u16, value as u32);
        let vector = if word < self.msix.vectors() { word } else { NO_VECTOR };
        match (offset, width) {
            (0x00, Width::Dword) => self.common.device_select = dword,
            (0x08, Width::Dword) => self.common.driver_select = dword,
            (0x0c, Width::Dword) => self.accept(dword),
            (0x10, Width::Word) => self.common.vector = vector,
            (0x14, Width::Byte) => self.set_status(value as u8),
            (0x16, Width::Word) => self.common.queue = word,
            (0x18..0x38, _) => self.write_queue(offset, width, value, vector),
            _ => {}
        }
    }

    fn accept(&mut self, half: u32) {
        // What was negotiated stays until the reset.
        if self.common.status & status::FEATURES_OK == 0 && self.common.driver_select < 2 {
            let shift = self.common.driver_select * 32;
            let features = &mut self.common.driver_features;
            *features = *features & !(0xffff_ffff << shift) | u64::from(half) << shift;
        }
    }

    fn write_queue(&mut self, offset: u64, width: Width, value: u64, vector: u16) {
        let number = self.common.queue;
        let Some(queue) = self.queues.get_mut(usize::from(number)) else { return };
        if (offset, width) == (0x1a, Width::Word) {
            queue.vector = vector;
            return;
        }
        if queue.enabled {
            return;
        }
        match (offset, width) {
            (0x18, Width::Word) => queue.size = value as u16,
            (0x1c, Width::Word) if value == 1 => {
                queue.enabled = true;
                if self.common.driver_features & feature::EVENT_IDX != 0 {
                    queue.suppression = Suppression::EventIndex;
                }
                if !queue.is_valid() {
                    self.break_off(Broken::Queue(number));
                }
            }
            (0x20.., Width::Dword | Width::Qword) => {
                let place = &mut queue.places[(offset - 0x20) as usize / 8];
                match (offset % 8, width) {
                    (0, Width::Qword) => *place = value,
                    (0, _) => *place = *place & !0xffff_ffff | value,
                    (4, Width::Dword) => *place = *place & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Lets the device work on one queue and tells the driver what came of it.
    fn work_on(&mut self, number: u16, memory: &mut dyn DmaPort, now: Instant) -> Result<(), Broken> {
        let Some(queue) = self.queues.get_mut(usize::from(number)).filter(|queue| queue.enabled) else { return Ok(()) };
        for _ in 0..queue.size {
            if !self.device.work(number, queue, memory, now)? {
                let (tell, vector) = (queue.is_to_tell(memory)?, queue.vector);
                if tell {
                    self.interrupt(vector, ISR_QUEUE);
                }
                return Ok(());
            }
        }
        // As much as a queue holds was done, and the driver has filled it meanwhile: the rest in another round.
        self.work = true;
        let (tell, vector) = (queue.is_to_tell(memory)?, queue.vector);
        if tell {
            self.interrupt(vector, ISR_QUEUE);
        }
        Ok(())
    }
}

impl<D: VirtioDevice> PciDevice for VirtioPci<D> {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, access: BarAccess, _now: Instant) -> u64 {
        let BarAccess { bar, offset, width } = access;
        if bar == MSIX_BAR {
            return self.msix.read(offset, width);
        }
        let within = (offset % PAGE) as usize;
        let mut bytes = [0; 8];
        match offset / PAGE {
            COMMON => {
                let common = self.common_bytes();
                let there = common.get(within..).unwrap_or_default();
                let len = there.len().min(8);
                bytes[..len].copy_from_slice(&there[..len]);
            }
            ISR if within == 0 => bytes[0] = core::mem::take(&mut self.isr),
            DEVICE => self.device.read_config(within, &mut bytes[..usize::from(width.bytes())]),
            _ => {}
        }
        u64::from_le_bytes(bytes)
    }

    fn bar_write(&mut self, access: BarAccess, value: u64, _now: Instant) {
        let BarAccess { bar, offset, width } = access;
        if bar == MSIX_BAR {
            return self.msix.write(offset, width, value);
        }
        match offset / PAGE {
            COMMON => self.write_common(offset % PAGE, width, value),
            NOTIFY => self.work |= self.is_running(),
            _ => {}
        }
    }

    fn intx_asserted(&self) -> bool {
        self.isr != 0 && !self.msix.enabled(&self.config)
    }

    fn take_msi(&mut self) -> Option<MsiMessage> {
        self.msix.take(&self.config)
    }

    fn wants_dma(&self) -> bool {
        self.work && self.is_running()
    }

    fn run_dma(&mut self, memory: &mut dyn DmaPort, now: Instant) {
        self.now = now;
        self.work = false;
        for number in (0..D::QUEUES).rev() {
            if let Err(why) = self.work_on(number, memory, now) {
                return self.break_off(why);
            }
        }
    }

    fn next_event(&self) -> Option<Instant> {
        if !self.is_running() || !self.config.bus_master() {
            return None;
        }
        if self.work { Some(self.now) } else { self.device.next_event() }
    }

    fn advance(&mut self, now: Instant) {
        self.now = now;
        if self.device.next_event().is_some_and(|due| due <= now) {
            self.device.advance(now);
            self.work = true;
        }
    }
}

const _: () = assert!(MAX_ENTRIES.is_power_of_two());
