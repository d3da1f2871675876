//! Drivers that mean harm: the device asks for its reset, or fails the request, in bounded time.

use emu_core::rng::{Consumer, Seed};
use proptest::prelude::*;

use super::*;
use crate::virtio::chain::Broken;
use crate::virtio::console::VirtioConsole;
use crate::virtio::net::{Loopback, Mac, UserNetwork, VirtioNet};
use crate::virtio::rng::VirtioRng;

const NEEDS_RESET: u64 = 0x40;

/// Hands `parts` over, and says what the device complains of.
fn complaint(parts: &[Part], indirect: bool) -> Option<Broken> {
    let mut driver = Driver::new(block(), feature::INDIRECT_DESC);
    driver.offer(0, parts, indirect);
    driver.notify(0);
    let broken = driver.pci.broken();
    assert_eq!(driver.status() & NEEDS_RESET != 0, broken.is_some());
    if broken.is_some() {
        assert!(driver.pci.intx_asserted(), "the driver is told");
        assert_eq!(driver.read(0x1000, Width::Byte), 2);
        let moved = driver.ram.moved;
        driver.notify(0);
        assert_eq!(driver.ram.moved, moved, "nothing is looked at until the reset");
        driver.write(0x14, Width::Byte, 0);
        assert_eq!((driver.status(), driver.pci.broken()), (0, None));
    }
    broken
}

#[test]
fn every_malformed_chain_is_named() {
    let good = (DATA, 16, READ_BY_DEVICE);
    let status = (DATA + 64, 1, WRITTEN_BY_DEVICE);
    assert_eq!(complaint(&[good, status], false), None);
    assert_eq!(complaint(&[status, good], false), Some(Broken::Order));
    assert_eq!(complaint(&[good], false), Some(Broken::NoRoom));
    assert_eq!(complaint(&[(DATA, 16, 4), status], false), Some(Broken::Indirect(16)), "in the middle");
    assert_eq!(complaint(&[(TABLE, 24, 4)], false), Some(Broken::Indirect(24)));
    assert_eq!(complaint(&[(TABLE, 0, 4)], false), Some(Broken::Indirect(0)));
    assert_eq!(complaint(&[(TABLE, u32::MAX - 15, 4)], false), Some(Broken::Indirect(u32::MAX - 15)));
    assert_eq!(complaint(&[(TABLE, 16, 4)], true), Some(Broken::Indirect(16)), "a table in a table");
    assert!(matches!(complaint(&[good, (RAM as u64, 1, WRITTEN_BY_DEVICE)], false), Some(Broken::Memory(_))));
    assert!(matches!(complaint(&[good, (u64::MAX, 1, WRITTEN_BY_DEVICE)], false), Some(Broken::Memory(_))));
}

#[test]
fn loops_and_false_indices_end() {
    let breaks = |change: fn(&mut Driver<VirtioBlock>)| {
        let mut driver = Driver::new(block(), feature::INDIRECT_DESC);
        driver.offer(0, &[(DATA, 16, READ_BY_DEVICE)], false);
        change(&mut driver);
        driver.notify(0);
        assert!(driver.ram.moved < 64 << 10);
        driver.pci.broken()
    };
    let [table, available, _] = rings(0);
    assert_eq!((table, available), (0x1_0000, 0x1_1000));
    // A descriptor that names itself; one that names another table's; a head that is none; an index far ahead.
    let of_itself = |d: &mut Driver<VirtioBlock>| d.ram.put(0x1_000c, &[1, 0, 0, 0]);
    assert_eq!(breaks(of_itself), Some(Broken::TooLong));
    assert_eq!(breaks(|d| d.ram.put(0x1_000c, &[1, 0, 200, 0])), Some(Broken::NoDescriptor(200)));
    assert_eq!(breaks(|d| d.ram.put(0x1_1004, &[16, 0])), Some(Broken::NoDescriptor(16)));
    assert_eq!(breaks(|d| d.ram.put(0x1_1002, &[200, 0])), Some(Broken::Overrun(200, 16)));
    assert!(matches!(breaks(|d| d.ram.private = 0x1_1000..0x1_2000), Some(Broken::Memory(_))));
    assert!(matches!(breaks(|d| d.ram.private = 0x1_2000..0x1_3000), Some(Broken::NoRoom)));
}

#[test]
fn queues_that_cannot_be_are_refused_when_enabled() {
    for (offset, width, value) in
        [(0x18, Width::Word, 3), (0x18, Width::Word, 512), (0x18, Width::Word, 0), (0x20, Width::Qword, 8)]
    {
        let mut driver = Driver::idle(block());
        assert_eq!(driver.negotiate(0), 0xb);
        driver.write(offset, width, value);
        driver.write(0x1c, Width::Word, 1);
        assert_eq!(driver.pci.broken(), Some(Broken::Queue(0)));
        assert_eq!(driver.status(), 0xb | NEEDS_RESET);
    }
}

#[test]
fn a_device_that_feeds_itself_stops_after_a_queues_worth() {
    // Random bytes go over the available ring's index, so that there is always something available.
    let mut driver = Driver::new(VirtioRng::new(Seed(1).stream(Consumer::Devices)), 0);
    let [_, available, _] = rings(0);
    for _ in 0..8 {
        driver.offer(0, &[(available + 2, 1, WRITTEN_BY_DEVICE)], false);
    }
    driver.ram.moved = 0;
    driver.notify(0);
    assert!(driver.ram.moved < u64::from(SIZE) * 64);
}

/// Lets a device work on queues full of `bytes`.
fn chaos<D: VirtioDevice>(device: D, bytes: &[u8], heads: &[u16], accesses: &[(u64, usize, u64)]) {
    let mut driver = Driver::new(device, feature::INDIRECT_DESC | feature::EVENT_IDX);
    for n in 0..D::QUEUES {
        let [table, available, _] = rings(n);
        for (k, raw) in bytes.as_chunks::<16>().0.iter().enumerate() {
            let mut descriptor = *raw;
            // Addresses and lengths that are memory more often than not, and links that stay in the table.
            descriptor[3..8].fill(0);
            descriptor[2] &= 0x0f;
            if descriptor[9] & 1 != 0 {
                descriptor[10..12].fill(0);
            }
            descriptor[12] &= 7;
            descriptor[13] = 0;
            descriptor[14] &= 0x1f;
            descriptor[15] = 0;
            driver.ram.put(table + 16 * k as u64, &descriptor);
            driver.ram.put(TABLE + 16 * k as u64, &descriptor);
        }
        for (k, head) in (0..).zip(heads) {
            driver.ram.put(available + 4 + 2 * (k % u64::from(SIZE)), &(head % 18).to_le_bytes());
        }
        driver.ram.put(available + 2, &(heads.len() as u16).to_le_bytes());
        driver.ram.moved = 0;
        driver.notify(n);
        let most = u64::from(SIZE) * u64::from(D::QUEUES) * ((8 << 20) + (64 << 10));
        assert!(driver.ram.moved <= most, "{} bytes", driver.ram.moved);
    }
    for &(offset, width, value) in accesses {
        driver.write(offset, Width::ALL[width], value);
        driver.read(offset, Width::ALL[width]);
        driver.run();
        driver.pci.advance(Instant::new(value >> 32));
        driver.pci.take_msi();
    }
}

proptest! {
    #[test]
    fn no_queue_and_no_access_panics_or_hangs(
        bytes in prop::collection::vec(any::<u8>(), 16 * 16), heads in prop::collection::vec(any::<u16>(), 0..20),
        accesses in prop::collection::vec((0..0x3010_u64, 0..4_usize, any::<u64>()), 0..24),
    ) {
        chaos(block(), &bytes, &heads, &accesses);
        chaos(VirtioRng::new(Seed(0).stream(Consumer::Devices)), &bytes, &heads, &accesses);
        chaos(VirtioConsole::default(), &bytes, &heads, &accesses);
        chaos(VirtioNet::new(Mac::of_device(0), Box::new(Loopback::default())), &bytes, &heads, &accesses);
        chaos(VirtioNet::new(Mac::of_device(0), Box::new(UserNetwork::new(0))), &bytes, &heads, &accesses);
    }

    /// The registers alone: whatever is written, reads fit their width, and only a valid queue is ever enabled.
    #[test]
    fn registers_take_anything(
        accesses in prop::collection::vec((0..0x40_u64, 0..4_usize, prop_oneof![0..20_u64, any::<u64>()]), 0..80),
    ) {
        let mut driver = Driver::idle(block());
        for (offset, width, value) in accesses {
            driver.write(offset, Width::ALL[width], value);
            driver.run();
            prop_assert!(driver.pci.queues().iter().all(|q| !q.enabled || q.is_valid()) || driver.status() & NEEDS_RESET != 0);
        }
    }
}
