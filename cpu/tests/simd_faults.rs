//! Encodings that must not execute, and vector accesses that stop half way: gathers and masked moves over devices and
//! absent pages.

mod common;

use common::{CODE, long_mode, run};
use cpu::{Completion, Exit, MmioData, Vcpu};
use emu_core::Spa;
use emu_core::memory::SystemMemory;
use std::sync::Arc;

const DATA: u64 = 0x30_0000;
/// Past the 16 MiB of memory: devices answer.
const DEVICE: u64 = 0x0200_0000;

/// YMM0 gathers with the indices in YMM1 and the mask in YMM2, from RSI.
fn gather_machine(code: &[u8], indices: [u64; 4], mask: [u64; 4]) -> (Vcpu, Arc<SystemMemory>) {
    let (mut vcpu, memory) = long_mode(code);
    let mut state = vcpu.state();
    state.ymm[0] = [0xdead_beef_dead_beef; 4];
    state.ymm[1] = indices;
    state.ymm[2] = mask;
    state.gpr[6] = DATA;
    vcpu.set_state(&state);
    (vcpu, memory)
}

/// vpgatherqq ymm0, [rsi + ymm1], ymm2
const GATHER: [u8; 6] = [0xc4, 0xe2, 0xed, 0x91, 0x04, 0x0e];

#[test]
fn a_gather_asks_each_device_once() {
    let device = DEVICE - DATA;
    let (mut vcpu, memory) = gather_machine(&GATHER, [device, 0, device + 64, 8], [u64::MAX; 4]);
    memory.store(Spa::new(DATA), 0x11_u64).unwrap();
    memory.store(Spa::new(DATA + 8), 0x22_u64).unwrap();
    let mut asked = Vec::new();
    while let Exit::Mmio { spa, access } = run(&mut vcpu, 1) {
        assert_eq!((access.len_bytes, access.data), (8, MmioData::Read));
        assert_eq!(vcpu.state().rip, CODE, "it starts again");
        assert_eq!(vcpu.state().ymm[2], [u64::MAX; 4], "nothing is done before everything is answered");
        asked.push(spa.raw());
        vcpu.complete(Completion::value(0x1000 + asked.len() as u64));
        if vcpu.state().rip != CODE {
            break;
        }
    }
    let state = vcpu.state();
    assert_eq!(asked, [DEVICE, DEVICE + 64]);
    assert_eq!(state.ymm[0], [0x1001, 0x11, 0x1002, 0x22]);
    assert_eq!(state.ymm[2], [0; 4]);
}

#[test]
fn a_gather_that_faults_keeps_what_it_has() {
    // Element 2 is beyond the mapped gigabyte.
    let (mut vcpu, memory) = gather_machine(&GATHER, [0, 8, 1 << 32, 16], [u64::MAX, 1, u64::MAX, u64::MAX]);
    memory.store(Spa::new(DATA), 0x11_u64).unwrap();
    memory.store(Spa::new(DATA + 16), 0x33_u64).unwrap();
    // No IDT: the page fault ends in a shutdown, with the registers as the fault found them.
    assert_eq!(run(&mut vcpu, 1), Exit::Shutdown);
    let state = vcpu.state();
    assert_eq!(state.cr2, DATA + (1 << 32));
    assert_eq!(state.ymm[0], [0x11, 0xdead_beef_dead_beef, 0xdead_beef_dead_beef, 0xdead_beef_dead_beef]);
    assert_eq!(state.ymm[2], [0, 0, u64::MAX, u64::MAX]);
}

#[test]
fn a_masked_store_writes_all_or_nothing() {
    // vmaskmovps [rsi], ymm2, ymm1 with its last element in the page after the last mapped one.
    let last = (1 << 30) - 28;
    let code = [0xc4, 0xe2, 0x6d, 0x2e, 0x0e];
    let run_with = |mask: [u64; 4]| {
        let (mut vcpu, _) = gather_machine(&code, [1; 4], mask);
        let mut state = vcpu.state();
        state.gpr[6] = last;
        vcpu.set_state(&state);
        let exit = run(&mut vcpu, 1);
        (exit, vcpu.state().cr2)
    };
    // No memory is there either: a selected element is a device's.
    let (exit, cr2) = run_with([0, 0, 0, 1 << 63]);
    assert_eq!((exit, cr2), (Exit::Shutdown, 1 << 30));
    let (exit, cr2) = run_with([1 << 31, 0, 0, 1 << 63]);
    assert_eq!((exit, cr2), (Exit::Shutdown, 1 << 30), "the fault comes before the device");
    let (exit, _) = run_with([0; 4]);
    assert_eq!(exit, Exit::TimeUp);
}

#[test]
fn wrong_encodings_are_undefined() {
    let undefined: [&[u8]; 9] = [
        // vmovups ymm0, [rsi] with vvvv = 0
        &[0xc5, 0x84, 0x10, 0x06],
        // vpshufd xmm0, xmm1, 0 with vvvv = 0
        &[0xc5, 0x81, 0x70, 0xc1, 0x00],
        // vperm2f128 with L = 0, vpermq with W = 0
        &[0xc4, 0xe3, 0x71, 0x06, 0xc1, 0x00],
        &[0xc4, 0xe3, 0x7d, 0x00, 0xc1, 0x00],
        // vmovd ymm, vpextrb with L = 1
        &[0xc5, 0xfd, 0x6e, 0xc6],
        &[0xc4, 0xe3, 0x7d, 0x14, 0xc8, 0x00],
        // vpgatherqq with equal registers: mask and destination, index and destination
        &[0xc4, 0xe2, 0xfd, 0x91, 0x04, 0x0e],
        &[0xc4, 0xe2, 0xed, 0x91, 0x04, 0x06],
        // lock movups
        &[0xf0, 0x0f, 0x10, 0x06],
    ];
    for code in undefined {
        let (mut vcpu, _) = gather_machine(code, [0; 4], [u64::MAX; 4]);
        assert_eq!(run(&mut vcpu, 1), Exit::Shutdown, "{code:02x?}");
        assert_eq!((vcpu.state().rip, vcpu.state().cr2), (CODE, 0), "{code:02x?}");
    }
}

#[test]
fn aligned_moves_refuse_other_addresses_in_every_width() {
    // movaps xmm0, [rsi]; vmovaps ymm0, [rsi]; paddb xmm0, [rsi]; vmovntps [rsi], ymm0, 16 bytes past a multiple of 32
    let wants: [(&[u8], u64); 4] = [
        (&[0x0f, 0x28, 0x06], 16),
        (&[0xc5, 0xfc, 0x28, 0x06], 32),
        (&[0x66, 0x0f, 0xfc, 0x06], 16),
        (&[0xc5, 0xfc, 0x2b, 0x06], 32),
    ];
    for (code, alignment) in wants {
        for offset in [0, 1, 8, 16, 32] {
            let (mut vcpu, _) = gather_machine(code, [0; 4], [0; 4]);
            let mut state = vcpu.state();
            state.gpr[6] = DATA + offset;
            vcpu.set_state(&state);
            let want = if offset % alignment == 0 { Exit::TimeUp } else { Exit::Shutdown };
            assert_eq!(run(&mut vcpu, 1), want, "{code:02x?} at {offset}");
        }
    }
}
