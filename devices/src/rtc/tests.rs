use super::*;

// 2024-02-29 23:59:58, a Thursday.
const START: u64 = 1_709_251_198;

fn at(nanos: u64) -> Instant {
    Instant::new(nanos)
}

fn rtc() -> Rtc {
    Rtc::new(START, 2 << 30, 6 << 30)
}

fn get(rtc: &mut Rtc, index: u8, now: Instant) -> u8 {
    rtc.write_index(index);
    rtc.read(now)
}

fn put(rtc: &mut Rtc, index: u8, value: u8, now: Instant) {
    rtc.write_index(index);
    rtc.write(value, now);
}

#[test]
fn every_index_is_one_register() {
    let clock: Vec<u8> = (0..128).filter(|&index| !matches!(decode(index), Reg::Ram(_))).collect();
    assert_eq!(clock, (0..=0xd).chain([CENTURY]).collect::<Vec<u8>>());
    for index in 0..128 {
        assert_eq!(decode(index), decode(index | 0x80), "bit 7 is NMI's");
    }
}

#[test]
fn the_date_runs_over_a_leap_day_in_bcd() {
    let mut rtc = rtc();
    let read = |rtc: &mut Rtc, now| [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| get(rtc, index, now));
    assert_eq!(read(&mut rtc, at(0)), [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]);
    assert_eq!(read(&mut rtc, at(2 * SECOND)), [0x20, 0x24, 0x03, 0x01, 0x06, 0x00, 0x00, 0x00]);
}

#[test]
fn formats_binary_and_twelve_hours() {
    let mut rtc = rtc();
    put(&mut rtc, 0xb, B_BINARY | B_24H, at(0));
    assert_eq!(get(&mut rtc, 0, at(0)), 58);
    put(&mut rtc, 0xb, 0, at(0));
    assert_eq!(get(&mut rtc, 4, at(0)), 0x91);
    assert_eq!(get(&mut rtc, 4, at(2 * SECOND)), 0x12);
    put(&mut rtc, 4, 0x82, at(2 * SECOND));
    put(&mut rtc, 0xb, B_24H, at(2 * SECOND));
    assert_eq!(get(&mut rtc, 4, at(2 * SECOND)), 0x14);
}

#[test]
fn setting_holds_the_clock_and_starts_it_anew() {
    let mut rtc = rtc();
    put(&mut rtc, 0xb, B_SET | B_24H, at(0));
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
        put(&mut rtc, index, value, at(SECOND));
    }
    assert_eq!(get(&mut rtc, 0, at(50 * SECOND)), 0x59);
    put(&mut rtc, 0xb, B_24H, at(50 * SECOND));
    assert_eq!(rtc.unix(at(50 * SECOND)), 946_684_799);
    assert_eq!(get(&mut rtc, 9, at(51 * SECOND)), 0x00);
    assert_eq!(get(&mut rtc, 0x32, at(51 * SECOND)), 0x20);
}

#[test]
fn update_in_progress_covers_the_end_of_each_second() {
    let mut rtc = rtc();
    let uip = |rtc: &mut Rtc, now| get(rtc, 0xa, now) & 0x80 != 0;
    assert!(!uip(&mut rtc, at(0)));
    assert!(!uip(&mut rtc, at(SECOND - UPDATE - 1)));
    assert!(uip(&mut rtc, at(SECOND - UPDATE)));
    assert!(uip(&mut rtc, at(SECOND - 1)));
    assert!(!uip(&mut rtc, at(SECOND)));
}

#[test]
fn update_interrupts_come_once_a_second_and_clear_on_read() {
    let mut rtc = rtc();
    assert_eq!(rtc.next_event(), None);
    put(&mut rtc, 0xa, 0x20, at(0));
    put(&mut rtc, 0xb, B_UIE | B_24H, at(10));
    let due = rtc.next_event().expect("update enabled");
    assert_eq!(due, at(SECOND));
    rtc.sync(at(SECOND - 1));
    assert!(!rtc.interrupt());
    rtc.sync(due);
    assert!(rtc.interrupt());
    assert_eq!(rtc.next_event(), None);
    assert_eq!(get(&mut rtc, 0xc, due), 0x80 | C_UF);
    assert!(!rtc.interrupt());
    assert_eq!(get(&mut rtc, 0xc, due), 0);
    assert_eq!(rtc.next_event(), Some(at(2 * SECOND)));
}

#[test]
fn each_rate_has_its_period() {
    for rate in 1..16_u8 {
        let mut rtc = rtc();
        put(&mut rtc, 0xa, 0x20 | rate, at(0));
        put(&mut rtc, 0xb, B_PIE | B_24H, at(0));
        let hertz = match rate {
            1 => 256,
            2 => 128,
            rate => 32_768 >> (rate - 1),
        };
        let due = rtc.next_event().expect("periodic enabled");
        assert_eq!(due, Instant::of_tick(1, hertz), "rate {rate}");
        rtc.sync(due - Duration::new(1));
        assert!(!rtc.interrupt());
        rtc.sync(due);
        assert!(rtc.interrupt());
    }
    let mut off = rtc();
    put(&mut off, 0xa, 0x20, at(0));
    put(&mut off, 0xb, B_PIE | B_24H, at(0));
    assert_eq!(off.next_event(), None);
}

#[test]
fn alarms_match_with_wildcards_even_when_seen_late() {
    let mut rtc = rtc();
    // 00:00:05, four days and a bit are slept through.
    for (index, value) in [(1, 0x05), (3, 0x00), (5, 0x00)] {
        put(&mut rtc, index, value, at(0));
    }
    put(&mut rtc, 0xb, B_AIE | B_24H, at(0));
    rtc.sync(at(6 * SECOND));
    assert!(!rtc.interrupt());
    rtc.sync(at(7 * SECOND));
    assert!(rtc.interrupt());
    get(&mut rtc, 0xc, at(7 * SECOND));
    rtc.sync(at(400_000 * SECOND));
    assert!(rtc.interrupt());
    get(&mut rtc, 0xc, at(400_000 * SECOND));
    // Any second.
    for index in [1, 3, 5] {
        put(&mut rtc, index, 0xff, at(400_000 * SECOND));
    }
    rtc.sync(at(400_001 * SECOND));
    assert!(rtc.interrupt());
}

#[test]
fn memory_size_is_where_firmware_leaves_it() {
    let mut rtc = rtc();
    let word = |rtc: &mut Rtc, index| get(rtc, index, at(0)) as u64 | (get(rtc, index + 1, at(0)) as u64) << 8;
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!(word(&mut rtc, 0x30), 0xfc00);
    assert_eq!((word(&mut rtc, 0x34) << 16) + (16 << 20), 2 << 30);
    assert_eq!(word(&mut rtc, 0x5b) << 16 | (get(&mut rtc, 0x5d, at(0)) as u64) << 32, 6 << 30);
    put(&mut rtc, 0x0f, 0x0a, at(0));
    assert_eq!(get(&mut rtc, 0x0f, at(0)), 0x0a);
}
