use emu_core::time::Duration;
use proptest::prelude::*;

use super::*;
use crate::bus::{Port, Width};
use crate::lapic::msr;
use crate::message::{DeliveryMode, Destination, IpiRequest, MsiMessage, Trigger};

const NOW: Instant = Instant::ZERO;
const CPU0: CpuIndex = CpuIndex(0);
const LAPIC: u64 = 0xfee0_0000;

fn board(cpus: u16) -> Board {
    Board::new(BoardConfig::new(cpus, 1 << 30, 1 << 30)).expect("valid configuration")
}

fn out(board: &mut Board, port: u16, value: u8) -> BoardEvents {
    board.io_write(Port(port), Width::Byte, value as u32, NOW)
}

fn inb(board: &mut Board, port: u16) -> u8 {
    board.io_read(Port(port), Width::Byte, NOW) as u8
}

fn lapic_write(board: &mut Board, cpu: CpuIndex, offset: u64, value: u32) {
    board.mmio_write(Gpa::new(LAPIC + offset), Width::Dword, value as u64, cpu, NOW);
}

fn ioapic_write(board: &mut Board, index: u8, value: u32) {
    for (offset, value) in [(0, index as u64), (0x10, value as u64)] {
        board.mmio_write(Gpa::new(IOAPIC_BASE.raw() + offset), Width::Dword, value, CPU0, NOW);
    }
}

fn requests(board: &mut Board) -> Vec<BoardRequest> {
    board.take_requests().filter(|request| !matches!(request, BoardRequest::InterruptChanged(_))).collect()
}

/// Vectors 0x20 and 0x28, `mask` on the master, the slave all masked.
fn start_pic(board: &mut Board, mask: u8) {
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, mask), (0xa1, 0xff)] {
        out(board, port, value);
    }
}

#[test]
fn impossible_boards_are_refused() {
    let build = |change: fn(&mut BoardConfig)| {
        let mut config = BoardConfig::new(1, 1 << 20, 0);
        change(&mut config);
        Board::new(config).map(|_| ()).expect_err("refused")
    };
    assert_eq!(build(|c| c.cpus = 0), BoardError::Cpus(0));
    assert_eq!(build(|c| c.cpus = 65), BoardError::Cpus(65));
    assert_eq!(build(|c| c.tsc_hertz = 0), BoardError::Clock("time-stamp"));
    assert_eq!(build(|c| c.apic_timer_hertz = 0), BoardError::Clock("APIC timer"));
}

#[test]
fn the_timer_reaches_the_processor_through_the_virtual_wire() {
    let mut board = board(2);
    start_pic(&mut board, 0xfe);
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        out(&mut board, port, value);
    }
    // Programming mode 2 raised the output from its power-up low.
    assert_eq!(board.acknowledge(CPU0), Some(0x20));
    out(&mut board, 0x20, 0x20);
    board.take_requests().for_each(drop);
    let mut ticks = 0;
    while let Some(due) = board.next_event(NOW).filter(|due| due.units() < 10_500_000) {
        board.advance(due);
        let changed: Vec<_> = board.take_requests().collect();
        if board.interrupt_for(CPU0).is_some() {
            assert!(changed.contains(&BoardRequest::InterruptChanged(CPU0)));
            assert_eq!(board.interrupt_for(CPU0), Some(InterruptSource::Pic));
            assert_eq!(board.interrupt_for(CpuIndex(1)), None);
            assert_eq!(board.acknowledge(CPU0), Some(0x20));
            assert_eq!(board.acknowledge(CPU0), None);
            out(&mut board, 0x20, 0x20);
            ticks += 1;
        }
    }
    assert_eq!(ticks, 10);
}

#[test]
fn the_timer_reaches_ioapic_input_two() {
    let mut board = board(1);
    lapic_write(&mut board, CPU0, 0xf0, 0x1ff);
    ioapic_write(&mut board, 0x14, 0x30);
    for (port, value) in [(0x43, 0x30), (0x40, 100), (0x40, 0)] {
        out(&mut board, port, value);
    }
    assert_eq!(board.interrupt_for(CPU0), None);
    let due = board.next_event(NOW).expect("counting");
    board.advance(due);
    assert_eq!(board.interrupt_for(CPU0), Some(InterruptSource::Lapic(0x30)));
    assert_eq!(board.acknowledge(CPU0), Some(0x30));
}

#[test]
fn periods_slept_through_merge_into_one_interrupt() {
    let mut board = board(1);
    lapic_write(&mut board, CPU0, 0xf0, 0x1ff);
    ioapic_write(&mut board, 0x14, 0x30);
    for (port, value) in [(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)] {
        out(&mut board, port, value);
    }
    assert_eq!(board.acknowledge(CPU0), Some(0x30));
    lapic_write(&mut board, CPU0, 0xb0, 0);
    // High at both ends, low in between.
    board.advance(Instant::of_tick(5500, crate::pit::HERTZ));
    assert_eq!(board.acknowledge(CPU0), Some(0x30));
    lapic_write(&mut board, CPU0, 0xb0, 0);
    assert_eq!(board.acknowledge(CPU0), None);
}

#[test]
fn serial_runs_on_interrupts_through_the_ioapic() {
    let mut board = board(1);
    lapic_write(&mut board, CPU0, 0xf0, 0x1ff);
    ioapic_write(&mut board, 0x18, 0x34);
    out(&mut board, 0x3fc, 0x0b);
    out(&mut board, 0x3f9, 0x03);
    let mut sent = 0;
    while let Some(vector) = board.acknowledge(CPU0) {
        assert_eq!(vector, 0x34);
        assert_eq!(inb(&mut board, 0x3fa), 0x02);
        if sent < 3 {
            out(&mut board, 0x3f8, b'a' + sent);
            sent += 1;
        }
        lapic_write(&mut board, CPU0, 0xb0, 0);
    }
    assert_eq!(board.serial_output().collect::<Vec<_>>(), b"abc");
    assert!(!board.has_serial_output());
    board.serial_input(b"x");
    assert_eq!(board.acknowledge(CPU0), Some(0x34));
    assert_eq!(inb(&mut board, 0x3fa) & 0x0f, 0x04);
    assert_eq!(inb(&mut board, 0x3f8), b'x');
    assert_eq!(board.serial_unread(), 0);
}

#[test]
fn a_level_line_interrupts_until_its_device_is_quiet() {
    let mut board = board(1);
    lapic_write(&mut board, CPU0, 0xf0, 0x1ff);
    ioapic_write(&mut board, 0x10 + 2 * 9, 0x8039);
    board.io_write(Port(0x602), Width::Word, 0x0100, NOW);
    board.press_power_button();
    for _ in 0..2 {
        assert_eq!(board.acknowledge(CPU0), Some(0x39));
        lapic_write(&mut board, CPU0, 0xb0, 0);
    }
    board.io_write(Port(0x600), Width::Word, 0x0100, NOW);
    assert_eq!(board.acknowledge(CPU0), Some(0x39));
    lapic_write(&mut board, CPU0, 0xb0, 0);
    assert_eq!(board.acknowledge(CPU0), None);
}

#[test]
fn processors_are_started_by_init_and_sipi() {
    let mut board = board(3);
    board.take_requests().for_each(drop);
    lapic_write(&mut board, CPU0, 0x310, 2 << 24);
    lapic_write(&mut board, CPU0, 0x300, 0x4500);
    assert_eq!(requests(&mut board), [BoardRequest::Init(CpuIndex(2))]);
    lapic_write(&mut board, CPU0, 0x300, 0x4699);
    assert_eq!(requests(&mut board), [BoardRequest::Sipi { cpu: CpuIndex(2), vector: 0x99 }]);
    // NMI to all others.
    lapic_write(&mut board, CPU0, 0x300, 3 << 18 | 0x4400);
    assert_eq!(requests(&mut board), [BoardRequest::Nmi(CpuIndex(1)), BoardRequest::Nmi(CpuIndex(2))]);
    assert!(!board.has_requests());
}

#[test]
fn nmi_passes_where_lint1_lets_it_unless_port_70_blocks_it() {
    let mut board = board(2);
    board.pulse_nmi();
    assert_eq!(requests(&mut board), [BoardRequest::Nmi(CPU0)]);
    out(&mut board, 0x70, 0x80);
    board.pulse_nmi();
    assert_eq!(requests(&mut board), []);
}

#[test]
fn each_processor_has_its_own_apic_at_its_own_address() {
    let mut board = board(2);
    let id =
        |board: &mut Board, cpu, base: u64| board.mmio_read(Gpa::new(base + 0x20), Width::Dword, CpuIndex(cpu), NOW);
    assert_eq!(id(&mut board, 0, LAPIC), Some(0));
    assert_eq!(id(&mut board, 1, LAPIC), Some(1 << 24));
    // Over RAM.
    board.msr_write(CPU0, msr::APIC_BASE, 0x10_0000 | 0x900, NOW).expect("valid");
    assert_eq!(id(&mut board, 0, 0x10_0000), Some(0));
    assert_eq!(id(&mut board, 1, 0x10_0000), None);
    assert_eq!(id(&mut board, 0, LAPIC), Some(0xffff_ffff));
    assert!(board.claims_mmio(Gpa::new(0x10_0ffc), CPU0));
    assert!(!board.claims_mmio(Gpa::new(0x10_0ffc), CpuIndex(1)));
    // x2APIC mode has no page.
    board.msr_write(CpuIndex(1), msr::APIC_BASE, LAPIC | 0xc00, NOW).expect("valid");
    assert_eq!(id(&mut board, 1, LAPIC), Some(0xffff_ffff));
    assert_eq!(board.msr_read(CpuIndex(1), 0x802, NOW), Ok(1));
    assert!(board.msr_read(CPU0, 0x802, NOW).is_err());
    assert!(board.msr_read(CpuIndex(9), 0x802, NOW).is_err());
}

#[test]
fn narrow_reads_of_a_register_see_its_bytes() {
    let mut board = board(1);
    let read = |board: &mut Board, offset: u64, width| board.mmio_read(Gpa::new(LAPIC + offset), width, CPU0, NOW);
    assert_eq!(read(&mut board, 0x30, Width::Byte), Some(0x14));
    assert_eq!(read(&mut board, 0x32, Width::Byte), Some(0x05));
    assert_eq!(read(&mut board, 0x30, Width::Qword), Some(0x0105_0014));
    board.take_requests().for_each(drop);
    read(&mut board, 0x300, Width::Dword);
    assert!(!board.has_requests(), "polling the ICR is no event");
    let window = Gpa::new(IOAPIC_BASE.raw());
    board.mmio_write(window, Width::Dword, 1, CPU0, NOW);
    let data = Gpa::new(IOAPIC_BASE.raw() + 0x12);
    assert_eq!(board.mmio_read(data, Width::Word, CPU0, NOW), Some(0x17));
}

#[test]
fn nobody_answers_with_ones() {
    let mut board = board(1);
    assert_eq!(board.io_read(Port(0x1234), Width::Dword, NOW), u32::MAX);
    assert_eq!(board.io_read(Port(0x2f8), Width::Word, NOW), 0xffff);
    assert_eq!(board.io_read(Port(0xffff), Width::Dword, NOW) & 0xff, 0xff);
    assert_eq!(board.mmio_read(Gpa::new(0xd000_0000), Width::Word, CPU0, NOW), Some(0xffff));
    assert_eq!(board.mmio_read(Gpa::new(0x1000), Width::Word, CPU0, NOW), None);
    assert_eq!(board.mmio_read(Gpa::new(1 << 32), Width::Word, CPU0, NOW), None);
    assert_eq!(board.mmio_read(Gpa::new(5 << 30), Width::Qword, CPU0, NOW), Some(u64::MAX));
    assert!(board.mmio_write(Gpa::new(0xd000_0000), Width::Dword, 1, CPU0, NOW).is_some());
}

#[test]
fn all_ways_out_appear_as_requests() {
    let one = |port, width, value| {
        let mut board = board(1);
        let events = board.io_write(Port(port), width, value, NOW);
        assert!(events.contains(BoardEvents::REQUESTS));
        requests(&mut board)
    };
    assert_eq!(one(0x604, Width::Word, 0x2000), [BoardRequest::PowerOff]);
    assert_eq!(one(0xcf9, Width::Byte, 6), [BoardRequest::Reset]);
    assert_eq!(one(0x64, Width::Byte, 0xfe), [BoardRequest::Reset]);
    assert_eq!(one(0x92, Width::Byte, 3), [BoardRequest::Reset]);
    assert_eq!(one(0x92, Width::Byte, 0), [BoardRequest::A20(false)]);
    for width in [Width::Byte, Width::Word, Width::Dword] {
        assert_eq!(one(0xf4, width, 0x1234_5678), [BoardRequest::DebugExit(0x1234_5678 & width.mask32())]);
    }
}

#[test]
fn the_test_ports_drive_lines_scratch_and_flushes() {
    let mut board = Board::new(BoardConfig { test_ports: TestPorts::Present, ..BoardConfig::new(1, 1 << 30, 0) })
        .expect("valid configuration");
    lapic_write(&mut board, CPU0, 0xf0, 0x1ff);
    ioapic_write(&mut board, 0x10 + 2 * 14, 0x78);
    out(&mut board, 0x200e, 1);
    out(&mut board, 0x200e, 0);
    assert_eq!(board.acknowledge(CPU0), Some(0x78));
    assert_eq!(board.acknowledge(CPU0), None);
    board.io_write(Port(0xe0), Width::Dword, 0xdead_beef, NOW);
    assert_eq!(board.io_read(Port(0xe1), Width::Byte, NOW), 0xbe);
    assert_eq!(board.io_read(Port(0xe2), Width::Word, NOW), 0xdead);
    board.io_write(Port(0xe4), Width::Dword, 0x5432_1000, NOW);
    assert_eq!(requests(&mut board), [BoardRequest::FlushPage(Gpa::new(0x5432_1000))]);
    out(&mut board, 0x402, b'!');
    assert_eq!(board.console_output().collect::<Vec<_>>(), b"!");
}

#[test]
fn pci_configuration_works_at_every_width() {
    let mut board = board(1);
    board.io_write(Port(0xcf8), Width::Dword, 0x8000_0000, NOW);
    assert_eq!(board.io_read(Port(0xcf8), Width::Dword, NOW), 0x8000_0000);
    assert_eq!(board.io_read(Port(0xcfc), Width::Dword, NOW), 0x1237_8086);
    assert_eq!(board.io_read(Port(0xcfe), Width::Word, NOW), 0x1237);
    assert_eq!(board.io_read(Port(0xcff), Width::Byte, NOW), 0x12);
    // A byte at 0xcf9 is the reset register, not the address.
    out(&mut board, 0xcf9, 2);
    assert_eq!(board.io_read(Port(0xcf8), Width::Dword, NOW), 0x8000_0000);
    assert_eq!(inb(&mut board, 0xcf9), 2);
}

#[test]
fn messages_from_devices_reach_their_processor() {
    let mut board = board(2);
    lapic_write(&mut board, CpuIndex(1), 0xf0, 0x1ff);
    board.send_msi(MsiMessage { address: Gpa::new(0xfee0_1000), data: 0x55 });
    assert_eq!(board.interrupt_for(CpuIndex(1)), Some(InterruptSource::Lapic(0x55)));
    let nmi = IpiRequest {
        delivery: DeliveryMode::Nmi,
        destination: Destination::Physical(1),
        vector: 0,
        trigger: Trigger::Edge,
    };
    board.take_requests().for_each(drop);
    board.send_message(&nmi);
    assert_eq!(requests(&mut board), [BoardRequest::Nmi(CpuIndex(1))]);
}

#[test]
fn the_tsc_deadline_fires_by_the_processors_own_tsc() {
    let mut board =
        Board::new(BoardConfig { tsc_hertz: 2_000_000_000, ..BoardConfig::new(2, 1 << 30, 0) }).expect("valid");
    let cpu = CpuIndex(1);
    lapic_write(&mut board, cpu, 0xf0, 0x1ff);
    lapic_write(&mut board, cpu, 0x320, 2 << 17 | 0x40);
    board.lapic_mut(cpu).expect("there").set_tsc_offset(500, NOW);
    assert_eq!(board.tsc(cpu, Instant::new(10)), Some(520));
    board.msr_write(cpu, msr::TSC_DEADLINE, 1500, NOW).expect("valid");
    assert_eq!(board.next_event(NOW), Some(Instant::new(500)));
    board.advance(Instant::new(499));
    assert_eq!(board.interrupt_for(cpu), None);
    board.advance(Instant::new(500));
    assert_eq!(board.interrupt_for(cpu), Some(InterruptSource::Lapic(0x40)));
}

#[test]
fn speaker_gate_and_counter_two_meet_in_port_61() {
    let mut board = board(1);
    for (port, value) in [(0x61, 0x01), (0x43, 0xb0), (0x42, 0x10), (0x42, 0x00)] {
        out(&mut board, port, value);
    }
    let late = Instant::of_tick(0x11, crate::pit::HERTZ);
    let early = late - Duration::new(1);
    assert_eq!(board.io_read(Port(0x61), Width::Byte, early) & 0x20, 0);
    assert_eq!(board.io_read(Port(0x61), Width::Byte, late) & 0x20, 0x20);
}

#[derive(Clone, Debug)]
enum Op {
    In(u16, usize),
    Out(u16, usize, u32),
    Read(u16, usize),
    Write(u16, usize, u64),
    Msr(u32, u64),
    Pass(u64),
    Take,
}

/// Ports where devices are, now and then any port.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        0..0x100_u16,
        0x3f8..0x400_u16,
        0x4d0..0x4d2_u16,
        0x510..0x51c_u16,
        0x600..0x624_u16,
        0xcf8..0xd00_u16,
        0x2000..0x2018_u16,
        any::<u16>()
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop_oneof![0..0x100_u64, any::<u64>()];
    prop_oneof![
        4 => (port(), 0..3_usize).prop_map(|(port, width)| Op::In(port, width)),
        8 => (port(), 0..3_usize, value.clone()).prop_map(|(port, width, v)| Op::Out(port, width, v as u32)),
        2 => (0..0x400_u16, 0..4_usize).prop_map(|(at, width)| Op::Read(at, width)),
        4 => (0..0x400_u16, 0..4_usize, value.clone()).prop_map(|(at, width, v)| Op::Write(at, width, v)),
        1 => (prop_oneof![Just(0x1b_u32), Just(0x6e0), 0x800..0x840_u32], value).prop_map(|(n, v)| Op::Msr(n, v)),
        4 => prop_oneof![0..10_000_u64, 0..2_000_000_000_u64].prop_map(Op::Pass),
        2 => Just(Op::Take),
    ]
}

fn apply(board: &mut Board, now: &mut Instant, op: &Op, log: &mut Vec<u64>) {
    match *op {
        Op::In(port, width) => log.push(board.io_read(Port(port), Width::ALL[width], *now) as u64),
        Op::Out(port, width, value) => {
            board.io_write(Port(port), Width::ALL[width], value, *now);
        }
        Op::Read(at, width) => {
            let base = if at & 1 == 0 { LAPIC } else { IOAPIC_BASE.raw() };
            let value = board.mmio_read(Gpa::new(base + at as u64), Width::ALL[width], CPU0, *now);
            log.push(value.unwrap_or(0));
        }
        Op::Write(at, width, value) => {
            let base = if at & 1 == 0 { LAPIC } else { IOAPIC_BASE.raw() };
            board.mmio_write(Gpa::new(base + (at & !3) as u64), Width::ALL[width], value, CPU0, *now);
        }
        Op::Msr(number, value) => {
            log.push(board.msr_write(CPU0, number, value, *now).is_ok() as u64);
            log.push(board.msr_read(CPU0, number, *now).unwrap_or(u64::MAX));
        }
        Op::Pass(units) => {
            let until = *now + Duration::new(units);
            for _ in 0..200 {
                match board.next_event(*now).filter(|&due| due <= until) {
                    Some(due) => {
                        *now = due.max(*now);
                        board.advance(*now);
                    }
                    None => break,
                }
            }
            *now = until;
            board.advance(*now);
            log.extend(board.acknowledge(CPU0).map(u64::from));
        }
        Op::Take => log.push(board.take_requests().count() as u64),
    }
}

proptest! {
    /// Any guest behaviour leaves the board consistent, and the same behaviour the same results.
    #[test]
    fn no_history_panics_and_equal_histories_are_equal(ops in prop::collection::vec(op(), 0..120)) {
        let run = || {
            let config = BoardConfig { test_ports: TestPorts::Present, ..BoardConfig::new(2, 1 << 20, 0) };
            let mut board = Board::new(config).expect("valid configuration");
            let (mut now, mut log) = (NOW, Vec::new());
            for op in &ops {
                apply(&mut board, &mut now, op, &mut log);
                // An event that was handled is over: time cannot stand still.
                assert!(board.next_event(now).is_none_or(|due| due > now) || !matches!(op, Op::Pass(_)));
            }
            log.extend(board.serial_output().map(u64::from));
            (log, format!("{board:?}"))
        };
        prop_assert_eq!(run(), run());
    }
}
