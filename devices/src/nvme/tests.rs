//! A small driver over plain memory, and guests that mean harm.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::block::{Blank, DiskAccess, SECTOR};
use crate::pci::config::reg;
use crate::ram::Ram;

const NOW: Instant = Instant::ZERO;
const ASQ: u64 = 0x1000;
const ACQ: u64 = 0x2000;
const SQ: u64 = 0x3000;
const CQ: u64 = 0x4000;
const DATA: u64 = 0x10_000;
const LIST: u64 = 0x8000;
const RAM: usize = 4 << 20;

/// A driver with one pair of I/O queues.
struct Driver {
    nvme: Nvme,
    ram: Ram,
    /// Tail, head and phase of each queue pair.
    places: [(u32, u32, bool); 2],
}

#[derive(Clone, Copy, Default)]
struct Sqe {
    opcode: u8,
    namespace: u32,
    prp: [u64; 2],
    dwords: [u32; 6],
}

fn controller(disk: Disk) -> Nvme {
    let mut nvme = Nvme::new(disk, 0);
    nvme.config_mut().write(reg::COMMAND, Width::Word, 7);
    nvme
}

fn write(nvme: &mut Nvme, offset: u64, width: Width, value: u64) {
    nvme.bar_write(BarAccess { bar: 0, offset, width }, value, NOW);
}
fn read(nvme: &mut Nvme, offset: u64, width: Width) -> u64 {
    nvme.bar_read(BarAccess { bar: 0, offset, width }, NOW) & width.mask()
}

fn enable(nvme: &mut Nvme) {
    write(nvme, 0x24, Width::Dword, 15 << 16 | 15);
    write(nvme, 0x28, Width::Qword, ASQ);
    write(nvme, 0x30, Width::Qword, ACQ);
    write(nvme, 0x14, Width::Dword, 0x0046_0001);
}

impl Driver {
    fn new(disk: Disk) -> Driver {
        let mut nvme = controller(disk);
        enable(&mut nvme);
        assert_eq!(read(&mut nvme, 0x1c, Width::Dword), 1, "ready");
        let mut driver = Driver { nvme, ram: Ram::new(RAM), places: [(0, 0, true); 2] };
        let create = |opcode, base, more| Sqe {
            opcode,
            prp: [base, 0],
            dwords: [15 << 16 | 1, more, 0, 0, 0, 0],
            ..Sqe::default()
        };
        assert_eq!(driver.admin(create(5, CQ, 1 << 16 | 3)), (0, 0));
        assert_eq!(driver.admin(create(1, SQ, 1 << 16 | 1)), (0, 0));
        driver
    }

    fn blank() -> Driver {
        Driver::new(Disk::new(Arc::new(Blank(1 << 20)), DiskAccess::ReadWrite, "serial"))
    }

    /// Puts a command into queue `q` and rings.
    fn submit(&mut self, q: usize, sqe: Sqe) {
        let at = [ASQ, SQ][q] + u64::from(self.places[q].0) * 64;
        let mut bytes = [0; 64];
        bytes[0] = sqe.opcode;
        bytes[2] = 0x77;
        bytes[4..8].copy_from_slice(&sqe.namespace.to_le_bytes());
        for (n, prp) in sqe.prp.iter().enumerate() {
            bytes[24 + 8 * n..32 + 8 * n].copy_from_slice(&prp.to_le_bytes());
        }
        for (n, dword) in sqe.dwords.iter().enumerate() {
            bytes[40 + 4 * n..44 + 4 * n].copy_from_slice(&dword.to_le_bytes());
        }
        self.ram.put(at, &bytes);
        self.places[q].0 = (self.places[q].0 + 1) % 16;
        write(&mut self.nvme, 0x1000 + 8 * q as u64, Width::Dword, u64::from(self.places[q].0));
        assert!(self.nvme.wants_dma());
        self.nvme.run_dma(&mut self.ram, NOW);
        assert!(!self.nvme.wants_dma());
    }

    /// The next completion of queue `q`: result and status.
    fn reap(&mut self, q: usize) -> Option<(u32, u16)> {
        let (_, head, phase) = &mut self.places[q];
        let entry = self.ram.get::<16>([ACQ, CQ][q] + u64::from(*head) * 16);
        let status = u16::from_le_bytes([entry[14], entry[15]]);
        if (status & 1 != 0) != *phase {
            return None;
        }
        assert_eq!(entry[12], 0x77);
        *head = (*head + 1) % 16;
        *phase ^= *head == 0;
        write(&mut self.nvme, 0x1004 + 8 * q as u64, Width::Dword, u64::from(*head));
        Some((u32::from_le_bytes(entry[..4].try_into().expect("four bytes")), status >> 1))
    }

    fn admin(&mut self, sqe: Sqe) -> (u32, u16) {
        self.submit(0, sqe);
        self.reap(0).expect("an administrative command completes")
    }
    fn io(&mut self, opcode: u8, first: u64, blocks: u32, prp: [u64; 2]) -> u16 {
        let dwords = [first as u32, (first >> 32) as u32, blocks - 1, 0, 0, 0];
        self.submit(1, Sqe { opcode, namespace: 1, prp, dwords });
        self.reap(1).expect("an I/O command completes").1
    }
    fn status(&mut self) -> u64 {
        read(&mut self.nvme, 0x1c, Width::Dword)
    }
}

const DO_NOT_RETRY: u16 = 1 << 14;

#[test]
fn what_was_written_is_read_back_through_every_form_of_prp() {
    let mut driver = Driver::blank();
    let pattern: Vec<u8> = (0..40_960_u32).map(|n| (n % 251) as u8).collect();
    for (blocks, offset) in [(1, 0), (8, 0), (8, 0x200), (16, 0), (16, 0x200), (80, 0), (79, 0xe00)] {
        let len = blocks as usize * 512;
        driver.ram.put(DATA + offset, &pattern[..len]);
        for n in 0..16_u64 {
            driver.ram.put(LIST + 8 * n, &(DATA + 0x1000 + 0x1000 * n).to_le_bytes());
        }
        let pages = (offset + len as u64).div_ceil(0x1000);
        let second = if pages > 2 { LIST } else { DATA + 0x1000 };
        assert_eq!(driver.io(1, 100, blocks, [DATA + offset, second]), 0);
        driver.ram.put(DATA, &vec![0; 0x20_000]);
        assert_eq!(driver.io(2, 100, blocks, [DATA + offset, second]), 0);
        let at = (DATA + offset) as usize;
        assert!(driver.ram.bytes[at..at + len] == pattern[..len], "{blocks} blocks at {offset:#x}");
        let mut bytes = vec![0; len];
        driver.nvme.disk().read(100, &mut bytes).expect("on the disk");
        assert!(bytes == pattern[..len]);
    }
    assert_eq!(driver.io(8, 100, 80, [0, 0]), 0);
    let mut bytes = [1; 512];
    driver.nvme.disk().read(120, &mut bytes).expect("on the disk");
    assert_eq!(bytes, [0; 512]);
    assert_eq!((driver.io(0, 0, 1, [0, 0]), driver.io(9, 0, 1, [0, 0])), (0, 0));
}

#[test]
fn a_list_goes_on_in_the_page_that_its_last_entry_names() {
    let mut driver = Driver::blank();
    // The first list has room for two entries: a page, and the next list.
    driver.ram.put(LIST + 0xff0, &(DATA + 0x1000).to_le_bytes());
    driver.ram.put(LIST + 0xff8, &(LIST + 0x1000).to_le_bytes());
    driver.ram.put(LIST + 0x1000, &(DATA + 0x2000).to_le_bytes());
    driver.ram.put(LIST + 0x1008, &(DATA + 0x3000).to_le_bytes());
    driver.ram.put(DATA, &[5; 0x4000]);
    assert_eq!(driver.io(1, 0, 32, [DATA, LIST + 0xff0]), 0);
    let mut bytes = vec![0; 0x4000];
    driver.nvme.disk().read(0, &mut bytes).expect("on the disk");
    assert!(bytes.iter().all(|&byte| byte == 5));
    // A list that would never end does not begin on a page.
    driver.ram.put(LIST + 0xff8, &(LIST + 0xff8).to_le_bytes());
    let refused = Status::InvalidPrpOffset as u16 | DO_NOT_RETRY;
    assert_eq!(driver.io(1, 0, 32, [DATA, LIST + 0xff8]), refused);
}

use command::Status;

#[test]
fn wrong_commands_fail_with_their_status_and_change_nothing() {
    let mut driver = Driver::blank();
    let no_retry = |status: Status| status as u16 | DO_NOT_RETRY;
    assert_eq!(driver.io(2, 2048, 1, [DATA, 0]), no_retry(Status::LbaOutOfRange));
    assert_eq!(driver.io(2, u64::MAX, 1, [DATA, 0]), no_retry(Status::LbaOutOfRange));
    assert_eq!(driver.io(2, 0, 1025, [DATA, LIST]), no_retry(Status::InvalidField));
    assert_eq!(driver.io(2, 0, 1, [DATA + 2, 0]), no_retry(Status::InvalidPrpOffset));
    assert_eq!(driver.io(2, 0, 16, [DATA, DATA + 0x1200]), no_retry(Status::InvalidPrpOffset));
    assert_eq!(driver.io(2, 0, 1, [RAM as u64, 0]), Status::DataTransferError as u16);
    assert_eq!(driver.io(2, 0, 1, [!3, 0]), Status::DataTransferError as u16);
    assert_eq!(driver.io(0x55, 0, 1, [DATA, 0]), no_retry(Status::InvalidOpcode));
    driver.submit(1, Sqe { opcode: 2, namespace: 2, ..Sqe::default() });
    assert_eq!(driver.reap(1), Some((0, no_retry(Status::InvalidNamespace))));
    let mut driver = Driver::new(Disk::new(Arc::new(Blank(SECTOR)), DiskAccess::ReadOnly, ""));
    assert_eq!(driver.io(1, 0, 1, [DATA, 0]), no_retry(Status::WriteProtected));
    assert_eq!(driver.io(2, 0, 1, [DATA, 0]), 0);
}

#[test]
fn memory_that_a_device_may_not_reach_fails_the_command_and_leaves_the_controller_working() {
    let mut driver = Driver::blank();
    driver.ram.private = DATA..DATA + 0x1000;
    assert_eq!(driver.io(1, 0, 8, [DATA, 0]), Status::DataTransferError as u16);
    assert_eq!(driver.io(2, 0, 8, [DATA, 0]), Status::DataTransferError as u16);
    assert_eq!(driver.io(2, 0, 8, [DATA + 0x1000, 0]), 0);
    // A queue is another matter: there is nowhere to report to.
    driver.ram.private = SQ..SQ + 0x1000;
    driver.submit(1, Sqe { opcode: 0, namespace: 1, ..Sqe::default() });
    assert_eq!((driver.reap(1), driver.status()), (None, 3), "CSTS.CFS");
    // And a reset brings the controller back.
    write(&mut driver.nvme, 0x14, Width::Dword, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn identify_tells_what_a_driver_needs() {
    let mut driver = Driver::blank();
    let identify = |driver: &mut Driver, cns, namespace| {
        driver.admin(Sqe { opcode: 6, namespace, prp: [DATA, 0], dwords: [cns, 0, 0, 0, 0, 0] }).1
    };
    assert_eq!(identify(&mut driver, 1, 0), 0);
    assert_eq!(&driver.ram.get::<20>(DATA + 4), b"serial              ");
    assert_eq!(driver.ram.get::<2>(DATA + 512), [0x66, 0x44]);
    assert_eq!(driver.ram.get::<1>(DATA + 77), [7]);
    assert_eq!(identify(&mut driver, 0, 1), 0);
    assert_eq!(u64::from_le_bytes(driver.ram.get(DATA)), 2048);
    assert_eq!(driver.ram.get::<4>(DATA + 128), [0, 0, 9, 0]);
    assert_eq!(identify(&mut driver, 2, 0), 0);
    assert_eq!(driver.ram.get::<8>(DATA), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(identify(&mut driver, 3, 1), 0);
    assert_eq!(driver.ram.get::<2>(DATA), [3, 16]);
    assert_eq!(identify(&mut driver, 0, 7), Status::InvalidNamespace as u16 | DO_NOT_RETRY);
    assert_eq!(identify(&mut driver, 0x55, 0), Status::InvalidField as u16 | DO_NOT_RETRY);
    assert_eq!(
        driver.admin(Sqe { opcode: 9, dwords: [7, 0x003f_003f, 0, 0, 0, 0], ..Sqe::default() }),
        (0x000f_000f, 0)
    );
}

#[test]
fn queues_are_created_and_deleted_by_the_rules() {
    let mut driver = Driver::blank();
    let mut order = |opcode, base, dword10: u32, dword11| {
        driver.admin(Sqe { opcode, prp: [base, 0], dwords: [dword10, dword11, 0, 0, 0, 0], ..Sqe::default() }).1
    };
    let no_retry = |status: Status| status as u16 | DO_NOT_RETRY;
    assert_eq!(order(5, CQ, 15 << 16 | 1, 1), no_retry(Status::InvalidQueue), "taken");
    assert_eq!(order(5, CQ, 15 << 16, 1), no_retry(Status::InvalidQueue), "the administrative one");
    assert_eq!(order(5, CQ, 15 << 16 | 17, 1), no_retry(Status::InvalidQueue));
    assert_eq!(order(5, CQ, 2, 1), no_retry(Status::InvalidQueueSize));
    assert_eq!(order(5, CQ, 1024 << 16 | 2, 1), no_retry(Status::InvalidQueueSize));
    assert_eq!(order(5, CQ, 15 << 16 | 2, 0), no_retry(Status::InvalidField), "not contiguous");
    assert_eq!(order(5, CQ + 8, 15 << 16 | 2, 1), no_retry(Status::InvalidPrpOffset));
    assert_eq!(order(5, CQ, 15 << 16 | 2, 99 << 16 | 3), no_retry(Status::InvalidVector));
    assert_eq!(order(1, SQ, 15 << 16 | 2, 9 << 16 | 1), no_retry(Status::InvalidCompletionQueue));
    assert_eq!(order(4, 0, 1, 0), no_retry(Status::InvalidQueueDeletion));
    assert_eq!(order(0, 0, 1, 0), 0);
    assert_eq!(order(0, 0, 1, 0), no_retry(Status::InvalidQueue));
    assert_eq!(order(4, 0, 1, 0), 0);
    assert_eq!(order(0, 0, 0, 0), no_retry(Status::InvalidQueue));
}

#[test]
fn interrupts_go_by_msix_or_by_the_pin_while_that_is_off() {
    let mut driver = Driver::blank();
    assert!(!driver.nvme.intx_asserted());
    let flush = Sqe { opcode: 0, namespace: 1, ..Sqe::default() };
    driver.submit(1, flush);
    assert!(driver.nvme.intx_asserted());
    write(&mut driver.nvme, 0x0c, Width::Dword, 1);
    assert!(!driver.nvme.intx_asserted(), "INTMS");
    write(&mut driver.nvme, 0x10, Width::Dword, 1);
    assert!(driver.reap(1).is_some() && !driver.nvme.intx_asserted());
    // Vector 1 of the table, and MSI-X on.
    for (offset, value) in [(16, 0xfee0_0000), (24, 0x61), (28, 0)] {
        driver.nvme.bar_write(BarAccess { bar: MSIX_BAR, offset, width: Width::Dword }, value, NOW);
    }
    driver.nvme.config_mut().write(MSIX_CAPABILITY + 2, Width::Word, 0x8000);
    driver.submit(1, flush);
    assert!(!driver.nvme.intx_asserted());
    assert_eq!(driver.nvme.take_msi().map(|message| message.data), Some(0x61));
    assert_eq!(driver.nvme.take_msi(), None);
}

#[test]
fn a_full_completion_queue_holds_commands_back_until_it_is_read() {
    let mut driver = Driver::blank();
    for _ in 0..15 {
        driver.submit(1, Sqe { opcode: 0, namespace: 1, ..Sqe::default() });
    }
    driver.submit(1, Sqe { opcode: 2, namespace: 9, ..Sqe::default() });
    for _ in 0..15 {
        assert_eq!(driver.reap(1), Some((0, 0)));
    }
    assert_eq!(driver.reap(1), None);
    assert!(driver.nvme.wants_dma(), "the head's doorbell made room");
    driver.nvme.run_dma(&mut driver.ram, NOW);
    assert_eq!(driver.reap(1).map(|(_, status)| status & 0xff), Some(Status::InvalidNamespace as u16));
}

#[test]
fn a_wrong_doorbell_is_told_by_an_event_once_until_the_log_is_read() {
    let mut driver = Driver::blank();
    for _ in 0..4 {
        driver.submit(0, Sqe { opcode: 0x0c, ..Sqe::default() });
    }
    assert_eq!(driver.reap(0), None);
    let too_many = Status::TooManyEventRequests as u16 | DO_NOT_RETRY;
    assert_eq!(driver.admin(Sqe { opcode: 0x0c, ..Sqe::default() }), (0, too_many));
    for (offset, event) in [(0x1008, Some(0x1_0100)), (0x1080, None)] {
        write(&mut driver.nvme, offset, Width::Dword, 99);
        driver.nvme.run_dma(&mut driver.ram, NOW);
        assert_eq!(driver.reap(0).map(|(event, _)| event), event);
    }
    assert_eq!(
        driver.admin(Sqe { opcode: 2, prp: [DATA, 0], dwords: [15 << 16 | 1, 0, 0, 0, 0, 0], ..Sqe::default() }).1,
        0
    );
    write(&mut driver.nvme, 0x1080, Width::Dword, 1);
    driver.nvme.run_dma(&mut driver.ram, NOW);
    assert_eq!(driver.reap(0), Some((0x1_0000, 0)));
}

#[test]
fn a_configuration_that_is_not_supported_is_fatal_until_reset() {
    let mut nvme = controller(Disk::new(Arc::new(Blank(512)), DiskAccess::ReadWrite, ""));
    write(&mut nvme, 0x14, Width::Dword, 1);
    assert_eq!(read(&mut nvme, 0x1c, Width::Dword), 2, "queues of one entry");
    write(&mut nvme, 0x14, Width::Dword, 0);
    enable(&mut nvme);
    assert_eq!(read(&mut nvme, 0x1c, Width::Dword), 1);
    write(&mut nvme, 0x14, Width::Dword, 0x0046_4001);
    assert_eq!(read(&mut nvme, 0x1c, Width::Dword), 9, "shutdown complete");
    assert_eq!(read(&mut nvme, 0, Width::Qword), regs::CAPABILITIES);
    assert_eq!(read(&mut nvme, 8, Width::Word), 0x0400);
}

proptest! {
    /// Whatever is in the queues, and wherever they are: no panic, bounded work, and the disk keeps its size.
    #[test]
    fn any_commands_and_any_registers(
        seed in prop::collection::vec(any::<u8>(), 1024), rings in prop::collection::vec((0..40_u64, 0..20_u64), 1..12),
        accesses in prop::collection::vec((0..0x1100_u64, 0..4_usize, any::<u64>()), 0..12), opcodes in any::<[u8; 16]>(),
    ) {
        let mut driver = Driver::blank();
        // Commands that are half sensible: known opcodes, the one namespace, addresses near memory.
        for (q, base) in [ASQ, SQ].into_iter().enumerate() {
            for n in 0..16_usize {
                let mut entry: [u8; 64] = seed[n * 64..n * 64 + 64].try_into().expect("64 bytes");
                entry[0] = if q == 0 { opcodes[n] % 14 } else { opcodes[n] % 10 };
                entry[1] = 0;
                entry[4..8].copy_from_slice(&u32::from(n % 5 != 0).to_le_bytes());
                for at in [27, 28, 29, 30, 31, 35, 36, 37, 38, 39, 42, 43, 44, 45, 46, 47, 50, 51] {
                    entry[at] = 0;
                }
                driver.ram.put(base + n as u64 * 64, &entry);
            }
        }
        for (queue, value) in rings {
            write(&mut driver.nvme, 0x1000 + queue * 4, Width::Dword, value);
            driver.ram.moved = 0;
            driver.nvme.run_dma(&mut driver.ram, NOW);
            prop_assert!(driver.ram.moved <= 2 * 16 * (MAX_TRANSFER + 3 * 4096));
        }
        for (offset, width, value) in accesses {
            write(&mut driver.nvme, offset, Width::ALL[width], value);
            read(&mut driver.nvme, offset, Width::ALL[width]);
            driver.nvme.run_dma(&mut driver.ram, NOW);
            driver.nvme.take_msi();
        }
        prop_assert_eq!(driver.nvme.disk().sectors(), 2048);
    }
}
