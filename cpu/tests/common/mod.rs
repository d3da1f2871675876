//! A bare 64-bit machine for tests: identity-mapped low memory, flat segments, code and a stack.

use std::sync::Arc;

use cpu::{Exit, SegReg, Segment, SegmentAttributes, Vcpu, VcpuConfig, VcpuState};
use emu_core::Spa;
use emu_core::cpu_model::CpuModel;
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Efer, Xcr0};
use emu_core::rng::Seed;
use emu_core::time::Instant;

/// Where code starts.
pub const CODE: u64 = 0x10_0000;
/// Where the stack ends.
pub const STACK: u64 = 0x20_0000;

/// A flat segment of long mode.
pub fn flat(selector: u16, kind: u8, long: bool, dpl: u8) -> Segment {
    let attributes = SegmentAttributes::new()
        .with_kind(kind)
        .with_s(true)
        .with_dpl(dpl)
        .with_p(true)
        .with_l(long)
        .with_db(!long)
        .with_g(true);
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

/// A processor in 64-bit mode with `code` at [`CODE`], over 16 MiB.
pub fn long_mode(code: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    long_mode_of(CpuModel::amd_v3(), code)
}

/// The same of a given model.
pub fn long_mode_of(model: CpuModel, code: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    let memory = SystemMemory::flat(16 << 20).expect("16 MiB");
    // PML4 at 0x1000, PDPT at 0x2000 with one 1 GiB page.
    memory.store(Spa::new(0x1000), 0x2007_u64).unwrap();
    memory.store(Spa::new(0x2000), 0x87_u64).unwrap();
    memory.write(Spa::new(CODE), code).unwrap();
    let config = VcpuConfig { model, apic_id: 0, cpu_count: 1, seed: Seed(1) };
    let mut vcpu = Vcpu::new(memory.clone(), &config);
    let mut state = vcpu.state();
    enter_long_mode(&mut state);
    vcpu.set_state(&state);
    (vcpu, memory)
}

fn enter_long_mode(state: &mut VcpuState) {
    state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP;
    state.cr3 = 0x1000;
    state.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::PGE;
    state.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
    state.xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
    for reg in SegReg::ALL {
        state.segments.regs[reg as usize] = flat(0x10, 3, false, 0);
    }
    state.segments.regs[SegReg::Cs as usize] = flat(0x08, 0xb, true, 0);
    state.rip = CODE;
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
}

/// Runs for at most `units`.
pub fn run(vcpu: &mut Vcpu, units: u64) -> Exit {
    let until = Instant::new(vcpu.now().units() + units);
    vcpu.run(until)
}
