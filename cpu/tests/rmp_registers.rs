//! The registers that place the RMP and put it in force: what code that owns the machine reads and writes, what is fixed from
//! then on, and that a guest has none of it.

#[expect(dead_code, reason = "every instruction is stepped by itself")]
mod common;

use common::{CODE, long_mode_of};
use cpu::{SevGuest, Stepped, Vcpu};
use emu_core::cpu_model::CpuModel;
use emu_core::exception::PageFaultCode;
use emu_core::memory::SystemMemory;
use emu_core::msr::Msr;
use emu_core::sev::{SevFeatures, Vmpl};
use emu_core::{Exception, Gpa, Spa};
use mmu::rmp::{RmpPageSize, RmpUpdate};
use mmu::{Asid, NestedNx, Npt, Stage2, Stage2Levels};

const WRMSR: u64 = CODE;
const RDMSR: u64 = CODE + 2;
const RMPUPDATE: u64 = CODE + 4;
/// mov \[rdi\], eax
const STORE: u64 = CODE + 8;
const PROGRAM: &[u8] = &[0x0f, 0x30, 0x0f, 0x32, 0xf2, 0x0f, 0x01, 0xfe, 0x89, 0x07];

const MFDM: u64 = 1 << 19;
const MEM_ENCRYPT: u64 = 1 << 23;
const SNP: u64 = 1 << 24;
const VMPL: u64 = 1 << 25;
/// The table, for the 16 MiB of memory.
const BASE: u64 = 0x80_0000;
const END: u64 = 0x81_3fff;
const GP: Stepped = Stepped::Exception(Exception::GP0);
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RDI: usize = 7;

fn machine() -> (Vcpu, std::sync::Arc<SystemMemory>) {
    long_mode_of(CpuModel::amd_snp(), PROGRAM)
}

fn step(vcpu: &mut Vcpu, rip: u64, registers: &[(usize, u64)]) -> Stepped {
    let mut now = vcpu.user_registers();
    now.rip = rip;
    for &(n, value) in registers {
        now.gpr[n] = value;
    }
    vcpu.set_user_registers(&now);
    vcpu.step()
}

fn wrmsr(vcpu: &mut Vcpu, msr: Msr, value: u64) -> Stepped {
    step(vcpu, WRMSR, &[(RAX, value & 0xffff_ffff), (RDX, value >> 32), (RCX, msr.0.into())])
}

fn rdmsr(vcpu: &mut Vcpu, msr: Msr) -> Result<u64, Stepped> {
    match step(vcpu, RDMSR, &[(RCX, msr.0.into())]) {
        Stepped::Retired => {
            let gpr = vcpu.user_registers().gpr;
            Ok(gpr[RAX] | gpr[RDX] << 32)
        }
        other => Err(other),
    }
}

/// As Linux does it: the table's place, then MFDM, then SNP with VMPLs.
fn turn_on(vcpu: &mut Vcpu) {
    for (msr, value) in [
        (Msr::RMP_BASE, BASE),
        (Msr::RMP_END, END),
        (Msr::SYSCFG, 1 << 18 | MFDM | MEM_ENCRYPT),
        (Msr::SYSCFG, 1 << 18 | MFDM | MEM_ENCRYPT | SNP | VMPL),
    ] {
        assert_eq!(wrmsr(vcpu, msr, value), Stepped::Retired, "{msr}");
    }
}

#[test]
fn the_owner_places_the_table_and_turns_it_on() {
    let (mut vcpu, memory) = machine();
    assert_eq!(rdmsr(&mut vcpu, Msr::SYSCFG), Ok(0));
    assert_eq!(rdmsr(&mut vcpu, Msr::RMP_BASE), Ok(0));
    let new = RmpUpdate::guest(Asid(1), Gpa::new(0), RmpPageSize::Size4K);
    memory.write(Spa::new(0x9008), &new.to_bytes()).unwrap();
    let page = 0xa0_0000;
    let update = |vcpu: &mut Vcpu| step(vcpu, RMPUPDATE, &[(RAX, page), (RCX, 0x9008)]);
    assert_eq!(update(&mut vcpu), Stepped::Exception(Exception::InvalidOpcode), "SNP is off");

    turn_on(&mut vcpu);
    assert_eq!(rdmsr(&mut vcpu, Msr::SYSCFG), Ok(1 << 18 | MFDM | MEM_ENCRYPT | SNP | VMPL));
    assert_eq!([Msr::RMP_BASE, Msr::RMP_END].map(|msr| rdmsr(&mut vcpu, msr)), [Ok(BASE), Ok(END)]);
    assert_eq!(step(&mut vcpu, STORE, &[(RDI, page)]), Stepped::Retired, "every page is the hypervisor's");
    assert_eq!(update(&mut vcpu), Stepped::Retired);
    assert_eq!(vcpu.user_registers().gpr[RAX], 0);
    // Entry n lies 16 KiB and 16 n bytes after the base.
    let mut entry = [0; 16];
    memory.read(Spa::new(BASE + 0x4000 + (page >> 12) * 16), &mut entry).unwrap();
    assert_ne!(entry, [0; 16], "the table is where the registers say");
    match step(&mut vcpu, STORE, &[(RDI, page)]) {
        Stepped::Exception(Exception::PageFault { code, .. }) => assert!(code.contains(PageFaultCode::RMP)),
        other => panic!("{other:?}"),
    }
    assert_eq!(step(&mut vcpu, STORE, &[(RDI, 0x60_0000)]), Stepped::Retired, "other regions stay");
}

#[test]
fn while_it_is_on_its_place_and_the_memory_map_are_fixed() {
    let (mut vcpu, _) = machine();
    for msr in [Msr::TOP_MEM, Msr::MTRR_FIX64K] {
        assert_eq!(wrmsr(&mut vcpu, msr, 0), Stepped::Retired);
    }
    turn_on(&mut vcpu);
    let fixed = [
        Msr::RMP_BASE,
        Msr::RMP_END,
        Msr::TOP_MEM,
        Msr::TOP_MEM2,
        Msr::MTRR_FIX64K,
        Msr::MTRR_FIX16K,
        Msr::MTRR_FIX4K.offset(7),
    ];
    for msr in fixed {
        assert_eq!(wrmsr(&mut vcpu, msr, 0), GP, "{msr}");
    }
    let on = rdmsr(&mut vcpu, Msr::SYSCFG);
    assert_eq!(wrmsr(&mut vcpu, Msr::SYSCFG, 0), Stepped::Retired);
    assert_eq!(rdmsr(&mut vcpu, Msr::SYSCFG), on, "the write is ignored");
    assert_eq!(wrmsr(&mut vcpu, Msr::MTRR_DEF_TYPE, 0xc06), Stepped::Retired);
    vcpu.init();
    assert!(vcpu.mmu().rmp().is_some(), "INIT is no RESET");
}

#[test]
fn a_place_that_cannot_be_is_refused_and_leaves_everything_off() {
    // Misaligned, the end before the base, and no memory there.
    for (base, end) in [(BASE + 0x1000, END), (BASE, BASE), (1 << 40, (1 << 40) + 0x1_3fff)] {
        let (mut vcpu, _) = machine();
        assert_eq!(wrmsr(&mut vcpu, Msr::RMP_BASE, base), Stepped::Retired);
        assert_eq!(wrmsr(&mut vcpu, Msr::RMP_END, end), Stepped::Retired);
        assert_eq!(wrmsr(&mut vcpu, Msr::SYSCFG, MFDM), Stepped::Retired);
        assert_eq!(wrmsr(&mut vcpu, Msr::SYSCFG, MFDM | SNP), GP, "{base:#x} to {end:#x}");
        assert_eq!(rdmsr(&mut vcpu, Msr::SYSCFG), Ok(MFDM));
        assert!(vcpu.mmu().rmp().is_none());
    }
    let (mut vcpu, _) = machine();
    assert_eq!(wrmsr(&mut vcpu, Msr::RMP_BASE, 1 << 52), GP);
    assert_eq!(wrmsr(&mut vcpu, Msr(0xc001_0136), 0), GP, "no segmented tables are advertised");
}

#[test]
fn a_processor_without_snp_has_none_of_it() {
    let (mut vcpu, _) = long_mode_of(CpuModel::amd_v3(), PROGRAM);
    for msr in [Msr::RMP_BASE, Msr::RMP_END] {
        assert_eq!((rdmsr(&mut vcpu, msr), wrmsr(&mut vcpu, msr, 0)), (Err(GP), GP));
    }
    assert_eq!(wrmsr(&mut vcpu, Msr::SYSCFG, 1 << 18 | SNP), Stepped::Retired);
    assert_eq!(rdmsr(&mut vcpu, Msr::SYSCFG), Ok(1 << 18));
    assert_eq!(wrmsr(&mut vcpu, Msr::TOP_MEM, 0), Stepped::Retired);
}

#[test]
fn a_guest_finds_the_registers_as_kvm_has_them() {
    let (mut plain, memory) = machine();
    // Guest physical addresses are system physical ones: one nested leaf of 1 GiB.
    memory.store(Spa::new(0x4000), 0x5007_u64).unwrap();
    memory.store(Spa::new(0x5000), 0xe7_u64).unwrap();
    plain.mmu().set_stage2(Stage2::Npt(Npt {
        root: Spa::new(0x4000),
        levels: Stage2Levels::Four,
        nx: NestedNx::Enabled,
        asid: Asid(1),
        snp: None,
    }));
    for msr in [Msr::RMP_BASE, Msr::RMP_END] {
        assert_eq!((rdmsr(&mut plain, msr), wrmsr(&mut plain, msr, 0)), (Err(GP), GP), "{msr}");
    }
    assert_eq!(wrmsr(&mut plain, Msr::SYSCFG, SNP | MFDM), Stepped::Retired);
    assert_eq!(rdmsr(&mut plain, Msr::SYSCFG), Ok(0));
    assert_eq!(wrmsr(&mut plain, Msr::TOP_MEM, 0), Stepped::Retired);

    let (mut snp, _) = machine();
    snp.enter_sev(SevGuest { features: SevFeatures::SNP_ACTIVE, vmpl: Vmpl::Vmpl0, c_bit: 51 }).unwrap();
    for msr in [Msr::RMP_BASE, Msr::RMP_END] {
        assert!(snp.emulated_rdmsr(msr).is_err() && snp.emulated_wrmsr(msr, 0).is_err(), "{msr}");
    }
    assert_eq!(snp.emulated_rdmsr(Msr::SYSCFG), Ok(cpu::Emulated::Done(0)));
}
