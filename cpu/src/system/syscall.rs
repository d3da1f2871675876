//! Fast system calls: SYSCALL and SYSRET, SYSENTER and SYSEXIT, SWAPGS.
//!
//! APM vol. 3, "SYSCALL", "SYSRET", "SYSENTER", "SYSEXIT", "SWAPGS"; Intel SDM vol. 2, the same. The vendors differ in where
//! an instruction exists, in what SYSRET does to SS, and in who checks the return address; each place says so.

use emu_core::cpu_model::Vendor;
use emu_core::regs::{Efer, Rflags};

use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow};
use crate::event::Event;
use crate::exit::Trap;
use crate::mode::Mode;
use crate::op::Op;
use crate::segment::{SegReg, Segment, SegmentAttributes};
use crate::system::descriptor::{Selector, gp0, ud};
use crate::system::load::privileged;
use emu_core::Exception;
use emu_core::regs::Dr6;

const RCX: u8 = 1;
const RDX: u8 = 2;
const RSP: u8 = 4;
const R11: u8 = 11;

/// Code that these instructions load without a descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CodeKind {
    Bits32,
    Bits64,
}

fn code(selector: u16, kind: CodeKind, cpl: u8) -> Segment {
    let is_64 = kind == CodeKind::Bits64;
    flat(Selector(selector).with_rpl(cpl), flat_attributes(0xb, cpl).with_l(is_64).with_db(!is_64))
}

fn data(selector: u16, cpl: u8) -> Segment {
    flat(Selector(selector).with_rpl(cpl), flat_attributes(3, cpl).with_db(true))
}

fn flat_attributes(kind: u8, dpl: u8) -> SegmentAttributes {
    SegmentAttributes::new().with_kind(kind).with_s(true).with_dpl(dpl).with_p(true).with_g(true)
}

fn flat(selector: Selector, attributes: SegmentAttributes) -> Segment {
    Segment { selector: selector.0, base: 0, limit: u32::MAX, attributes }
}

impl Cpu {
    fn enter_ring(&mut self, cs: Segment, ss: Segment, cpl: u8) {
        self.segments.regs[SegReg::Cs as usize] = cs;
        self.segments.regs[SegReg::Ss as usize] = ss;
        self.cpl = cpl;
        self.refresh_mode();
    }

    /// Refuses SYSCALL and SYSRET where they do not exist: Intel has them in 64-bit mode alone.
    fn check_syscall(&self) -> Result<(), Trap> {
        let exists = match self.model.vendor() {
            Vendor::Amd => self.key.is_protected(),
            Vendor::Intel => self.mode == Mode::Long64,
        };
        if exists && self.control.efer.contains(Efer::SCE) { Ok(()) } else { Err(ud()) }
    }

    /// Refuses SYSENTER and SYSEXIT where they do not exist: AMD has them in legacy mode alone.
    fn check_sysenter(&self) -> Result<(), Trap> {
        if self.is_long() && self.model.vendor() == Vendor::Amd { Err(ud()) } else { Ok(()) }
    }
}

/// SYSCALL
pub(crate) struct Syscall;
impl Ender for Syscall {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        cpu.check_syscall()?;
        let back = cpu.rip_after(op);
        let star = cpu.msr.star;
        let selector = (star >> 32) as u16;
        let flags = cpu.flags.rflags() - Rflags::RF;
        let target;
        let kind;
        if cpu.is_long() {
            target = if cpu.mode == Mode::Long64 { cpu.msr.lstar } else { cpu.msr.cstar };
            kind = CodeKind::Bits64;
            cpu.set_reg(RCX, back);
            cpu.set_reg(R11, flags.bits());
            cpu.flags.set_rflags(flags - Rflags::from_bits_retain(cpu.msr.fmask));
        } else {
            target = star & 0xffff_ffff;
            kind = CodeKind::Bits32;
            cpu.set_reg(RCX, back as u32);
            cpu.flags.set_rflags(flags - Rflags::IF - Rflags::VM);
        }
        cpu.enter_ring(code(selector, kind, 0), data(selector.wrapping_add(8), 0), 0);
        // A trap after SYSCALL is decided by the flags the handler starts with, so that a masked TF never fires there.
        cpu.pending.traced_by_new_flags = true;
        Ok(cpu.go(target))
    }
}

/// SYSRET (8 in `aux` for 64-bit operands, which return to 64-bit code)
pub(crate) struct Sysret;
impl Ender for Sysret {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        cpu.check_syscall()?;
        privileged(cpu)?;
        let selector = (cpu.msr.star >> 48) as u16;
        let to_64 = op.aux == 8;
        let target = if to_64 { cpu.reg::<u64>(RCX) } else { cpu.reg::<u32>(RCX) as u64 };
        let (cs, vendor) = (if to_64 { selector.wrapping_add(16) } else { selector }, cpu.model.vendor());
        // Intel refuses the address while still in ring 0; AMD lets the fetch in ring 3 fault.
        if vendor == Vendor::Intel && !cpu.is_canonical(target) {
            return Err(gp0());
        }
        let mut ss = data(selector.wrapping_add(8), 3);
        if vendor == Vendor::Amd {
            // AMD loads the selector and keeps what the register held, even a null segment's attributes.
            let old = cpu.segments.get(SegReg::Ss);
            ss = Segment { selector: ss.selector, attributes: old.attributes.with_dpl(3), ..*old };
        }
        if cpu.is_long() {
            let flags = Rflags::from_bits_truncate(cpu.reg::<u64>(R11)) - Rflags::RF - Rflags::VM;
            cpu.flags.set_rflags(flags);
        } else {
            cpu.flags.other.insert(Rflags::IF);
        }
        let kind = if to_64 { CodeKind::Bits64 } else { CodeKind::Bits32 };
        cpu.enter_ring(code(cs, kind, 3), ss, 3);
        if cpu.flags.other.contains(Rflags::TF) {
            // A TF that SYSRET sets traps before the first instruction it returns to.
            cpu.event = Some(Event::Exception(Exception::Debug { dr6: Dr6::BS }));
        }
        Ok(cpu.go(target))
    }
}

/// SYSENTER
pub(crate) struct Sysenter;
impl Ender for Sysenter {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        cpu.check_sysenter()?;
        let selector = cpu.msr.sysenter_cs as u16;
        if cpu.mode == Mode::Real || Selector(selector).is_null() {
            return Err(gp0());
        }
        let (kind, mask) = if cpu.is_long() { (CodeKind::Bits64, u64::MAX) } else { (CodeKind::Bits32, 0xffff_ffff) };
        cpu.gpr[RSP as usize] = cpu.msr.sysenter_esp & mask;
        cpu.flags.other.remove(Rflags::IF | Rflags::RF | Rflags::VM);
        cpu.enter_ring(code(selector, kind, 0), data(selector.wrapping_add(8), 0), 0);
        let target = cpu.msr.sysenter_eip & mask;
        Ok(cpu.go(target))
    }
}

/// SYSEXIT (8 in `aux` for 64-bit operands)
pub(crate) struct Sysexit;
impl Ender for Sysexit {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        cpu.check_sysenter()?;
        let selector = cpu.msr.sysenter_cs as u16;
        if cpu.mode == Mode::Real || cpu.cpl != 0 || Selector(selector).is_null() {
            return Err(gp0());
        }
        let (kind, offset, rip, rsp) = if op.aux == 8 {
            (CodeKind::Bits64, 32, cpu.reg::<u64>(RDX), cpu.reg::<u64>(RCX))
        } else {
            (CodeKind::Bits32, 16, cpu.reg::<u32>(RDX) as u64, cpu.reg::<u32>(RCX) as u64)
        };
        if !cpu.is_canonical(rip) || !cpu.is_canonical(rsp) {
            return Err(gp0());
        }
        cpu.gpr[RSP as usize] = rsp;
        let cs = selector.wrapping_add(offset);
        cpu.enter_ring(code(cs, kind, 3), data(cs.wrapping_add(8), 3), 3);
        Ok(cpu.go(rip))
    }
}

/// SWAPGS
pub(crate) struct Swapgs;
impl Act for Swapgs {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        privileged(cpu)?;
        let gs = SegReg::Gs as usize;
        core::mem::swap(&mut cpu.segments.regs[gs].base, &mut cpu.msr.kernel_gs_base);
        cpu.seg_base[gs] = cpu.segments.regs[gs].base;
        Ok(())
    }
}
