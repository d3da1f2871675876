//! Caches, TLBs, order of accesses, and coming to rest: INVLPG, INVPCID, INVD and relatives, CLFLUSH and relatives, fences,
//! HLT, and the calls to the machine.
//!
//! Caches and reordering are not modelled: fences and write-backs only check what they must. Entries of the TLB are.

use core::sync::atomic::Ordering;

use emu_core::regs::Cr4;
use emu_core::sev::ExitCode;
use emu_core::{Access, AccessKind};
use mmu::fast::Others;
use mmu::{Invpcid as Scope, MmuFault, Pcid, Stage2Cause};

use crate::address::{Addressing, Legacy, Use, effective};
use crate::cpu::Cpu;
use crate::dispatch::{Act, Ender, Flow, Pure};
use crate::event::Asked;
use crate::exit::Trap;
use crate::intercept::Refused;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::system::control::whole;
use crate::system::descriptor::{gp0, ud};
use crate::system::load::privileged;

/// INVLPG
pub(crate) struct Invlpg;
impl Ender for Invlpg {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        privileged(cpu)?;
        // Segment limits do not apply, and a non-canonical address is no fault.
        let address = effective(cpu, op);
        let address = if op.scale & crate::address::ADDRESS16 != 0 {
            address & 0xffff
        } else if op.scale & crate::address::ADDRESS32 != 0 {
            address & 0xffff_ffff
        } else {
            address
        };
        let linear = cpu.system_linear(cpu.seg_base[op.seg as usize % 8], address);
        if cpu.is_canonical(linear) {
            cpu.mmu.invlpg(Cpu::gva(linear));
            if cpu.is_shadowed() {
                cpu.pending.asked = Some(Asked::Invlpg(Cpu::gva(linear)));
                return Ok(Flow::Next);
            }
        }
        Ok(Flow::Jump(cpu.rip_after(op)))
    }
}

/// INVPCID (type register in `dst`)
pub(crate) struct Invpcid;
impl Ender for Invpcid {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        privileged(cpu)?;
        let kind = whole(cpu, op.dst);
        let linear = Legacy::linear(cpu, op, 0, 16, Use::Read)?;
        let [pcid, address]: [u64; 2] = Slow::load(cpu, linear, op.seg)?;
        let scope = match kind {
            0 | 1 if pcid >> 12 != 0 || pcid != 0 && !cpu.control.cr4.contains(Cr4::PCIDE) => return Err(gp0()),
            0 if !cpu.model.is_canonical_in_msr(address) => return Err(gp0()),
            0 => Scope::Address { pcid: Pcid::new(pcid as u16), gva: Cpu::gva(address) },
            1 => Scope::Single { pcid: Pcid::new(pcid as u16) },
            2 => Scope::AllWithGlobals,
            3 => Scope::All,
            _ => return Err(gp0()),
        };
        cpu.mmu.invpcid(scope);
        if cpu.is_shadowed() {
            cpu.pending.asked = Some(Asked::Invpcid(scope));
            return Ok(Flow::Next);
        }
        Ok(Flow::Jump(cpu.rip_after(op)))
    }
}

/// WBINVD, WBNOINVD
pub(crate) struct WriteBack;
impl Act for WriteBack {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        privileged(cpu)?;
        Ok(cpu.intercept(ExitCode::WBINVD)?)
    }
}

/// INVD
pub(crate) struct Invd;
impl Act for Invd {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<(), Trap> {
        privileged(cpu)?;
        Ok(cpu.intercept(ExitCode::INVD)?)
    }
}

/// MONITOR and MWAIT (which of them in `aux`): of no model, but processors that run encrypted guests have them, so that
/// these guests' hypervisor sees them.
pub(crate) struct MonitorWait;
/// [`Op::aux`] of MONITOR.
pub(crate) const MONITOR: u16 = 0;
/// [`Op::aux`] of MWAIT.
pub(crate) const MWAIT: u16 = 1;
impl Act for MonitorWait {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        if cpu.cpl == 0 {
            cpu.intercept(if op.aux == MONITOR { ExitCode::MONITOR } else { ExitCode::MWAIT })?;
        }
        Err(ud())
    }
}

/// CLFLUSH, CLFLUSHOPT, CLWB: a read as far as rights go, and nothing to a device.
pub(crate) struct FlushLine;
impl Act for FlushLine {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = Legacy::linear(cpu, op, 0, 1, Use::Read)?;
        let access = Access::new(AccessKind::Read, cpu.privilege());
        match cpu.mmu.translate(Cpu::gva(linear), access) {
            Ok(_) => Ok(()),
            Err(MmuFault::Nested(fault)) if matches!(fault.cause, Stage2Cause::FinalAddress) => Ok(()),
            Err(MmuFault::Guest { gva, code }) if cpu.is_shadowed() => {
                cpu.settle_refused(Refused { gva, access, code })
            }
            Err(fault) => Err(cpu.mmu_trap(fault, op.seg)),
        }
    }
}

/// MFENCE, LFENCE, SFENCE: a processor's own accesses happen in program order anyway; what others see of them, the host
/// decides.
pub(crate) struct Fence;
impl Pure for Fence {
    fn exec(cpu: &mut Cpu, _op: &Op) {
        if cpu.mmu.fast.others() == Others::Beside {
            core::sync::atomic::fence(Ordering::SeqCst);
        }
    }
}

/// VMGEXIT; without encrypted state it is VMMCALL with a prefix that means nothing.
pub(crate) struct Vmgexit;
impl Ender for Vmgexit {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        cpu.pending.asked = Some(if cpu.sev.is_some() { Asked::VmgExit } else { Asked::Hypercall });
        Ok(Flow::Next)
    }
}

/// HLT
pub(crate) struct Hlt;
impl Ender for Hlt {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        privileged(cpu)?;
        cpu.pending.asked = Some(Asked::Halt);
        Ok(Flow::Next)
    }
}

/// [`Op::aux`] of VMMCALL.
pub(crate) const VMMCALL: u16 = 0;
/// [`Op::aux`] of VMCALL.
pub(crate) const VMCALL: u16 = 1;

/// VMCALL and VMMCALL (which of them in `aux`)
pub(crate) struct Hypercall;
impl Ender for Hypercall {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        // Intel's instruction reaches a hypervisor on AMD only where that lets undefined opcodes through.
        if op.aux == VMCALL && cpu.sev.is_some() {
            return Err(ud());
        }
        cpu.intercept(ExitCode::VMMCALL)?;
        cpu.pending.asked = Some(Asked::Hypercall);
        Ok(Flow::Next)
    }
}
