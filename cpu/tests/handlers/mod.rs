//! The bare 64-bit machine with descriptor tables and a handler for every vector.

use std::sync::Arc;

use cpu::{DescriptorTable, Vcpu};
use emu_core::memory::SystemMemory;
use emu_core::{Gva, Spa};

use crate::common::long_mode;

const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
/// Sixteen bytes a vector: HLT, then IRETQ.
pub const HANDLERS: u64 = 0x8000;

/// `code` in ring 0 with code and data segments of rings 0 and 3 and handlers for everything.
pub fn machine(code: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    let (mut vcpu, memory) = long_mode(code);
    let kernel = [0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff];
    let user = [0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    for (n, d) in kernel.into_iter().chain(user).enumerate() {
        memory.store(Spa::new(GDT + 8 * n as u64), d).unwrap();
    }
    for vector in 0..256 {
        let target = HANDLERS + 16 * vector;
        let gate = target & 0xffff | 8 << 16 | 0x8e << 40;
        memory.store(Spa::new(IDT + 16 * vector), gate as u128).unwrap();
        memory.write(Spa::new(target), &[0xf4, 0x48, 0xcf]).unwrap();
    }
    let mut state = vcpu.state();
    state.segments.gdtr = DescriptorTable { base: Gva::new(GDT), limit: 39 };
    state.segments.idtr = DescriptorTable { base: Gva::new(IDT), limit: 0xfff };
    vcpu.set_state(&state);
    (vcpu, memory)
}
