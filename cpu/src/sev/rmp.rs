//! PVALIDATE, RMPADJUST and RMPQUERY of a guest, RMPUPDATE and PSMASH of a hypervisor on a machine of its own (APM vol. 3,
//! the instructions' pages; APM vol. 2, "RMP and VMPL Access Checks").
//!
//! Here are privileges, registers and flags; the table's own rules are in [`mmu::Rmp`], reached for a guest through the
//! translation of the page it names. Each leaves a code in EAX, and in the flags what a comparison of it would: only
//! PVALIDATE can set CF, when there was nothing to change.
//!
//! Left out on purpose: RMPREAD and RMPOPT, which CPUID does not advertise.

use std::sync::Arc;

use emu_core::sev::Vmpl;
use emu_core::{Gva, Spa};
use mmu::Rmp;
use mmu::rmp::{Changed, Pvalidate as Operands, RmpAdjust, RmpError, RmpPageSize, RmpUpdate, Vmsa};

use crate::cpu::Cpu;
use crate::dispatch::{Ender, Flow};
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::segment::FLAT;
use crate::sev::SevGuest;
use crate::sev::record::SevAct;
use crate::system::descriptor::ud;
use crate::system::load::privileged;
use crate::system::read_reg;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// What CF says in addition to the code in EAX.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carry {
    Clear,
    Set,
}

/// Leaves the code of `result` in EAX and in the flags.
fn conclude(cpu: &mut Cpu, result: Result<(), RmpError>, carry: Carry) {
    let code = result.err().map_or(0, RmpError::code);
    cpu.set_reg(RAX, code);
    cpu.flags.set_explicit(code, carry == Carry::Set, false, false);
}

impl Cpu {
    /// The SNP-active guest that runs; #UD for any other code, #GP(0) for all but its most privileged ring.
    fn snp_kernel(&self) -> Result<SevGuest, Trap> {
        let guest = self.sev.filter(SevGuest::is_snp_active).ok_or_else(ud)?;
        privileged(self)?;
        Ok(guest)
    }

    /// As [`Cpu::snp_kernel`], for what exists in 64-bit mode alone.
    fn snp_kernel_64(&self) -> Result<SevGuest, Trap> {
        if self.key.is_64() { self.snp_kernel() } else { Err(ud()) }
    }

    /// The RMP of the machine that the running code owns; #UD in a guest, without an RMP and outside 64-bit mode.
    fn owned_rmp(&self) -> Result<Arc<Rmp>, Trap> {
        let owns = self.owns_machine() && self.key.is_64();
        let rmp = self.mmu.rmp().filter(|_| owns).cloned().ok_or_else(ud)?;
        privileged(self)?;
        Ok(rmp)
    }
}

/// PVALIDATE (address size in `aux`)
pub(crate) struct Pvalidate;
impl Ender for Pvalidate {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let guest = cpu.snp_kernel()?;
        let gva = Gva::new(read_reg(cpu, RAX, op.aux as u8));
        let operands = match guest.vmpl {
            Vmpl::Vmpl0 => Operands::decode(cpu.reg(RCX), cpu.reg(RDX)),
            _ => Err(RmpError::FailPermission),
        };
        let privilege = cpu.privilege();
        let done = match operands {
            Ok(Operands { size, validated }) => match cpu.mmu.pvalidate(gva, privilege, size, validated) {
                Ok(done) => done,
                Err(fault) => return Err(cpu.mmu_trap(fault, FLAT)),
            },
            Err(refused) => Err(refused),
        };
        let carry = if done == Ok(Changed::No) { Carry::Set } else { Carry::Clear };
        conclude(cpu, done.map(drop), carry);
        if let Ok(Operands { size, validated: to }) = operands {
            cpu.record_at(op, |cpu| {
                let (page, eax) = (cpu.mmu.named_page(), cpu.reg(RAX));
                SevAct::Pvalidate { gva, page, size, to, eax, carry: carry == Carry::Set }
            });
        }
        Ok(Flow::Next)
    }
}

/// RMPADJUST
pub(crate) struct Rmpadjust;
impl Ender for Rmpadjust {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        cpu.snp_kernel_64()?;
        let gva = Gva::new(cpu.reg(RAX));
        let operands = RmpAdjust::decode_size(cpu.reg(RCX))
            .and_then(|size| RmpAdjust::decode(cpu.reg(RDX)).map(|request| (size, request)));
        let privilege = cpu.privilege();
        let done = match operands {
            Ok((size, request)) => match cpu.mmu.rmpadjust(gva, privilege, size, request) {
                Ok(done) => done,
                Err(fault) => return Err(cpu.mmu_trap(fault, FLAT)),
            },
            Err(refused) => Err(refused),
        };
        conclude(cpu, done, Carry::Clear);
        cpu.record_at(op, |cpu| {
            let page = operands.ok().and_then(|_| cpu.mmu.named_page());
            SevAct::RmpAdjust { gva, page, rcx: cpu.reg(RCX), rdx: cpu.reg(RDX), eax: cpu.reg(RAX) }
        });
        Ok(Flow::Next)
    }
}

/// RMPQUERY
pub(crate) struct Rmpquery;
impl Ender for Rmpquery {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        cpu.snp_kernel_64()?;
        let gva = Gva::new(cpu.reg(RAX));
        let level = cpu.reg::<u64>(RDX) & 0xff;
        let privilege = cpu.privilege();
        let answer = match Vmpl::new(level) {
            Some(target) => match cpu.mmu.rmpquery(gva, privilege, target) {
                Ok(answer) => answer,
                Err(fault) => return Err(cpu.mmu_trap(fault, FLAT)),
            },
            None => Err(RmpError::FailInput),
        };
        if let Ok(found) = answer {
            let vmsa = match found.vmsa {
                Vmsa::No => 0,
                Vmsa::Yes => 1 << 16,
            };
            cpu.set_reg(RDX, level | u64::from(found.permissions.bits()) << 8 | vmsa);
            let size = match found.size {
                RmpPageSize::Size4K => 0_u64,
                RmpPageSize::Size2M => 1,
            };
            cpu.set_reg(RCX, size);
        }
        conclude(cpu, answer.map(drop), Carry::Clear);
        Ok(Flow::Next)
    }
}

/// RMPUPDATE
pub(crate) struct Rmpupdate;
impl Ender for Rmpupdate {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        let rmp = cpu.owned_rmp()?;
        let new: u128 = Slow::load(cpu, cpu.reg(RCX), FLAT)?;
        let spa = Spa::new(cpu.reg(RAX));
        let done = RmpUpdate::from_bytes(&new.to_le_bytes()).and_then(|new| rmp.rmpupdate(spa, new));
        conclude(cpu, done, Carry::Clear);
        Ok(Flow::Next)
    }
}

/// PSMASH
pub(crate) struct Psmash;
impl Ender for Psmash {
    fn exec(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
        let rmp = cpu.owned_rmp()?;
        let done = rmp.psmash(Spa::new(cpu.reg(RAX)));
        conclude(cpu, done, Carry::Clear);
        Ok(Flow::Next)
    }
}
