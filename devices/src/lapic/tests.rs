use emu_core::time::Duration;
use proptest::prelude::*;

use super::*;
use crate::bus::CpuIndex;

const NOW: Instant = Instant::ZERO;

fn lapic(id: u32) -> Lapic {
    Lapic::new(LapicConfig {
        id,
        bsp: id == 0,
        timer_hertz: 1_000_000_000,
        tsc: TscClock { hertz: 1_000_000_000, offset: 0 },
        phys_bits: 48,
    })
}

fn enabled(id: u32) -> Lapic {
    let mut lapic = lapic(id);
    lapic.mmio_write(0xf0, 0x1ff, NOW);
    lapic
}

fn x2apic(id: u32) -> Lapic {
    let mut lapic = enabled(id);
    lapic.msr_write(msr::APIC_BASE, lapic.base().raw() | 1 << 10, NOW).expect("xAPIC to x2APIC");
    lapic
}

/// The manual's words, a vector at a time.
#[derive(Default)]
struct Naive {
    requested: std::collections::BTreeSet<u8>,
    in_service: Vec<u8>,
    tpr: u8,
}

impl Naive {
    fn ppr_class(&self) -> u8 {
        self.in_service.iter().map(|v| v / 16).chain([self.tpr / 16]).max().unwrap_or(0)
    }
    /// TPR whole when its class is the higher or equal one, else the class in service alone.
    fn ppr(&self) -> u8 {
        if self.tpr / 16 == self.ppr_class() { self.tpr } else { self.ppr_class() * 16 }
    }
    fn pending(&self) -> Option<u8> {
        self.requested.iter().rev().copied().find(|v| v / 16 > self.ppr_class())
    }
    fn acknowledge(&mut self) -> u8 {
        match self.pending() {
            Some(vector) => {
                self.requested.remove(&vector);
                self.in_service.push(vector);
                vector
            }
            None => 0xff,
        }
    }
    fn eoi(&mut self) {
        if let Some(&highest) = self.in_service.iter().max() {
            self.in_service.retain(|&v| v != highest);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Request(u8),
    Tpr(u8),
    Cr8(u8),
    Acknowledge,
    Eoi,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (16..=255_u8).prop_map(Op::Request),
        1 => any::<u8>().prop_map(Op::Tpr),
        1 => (0..16_u8).prop_map(Op::Cr8),
        3 => Just(Op::Acknowledge),
        2 => Just(Op::Eoi),
    ]
}

proptest! {
    #[test]
    fn priorities_are_those_of_a_naive_model(ops in prop::collection::vec(op(), 0..200)) {
        let mut real = enabled(0);
        let mut naive = Naive::default();
        for op in ops {
            match op {
                Op::Request(vector) => {
                    real.deliver(DeliveryMode::Fixed, vector, Trigger::Edge);
                    naive.requested.insert(vector);
                }
                Op::Tpr(value) => {
                    real.mmio_write(0x80, value as u32, NOW);
                    naive.tpr = value;
                }
                Op::Cr8(value) => {
                    real.set_cr8(value);
                    naive.tpr = value * 16;
                }
                Op::Acknowledge => prop_assert_eq!(real.acknowledge(), naive.acknowledge()),
                Op::Eoi => {
                    real.mmio_write(0xb0, 0, NOW);
                    naive.eoi();
                }
            }
            prop_assert_eq!(real.pending_vector(), naive.pending());
            prop_assert_eq!(real.mmio_read(0xa0, NOW) as u8, naive.ppr());
            prop_assert_eq!(real.cr8(), naive.tpr / 16);
            for vector in 0..=255_u8 {
                prop_assert_eq!(real.irr().contains(vector), naive.requested.contains(&vector));
                prop_assert_eq!(real.isr().contains(vector), naive.in_service.contains(&vector));
            }
        }
    }

    #[test]
    fn no_register_access_panics_and_reserved_bits_fault(
        accesses in prop::collection::vec((0x7f0..0x910_u32, any::<u64>(), any::<bool>()), 0..100)
    ) {
        let mut x2 = x2apic(3);
        let mut x = enabled(3);
        for (number, value, wide) in accesses {
            let value = if wide { value } else { value & 0xff };
            let before = x2.clone();
            match x2.msr_write(number, value, NOW) {
                Ok(_) => {
                    let reg = regs::decode_x2apic(number).expect("only registers take writes");
                    prop_assert!(value & !reg.x2apic_allowed() == 0 && reg.x2apic_writable());
                }
                Err(_) => prop_assert_eq!(&before, &x2),
            }
            let readable = regs::decode_x2apic(number).is_some_and(|reg| reg.x2apic_readable());
            prop_assert_eq!(x2.msr_read(number, NOW).is_ok(), readable);
            x.mmio_write(number as u16, value as u32, NOW);
            x.mmio_read(number as u16, NOW);
        }
    }
}

#[test]
fn after_reset_it_accepts_nothing_until_enabled() {
    let mut lapic = lapic(0);
    assert_eq!(lapic.mmio_read(0x30, NOW) & 0xff, 0x14);
    assert_eq!(lapic.mmio_read(0xf0, NOW), 0xff);
    assert!((0x320..=0x370).step_by(16).all(|lvt| lapic.mmio_read(lvt, NOW) == LVT_MASKED));
    assert!(!lapic.deliver(DeliveryMode::Fixed, 0x40, Trigger::Edge));
    assert!(lapic.deliver(DeliveryMode::Nmi, 0, Trigger::Edge));
    assert!(lapic.take_nmi());
    lapic.mmio_write(0xf0, 0x1ff, NOW);
    assert!(lapic.deliver(DeliveryMode::Fixed, 0x40, Trigger::Edge));
    assert_eq!(lapic.pending_vector(), Some(0x40));
}

#[test]
fn software_disable_masks_the_local_vectors_and_keeps_them_masked() {
    let mut lapic = enabled(0);
    lapic.mmio_write(0x350, 0x700, NOW);
    assert!(lapic.accepts_ext_int());
    lapic.mmio_write(0xf0, 0xff, NOW);
    assert!(!lapic.accepts_ext_int());
    lapic.mmio_write(0x350, 0x700, NOW);
    assert_eq!(lapic.mmio_read(0x350, NOW), 0x10700);
}

#[test]
fn flat_and_cluster_and_x2apic_logical_addresses() {
    let mut flat = enabled(1);
    flat.mmio_write(0xd0, 0x0200_0000, NOW);
    for mda in 0..=0xff {
        assert_eq!(flat.matches(Destination::Logical(mda)), mda & 2 != 0);
    }
    flat.mmio_write(0xe0, 0, NOW);
    flat.mmio_write(0xd0, 0x3200_0000, NOW);
    for mda in 0..=0xff {
        assert_eq!(flat.matches(Destination::Logical(mda)), mda == 0xff || mda >> 4 == 3 && mda & 2 != 0);
    }
    for id in [0, 15, 16, 0x123] {
        let lapic = x2apic(id);
        let ldr = lapic.msr_read(0x80d, NOW).expect("LDR") as u32;
        assert_eq!(ldr, (id / 16) << 16 | 1 << (id % 16));
        assert!(lapic.matches(Destination::Logical(ldr)));
        assert!(lapic.matches(Destination::Logical(u32::MAX)));
        assert!(!lapic.matches(Destination::Logical(ldr ^ 0x10000)));
        assert!(lapic.matches(Destination::Physical(id)));
    }
}

fn ipi(lapic: &mut Lapic, high: u32, low: u32) -> IpiRequest {
    lapic.mmio_write(0x310, high, NOW);
    match lapic.mmio_write(0x300, low, NOW) {
        Effect::Ipi(request) => request,
        other => panic!("no IPI but {other:?}"),
    }
}

#[test]
fn icr_writes_become_requests() {
    let mut lapic = enabled(0);
    let request = ipi(&mut lapic, 3 << 24, 0x4041);
    assert_eq!((request.delivery, request.vector), (DeliveryMode::Fixed, 0x41));
    assert_eq!(request.destination, Destination::Physical(3));
    assert_eq!(ipi(&mut lapic, 0xff << 24, 0x41).destination, Destination::Everyone);
    assert_eq!(ipi(&mut lapic, 3 << 24, 0x841).destination, Destination::Logical(3));
    let shorthands = [Destination::Sender, Destination::Everyone, Destination::Others];
    for (code, destination) in (1..).zip(shorthands) {
        assert_eq!(ipi(&mut lapic, 0, code << 18 | 0x41).destination, destination);
    }
    assert_eq!(ipi(&mut lapic, 1 << 24, 0xc500).delivery, DeliveryMode::Init);
    assert_eq!(lapic.mmio_write(0x300, 0x8500, NOW), Effect::None);
    assert_eq!(ipi(&mut lapic, 1 << 24, 0x4608).vector, 8);
    // Delivery status reads idle.
    assert_eq!(lapic.mmio_read(0x300, NOW) & 1 << 12, 0);

    let mut wide = x2apic(0);
    let effect = wide.msr_write(0x830, 5 << 32 | 0x41, NOW).expect("valid");
    let expected = Destination::Physical(5);
    assert!(matches!(effect, Effect::Ipi(IpiRequest { destination, .. }) if destination == expected));
    let effect = wide.msr_write(0x83f, 0x77, NOW).expect("valid");
    assert!(matches!(effect, Effect::Ipi(IpiRequest { destination: Destination::Sender, vector: 0x77, .. })));
    assert!(wide.msr_write(0x830, 1 << 13, NOW).is_err());
    assert!(wide.msr_write(0x80b, 1, NOW).is_err());
}

#[test]
fn illegal_vectors_and_registers_show_in_esr_after_it_is_written() {
    let mut lapic = enabled(0);
    lapic.mmio_write(0x370, 0xfe, NOW);
    assert_eq!(lapic.mmio_write(0x300, 0x0f, NOW), Effect::None);
    lapic.mmio_read(0x3d0, NOW);
    lapic.deliver(DeliveryMode::Fixed, 3, Trigger::Edge);
    assert_eq!(lapic.mmio_read(0x280, NOW), 0);
    lapic.mmio_write(0x280, 0, NOW);
    assert_eq!(lapic.mmio_read(0x280, NOW), ESR_SEND_ILLEGAL | ESR_RECEIVE_ILLEGAL | ESR_ILLEGAL_REGISTER);
    assert_eq!(lapic.acknowledge(), 0xfe);
    lapic.mmio_write(0x280, 0, NOW);
    assert_eq!(lapic.mmio_read(0x280, NOW), 0);
}

#[test]
fn an_error_vector_that_is_illegal_itself_does_not_recurse() {
    let mut lapic = enabled(0);
    lapic.mmio_write(0x370, 0x05, NOW);
    lapic.deliver(DeliveryMode::Fixed, 3, Trigger::Edge);
    assert_eq!(lapic.pending_vector(), None);
}

#[test]
fn level_interrupts_broadcast_their_end_unless_suppressed() {
    let mut lapic = enabled(0);
    lapic.deliver(DeliveryMode::Fixed, 0x50, Trigger::Level);
    lapic.deliver(DeliveryMode::Fixed, 0x61, Trigger::Edge);
    assert_eq!(lapic.mmio_read(0x180 + 0x20, NOW), 1 << 16);
    assert_eq!((lapic.acknowledge(), lapic.mmio_write(0xb0, 0, NOW)), (0x61, Effect::None));
    assert_eq!((lapic.acknowledge(), lapic.mmio_write(0xb0, 0, NOW)), (0x50, Effect::EoiBroadcast(0x50)));
    lapic.mmio_write(0xf0, 0x11ff, NOW);
    lapic.deliver(DeliveryMode::Fixed, 0x50, Trigger::Level);
    assert_eq!((lapic.acknowledge(), lapic.mmio_write(0xb0, 0, NOW)), (0x50, Effect::None));
}

#[test]
fn a_level_pin_delivers_again_at_eoi_while_it_is_high() {
    let mut lapic = enabled(0);
    lapic.mmio_write(0x350, LVT_LEVEL | 0x60, NOW);
    lapic.set_lint0(true);
    for _ in 0..3 {
        assert_eq!(lapic.acknowledge(), 0x60);
        assert_eq!(lapic.mmio_read(0x350, NOW) & LVT_REMOTE_IRR, LVT_REMOTE_IRR);
        lapic.mmio_write(0xb0, 0, NOW);
    }
    assert_eq!(lapic.acknowledge(), 0x60);
    lapic.set_lint0(false);
    lapic.mmio_write(0xb0, 0, NOW);
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!(lapic.mmio_read(0x350, NOW) & LVT_REMOTE_IRR, 0);
}

#[test]
fn timer_interrupts_through_its_entry() {
    let mut lapic = enabled(0);
    lapic.mmio_write(0x3e0, 0b1011, NOW);
    lapic.mmio_write(0x320, 1 << 17 | 0x30, NOW);
    lapic.mmio_write(0x380, 100, NOW);
    assert_eq!(lapic.mmio_read(0x390, Instant::new(30)), 70);
    let due = lapic.next_event().expect("armed");
    assert_eq!(due, Instant::new(100));
    assert!(lapic.advance(due));
    assert_eq!(lapic.acknowledge(), 0x30);
    assert_eq!(lapic.next_event(), Some(Instant::new(200)));
    // Masked it still counts.
    lapic.mmio_write(0x320, LVT_MASKED | 1 << 17 | 0x30, due);
    assert!(lapic.advance(Instant::new(200)));
    assert!(!lapic.irr().contains(0x30));
    // TSC deadline through the MSR.
    lapic.mmio_write(0x320, 2 << 17 | 0x31, Instant::new(200));
    lapic.msr_write(msr::TSC_DEADLINE, 500, Instant::new(200)).expect("always writable");
    lapic.set_tsc_offset(100, Instant::new(200));
    assert_eq!(lapic.next_event(), Some(Instant::new(400)));
    assert!(lapic.advance(Instant::new(400) + Duration::new(7)));
    assert_eq!(lapic.msr_read(msr::TSC_DEADLINE, Instant::new(407)), Ok(0));
    lapic.mmio_write(0xb0, 0, NOW);
    assert_eq!(lapic.acknowledge(), 0x31);
}

#[test]
fn disabling_resets_and_hands_the_pins_to_the_processor() {
    let mut lapic = enabled(0);
    lapic.deliver(DeliveryMode::Fixed, 0x50, Trigger::Edge);
    let base = lapic.base().raw();
    lapic.msr_write(msr::APIC_BASE, base & !(1 << 11), NOW).expect("to disabled");
    assert!(!lapic.deliver(DeliveryMode::Nmi, 0, Trigger::Edge));
    lapic.set_lint0(true);
    assert!(lapic.ext_int_pending());
    lapic.set_lint1(true);
    assert!(lapic.take_nmi());
    lapic.msr_write(msr::APIC_BASE, base, NOW).expect("to xAPIC");
    assert_eq!(lapic.mmio_read(0xf0, NOW), 0xff);
    assert_eq!(lapic.pending_vector(), None);
}

#[test]
fn init_keeps_mode_and_identity() {
    let mut lapic = x2apic(0x21);
    lapic.deliver(DeliveryMode::StartUp, 0x10, Trigger::Edge);
    lapic.deliver(DeliveryMode::Init, 0, Trigger::Edge);
    assert!(lapic.take_init());
    assert_eq!(lapic.take_sipi(), None);
    assert_eq!(lapic.base().mode(), ApicMode::X2Apic);
    assert_eq!(lapic.msr_read(0x802, NOW), Ok(0x21));
    assert_eq!(lapic.msr_read(0x80d, NOW), Ok(2 << 16 | 2));
    assert_eq!(lapic.msr_read(0x80f, NOW), Ok(0xff));
}

fn fabric(count: u32) -> Apics {
    Apics::new((0..count).map(enabled).collect())
}

fn fixed(destination: Destination) -> IpiRequest {
    IpiRequest { delivery: DeliveryMode::Fixed, destination, vector: 0x45, trigger: Trigger::Edge }
}

fn receivers(apics: &Apics) -> Vec<u32> {
    apics.iter().filter(|lapic| lapic.irr().contains(0x45)).map(Lapic::id).collect()
}

#[test]
fn each_destination_reaches_exactly_its_processors() {
    let cases: [(Destination, &[u32]); 5] = [
        (Destination::Sender, &[1]),
        (Destination::Others, &[0, 2, 3]),
        (Destination::Everyone, &[0, 1, 2, 3]),
        (Destination::Physical(2), &[2]),
        (Destination::Physical(9), &[]),
    ];
    for (destination, expected) in cases {
        let mut apics = fabric(4);
        let accepted = apics.route(Some(CpuIndex(1)), &fixed(destination));
        assert_eq!(receivers(&apics), expected);
        assert_eq!(accepted, !expected.is_empty());
        assert_eq!(apics.take_touched().map(|cpu| cpu.0 as u32).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn lowest_priority_picks_the_least_busy_enabled_processor() {
    let mut apics = fabric(4);
    for (cpu, tpr) in [(0, 0x80), (1, 0x40), (2, 0x20), (3, 0x20)] {
        apics.get_mut(CpuIndex(cpu)).expect("there").mmio_write(0x80, tpr, NOW);
    }
    let message = IpiRequest { delivery: DeliveryMode::LowestPriority, ..fixed(Destination::Everyone) };
    apics.route(None, &message);
    assert_eq!(receivers(&apics), [2]);
    apics.get_mut(CpuIndex(2)).expect("there").mmio_write(0xf0, 0xff, NOW);
    apics.route(None, &message);
    assert_eq!(receivers(&apics), [2, 3]);
    let nobody = IpiRequest { destination: Destination::Physical(7), ..message };
    assert!(!apics.route(None, &nobody));
}
