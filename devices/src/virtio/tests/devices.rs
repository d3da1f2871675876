//! What each device does for a driver that behaves.

use emu_core::rng::{Consumer, Seed};

use super::*;
use crate::virtio::console::VirtioConsole;
use crate::virtio::net::{Loopback, Mac, VirtioNet};
use crate::virtio::rng::VirtioRng;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x20;
const PAYLOAD: u64 = DATA + 0x1000;

impl Driver<VirtioBlock> {
    /// A request of the block device: status byte and bytes written.
    fn block(&mut self, kind: u32, sector: u64, data: &[Part], indirect: bool) -> (u8, u32) {
        self.ram.put(HEADER, &u64::from(kind).to_le_bytes());
        self.ram.put(HEADER + 8, &sector.to_le_bytes());
        self.ram.put(STATUS, &[0xee]);
        let mut parts = vec![(HEADER, 16, READ_BY_DEVICE)];
        parts.extend(data);
        parts.push((STATUS, 1, WRITTEN_BY_DEVICE));
        let written = self.request(0, &parts, indirect).expect("answered");
        let [status] = self.ram.get(STATUS);
        (status, written)
    }
}

#[test]
fn blocks_are_written_and_read_by_direct_and_indirect_chains() {
    for (features, indirect) in [(0, false), (feature::INDIRECT_DESC | feature::EVENT_IDX, true)] {
        let mut driver = Driver::new(block(), features);
        let pattern: Vec<u8> = (0..3072_u32).map(|n| (n % 253) as u8).collect();
        driver.ram.put(PAYLOAD, &pattern);
        // Pieces need not be sectors.
        let out = [(PAYLOAD, 1000, READ_BY_DEVICE), (PAYLOAD + 1000, 2072, READ_BY_DEVICE)];
        assert_eq!(driver.block(1, 5, &out, indirect), (0, 1));
        let mut bytes = vec![0; 3072];
        driver.pci.device().disk().read(5, &mut bytes).expect("on the disk");
        assert!(bytes == pattern);
        driver.ram.put(PAYLOAD, &[0; 3072]);
        let back = [(PAYLOAD, 3000, WRITTEN_BY_DEVICE), (PAYLOAD + 0x2000, 72, WRITTEN_BY_DEVICE)];
        assert_eq!(driver.block(0, 5, &back, indirect), (0, 3073));
        assert_eq!(driver.ram.get::<3000>(PAYLOAD), pattern[..3000]);
        assert_eq!(driver.ram.get::<72>(PAYLOAD + 0x2000), pattern[3000..]);
        assert_eq!(driver.block(4, 0, &[], indirect), (0, 1));
        assert_eq!(driver.block(8, 0, &[(PAYLOAD, 20, WRITTEN_BY_DEVICE)], indirect), (0, 21));
        assert_eq!(&driver.ram.get::<7>(PAYLOAD), b"serial\0");
        // Write zeroes over one sector of the three.
        driver.ram.put(PAYLOAD, &6_u64.to_le_bytes());
        driver.ram.put(PAYLOAD + 8, &1_u64.to_le_bytes());
        assert_eq!(driver.block(13, 0, &[(PAYLOAD, 16, READ_BY_DEVICE)], indirect), (0, 1));
        driver.pci.device().disk().read(5, &mut bytes).expect("on the disk");
        assert!(bytes[512..1024].iter().all(|&byte| byte == 0) && bytes[1024..] == pattern[1024..]);
    }
}

#[test]
fn block_requests_that_cannot_be_done_say_so() {
    let mut driver = Driver::new(block(), 0);
    let into = |len| [(PAYLOAD, len, WRITTEN_BY_DEVICE)];
    assert_eq!(driver.block(0, 2047, &into(1024), false), (1, 1), "past the end");
    assert_eq!(driver.block(0, 0, &into(100), false), (1, 1), "no whole sectors");
    assert_eq!(driver.block(0, 0, &[(PAYLOAD, u32::MAX - 511, WRITTEN_BY_DEVICE)], false), (1, 1), "too much");
    assert_eq!(driver.block(99, 0, &into(512), false), (2, 1), "no such request");
    assert_eq!(driver.block(13, 0, &[(PAYLOAD, 8, READ_BY_DEVICE)], false), (2, 1));
    driver.ram.private = PAYLOAD..PAYLOAD + 0x1000;
    assert_eq!(driver.block(0, 0, &into(512), false), (1, 1), "private memory");
    assert_eq!(driver.block(1, 0, &[(PAYLOAD, 512, READ_BY_DEVICE)], false), (1, 1));
    assert_eq!(driver.status(), 0xf, "and the device goes on");
    let mut driver = Driver::new(VirtioBlock::new(disk(8, DiskAccess::ReadOnly)), 0);
    assert_eq!(driver.block(1, 0, &[(PAYLOAD, 512, READ_BY_DEVICE)], false), (1, 1));
    assert_eq!(driver.block(0, 0, &into(512), false), (0, 513));
    assert_eq!(driver.read(0x2000, Width::Qword), 8, "capacity");
}

#[test]
fn random_bytes_are_the_seeds() {
    let draw = |seed| {
        let mut driver = Driver::new(VirtioRng::new(Seed(seed).stream(Consumer::Devices)), 0);
        assert_eq!(
            driver.request(0, &[(DATA, 13, WRITTEN_BY_DEVICE), (DATA + 64, 8, WRITTEN_BY_DEVICE)], false),
            Some(21)
        );
        (driver.ram.get::<13>(DATA), driver.ram.get::<8>(DATA + 64))
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let mut driver = Driver::new(VirtioRng::new(Seed(0).stream(Consumer::Devices)), 0);
    assert_eq!(driver.request(0, &[(DATA, 0x8000, WRITTEN_BY_DEVICE)], false), Some(4096), "so much at a time");
    assert_eq!(driver.request(0, &[(DATA, 8, READ_BY_DEVICE)], false), Some(0));
}

#[test]
fn a_console_carries_bytes_both_ways() {
    let mut driver = Driver::new(VirtioConsole::default(), 0);
    driver.ram.put(DATA, b"hello, host");
    assert_eq!(driver.request(1, &[(DATA, 5, READ_BY_DEVICE), (DATA + 5, 6, READ_BY_DEVICE)], false), Some(0));
    assert_eq!(driver.pci.device_mut().take_output(), b"hello, host");
    // A buffer waits for what comes.
    assert_eq!(driver.request(0, &[(DATA, 8, WRITTEN_BY_DEVICE)], false), None);
    driver.pci.device_mut().input(b"hello, guest");
    driver.pci.wake();
    driver.run();
    assert_eq!(driver.reap(0), Some(8));
    assert_eq!(&driver.ram.get::<8>(DATA), b"hello, g");
    assert_eq!(driver.request(0, &[(DATA, 8, WRITTEN_BY_DEVICE)], false), Some(4));
    assert_eq!(&driver.ram.get::<4>(DATA), b"uest");
}

#[test]
fn a_loopback_returns_frames_into_the_buffers_that_wait() {
    let mut driver = Driver::new(VirtioNet::new(Mac::of_device(3), Box::new(Loopback::default())), 0);
    assert_eq!(driver.read(0x2000, Width::Dword), 0xbf00_5452);
    assert_eq!(driver.request(0, &[(DATA, 1526, WRITTEN_BY_DEVICE)], false), None);
    let frame: Vec<u8> = (0..60).collect();
    driver.ram.put(PAYLOAD + 12, &frame);
    assert_eq!(driver.request(1, &[(PAYLOAD, 72, READ_BY_DEVICE)], false), Some(0));
    assert_eq!(driver.reap(0), Some(72));
    assert_eq!(driver.ram.get::<60>(DATA + 12), frame[..]);
    assert_eq!(driver.ram.get::<12>(DATA), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    // Frames that come while no buffer waits, wait themselves.
    for _ in 0..2 {
        assert_eq!(driver.request(1, &[(PAYLOAD, 72, READ_BY_DEVICE)], false), Some(0));
    }
    for _ in 0..2 {
        assert_eq!(driver.request(0, &[(DATA, 1526, WRITTEN_BY_DEVICE)], false), Some(72));
    }
}
