//! Guests with encrypted state: the instructions that are different for them.

mod common;

use common::{CODE, long_mode, long_mode_of, run};
use cpu::{Exit, NoSev, SevGuest, Vcpu};
use emu_core::cpu_model::CpuModel;
use emu_core::cpuid::Feature;
use emu_core::regs::Efer;
use emu_core::sev::{SevFeatures, Vmpl, ghcb_sev_info};

const GUEST: SevGuest = SevGuest { features: SevFeatures::SNP_ACTIVE, vmpl: Vmpl::Vmpl0, c_bit: 51 };

/// A processor that can run encrypted guests and runs none.
fn host(code: &[u8]) -> Vcpu {
    long_mode_of(CpuModel::amd_snp(), code).0
}

/// The same with such a guest, and no handler for anything.
fn guest(code: &[u8]) -> Vcpu {
    let mut vcpu = host(code);
    let mut state = vcpu.state();
    state.segments.idtr.limit = 0;
    vcpu.set_state(&state);
    vcpu.enter_sev(GUEST).unwrap();
    vcpu
}

/// RDMSR and WRMSR of `msr`, over a machine without handlers: what was read, `None` for a fault.
fn rdmsr(mut vcpu: Vcpu, msr: u32) -> Option<u64> {
    let mut state = vcpu.state();
    state.gpr[1] = msr as u64;
    state.segments.idtr.limit = 0;
    vcpu.set_state(&state);
    let exit = run(&mut vcpu, 1);
    let after = vcpu.state();
    (exit == Exit::TimeUp && after.rip == CODE + 2).then(|| after.gpr[2] << 32 | after.gpr[0])
}

#[test]
fn vmgexit_retires_and_leaves_the_guest() {
    // vmgexit in both spellings, then a halt
    let mut vcpu = guest(&[0xf3, 0x0f, 0x01, 0xd9, 0xf2, 0x0f, 0x01, 0xd9, 0xf4]);
    assert_eq!(run(&mut vcpu, 10), Exit::VmgExit);
    assert_eq!((vcpu.state().rip, vcpu.now().units()), (CODE + 4, 1));
    assert_eq!(run(&mut vcpu, 10), Exit::VmgExit);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(vcpu.state().rip, CODE + 9, "HLT has retired");
}

#[test]
fn without_encrypted_state_vmgexit_is_vmmcall() {
    for model in [CpuModel::amd_v3(), CpuModel::amd_snp()] {
        let (mut vcpu, _) = long_mode_of(model, &[0xf3, 0x0f, 0x01, 0xd9]);
        assert_eq!(run(&mut vcpu, 10), Exit::Hypercall);
        assert_eq!(vcpu.state().rip, CODE + 4);
    }
}

#[test]
fn a_model_without_the_feature_refuses_the_mode() {
    let (mut vcpu, _) = long_mode(&[0xf4]);
    assert_eq!(vcpu.enter_sev(GUEST), Err(NoSev(Feature::SevSnp)));
    assert_eq!(vcpu.sev_guest(), None);
    let es = SevGuest { features: SevFeatures::empty(), ..GUEST };
    assert_eq!(vcpu.enter_sev(es), Err(NoSev(Feature::SevEs)));
}

#[test]
fn sev_status_tells_what_the_guest_is() {
    let code = [0x0f, 0x32];
    assert_eq!(rdmsr(guest(&code), 0xc001_0131), Some(7));
    assert_eq!(rdmsr(host(&code), 0xc001_0131), Some(0), "who owns the machine is no guest");
    let mut es = host(&code);
    es.enter_sev(SevGuest { features: SevFeatures::empty(), ..GUEST }).unwrap();
    assert_eq!(rdmsr(es, 0xc001_0131), Some(3));
    assert_eq!(rdmsr(long_mode(&code).0, 0xc001_0131), None);
}

#[test]
fn the_ghcb_register_is_the_guests_alone_and_takes_any_value() {
    let code = [0x0f, 0x32];
    assert_eq!(rdmsr(guest(&code), 0xc001_0130), Some(ghcb_sev_info(2, 1, 51)));
    assert_eq!(rdmsr(host(&code), 0xc001_0130), None);
    // wrmsr
    let mut vcpu = guest(&[0x0f, 0x30]);
    let mut state = vcpu.state();
    (state.gpr[1], state.gpr[0], state.gpr[2]) = (0xc001_0130, 0x1234_5678, 0xffff_ffff);
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 1), Exit::TimeUp);
    assert_eq!(vcpu.ghcb(), 0xffff_ffff_1234_5678);
    vcpu.set_ghcb(0x7000);
    assert_eq!(vcpu.ghcb(), 0x7000);
    vcpu.enter_sev(SevGuest { vmpl: Vmpl::Vmpl1, ..GUEST }).unwrap();
    assert_eq!(vcpu.ghcb(), 0x7000, "another privilege level is no reset");
}

#[test]
fn efer_svme_reads_as_one_and_cannot_be_changed() {
    let code = [0x0f, 0x32];
    let efer = rdmsr(guest(&code), 0xc000_0080).unwrap();
    assert_eq!(efer & Efer::SVME.bits(), Efer::SVME.bits());
    for written in [efer, efer & !Efer::SVME.bits(), efer & !Efer::SCE.bits()] {
        let mut vcpu = guest(&[0x0f, 0x30]);
        let mut state = vcpu.state();
        (state.gpr[1], state.gpr[0], state.gpr[2]) = (0xc000_0080, written & 0xffff_ffff, written >> 32);
        vcpu.set_state(&state);
        assert_eq!(run(&mut vcpu, 1), Exit::TimeUp);
        assert_eq!(vcpu.state().efer.bits(), written | Efer::SVME.bits());
    }
}
