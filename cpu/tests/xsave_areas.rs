//! FXSAVE, XSAVE and their kin, and the x87 environment: images in memory, byte by byte.

mod common;

use common::{CODE, long_mode, run};
use cpu::{Exit, Vcpu, VcpuState};
use emu_core::Spa;
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr4, Xcr0};
use std::sync::Arc;

/// Where images lie; RBX.
const AREA: u64 = 0x30_0000;
/// Length of an area with all components of the model.
const LEN: usize = 840;

/// Executes the one instruction `code` on a state prepared by `prepare`, with the area filled with 0xa5.
fn execute(code: &[u8], prepare: impl FnOnce(&mut VcpuState, &SystemMemory)) -> (Vcpu, Arc<SystemMemory>, Exit) {
    let (mut vcpu, memory) = long_mode(code);
    memory.write(Spa::new(AREA), &[0xa5; 4096]).unwrap();
    let mut state = vcpu.state();
    state.gpr[3] = AREA;
    state.xcr0 |= Xcr0::PKRU;
    state.cr4 |= Cr4::PKE;
    prepare(&mut state, &memory);
    vcpu.set_state(&state);
    let exit = run(&mut vcpu, 1);
    (vcpu, memory, exit)
}

/// Executes `code` and expects it to retire.
fn retire(code: &[u8], prepare: impl FnOnce(&mut VcpuState, &SystemMemory)) -> (VcpuState, [u8; LEN]) {
    let (vcpu, memory, exit) = execute(code, prepare);
    assert_eq!(exit, Exit::TimeUp);
    assert_eq!(vcpu.state().rip, CODE + code.len() as u64, "it retired");
    (vcpu.state(), image(&memory))
}

/// Executes `code` and expects it to be refused with nothing changed.
fn refused(code: &[u8], prepare: impl FnOnce(&mut VcpuState, &SystemMemory)) {
    let mut before = None;
    let (vcpu, memory, exit) = execute(code, |state, memory| {
        prepare(state, memory);
        before = Some((state.clone(), image(memory)));
    });
    let (state, bytes) = before.unwrap();
    // There is no descriptor table: the exception ends in a shutdown on the instruction itself.
    assert_eq!(exit, Exit::Shutdown);
    assert_eq!((vcpu.state().x87, vcpu.state().ymm, vcpu.state().mxcsr), (state.x87, state.ymm, state.mxcsr));
    assert_eq!(image(&memory), bytes);
}

fn image(memory: &SystemMemory) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    memory.read(Spa::new(AREA), &mut bytes).unwrap();
    bytes
}

/// Some value in every register.
fn busy(state: &mut VcpuState) {
    for (n, register) in state.ymm.iter_mut().enumerate() {
        *register = core::array::from_fn(|i| 0x0101_0101_0101_0101 * (16 * i + n + 1) as u64);
    }
    state.mxcsr = 0x9fc0;
    state.pkru = 0x5555_5550;
    state.x87.fcw = 0x27f;
    state.x87.fsw = 3 << 11 | 0x4700;
    state.x87.ftw = 0b1111_1000;
    state.x87.st = core::array::from_fn(|i| [i as u8 + 1; 10]);
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

const FXSAVE: &[u8] = &[0x0f, 0xae, 0x03];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0b];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2b];
const XSAVEOPT: &[u8] = &[0x0f, 0xae, 0x33];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x23];
const ALL: u64 = 0x207;

#[test]
fn fxsave_writes_what_it_defines_and_nothing_else() {
    let (state, bytes) = retire(FXSAVE, |state, _| busy(state));
    assert_eq!(bytes[0..5], [0x7f, 0x02, 0x00, 0x5f, 0xf8]);
    assert_eq!(bytes[24..32], [0xc0, 0x9f, 0, 0, 0xff, 0xff, 0, 0]);
    for i in 0..8 {
        assert_eq!(bytes[32 + 16 * i..][..10], state.x87.st[i]);
        assert_eq!(bytes[32 + 16 * i + 10..][..6], [0; 6]);
    }
    for n in 0..16 {
        assert_eq!([word(&bytes, 160 + 16 * n), word(&bytes, 168 + 16 * n)], state.ymm[n][..2]);
    }
    assert_eq!(bytes[416..], [0xa5; LEN - 416]);
}

#[test]
fn fxrstor_undoes_fxsave() {
    let (before, bytes) = retire(FXSAVE, |state, _| busy(state));
    let (after, _) = retire(FXRSTOR, |_, memory| memory.write(Spa::new(AREA), &bytes).unwrap());
    assert_eq!(after.x87, before.x87);
    assert_eq!(after.mxcsr, before.mxcsr);
    for n in 0..16 {
        assert_eq!(after.ymm[n], [before.ymm[n][0], before.ymm[n][1], 0, 0], "upper halves are not its business");
    }
}

#[test]
fn fxrstor_refuses_reserved_bits_and_misalignment() {
    refused(FXRSTOR, |_, memory| memory.store(Spa::new(AREA + 24), 0x1_0000_u32).unwrap());
    refused(FXRSTOR, |state, _| state.gpr[3] += 8);
    refused(FXSAVE, |state, _| state.gpr[3] += 1);
}

#[test]
fn xsave_and_xrstor_are_inverse() {
    for save in [XSAVE, XSAVEOPT, XSAVEC] {
        let request = |state: &mut VcpuState| state.gpr[0] = ALL;
        let (before, bytes) = retire(save, |state, memory| {
            busy(state);
            request(state);
            memory.write(Spa::new(AREA + 512), &[0; 64]).unwrap();
        });
        assert_eq!(word(&bytes, 512), ALL);
        let (after, _) = retire(XRSTOR, |state, memory| {
            request(state);
            memory.write(Spa::new(AREA), &bytes).unwrap();
        });
        assert_eq!((after.x87, after.ymm, after.mxcsr), (before.x87, before.ymm, before.mxcsr));
        assert_eq!(after.pkru, before.pkru);
    }
}

#[test]
fn xsave_keeps_the_bits_of_components_not_asked_for() {
    let (_, bytes) = retire(XSAVE, |state, _| {
        busy(state);
        state.gpr[0] = 2;
    });
    assert_eq!(word(&bytes, 512), 0xa5a5_a5a5_a5a5_a5a7);
    assert_eq!(bytes[..24], [0xa5; 24], "x87 was not asked for");
    assert_eq!(word(&bytes, 520), 0xa5a5_a5a5_a5a5_a5a5, "XCOMP_BV is not written");
}

#[test]
fn state_that_is_initial_is_marked_so() {
    let (_, bytes) = retire(XSAVE, |state, memory| {
        memory.store(Spa::new(AREA + 512), 0_u64).unwrap();
        state.gpr[0] = ALL;
        state.ymm[3][2] = 1;
    });
    assert_eq!(word(&bytes, 512), 4);
    assert_eq!(bytes[160..416], [0; 256], "XSAVE writes it all the same");
    let (_, bytes) = retire(XSAVEOPT, |state, memory| {
        memory.store(Spa::new(AREA + 512), 0_u64).unwrap();
        state.gpr[0] = ALL;
    });
    assert_eq!(word(&bytes, 512), 0);
    assert_eq!(bytes[160..416], [0xa5; 256], "XSAVEOPT does not");
}

#[test]
fn xsavec_packs() {
    let (_, bytes) = retire(XSAVEC, |state, _| {
        busy(state);
        state.gpr[0] = 0x200;
    });
    assert_eq!(word(&bytes, 512), 0x200);
    assert_eq!(word(&bytes, 520), 1 << 63 | 0x200);
    assert_eq!(word(&bytes, 576) as u32, 0x5555_5550, "PKRU comes first when nothing is before it");
    assert_eq!(bytes[528..576], [0xa5; 48], "the rest of the header is not written");
    let (_, bytes) = retire(XSAVEC, |state, _| {
        state.gpr[0] = 2;
        state.mxcsr = 0x1fa0;
    });
    assert_eq!(word(&bytes, 512), 2, "MXCSR alone makes SSE state worth saving");
}

#[test]
fn xrstor_initialises_what_the_image_lacks() {
    for format in [0, 1 << 63 | ALL] {
        let (after, _) = retire(XRSTOR, |state, memory| {
            busy(state);
            state.gpr[0] = ALL;
            memory.write(Spa::new(AREA + 512), &[0; 64]).unwrap();
            memory.store(Spa::new(AREA + 520), format).unwrap();
            memory.store(Spa::new(AREA + 24), 0x1fa5_u32).unwrap();
        });
        assert_eq!(after.ymm, [[0; 4]; 16]);
        assert_eq!((after.x87.fcw, after.x87.fsw, after.x87.ftw, after.pkru), (0x37f, 0, 0, 0));
        assert_eq!(after.mxcsr, if format == 0 { 0x1fa5 } else { 0x1f80 });
    }
}

#[test]
fn xrstor_checks_the_header_before_it_loads() {
    let header = |memory: &SystemMemory, words: [u64; 3]| {
        memory.write(Spa::new(AREA + 512), &[0; 64]).unwrap();
        memory.store(Spa::new(AREA + 24), 0x1f80_u64).unwrap();
        for (n, word) in words.into_iter().enumerate() {
            memory.store(Spa::new(AREA + 512 + 8 * n as u64), word).unwrap();
        }
    };
    let bad: [[u64; 3]; 6] =
        [[1 << 3, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1 << 63, 0], [0, 1 << 63 | 1 << 8, 0], [1, 1 << 63 | 1, 1]];
    for words in bad {
        refused(XRSTOR, |state, memory| {
            busy(state);
            state.gpr[0] = ALL;
            header(memory, words);
        });
    }
    refused(XRSTOR, |state, _| state.gpr[3] += 16);
    refused(XRSTOR, |state, memory| {
        state.gpr[0] = 4;
        header(memory, [0, 0, 0]);
        memory.store(Spa::new(AREA + 24), 0x8000_0000_u32).unwrap();
    });
}

#[test]
fn an_area_that_ends_in_an_unmapped_page_is_left_alone() {
    // One gigabyte is mapped: the header is there, the registers of AVX are not.
    let at = (1 << 30) - 576;
    let (vcpu, memory, exit) = execute(XSAVE, |state, _| {
        busy(state);
        state.gpr[0] = ALL;
        state.gpr[3] = at;
    });
    assert_ne!(exit, Exit::TimeUp);
    assert_eq!(vcpu.state().rip, CODE);
    assert_eq!(image(&memory), [0xa5; LEN]);
}

#[test]
fn control_words() {
    // fninit; fnstcw [rbx]; fnstsw [rbx+2]; fnstsw ax
    let (state, bytes) = retire(&[0xd9, 0x3b], |state, _| state.x87.fcw = 0x27f);
    assert_eq!((bytes[0], bytes[1], state.x87.fcw), (0x7f, 0x02, 0x27f));
    let (state, _) = retire(&[0xdb, 0xe3], |state, _| busy(state));
    assert_eq!((state.x87.fcw, state.x87.fsw, state.x87.ftw), (0x37f, 0, 0));
    let (state, _) = retire(&[0xdf, 0xe0], |state, _| busy(state));
    assert_eq!(state.gpr[0], 0x5f00);
    let (state, _) = retire(&[0xd9, 0x2b], |state, memory| {
        state.x87.fsw = 0x0004;
        memory.store(Spa::new(AREA), 0x137b_u16).unwrap();
    });
    assert_eq!((state.x87.fcw, state.x87.fsw), (0x137b, 0x8084), "an unmasked exception becomes pending");
    let (state, _) = retire(&[0xdb, 0xe2], |state, _| {
        state.x87.fsw = 0xffff;
        state.x87.fcw = 0x340;
    });
    assert_eq!(state.x87.fsw, 0x7f00);
    refused(&[0x9b], |state, _| {
        state.x87.fcw = 0x340;
        state.x87.fsw = 0x8081;
    });
    let (state, _) = retire(&[0x0f, 0xae, 0x13], |_, memory| memory.store(Spa::new(AREA), 0xffff_u32).unwrap());
    assert_eq!(state.mxcsr, 0xffff);
    refused(&[0x0f, 0xae, 0x13], |_, memory| memory.store(Spa::new(AREA), 0x1_0000_u32).unwrap());
    let (_, bytes) = retire(&[0x0f, 0xae, 0x1b], |state, _| state.mxcsr = 0x1fa1);
    assert_eq!(bytes[..5], [0xa1, 0x1f, 0, 0, 0xa5]);
}

#[test]
fn environments_and_whole_saves() {
    let load = |st: [u8; 10]| {
        move |state: &mut VcpuState, _: &SystemMemory| {
            busy(state);
            state.x87.st[0] = st;
        }
    };
    let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
    let (after, bytes) = retire(&[0xd9, 0x33], load(one));
    assert_eq!(bytes[0..12], [0x7f, 0x02, 0xff, 0xff, 0x00, 0x5f, 0xff, 0xff, 0x3f, 0xaa, 0xff, 0xff]);
    assert_eq!(bytes[28], 0xa5);
    assert_eq!(after.x87.fcw, 0x27f, "all were masked already");
    let (_, bytes) = retire(&[0x66, 0xd9, 0x33], load(one));
    assert_eq!(bytes[0..6], [0x7f, 0x02, 0x00, 0x5f, 0x3f, 0xaa]);
    assert_eq!(bytes[14], 0xa5);
    for (save, restore, len) in
        [(&[0xdd, 0x33][..], &[0xdd, 0x23][..], 108), (&[0x66, 0xdd, 0x33][..], &[0x66, 0xdd, 0x23][..], 94)]
    {
        let mut before = None;
        let (after, bytes) = retire(save, |state, memory| {
            load(one)(state, memory);
            before = Some(state.x87.clone());
        });
        assert_eq!((after.x87.fcw, after.x87.fsw, after.x87.ftw), (0x37f, 0, 0));
        assert_eq!(bytes[len - 80..][..10], one);
        assert_eq!(bytes[len], 0xa5);
        let (after, _) = retire(restore, |_, memory| memory.write(Spa::new(AREA), &bytes).unwrap());
        assert_eq!(Some(after.x87), before);
    }
}

#[test]
fn xgetbv_of_index_1_shows_what_is_in_use() {
    let avx_in_use = |upper: u64| {
        let (vcpu, _, exit) = execute(&[0x0f, 0x01, 0xd0], |state, _| {
            state.gpr[1] = 1;
            state.ymm[5][3] = upper;
        });
        assert_eq!(exit, Exit::TimeUp);
        Xcr0::from_bits_retain(vcpu.state().gpr[0]).contains(Xcr0::AVX)
    };
    assert!(!avx_in_use(0), "initial components are not in use");
    assert!(avx_in_use(1));
}
