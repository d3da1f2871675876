use super::config::{Bar, BarKind, reg};
use super::*;
use crate::ram::Ram;

/// A device with one BAR of each kind that remembers the last write.
#[derive(Debug)]
pub(super) struct Scratch {
    config: ConfigSpace,
    last: Option<(BarAccess, u64)>,
    asserted: bool,
    msi: Option<MsiMessage>,
}

impl Scratch {
    pub(super) fn boxed() -> Box<Scratch> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
            subsystem: (0, 0),
            interrupt_pin: 1,
        });
        config.set_bar(0, Bar { kind: BarKind::Memory64, size: 0x4000 });
        config.set_bar(2, Bar { kind: BarKind::Io, size: 0x20 });
        Box::new(Scratch { config, last: None, asserted: false, msi: None })
    }
}

impl PciDevice for Scratch {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, access: BarAccess, _now: Instant) -> u64 {
        access.offset | 0xff00_0000_0000_0000
    }
    fn bar_write(&mut self, access: BarAccess, value: u64, _now: Instant) {
        self.asserted = value != 0;
        self.last = Some((access, value));
    }
    fn intx_asserted(&self) -> bool {
        self.asserted
    }
    fn take_msi(&mut self) -> Option<MsiMessage> {
        self.msi.take()
    }
}

fn address(slot: u32, register: u32) -> u32 {
    1 << 31 | slot << 11 | register
}

#[test]
fn mechanism_one_reads_ids_at_every_width() {
    let mut bus = PciBus::new();
    bus.set_address(address(0, 0));
    assert_eq!(bus.read_data(0, Width::Dword), 0x1237_8086);
    assert_eq!(bus.read_data(2, Width::Word), 0x1237);
    assert_eq!(bus.read_data(3, Width::Byte), 0x12);
    bus.set_address(address(1, 8));
    assert_eq!(bus.read_data(0, Width::Dword) >> 8, 0x06_0100);
    for nobody in [address(2, 0), address(0, 0) | 1 << 8, address(0, 0) | 1 << 16, address(0, 0) & !(1 << 31)] {
        bus.set_address(nobody);
        assert_eq!(bus.read_data(0, Width::Dword), u32::MAX);
        assert_eq!(bus.read_data(0, Width::Word), 0xffff);
    }
    bus.set_address(u32::MAX);
    assert_eq!(bus.address(), 0x80ff_fffc);
}

#[test]
fn slots_take_one_device_each() {
    let mut bus = PciBus::new();
    assert_eq!(bus.plug(0, Scratch::boxed()), Err(PlugError::Taken(0)));
    assert_eq!(bus.plug(32, Scratch::boxed()), Err(PlugError::NoSuchSlot(32)));
    assert_eq!(bus.plug(31, Scratch::boxed()), Ok(()));
    assert_eq!(bus.plug(31, Scratch::boxed()), Err(PlugError::Taken(31)));
}

#[test]
fn a_programmed_bar_receives_its_accesses_and_only_those() {
    let mut bus = PciBus::new();
    bus.plug(5, Scratch::boxed()).expect("free");
    let now = Instant::ZERO;
    let at = |offset: u64| Gpa::new(0x20_e000_0000 + offset);
    for (register, value) in [(reg::BAR0, 0xe000_0000), (reg::BAR0 + 4, 0x20), (reg::BAR0 + 8, 0xc000)] {
        bus.set_address(address(5, register as u32));
        bus.write_data(0, Width::Dword, value);
    }
    assert_eq!(bus.mmio_read(at(8), Width::Dword, now), None);
    bus.set_address(address(5, reg::COMMAND as u32));
    bus.write_data(0, Width::Word, 3);
    assert_eq!(bus.mmio_read(at(8), Width::Dword, now), Some(8));
    assert_eq!(bus.mmio_read(at(0x3ff8), Width::Qword, now), Some(0xff00_0000_0000_3ff8));
    assert_eq!(bus.mmio_read(at(0x4000), Width::Dword, now), None);
    assert_eq!(bus.io_read(Port(0xc01f), Width::Byte, now), Some(0x1f));
    assert_eq!(bus.io_read(Port(0xc020), Width::Byte, now), None);
    assert!(!bus.io_write(Port(0xbfff), Width::Byte, 1, now));
    assert_eq!(bus.intx_lines(), 0);
    assert!(bus.mmio_write(at(4), Width::Word, 0x1_0002, now));
    assert_eq!(bus.intx_lines(), 1 << intx_line(5, 0));
}

#[test]
fn messages_need_bus_mastering() {
    let mut bus = PciBus::new();
    let message = MsiMessage { address: Gpa::new(0xfee0_0000), data: 0x41 };
    let mut device = Scratch::boxed();
    device.msi = Some(message);
    bus.plug(3, device).expect("free");
    assert_eq!(bus.take_msi(), None);
    bus.set_address(address(3, reg::COMMAND as u32));
    bus.write_data(0, Width::Word, 4);
    assert_eq!(bus.take_msi(), Some(message));
    assert_eq!(bus.take_msi(), None);
}

/// A device that moves 8 bytes there and back each time it is asked.
#[derive(Debug)]
struct Mover(ConfigSpace, Gpa);

impl PciDevice for Mover {
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
    fn wants_dma(&self) -> bool {
        true
    }
    fn run_dma(&mut self, memory: &mut dyn DmaPort, _now: Instant) {
        let mut bytes = [0; 8];
        let read = memory.read(self.1, &mut bytes);
        let written = memory.write(self.1, &bytes);
        assert_eq!(read, written, "the device sees what the machine says");
    }
}

#[test]
fn what_devices_move_and_are_refused_is_counted_by_slot() {
    let mut bus = PciBus::new();
    let mover = |gpa| {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
            subsystem: (0, 0),
            interrupt_pin: 0,
        });
        config.write(reg::COMMAND, Width::Word, 4);
        Box::new(Mover(config, Gpa::new(gpa)))
    };
    bus.plug(3, mover(0x100)).expect("free");
    bus.plug(9, mover(0x1000)).expect("free");
    let mut ram = Ram::new(0x1000);
    for _ in 0..3 {
        bus.run_dma(&mut ram, Instant::ZERO);
    }
    let moved = DmaCounters { read_bytes: 24, written_bytes: 24, refused: 0 };
    let refused = DmaCounters { refused: 6, ..DmaCounters::default() };
    let none = DmaCounters::default();
    assert_eq!(bus.dma_counters().collect::<Vec<_>>(), [(0, none), (1, none), (3, moved), (9, refused)]);
}
