//! From the loader's entry to the first processor's registers.

use cpu::{DescriptorTable, SegReg, Segment, SegmentAttributes, Vcpu, VcpuState};
use emu_core::Gva;
use emu_core::regs::{Cr0, Cr4, Efer, Rflags};

use crate::loader::{BOOTLOADER_MAGIC, Entry, LongMode};

const RAX: usize = 0;
const RBX: usize = 3;
const RSI: usize = 6;

/// A flat segment of 4 GiB.
fn flat(selector: u16, kind: u8, l: bool, db: bool) -> Segment {
    let attributes =
        SegmentAttributes::new().with_kind(kind).with_s(true).with_p(true).with_l(l).with_db(db).with_g(true);
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

const CODE: u8 = 0b1011;
const DATA: u8 = 0b0011;

/// Puts `vcpu`, fresh from RESET, into the state `entry` asks for.
pub(super) fn enter(vcpu: &mut Vcpu, entry: &Entry) {
    let mut state = vcpu.state();
    state.gpr = [0; 16];
    state.rflags = Rflags::FIXED;
    match *entry {
        Entry::Linux64 { rip, boot_params, long_mode } => {
            enter_64(&mut state, rip.raw(), long_mode);
            state.gpr[RSI] = boot_params.raw();
        }
        Entry::Linux32 { eip, boot_params, segments } => {
            enter_32(&mut state, eip);
            state.segments.gdtr = DescriptorTable { base: Gva::new(segments.gdt.raw()), limit: segments.gdt_limit };
            state.gpr[RSI] = boot_params.raw();
        }
        Entry::Elf64 { rip, start_info, long_mode } => {
            enter_64(&mut state, rip.raw(), long_mode);
            state.gpr[RBX] = start_info.raw();
        }
        Entry::Flat64 { rip, long_mode } => enter_64(&mut state, rip.raw(), long_mode),
        Entry::Pvh32 { eip, start_info } | Entry::Elf32 { eip, start_info } => {
            enter_32(&mut state, eip);
            state.gpr[RBX] = start_info.raw();
        }
        Entry::Multiboot32 { eip, info } => {
            enter_32(&mut state, eip);
            state.gpr[RAX] = BOOTLOADER_MAGIC as u64;
            state.gpr[RBX] = info.raw();
        }
        Entry::Flat32 { eip } => enter_32(&mut state, eip),
        Entry::FlatReal { ip } => {
            state.segments.regs = [Segment::real(0); 6];
            state.segments.regs[SegReg::Cs as usize].attributes.set_kind(CODE);
            state.rip = ip as u64;
        }
    }
    vcpu.set_state(&state);
}

fn task_register() -> Segment {
    // A busy 32-bit (in long mode 64-bit) TSS.
    let attributes = SegmentAttributes::new().with_kind(11).with_p(true);
    Segment { selector: 0, base: 0, limit: 0x67, attributes }
}

fn enter_32(state: &mut VcpuState, eip: u32) {
    state.cr0 = Cr0::PE | Cr0::ET;
    state.segments.regs = [flat(0x18, DATA, false, true); 6];
    state.segments.regs[SegReg::Cs as usize] = flat(0x10, CODE, false, true);
    state.segments.tr = task_register();
    state.rip = eip as u64;
}

fn enter_64(state: &mut VcpuState, rip: u64, long_mode: LongMode) {
    state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET;
    state.cr3 = long_mode.cr3.raw() | long_mode.encryption_mask;
    state.cr4 = Cr4::PAE;
    state.efer = Efer::LME | Efer::LMA;
    state.segments.regs = [flat(LongMode::DATA_SELECTOR, DATA, false, true); 6];
    state.segments.regs[SegReg::Cs as usize] = flat(LongMode::CODE_SELECTOR, CODE, true, false);
    state.segments.tr = task_register();
    state.segments.gdtr = DescriptorTable { base: Gva::new(long_mode.gdt.raw()), limit: long_mode.gdt_limit };
    state.rip = rip;
}
