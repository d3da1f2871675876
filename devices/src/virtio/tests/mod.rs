//! A small driver of split queues over plain memory, and what it does with each device.

mod devices;
mod hostile;
mod network;

use std::sync::Arc;

use super::block::VirtioBlock;
use super::*;
use crate::block::{Blank, Disk, DiskAccess};
use crate::bus::Width;
use crate::pci::config::reg;
use crate::pci::{BarAccess, PciDevice};
use crate::ram::Ram;

const NOW: Instant = Instant::ZERO;
const SIZE: u16 = 16;
const RAM: usize = 1 << 20;
/// Where the rings of queue `n` are: a page each for descriptors, available and used ring.
const fn rings(n: u16) -> [u64; 3] {
    let base = 0x1_0000 + n as u64 * 0x4000;
    [base, base + 0x1000, base + 0x2000]
}
/// Where an indirect table may lie.
const TABLE: u64 = 0x8000;
/// Where data may lie.
const DATA: u64 = 0x4_0000;

const READ_BY_DEVICE: u16 = 0;
const WRITTEN_BY_DEVICE: u16 = 2;

/// A piece of a request: address, length, flags.
type Part = (u64, u32, u16);

/// The driver.
struct Driver<D: VirtioDevice> {
    pci: VirtioPci<D>,
    ram: Ram,
    event_index: bool,
    /// Available and used indices of each queue.
    places: Vec<(u16, u16)>,
}

impl<D: VirtioDevice> Driver<D> {
    fn access(offset: u64, width: Width) -> BarAccess {
        BarAccess { bar: 0, offset, width }
    }
    fn write(&mut self, offset: u64, width: Width, value: u64) {
        self.pci.bar_write(Self::access(offset, width), value, NOW);
    }
    fn read(&mut self, offset: u64, width: Width) -> u64 {
        self.pci.bar_read(Self::access(offset, width), NOW) & width.mask()
    }
    fn status(&mut self) -> u64 {
        self.read(0x14, Width::Byte)
    }

    /// A device that is not yet driven.
    fn idle(device: D) -> Driver<D> {
        let mut pci = VirtioPci::new(device);
        pci.config_mut().write(reg::COMMAND, Width::Word, 7);
        Driver { pci, ram: Ram::new(RAM), event_index: false, places: vec![(0, 0); D::QUEUES as usize] }
    }

    /// Negotiates `features`, besides VERSION_1 and ACCESS_PLATFORM; the status after FEATURES_OK.
    fn negotiate(&mut self, features: u64) -> u64 {
        let features = features | feature::VERSION_1 | feature::ACCESS_PLATFORM;
        self.event_index = features & feature::EVENT_IDX != 0;
        self.write(0x14, Width::Byte, 3);
        for half in 0..2 {
            self.write(0x08, Width::Dword, half);
            self.write(0x0c, Width::Dword, features >> (half * 32) & 0xffff_ffff);
        }
        self.write(0x14, Width::Byte, 0xb);
        self.status()
    }

    fn set_up_queues(&mut self) {
        for n in 0..D::QUEUES {
            self.write(0x16, Width::Word, u64::from(n));
            self.write(0x18, Width::Word, u64::from(SIZE));
            for (k, place) in rings(n).into_iter().enumerate() {
                self.write(0x20 + 8 * k as u64, Width::Dword, place);
                self.write(0x24 + 8 * k as u64, Width::Dword, 0);
            }
            self.write(0x1c, Width::Word, 1);
        }
        self.write(0x14, Width::Byte, 0xf);
    }

    /// A device that is ready for requests.
    fn new(device: D, features: u64) -> Driver<D> {
        let mut driver = Self::idle(device);
        assert_eq!(driver.negotiate(features), 0xb);
        driver.set_up_queues();
        driver.run();
        driver
    }

    fn run(&mut self) {
        if self.pci.wants_dma() {
            self.pci.run_dma(&mut self.ram, NOW);
        }
    }

    fn descriptor(part: Part, next: Option<u16>) -> [u8; 16] {
        let (gpa, len, flags) = part;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&(flags | u16::from(next.is_some())).to_le_bytes());
        bytes[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// Puts a chain at descriptor 0 on, or into an indirect table, and makes it available.
    fn offer(&mut self, queue: u16, parts: &[Part], indirect: bool) {
        let [table, available, _] = rings(queue);
        let target = if indirect { TABLE } else { table };
        for (n, part) in (0..).zip(parts) {
            let next = (usize::from(n) + 1 < parts.len()).then_some(n + 1);
            self.ram.put(target + u64::from(n) * 16, &Self::descriptor(*part, next));
        }
        if indirect {
            self.ram.put(table, &Self::descriptor((TABLE, parts.len() as u32 * 16, 4), None));
        }
        let (index, _) = &mut self.places[usize::from(queue)];
        self.ram.put(available + 4 + 2 * u64::from(*index % SIZE), &0_u16.to_le_bytes());
        *index = index.wrapping_add(1);
        self.ram.put(available + 2, &index.to_le_bytes());
    }

    /// Rings the bell if the device wants that, and lets it work.
    fn notify(&mut self, queue: u16) {
        self.write(0x3000 + 4 * u64::from(queue), Width::Word, u64::from(queue));
        self.run();
    }

    /// The next chain the device gave back: bytes written.
    fn reap(&mut self, queue: u16) -> Option<u32> {
        let [_, available, used] = rings(queue);
        let (_, seen) = &mut self.places[usize::from(queue)];
        if u16::from_le_bytes(self.ram.get(used + 2)) == *seen {
            return None;
        }
        let element = self.ram.get::<8>(used + 4 + 8 * u64::from(*seen % SIZE));
        *seen = seen.wrapping_add(1);
        // Tell of the next one.
        self.ram.put(available + 4 + 2 * u64::from(SIZE), &seen.to_le_bytes());
        Some(u32::from_le_bytes(element[4..].try_into().expect("four bytes")))
    }

    /// One request, there and back.
    fn request(&mut self, queue: u16, parts: &[Part], indirect: bool) -> Option<u32> {
        self.offer(queue, parts, indirect);
        self.notify(queue);
        self.reap(queue)
    }
}

fn disk(sectors: u64, access: DiskAccess) -> Disk {
    Disk::new(Arc::new(Blank(sectors * 512)), access, "serial")
}

fn block() -> VirtioBlock {
    VirtioBlock::new(disk(2048, DiskAccess::ReadWrite))
}

#[test]
fn capabilities_lead_to_the_four_structures() {
    let driver = Driver::idle(block());
    let config = driver.pci.config();
    assert_eq!(config.dword(0), 0x1042_1af4);
    let mut at = config.read(reg::CAPABILITIES, Width::Byte) as u8;
    let mut found = Vec::new();
    while at != 0 {
        let (id, kind) = (config.read(at, Width::Byte), config.read(at + 3, Width::Byte));
        found.push((id, if id == 9 { kind } else { 0 }, config.dword(at + 8)));
        at = config.read(at + 1, Width::Byte) as u8;
    }
    assert_eq!(found, [(9, 1, 0), (9, 3, 0x1000), (9, 4, 0x2000), (9, 2, 0x3000), (0x11, 0, 0x802)]);
}

#[test]
fn a_driver_must_know_version_one_and_only_what_is_offered() {
    let mut driver = Driver::idle(block());
    driver.write(0x00, Width::Dword, 1);
    assert_eq!(driver.read(0x04, Width::Dword), 3, "VERSION_1 and ACCESS_PLATFORM");
    driver.write(0x14, Width::Byte, 3);
    driver.write(0x14, Width::Byte, 0xb);
    assert_eq!(driver.status(), 3, "no features, no FEATURES_OK");
    assert_eq!(driver.negotiate(1 << 63), 3);
    driver.write(0x14, Width::Byte, 0);
    assert_eq!((driver.status(), driver.negotiate(feature::EVENT_IDX)), (0, 0xb));
    driver.write(0x08, Width::Dword, 0);
    driver.write(0x0c, Width::Dword, 0);
    assert_eq!(u64::from(driver.read(0x0c, Width::Dword) as u32), feature::EVENT_IDX, "negotiated for good");
    driver.write(0x16, Width::Word, 1);
    assert_eq!(driver.read(0x18, Width::Word), 0, "the block device has one queue");
}

#[test]
fn nothing_happens_before_the_driver_is_ready() {
    let mut driver = Driver::idle(block());
    assert_eq!(driver.negotiate(0), 0xb);
    driver.notify(0);
    assert!(!driver.pci.wants_dma() && driver.ram.moved == 0);
}

#[test]
fn interrupts_go_by_msix_or_by_the_pin_and_as_the_driver_asks() {
    let mut driver = Driver::new(block(), 0);
    let flush = [(DATA, 16, READ_BY_DEVICE), (DATA + 64, 1, WRITTEN_BY_DEVICE)];
    driver.ram.put(DATA, &4_u32.to_le_bytes());
    assert_eq!(driver.request(0, &flush, false), Some(1));
    assert!(driver.pci.intx_asserted());
    assert_eq!(driver.read(0x1000, Width::Byte), 1);
    assert!(!driver.pci.intx_asserted(), "reading ISR takes the pin down");
    // The available ring says that no interrupt is wanted.
    driver.ram.put(rings(0)[1], &1_u16.to_le_bytes());
    assert_eq!(driver.request(0, &flush, false), Some(1));
    assert!(!driver.pci.intx_asserted());
    driver.ram.put(rings(0)[1], &0_u16.to_le_bytes());
    // MSI-X: vector 1 for the queue.
    driver.write(0x1a, Width::Word, 99);
    assert_eq!(driver.read(0x1a, Width::Word), 0xffff, "no such vector");
    driver.write(0x1a, Width::Word, 1);
    for (offset, value) in [(16, 0xfee0_0000), (24, 0x71), (28, 0)] {
        driver.pci.bar_write(BarAccess { bar: 2, offset, width: Width::Dword }, value, NOW);
    }
    driver.pci.config_mut().write(0x8a, Width::Word, 0x8000);
    assert_eq!(driver.request(0, &flush, false), Some(1));
    assert!(!driver.pci.intx_asserted());
    assert_eq!(driver.pci.take_msi().map(|message| message.data), Some(0x71));
}

#[test]
fn with_event_indices_one_interrupt_covers_what_was_done_together() {
    let mut driver = Driver::new(block(), feature::EVENT_IDX);
    assert!(driver.event_index);
    driver.ram.put(DATA, &4_u32.to_le_bytes());
    let flush = [(DATA, 16, READ_BY_DEVICE), (DATA + 64, 1, WRITTEN_BY_DEVICE)];
    let [_, available, used] = rings(0);
    // Tell when the third is done.
    driver.ram.put(available + 4 + 2 * u64::from(SIZE), &2_u16.to_le_bytes());
    for done in 1..=3 {
        driver.offer(0, &flush, false);
        driver.notify(0);
        assert_eq!(driver.pci.intx_asserted(), done == 3);
        // And the device wants to hear of the next.
        assert_eq!(u16::from_le_bytes(driver.ram.get(used + 4 + 8 * u64::from(SIZE))), done);
    }
}
