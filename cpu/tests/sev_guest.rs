//! Guests with encrypted state: the instructions that are different for them.

mod common;

use common::{CODE, STACK, flat, long_mode, long_mode_of, run};
use cpu::{
    DescriptorTable, Emulated, EmulationRefused, Exit, MsrAccess, SegReg, SevGuest, SevRefused, Stepped, Vcpu,
    VcpuState,
};
use emu_core::cpu_model::CpuModel;
use emu_core::cpuid::Feature;
use emu_core::msr::{MSRS, Msr};
use emu_core::regs::{Cr4, Dr6, Dr7, Efer, Rflags};
use emu_core::sev::{ExitCode, SevFeatures, Vmpl, ghcb_sev_info};
use emu_core::{AccessKind, Exception, Gpa, Gva, Spa};
use mmu::{Asid, NestedNx, Npt, Stage2, Stage2Levels};

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
    let mut user = guest(&[0xf3, 0x0f, 0x01, 0xd9]);
    let mut state = user.state();
    at_cpl_3(&mut state);
    user.set_state(&state);
    assert_eq!(run(&mut user, 10), Exit::VmgExit, "in every ring");
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
    assert_eq!(vcpu.enter_sev(GUEST), Err(SevRefused::NoFeature(Feature::SevSnp)));
    assert_eq!(vcpu.sev_guest(), None);
    let es = SevGuest { features: SevFeatures::empty(), ..GUEST };
    assert_eq!(vcpu.enter_sev(es), Err(SevRefused::NoFeature(Feature::SevEs)));
    let vtom = SevGuest { features: SevFeatures::SNP_ACTIVE | SevFeatures::VTOM, ..GUEST };
    assert_eq!(host(&[]).enter_sev(vtom), Err(SevRefused::Unsupported(SevFeatures::VTOM)));
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

/// Steps over the one instruction of a guest.
fn stepped(mut vcpu: Vcpu, prepare: impl Fn(&mut VcpuState)) -> (Stepped, VcpuState) {
    let mut state = vcpu.state();
    prepare(&mut state);
    vcpu.set_state(&state);
    let stepped = vcpu.step();
    (stepped, vcpu.state())
}

fn at_cpl_3(state: &mut VcpuState) {
    for reg in SegReg::ALL {
        state.segments.regs[reg as usize] = flat(0x23, 3, false, 3);
    }
    state.segments.regs[SegReg::Cs as usize] = flat(0x2b, 0xb, true, 3);
    // No room for a bitmap of ports.
    state.segments.tr.limit = 0x65;
}

fn vc(code: ExitCode) -> Stepped {
    Stepped::Exception(Exception::VmmCommunication { exit_code: code.0 as u32 })
}

const GP0: Stepped = Stepped::Exception(Exception::GP0);
const UD: Stepped = Stepped::Exception(Exception::InvalidOpcode);

/// Instructions that are intercepted, and what they raise at CPL 3.
const INTERCEPTED: &[(&str, &[u8], ExitCode, Stepped)] = &[
    ("cpuid", &[0x0f, 0xa2], ExitCode::CPUID, Stepped::Retired),
    ("in al, 0x60", &[0xe4, 0x60], ExitCode::IOIO, GP0),
    ("in eax, dx", &[0xed], ExitCode::IOIO, GP0),
    ("out 0x60, ax", &[0x66, 0xe7, 0x60], ExitCode::IOIO, GP0),
    ("out dx, al", &[0xee], ExitCode::IOIO, GP0),
    ("insb", &[0x6c], ExitCode::IOIO, GP0),
    ("rep insd", &[0xf3, 0x6d], ExitCode::IOIO, GP0),
    ("outsw", &[0x66, 0x6f], ExitCode::IOIO, GP0),
    ("rdmsr", &[0x0f, 0x32], ExitCode::MSR, GP0),
    ("wrmsr", &[0x0f, 0x30], ExitCode::MSR, GP0),
    ("rdpmc", &[0x0f, 0x33], ExitCode::RDPMC, GP0),
    ("invd", &[0x0f, 0x08], ExitCode::INVD, GP0),
    ("wbinvd", &[0x0f, 0x09], ExitCode::WBINVD, GP0),
    ("wbnoinvd", &[0xf3, 0x0f, 0x09], ExitCode::WBINVD, GP0),
    ("vmmcall", &[0x0f, 0x01, 0xd9], ExitCode::VMMCALL, Stepped::Retired),
    ("monitor", &[0x0f, 0x01, 0xc8], ExitCode::MONITOR, UD),
    ("mwait", &[0x0f, 0x01, 0xc9], ExitCode::MWAIT, UD),
    ("mov rax, dr7", &[0x0f, 0x21, 0xf8], ExitCode::DR7_READ, GP0),
    ("mov dr7, rax", &[0x0f, 0x23, 0xf8], ExitCode::DR7_WRITE, GP0),
];

#[test]
fn every_intercepted_instruction_raises_vc_with_its_exit_code_and_changes_nothing() {
    for (name, code, exit, _) in INTERCEPTED {
        let prepare = |state: &mut VcpuState| (state.gpr[1], state.gpr[7]) = (0x1b, 0x9000);
        let mut before = guest(code).state();
        prepare(&mut before);
        let (what, after) = stepped(guest(code), prepare);
        assert_eq!(what, vc(*exit), "{name}");
        assert_eq!(after, before, "{name}: a fault, before anything has happened");
    }
}

#[test]
fn privilege_and_permission_come_before_the_intercept_but_for_cpuid_and_vmmcall() {
    for (name, code, exit, at_3) in INTERCEPTED {
        let (what, _) = stepped(guest(code), |s| {
            at_cpl_3(s);
            s.gpr[1] = 1;
        });
        // What has no check of its own is intercepted in every ring.
        assert_eq!(what, if *at_3 == Stepped::Retired { vc(*exit) } else { at_3.clone() }, "{name}");
    }
    let allowed = |state: &mut VcpuState| {
        at_cpl_3(state);
        state.rflags |= Rflags::IOPL0 | Rflags::IOPL1;
        state.cr4 |= Cr4::PCE;
    };
    assert_eq!(stepped(guest(&[0xec]), allowed).0, vc(ExitCode::IOIO));
    assert_eq!(stepped(guest(&[0x6e]), allowed).0, vc(ExitCode::IOIO));
    assert_eq!(stepped(guest(&[0x0f, 0x33]), allowed).0, vc(ExitCode::RDPMC));
}

#[test]
fn debug_registers_are_checked_before_dr7_is_intercepted() {
    let write = [0x0f, 0x23, 0xf8];
    assert_eq!(stepped(guest(&write), |s| s.gpr[0] = 1 << 32).0, GP0);
    let detected = |s: &mut VcpuState| s.dr7 = Dr7(s.dr7.0 | Dr7::GD);
    assert_eq!(stepped(guest(&write), detected).0, Stepped::Exception(Exception::Debug { dr6: Dr6::BD }));
    // mov rax, dr5 and mov dr5, rax name DR7 unless CR4.DE.
    assert_eq!(stepped(guest(&[0x0f, 0x21, 0xe8]), |_| {}).0, vc(ExitCode::DR7_READ));
    assert_eq!(stepped(guest(&[0x0f, 0x23, 0xe8]), |s| s.cr4 |= Cr4::DE).0, UD);
    // The others are the guest's own.
    for n in [0, 1, 2, 3, 6] {
        assert_eq!(stepped(guest(&[0x0f, 0x21, 0xc0 | n << 3]), |_| {}).0, Stepped::Retired, "DR{n}");
    }
}

#[test]
fn a_guest_without_encrypted_state_is_intercepted_nowhere() {
    for (name, code, exit, _) in INTERCEPTED {
        let (what, _) = stepped(host(code), |s| s.gpr[1] = 0x277);
        assert_ne!(what, vc(*exit), "{name}");
    }
}

#[test]
fn what_the_guest_does_by_itself_retires_or_exits_as_in_any_guest() {
    let instructions: &[(&str, &[u8])] = &[
        ("rdtsc", &[0x0f, 0x31]),
        ("rdtscp", &[0x0f, 0x01, 0xf9]),
        ("xsetbv", &[0x0f, 0x01, 0xd1]),
        ("invlpg [rax]", &[0x0f, 0x01, 0x38]),
        ("mov cr4, rbx", &[0x0f, 0x22, 0xe3]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("clts", &[0x0f, 0x06]),
        ("pause", &[0xf3, 0x90]),
        ("rdrand rax", &[0x48, 0x0f, 0xc7, 0xf0]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
    ];
    for (name, code) in instructions {
        let (what, _) = stepped(guest(code), |s| (s.gpr[0], s.gpr[3]) = (7, s.cr4.bits()));
        assert_eq!(what, Stepped::Retired, "{name}");
    }
    assert_eq!(stepped(guest(&[0x0f, 0x01, 0xc1]), |_| {}).0, UD, "VMCALL is not AMD's");
}

#[test]
fn every_msr_is_intercepted_but_those_of_the_vmsa() {
    let own: Vec<u32> = [0x48, 0x49, 0x174, 0x175, 0x176, 0x1d9, 0x1db, 0x1dc, 0x1dd, 0x1de, 0x277, 0xda0]
        .into_iter()
        .chain(0xc000_0080..=0xc000_0084)
        .chain(0xc000_0100..=0xc000_0103)
        .chain([0xc001_0130, 0xc001_0131])
        .collect();
    let numbers = MSRS.iter().flat_map(|e| (0..e.count).map(|n| e.first.offset(n).0)).chain([0, 0xdead_beef]);
    for msr in numbers {
        for (code, reads) in [([0x0f, 0x32], true), ([0x0f, 0x30], false)] {
            let (what, _) = stepped(guest(&code), |s| s.gpr[1] = msr as u64);
            let passes = own.contains(&msr) || reads && msr == 0x10;
            assert_eq!(what == vc(ExitCode::MSR), !passes, "{:?} {reads}", Msr(msr));
        }
    }
    let (what, _) = stepped(guest(&[0x0f, 0x30]), |s| s.gpr[1] = 0xc001_0131);
    assert_eq!(what, GP0, "SEV_STATUS cannot be written");
}

#[test]
fn a_vc_is_delivered_as_a_fault_with_its_exit_code() {
    let (mut vcpu, memory) = long_mode_of(CpuModel::amd_snp(), &[0x90, 0x0f, 0xa2]);
    vcpu.enter_sev(GUEST).unwrap();
    let gates = |present: u128| {
        memory.store(Spa::new(0x3008), 0x00af_9b00_0000_ffff_u64).unwrap();
        memory.store(Spa::new(0x4000 + 16 * 29), 0x8000_u128 | 8 << 16 | (0x0e | present << 7) << 40).unwrap();
        memory.store(Spa::new(0x4000 + 16 * 8), 0x8100_u128 | 8 << 16 | 0x8e << 40).unwrap();
        memory.write(Spa::new(0x8000), &[0xf4]).unwrap();
        memory.write(Spa::new(0x8100), &[0xf4]).unwrap();
    };
    gates(1);
    let mut state = vcpu.state();
    state.segments.gdtr = DescriptorTable { base: Gva::new(0x3000), limit: 0x1f };
    state.segments.idtr = DescriptorTable { base: Gva::new(0x4000), limit: 0xfff };
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    let at = vcpu.state();
    assert_eq!((at.rip, at.gpr[4]), (0x8001, STACK - 48));
    let frame: Vec<u64> = (0..4).map(|n| memory.load(Spa::new(STACK - 48 + 8 * n)).unwrap()).collect();
    assert_eq!(frame, [0x72, CODE + 1, 8, (Rflags::FIXED | Rflags::RF).bits()], "code, RIP of the CPUID, RF set");
    // Contributory: together with the fault of its own delivery it is a double fault.
    gates(0);
    vcpu.set_state(&state);
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(vcpu.state().rip, 0x8101);
}

#[test]
fn the_hypervisor_emulates_what_is_not_part_of_the_encrypted_state() {
    let mut vcpu = guest(&[0xf4]);
    for msr in [Msr::EFER, Msr::GS_BASE, Msr::PAT, Msr::GHCB, Msr::SEV_STATUS, Msr::LSTAR] {
        assert_eq!(vcpu.emulated_rdmsr(msr), Err(EmulationRefused::GuestState(msr)));
        assert_eq!(vcpu.emulated_wrmsr(msr, 0), Err(EmulationRefused::GuestState(msr)));
    }
    assert_eq!(vcpu.emulated_wrmsr(Msr::MTRR_DEF_TYPE, 0xc06), Ok(Emulated::Done(())));
    assert_eq!(vcpu.emulated_rdmsr(Msr::MTRR_DEF_TYPE), Ok(Emulated::Done(0xc06)));
    assert!(matches!(vcpu.emulated_wrmsr(Msr::MTRR_DEF_TYPE, 7), Err(EmulationRefused::Msr(_))));
    assert!(matches!(vcpu.emulated_rdmsr(Msr(0xdead_beef)), Err(EmulationRefused::Msr(_))));
    // The board's registers come back to whoever knows the board.
    let read = MsrAccess { msr: Msr::APIC_BASE.0, write: None };
    assert_eq!(vcpu.emulated_rdmsr(Msr::APIC_BASE), Ok(Emulated::Board(read)));
    let write = MsrAccess { msr: Msr::APIC_BASE.0, write: Some(0xfee0_0000) };
    assert_eq!(vcpu.emulated_wrmsr(Msr::APIC_BASE, 0xfee0_0000), Ok(Emulated::Board(write)));
    let apic = |vcpu: &Vcpu| vcpu.emulated_cpuid(1, 0, 1, 0).edx >> 9 & 1;
    assert_eq!(apic(&vcpu), 1);
    vcpu.board_took(write);
    assert_eq!(apic(&vcpu), 0);
    // A moved TSC is told as ever.
    assert_eq!(vcpu.emulated_wrmsr(Msr::TSC, 1 << 40), Ok(Emulated::Done(())));
    assert_eq!(run(&mut vcpu, 1), Exit::TscMoved);
    assert!(vcpu.tsc_offset() > 1 << 39);
}

#[test]
fn emulated_cpuid_is_what_cpuid_would_say() {
    for (leaf, subleaf) in [(0, 0), (1, 0), (7, 0), (0xb, 1), (0xd, 0), (0xd, 1), (0x8000_001f, 0)] {
        let (_, native) = stepped(host(&[0x0f, 0xa2]), |s| (s.gpr[0], s.gpr[1]) = (leaf, subleaf));
        let answer = guest(&[]).emulated_cpuid(leaf as u32, subleaf as u32, native.xcr0.bits(), 0);
        let registers = [answer.eax, answer.ebx, answer.ecx, answer.edx].map(u64::from);
        assert_eq!(registers, [0, 3, 1, 2].map(|n: usize| native.gpr[n]), "{leaf:#x}");
    }
    let size = |xcr0| guest(&[]).emulated_cpuid(0xd, 0, xcr0, 0).ebx;
    assert!(size(7) > size(1), "the guest says which states it has enabled");
}

#[test]
fn an_nmi_waits_for_the_guests_word_and_not_for_its_iret() {
    // Handlers: NMI returns at once.
    let (mut vcpu, memory) = long_mode_of(CpuModel::amd_snp(), &[0xeb, 0xfe]);
    memory.store(Spa::new(0x3008), 0x00af_9b00_0000_ffff_u64).unwrap();
    memory.store(Spa::new(0x3010), 0x00cf_9300_0000_ffff_u64).unwrap();
    memory.store(Spa::new(0x4000 + 16 * 2), 0x8000_u128 | 8 << 16 | 0x8e << 40).unwrap();
    // inc rbx ; iretq
    memory.write(Spa::new(0x8000), &[0x48, 0xff, 0xc3, 0x48, 0xcf]).unwrap();
    let mut state = vcpu.state();
    state.segments.gdtr = DescriptorTable { base: Gva::new(0x3000), limit: 0x1f };
    state.segments.idtr = DescriptorTable { base: Gva::new(0x4000), limit: 0xfff };
    vcpu.set_state(&state);
    vcpu.enter_sev(GUEST).unwrap();
    for _ in 0..2 {
        vcpu.inject_nmi();
        run(&mut vcpu, 20);
    }
    assert_eq!(vcpu.state().gpr[3], 1, "the second NMI waits");
    vcpu.nmi_complete();
    run(&mut vcpu, 20);
    assert_eq!(vcpu.state().gpr[3], 2);
}

/// A guest of SEV-ES over nested tables that map its first gigabyte, but for 4 KiB at 0x60_0000, whose entry is `entry`.
fn nested(code: &[u8], entry: u64) -> Vcpu {
    let (mut vcpu, memory) = long_mode_of(CpuModel::amd_snp(), code);
    let store = |at: u64, value: u64| memory.store(Spa::new(at), value).unwrap();
    store(0x5000, 0x6007);
    store(0x6000, 0x7007);
    for n in 0..512 {
        store(0x7000 + 8 * n, n << 21 | 0xe7);
        store(0x9000 + 8 * n, 0x60_0000 + (n << 12) | 0x67);
    }
    store(0x7000 + 8 * 3, 0x9007);
    store(0x9000, entry);
    vcpu.enter_sev(SevGuest { features: SevFeatures::empty(), ..GUEST }).unwrap();
    vcpu.mmu().set_stage2(Stage2::Npt(Npt {
        root: Spa::new(0x5000),
        levels: Stage2Levels::Four,
        nx: NestedNx::Enabled,
        asid: Asid(1),
        snp: None,
    }));
    vcpu
}

#[test]
fn nested_faults_are_exits_that_tell_nothing_and_reserved_bits_mark_devices() {
    // mov eax, [rbx] ; mov [rbx], eax
    for (code, write) in [([0x8b, 0x03], false), ([0x89, 0x03], true)] {
        let data = |s: &mut VcpuState| s.gpr[3] = 0x60_0008;
        let (what, _) = stepped(nested(&code, 0), data);
        let Stepped::Exit(Exit::NestedPageFault { fault, access }) = what else { panic!("{what:?}") };
        assert_eq!((fault.gpa, access), (Gpa::new(0x60_0008), None));
        assert_eq!(fault.access == AccessKind::Write, write);
        let (what, _) = stepped(nested(&code, 0x60_0067 | 1 << 51), data);
        assert_eq!(what, vc(ExitCode::NPF));
        let (what, _) = stepped(nested(&code, 0x60_0067), data);
        assert_eq!(what, Stepped::Retired);
    }
}
