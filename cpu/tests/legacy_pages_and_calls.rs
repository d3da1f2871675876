//! What 32-bit code sees of the system: the PDPTE registers of PAE paging, SYSENTER and SYSEXIT in every mode, pushes of
//! segment registers; end to end.

mod common;

use std::sync::Arc;

use common::{CODE, STACK, flat, long_mode, run};
use cpu::{DescriptorTable, Exit, SegReg, Segment, SegmentAttributes, Vcpu, VcpuConfig};
use emu_core::cpu_model::CpuModel;
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer, Rflags};
use emu_core::rng::Seed;
use emu_core::{Gva, Spa};

const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
const HANDLERS: u64 = 0x8000;
/// Four PDPTEs, thirty-two bytes aligned and no more.
const PDPT: u64 = 0x5020;
const DIRECTORY: u64 = 0x6000;
const PRESENT: u64 = 1;
const BIG: u64 = 0x83;
const KERNEL_CS: u16 = 0x08;

/// 32-bit protected mode of an Intel processor with handlers; CR3 points at a PDPT that maps the low 2 MiB to
/// themselves, and paging is off.
fn protected(code: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    protected_on(CpuModel::intel_v3(), code)
}

/// The same on any processor.
fn protected_on(model: CpuModel, code: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    let memory = SystemMemory::flat(8 << 20).expect("8 MiB");
    let config = VcpuConfig { model, apic_id: 0, cpu_count: 1, seed: Seed(1) };
    let mut vcpu = Vcpu::new(memory.clone(), &config);
    for (n, d) in [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
        memory.store(Spa::new(GDT + 8 * n as u64), d).unwrap();
    }
    for vector in 0..32 {
        let target = HANDLERS + 16 * vector;
        memory.store(Spa::new(IDT + 8 * vector), target | (KERNEL_CS as u64) << 16 | 0x8e << 40).unwrap();
        memory.store(Spa::new(target), 0xf4_u8).unwrap();
    }
    memory.store(Spa::new(PDPT), DIRECTORY | PRESENT).unwrap();
    memory.store(Spa::new(DIRECTORY), BIG).unwrap();
    memory.write(Spa::new(CODE), code).unwrap();
    let mut state = vcpu.state();
    state.cr0 = Cr0::PE | Cr0::ET;
    state.cr3 = PDPT;
    for reg in SegReg::ALL {
        state.segments.regs[reg as usize] = flat(0x10, 3, false, 0);
    }
    state.segments.regs[SegReg::Cs as usize] = flat(KERNEL_CS, 0xb, false, 0);
    state.segments.gdtr = DescriptorTable { base: Gva::new(GDT), limit: 23 };
    state.segments.idtr = DescriptorTable { base: Gva::new(IDT), limit: 255 };
    state.rip = CODE;
    state.gpr[4] = STACK;
    vcpu.set_state(&state);
    (vcpu, memory)
}

/// mov cr4, eax ; mov cr0, ecx, then `rest`.
fn paged(rest: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    let (mut vcpu, memory) = protected(&[&[0x0f, 0x22, 0xe0, 0x0f, 0x22, 0xc1], rest].concat());
    let mut state = vcpu.state();
    state.gpr[0] = Cr4::PAE.bits();
    state.gpr[1] = (Cr0::PE | Cr0::PG | Cr0::ET).bits();
    state.gpr[3] = PDPT;
    vcpu.set_state(&state);
    (vcpu, memory)
}

fn faulted(vcpu: &Vcpu, vector: u64) -> bool {
    vcpu.state().rip == HANDLERS + 16 * vector + 1
}

#[test]
fn turning_paging_on_loads_the_pdptes_and_refuses_reserved_bits() {
    for (entry, sound) in [
        (0, true),
        (DIRECTORY | PRESENT, true),
        (2, true),
        (PRESENT | 2, false),
        (PRESENT | 1 << 8, false),
        (PRESENT | 1 << 63, false),
    ] {
        let (mut vcpu, memory) = paged(&[0x90, 0xf4]);
        memory.store(Spa::new(PDPT + 24), entry).unwrap();
        assert_eq!(run(&mut vcpu, 8), Exit::Halt);
        assert_eq!(faulted(&vcpu, 13), !sound, "{entry:#x}");
        assert_eq!(vcpu.state().cr0.contains(Cr0::PG), sound);
    }
}

#[test]
fn the_pdptes_are_registers_until_they_are_loaded_again() {
    // mov cr3, ebx
    let mov_cr3 = [0x0f, 0x22, 0xdb];
    // mov eax, [0x40000000] ; hlt
    let load = [0xa1, 0, 0, 0, 0x40, 0xf4];
    for reloads in [false, true] {
        let middle: &[u8] = if reloads { &mov_cr3 } else { &[0x90] };
        let (mut vcpu, memory) = paged(&[&[0x90], middle, &load].concat());
        run(&mut vcpu, 3);
        // The second GiB appears in memory after the registers were loaded.
        memory.store(Spa::new(PDPT + 8), DIRECTORY | PRESENT).unwrap();
        assert_eq!(run(&mut vcpu, 8), Exit::Halt);
        assert_eq!(faulted(&vcpu, 14), !reloads, "reloaded: {reloads}");
    }
}

#[test]
fn a_bad_pdpte_leaves_cr3_and_cr4_as_they_were() {
    // mov cr3, edx | mov cr4, edx with PGE set
    for (code, value) in [([0x0f, 0x22, 0xda], 0x5040), ([0x0f, 0x22, 0xe2], (Cr4::PAE | Cr4::PGE).bits())] {
        let (mut vcpu, memory) = paged(&[&[0x90][..], &code, &[0xf4]].concat());
        let mut state = vcpu.state();
        state.gpr[2] = value;
        vcpu.set_state(&state);
        run(&mut vcpu, 3);
        for at in [PDPT + 16, 0x5040] {
            memory.store(Spa::new(at), PRESENT | 4).unwrap();
        }
        assert_eq!(run(&mut vcpu, 8), Exit::Halt);
        assert!(faulted(&vcpu, 13));
        assert_eq!((vcpu.state().cr3, vcpu.state().cr4), (PDPT, Cr4::PAE));
    }
}

fn msr_write(number: u32, value: u32) -> Vec<u8> {
    // mov ecx, number ; mov eax, value ; xor edx, edx ; wrmsr
    let mut code = vec![0xb9];
    code.extend(number.to_le_bytes());
    code.push(0xb8);
    code.extend(value.to_le_bytes());
    code.extend([0x31, 0xd2, 0x0f, 0x30]);
    code
}

fn sysenter_setup(selector: u32, target: u64) -> Vec<u8> {
    [msr_write(0x174, selector), msr_write(0x175, 0x7_0000), msr_write(0x176, target as u32)].concat()
}

#[test]
fn sysenter_and_sysexit_of_legacy_mode() {
    let mut code = sysenter_setup(0x108, CODE + 0x100);
    code.extend([0x0f, 0x34]);
    let (mut vcpu, memory) = protected(&code);
    // mov edx, 0x200000 ; mov ecx, 0x123450 ; sysexit
    memory.write(Spa::new(CODE + 0x100), &[0xba, 0, 0, 0x20, 0, 0xb9, 0x50, 0x34, 0x12, 0, 0x0f, 0x35]).unwrap();
    memory.write(Spa::new(0x20_0000), &[0xeb, 0xfe]).unwrap();
    let mut state = vcpu.state();
    state.rflags |= Rflags::IF;
    vcpu.set_state(&state);
    run(&mut vcpu, 13);
    let state = vcpu.state();
    assert_eq!((state.rip, state.gpr[4]), (CODE + 0x100, 0x7_0000));
    assert!(!state.rflags.contains(Rflags::IF));
    assert_eq!(state.segments.get(SegReg::Cs).selector, 0x108);
    assert_eq!(state.segments.get(SegReg::Ss).selector, 0x110);
    run(&mut vcpu, 4);
    let state = vcpu.state();
    assert_eq!((state.rip, state.gpr[4]), (0x20_0000, 0x12_3450));
    assert_eq!(state.segments.get(SegReg::Cs).selector, 0x11b);
    assert_eq!(state.segments.get(SegReg::Ss).selector, 0x123);
    assert_eq!(state.segments.get(SegReg::Ss).attributes.dpl(), 3);
}

#[test]
fn sysenter_without_a_code_segment_is_refused_and_sysexit_is_ring_0s() {
    let (mut vcpu, _) = protected(&[sysenter_setup(3, CODE), vec![0x0f, 0x34]].concat());
    assert_eq!(run(&mut vcpu, 40), Exit::Halt);
    assert!(faulted(&vcpu, 13));
    // Real mode has no SYSENTER.
    let (mut vcpu, _) = protected(&[0x0f, 0x34]);
    let mut state = vcpu.state();
    state.cr0 = Cr0::ET;
    state.segments.regs = [Segment::real(0); 6];
    state.segments.regs[SegReg::Cs as usize].base = CODE;
    state.rip = 0;
    state.gpr[4] = 0x8000;
    vcpu.set_state(&state);
    run(&mut vcpu, 1);
    assert_ne!(vcpu.state().rip, 2, "the instruction faulted");
}

#[test]
fn long_mode_has_sysenter_on_intel_alone() {
    for model in [CpuModel::amd_v3(), CpuModel::intel_v3()] {
        let intel = model == CpuModel::intel_v3();
        let (_, memory) = long_mode(&[sysenter_setup(0x8, CODE + 0x100), vec![0x0f, 0x34]].concat());
        let config = VcpuConfig { model, apic_id: 0, cpu_count: 1, seed: Seed(1) };
        let mut vcpu = Vcpu::new(memory, &config);
        let mut state = vcpu.state();
        state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET;
        state.cr3 = 0x1000;
        state.cr4 = Cr4::PAE;
        state.efer = Efer::LME | Efer::LMA;
        for reg in SegReg::ALL {
            state.segments.regs[reg as usize] = flat(0x10, 3, false, 0);
        }
        state.segments.regs[SegReg::Cs as usize] = flat(KERNEL_CS, 0xb, true, 0);
        let busy = SegmentAttributes::new().with_kind(11).with_p(true);
        state.segments.tr = Segment { selector: 0x30, base: 0x5000, limit: 0x67, attributes: busy };
        (state.rip, state.gpr[4]) = (CODE, STACK);
        vcpu.set_state(&state);
        let exit = run(&mut vcpu, 13);
        if intel {
            assert_eq!(exit, Exit::TimeUp);
            assert_eq!((vcpu.state().rip, vcpu.state().gpr[4]), (CODE + 0x100, 0x7_0000));
            assert!(vcpu.state().segments.get(SegReg::Cs).attributes.l());
        } else {
            // #UD, and no table to deliver it through.
            assert_ne!(vcpu.state().rip, CODE + 0x100);
        }
    }
}

#[test]
fn a_segment_register_is_pushed_by_two_bytes_on_intel_and_by_four_on_amd() {
    for (model, pushed, faults) in [(CpuModel::intel_v3(), 0xaaaa_0010_u32, false), (CpuModel::amd_v3(), 0x10, true)] {
        // push es ; pop ds
        let (mut vcpu, memory) = protected_on(model, &[0x06, 0x1f, 0xeb, 0xfe]);
        memory.store(Spa::new(STACK - 4), 0xaaaa_aaaa_u32).unwrap();
        run(&mut vcpu, 1);
        assert_eq!(memory.load::<u32>(Spa::new(STACK - 4)).unwrap(), pushed);
        assert_eq!(vcpu.state().gpr[4], STACK - 4);
        // The upper two bytes are beyond the segment.
        let mut state = vcpu.state();
        state.segments.regs[SegReg::Ss as usize].limit = STACK as u32 - 3;
        vcpu.set_state(&state);
        run(&mut vcpu, 4);
        assert_eq!(faulted(&vcpu, 12), faults);
        if !faults {
            assert_eq!((vcpu.state().rip, vcpu.state().gpr[4]), (CODE + 2, STACK));
        }
    }
}
